// A sheet at the side of the page, or over all of a phone: a modal dialog, so that the browser keeps the focus in it.
import { el } from "../operator/dom.js";
import { buttonOf } from "./entries.js";

/**
 * Open an empty sheet. `show(title, ...content)` replaces what it shows; `busy(action)` runs one with its buttons off
 * and tells a refusal in the sheet.
 */
export function openSheet() {
  const before = document.activeElement;
  const heading = el("h2", { id: "sheet-title", tabindex: "-1" });
  const body = el("div", { class: "sheet-body" });
  const close = el("button", { type: "button", "aria-label": "Close", class: "close", onclick: () => dialog.close() }, "×");
  const dialog = el("dialog", { class: "sheet", "aria-labelledby": "sheet-title" }, el("header", {}, heading, close), body);
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
  dialog.addEventListener("close", () => {
    dialog.remove();
    const back = before?.isConnected ? before : buttonOf(before?.dataset.entry);
    (back ?? document.querySelector("#calendar-title")).focus();
  });
  document.body.append(dialog);
  dialog.showModal();

  const sheet = {
    close: () => dialog.close(),
    show(title, ...content) {
      heading.textContent = title;
      body.replaceChildren(...content.filter((each) => each != null));
      heading.focus();
    },
    async busy(action) {
      const buttons = [...body.querySelectorAll("button")].filter((button) => !button.disabled);
      body.querySelector("[role=alert]")?.remove();
      for (const button of buttons) button.disabled = true;
      try {
        await action();
      } catch (error) {
        body.append(el("p", { class: "note bad", role: "alert" }, error.message));
      } finally {
        for (const button of buttons) button.disabled = false;
      }
    },
  };
  sheet.show("…");
  return sheet;
}
