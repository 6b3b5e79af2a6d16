// A hold of the visitor's: how long it lives by the service's clock, and what ends it.

import { newKey } from "../key.js";
import { call, Refused } from "./api.js";

export class Hold {
  #ends = 0;
  #timer = 0;
  #onTick;
  #onEnd;
  #watched = false;

  /**
   * @param told what the service answered  @param {number} askedAt `performance.now()` when it was asked: counted from
   *   then, a hold never seems to live longer than it does
   * @param slot what it is a hold of
   */
  constructor(told, askedAt, slot) {
    this.id = told.id;
    this.slot = slot;
    this.quantity = told.quantity;
    this.#adopt(told, askedAt);
  }

  #adopt(told, askedAt) {
    this.token = told.token ?? this.token;
    this.expires_at = told.expires_at;
    this.#ends = askedAt + Date.parse(told.expires_at) - Date.parse(told.server_time);
  }

  get secondsLeft() {
    return Math.max(0, Math.ceil((this.#ends - performance.now()) / 1000));
  }

  /** Count down: `onTick(seconds)` now and every second, `onEnd()` once, unless `rest` is called first. */
  watch(onTick, onEnd) {
    this.rest();
    this.#onTick = onTick;
    this.#onEnd = onEnd;
    this.#watched = true;
    this.#timer = setInterval(() => this.#tick(), 1000);
    document.addEventListener("visibilitychange", this.#seen);
    onTick(this.secondsLeft);
  }

  /** Stop counting. */
  rest() {
    this.#watched = false;
    clearInterval(this.#timer);
    document.removeEventListener("visibilitychange", this.#seen);
  }

  #tick() {
    this.#onTick(this.secondsLeft);
    if (this.secondsLeft === 0) this.#end();
  }

  #end() {
    this.rest();
    this.#onEnd();
  }

  /** A device that slept has a clock that stood still: ask the service's. By the time of its answer it may be booked. */
  #seen = async () => {
    if (document.hidden) return;
    const askedAt = performance.now();
    try {
      this.#adopt(await call("GET", `v1/holds/${this.id}`, { headers: this.#proof }), askedAt);
    } catch (failure) {
      if (this.#watched && failure instanceof Refused && !failure.passing) this.#end();
    }
  };

  get #proof() {
    return { "Hold-Token": this.token };
  }

  /**
   * Ask for more time; `ask(method, path, options)` calls the service.
   * @throws {Refused} `hold_limit` when there is none, 404 or 410 when it is too late
   */
  async extend(ask) {
    let askedAt;
    const headers = { ...this.#proof, "Idempotency-Key": newKey() };
    const asking = () => (askedAt = performance.now());
    this.#adopt(await ask("POST", `v1/holds/${this.id}/extend`, { headers, asking }), askedAt);
  }

  /** Give the places back. Also from a page that is being closed; should it fail, the hold ends by itself. */
  async release() {
    this.rest();
    await call("DELETE", `v1/holds/${this.id}`, { headers: this.#proof, keepalive: true });
  }
}
