// What changes while somebody looks: told by the service's stream, or asked for where there is none.

import { SERVICE } from "./api.js";

const POLL_MS = 4_000;
const AGAIN_MS = 30_000;
/** An EventSource that fails so often in a row is not coming back soon. */
const MAX_FAILURES = 3;

const somewhatMore = (ms) => ms * (1 + Math.random() / 2);

/**
 * Follow the slots of a venue until `stop()`. `tell(slot)` gets each one that changed. `read()` is to read all slots that
 * are shown: as soon as the stream is open (what changes from then on is told), when it lost track, and every few
 * seconds while there is none. A page that nobody sees has no stream, and reads when it is seen again.
 */
export function follow(venue, { tell, read }) {
  const url = new URL("v1/live", SERVICE);
  url.searchParams.set("venue", venue);
  let source = null;
  let failures = 0;
  let pollTimer = 0;
  let againTimer = 0;

  function open() {
    source?.close();
    failures = 0;
    source = new EventSource(url);
    source.addEventListener("open", opened, { once: true });
    source.addEventListener("open", () => (failures = 0));
    source.addEventListener("slot", (event) => tell(JSON.parse(event.data)));
    source.addEventListener("reset", () => setTimeout(read, Math.random() * 1_500));
    source.addEventListener("degraded", poll);
    source.addEventListener("error", () => {
      if (source?.readyState === EventSource.CLOSED || ++failures >= MAX_FAILURES) poll();
    });
  }

  function opened() {
    clearTimeout(pollTimer);
    read();
  }

  /** Ask every few seconds instead, and try the stream again later. */
  function poll() {
    close();
    const again = () => {
      read();
      pollTimer = setTimeout(again, somewhatMore(POLL_MS));
    };
    again();
    againTimer = setTimeout(open, somewhatMore(AGAIN_MS));
  }

  function close() {
    source?.close();
    source = null;
    clearTimeout(pollTimer);
    clearTimeout(againTimer);
  }

  const seen = () => (document.hidden ? close() : open());
  document.addEventListener("visibilitychange", seen);
  open();
  return {
    stop() {
      document.removeEventListener("visibilitychange", seen);
      close();
    },
  };
}
