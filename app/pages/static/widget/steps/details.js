// The step in which what is held becomes a booking: a countdown, who one is, and the buttons that book.

import { button, h } from "../dom.js";
import { whoForm } from "./form.js";
import { summary, top } from "./parts.js";

/** Seconds before the end at which it is said aloud, the last one first. */
const MILESTONES = [10, 30, 60, 120];

/** Say who one is, and book. */
export function details(visit) {
  const { t, hold } = visit;
  const bar = h("div", { class: "hold", part: "hold" });
  const who = whoForm(visit, (value) => visit.hold && visit.book(value === "online"));
  const { actions } = who;
  const element = h("section", {}, top(visit, t("details")), summary(visit, hold.slot, hold.quantity), bar, who.form);
  const again = () => {
    actions.replaceChildren(...bookButtons(visit, hold.slot));
    countDown(visit, bar);
  };
  again();
  return { element, again, wrong: who.wrong, expired: (slot) => expired(visit, bar, actions, slot) };
}

function bookButtons({ t, venue }, slot) {
  const submit = (word, value, look) => h("button", { type: "submit", value, class: look, part: "submit" }, t(word));
  if (!slot.price?.amount) return [submit("confirm", "here", "primary")];
  if (venue.payment === "required") return [submit("pay", "online", "primary")];
  return [submit("confirm_unpaid", "here", "primary"), submit("pay_and_book", "online", "")];
}

// -- the countdown ----------------------------------------------------------------------------------------------------

function countDown(visit, bar) {
  const { t, hold } = visit;
  const clock = h("span", { class: "clock", role: "timer", "aria-live": "off" });
  const more = button(t("extend"), () => extend(visit, more), { hidden: true });
  bar.replaceChildren(h("span", {}, h("strong", {}, t("held_for_you")), " ", clock), more);
  bar.className = "hold";
  let said = null;
  hold.watch(
    (seconds) => {
      clock.textContent = t("left", { time: `${Math.floor(seconds / 60)}:${String(seconds % 60).padStart(2, "0")}` });
      more.hidden = seconds > 60 || more.disabled;
      bar.classList.toggle("soon", seconds <= 60);
      const milestone = MILESTONES.find((each) => seconds <= each);
      if (milestone && said !== null && milestone !== said) visit.toast.announce(soon(t, milestone));
      said = milestone;
    },
    () => visit.expire(),
  );
}

function soon(t, seconds) {
  return seconds < 60 ? t("seconds_left", { n: seconds }) : t("minutes_left", { n: seconds / 60 });
}

async function extend(visit, more) {
  more.disabled = true;
  try {
    await visit.hold.extend();
    more.disabled = false;
    visit.toast.announce(visit.t("extended"));
  } catch (failure) {
    if (failure.problem?.code !== "hold_limit") more.disabled = false;
    visit.toast.show(visit.t(failure.problem?.code === "hold_limit" ? "no_more_time" : "unreachable"));
  }
}

function expired(visit, bar, actions, slot) {
  const { t } = visit;
  const again = button(t("take_again"), () => visit.take([slot]), { class: "primary" });
  actions.replaceChildren();
  bar.className = "hold over";
  bar.replaceChildren(h("p", { role: "alert" }, t("expired")), again);
  again.focus();
}
