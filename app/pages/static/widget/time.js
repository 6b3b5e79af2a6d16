// Days and times as a zone's clocks show them. `Intl` knows the zones.

const clocks = new Map();

function clock(zone) {
  if (!clocks.has(zone)) {
    const parts = { year: "numeric", month: "2-digit", day: "2-digit", hour: "2-digit", minute: "2-digit", second: "2-digit" };
    clocks.set(zone, new Intl.DateTimeFormat("en-CA", { timeZone: zone, hourCycle: "h23", ...parts }));
  }
  return clocks.get(zone);
}

function wall(instant, zone) {
  const parts = clock(zone).formatToParts(instant);
  return Object.fromEntries(parts.map(({ type, value }) => [type, value]));
}

/** Name the day of an instant in a zone, as 2026-11-30. */
export function dayOf(instant, zone) {
  const { year, month, day } = wall(new Date(instant), zone);
  return `${year}-${month}-${day}`;
}

const DAY_MS = 86_400_000;

/**
 * Find the instant in which a day begins in a zone: of a midnight that comes twice the first, and where it is left out
 * the moment at which it would have come, when clocks go on.
 */
export function beginOf(day, zone) {
  const wanted = Date.parse(`${day}T00:00:00Z`);
  const [before, after] = [-DAY_MS, DAY_MS].map((far) => wanted - offset(wanted + far, zone));
  const isShown = (instant) => instant + offset(instant, zone) === wanted;
  return new Date([before, after].find(isShown) ?? before);
}

function offset(instant, zone) {
  const { year, month, day, hour, minute, second } = wall(new Date(instant), zone);
  return Date.UTC(year, month - 1, day, hour, minute, second) - instant;
}

/** Name the day that is so many days after another. */
export function daysAfter(day, count) {
  return new Date(Date.parse(`${day}T00:00:00Z`) + count * DAY_MS).toISOString().slice(0, 10);
}

/** Tell whether `Intl` knows a zone. */
export function isZone(zone) {
  try {
    return Boolean(zone && new Intl.DateTimeFormat("en", { timeZone: zone }));
  } catch {
    return false;
  }
}

/** The visitor's own zone. */
export const visitorsZone = () => new Intl.DateTimeFormat().resolvedOptions().timeZone;
