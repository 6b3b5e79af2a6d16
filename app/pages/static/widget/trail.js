// The steps of a visit as entries of the page's history: the browser's Back goes one step back, and a reload stays.

import { dayOf } from "../zone.js";

const DEPTH = { offer: 0, person: 1, time: 2 };
// The steps that follow the time take each other's place.
const depth = (step) => DEPTH[step] ?? 3;
/** So long the browser is given to go somewhere in the history. */
const GO_MS = 1_000;

const offerId = ({ service, resources }) => (service ?? resources[0]).id;

export class Trail {
  #visit;
  #shown = 0;
  #awaited = null;
  /** The browser goes back in its own time: one thing after the other. */
  #queue = Promise.resolve();

  constructor(visit) {
    this.#visit = visit;
    addEventListener("popstate", this.#popped);
  }

  stop() {
    removeEventListener("popstate", this.#popped);
  }

  /** The entry that the page stands on: the `path` of steps that leads to it, and what was `chosen`; or null. */
  get #here() {
    const entry = history.state?.holdfast;
    return entry?.venue === this.#visit.venue.slug ? entry : null;
  }

  /** Note which step is shown. One further on is a new entry, one before is gone back to. */
  note(step) {
    const { choice, zone, booking } = this.#visit;
    const { offer, resource, day, quantity } = choice;
    const chosen = { offer: offer && offerId(offer), resource: resource?.id, day, quantity, zone, made: booking && made(booking) };
    this.#then(() => this.#note(step, chosen));
  }

  /** Show the step that the page stands on, as after a reload; false: there is none. */
  resume(moveFocus) {
    const here = this.#here;
    if (here) this.#comeTo(here, moveFocus);
    return Boolean(here);
  }

  /** A browser that refuses, as some do who are asked too often, ends nothing: only this entry is missing. */
  #then(next) {
    this.#queue = this.#queue.then(next).catch(() => {});
  }

  async #note(step, chosen) {
    const path = this.#here?.path ?? [];
    const before = path.filter((each) => depth(each) < depth(step));
    const entry = (steps) => ({ ...history.state, holdfast: { venue: this.#visit.venue.slug, path: steps, chosen } });
    const back = path.length - 1 - before.length;
    if (back > 0) await this.#go(-back);
    if (path.length && back < 0) {
      history.replaceState(entry(path), "");
      history.pushState(entry([...before, step]), "");
    } else history.replaceState(entry([...before, step]), "");
    this.#shown = before.length + 1;
  }

  async #go(by) {
    const gone = new Promise((resolve) => (this.#awaited = resolve));
    history.go(by);
    await Promise.race([gone, new Promise((resolve) => setTimeout(resolve, GO_MS))]);
    this.#awaited = null;
  }

  #popped = () => {
    const here = this.#here;
    if (this.#awaited) this.#awaited();
    else if (here) {
      const by = this.#shown - here.path.length;
      // While it is not known whether it was booked, there is no way back: he is taken where he was.
      if (this.#visit.asked) by && this.#then(() => this.#go(by));
      else {
        this.#shown = here.path.length;
        this.#comeTo(here);
      }
    }
  };

  /** Show a step that was shown before. What needs a hold is no more: it was given back, and a time is to be chosen. */
  async #comeTo({ path, chosen }, moveFocus) {
    const visit = this.#visit;
    const step = path.at(-1);
    visit.conflict = null;
    await visit.release();
    const offer = visit.offers.find((each) => offerId(each) === chosen.offer) ?? null;
    const resource = offer?.resources.find(({ id }) => id === chosen.resource) ?? null;
    if (chosen.zone) visit.showIn(chosen.zone);
    const day = chosen.day >= dayOf(Date.now(), visit.zone) ? chosen.day : null; // a tab may be opened again days later
    Object.assign(visit.choice, { offer, resource, day, quantity: chosen.quantity });
    const after = step === "pay" || step === "done";
    if (after && !visit.booking && chosen.made) {
      if (step === "done") return location.replace(new URL(`/manage/${chosen.made.id}#${chosen.made.manage_token}`, import.meta.url));
      visit.booking = chosen.made;
    }
    // Whom he had chosen is not there any more: that is not the same as "anyone".
    const isGone = Boolean(chosen.resource) && !resource;
    if (step !== "offer" && (!offer || isGone)) return visit.forward(moveFocus);
    return visit.show(step in DEPTH || (after && visit.booking) ? step : "time", moveFocus);
  }
}

/** What must outlive a reload: by it the booking is paid for and managed. Nothing that was typed. */
function made({ id, manage_token, checkout_url, expires_at, slot, quantity }) {
  return { id, manage_token, checkout_url, expires_at, slot, quantity };
}
