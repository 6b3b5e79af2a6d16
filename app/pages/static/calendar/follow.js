// Hearing of changes of a venue: from its live stream, and while there is none by asking again and again.

const POLL_MS = 5_000;
/**
 * A stream ends every minute and comes back by itself: only one that stays away is told. Coming back is also when a
 * block is noticed that lies in nothing's way: everybody may hear the stream, and so it never tells of blocks themselves.
 */
const PATIENCE_MS = 3_000;

/**
 * Call `changed` whenever something of a venue may look different, and `told(isLive)` when that begins or stops to be
 * told at once. Returns how to stop.
 */
export function follow(venue, changed, told) {
  let source, poll, patience, again;

  function lost() {
    if (poll) return;
    told(false);
    changed();
    poll = setInterval(changed, POLL_MS);
  }

  function found() {
    clearTimeout(patience);
    patience = undefined;
    clearInterval(poll);
    poll = undefined;
    told(true);
    changed(); // what happened while nobody listened
  }

  function open() {
    source = new EventSource(`/v1/live?venue=${encodeURIComponent(venue)}`);
    source.addEventListener("open", found);
    source.addEventListener("slot", changed);
    source.addEventListener("reset", changed);
    source.addEventListener("error", () => {
      if (source.readyState === EventSource.CLOSED) {
        lost();
        clearTimeout(again);
        again = setTimeout(open, POLL_MS);
      } else {
        patience ??= setTimeout(lost, PATIENCE_MS);
      }
    });
  }

  open();
  return () => {
    source.close();
    clearInterval(poll);
    clearTimeout(patience);
    clearTimeout(again);
  };
}
