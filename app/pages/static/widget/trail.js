// The steps of a visit as entries of the page's history: the browser's Back goes one step back, and a reload stays.

const DEPTH = { offer: 0, person: 1, time: 2 };
// The steps that follow the time take each other's place.
const depth = (step) => DEPTH[step] ?? 3;

export class Trail {
  #venue;
  #come;
  #shown = 0;
  #awaited = null;
  /** The browser goes back in its own time: one thing after the other. */
  #queue = Promise.resolve();

  /** @param come `come(entry)` shows where the visitor goes in the history; false: not now, and he is taken back */
  constructor(venue, come) {
    this.#venue = venue;
    this.#come = come;
    addEventListener("popstate", this.#popped);
  }

  stop() {
    removeEventListener("popstate", this.#popped);
  }

  /** The entry that the page stands on: the `path` of steps that leads to it, and what was `chosen`; or null. */
  get here() {
    const entry = history.state?.holdfast;
    return entry?.venue === this.#venue ? entry : null;
  }

  /** Note which step is shown. One further on is a new entry, one before is gone back to. */
  note(step, chosen) {
    this.#queue = this.#queue.then(() => this.#note(step, chosen));
  }

  async #note(step, chosen) {
    const path = this.here?.path ?? [];
    const before = path.filter((each) => depth(each) < depth(step));
    const entry = (steps) => ({ ...history.state, holdfast: { venue: this.#venue, path: steps, chosen } });
    const back = path.length - 1 - before.length;
    if (back > 0) await this.#go(-back);
    if (path.length && back < 0) {
      history.replaceState(entry(path), "");
      history.pushState(entry([...before, step]), "");
    } else history.replaceState(entry([...before, step]), "");
    this.#shown = before.length + 1;
  }

  #go(by) {
    return new Promise((resolve) => {
      this.#awaited = resolve;
      history.go(by);
    });
  }

  #popped = () => {
    const { here } = this;
    if (this.#awaited) {
      this.#awaited();
      this.#awaited = null;
    } else if (here) {
      const by = this.#shown - here.path.length;
      if (this.#come(here)) this.#shown = here.path.length;
      else if (by) this.#queue = this.#queue.then(() => this.#go(by));
    }
  };
}
