// Live holds: who keeps places from others at this moment, for how long still, and a way to end it.
import { all, call } from "../operator/call.js";
import { el } from "../operator/dom.js";
import { act, ask } from "./ask.js";
import { every } from "./every.js";
import { keep, say } from "./keep.js";
import { count, countdown, span, when } from "./words.js";

const SECONDS = 2;
/** Shown at a time: more is a number. */
const MOST = 100;

const panel = document.querySelector("#holds");
const list = panel.querySelector("ul");
const summary = panel.querySelector("[data-summary]");
const venue = panel.querySelector("#hold-venue");
const order = panel.querySelector("#hold-order");

let holds = [];
let now = every(SECONDS, read, (error) => error && say(summary, `Not known now: ${error.message}`));
venue.addEventListener("change", () => now());
order.addEventListener("change", show);
setInterval(() => document.hidden || tick(), 1000);
every(60, readVenues);

async function readVenues() {
  const venues = await all("/v1/venues?limit=100");
  for (const { slug, name } of venues) {
    if (!venue.querySelector(`option[value="${slug}"]`)) venue.append(el("option", { value: slug }, name));
  }
}

async function read() {
  const wanted = venue.value;
  const { data } = await call("GET", `/v1/holds${wanted ? `?venue=${wanted}` : ""}`);
  if (wanted !== venue.value) return; // another one was chosen meanwhile, and is asked for next
  const at = performance.now();
  holds = data.map((hold) => ({
    ...hold,
    heldSince: at - (Date.parse(hold.server_time) - Date.parse(hold.created_at)),
    endsAt: at + (Date.parse(hold.expires_at) - Date.parse(hold.server_time)),
  }));
  show();
}

function show() {
  const newest = order.value === "newest";
  const sorted = holds.toSorted((one, other) => (newest ? other.heldSince - one.heldSince : one.heldSince - other.heldSince));
  const places = holds.reduce((sum, hold) => sum + hold.quantity, 0);
  const beyond = holds.length > MOST ? `; the first ${MOST} are shown` : "";
  say(summary, holds.length ? `${count(holds.length, "hold")}, ${count(places, "place")}${beyond}` : "Nobody holds anything");
  keep(list, sorted.slice(0, MOST), (hold) => hold.id, row, (element, hold) => (element.hold = hold));
  tick();
}

function tick() {
  const at = performance.now();
  for (const element of list.children) {
    const { heldSince, endsAt } = element.hold;
    say(element.querySelector(".age"), `held ${span((at - heldSince) / 1000)}`);
    say(element.querySelector(".left"), endsAt > at ? `${countdown((endsAt - at) / 1000)} left` : "lapsing");
    element.querySelector("progress").value = Math.max(0, Math.min(1, (endsAt - at) / (endsAt - heldSince)));
  }
}

function row(hold) {
  const what = hold.slot ? hold.slot.what : hold.slot_id;
  const where = hold.slot ? `${when(hold.slot.starts_at, hold.slot.timezone)} · ${hold.slot.venue}` : "a slot that was deleted";
  const release = el("button", { type: "button", class: "danger", "aria-label": `Release ${what}, ${where}` }, "Release");
  release.addEventListener("click", () => giveUp(hold, what, release));
  return el(
    "li", {},
    el("div", { class: "what" }, el("strong", {}, what), el("span", { class: "quiet" }, where)),
    el("span", { class: "places" }, count(hold.quantity, "place")),
    el("span", { class: "age quiet" }),
    el(
      "span", { class: "ends" },
      el("span", { class: "left" }),
      el("progress", { max: 1, value: 1, "aria-label": "Time left" }),
    ),
    hold.degraded ? el("span", { class: "badge warn", title: "Taken while Redis was away" }, "in Postgres") : el("span"),
    release,
  );
}

async function giveUp(hold, what, button) {
  const places = count(hold.quantity, "place");
  const it = hold.quantity === 1 ? "it" : "them";
  if (!(await ask(`Release ${places} of ${what}? Whoever holds ${it} loses ${it} at once.`, "Release"))) return;
  await act(button, () => call("DELETE", `/v1/holds/${hold.id}`), `Released ${places} of ${what}.`);
  now();
}
