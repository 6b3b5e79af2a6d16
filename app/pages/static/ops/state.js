// How the stores are, in words: what it means for customers, and what to do.
import { el } from "../operator/dom.js";
import { STATE } from "./figures.js";
import { keep, say } from "./keep.js";
import { total } from "./metrics.js";
import { count } from "./words.js";

const tiles = document.querySelector("#state");
const banners = document.querySelector("#banners");

/** Of the drift that somebody has taken note of; more of it is news. */
let notedDrift = 0;

/** Ask how the stores are: 503 is an answer, too. */
export async function readiness() {
  const answer = await fetch("/readyz", { signal: AbortSignal.timeout(10_000) });
  return await answer.json();
}

/** Show the state that the metrics and the readiness tell. */
export function show(reading, ready) {
  const known = {
    postgres: ready.postgres === "ok",
    redis: ready.redis === "ok" && !total(reading, STATE.degraded),
    drift: total(reading, STATE.drift),
    money: total(reading, STATE.money),
  };
  tile("postgres", known.postgres, known.postgres ? "Working" : "Away", "Keeps every booking: the truth.");
  tile("redis", known.redis, known.redis ? "Working" : "Degraded", "Refuses early, and keeps the holds.");
  tile("drift", !known.drift, known.drift ? count(known.drift, "slot") : "None", "Slots that Redis and Postgres disagreed about, since the start. All were repaired.");
  tile("money", !known.money, known.money ? count(known.money, "case") : "Adds up", known.money ? "Payments without booking or refund, or the other way round." : "No payment is without its booking or refund.");
  keep(banners, warnings(known, () => show(reading, ready)), (one) => one.id + one.text, banner);
}

function warnings(known, again) {
  const found = [];
  if (!known.postgres) {
    found.push({ id: "postgres", bad: true, title: "Postgres is away", text: "Nothing can be booked or held, and customers are told to try again. What was confirmed is safe. Bring the database back; `holdfast doctor` says what it can see." });
  }
  if (!known.redis) {
    found.push({ id: "redis", title: "Redis is away: the service is degraded", text: "Bookings go on and nothing is sold twice, only slower: Postgres decides alone. New holds are kept there, older ones are unseen until Redis is back. Bring it back; its counts are repaired before it is trusted again, without your help." });
  }
  if (known.money) {
    found.push({ id: "money", bad: true, title: "The money does not add up", text: `${count(known.money, "payment or booking")} without its other half. See “Needs a person” below, and \`holdfast payments list --status mismatched\`.` });
  }
  if (known.drift > notedDrift) {
    const noted = () => ((notedDrift = known.drift), again());
    found.push({ id: "drift", title: "Redis and Postgres disagreed", text: `${count(known.drift, "slot")} had another count in Redis than in Postgres. All were repaired, and no place was sold twice; but it should not happen. Look for a Redis that was restored or written to by hand. \`holdfast reconcile\` compares again.`, noted });
  }
  return found;
}

function tile(name, well, word, about) {
  let element = tiles.querySelector(`[data-state=${name}]`);
  element.classList.toggle("alarmed", !well);
  say(element.querySelector(".word"), word);
  say(element.querySelector(".quiet"), about);
}

function banner({ bad, title, text, noted }) {
  const parts = text.split("`").map((part, n) => (n % 2 ? el("code", {}, part) : part));
  const button = noted ? [el("button", { type: "button", onclick: noted }, "Noted")] : [];
  return el("div", { class: `note ${bad ? "bad" : "warn"}` }, el("p", {}, el("strong", {}, title), ". ", ...parts), ...button);
}
