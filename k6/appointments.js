// One person's time: many clients want the same appointment in the same instant (S4-4). Exactly one gets it, and all
// others are told 400 TIME_CONFLICT, with free times of the same service to choose from.
//
// Run:      OPERATOR_KEY=… k6 run k6/appointments.js        (`make load` brings its own server, and runs all scripts)
// Settings: BASE_URL, SALON (demo), SERVICE_ID, STAFF_ID, START_TIME, VUS (100), ITERATIONS (100), SUMMARY_JSON, as
//           environment variables. Without them: the salon's first service for one, the first person who offers it, and
//           tomorrow 10:00 UTC. START_TIME is RFC 3339, such as 2027-03-01T10:00:00+01:00.
// Set-up:   by itself. The time must be free: whoever has it is named, and nothing is run. What the run books is
//           cancelled afterwards, so that it can be run again.
// Results:  booking_successes must be 1, booking_conflicts 99, booking_errors 0 (an error is anything but a booking or a
//           complete TIME_CONFLICT). Afterwards the slot and the operator's list of bookings are read back and must say
//           the same. Exit code 0 when all holds, 99 when a count is off, 107 when the set-up failed.

import {
  bodyOf, bookingMs, call, cancel, conflicts, finishReport, guarded, holdsTrue, letAllBeAnswered, lineUp, mismatch, positiveInteger, promised,
  readBack, refusalMs, successes, summary, thresholds, trendStats,
} from './lib.js';

const vus = positiveInteger('VUS', 100);
const iterations = positiveInteger('ITERATIONS', 100);
const salon = __ENV.SALON || 'demo';

export const options = {
  scenarios: { race: { executor: 'shared-iterations', vus, iterations, maxDuration: '60s' } },
  thresholds: thresholds(2, {
    booking_successes: ['count==1'],
    booking_conflicts: [`count==${iterations - 1}`],
  }),
  summaryTrendStats: trendStats,
};

function get(path, name = path) {
  const response = call('GET', path, null, { name, statuses: [200] });
  if (response.status !== 200) throw new Error(`${path}: ${response.status} ${response.body}`);
  return bodyOf(response);
}

function tomorrowAtTen() {
  return new Date(new Date(Date.now() + 24 * 60 * 60 * 1000).setUTCHours(10, 0, 0, 0)).toISOString();
}

function chooseService() {
  const services = get(`/v1/venues/${salon}`, '/v1/venues/{slug}').services;
  const wanted = services.filter((service) => service.id === __ENV.SERVICE_ID);
  if (wanted.length > 0) return wanted[0];
  const [first] = services.filter((service) => (service.capacity || 1) === 1 && service.resource_ids.length > 0);
  if (!first || __ENV.SERVICE_ID) throw new Error(`the salon "${salon}" has no such service for one`);
  return first;
}

export function setup() {
  const service = chooseService();
  const staff = __ENV.STAFF_ID || service.resource_ids[0];
  const start = __ENV.START_TIME || tomorrowAtTen();
  const to = new Date(Date.parse(start) + 1000).toISOString();
  const from = new Date(Date.parse(start)).toISOString();
  const query = `venue=${salon}&service_id=${service.id}&resource_id=${staff}&from=${from}&to=${to}`;
  const [slot] = get(`/v1/slots?${query}`, '/v1/slots').data;
  if (!slot) throw new Error(`no appointment of "${service.name}" begins at ${start}`);
  if (slot.available !== 1) throw new Error(`${start} is ${slot.status} already: cancel that, or set START_TIME`);
  return {
    service: service.id, staff, start,
    slots: [{ id: slot.id, capacity: slot.capacity }],
    race_at_ms: Date.now() + 1500, // time for 100 clients to connect on a slow machine
  };
}

function isConflict(response, data) {
  const answer = bodyOf(response);
  const offers = answer.alternatives;
  return holdsTrue(response, {
    'status 400': response.status === 400,
    'code TIME_CONFLICT': (answer.error || {}).code === 'TIME_CONFLICT' && Boolean(answer.error.message),
    'alternatives of this service': Array.isArray(offers) && offers.length <= 5
      && offers.every((offer) => offer.slotId !== data.slots[0].id && offer.staffId && offer.startTime && offer.endTime),
  });
}

export default guarded((data) => {
  lineUp(data);
  const guest = { firstName: 'Guest', lastName: `Number ${__VU}`, email: `guest-${__VU}@example.com` };
  const body = Object.assign({ serviceId: data.service, staffId: data.staff, startTime: data.start }, guest);
  const path = `/api/v1/public/${salon}/book`;
  const response = call('POST', path, body, { name: '/api/v1/public/{slug}/book', statuses: [201, 400] });
  letAllBeAnswered(data);
  if (response.status !== 201) {
    if (isConflict(response, data)) {
      conflicts.add(1);
      refusalMs.add(response.timings.duration);
    }
    return;
  }
  promised(1);
  const made = bodyOf(response);
  const sound = holdsTrue(response, {
    'id and manageToken': Boolean(made.id && made.manageToken),
    'status confirmed': made.status === 'confirmed',
    'the person and the time': made.staffId === data.staff && Date.parse(made.startTime) === Date.parse(data.start),
  });
  if (!sound) return;
  successes.add(1);
  bookingMs.add(response.timings.duration);
});

export function teardown(data) {
  const { booked, bookings } = readBack(data.slots[0]);
  if (booked !== 1) mismatch(`${booked} places are booked, not 1`);
  bookings.forEach(cancel);
  if (readBack(data.slots[0]).booked !== 0) mismatch('the time is not free again after the cancellation');
  finishReport();
}

export const handleSummary = summary(`One appointment: ${iterations} requests of ${vus} clients for one time`, options);
