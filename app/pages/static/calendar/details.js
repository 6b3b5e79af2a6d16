// What a click on an entry opens: who it is, and what can be done about it.
import { call } from "../operator/call.js";
import { el, facts } from "../operator/dom.js";
import { money, moment, span, time } from "./clock.js";
import { isUnpaid, words } from "./entries.js";
import { moveForm } from "./move.js";
import { openSheet } from "./sheet.js";
import { toast } from "./toast.js";

const STATUS = { confirmed: "Confirmed", pending_payment: "Waits for its payment", cancelled: "Cancelled", expired: "Expired" };

/** Open the details of an entry. `page`: {venue, zone, reload}. */
export function openDetails(entry, page) {
  const sheet = openSheet();
  const show = { booking: showBooking, hold: showHold, block: showBlock, slot: showSlot }[entry.kind];
  sheet.busy(() => show(sheet, entry, page));
}

function finished(sheet, page, text) {
  sheet.close();
  toast(text);
  page.reload();
}

// -- bookings ---------------------------------------------------------------------------------------------------------

async function showBooking(sheet, entry, page) {
  const [booking, slot] = await Promise.all([call("GET", `/v1/bookings/${entry.id}`), call("GET", `/v1/slots/${entry.slot_id}`)]);
  const { customer } = booking;
  const act = (name, look, next) => el("button", { type: "button", class: look, onclick: () => next(sheet, { entry, booking, slot }, page) }, name);
  sheet.show(
    customer.name,
    el("p", { class: "lead" }, span(slot.starts_at, slot.ends_at, page.zone)),
    facts([
      ["What", [slot.service?.name, slot.resource.name].filter(Boolean).join(" · ")],
      ["Status", STATUS[booking.status]],
      ["Places", String(booking.quantity)],
      ["E-mail", el("a", { href: `mailto:${encodeURIComponent(customer.email)}` }, customer.email)],
      ["Phone", customer.phone && el("a", { href: `tel:${encodeURIComponent(customer.phone)}` }, customer.phone)],
      ["Price", price(booking, slot)],
      ["Booked", moment(booking.created_at, page.zone)],
      ["Notes", metadata(booking.metadata)],
      ["Number", el("code", {}, booking.id)],
    ]),
    el(
      "div", { class: "actions" },
      booking.status === "confirmed" ? act("Move…", "", showMove) : null,
      ["confirmed", "pending_payment"].includes(booking.status) ? act("Cancel booking…", "danger", showCancel) : null,
    ),
  );
}

/** What others have noted. In which language somebody booked is for the e-mails, and said by every page of ours. */
function metadata({ language, ...given }) {
  const pairs = Object.entries(given).map(([key, value]) => [key, typeof value === "string" ? value : JSON.stringify(value)]);
  return pairs.length ? facts(pairs) : null;
}

function price(booking, slot) {
  const { payment } = booking;
  if (payment) {
    const said = { paid: "paid", open: "not paid yet", creating: "not paid yet" }[payment.status] ?? payment.status;
    return `${money(payment.amount)}, ${payment.refund_status === "done" ? "given back" : said}`;
  }
  return slot.price && `${money({ ...slot.price, amount: slot.price.amount * booking.quantity })}, to be paid on site`;
}

function showMove(sheet, { entry }, page) {
  sheet.show(
    `Move ${entry.customer}`,
    el("p", { class: "lead" }, `Now ${span(entry.starts_at, entry.ends_at, page.zone)}`),
    moveForm(sheet, entry, {
      ...page,
      back: () => sheet.busy(() => showBooking(sheet, entry, page)),
      done: () => finished(sheet, page, `${entry.customer} was moved, and is told by e-mail.`),
    }),
  );
}

function showCancel(sheet, { entry, booking, slot }, page) {
  const { payment } = booking;
  const paid = payment?.status === "paid" && payment.refund_status === "none";
  sheet.show(
    "Cancel this booking?",
    el("p", { class: "lead" }, `${booking.customer.name}, ${span(slot.starts_at, slot.ends_at, page.zone)}`),
    el("p", {}, "The time is free for others at once, and the customer is told by e-mail."),
    el("p", { class: `note ${paid ? "warn" : ""}` }, paid ? `${money(payment.amount)} were paid, and go back to the customer.` : "Nothing was paid online: there is nothing to give back."),
    el(
      "div", { class: "actions" },
      el("button", { type: "button", class: "danger", onclick: () => sheet.busy(async () => {
        await call("POST", `/v1/bookings/${booking.id}/cancel`);
        finished(sheet, page, `The booking of ${booking.customer.name} was cancelled.`);
      }) }, "Cancel booking"),
      el("button", { type: "button", onclick: () => sheet.busy(() => showBooking(sheet, entry, page)) }, "Keep it"),
    ),
  );
}

// -- holds, blocks, and what several take part in ---------------------------------------------------------------------

async function showHold(sheet, entry, page) {
  sheet.show(
    "Held",
    el("p", { class: "lead" }, span(entry.starts_at, entry.ends_at, page.zone)),
    el("p", {}, "Somebody is about to book this. Unless they do, it is free again by itself."),
    facts([
      ["What", words(entry, page.zone).more],
      ["Places", String(entry.quantity)],
      ["Until", time(entry.expires_at, page.zone)],
      ["Number", el("code", {}, entry.id)],
    ]),
    el("div", { class: "actions" }, el("button", { type: "button", class: "danger", onclick: () => sheet.busy(async () => {
      await call("DELETE", `/v1/holds/${entry.id}`);
      finished(sheet, page, "The hold was released.");
    }) }, "Release")),
  );
}

async function showBlock(sheet, entry, page) {
  sheet.show(
    entry.reason ?? "Blocked time",
    el("p", { class: "lead" }, span(entry.starts_at, entry.ends_at, page.zone)),
    el("p", {}, `${entry.resource.name} cannot be booked in this time.`),
    el("div", { class: "actions" }, el("button", { type: "button", class: "danger", onclick: () => sheet.busy(async () => {
      await call("DELETE", `/v1/blocks/${entry.id}`);
      finished(sheet, page, `${entry.resource.name} can be booked again.`);
    }) }, "Remove block")),
  );
}

async function showSlot(sheet, slot, page) {
  const line = (member) => el(
    "li", {},
    el("button", { type: "button", onclick: () => sheet.busy(() => (member.kind === "hold" ? showHold : showBooking)(sheet, member, page)) },
      el("strong", {}, words(member, page.zone).title), el("span", { class: "quiet" }, (member.quantity === 1 ? "1 place" : `${member.quantity} places`) + (isUnpaid(member) ? ", not paid yet" : ""))),
  );
  const { title, more } = words(slot, page.zone);
  sheet.show(
    title,
    el("p", { class: "lead" }, span(slot.starts_at, slot.ends_at, page.zone)),
    el("p", {}, more),
    slot.members.length ? el("ul", { class: "members" }, ...slot.members.map(line)) : el("p", { class: "quiet" }, "Nobody has booked this yet."),
  );
}
