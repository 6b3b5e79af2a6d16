// Numbers and times, as people read them.

const UNITS = [["d", 86_400], ["h", 3_600], ["m", 60], ["s", 1]];

/** Tell a number in about three digits. */
export function number(value) {
  if (value === null || value === undefined) return "–";
  const digits = Math.abs(value) >= 100 ? 0 : Math.abs(value) >= 10 ? 1 : 2;
  return value.toLocaleString("en-GB", { maximumFractionDigits: Number.isInteger(value) ? 0 : digits });
}

/** Tell how many there are of something. */
export function count(many, noun) {
  return `${many.toLocaleString("en-GB")} ${noun}${many === 1 ? "" : "s"}`;
}

/** Tell a duration in its two largest units. */
export function span(seconds) {
  let left = Math.max(0, Math.round(seconds));
  const told = [];
  for (const [unit, size] of UNITS) {
    if (left >= size || told.length || unit === "s") told.push(`${Math.floor(left / size)}${unit}`);
    left %= size;
    if (told.length === 2) break;
  }
  return told.join(" ");
}

/** Tell what is left as a clock does: 4:05. */
export function countdown(seconds) {
  const left = Math.max(0, Math.ceil(seconds));
  const minutes = Math.floor(left / 60);
  return minutes < 60
    ? `${minutes}:${String(left % 60).padStart(2, "0")}`
    : `${Math.floor(minutes / 60)}:${String(minutes % 60).padStart(2, "0")}:${String(left % 60).padStart(2, "0")}`;
}

/** Tell when a slot begins, as the venue's people say it. */
export function when(instant, timeZone) {
  const parts = { weekday: "short", day: "numeric", month: "short", hour: "2-digit", minute: "2-digit", timeZone };
  return new Date(instant).toLocaleString("en-GB", parts);
}

/** Tell a time of this day to the second, of another with its date, by the clock of whoever reads it. */
export function clock(instant) {
  const at = new Date(instant);
  const time = at.toLocaleTimeString("en-GB");
  const today = at.toDateString() === new Date().toDateString();
  return today ? time : `${at.toLocaleDateString("en-GB", { day: "numeric", month: "short" })}, ${time}`;
}
