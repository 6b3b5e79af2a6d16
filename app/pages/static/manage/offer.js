// A place that became free for somebody who waits: take it, or leave it to the next one.

import { newKey } from "../key.js";
import { button, call, card, facts, h, language, money, named, note, now, Refused, say, show, what, when, words, wrongLink } from "./page.js";

const path = `/v1/waiting-list/${named.id}`;
const proof = { "Waiting-Token": named.token };
/** The same for each click of one visit: two clicks book once. */
const key = newKey();

let entry;

async function refresh() {
  entry = await call("GET", path, { headers: proof });
  const slotId = entry.offer?.slot_id ?? entry.slot_id;
  const slot = slotId ? await call("GET", `/v1/slots/${slotId}`) : null;
  const venue = await call("GET", `/v1/venues/${entry.venue}`);
  render(slot, venue);
}

function render(slot, venue) {
  const open = Boolean(entry.offer?.hold_token) && Date.parse(entry.offer.expires_at) > now();
  show(
    card(
      words.offer_title,
      told(open, slot),
      facts([
        [words.fact_what, slot && what(slot)],
        [words.fact_where, venue.name],
        [words.fact_when, slot && when(slot.starts_at, slot.timezone)],
        [words.places, String(entry.quantity)],
        [words.fact_price, (open || entry.status === "waiting") && price(slot, venue)],
        [words.name, entry.customer.name],
      ]),
      h(
        "p",
        { className: "buttons" },
        open ? button(words.offer_leave, () => guarded(leave)) : null,
        open ? button(venue.payment === "required" ? words.pay : words.offer_take, (event) => take(event.target, venue), "primary") : null,
        entry.status === "waiting" ? button(words.offer_leave_line, () => guarded(leave)) : null,
        open || entry.status === "waiting" ? null : onward(),
      ),
    ),
  );
}

function price(slot, venue) {
  if (!slot?.price?.amount) return "";
  const due = money({ ...slot.price, amount: slot.price.amount * entry.quantity });
  return venue.payment === "required" ? due : say("to_pay", { money: due });
}

function told(open, slot) {
  if (open) return note(say("offer_until", { when: when(entry.offer.expires_at, slot.timezone) }));
  if (entry.status === "waiting") return note(say("offer_waiting", { n: entry.position }));
  return note(words[{ booked: "offer_booked", left: "offer_left" }[entry.status] ?? "offer_lapsed"]);
}

const onward = () => h("a", { className: "button primary", href: `/book/${entry.venue}${location.search}` }, words.another);

function take(clicked, venue) {
  clicked.disabled = true;
  const { name, email, phone } = entry.customer;
  const body = { hold_token: entry.offer.hold_token, customer: { name, email, ...(phone ? { phone } : {}) }, metadata: { language } };
  guarded(() => (venue.payment === "required" ? pay(body) : book(body)));
}

async function book(body) {
  const made = await call("POST", "/v1/bookings", { body, headers: { "Idempotency-Key": key } });
  const link = h("a", { className: "button primary", href: `/manage/${made.id}#${made.manage_token}` }, words.manage);
  show(card(words.done, note(words.offer_booked), h("p", { className: "buttons" }, link)));
}

async function pay(body) {
  const started = await call("POST", "/v1/checkout", { body, headers: { "Idempotency-Key": key } });
  if (started.checkout_url) location.assign(started.checkout_url);
  else await refresh();
}

async function leave() {
  await call("DELETE", path, { headers: proof });
  show(card(words.offer_title, note(words.offer_left), h("p", { className: "buttons" }, onward())));
}

async function guarded(action) {
  try {
    await action();
  } catch (error) {
    if (!(error instanceof Refused || error instanceof TypeError)) throw error;
    if (!entry && error.status === 404) wrongLink();
    else if ([404, 409, 410].includes(error.status)) await refresh(); // it ended meanwhile: the entry knows how
    else show(card(words.busy_title, note(words.unreachable, "bad"), button(words.again, () => guarded(refresh), "primary")));
  }
}

if (named.token) await guarded(refresh);
else wrongLink();
