// The step in which a time is chosen: a day, how many places, and what is free, which changes while one looks.

import { button, h } from "../dom.js";
import { nextFreeDay, times } from "../slots.js";
import { beginOf, dayOf, daysAfter, visitorsZone } from "../time.js";
import { calendar } from "./calendar.js";
import { chosen, top, zoneName } from "./parts.js";

/** Choose a day and a time. */
export function time(visit) {
  const { t } = visit;
  const parts = {
    quantity: h("div", { class: "quantity", role: "group", "aria-label": t("quantity") }),
    title: h("h3", { id: "day-title" }, t("loading")),
    times: h("ul", { class: "times", "aria-labelledby": "day-title" }),
    empty: h("div", { class: "empty" }),
    wait: h("p", { class: "quiet", hidden: true }, t("wait_hint")),
    zone: h("p", { class: "zone quiet" }),
  };
  const month = calendar(visit, (day) => chooseDay(visit, parts, day));
  const lost = visit.conflict && lostPanel(visit);
  const element = h(
    "section",
    {},
    top(visit, t("choose_time")),
    chosen(visit),
    lost,
    h("div", { class: "when" }, month.element, h("div", { class: "that-day" }, parts.quantity, parts.title, parts.zone, parts.times, parts.wait, parts.empty)),
  );
  Object.assign(parts, { month });
  showZone(visit, parts);
  firstDay(visit, parts);
  return { element, focus: lost?.querySelector("button") ?? lost?.querySelector("h3"), refresh: () => refresh(visit, parts) };
}

async function firstDay(visit, parts) {
  visit.choice.day ??= await nextFree(visit).catch((failure) => visit.explain(failure));
  await goTo(visit, parts, visit.choice.day ?? dayOf(Date.now(), visit.zone));
}

function nextFree(visit, from) {
  const read = (path) => visit.insist("GET", path);
  return nextFreeDay(read, visit.wish, visit.choice.quantity, from, visit.zone);
}

async function chooseDay(visit, parts, day) {
  parts.title.textContent = visit.format.day(day);
  parts.times.replaceChildren();
  parts.empty.replaceChildren(h("p", { class: "quiet" }, visit.t("loading")));
  await visit.chooseDay(day).catch((failure) => visit.explain(failure));
}

// -- what is free -----------------------------------------------------------------------------------------------------

function refresh(visit, parts) {
  const offered = times(visit.shown, visit.choice.quantity);
  const focused = parts.times.getRootNode().activeElement?.dataset.at;
  showQuantity(visit, parts);
  parts.times.replaceChildren(...offered.map((each) => h("li", {}, timeButton(visit, each))));
  parts.times.querySelector(`[data-at="${focused}"]`)?.focus();
  parts.wait.hidden = !offered.some(({ state }) => state === "sold_out");
  if (offered.some(({ state }) => state === "free" || state === "held")) parts.empty.replaceChildren();
  else showEmpty(visit, parts);
}

function timeButton(visit, { startsAt, state, slots }) {
  const { t, format } = visit;
  const [slot] = slots;
  const note = {
    free: slot.capacity > 1 && t("places_left", { n: slot.available }),
    few: t("places_left", { n: slot.available }),
    held: t("held"),
    sold_out: t("sold_out"),
  }[state];
  const free = slots.filter((each) => each.available >= visit.choice.quantity);
  const props = { class: `time ${state}`, part: `time ${state}`, "data-at": startsAt, "aria-disabled": (state === "few" || state === "held") && "true" };
  const act = async (event) => {
    if (state === "sold_out") return visit.askToWait(slot);
    if (state !== "free") return visit.toast.announce(whyNot(visit, startsAt, state, note));
    const pressed = event.currentTarget;
    pressed.setAttribute("aria-busy", "true");
    await visit.take(free);
    pressed.removeAttribute("aria-busy");
  };
  return button([h("span", {}, format.time(startsAt)), note && h("small", {}, note)], act, props);
}

function whyNot({ t, format }, startsAt, state, note) {
  return state === "held" ? t("held_note", { time: format.time(startsAt) }) : note;
}

function showEmpty(visit, parts) {
  const { t } = visit;
  const after = beginOf(daysAfter(visit.choice.day, 1), visit.zone);
  parts.empty.replaceChildren(h("p", {}, t("none_that_day")));
  if (parts.asking === visit.choice.day) return;
  parts.asking = visit.choice.day;
  nextFree(visit, after).catch(() => null).then((day) => {
    if (parts.asking !== visit.choice.day || !parts.empty.firstChild) return;
    const go = day && button(t("next_free", { day: visit.format.day(day) }), () => goTo(visit, parts, day), { class: "primary" });
    parts.empty.append(go || h("p", { class: "quiet" }, t("nothing_soon")));
    parts.asking = null;
  });
}

function goTo(visit, parts, day) {
  parts.month.show(day);
  return chooseDay(visit, parts, day);
}

// -- how many, and by whose clock -------------------------------------------------------------------------------------

function showQuantity(visit, parts) {
  const { t, choice } = visit;
  const most = () => Math.max(1, ...[...visit.slots.values()].map((slot) => slot.capacity));
  parts.quantity.hidden = most() === 1;
  if (most() === 1 || parts.quantity.firstChild) return;
  const count = h("output", {}, String(choice.quantity));
  const step = (by) => {
    choice.quantity = Math.min(most(), Math.max(1, choice.quantity + by));
    count.textContent = choice.quantity;
    parts.month.mark();
    refresh(visit, parts);
  };
  parts.quantity.append(
    h("span", {}, t("quantity")),
    button("−", () => step(-1), { "aria-label": t("fewer") }),
    count,
    button("+", () => step(1), { "aria-label": t("more") }),
  );
}

function showZone(visit, parts) {
  const { t, venue, zone } = visit;
  const other = zone === venue.timezone ? visitorsZone() : venue.timezone;
  const word = other === venue.timezone ? "in_venue_zone" : "in_my_zone";
  const change = () => {
    visit.showIn(other);
    visit.choice.day = null;
    visit.show("time");
  };
  const offer = other !== zone && button(t(word, { zone: zoneName(other) }), change, { class: "link" });
  parts.zone.replaceChildren(t("times_in", { zone: zoneName(zone) }), ...(offer ? [" ", offer] : []));
}

// -- a place was lost -------------------------------------------------------------------------------------------------

function lostPanel(visit) {
  const { t, format, conflict } = visit;
  const label = (slot) => [h("span", {}, `${format.date(slot.starts_at)}, ${format.time(slot.starts_at)}`), h("small", {}, slot.resource.name)];
  const offers = conflict.alternatives.map((slot) =>
    h("li", {}, button(label(slot), () => visit.take([slot]), { class: "time free", part: "time alternative" })),
  );
  return h(
    "div",
    { class: "lost", part: "alternatives", role: "group", "aria-labelledby": "lost-title" },
    h("h3", { id: "lost-title", tabindex: "-1" }, t(offers.length ? "alternatives" : "no_alternatives")),
    offers.length > 0 && h("ul", { class: "times wide" }, offers),
  );
}
