// The step in which what is held becomes a booking: a countdown, who one is, and the buttons that book.

import { button, h } from "../dom.js";
import { whoForm } from "./form.js";
import { summary, top } from "./parts.js";

/** Seconds before the end at which it is said aloud, the last one first. */
const MILESTONES = [10, 30, 60, 120];

/** Say who one is, and book. */
export function details(visit) {
  const { t, hold } = visit;
  const bar = h("div", { class: "hold", part: "hold", tabindex: "-1" });
  const head = top(visit, t("details"));
  const book = (value) => {
    if (!visit.hold) return;
    back(head, false);
    visit.book(value === "online");
  };
  const who = whoForm(visit, book);
  const element = h("section", {}, head, summary(visit, hold.slot, hold.quantity), bar, who.form);
  const again = () => {
    const { asked } = visit;
    const buttons = bookButtons(visit, hold.slot);
    who.offer(asked ? buttons.filter(({ value }) => (value === "online") === asked.online) : buttons, Boolean(asked));
    back(head, !asked);
    bar.hidden = Boolean(asked);
    if (!asked) countDown(visit, bar);
  };
  again();
  return { element, again, wrong: who.wrong, expired: (slot) => expired(visit, bar, who, head, slot) };
}

/** There is no way back from a booking that is under way, or of which nobody knows. */
function back(head, shown) {
  head.querySelector(".back").hidden = !shown;
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
  const more = button(t("extend"), () => extend(visit, hold, bar, more), { hidden: true });
  bar.replaceChildren(h("span", {}, h("strong", {}, t("held_for_you")), " ", clock), more);
  bar.className = "hold";
  let said = null;
  hold.watch(
    (seconds) => {
      clock.textContent = t("left", { time: `${Math.floor(seconds / 60)}:${String(seconds % 60).padStart(2, "0")}` });
      more.hidden = seconds > 60;
      bar.classList.toggle("soon", seconds <= 60);
      const milestone = MILESTONES.find((each) => seconds <= each);
      if (milestone && said !== null && milestone !== said) visit.toast.announce(soon(t, milestone));
      said = milestone;
    },
    () => visit.expire(hold),
  );
}

function soon(t, seconds) {
  return seconds < 60 ? t("seconds_left", { n: seconds }) : t("minutes_left", { n: seconds / 60 });
}

async function extend(visit, hold, bar, more) {
  if (more.hasAttribute("aria-disabled")) return;
  more.setAttribute("aria-disabled", "true");
  try {
    await hold.extend((...asked) => visit.insist(...asked));
    visit.toast.announce(visit.t("extended"));
    leave(more, bar);
  } catch (failure) {
    if (failure.status === 404 || failure.status === 410) return visit.expire(hold);
    if (failure.problem?.code !== "hold_limit") return visit.explain(failure);
    visit.toast.show(visit.t("no_more_time"));
    leave(more, bar);
    more.remove();
  } finally {
    more.removeAttribute("aria-disabled");
  }
}

/** Whoever is on a button that goes away is left beside it, not at the page's beginning. */
function leave(more, bar) {
  if (more.getRootNode().activeElement === more) bar.focus();
}

function expired(visit, bar, who, head, slot) {
  const { t } = visit;
  const again = button(t("take_again"), () => visit.take([slot]), { class: "primary" });
  who.offer([]);
  back(head, true);
  bar.hidden = false;
  bar.className = "hold over";
  bar.replaceChildren(h("p", { role: "alert" }, t("expired")), again);
  again.focus();
}
