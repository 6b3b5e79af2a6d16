// An ordinary busy day: clients browse, hold, change their mind or book, repeat a request, look it up, cancel.
//
// Run:      OPERATOR_KEY=… k6 run k6/mixed.js               (`make load` brings its own server, and runs all scripts)
// Settings: BASE_URL, VUS (20), DURATION_SECONDS (20), SLOTS (40), SUMMARY_JSON, as environment variables. All clients
//           share one address: against a service with a rate limit, expect 429s, which count as errors.
// Set-up:   by itself: a venue of its own, with slots of 1 to 40 places from tomorrow 10:00 UTC on
// Results:  booking_errors and http_req_failed (5xx among them) must be 0. For every slot, live bookings and
//           available_count must add up to the capacity; over all slots, what clients booked and did not cancel must be
//           what the operator sees (places_unaccounted 0). The other counters tell what the day was made of: a day
//           without bookings or without repeated requests proves nothing, and fails. Exit codes as in last_place.js.

import { sleep } from 'k6';
import exec from 'k6/execution';
import {
  book, browse, cancel, counter, guarded, positiveInteger, prepare, randomInteger, readBack, readBooking, release,
  replay, summary, take, thresholds, trendStats,
} from './lib.js';

const vus = positiveInteger('VUS', 20);
const seconds = positiveInteger('DURATION_SECONDS', 20);
const slots = positiveInteger('SLOTS', 40);
const capacities = Array.from({ length: slots }, (_, i) => [1, 4, 10, 20, 40][i % 5]);

const held = counter('holds_taken');
const refused = counter('holds_refused');
const released = counter('holds_released');
const abandoned = counter('holds_left_to_lapse');
const replayed = counter('bookings_replayed');
const cancelled = counter('bookings_cancelled');

export const options = {
  // A client that started finishes: a reply nobody waited for would leave a booking nobody counted.
  scenarios: { day: { executor: 'constant-vus', vus, duration: `${seconds}s`, gracefulStop: '60s' } },
  thresholds: thresholds(slots, {
    booking_successes: ['count>=1'],
    bookings_replayed: ['count>=1'],
  }),
  summaryTrendStats: trendStats,
};

export function setup() {
  return prepare('mixed', capacities);
}

const chance = (percent) => Math.random() * 100 < percent;
const think = () => sleep(randomInteger(50, 250) / 1000);

// Mostly a slot that looks free, and rather a soon one; now and then one that may be full, as on a page left open.
function choose(listed, quantity) {
  const roomy = listed.filter((slot) => slot.available >= quantity);
  const from = roomy.length > 0 && chance(85) ? roomy : listed;
  return from[Math.floor(Math.random() ** 3 * from.length)];
}

function bookHeld(slot, quantity) {
  const hold = take(slot, quantity);
  (hold ? held : refused).add(1);
  if (!hold) return {};
  think();
  if (chance(60)) return book(slot, quantity, { hold });
  if (chance(70)) {
    if (release(hold)) released.add(1);
  } else {
    abandoned.add(1);
  }
  return {};
}

function bookDirectly(slot, quantity) {
  const key = `k6-${slot.id}-${exec.vu.idInTest}-${exec.vu.iterationInScenario}`;
  const outcome = book(slot, quantity, { key });
  if (outcome.booking && chance(30) && replay(outcome)) replayed.add(1);
  return outcome;
}

export default guarded((data) => {
  const listed = browse(data);
  think();
  if (!listed || chance(20)) return; // only looking
  const quantity = chance(70) ? 1 : randomInteger(2, 4);
  const slot = choose(listed.filter(({ capacity }) => capacity >= quantity), quantity);
  const { booking } = chance(45) ? bookHeld(slot, quantity) : bookDirectly(slot, quantity);
  if (!booking) return;
  think();
  if (chance(50)) readBooking(booking);
  if (chance(50) && cancel(booking)) cancelled.add(1);
});

export function teardown(data) {
  data.slots.forEach(readBack);
}

export const handleSummary = summary(`A mixed day: ${vus} clients for ${seconds} s on ${slots} slots`, options);
