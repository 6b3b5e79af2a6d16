// The venue's wall clock: the calendar shows its zone, whatever the browser's. A wall time is a text, 2026-12-31T10:00:00.

const LANGUAGE = "en-GB";
const DAY_MS = 86_400_000;
const formats = new Map();

function format(zone, options) {
  const key = zone + JSON.stringify(options);
  if (!formats.has(key)) formats.set(key, new Intl.DateTimeFormat(LANGUAGE, { timeZone: zone, ...options }));
  return formats.get(key);
}

/** Tell what the wall of a zone shows at an instant (a Date, or RFC 3339). */
export function wall(instant, zone) {
  const options = { year: "numeric", month: "2-digit", day: "2-digit", hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" };
  const found = Object.fromEntries(format(zone, options).formatToParts(new Date(instant)).map((part) => [part.type, part.value]));
  return `${found.year}-${found.month}-${found.day}T${found.hour}:${found.minute}:${found.second}`;
}

/** Tell how far a zone is from UTC at an instant, in ms. */
function offset(instant, zone) {
  return Date.parse(`${wall(instant, zone)}Z`) - Math.floor(instant / 1000) * 1000;
}

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

/** Write the zone's offset of now as the calendar wants it: +01:00. */
export function offsetText(zone) {
  const minutes = Math.round(offset(Date.now(), zone) / 60_000);
  const [hours, rest] = [Math.floor(Math.abs(minutes) / 60), Math.abs(minutes) % 60];
  return `${minutes < 0 ? "-" : "+"}${String(hours).padStart(2, "0")}:${String(rest).padStart(2, "0")}`;
}

/** Today's date on the wall of a zone. */
export function today(zone) {
  return wall(Date.now(), zone).slice(0, 10);
}

/** Move a date by days. */
export function addDays(date, days) {
  return new Date(Date.parse(`${date}T00:00:00Z`) + days * DAY_MS).toISOString().slice(0, 10);
}

/** Move a wall time by seconds of the wall. */
export function addSeconds(wallTime, seconds) {
  return new Date(Date.parse(`${wallTime}Z`) + seconds * 1000).toISOString().slice(0, 19);
}

/** The Monday of a date's week. */
export function monday(date) {
  return addDays(date, -((new Date(`${date}T00:00:00Z`).getUTCDay() + 6) % 7));
}

/** 10:00, as the wall shows it. */
export function time(instant, zone) {
  return wall(instant, zone).slice(11, 16);
}

/** Saturday 28 November 2026. */
export function longDate(date) {
  return format("UTC", { weekday: "long", day: "numeric", month: "long", year: "numeric" }).format(new Date(`${date}T00:00:00Z`));
}

/** 23 – 29 November 2026. */
export function dateRange(first, last) {
  const days = [first, last].map((date) => new Date(`${date}T00:00:00Z`));
  return format("UTC", { day: "numeric", month: "long", year: "numeric" }).formatRange(...days);
}

/** Sat 28 Nov, 10:00 – 11:00; the day twice when it ends on another. */
export function span(from, to, zone) {
  const day = (instant) => format(zone, { weekday: "short", day: "numeric", month: "short" }).format(new Date(instant));
  const end = day(from) === day(new Date(Date.parse(to) - 1)) ? time(to, zone) : `${day(to)}, ${time(to, zone)}`;
  return `${day(from)}, ${time(from, zone)} – ${end}`;
}

/** Sat 28 Nov 2026, 10:00. */
export function moment(instant, zone) {
  return format(zone, { weekday: "short", day: "numeric", month: "short", year: "numeric", hour: "2-digit", minute: "2-digit", hourCycle: "h23" }).format(new Date(instant));
}
