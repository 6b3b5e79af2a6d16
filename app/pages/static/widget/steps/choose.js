// The first steps: what, and with whom.

import { h, icon, NEXT } from "../dom.js";
import { chosen, top } from "./parts.js";

/** Choose what to book. */
export function chooseOffer(visit) {
  const { t, offers } = visit;
  if (!offers.length) return { element: h("section", {}, h("p", { class: "note" }, t("nothing_offered"))) };
  const rows = offers.map((offer) => option(offer.name, about(visit, offer), () => visit.chooseOffer(offer)));
  return { element: h("section", {}, top(visit, t("choose_offer")), h("ul", { class: "rows" }, rows)) };
}

function about({ format }, { service }) {
  if (!service) return "";
  const price = service.price?.amount ? format.money(service.price) : null;
  return [format.minutes(service.duration_minutes), price].filter(Boolean).join(" · ");
}

/** Choose a person or place, or anyone. */
export function choosePerson(visit) {
  const { t, choice } = visit;
  const rows = [
    option(t("anyone"), t("anyone_note"), () => visit.choosePerson(null)),
    ...choice.offer.resources.map((resource) => option(resource.name, "", () => visit.choosePerson(resource))),
  ];
  return { element: h("section", {}, top(visit, t("choose_person")), chosen(visit), h("ul", { class: "rows" }, rows)) };
}

function option(name, note, onclick) {
  const text = h("span", {}, h("strong", {}, name), note && h("span", { class: "quiet" }, note));
  return h("li", {}, h("button", { type: "button", class: "row", part: "choice", onclick }, text, icon(NEXT)));
}
