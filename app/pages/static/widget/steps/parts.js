// What several steps show, and what is said beside them.

import { BACK, button, CLOSE, h, heading, icon } from "../dom.js";

/** The top of a step: its title, and the way back if there is one. */
export function top(visit, title) {
  const back = visit.previous && button([icon(BACK), h("span", {}, visit.t("back"))], () => visit.back(), { class: "back" });
  return h("header", {}, back, heading(title));
}

/** What has been chosen, in a line. */
export function chosen(visit) {
  const { offer, resource } = visit.choice;
  const who = offer.service && resource ? resource.name : null;
  return h("p", { class: "chosen" }, [offer.name, who].filter(Boolean).join(" · "));
}

/** What is held or booked: what, with whom, when, and for how much. */
export function summary(visit, slot, quantity) {
  const { format, t } = visit;
  const what = [slot.service?.name, slot.resource.name].filter(Boolean).join(" · ");
  const places = quantity > 1 || slot.capacity > 1 ? `${t("quantity")}: ${quantity}` : null;
  const price = slot.price?.amount ? format.money({ ...slot.price, amount: slot.price.amount * quantity }) : null;
  return h(
    "div",
    { class: "summary", part: "summary" },
    h("strong", {}, what),
    h("span", {}, format.moment(slot.starts_at)),
    h("span", { class: "quiet" }, [t("times_in", { zone: zoneName(visit.zone) }), places, price].filter(Boolean).join(" · ")),
  );
}

/** Name a zone as people do. */
export function zoneName(zone) {
  return zone.replaceAll("_", " ");
}

/** A toast, a note while something is tried again, and what only screen readers hear. */
export class Toast {
  #toast = h("div", { role: "alert", class: "toasts" });
  #note = h("div", { role: "status", class: "notes" });
  #heard = h("p", { role: "status", class: "unseen" });

  constructor(t) {
    this.t = t;
    this.element = h("div", { class: "beside" }, this.#note, this.#toast, this.#heard);
  }

  /** Show a message until it is closed or something new has happened. */
  show(text) {
    const close = button(icon(CLOSE), () => this.clear(), { class: "close", "aria-label": this.t("close") });
    this.#toast.replaceChildren(h("div", { class: "toast", part: "toast" }, h("p", {}, text), close));
  }

  clear() {
    this.#toast.replaceChildren();
  }

  /** Say what is being waited for, with a way to stop it; null: nothing is. */
  note(text, stop, onStop) {
    this.#note.replaceChildren(
      ...(text ? [h("div", { class: "note warn", part: "note" }, h("p", {}, text), button(stop, onStop))] : []),
    );
  }

  /** Let it be heard, where it is seen anyway. */
  announce(text) {
    this.#heard.textContent = text;
  }
}
