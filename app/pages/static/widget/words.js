// What depends on the language: the widget's words, one file for each, and how times and money are written.

const LANGUAGES = ["en", "de", "es", "fr"];

/** Choose the first of some locales, such as de-AT, whose language there is. */
export function choose(locales) {
  return locales.find((locale) => LANGUAGES.includes(language(locale))) ?? "en";
}

/** Load the words of a locale, and return `t(key, values)`: the word, its {names} replaced, its number agreeing with `n`. */
export async function load(locale) {
  const { default: words } = await import(`./words/${language(locale)}.js`);
  const plural = new Intl.PluralRules(locale);
  return (key, values = {}) => {
    const found = words[key];
    const word = typeof found === "string" ? found : (found[plural.select(values.n)] ?? found.other);
    return word.replace(/\{(\w+)\}/g, (_, name) => values[name]);
  };
}

function language(locale) {
  return locale.toLowerCase().split("-")[0];
}

/** Make the formats of a language and zone. */
export function formats(locale, zone) {
  const format = (options) => {
    const made = new Intl.DateTimeFormat(locale, { timeZone: zone, ...options });
    return (instant) => made.format(new Date(instant));
  };
  const dateOnly = new Intl.DateTimeFormat(locale, { timeZone: "UTC", weekday: "long", day: "numeric", month: "long" });
  return {
    time: format({ hour: "numeric", minute: "2-digit" }),
    date: format({ weekday: "short", day: "numeric", month: "short" }),
    moment: format({ weekday: "long", day: "numeric", month: "long", hour: "numeric", minute: "2-digit" }),
    day: (day) => dateOnly.format(Date.parse(`${day}T00:00:00Z`)),
    minutes: (count) => new Intl.NumberFormat(locale, { style: "unit", unit: "minute", unitDisplay: "short" }).format(count),
    money: ({ amount, currency }) => {
      const money = new Intl.NumberFormat(locale, { style: "currency", currency });
      return money.format(amount / 10 ** money.resolvedOptions().maximumFractionDigits);
    },
  };
}
