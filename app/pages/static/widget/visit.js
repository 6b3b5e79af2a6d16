// A visit: what has been chosen, what is held, and which step is shown. The steps draw; what happens is decided here.

import { newKey } from "../key.js";
import { formats } from "../written.js";
import { dayOf } from "../zone.js";
import { call, GivenUp, persist, Refused } from "./api.js";
import { button, h } from "./dom.js";
import { Hold } from "./hold.js";
import { follow } from "./live.js";
import { chooseOffer, choosePerson } from "./steps/choose.js";
import { details } from "./steps/details.js";
import { done, pay } from "./steps/after.js";
import { Toast } from "./steps/parts.js";
import { time } from "./steps/time.js";
import { wait } from "./steps/wait.js";
import { ofDay } from "./slots.js";

const STEPS = { offer: chooseOffer, person: choosePerson, time, wait, details, pay, done };
/** A refusal of these codes means that the hold is no more, unless it has become a booking. */
const HOLD_IS_GONE = new Set(["hold_expired", "hold_not_found", "already_resolved"]);

export class Visit {
  venue = null;
  /** What can be booked: a service, or a resource that is sold as it is. */
  offers = [];
  choice = { offer: null, resource: null, day: null, quantity: 1 };
  customer = { name: "", email: "", phone: "" };
  /** The slots of the chosen day, by id. */
  slots = new Map();
  /** Those of them of which something was heard while the day was being read, which its answer may not know yet. */
  #news = new Map();
  hold = null;
  /** The request to book of which no answer is known: nothing else may be booked meanwhile. */
  asked = null;
  /** The slot that was lost last, with `alternatives`. */
  conflict = null;
  /** The sold out slot that is waited for. */
  wanted = null;
  booking = null;
  #frame;
  #wishes;
  #step = null;
  #live = null;
  #keys = new Map();
  #reads = 0;
  #newDay = false;
  #taking = null;
  #released = null;
  #left = false;
  #trail = null;

  constructor(frame, wishes) {
    this.#frame = frame;
    this.#wishes = wishes;
    this.t = wishes.t;
    this.toast = new Toast(wishes.t);
    this.stage = h("div", { class: "stage" });
    frame.append(this.stage, this.toast.element);
    this.prefill(wishes.customer);
  }

  /** Fill in what the visitor has not typed yet. */
  prefill(customer) {
    for (const field of Object.keys(this.customer)) this.customer[field] ||= String(customer?.[field] ?? "");
  }

  // -- coming and going ----------------------------------------------------------------------------------------------

