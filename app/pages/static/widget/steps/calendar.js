// The month to choose a day of: the vendored picker, or the browser's own where that does not load.

import { addDays, dayOf } from "../../zone.js";
import { monthPicker } from "../api.js";
import { BACK, h, icon, NEXT } from "../dom.js";

const FURTHEST_DAYS = 400;
const iso = (date) => date.toISOString().slice(0, 10);

/** Make a picker; `choose(day)` is told of each choice. `show(day)` shows another, `mark()` reads anew which are free. */
export function calendar(visit, choose) {
  const today = dayOf(Date.now(), visit.zone);
  const limits = { min: today, max: addDays(today, FURTHEST_DAYS) };
  const element = h("div", { class: "calendar" });
  let shown = visit.choice.day ?? today;
  let picker = null;

  function show(day) {
    shown = day;
    if (!picker) return;
    // The service knows it to be free: the visitor's clock is ahead.
    if (day < picker.min) picker.min = day;
    picker.value = picker.focusedDate = day;
    picker.turn?.(day);
  }

  monthPicker()
    .then(() => (picker = month(visit, limits)))
    .catch(() => (picker = input(visit, limits)))
    .then(() => {
      show(shown);
      picker.addEventListener("change", () => picker.value && choose(picker.value));
      element.replaceChildren(...(picker.label ?? [picker]));
    });
  return { element, show, mark: () => picker?.mark?.() };
}

function month(visit, limits) {
  const { t, locale } = visit;
  const arrow = (slot, path, label) => h("span", { slot }, icon(path), h("span", { class: "unseen" }, label));
  const title = h("span", { slot: "heading", "aria-hidden": "true" });
  const named = new Intl.DateTimeFormat(locale, { month: "long", year: "numeric", timeZone: "UTC" });
  const made = h("calendar-date", { "aria-label": t("choose_day") });
  made.append(arrow("previous", BACK, t("previous_month")), title, arrow("next", NEXT, t("next_month")), h("calendar-month"));
  let first = null;
  let marks = 0;

  /** Show on which days something is free. The others can be chosen too: what is sold out has a waiting list. */
  async function mark() {
    const number = ++marks;
    const last = new Date(first);
    last.setUTCMonth(last.getUTCMonth() + 1, 0);
    const free = await visit.freeDays(iso(first), iso(last));
    // The last one asked for counts, whichever answer is last: also of one month for more places, and then for fewer.
    if (free && number === marks) made.getDayParts = (date) => (free.has(iso(date)) ? "free" : "");
  }

  function turn(day) {
    const date = new Date(day);
    date.setUTCDate(1);
    if (Number(date) === Number(first)) return;
    first = date;
    title.textContent = named.format(first);
    mark();
  }

  made.addEventListener("focusday", (event) => turn(event.detail));
  const today = limits.min; // where the times are shown, which may be another day than the visitor's
  return Object.assign(made, { locale, formatWeekday: "short", turn, mark, today, ...limits });
}

function input({ t }, limits) {
  const made = h("input", { type: "date", id: "day", ...limits });
  return Object.assign(made, { label: [h("label", { for: "day" }, t("choose_day")), made] });
}
