// One question at a time, before something is done that nobody can undo; and what became of it.
const dialog = document.querySelector("#ask");
const told = document.querySelector("#told");

/** Ask, and tell whether the answer was yes. Escape is a no. */
export function ask(question, yes) {
  dialog.querySelector("p").textContent = question;
  dialog.querySelector("button[value=yes]").textContent = yes;
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true });
  });
}

/** Tell what became of something that was asked for. */
export function tell(text) {
  told.textContent = text;
}

/** Do what a button asks for: once, while it says so, and tell how it ended. */
export async function act(button, work, done) {
  button.disabled = true;
  try {
    await work();
    tell(done);
  } catch (error) {
    tell(error.status ? error.message : "The service cannot be reached: nothing is known of it. Try again.");
  } finally {
    button.disabled = false;
  }
}