  /** Read what there is to book, and show the first step with a choice; or go on after `leave()`. */
  async start() {
    this.#left = false;
    if (this.venue) {
      this.#resume();
      return;
    }
    this.stage.replaceChildren(h("p", { class: "quiet", role: "status" }, this.t("loading")));
    let venue;
    try {
      venue = await this.insist("GET", `v1/venues/${encodeURIComponent(this.#wishes.venue)}`);
    } catch (failure) {
      if (!this.#left) this.#cannotStart(failure);
      return;
    }
    if (this.#left) return;
    this.venue = venue;
    this.showIn(this.#wishes.zone ?? this.venue.timezone);
    this.#findOffers();
    if (this.#wishes.history) await this.#follow();
    if (!this.#left && !this.#trail?.resume(this.#wishes.moveFocus)) this.forward(this.#wishes.moveFocus);
  }

  /** Take part in the page's history, unless what it takes does not load. */
  async #follow() {
    const { Trail } = await import("./trail.js").catch(() => ({}));
    if (Trail && !this.#left) this.#trail = new Trail(this);
  }

  #resume() {
    return this.show(this.#step === "details" && !this.asked ? "time" : this.#step, true);
  }

  #cannotStart(failure) {
    const unknown = failure instanceof Refused && (failure.status === 404 || failure.status === 400);
    this.stage.replaceChildren(
      h("p", { class: "note warn", role: "alert" }, this.t(unknown ? "no_venue" : "gave_up")),
      unknown ? "" : button(this.t("try_again"), () => this.start()),
    );
  }

  /** Stop, and give back what is held, unless it may be booked by now: the dialog or the page was closed. */
  leave() {
    this.#left = true;
    this.#trail?.stop();
    this.#stopLooking();
    this.toast.clear();
    return this.asked ? null : this.release();
  }

  /** Show times as the clocks of a zone do. */
  showIn(zone) {
    this.zone = zone;
    this.format = formats(this.#wishes.locale, zone);
    this.locale = this.#wishes.locale;
  }

  // -- steps ---------------------------------------------------------------------------------------------------------

  #findOffers() {
    const { services, resources } = this.venue;
    const { service, resource } = this.#wishes;
    const active = services.filter((each) => each.active);
    const inServices = new Set(active.flatMap((each) => each.resource_ids));
    const sold = active.map((each) => ({
      name: each.name,
      service: each,
      resources: resources.filter(({ id }) => each.resource_ids.includes(id) && (!resource || id === resource)),
    }));
    const alone = resources.filter(({ id }) => !inServices.has(id)).map((each) => ({ name: each.name, resources: [each] }));
    this.offers = [...sold, ...alone].filter(
      (offer) =>
        offer.resources.length > 0 &&
        (!service || offer.service?.id === service) &&
        (!resource || offer.resources.some(({ id }) => id === resource)),
    );
  }

  /** Show the first step that leaves a choice. */
  forward(moveFocus = true) {
    if (this.offers.length === 1) this.choice.offer = this.offers[0];
    if (!this.choice.offer) return this.show("offer", moveFocus);
    const { resources } = this.choice.offer;
    if (resources.length === 1) [this.choice.resource] = resources;
    return this.show(this.choice.resource ? "time" : "person", moveFocus);
  }

  chooseOffer(offer) {
    Object.assign(this.choice, { offer, resource: null, day: null, quantity: 1 });
    this.forward();
  }

  /** @param resource null: anyone */
  choosePerson(resource) {
    Object.assign(this.choice, { resource, day: null, quantity: 1 });
    this.show("time");
  }

  /** The step before this one; null when there was nothing to choose. */
  get previous() {
    const several = { person: this.choice.offer?.resources.length > 1, offer: this.offers.length > 1 };
    const before = { details: "time", wait: "time", time: ["person", "offer"], person: ["offer"] }[this.#step] ?? [];
    return [before].flat().find((step) => several[step] ?? true) ?? null;
  }

  /** Go back. What is held is given back first: nobody's own hold stands in his way. */
  async back() {
    const to = this.previous;
    this.conflict = null;
    await this.release();
    this.show(to);
  }

  /** Begin again, with the same visitor. */
  again() {
    Object.assign(this.choice, { offer: null, resource: null, day: null, quantity: 1 });
    this.booking = null;
    this.forward();
  }

  /** Show a step; when nobody looks, it is shown to whoever comes back. */
  show(step, moveFocus = true) {
    this.#step = step;
    if (this.#left) return;
    this.toast.note(null);
    if (step === "time") this.#look();
    else if (step !== "details") this.#stopLooking();
    this.view = STEPS[step](this);
    this.stage.replaceChildren(this.view.element);
    this.#trail?.note(step);
    if (moveFocus) (this.view.focus ?? this.view.element.querySelector("h2"))?.focus();
  }

  // -- looking -------------------------------------------------------------------------------------------------------

  get wish() {
    const { offer, resource } = this.choice;
    return {
      venue: this.venue.slug,
      ...(offer.service ? { service_id: offer.service.id } : {}),
      ...(resource ? { resource_id: resource.id } : {}),
    };
  }

  #look() {
    this.#live ??= follow(this.venue.slug, {
      tell: (slot) => this.#told(slot),
      read: () => this.readDay(false).catch(() => {}),
    });
  }

  #stopLooking() {
    this.#live?.stop();
    this.#live = null;
  }

  /** Show another day. */
  async chooseDay(day) {
    this.choice.day = day;
    this.#trail?.note(this.#step);
    this.slots = new Map();
    this.#newDay = true;
    await this.readDay();
  }

  /** Read the days, of those between two, on which something is free; null when that cannot be known now. */
  async freeDays(from, to) {
    const asked = { ...this.wish, from, to, quantity: this.choice.quantity, timezone: this.zone };
    const found = await call("GET", `v1/days?${new URLSearchParams(asked)}`).catch(() => null);
    return found && new Set(found.data);
  }

  /** Read the slots of the chosen day; the last one asked for is shown, whichever answer is last. */
  async readDay(patient = true) {
    const { day } = this.choice;
    if (!day) return;
    const number = ++this.#reads;
    this.#news.clear(); // what was heard before, whoever answers knows
    const read = (path) => (patient ? this.insist("GET", path) : call("GET", path));
    const found = await ofDay(read, this.wish, day, this.zone);
    if (number !== this.#reads) return;
    const wished = found.filter((slot) => this.#isWished(slot)).map((slot) => [slot.id, slot]);
    this.slots = new Map([...wished, ...this.#news]);
    this.view.refresh?.();
    if (!this.#newDay) return;
    this.#newDay = false;
    this.send("availability-loaded", { venue: this.venue.slug, day, timezone: this.zone, slots: this.shown });
  }

  #told(slot) {
    if (!this.#isWished(slot) || dayOf(slot.starts_at, this.zone) !== this.choice.day) return;
    this.#know(slot);
    this.view.refresh?.();
  }

  #know(slot) {
    this.slots.set(slot.id, slot);
    this.#news.set(slot.id, slot);
  }

  #isWished(slot) {
    const { service_id, resource_id } = this.wish;
    return (slot.service?.id ?? undefined) === service_id && (!resource_id || slot.resource.id === resource_id);
  }

  /** The slots of the day as they are to this visitor, to whom what he holds himself is free. */
  get shown() {
    return [...this.slots.values()].map((slot) =>
      this.hold?.slot.id === slot.id ? { ...slot, available: slot.available + this.hold.quantity } : slot,
    );
  }

  // -- holding -------------------------------------------------------------------------------------------------------

  /** Hold the first of some slots that can be had, any of which will do. Who presses twice wants it once. */
  async take(slots) {
    const { view } = this;
    if (this.#taking === view) return;
    this.#taking = view;
    await this.release();
    await this.#takeAny(slots, view).finally(() => {
      if (this.#taking === view) this.#taking = null;
    });
  }

  /** Whoever has gone on from the `view` meanwhile does not want it any more. */
  async #takeAny(slots, view) {
    const { quantity } = this.choice;
    let lost = null;
    for (const slot of slots) {
      try {
        return this.#held(await this.#takeOne(slot, quantity), view);
      } catch (failure) {
        if (this.view !== view) return null;
        if (failure.problem?.code !== "slot_unavailable") return this.explain(failure);
        this.#mark(slot, failure.problem);
        lost ??= { slot, problem: failure.problem };
      }
    }
    return this.lose(lost.slot, lost.problem);
  }

  /** Given up and tried again it is the same request; once answered, the next is another. */
  async #takeOne(slot, quantity) {
    const body = { slot_id: slot.id, quantity };
    let askedAt;
    const asking = () => (askedAt = performance.now());
    try {
      const headers = { "Idempotency-Key": this.#keyOf(body) };
      const told = await this.insist("POST", "v1/holds", { body, headers, asking });
      this.#forget(body);
      return new Hold(told, askedAt, slot);
    } catch (failure) {
      if (failure instanceof Refused) this.#forget(body);
      throw failure;
    }
  }

  #held(hold, view) {
    if (this.#left || this.view !== view) return hold.release().catch(() => {});
    this.hold = hold;
    this.conflict = null;
    this.choice.day = dayOf(hold.slot.starts_at, this.zone);
    this.toast.clear();
    const { id, slot, quantity, expires_at } = hold;
    this.send("slot-held", { hold_id: id, slot, quantity, expires_at });
    return this.show("details");
  }

  /** Ask who would wait for a slot. */
  askToWait(slot) {
    this.wanted = slot;
    this.show("wait");
  }

  /** Give back what is held, if anything is. */
  async release() {
    const { hold } = this;
    this.hold = null;
    if (hold) this.#released = hold.release().catch(() => {});
    await this.#released;
  }

  #mark(slot, { available, reason }) {
    const status = { held: "held", booked: "sold_out" }[reason] ?? reason;
    const known = this.slots.get(slot.id) ?? slot;
    this.#know({ ...known, available, status: available ? known.status : status });
  }

  /** Somebody else was faster: say so, and offer what is still free. What was typed is kept. */
  lose(slot, { reason, alternatives }) {
    this.hold?.rest();
    this.hold = null;
    this.conflict = { slot, reason, alternatives };
    this.send("slot-conflict", { slot, reason, alternatives });
    this.show("time");
    const said = { held: "held_toast", booked: "taken_toast" }[reason] ?? "gone_toast";
    this.toast.show(this.t(said, { time: this.format.time(slot.starts_at) }));
  }

  /** A hold is over: whoever still wants it takes it again. The service may see it later than the page: it is given back. */
  expire(hold) {
    if (hold !== this.hold) return;
    const { slot, quantity } = hold;
    this.release();
    this.send("hold-expired", { slot, quantity });
    this.view.expired?.(slot);
  }

  // -- booking -------------------------------------------------------------------------------------------------------

  /** Book what is held, or go to pay for it; until there is an answer, it is the same request that is made again. */
  async book(online) {
    const { hold } = this;
    // The e-mails are written in it.
    const metadata = { language: this.locale.slice(0, 2).toLowerCase() };
    const request = { hold_token: hold.token, customer: this.#who, metadata };
    this.asked ??= { online, path: online ? "v1/checkout" : "v1/bookings", body: request };
    const { asked } = this;
    const { path, body } = asked;
    hold.rest();
    try {
      const told = await this.insist("POST", path, { body, headers: { "Idempotency-Key": this.#keyOf(path, body) } });
      if (this.#isAnswered(asked)) this.#booked(hold, told.booking ?? told, told);
    } catch (failure) {
      if (failure instanceof GivenUp) this.#notKnown(failure);
      else if (this.#isAnswered(asked)) this.#refused(hold, failure);
    }
  }

  /** Whoever closes the dialog and asks again has two answers to one request: the first one counts. */
  #isAnswered(asked) {
    const first = this.asked === asked;
    if (first) this.asked = null;
    return first;
  }

  #notKnown(failure) {
    this.view.again?.();
    this.explain(failure, "unknown_outcome");
  }

  get #who() {
    const typed = Object.entries(this.customer).map(([field, text]) => [field, text.trim()]);
    return Object.fromEntries(typed.filter(([, text]) => text));
  }

  /** Wait for what is sold out; should it be free by now, it is held instead. */
  async wait() {
    const { view, wanted: slot } = this;
    const { quantity } = this.choice;
    const body = { slot_id: slot.id, quantity, customer: this.#who };
    try {
      const headers = { "Idempotency-Key": this.#keyOf("wait", body) };
      const told = await this.insist("POST", "v1/waiting-list", { body, headers });
      view.joined(told);
      this.send("waiting-list-joined", { slot, quantity, position: told.position });
    } catch (failure) {
      const isFree = failure.problem?.code === "slot_available";
      if (isFree) await this.take([slot]);
      if (this.view !== view) return;
      view.again();
      if (!isFree && !view.wrong(failure)) this.explain(failure);
    }
  }

  /** The same request has the same key, however often the button is pressed. */
  #keyOf(...request) {
    const text = JSON.stringify(request);
    if (!this.#keys.has(text)) this.#keys.set(text, newKey());
    return this.#keys.get(text);
  }

  #forget(...request) {
    this.#keys.delete(JSON.stringify(request));
  }

  #booked(hold, booking, { checkout_url = null, expires_at = null }) {
    this.hold = null;
    this.booking = { ...booking, slot: hold.slot, checkout_url, expires_at };
    if (!checkout_url) return this.confirmed();
    this.show("pay");
    return this.send("checkout-started", { booking_id: booking.id, slot: hold.slot, checkout_url, expires_at });
  }

  confirmed() {
    const { id, slot, quantity } = this.booking;
    this.show("done");
    this.send("booking-confirmed", { booking_id: id, slot, quantity });
  }

  #refused(hold, failure) {
    const { code, booking_status, booking_id: id, resolved_at: created_at } = failure.problem ?? {};
    if (code === "slot_unavailable") return this.lose(hold.slot, failure.problem);
    if (booking_status === "confirmed") return this.#booked(hold, { id, created_at, quantity: hold.quantity }, {});
    if (HOLD_IS_GONE.has(code)) return this.expire(hold);
    if (code === "payment_required") this.venue.payment = "required";
    this.view.again();
    return this.view.wrong?.(failure) || this.explain(failure);
  }

  // -- patience and excuses ------------------------------------------------------------------------------------------

  /** Call until there is an answer, and say so when it takes more than one try. */
  async insist(method, path, options) {
    let giveUp;
    const givenUp = new Promise((_, reject) => (giveUp = () => reject(new GivenUp())));
    givenUp.catch(() => {});
    try {
      return await persist(method, path, options, (attempt, refused) => {
        if (this.#left) giveUp();
        else if (attempt === 1) this.toast.note(this.t(refused ? "busy" : "unreachable"), this.t("give_up"), giveUp);
        return givenUp;
      });
    } finally {
      this.toast.note(null);
    }
  }

  /** Tell why something did not work, in words that help. */
  explain(failure, said = null) {
    const { code } = failure.problem ?? {};
    const known = { hold_limit: "hold_limit", payment_failed: "payment_failed" }[code];
    const word = said ?? (failure instanceof GivenUp ? "gave_up" : (known ?? "failed"));
    this.toast.show(this.t(word));
  }

  send(name, detail) {
    return this.#wishes.send(name, detail);
  }
}
