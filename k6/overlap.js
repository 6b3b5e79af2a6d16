// Overlapping times of one person: many clients want different ones in the same instant. Nobody is in two places at once.
//
// Run:      OPERATOR_KEY=… k6 run k6/overlap.js             (`make load` brings its own server, and runs all scripts)
// Settings: BASE_URL, VUS (100), ITERATIONS (300), SLOTS (24), SUMMARY_JSON, as environment variables
// Set-up:   by itself: a venue of its own, with one person who has half an hour to sell every ten minutes, tomorrow from
//           10:00 UTC on. Each time overlaps the two before it and the two after it.
// Results:  booking_overlaps must be 0: pairs of live bookings at the same time, as the operator sees them. Half of the
//           clients hold before they book, and a hold must not be beaten by a neighbour; some cancel, or give up their
//           hold. In the end every time is tried once more: one that overlaps no booking must be had, any other must be
//           refused. booking_errors must be 0 (an error is anything but a booking or a complete 409). Exit codes as in
//           last_place.js.

import {
  book, cancel, counter, finishReport, guarded, lineUp, mismatch, positiveInteger, prepare, randomInteger, readBack,
  release, summary, take, thresholds, trendStats,
} from './lib.js';

const vus = positiveInteger('VUS', 100);
const iterations = positiveInteger('ITERATIONS', 300);
const count = positiveInteger('SLOTS', 24);
const overlaps = counter('booking_overlaps');

export const options = {
  scenarios: { overlapping: { executor: 'shared-iterations', vus, iterations, maxDuration: '60s' } },
  thresholds: thresholds(2 * count, {
    booking_overlaps: ['count==0'],
    booking_successes: ['count>=1'],
    booking_conflicts: ['count>=1'],
  }),
  summaryTrendStats: trendStats,
};

export function setup() {
  return prepare('overlap', Array(count).fill(1), { kind: 'person', minutes: 30, every: 10 });
}

export default guarded((data) => {
  lineUp(data);
  const slot = data.slots[randomInteger(0, count - 1)];
  let booking;
  if (randomInteger(0, 1)) {
    const hold = take(slot, 1);
    if (!hold) return;
    if (randomInteger(0, 3) === 0) {
      release(hold);
      return;
    }
    ({ booking } = book(slot, 1, { hold }));
  } else {
    ({ booking } = book(slot, 1));
  }
  if (booking && randomInteger(0, 1)) cancel(booking);
});

const meet = (one, other) => one.starts_at < other.ends_at && other.starts_at < one.ends_at;

// Reads every slot back and counts the pairs of booked ones that overlap; returns those that are booked.
function booked(slots) {
  const taken = slots.filter((slot) => readBack(slot).bookings.length > 0);
  taken.forEach((one, i) => taken.slice(i + 1).filter((other) => meet(one, other)).forEach((other) => {
    overlaps.add(1);
    mismatch(`booked both from ${one.starts_at} and from ${other.starts_at}`);
  }));
  return taken;
}

export function teardown(data) {
  const taken = booked(data.slots);
  for (const slot of data.slots) {
    const free = !taken.some((other) => meet(slot, other));
    const { booking, problem } = book(slot, 1);
    if (booking) taken.push(slot);
    if (free && !booking) mismatch(`nothing is booked from ${slot.starts_at}, and it was refused`);
    if (!free && !problem) mismatch(`the time from ${slot.starts_at} is taken, and it was not refused`);
  }
  if (booked(data.slots).length !== taken.length) mismatch(`not the ${taken.length} times that were promised are booked`);
  overlaps.add(0); // a threshold needs a value
  finishReport();
}

export const handleSummary = summary(`Overlap: ${iterations} requests of ${vus} clients for ${count} times of one person`, options);
