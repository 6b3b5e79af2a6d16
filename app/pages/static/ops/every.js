// The rhythm of the console: what is asked again and again, and when it is not.

/** While the service fails to answer, it is asked ever more slowly, but not more slowly than this. */
const LONGEST_WAIT_SECONDS = 30;
/** What takes long is left alone for so many times as long: a console must not be the load that it shows. */
const PATIENCE = 2;

/**
 * Do something now, and again `seconds` after each time; never while nobody sees the page.
 * @param {number} seconds
 * @param {() => Promise<void>} work
 * @param {(error: Error | null, waitSeconds: number) => void} told  what became of each time
 * @returns {() => void} do it at once
 */
export function every(seconds, work, told = () => {}) {
  let timer, failures = 0, running = false, again = false;

  async function turn() {
    clearTimeout(timer);
    if (running) {
      again = true;
      return;
    }
    if (document.hidden) return;
    running = true;
    const began = performance.now();
    let wrong = null;
    try {
      await work();
    } catch (error) {
      wrong = error;
    }
    running = false;
    failures = wrong ? failures + 1 : 0;
    const took = (performance.now() - began) / 1000;
    const wait = wrong ? Math.min(LONGEST_WAIT_SECONDS, seconds * 2 ** failures) : Math.max(seconds, PATIENCE * took);
    told(wrong, wait);
    timer = setTimeout(turn, again ? 0 : 1000 * wait);
    again = false;
  }

  document.addEventListener("visibilitychange", () => (document.hidden ? clearTimeout(timer) : turn()));
  turn();
  return turn;
}
