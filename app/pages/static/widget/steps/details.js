// The step in which what is held becomes a booking: a countdown, who one is, and the buttons that book.

import { button, h } from "../dom.js";
import { summary, top } from "./parts.js";

/** Seconds before the end at which it is said aloud, the last one first. */
const MILESTONES = [10, 30, 60, 120];
const FIELDS = [
  { name: "name", type: "text", autocomplete: "name", maxlength: 200, required: true },
  { name: "email", type: "email", autocomplete: "email", maxlength: 254, required: true },
  { name: "phone", type: "tel", autocomplete: "tel", maxlength: 40 },
];

/** Say who one is, and book. */
export function details(visit) {
  const { t, hold } = visit;
  const bar = h("div", { class: "hold", part: "hold" });
  const form = h("form", { novalidate: true }, FIELDS.map((field) => row(visit, field)));
  const actions = h("div", { class: "actions" });
  const element = h("section", {}, top(visit, t("details")), summary(visit, hold.slot, hold.quantity), bar, form);
  form.append(actions);
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (!check(visit, form) || !visit.hold) return;
    actions.querySelectorAll("button").forEach((each) => (each.disabled = true));
    visit.book(event.submitter?.value === "online");
  });
  const again = () => {
    actions.replaceChildren(...bookButtons(visit, hold.slot));
    countDown(visit, bar);
  };
  again();
  return { element, again, wrong: (failure) => showWrong(visit, form, failure), expired: (slot) => expired(visit, bar, actions, slot) };
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

// -- who one is -------------------------------------------------------------------------------------------------------

function row({ t, customer }, field) {
  const { name } = field;
  const remember = (event) => (customer[name] = event.target.value);
  const input = h("input", { ...field, id: name, part: "input", oninput: remember, "aria-describedby": `${name}-wrong` });
  input.value = customer[name];
  const label = h("label", { for: name }, t(name), !field.required && h("span", { class: "quiet" }, ` ${t("optional")}`));
  return h("div", { class: "field" }, label, input, h("p", { class: "wrong", id: `${name}-wrong`, hidden: true }, t(`${name}_wrong`)));
}

function check(visit, form) {
  const wrong = FIELDS.map(({ name }) => form.elements[name]).filter((input) => !input.validity.valid || (input.required && !input.value.trim()));
  mark(form, wrong.map(({ name }) => name));
  return wrong.length === 0;
}

/** Show what the service found wrong with the fields; false when it was something else. */
function showWrong(visit, form, { problem }) {
  const names = (problem?.errors ?? []).map(({ field }) => field.replace("customer.", ""));
  const known = names.filter((name) => FIELDS.some((field) => field.name === name));
  mark(form, known);
  return known.length > 0;
}

function mark(form, wrong) {
  for (const { name } of FIELDS) {
    const isWrong = wrong.includes(name);
    form.elements[name].setAttribute("aria-invalid", String(isWrong));
    form.querySelector(`#${name}-wrong`).hidden = !isWrong;
  }
  if (wrong.length) form.elements[wrong[0]].focus();
}
