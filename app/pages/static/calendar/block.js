// Blocking time: a person or a place cannot be booked for a while.
import { newKey } from "../key.js";
import { instantOf } from "../zone.js";
import { call } from "../operator/call.js";
import { choice, el, field } from "../operator/dom.js";
import { openSheet } from "./sheet.js";
import { toast } from "./toast.js";

/**
 * Open the form, filled in with what is known already: {resourceId, from, to}, wall times. `page`: {venue, zone, reload}.
 */
export function openBlockForm({ resourceId, from, to }, page) {
  const people = page.venue.resources.filter(({ kind }) => kind !== "event");
  const sheet = openSheet();
  if (!people.length) {
    sheet.show("Block time", el("p", {}, "Only persons and places can be blocked, and this venue has none."));
    return;
  }
  const who = choice("block-who", people.map(({ id, name }) => [id, name]), resourceId);
  const moment = (id, value) => el("input", { id, type: "datetime-local", required: true, value: value.slice(0, 16) });
  const [begin, end] = [moment("block-from", from), moment("block-to", to)];
  const reason = el("input", { id: "block-reason", maxlength: "200", autocomplete: "off" });
  let key = newKey(); // one for one wish: sent twice, it is done once
  const form = el(
    "form", {},
    field("Who", who), field("From", begin), field("To", end), field("Reason (only you see it)", reason),
    el("div", { class: "actions" }, el("button", { class: "primary" }, "Block time"),
      el("button", { type: "button", onclick: sheet.close }, "Back")),
  );
  form.addEventListener("change", () => { key = newKey(); });
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    sheet.busy(async () => {
      const made = await call("POST", "/v1/blocks", {
        resource_id: who.value,
        starts_at: instantOf(`${begin.value}:00`, page.zone),
        ends_at: instantOf(`${end.value}:00`, page.zone),
        ...(reason.value.trim() ? { reason: reason.value.trim() } : {}),
      }, { "Idempotency-Key": key });
      sheet.close();
      toast(`${made.resource.name} is blocked.`);
      page.reload();
    });
  });
  sheet.show("Block time", el("p", { class: "quiet" }, `Nobody can book it. Times in ${page.zone}.`), form);
}
