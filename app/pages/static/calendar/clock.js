// The venue's wall clock: the calendar shows its zone, whatever the browser's. And its money.
import { money as write } from "../written.js";
import { addDays, offset, wall } from "../zone.js";

const LANGUAGE = "en-GB";
const formats = new Map();

export const money = (price) => write(LANGUAGE, price);

function format(zone, options) {
  const key = zone + JSON.stringify(options);
  if (!formats.has(key)) formats.set(key, new Intl.DateTimeFormat(LANGUAGE, { timeZone: zone, ...options }));
  return formats.get(key);
}

/** Write the zone's offset of now as the calendar wants it: +01:00. */
export function offsetText(zone) {
  const minutes = Math.round(offset(Date.now(), zone) / 60_000);
  const [hours, rest] = [Math.floor(Math.abs(minutes) / 60), Math.abs(minutes) % 60];
  return `${minutes < 0 ? "-" : "+"}${String(hours).padStart(2, "0")}:${String(rest).padStart(2, "0")}`;
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
