// Which zone times are shown in, and when its days begin.
import { instantOf } from "../zone.js";

/** Find the instant in which a day begins in a zone: of a midnight that comes twice the first. */
export const beginOf = (day, zone) => new Date(instantOf(`${day}T00:00:00`, zone));

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
