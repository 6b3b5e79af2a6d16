// The last place: many clients want it in the same instant. Exactly one gets it, all others are told so at once.
//
// Run:      OPERATOR_KEY=… k6 run k6/last_place.js          (`make load` brings its own server, and runs all scripts)
// Settings: BASE_URL, VUS (100), ITERATIONS (100), CAPACITY (1), SUMMARY_JSON, as environment variables
// Set-up:   by itself: a venue of its own, with one slot tomorrow at 10:00 UTC
// Results:  booking_successes must be 1, booking_conflicts 99, booking_errors 0 (an error is anything but a booking or
//           a complete 409 `slot_unavailable`). Afterwards the slot and the operator's list of bookings are read back
//           and must say the same. Exit code 0 when all holds, 99 when a count is off, 107 when the set-up failed.
//           booking_ms and refusal_ms tell how long the winner and the others waited.

import {
  book, finishReport, guarded, letAllBeAnswered, lineUp, mismatch, positiveInteger, prepare, readBack, summary, thresholds, trendStats,
} from './lib.js';

const vus = positiveInteger('VUS', 100);
const iterations = positiveInteger('ITERATIONS', 100);
const capacity = positiveInteger('CAPACITY', 1);
const winners = Math.min(capacity, iterations);

export const options = {
  scenarios: { race: { executor: 'shared-iterations', vus, iterations, maxDuration: '60s' } },
  thresholds: thresholds(1, {
    booking_successes: [`count==${winners}`],
    booking_conflicts: [`count==${iterations - winners}`],
  }),
  summaryTrendStats: trendStats,
};

export function setup() {
  return prepare('last-place', [capacity]);
}

export default guarded((data) => {
  lineUp(data);
  book(data.slots[0], 1, { answered: () => letAllBeAnswered(data) });
});

export function teardown(data) {
  const { available_count, booked } = readBack(data.slots[0]);
  if (booked !== winners) mismatch(`${booked} places are booked, not ${winners}`);
  const left = capacity - winners;
  if (available_count !== left) mismatch(`available_count is ${available_count}, not ${left}`);
  finishReport();
}

const places = capacity === 1 ? 'one place' : `${capacity} places`;
export const handleSummary = summary(`The last place: ${iterations} requests of ${vus} clients for ${places}`, options);
