// A customer's booking: look at it, move it, cancel it, put it into a calendar.

import { newKey } from "../key.js";
import { isOpenTo } from "../open.js";
import { dayOf } from "../zone.js";
import {
  button, call, card, clock, dayText, facts, h, midnight, money, named, nextDay, note, now, Refused, say, show,
  slots, tell, what, when, words, wrongLink,
} from "./page.js";

const path = `/v1/bookings/${named.id}`;
const proof = { "Manage-Token": named.token };
/** How often a booking that waits for its payment is looked at. */
const LOOK_MS = 3_000;
const LONGEST_MS = 60_000;

let booking, slot, venue;

/** Read it anew and show it, with what is to be said about it; see `note` for the kinds. */
async function refresh(said, kind) {
  const read = await call("GET", path, { headers: proof });
  const of = await call("GET", `/v1/slots/${read.slot_id}`);
  venue = await call("GET", `/v1/venues/${of.venue}`);
  [booking, slot] = [read, of];
  render(said, kind);
  if (booking.status === "pending_payment") lookAgain(LOOK_MS);
}

/** Look whether it is paid by now; while nobody answers, ever less often. */
function lookAgain(pause) {
  setTimeout(() => guarded(() => refresh().catch((error) => {
    if (error.status !== 404) lookAgain(Math.min(2 * pause, LONGEST_MS));
    throw error;
  })), pause);
}

function render(said, kind) {
  tell(kind ? "" : said);
  const ahead = Date.parse(slot.starts_at) > now();
  const live = ahead && booking.status === "confirmed";
  const unpaid = ahead && booking.status === "pending_payment"; // nobody need wait until its time to pay has passed
  show(
    card(
      words.your_booking,
      h("p", { className: `status ${booking.status}` }, say(`status_${booking.status}`)),
      kind ? note(said, kind) : null,
      facts([
        [words.fact_what, what(slot)],
        [words.fact_where, venue.name],
        [words.fact_when, `${when(slot.starts_at, slot.timezone)} – ${clock(slot.ends_at, slot.timezone)} (${slot.timezone})`],
        [words.places, String(booking.quantity)],
        [words.fact_price, price()],
        [words.name, booking.customer?.name],
        [words.number, booking.id],
      ]),
      ...refund().map((text) => note(text)),
      h(
        "p",
        { className: "buttons" },
        booking.status === "confirmed" ? button(words.add_to_calendar, () => guarded(download)) : null,
        live || unpaid ? button(words.cancel, askToCancel, "danger") : null,
        live ? button(words.move, (event) => guarded(() => openMove(event.target)), "primary") : null,
        isOver() ? h("a", { className: "button primary", href: `/book/${slot.venue}${location.search}` }, words.another) : null,
      ),
      h("div", { id: "move" }),
    ),
  );
}

const isOver = () => ["cancelled", "expired"].includes(booking.status);

function price() {
  const { payment, status } = booking;
  if (payment && status === "pending_payment") return money(payment.amount);
  if (payment) return payment.status === "paid" ? say("paid", { money: money(payment.amount) }) : "";
  if (!slot.price?.amount || isOver()) return ""; // who cancelled owes nothing
  return say("to_pay", { money: money({ ...slot.price, amount: slot.price.amount * booking.quantity }) });
}

function refund() {
  const { payment } = booking;
  if (!payment || payment.refund_status === "none") return [];
  return [say(`refund_${payment.refund_status}`, { money: money(payment.amount) })];
}

/** Do something that may fail, and say so where the customer looks. */
async function guarded(action) {
  try {
    await action();
  } catch (error) {
    if (error instanceof Refused && error.status === 404) wrongLink();
    else if (booking) render(words[error instanceof Refused && error.status < 429 ? "ask_venue" : "unreachable"], "bad");
    else show(card(words.busy_title, note(words.unreachable, "bad"), button(words.again, () => guarded(refresh), "primary")));
    if (!(error instanceof Refused || error instanceof TypeError)) throw error;
  }
}

async function download() {
  const entry = await call("GET", `${path}/calendar`, { headers: proof });
  const link = h("a", { href: URL.createObjectURL(entry), download: "booking.ics" });
  link.click();
  URL.revokeObjectURL(link.href);
}

/** Ask before something is done that a tap beside the wanted place must not do. */
function ask(title, told, no, yes) {
  const dialog = h(
    "dialog",
    { "aria-labelledby": "ask-title", onclose: () => dialog.remove() },
    h("h2", { id: "ask-title" }, title),
    ...told,
    h("p", { className: "buttons" }, button(no, () => dialog.close()), yes(() => dialog.close())),
  );
  document.body.append(dialog);
  dialog.showModal();
}

// -- cancelling ----------------------------------------------------------------------------------------------------------

function askToCancel() {
  const until = new Date(new Date(slot.starts_at).getTime() - venue.refund_hours * 3_600_000);
  const paid = booking.payment?.status === "paid";
  const which = facts([[words.fact_what, what(slot)], [words.fact_when, when(slot.starts_at, slot.timezone)]]);
  const told = [which, h("p", {}, words.cancel_free), paid ? h("p", {}, say("cancel_policy", { when: when(until, slot.timezone) })) : null];
  ask(words.cancel_title, told, words.cancel_no, (close) => button(words.cancel_yes, () => { close(); guarded(cancel); }, "danger"));
}

