// The widget's words, one file for each language.

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
