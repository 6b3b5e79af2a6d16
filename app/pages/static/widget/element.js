// <holdfast-booking venue="…">: registered when this module is loaded.

import { button, CLOSE, h, icon } from "./dom.js";
import { sheet } from "./look.js";
import { isZone } from "./time.js";
import { Visit } from "./visit.js";
import { choose, load } from "./words.js";

/** The booking widget: what attributes it takes, which events it sends and how it is themed is in docs/widget.md. */
export class HoldfastBooking extends HTMLElement {
  static observedAttributes = ["venue", "service", "resource", "mode", "lang", "timezone", "history"];

  #root = this.attachShadow({ mode: "open" });
  #visit = null;
  #due = false;
  #prefill = null;

  connectedCallback() {
    this.#root.adoptedStyleSheets = [sheet];
    // What stands inside the element is seen until there is something better.
    this.#root.replaceChildren(h("slot"));
    addEventListener("pagehide", this.#left);
    addEventListener("pageshow", this.#backAgain);
    this.#begin();
  }

  disconnectedCallback() {
    removeEventListener("pagehide", this.#left);
    removeEventListener("pageshow", this.#backAgain);
    this.#end();
  }

  attributeChangedCallback() {
    if (this.isConnected) this.#begin();
  }

  /** What the visitor is called, as far as the page knows: `{name, email, phone}`. */
  get prefill() {
    return this.#prefill ?? parsed(this.getAttribute("prefill"));
  }

  set prefill(value) {
    this.#prefill = value;
    this.#visit?.prefill(value);
  }

  /** Open the dialog of a widget with `mode="button"`, as its button does. */
  open() {
    const dialog = this.#root.querySelector("dialog");
    if (!dialog || dialog.open) return;
    dialog.showModal();
    this.#visit.start();
  }

  /** Begin anew, once for all attributes that change in one go. */
  #begin() {
    if (this.#due) return;
    this.#due = true;
    queueMicrotask(async () => {
      this.#due = false;
      this.#end();
      const locale = this.#locale();
      const t = await load(locale);
      if (this.isConnected && !this.#due) this.#build(t, locale);
    });
  }

  #build(t, locale) {
    this.#end();
    if (!this.getAttribute("venue")) {
      // For whoever makes the page, not its visitors.
      const missing = "holdfast-booking: the attribute venue is missing";
      console.error(missing);
      this.#root.replaceChildren(missing);
      return;
    }
    const asButton = this.getAttribute("mode") === "button";
    const frame = h("div", { class: "frame", part: "frame", lang: locale });
    this.#visit = new Visit(frame, {
      t,
      locale,
      venue: this.getAttribute("venue") ?? "",
      service: this.getAttribute("service"),
      resource: this.getAttribute("resource"),
      zone: isZone(this.getAttribute("timezone")) ? this.getAttribute("timezone") : null,
      customer: this.prefill,
      moveFocus: asButton,
      // In a frame, going back would move the page around it.
      history: !asButton && window === window.top && this.hasAttribute("history"),
      send: (name, detail, options) =>
        this.dispatchEvent(new CustomEvent(name, { detail, bubbles: true, composed: true, ...options })),
    });
    this.#root.replaceChildren(...(asButton ? this.#dialog(t, frame) : [frame]));
    if (!asButton) this.#visit.start();
  }

  #dialog(t, frame) {
    const dialog = h("dialog", { part: "dialog", "aria-label": t("book"), onclose: () => this.#visit.leave() });
    const close = button(icon(CLOSE), () => dialog.close(), { class: "close", "aria-label": t("close") });
    dialog.append(close, frame);
    const label = h("slot", {}, t("book"));
    return [button(label, () => this.open(), { class: "primary", part: "button", "aria-haspopup": "dialog" }), dialog];
  }

  #end() {
    this.#visit?.leave();
    this.#visit = null;
  }

  #left = () => this.#visit?.leave();

  /** A page that comes out of the browser's memory shows a hold that was given back. */
  #backAgain = (event) => {
    if (event.persisted) this.#begin();
  };

  #locale() {
    const page = this.closest("[lang]")?.getAttribute("lang");
    return choose([page, ...navigator.languages].filter(Boolean));
  }
}

function parsed(json) {
  try {
    return json ? JSON.parse(json) : {};
  } catch {
    console.warn("holdfast-booking: the attribute prefill is not JSON");
    return {};
  }
}

if (!customElements.get("holdfast-booking")) customElements.define("holdfast-booking", HoldfastBooking);