async function cancel() {
  const headers = { ...proof, "Idempotency-Key": newKey() };
  try {
    await call("POST", `${path}/cancel`, { headers, busy: sayBusy });
  } catch (error) {
    if (error.problem?.code === "already_resolved") return refresh(words.changed, "warn");
    throw error;
  }
  return refresh(words.cancelled);
}

const sayBusy = () => document.querySelector("#move").replaceChildren(note(words.retrying, "warn"));

// -- moving --------------------------------------------------------------------------------------------------------------

const wanted = () => ({
  venue: slot.venue,
  ...(slot.service ? { service_id: slot.service.id } : { resource_id: slot.resource.id }),
});

/** Let a day be chosen, beginning with that of the booking. */
async function openMove(opener) {
  opener.disabled = true;
  const day = h("input", { type: "date", id: "day", min: dayOf(now(), slot.timezone), value: dayOf(slot.starts_at, slot.timezone) });
  const times = h("div", { "aria-live": "polite" });
  const panel = h("div", { className: "panel" }, h("h2", {}, words.move), h("label", { htmlFor: "day" }, words.move_to), day, times);
  document.querySelector("#move").replaceChildren(panel);
  day.addEventListener("change", () => day.value && guarded(() => showTimes(day, times)));
  await showTimes(day, times);
  day.focus();
}

async function showTimes(day, times) {
  const asked = day.value;
  const from = new Date(Math.max(midnight(asked, slot.timezone), now()));
  const to = midnight(nextDay(asked), slot.timezone);
  const of = { resource: slot.resource, starts_at: slot.starts_at, ends_at: slot.ends_at, quantity: booking.quantity };
  const that = to > from ? await slots({ ...wanted(), from: from.toISOString(), to: to.toISOString() }) : [];
  const free = that.filter((each) => each.id !== slot.id && isOpenTo(each, of));
  if (day.value !== asked) return; // another was chosen meanwhile
  if (free.length) times.replaceChildren(...byPerson(free));
  else times.replaceChildren(note(words.none_that_day), await nextFree(day, times, to));
}

/** The booking's own person first; the others are one click away. */
function byPerson(free) {
  const people = Map.groupBy ? Map.groupBy(free, (each) => each.resource.id) : grouped(free);
  const mine = people.get(slot.resource.id);
  const ordered = [...(mine ? [mine] : []), ...[...people].filter(([id]) => id !== slot.resource.id).map(([, each]) => each)];
  return ordered.map((each, number) => h(
    "details",
    { open: number === 0 },
    h("summary", {}, people.size > 1 || !mine ? say("with", { name: each[0].resource.name }) : words.free_times),
    h("ul", { className: "times" }, each.map((to) => h("li", {}, button(clock(to.starts_at, to.timezone), () => askToMove(to))))),
  ));
}

function grouped(free) {
  const found = new Map();
  for (const each of free) found.set(each.resource.id, [...(found.get(each.resource.id) ?? []), each]);
  return found;
}

async function nextFree(day, times, from) {
  const query = new URLSearchParams({ ...wanted(), quantity: booking.quantity, from: new Date(Math.max(from, now())).toISOString(), limit: 1 });
  const [next] = (await call("GET", `/v1/slots?${query}`)).data;
  if (!next) return h("p", { className: "quiet" }, words.nothing_at_all);
  const then = dayOf(next.starts_at, next.timezone);
  return button(say("next_free", { day: dayText(next.starts_at, next.timezone) }), () => { day.value = then; guarded(() => showTimes(day, times)); });
}

function askToMove(to) {
  const told = facts([
    [words.fact_what, what(to)],
    [words.fact_when, when(to.starts_at, to.timezone)],
    [words.until_now, when(slot.starts_at, slot.timezone)],
  ]);
  ask(words.move_title, [told], words.move_no, (close) => button(words.move_yes, () => { close(); guarded(() => move(to)); }, "primary"));
}

/** One swap: it has its old time or the new one, and the version says which booking was seen. */
async function move(to) {
  const before = when(slot.starts_at, slot.timezone);
  const headers = { ...proof, "Idempotency-Key": newKey() };
  try {
    await call("POST", `${path}/reschedule`, { body: { slot_id: to.id, version: booking.version }, headers, busy: sayBusy });
  } catch (error) {
    return refused(error, before);
  }
  return refresh(say("moved", { when: before }));
}

async function refused(error, before) {
  const code = error.problem?.code;
  if (code === "payment_required") return render(words.must_pay, "warn");
  if (code === "already_resolved") return refresh(words.changed, "warn");
  if (code === "conflict") {
    const seen = booking.version;
    await refresh();
    return render(words[booking.version === seen ? "ask_venue" : "changed"], "warn");
  }
  if (code !== "slot_unavailable") throw error;
  render(say("move_taken", { when: before }), "warn");
  const others = error.problem.alternatives.filter((each) => each.id !== slot.id);
  others.sort((a, b) => (a.starts_at < b.starts_at ? -1 : 1)); // the service tells the nearest first
  if (!others.length) return undefined;
  const choices = others.map((each) => h("li", {}, button(`${when(each.starts_at, each.timezone)} · ${each.resource.name}`, () => askToMove(each))));
  document.querySelector("#move").replaceChildren(h("div", { className: "panel" }, h("h3", {}, words.instead), h("ul", { className: "choices" }, choices)));
  return undefined;
}

if (named.token) await guarded(refresh);
else wrongLink();
