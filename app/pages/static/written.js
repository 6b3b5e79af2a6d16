// How times and money are written for people, by language: in app/written.py the server writes the same.

/** Make the formats of a language (a locale, such as de-AT) and zone. */
export function formats(locale, zone) {
  const format = (options, timeZone = zone) => {
    const made = new Intl.DateTimeFormat(locale, { timeZone, ...options });
    return (instant) => made.format(new Date(instant));
  };
  const { hour12 } = new Intl.DateTimeFormat(locale, { hour: "numeric" }).resolvedOptions();
  // Two digits where there is no AM: else browsers differ by their age.
  const clock = { hour: hour12 ? "numeric" : "2-digit", minute: "2-digit" };
  const long = { weekday: "long", day: "numeric", month: "long" };
  return {
    time: format(clock),
    moment: format({ ...long, ...clock }),
    date: format({ weekday: "short", day: "numeric", month: "short" }),
    // Of a day's name, such as 2026-11-28, which is midnight in UTC.
    day: format(long, "UTC"),
    minutes: (count) => new Intl.NumberFormat(locale, { style: "unit", unit: "minute", unitDisplay: "short" }).format(count),
    money: (price) => money(locale, price),
  };
}

/** Write an amount in minor units as Stripe counts them; `Intl` has other views of which coins are in use. */
export function money(locale, { amount, currency }) {
  const digits = NO_MINOR.test(currency) ? 0 : THREE_DIGITS.test(currency) ? 3 : 2;
  const exact = { minimumFractionDigits: digits, maximumFractionDigits: digits };
  return new Intl.NumberFormat(locale, { style: "currency", currency, ...exact }).format(amount / 10 ** digits);
}

const NO_MINOR = /BIF|CLP|DJF|GNF|JPY|KMF|KRW|MGA|PYG|RWF|VND|VUV|XAF|XOF|XPF/;
const THREE_DIGITS = /BHD|JOD|KWD|OMR|TND/;
