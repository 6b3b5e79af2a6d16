// The slots that a visitor looks at: read for a day, kept up to date, and what each offers to a party of some size.

import { addDays, dayOf } from "../zone.js";
import { beginOf } from "./time.js";

/** Read all slots of a day; `read(path)` gets a page of them. */
export async function ofDay(read, wish, day, zone) {
  const range = { from: beginOf(day, zone).toISOString(), to: beginOf(addDays(day, 1), zone).toISOString() };
  const found = [];
  let cursor = null;
  do {
    const page = await read(query({ ...wish, ...range, limit: 100, ...(cursor ? { cursor } : {}) }));
    found.push(...page.data);
    cursor = page.next_cursor;
  } while (cursor);
  return found;
}

/** Find the first day on which something is free, from an instant (null: now) on; null when there is none. */
export async function nextFreeDay(read, wish, quantity, from, zone) {
  const { data } = await read(query({ ...wish, quantity, limit: 1, ...(from ? { from: from.toISOString() } : {}) }));
  return data.length ? dayOf(data[0].starts_at, zone) : null;
}

function query(values) {
  return `v1/slots?${new URLSearchParams(values)}`;
}

/** What a slot is to a party: `free`, `few` (too few places), `held` (may come free again), `sold_out` or `gone`. */
export function stateOf(slot, quantity) {
  if (slot.status === "closed" || slot.status === "past") return "gone";
  if (slot.available >= quantity) return "free";
  if (slot.available > 0) return "few";
  return slot.status === "sold_out" ? "sold_out" : "held";
}

const RANK = ["free", "few", "held", "sold_out"];

/**
 * Gather slots that begin at the same time: to whom anyone will do, they are one. Each time has its `state`, which is
 * that of the best slot, and `slots`, the best first.
 */
export function times(slots, quantity) {
  const byStart = new Map();
  for (const slot of slots) {
    const state = stateOf(slot, quantity);
    if (state === "gone") continue;
    const same = byStart.get(slot.starts_at) ?? [];
    byStart.set(slot.starts_at, [...same, { slot, rank: RANK.indexOf(state) }]);
  }
  return [...byStart].sort(([a], [b]) => (a < b ? -1 : 1)).map(([startsAt, entries]) => {
    entries.sort((a, b) => a.rank - b.rank);
    return { startsAt, state: RANK[entries[0].rank], slots: entries.map(({ slot }) => slot) };
  });
}
