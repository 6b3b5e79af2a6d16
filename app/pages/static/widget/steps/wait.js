// The waiting list of a time that is sold out.

import { h } from "../dom.js";
import { whoForm } from "./form.js";
import { summary, top } from "./parts.js";

/** Say who one is, and wait. */
export function wait(visit) {
  const { t, wanted, choice } = visit;
  const who = whoForm(visit, () => visit.wait());
  const note = h("p", {}, t("wait_note"));
  const element = h("section", {}, top(visit, t("wait_title")), summary(visit, wanted, choice.quantity), note, who.form);
  const again = () => who.offer([h("button", { class: "primary", part: "submit" }, t("wait_submit"))]);
  const joined = ({ position, customer }) => {
    note.setAttribute("role", "status");
    note.textContent = t("wait_done", { n: position, email: customer.email });
    who.form.remove();
    element.querySelector(".back").focus();
  };
  again();
  return { element, again, joined, wrong: who.wrong };
}
