// What the pages of customers share who came by a link with a token: the words of their language, and calls of the API.
// The token stands behind the `#` of the address: the browser sends it to nobody, and this page only in a header.

import { formats, money as writeMoney } from "../written.js";
import { addDays, dayOf, instantOf } from "../zone.js";

const root = document.querySelector("#booking");

/** What the page says, in the language that the server chose. */
export const words = JSON.parse(root.dataset.words);
export const language = document.documentElement.lang;

/** The id and the token of the address. */
export const named = {
  id: encodeURIComponent(decodeURIComponent(location.pathname.split("/")[2] ?? "")),
  token: location.hash.slice(1),
};

/** Fill the places of a sentence. */
export function say(name, values = {}) {
  return words[name].replace(/\{(\w+)\}/g, (_, key) => String(values[key] ?? ""));
}

/** Make an element. Text is always text: nothing that somebody typed becomes markup. */
export function h(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in made) made[name] = value;
    else made.setAttribute(name, value);
  }
  made.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return made;
}

export const button = (text, onclick, kind = "") => h("button", { type: "button", className: kind, onclick }, text);

/** A list of facts: pairs of name and value; what has no value is left out. */
export function facts(pairs) {
  const known = pairs.filter(([, value]) => value);
  return h("dl", { className: "facts" }, known.flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, h("bdi", {}, value))]));
}

/** Something that is said here. What went wrong (`warn`, `bad`) interrupts a screen reader. */
export const note = (text, kind = "") => h("p", { className: `note ${kind}`, ...(kind ? { role: "alert" } : {}) }, text);

/** Say what was done, or no longer anything. Always in the same place: of one that comes with its text nobody hears. */
export const tell = (text = "") => document.querySelector("#told").replaceChildren(...(text ? [note(text)] : []));

/** Show cards instead of what is there. Whoever was in it goes on at its heading, and not at the top of the page. */
export function show(...cards) {
  const wasInside = root.contains(document.activeElement);
  root.replaceChildren(...cards);
  if (wasInside) root.querySelector("h1").focus();
}

export const card = (title, ...children) => h("section", { className: "card" }, h("h1", { tabIndex: -1 }, title), ...children);
export const wrongLink = () => show(card(words.wrong_link_title, h("p", {}, words.wrong_link)));

/** A refusal of the service; `problem` is its RFC 9457 body. */
export class Refused extends Error {
  constructor(status, problem) {
    super(problem.detail ?? String(status));
    this.status = status;
    this.problem = problem;
  }
}

const TRIES = 5;

/** The service's time at which this page was opened, as its answers tell. */
let opened;

function heed(answer) {
  const told = Date.parse(answer.headers.get("date")) - performance.now();
  if (told) opened = Math.max(told, opened ?? told); // an answer from a cache is older than it looks, and never younger
}

/** Now, by the service's clock: a device whose own is wrong takes nothing from its owner. */
export const now = () => (opened === undefined ? Date.now() : opened + performance.now());

/**
 * Call the API. Whoever is told that the service is busy waits and tries again by himself; `busy` hears of that.
 * @throws {Refused} an answer of 400 and more  @throws {TypeError} it cannot be reached
 */
export async function call(method, path, { body, headers = {}, busy = () => {} } = {}) {
  for (let tries = 1; ; tries++) {
    const answer = await fetch(path, {
      method,
      headers: { ...(body === undefined ? {} : { "Content-Type": "application/json" }), ...headers },
      body: body === undefined ? undefined : JSON.stringify(body),
    });
    heed(answer);
    const calendar = answer.headers.get("content-type")?.startsWith("text/calendar");
    if (answer.ok) return calendar ? answer.blob() : answer.json().catch(() => null);
    if (![429, 503].includes(answer.status) || tries === TRIES) {
      throw new Refused(answer.status, await answer.json().catch(() => ({})));
    }
    busy();
    await new Promise((wake) => setTimeout(wake, 1000 * Number(answer.headers.get("retry-after") ?? 1)));
  }
}

/** Read all slots of a query, as far as anybody looks. */
export async function slots(query) {
  const found = [];
  const asked = new URLSearchParams({ ...query, limit: 100 });
  for (let page = 0; page < 5; page++) {
    const read = await call("GET", `/v1/slots?${asked}`);
    found.push(...read.data);
    if (!read.next_cursor) break;
    asked.set("cursor", read.next_cursor);
  }
  return found;
}

// -- times and money ---------------------------------------------------------------------------------------------------

const formatOf = new Map();
const inZone = (timeZone) => {
  if (!formatOf.has(timeZone)) formatOf.set(timeZone, formats(language, timeZone));
  return formatOf.get(timeZone);
};
export const money = (price) => writeMoney(language, price);
export const clock = (at, timeZone) => inZone(timeZone).time(at);
export const dayText = (at, timeZone) => inZone(timeZone).day(dayOf(at, timeZone));
export const when = (at, timeZone) => inZone(timeZone).moment(at);
export const what = (slot) => (slot.service ? `${slot.service.name} · ${slot.resource.name}` : slot.resource.name);

/** The instant at which a day begins on a zone's wall. */
export const midnight = (day, timeZone) => new Date(instantOf(`${day}T00:00:00`, timeZone));
export const nextDay = (day) => addDays(day, 1);
