// A tour with many places: parties of 1 to 10 book until they are refused. Never oversold, and nobody refused wrongly.
//
// Run:      OPERATOR_KEY=… k6 run k6/capacity.js            (`make load` brings its own server, and runs all scripts)
// Settings: BASE_URL, VUS (100), CAPACITY (50), SUMMARY_JSON, as environment variables
// Set-up:   by itself: a venue of its own, with one slot tomorrow at 10:00 UTC
// Results:  places_unaccounted is what clients were promised less what the operator sees booked: must be 0. A refused
//           party must have been larger than what was left. In the end one party cancels, and the limit is tried from
//           both sides: one guest too many is refused, exactly the places left are booked, and then one more guest is
//           refused with 0 available. Exit codes as in last_place.js.

import {
  book, cancel, finishReport, guarded, lineUp, mismatch, positiveInteger, prepare, randomInteger, readBack, summary,
  thresholds, trendStats,
} from './lib.js';

const vus = positiveInteger('VUS', 100);
const capacity = positiveInteger('CAPACITY', 50);

export const options = {
  scenarios: { parties: { executor: 'per-vu-iterations', vus, iterations: 1, maxDuration: '60s' } },
  thresholds: thresholds(2, {
    booking_successes: ['count>=1'],
    booking_conflicts: [`count>=${vus + 1}`], // one for each client, who stops there, and for the guest at the very end
  }),
  summaryTrendStats: trendStats,
};

export function setup() {
  return prepare('capacity', [capacity]);
}

export default guarded((data) => {
  lineUp(data);
  let parties = 0; // more than there are places is proof enough: then even an endless seller lets the run end
  while (parties <= capacity && book(data.slots[0], randomInteger(1, Math.min(10, capacity))).booking) parties += 1;
});

function mustBeRefused(slot, quantity, available) {
  const { problem } = book(slot, quantity);
  const refused = problem && problem.available === available;
  if (!refused) mismatch(`a party of ${quantity} was not refused with ${available} available`);
}

export function teardown(data) {
  const [slot] = data.slots;
  const { available_count: left, bookings } = readBack(slot);
  // Without this, nothing would be left to try: parties of one fill the last gap.
  const room = left + (bookings.length > 0 && cancel(bookings[0]) ? bookings[0].quantity : 0);
  if (room < capacity) mustBeRefused(slot, room + 1, room);
  if (!book(slot, room).booking) mismatch(`a party of ${room} was refused the ${room} places left`);
  mustBeRefused(slot, 1, 0);
  const { available_count } = readBack(slot);
  if (available_count !== 0) mismatch(`available_count is ${available_count} after the last place was booked`);
  finishReport();
}

export const handleSummary = summary(`Capacity: parties of ${vus} clients for ${capacity} places`, options);
