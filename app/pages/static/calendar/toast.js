// Short notes at the edge of the page. Good news goes away by itself; bad news, and what can be undone, waits until it
// is read: not everybody reaches a button within seconds.
import { el } from "../operator/dom.js";

const SHOWN_MS = 6_000;

/** Tell something; with `actions`, pairs of a text and what to do, of which one may be chosen. */
export function toast(text, { bad = false, actions = [] } = {}) {
  const dismiss = () => made.remove();
  const buttons = actions.map(([name, act]) => el("button", { type: "button", onclick: () => (dismiss(), act()) }, name));
  const made = el(
    "div", { class: `toast ${bad ? "bad" : ""}` },
    el("p", {}, text),
    buttons.length ? el("div", { class: "actions" }, ...buttons) : null,
    el("button", { type: "button", class: "close", "aria-label": "Dismiss", onclick: dismiss }, "×"),
  );
  document.querySelector(bad ? "#alerts" : "#notes").replaceChildren(made);
  if (!bad && !buttons.length) setTimeout(dismiss, SHOWN_MS);
}
