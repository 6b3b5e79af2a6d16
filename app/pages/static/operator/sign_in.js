// Exchange the operator key for a session, then show the page that was asked for.
import { call } from "./call.js";

const WORDS = { 401: "This is not the operator key.", 429: "Too many keys were tried from here. Wait a minute, then try again." };

const form = document.querySelector("#sign-in");
const told = form.querySelector("[role=alert]");

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  const button = form.querySelector("button");
  button.disabled = true;
  try {
    await call("POST", "/session", { key: form.elements.key.value });
    location.reload();
  } catch (error) {
    told.textContent = WORDS[error.status] ?? "The service cannot be reached. Try again.";
    told.hidden = false;
    form.elements.key.select();
  } finally {
    button.disabled = false;
  }
});
