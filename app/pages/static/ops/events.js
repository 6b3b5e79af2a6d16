// The audit log as it grows: the newest on top, no gaps, and no more of it than a page can bear.
import { call } from "../operator/call.js";
import { el } from "../operator/dom.js";
import { every } from "./every.js";
import { say } from "./keep.js";
import { clock } from "./words.js";

const SECONDS = 2;
const MOST = 100;

/** Offered in the filter beside those that were seen. */
const TYPES = [
  "block.created", "block.removed", "booking.cancelled", "booking.confirmed", "booking.expired", "booking.rescheduled",
  "checkout.completed", "checkout.failed", "checkout.started", "hold.created", "hold.expired", "hold.released",
  "job.retried", "payment.disputed", "payment.late", "payment.mismatched", "payment.orphaned", "payment.refund_failed",
  "payment.refunded", "refund.due", "slot.updated", "waiting.offered", "webhook.dead",
];

const panel = document.querySelector("#events");
const list = panel.querySelector("ol");
const summary = panel.querySelector("[data-summary]");
const type = panel.querySelector("#event-type");
TYPES.forEach(offer);

/** The last event that is shown; null: begin near the end of the log. */
let seen = null;
const now = every(SECONDS, read, (error) => error && say(summary, `Not known now: ${error.message}`));
type.addEventListener("change", () => {
  seen = null;
  now();
});

async function read() {
  const [wanted, from] = [type.value, seen];
  const only = wanted ? `&type=${wanted}` : "";
  const where = from === null ? `last=${MOST}` : `after=${from}&limit=${MOST}`;
  const page = await call("GET", `/v1/events?${where}${only}`);
  if (wanted !== type.value || from !== seen) return; // another filter was chosen meanwhile, and is asked for next
  if (from !== null && page.next_cursor !== null) {
    seen = null; // more happened than fits: what is newest counts
    now();
    return;
  }
  if (from === null) list.replaceChildren();
  for (const event of page.data) {
    offer(event.type);
    list.prepend(row(event));
  }
  while (list.children.length > MOST) list.lastElementChild.remove();
  seen = page.data.at(-1)?.seq ?? from ?? 0;
  say(summary, list.children.length ? "" : "Nothing of this kind has happened");
}

function offer(name) {
  const options = [...type.options].map((option) => option.value);
  if (options.includes(name)) return;
  const next = [...type.options].find((option) => option.value > name);
  type.insertBefore(el("option", { value: name }, name), next ?? null);
}

function row(event) {
  const about = [["booking", event.booking_id], ["slot", event.slot_id]].filter(([, id]) => id);
  const data = Object.entries(event.data).map(([name, value]) => `${name} ${typeof value === "object" ? JSON.stringify(value) : value}`);
  return el(
    "li", { "data-seq": event.seq },
    el("time", { datetime: event.at }, clock(event.at)),
    el("strong", {}, event.type),
    el("span", { class: "quiet" }, `by ${event.actor}`),
    el("span", { class: "about" }, [...about.map(([name, id]) => `${name} ${id}`), ...data].join(", ")),
  );
}
