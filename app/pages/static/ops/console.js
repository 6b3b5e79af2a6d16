// The operator's console: figures and state by one rhythm, and beside it the lists, each by its own.
import { every } from "./every.js";
import "./events.js";
import "./holds.js";
import { say } from "./keep.js";
import { read } from "./metrics.js";
import { plots } from "./plots.js";
import { readiness, show } from "./state.js";
import "./trouble.js";
import { clock, span } from "./words.js";

const SECONDS = 2;

const pulse = document.querySelector("#pulse");
const figures = plots(document.querySelector("#figures"));
let before = null;
let answeredAt = Date.now();

every(SECONDS, look, (error, wait) => {
  pulse.classList.toggle("alarmed", Boolean(error));
  if (!error) {
    answeredAt = Date.now();
    say(pulse, document.hidden ? "Paused" : "Live"); // it was hidden while its last look was under way
  } else {
    say(pulse, `No answer since ${clock(answeredAt)}. What is shown is as it was then. Asking again in ${span(wait)}.`);
  }
});
document.addEventListener("visibilitychange", () => document.hidden && say(pulse, "Paused"));

async function look() {
  const [reading, ready] = await Promise.all([read(), readiness()]);
  figures.add(before, reading);
  show(reading, ready);
  before = reading;
}
