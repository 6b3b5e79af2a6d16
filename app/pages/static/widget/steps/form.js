// Who one is: the form of whoever books or waits. What is typed is kept for the whole visit.

import { h } from "../dom.js";

const FIELDS = [
  { name: "name", type: "text", autocomplete: "name", maxlength: 200, required: true },
  { name: "email", type: "email", autocomplete: "email", maxlength: 254, required: true },
  { name: "phone", type: "tel", autocomplete: "tel", maxlength: 40 },
];

/**
 * Make the form, with a place for its buttons. `send(value)` gets the pressed button's value once all fields are right;
 * then all rests until `offer(buttons, locked)` puts others in their place, and lets what was typed be changed, unless it
 * is locked. `wrong(failure)` shows what the service found wrong with the fields, and
 * is false when it was something else.
 */
export function whoForm(visit, send) {
  const actions = h("div", { class: "actions" });
  const form = h("form", { novalidate: true }, FIELDS.map((each) => field(visit, each)), actions);
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (event.submitter?.hasAttribute("aria-disabled") || !isRight(form)) return;
    lock(form, true);
    // Keeps the focus.
    actions.querySelectorAll("button").forEach((each) => each.setAttribute("aria-disabled", "true"));
    send(event.submitter?.value);
  });
  const offer = (buttons, locked = false) => {
    const isThere = actions.contains(actions.getRootNode().activeElement);
    actions.replaceChildren(...buttons);
    lock(form, locked);
    if (isThere) buttons[0]?.focus();
  };
  return { form, offer, wrong: (failure) => showWrong(form, failure) };
}

function lock(form, locked) {
  for (const { name } of FIELDS) form.elements[name].readOnly = locked;
}

function field({ t, customer }, about) {
  const { name } = about;
  const remember = (event) => (customer[name] = event.target.value);
  const input = h("input", { ...about, id: name, part: "input", oninput: remember, "aria-describedby": `${name}-wrong` });
  input.value = customer[name];
  const label = h("label", { for: name }, t(name), !about.required && h("span", { class: "quiet" }, ` ${t("optional")}`));
  return h("div", { class: "field" }, label, input, h("p", { class: "wrong", id: `${name}-wrong`, hidden: true }, t(`${name}_wrong`)));
}

function isRight(form) {
  const wrong = FIELDS.map(({ name }) => form.elements[name]).filter((input) => !input.validity.valid || (input.required && !input.value.trim()));
  mark(form, wrong.map(({ name }) => name));
  return wrong.length === 0;
}

function showWrong(form, { problem }) {
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
