// What the service tells of some days, as the calendar draws it.
import { wall } from "../zone.js";
import { el } from "../operator/dom.js";
import { time } from "./clock.js";

/** Colours of persons, in order; the style sheet has as many. */
const COLOURS = 6;
/** What lasts no longer has room for one line. */
const SHORT_MS = 30 * 60_000;

/** Put what is told of one slot with several places together: a tour is one entry, however many come. */
export function grouped(entries) {
  const told = [];
  const slots = new Map();
  for (const entry of entries) {
    if (entry.slot_id === null || entry.capacity === 1) {
      told.push(entry);
      continue;
    }
    let slot = slots.get(entry.slot_id);
    if (!slot) {
      slot = { ...entry, kind: "slot", id: entry.slot_id, members: [], booked: 0, unpaid: 0, held: 0 };
      slots.set(entry.slot_id, slot);
      told.push(slot);
    }
    if (entry.kind === "booking" || entry.kind === "hold") {
      slot.members.push(entry);
      slot[entry.kind === "hold" ? "held" : isUnpaid(entry) ? "unpaid" : "booked"] += entry.quantity;
    } else if (entry.kind === "closed") {
      slot.closed = true;
    }
  }
  return told;
}

/** Whether somebody is still paying for it: until then it is not theirs. */
export const isUnpaid = (entry) => entry.status === "pending_payment";

function taken({ booked, capacity, unpaid, held }) {
  return [`${booked} of ${capacity} booked`, unpaid && `${unpaid} not paid yet`, held && `${held} held`].filter(Boolean).join(", ");
}

/** What an entry is called, and what else is to be known at a glance; `alone`: it stands in its resource's column. */
export function words(entry, zone, { alone = false } = {}) {
  const names = entry.kind === "slot" || !alone ? [entry.service?.name, entry.resource.name] : [entry.service?.name];
  const what = names.filter(Boolean).join(" · ");
  switch (entry.kind) {
    case "booking":
      return { title: entry.customer, more: what + (isUnpaid(entry) ? " · not paid yet" : "") };
    case "hold":
      return { title: `Held until ${time(entry.expires_at, zone)}`, more: what };
    case "block":
      return { title: entry.reason ?? "Blocked", more: [entry.reason && "Blocked", what].filter(Boolean).join(" · ") };
    case "slot":
      return { title: what, more: entry.closed ? "Closed" : taken(entry) };
    default:
      return { title: "", more: "" };
  }
}

/** Make the calendar's events of what was told; `who`: of one resource alone, or of all; `brief`: only what is taken. */
export function events(entries, { zone, resources, who, brief }) {
  const colour = new Map(resources.map(({ id }, n) => [id, `person-${n % COLOURS}`]));
  return grouped(entries)
    .filter((entry) => (!who || entry.resource.id === who) && !(brief && empty(entry)))
    .map((entry, n) => ({
      id: entry.id ?? `${entry.kind}-${entry.resource.id}-${entry.starts_at}-${n}`,
      start: wall(entry.starts_at, zone),
      end: wall(entry.ends_at, zone),
      resourceIds: [entry.resource.id],
      title: words(entry, zone).title,
      display: entry.kind === "free" || entry.kind === "closed" ? "background" : "auto",
      classNames: [`is-${entry.kind}`, colour.get(entry.resource.id), empty(entry) && "is-empty", short(entry) && "is-short", `is-${entry.status}`].filter(Boolean),
      startEditable: entry.kind === "booking" && entry.status === "confirmed",
      durationEditable: false,
      extendedProps: entry,
    }));
}

function short(entry) {
  return Date.parse(entry.ends_at) - Date.parse(entry.starts_at) <= SHORT_MS;
}

function empty(entry) {
  return entry.kind === "slot" && !entry.booked && !entry.unpaid && !entry.held;
}

/** Draw an event as a button: the time, the name, and a line more. `open` is called with its entry. */
export function content({ event, timeText, view }, zone, open) {
  const entry = event.extendedProps;
  if (event.display === "background" || !entry.kind) return undefined;
  const { title, more } = words(entry, zone, { alone: view.type.startsWith("resource") });
  const button = el(
    "button", { type: "button", class: "entry", "data-entry": event.id, onclick: () => open(entry) },
    el("span", { class: "when" }, timeText), " ",
    el("strong", { class: "name" }, title), " ",
    el("span", { class: "more" }, more),
  );
  return { domNodes: [button] };
}

/** Find an event's button, which is another one whenever the calendar is drawn anew. */
export function buttonOf(id) {
  return id ? document.querySelector(`[data-entry="${CSS.escape(id)}"]`) : null;
}
