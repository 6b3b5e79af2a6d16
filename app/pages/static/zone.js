// Days and times as the clocks of a zone show them. `Intl` knows the zones. A wall time is a text, 2026-12-31T10:00:00.

const DAY_MS = 86_400_000;
const clocks = new Map();

function clockOf(zone) {
  if (!clocks.has(zone)) {
    const parts = { year: "numeric", month: "2-digit", day: "2-digit", hour: "2-digit", minute: "2-digit", second: "2-digit" };
    clocks.set(zone, new Intl.DateTimeFormat("en-GB", { timeZone: zone, hourCycle: "h23", ...parts }));
  }
  return clocks.get(zone);
}

/** Tell what the wall of a zone shows at an instant (a Date, ms, or RFC 3339). */
export function wall(instant, zone) {
  const shown = Object.fromEntries(clockOf(zone).formatToParts(new Date(instant)).map(({ type, value }) => [type, value]));
  return `${shown.year}-${shown.month}-${shown.day}T${shown.hour}:${shown.minute}:${shown.second}`;
}

/** Name the day of an instant in a zone, as 2026-11-30. */
export const dayOf = (instant, zone) => wall(instant, zone).slice(0, 10);

/** Name the day that is so many days after another. */
export const addDays = (day, count) => new Date(Date.parse(`${day}T00:00:00Z`) + count * DAY_MS).toISOString().slice(0, 10);

/** Tell how far a zone is from UTC at an instant, both in ms. */
export const offset = (instant, zone) => Date.parse(`${wall(instant, zone)}Z`) - Math.floor(instant / 1000) * 1000;

/**
 * Find the instant at which a wall shows this; of an hour that comes twice the first, of one that is left out the next:
 * clocks that go from 02:00 to 03:00 show 03:30 when it would have been 02:30.
 */
export function instantOf(wallTime, zone) {
  const wanted = Date.parse(`${wallTime}Z`);
  const [before, after] = [-DAY_MS, DAY_MS].map((far) => wanted - offset(wanted + far, zone));
  const isShown = (instant) => instant + offset(instant, zone) === wanted;
  return new Date([before, after].find(isShown) ?? before).toISOString();
}
