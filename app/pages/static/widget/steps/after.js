// The last steps: paying elsewhere, and what one has in hand when it is done.

import { call, Refused, SERVICE } from "../api.js";
import { button, CHECK, h, heading, icon } from "../dom.js";
import { summary } from "./parts.js";

const LOOK_MS = 2_500;

/** Pay on the page of whoever takes the money, in a tab of its own: this one stays, and sees when it is paid. */
export function pay(visit) {
  const { t, booking, format } = visit;
  const link = h("a", { class: "button primary", href: booking.checkout_url, target: "_blank", rel: "noopener" }, t("pay_open"), unseen(` ${t("new_tab")}`));
  const waiting = h("p", { class: "quiet", role: "status" }, t("pay_waiting"));
  const element = h(
    "section",
    {},
    h("header", {}, heading(t("pay_title"))),
    summary(visit, booking.slot, booking.quantity),
    h("p", {}, t("pay_until", { time: format.time(booking.expires_at) })),
    h("div", { class: "actions" }, link, button(t("cancel_booking"), () => cancel(visit))),
    waiting,
  );
  watch(visit, element);
  return { element };
}

async function watch(visit, element) {
  const { id, manage_token } = visit.booking;
  let status = "pending_payment";
  while (status === "pending_payment") {
    await new Promise((resume) => setTimeout(resume, LOOK_MS));
    if (!element.isConnected) return;
    const read = call("GET", `v1/bookings/${id}`, { headers: { "Manage-Token": manage_token } });
    ({ status } = await read.catch((failure) => ({ status: failure instanceof Refused && !failure.passing ? "expired" : status })));
  }
  if (!element.isConnected) return;
  if (status === "confirmed") return visit.confirmed();
  visit.booking = null;
  visit.show("time");
  visit.toast.show(visit.t("pay_ended"));
}

async function cancel(visit) {
  const { id, manage_token } = visit.booking;
  try {
    await visit.insist("POST", `v1/bookings/${id}/cancel`, { headers: { "Manage-Token": manage_token } });
    visit.booking = null;
    visit.show("time");
  } catch (failure) {
    visit.explain(failure);
  }
}

/** It is booked: the number, the calendar entry, and where to change it. */
export function done(visit) {
  const { t, booking, customer } = visit;
  const manage = new URL(`manage/${booking.id}#${booking.manage_token}`, SERVICE);
  const file = URL.createObjectURL(new Blob([entry(booking, visit.venue.name)], { type: "text/calendar" }));
  const element = h(
    "section",
    { class: "done" },
    h("header", {}, h("span", { class: "seal" }, icon(CHECK)), heading(t("done"))),
    summary(visit, booking.slot, booking.quantity),
    h("p", {}, t(booking.manage_token ? "done_note" : "done_before", customer)),
    h("p", { class: "number" }, h("span", { class: "quiet" }, t("number")), h("code", {}, booking.id)),
    h(
      "div",
      { class: "actions" },
      h("a", { class: "button", href: file, download: "booking.ics" }, t("calendar_file")),
      booking.manage_token && h("a", { class: "button", href: manage, target: "_blank", rel: "noopener" }, t("manage"), unseen(` ${t("new_tab")}`)),
      button(t("another"), () => visit.again()),
    ),
  );
  return { element };
}

function unseen(text) {
  return h("span", { class: "unseen" }, text);
}

// -- the booking as a calendar entry (RFC 5545), made here: the page has all that it says -----------------------------

const escaped = (text) => text.replace(/[\\;,]/g, "\\$&").replace(/\r?\n/g, "\\n");
const stamp = (instant) => new Date(instant).toISOString().replace(/[-:]|\.\d+/g, "");

/** Break a line into parts of at most 75 octets, as the format wants it. */
function folded(line) {
  const encoder = new TextEncoder();
  const parts = [""];
  for (const letter of line) {
    if (encoder.encode(parts.at(-1) + letter).length > 74) parts.push("");
    parts[parts.length - 1] += letter;
  }
  return parts.join("\r\n ");
}

/**
 * Make the file. Its id is that of the confirmation's entry, so that a calendar that gets both shows one. The link that
 * manages the booking stands nowhere in it, because calendars are shared.
 */
function entry(booking, venue) {
  const { slot } = booking;
  const what = [slot.service?.name, slot.resource.name].filter(Boolean).join(" · ");
  const lines = [
    "BEGIN:VCALENDAR",
    "VERSION:2.0",
    "PRODID:-//Holdfast//Booking widget//EN",
    "BEGIN:VEVENT",
    `UID:${booking.id}@holdfast`,
    `DTSTAMP:${stamp(booking.created_at ?? Date.now())}`,
    `DTSTART:${stamp(slot.starts_at)}`,
    `DTEND:${stamp(slot.ends_at)}`,
    `SUMMARY:${escaped(`${what} · ${venue}`)}`,
    `LOCATION:${escaped(venue)}`,
    "END:VEVENT",
    "END:VCALENDAR",
  ];
  return lines.map((line) => `${folded(line)}\r\n`).join("");
}
