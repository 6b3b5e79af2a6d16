// The step in which a time is chosen: a day, how many places, and what is free, which changes while one looks.

import { addDays, dayOf } from "../../zone.js";
import { button, h } from "../dom.js";
import { nextFreeDay, times } from "../slots.js";
import { beginOf, visitorsZone } from "../time.js";
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

/** Show the chosen day, or else the first free one, unless the visitor chooses or leaves before that is known. */
async function firstDay(visit, parts) {
  const { choice } = visit;
  if (choice.day) return goTo(visit, parts, choice.day);
  const isWanted = () => !choice.day && parts.title.isConnected;
  try {
    const day = await nextFree(visit);
    if (isWanted()) await goTo(visit, parts, day ?? dayOf(Date.now(), visit.zone));
  } catch (failure) {
    if (isWanted()) stuck(visit, parts, failure, () => firstDay(visit, parts));
  }
}

/** Nothing can be read now: say so, and leave a way to go on. */
function stuck(visit, parts, failure, onclick) {
  visit.explain(failure);
  setEmpty(parts, null, button(visit.t("try_again"), onclick));
}

function nextFree(visit, from) {
  const read = (path) => visit.insist("GET", path);
  return nextFreeDay(read, visit.wish, visit.choice.quantity, from, visit.zone);
}

async function chooseDay(visit, parts, day) {
  parts.title.textContent = visit.format.day(day);
  parts.times.replaceChildren();
  setEmpty(parts, null, h("p", { class: "quiet" }, visit.t("loading")));
  try {
    await visit.chooseDay(day);
  } catch (failure) {
    const isWanted = visit.choice.day === day && parts.title.isConnected;
    if (isWanted) stuck(visit, parts, failure, () => chooseDay(visit, parts, day));
  }
}

// -- what is free -----------------------------------------------------------------------------------------------------

function refresh(visit, parts) {
  const offered = times(visit.shown, visit.choice.quantity);
  showQuantity(visit, parts);
  showTimes(visit, parts, offered);
  parts.wait.hidden = !offered.some(({ state }) => state === "sold_out");
  if (offered.some(({ state }) => state === "free" || state === "held")) setEmpty(parts, null);
  else showEmpty(visit, parts);
}

/** Keep the buttons, and change what is different: one may be pressed, or have the focus, at this moment. */
function showTimes(visit, parts, offered) {
  const known = new Map([...parts.times.children].map((each) => [each.firstChild.dataset.at, each]));
  const wanted = new Set(offered.map(({ startsAt }) => startsAt));
  for (const [startsAt, each] of known) if (!wanted.has(startsAt)) each.remove();
  let at = parts.times.firstChild;
  for (const each of offered) {
    const entry = known.get(each.startsAt) ?? h("li", {}, timeButton(visit, parts, each.startsAt));
    if (entry === at) at = at.nextSibling;
    else parts.times.insertBefore(entry, at);
    showState(visit, entry.firstChild, each);
  }
  parts.offered = new Map(offered.map((each) => [each.startsAt, each]));
}

function timeButton(visit, parts, startsAt) {
  const act = (event) => press(visit, event.currentTarget, parts.offered.get(startsAt));
  return button([h("span", {}, visit.format.time(startsAt)), h("small")], act, { "data-at": startsAt });
}

function showState(visit, made, offered) {
  const { state } = offered;
  const note = made.lastChild;
  const text = noteOf(visit, offered);
  if (note.textContent !== text) note.textContent = text;
  for (const name of ["class", "part"]) made.setAttribute(name, `time ${state}`);
  if (state === "few" || state === "held") made.setAttribute("aria-disabled", "true");
  else made.removeAttribute("aria-disabled");
}

function noteOf({ t }, { state, slots: [slot] }) {
  if (state === "free" && slot.capacity === 1) return "";
  return state === "free" || state === "few" ? t("places_left", { n: slot.available }) : t(state);
}

async function press(visit, pressed, offered) {
  const { startsAt, state, slots } = offered;
  if (state === "sold_out") return visit.askToWait(slots[0]);
  if (state === "held") return visit.toast.announce(visit.t("held_note", { time: visit.format.time(startsAt) }));
  if (state === "few") return visit.toast.announce(noteOf(visit, offered));
  pressed.setAttribute("aria-busy", "true");
  await visit.take(slots.filter((each) => each.available >= visit.choice.quantity));
  return pressed.removeAttribute("aria-busy");
}

function showEmpty(visit, parts) {
  const { t, choice } = visit;
  const about = `${choice.day} ${choice.quantity}`;
  if (parts.about === about) return;
  setEmpty(parts, about, h("p", {}, t("none_that_day")));
  const again = () => {
    setEmpty(parts, null);
    showEmpty(visit, parts);
  };
  const nextDay = (day) => {
    if (!day) return h("p", { class: "quiet" }, t("nothing_soon"));
    return button(t("next_free", { day: visit.format.day(day) }), () => goTo(visit, parts, day), { class: "primary" });
  };
  nextFree(visit, beginOf(addDays(choice.day, 1), visit.zone))
    .then(nextDay, () => button(t("try_again"), again))
    .then((found) => parts.about === about && parts.empty.append(found));
}

/** Show something where there are no times, and note what it is about: the same is not asked again. */
function setEmpty(parts, about, ...shown) {
  parts.about = about;
  parts.empty.replaceChildren(...shown);
}

function goTo(visit, parts, day) {
  parts.month.show(day);
  return chooseDay(visit, parts, day);
}

// -- how many, and by whose clock -------------------------------------------------------------------------------------

function showQuantity(visit, parts) {
  const { t, choice } = visit;
  const most = () => Math.max(choice.quantity, ...[...visit.slots.values()].map((slot) => slot.capacity));
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
  // The service tells the nearest first.
  const inOrder = [...conflict.alternatives].sort((a, b) => (a.starts_at < b.starts_at ? -1 : 1));
  const offers = inOrder.map((slot) =>
    h("li", {}, button(label(slot), () => visit.take([slot]), { class: "time free", part: "time alternative" })),
  );
  return h(
    "div",
    { class: "lost", part: "alternatives", role: "group", "aria-labelledby": "lost-title" },
    h("h3", { id: "lost-title", tabindex: "-1" }, t(offers.length ? "alternatives" : "no_alternatives")),
    offers.length > 0 && h("ul", { class: "times wide" }, offers),
  );
}
