// Moving a booking to another time or person: a slot of the same service there, if there is one with room.
import { addDays, instantOf, wall } from "../zone.js";
import { isOpenTo } from "../open.js";
import { call } from "../operator/call.js";
import { choice, el, field } from "../operator/dom.js";
import { time } from "./clock.js";

const MOST = 100;

/** Move a booking to a slot, if it is still the one that was seen. */
export function move(entry, slotId) {
  return call("POST", `/v1/bookings/${entry.id}/reschedule`, { slot_id: slotId, version: entry.version });
}

/** List the slots of an entry's service with a resource that begin on a day, in order. */
export async function slotsOf(entry, resourceId, date, zone) {
  const asked = new URLSearchParams({
    resource_id: resourceId,
    from: instantOf(`${date}T00:00:00`, zone),
    to: instantOf(`${addDays(date, 1)}T00:00:00`, zone),
    limit: MOST,
  });
  if (entry.service) asked.set("service_id", entry.service.id);
  const { data } = await call("GET", `/v1/slots?${asked}`);
  return data.filter((slot) => slot.service?.id === entry.service?.id && slot.id !== entry.slot_id);
}

/** The form in an entry's sheet: a person, a day, and the times that are free. `done` is called when it has moved. */
export function moveForm(sheet, entry, { venue, zone, back, done }) {
  const offering = venue.services.find((service) => service.id === entry.service?.id)?.resource_ids ?? [entry.resource.id];
  const people = venue.resources.filter(({ id }) => offering.includes(id) || id === entry.resource.id);
  const who = choice("move-who", people.map(({ id, name }) => [id, name]), entry.resource.id);
  const day = el("input", { id: "move-day", type: "date", required: true, value: wall(entry.starts_at, zone).slice(0, 10) });
  const when = el("select", { id: "move-when", required: true });
  const submit = el("button", { class: "primary" }, "Move");
  const none = el("p", { class: "quiet", role: "status" });
  const form = el(
    "form", {},
    field("With", who), field("Day", day), field("Time", when), none,
    el("div", { class: "actions" }, submit, el("button", { type: "button", onclick: back }, "Back")),
  );
  let latest = 0;

  async function offer() {
    const mine = ++latest;
    when.replaceChildren(); // what was free on another day
    if (!day.value) return;
    const found = await slotsOf(entry, who.value, day.value, zone);
    if (mine !== latest) return; // another day was chosen meanwhile
    const open = found.filter((slot) => isOpenTo(slot, entry));
    when.replaceChildren(...open.map((slot) => el("option", { value: slot.id }, time(slot.starts_at, zone))));
    when.disabled = open.length === 0;
    none.textContent = open.length ? "" : "Nothing is free on that day.";
  }

  /** Offer what is free; where that is nothing, or could not be read, there is nothing to be sent either. */
  async function ask() {
    submit.disabled = true;
    await sheet.busy(offer);
    submit.disabled = !when.value;
  }

  for (const control of [who, day]) control.addEventListener("change", ask);
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    sheet.busy(async () => {
      await move(entry, when.value);
      done();
    });
  });
  ask();
  return form;
}
