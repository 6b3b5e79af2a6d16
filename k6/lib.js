// What the load tests share: settings, set-up as an operator, the calls of a client with the checks on their
// answers, the read-back, and the summary. The scripts beside this file only say who does what, and what must hold.
//
// A run passes only if its thresholds do (k6 exits 99 otherwise), so everything that matters ends in a counter:
//   - an answer that is neither a booking nor an honest refusal is a `booking_errors`, and so is an exception in an
//     iteration, which k6 by itself would log and forget;
//   - teardown cannot read counters but it can add to them: clients add the places they were promised to
//     `places_unaccounted`, the read-back subtracts the places the operator sees, and what is left must be 0;
//   - a read-back that did not happen must not look like one that found nothing: `booking_readbacks` counts them.
// Settings: BASE_URL (http://127.0.0.1:8000), OPERATOR_KEY (required), SUMMARY_JSON (a path, optional).

import http from 'k6/http';
import { sleep } from 'k6';
import exec from 'k6/execution';
import { Counter, Trend } from 'k6/metrics';

const baseUrl = (__ENV.BASE_URL || 'http://127.0.0.1:8000').replace(/\/+$/, '');
const live = ['held', 'pending_payment', 'confirmed'];
const minute = 60 * 1000;

// A refusal is an answer, not a failure: only other statuses end up in http_req_failed.
http.setResponseCallback(http.expectedStatuses(201, 409));

const counters = [];
export function counter(name) {
  counters.push(name);
  return new Counter(name);
}

export const successes = counter('booking_successes');
export const conflicts = counter('booking_conflicts');
const errors = counter('booking_errors');
const readbacks = counter('booking_readbacks');
const mismatches = counter('booking_readback_mismatches');
const unaccounted = counter('places_unaccounted');
export const bookingMs = new Trend('booking_ms', true);
export const refusalMs = new Trend('refusal_ms', true);

// What every script demands. Times are reported and not judged: machines differ, and are shared.
export function thresholds(slots, more) {
  return Object.assign(
    {
      booking_errors: ['count==0'],
      booking_readbacks: [`count==${slots}`],
      booking_readback_mismatches: ['count==0'],
      places_unaccounted: ['count==0'],
      http_req_failed: ['rate==0'],
    },
    more,
  );
}

export const trendStats = ['count', 'med', 'p(95)', 'max'];

export function positiveInteger(name, fallback) {
  const text = __ENV[name] || String(fallback);
  if (!/^[1-9][0-9]*$/.test(text)) throw new Error(`${name} must be a positive whole number, not "${text}"`);
  return Number(text);
}

export function randomInteger(from, to) {
  return from + Math.floor(Math.random() * (to - from + 1));
}

// ---- counting what went wrong

let logged = false;
function report(kind, what) {
  kind.add(1);
  if (!logged) console.error(what); // the first of each client is enough to see why
  logged = true;
}

export function error(what) {
  report(errors, what);
}

export function mismatch(what) {
  logged = false; // there are few, and each says something else
  report(mismatches, `read-back: ${what}`);
}

// The body of an iteration: k6 does not fail a run for an exception in one, we do.
export function guarded(iteration) {
  return (data) => {
    try {
      iteration(data);
    } catch (exception) {
      error(`exception: ${exception.stack || exception}`);
    }
  };
}

// ---- calls

// `name` groups addresses that differ only in an id; `statuses` replaces the default 201 and 409.
export function call(method, path, body, { headers = {}, name = path, statuses = null } = {}) {
  const sent = Object.assign({ 'Content-Type': 'application/json' }, headers);
  const params = { headers: sent, tags: { name }, timeout: '10s' };
  if (statuses) params.responseCallback = http.expectedStatuses(...statuses);
  return http.request(method, baseUrl + path, body === null ? null : JSON.stringify(body), params);
}

export function bodyOf(response) {
  try {
    return response.json() || {};
  } catch (_) {
    return {}; // cut off, or not JSON: the checks on its fields will say so
  }
}

function told(response) {
  const answer = response.status === 0 ? `no answer (${response.error})` : `${response.status} ${response.body}`;
  return `${response.request.method} ${response.request.url}: ${answer}`.slice(0, 600);
}

// Checks named facts about an answer; false, and one error, when any of them does not hold.
export function holdsTrue(response, facts) {
  const broken = Object.keys(facts).filter((fact) => !facts[fact]);
  if (broken.length > 0) error(`not as promised (${broken.join(', ')}): ${told(response)}`);
  return broken.length === 0;
}

const isText = (value) => typeof value === 'string' && value.length > 0;
const isId = (value) => /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/.test(value);
const isTime = (value) => /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z$/.test(value);
const isCount = (value) => Number.isInteger(value) && value >= 0;

// A 409 must say, truthfully and in full, that the slot has no room; anything less is not a refusal but an error.
// These tests neither close slots nor use past ones, so the only honest reasons are `held` and `booked`.
export function isRefusal(response, slotId, quantity) {
  const problem = bodyOf(response);
  if (response.status !== 409) return holdsTrue(response, { 'neither 201 nor 409': false });
  return holdsTrue(response, {
    'status in the body': problem.status === 409,
    'problem+json': (response.headers['Content-Type'] || '').startsWith('application/problem+json'),
    'code slot_unavailable': problem.code === 'slot_unavailable',
    'type, title and request_id': isText(problem.type) && isText(problem.title) && isText(problem.request_id),
    detail: problem.detail === `Slot no longer available for ${quantity} guest${quantity === 1 ? '' : 's'}`,
    reason: ['held', 'booked'].includes(problem.reason),
    requested: problem.requested === quantity,
    'fewer available than requested': isCount(problem.available) && problem.available < quantity,
    may_free_at: problem.may_free_at === null || isTime(problem.may_free_at),
    'alternatives with room': Array.isArray(problem.alternatives) && problem.alternatives.length <= 5
      && problem.alternatives.every((slot) => isId(slot.id) && slot.id !== slotId && slot.available >= quantity),
  });
}

// Notes places that a client was promised, which the read-back must find.
export function promised(places) {
  unaccounted.add(places);
}

function customer() {
  const client = exec.vu.idInTest; // 0 in teardown
  return { name: `Guest ${client}`, email: `guest-${client}@example.com` };
}

// Books `quantity` places directly or, with a hold, what it holds. Returns {booking} or {problem}; on an error neither.
// `answered` is called before the answer is judged.
export function book(slot, quantity, { hold = null, key = null, answered = () => {} } = {}) {
  const what = hold ? { hold_token: hold.token } : { slot_id: slot.id, quantity };
  const body = Object.assign(what, { customer: customer() });
  const headers = key ? { 'Idempotency-Key': key } : {};
  const response = call('POST', '/v1/bookings', body, { headers });
  answered();
  if (response.status === 201) {
    const booking = bodyOf(response);
    unaccounted.add(quantity); // promised to this client, however odd the answer is otherwise
    const sound = holdsTrue(response, {
      id: isId(booking.id),
      Location: (response.headers.Location || '').endsWith(`/v1/bookings/${booking.id}`),
      slot_id: booking.slot_id === slot.id,
      quantity: booking.quantity === quantity,
      'status confirmed': booking.status === 'confirmed' && isTime(booking.confirmed_at),
      manage_token: isText(booking.manage_token),
      available_count: isCount(booking.available_count) && booking.available_count <= slot.capacity - quantity,
      'not a replay': !response.headers['Idempotency-Replayed'],
    });
    if (!sound) return {};
    successes.add(1);
    bookingMs.add(response.timings.duration);
    return { booking, body, headers };
  }
  // A live hold is a promise: being refused what one holds is an error, however well the refusal is worded.
  if (hold) holdsTrue(response, { 'a held place cannot be refused': false });
  else if (isRefusal(response, slot.id, quantity)) {
    conflicts.add(1);
    refusalMs.add(response.timings.duration);
    return { problem: bodyOf(response) };
  }
  return {};
}

// Repeats a booking under the same Idempotency-Key: the first answer again, and no second booking.
export function replay({ booking, body, headers }) {
  const response = call('POST', '/v1/bookings', body, { headers });
  return holdsTrue(response, {
    'status 201': response.status === 201,
    'Idempotency-Replayed: true': response.headers['Idempotency-Replayed'] === 'true',
    'the same booking': bodyOf(response).id === booking.id && bodyOf(response).quantity === booking.quantity,
  });
}

export function readBooking(booking) {
  const response = call('GET', `/v1/bookings/${booking.id}`, null, {
    headers: { 'Manage-Token': booking.manage_token }, name: '/v1/bookings/{id}', statuses: [200],
  });
  const read = bodyOf(response);
  return holdsTrue(response, {
    'status 200': response.status === 200,
    'the same booking': read.id === booking.id && read.quantity === booking.quantity,
    'on the same slot': read.slot_id === booking.slot_id,
    'still confirmed': read.status === 'confirmed',
    'no manage_token': !read.manage_token,
  });
}

// With the booking's own token or, where there is none, as the operator.
export function cancel(booking) {
  const headers = booking.manage_token ? { 'Manage-Token': booking.manage_token } : operator();
  const response = call('POST', `/v1/bookings/${booking.id}/cancel`, null, {
    headers, name: '/v1/bookings/{id}/cancel', statuses: [200],
  });
  if (response.status === 200) unaccounted.add(-booking.quantity);
  const cancelled = bodyOf(response);
  return holdsTrue(response, {
    'status 200': response.status === 200,
    'the same booking': cancelled.id === booking.id,
    cancelled: cancelled.status === 'cancelled' && isTime(cancelled.cancelled_at),
    available_count: isCount(cancelled.available_count),
  });
}

// Returns the hold, or null when it was honestly refused or an error.
export function take(slot, quantity) {
  const response = call('POST', '/v1/holds', { slot_id: slot.id, quantity });
  const hold = bodyOf(response);
  if (response.status !== 201) {
    if (hold.code !== 'hold_limit') isRefusal(response, slot.id, quantity);
    return null;
  }
  const sound = holdsTrue(response, {
    'id and token': isId(hold.id) && isText(hold.token),
    Location: (response.headers.Location || '').endsWith(`/v1/holds/${hold.id}`),
    'slot_id and quantity': hold.slot_id === slot.id && hold.quantity === quantity,
    'status active': hold.status === 'active',
    'time left': hold.ttl_seconds > 0 && Date.parse(hold.expires_at) > Date.parse(hold.server_time),
  });
  return sound ? hold : null;
}

export function release(hold) {
  const response = call('DELETE', `/v1/holds/${hold.id}`, null, {
    headers: { 'Hold-Token': hold.token }, name: '/v1/holds/{id}', statuses: [204],
  });
  return holdsTrue(response, { 'status 204': response.status === 204 });
}

// All slots of the venue, as a client sees them; null on an error.
export function browse(data) {
  const { venue, from, to } = data;
  const path = `/v1/slots?venue=${venue}&from=${from}&to=${to}&limit=${data.slots.length}`;
  const response = call('GET', path, null, { name: '/v1/slots', statuses: [200] });
  const slots = bodyOf(response).data;
  const inRange = (slot) => isCount(slot.available_count) && isCount(slot.available)
    && slot.available <= slot.available_count && slot.available_count <= slot.capacity;
  const sound = holdsTrue(response, {
    'status 200': response.status === 200,
    'every slot': Array.isArray(slots) && slots.length === data.slots.length,
    'in order': Array.isArray(slots) && slots.every((slot, i) => i === 0 || slots[i - 1].starts_at <= slot.starts_at),
    'counts in range': Array.isArray(slots) && slots.every(inRange),
  });
  return sound ? slots : null;
}

// ---- set-up and read-back, as the operator

function operator() {
  return { Authorization: `Bearer ${__ENV.OPERATOR_KEY}` };
}

function operate(method, path, body, status, name = path) {
  const response = call(method, path, body, { headers: operator(), name, statuses: [status] });
  if (response.status !== status) throw new Error(told(response));
  return bodyOf(response);
}

const rfc3339 = (ms) => new Date(ms).toISOString().replace('.000Z', 'Z');

// A venue of this run's own, with slots of the given capacities from tomorrow 10:00 UTC on: a tour's, one after the
// other, or a person's, who may be wanted for several things at once. It stays behind afterwards: an operator may want
// to look at it.
export function prepare(label, capacities, { kind = 'event', minutes = 15, every = minutes } = {}) {
  if (!__ENV.OPERATOR_KEY) throw new Error('OPERATOR_KEY is not set: the operator key of the service under test');
  const venue = `k6-${label}-${Date.now().toString(36)}-${randomInteger(0, 1e6).toString(36)}`;
  operate('POST', '/v1/venues', { slug: venue, name: `Load test ${label}`, timezone: 'UTC' }, 201);
  const name = kind === 'event' ? 'Harbour tour' : 'Ada';
  const resource = operate('POST', '/v1/resources', { venue, name, kind }, 201);
  const first = new Date(Date.now() + 24 * 60 * minute).setUTCHours(10, 0, 0, 0);
  const wanted = capacities.map((capacity, i) => ({
    venue, resource_id: resource.id, capacity,
    starts_at: rfc3339(first + i * every * minute), ends_at: rfc3339(first + (i * every + minutes) * minute),
  }));
  const made = operate('POST', '/v1/slots', { slots: wanted }, 201).data;
  if (made.length !== wanted.length) throw new Error(`asked for ${wanted.length} slots, got ${made.length}`);
  return {
    venue,
    slots: made.map(({ id, capacity, starts_at, ends_at }) => ({ id, capacity, starts_at, ends_at })),
    from: rfc3339(first),
    to: rfc3339(first + capacities.length * every * minute),
    race_at_ms: Date.now() + 1500, // time for 100 clients to connect on a slow machine
  };
}

// Opens this client's connection, then waits for the common start: rivals that trickle in do not race.
export function lineUp(data) {
  if (Date.now() >= data.race_at_ms) return; // a later round of the same client
  const response = call('GET', `/v1/slots/${data.slots[0].id}`, null, { name: '/v1/slots/{id}', statuses: [200] });
  holdsTrue(response, { 'status 200': response.status === 200 });
  sleep(Math.max(0, data.race_at_ms - Date.now()) / 1000);
}

// Waits until the others have their answers as well. Where the clients share the processors of the service, the judging
// of the first answers, in JavaScript, would else be measured as the service's slowness with the last ones.
export function letAllBeAnswered(data) {
  sleep(Math.max(0, data.race_at_ms + 1000 - Date.now()) / 1000);
}

// Reads a slot back from the two places an operator would look, compares them, and takes the places booked since the
// last read-back off the account of promised places. Returns {available_count, booked, bookings}, the live ones.
export function readBack(slot) {
  const { available_count } = operate('GET', `/v1/slots/${slot.id}`, null, 200, '/v1/slots/{id}');
  const listed = [];
  let cursor = '';
  do {
    const page = operate('GET', `/v1/bookings?slot_id=${slot.id}${cursor}`, null, 200, '/v1/bookings');
    listed.push(...page.data);
    cursor = page.next_cursor ? `&cursor=${encodeURIComponent(page.next_cursor)}` : '';
  } while (cursor);
  const bookings = listed.filter(({ status }) => live.includes(status));
  const booked = bookings.reduce((sum, { quantity }) => sum + quantity, 0);
  const counts = `slot ${slot.id}: capacity ${slot.capacity}, available_count ${available_count}, booked ${booked}`;
  if (!isCount(available_count)) mismatch(`${counts}: not a count`);
  if (booked > slot.capacity) mismatch(`${counts}: OVERSOLD`);
  if (booked + available_count !== slot.capacity) mismatch(`${counts}: they do not add up`);
  if (new Set(listed.map(({ id }) => id)).size !== listed.length) mismatch(`${counts}: a booking is listed twice`);
  unaccounted.add((slot.accounted || 0) - booked);
  slot.accounted = booked;
  readbacks.add(1);
  return { available_count, booked, bookings };
}

// The charts of the HTML report end with the last whole second: lets a short race be part of one.
export function finishReport() {
  if (__ENV.K6_WEB_DASHBOARD) sleep(1.2);
}

// ---- summary

const label = (name) => name.replace(/_/g, ' ').replace(/ ms$/, '').padEnd(30);
const ms = (value) => `${value.toFixed(1)} ms`.padStart(11);

// For people on standard output; for programs, everything k6 measured plus the verdict, at SUMMARY_JSON.
export function summary(title, options) {
  return (data) => {
    const metrics = data.metrics;
    const judged = Object.keys(options.thresholds);
    const rows = counters.concat(judged.filter((name) => !counters.includes(name))).filter((name) => metrics[name]);
    const lines = ['', title, ''];
    let passed = true;
    for (const name of rows) {
      const { values, thresholds: verdicts = {} } = metrics[name];
      const value = values.count === undefined ? `${(values.rate * 100).toFixed(2)}%` : values.count;
      const rules = Object.keys(verdicts);
      const ok = rules.every((rule) => verdicts[rule].ok);
      passed = passed && ok;
      const verdict = rules.length > 0 ? `   ${ok ? '✓' : '✗ WANTED'} ${rules.join(', ')}` : '';
      lines.push(`  ${label(name)}${String(value).padStart(7)}${verdict}`);
    }
    lines.push('');
    for (const name of ['booking_ms', 'refusal_ms']) {
      const times = metrics[name] && metrics[name].values;
      if (!times || !times.count) continue;
      lines.push(`  ${label(name)}p50${ms(times.med)}   p95${ms(times['p(95)'])}   max${ms(times.max)}`);
    }
    lines.push('', `  ${passed ? 'PASSED' : 'FAILED'} in ${(data.state.testRunDurationMs / 1000).toFixed(1)} s`, '', '');
    const outputs = { stdout: lines.join('\n') };
    if (__ENV.SUMMARY_JSON) {
      const report = { title, passed, finished_at: new Date().toISOString(), metrics };
      outputs[__ENV.SUMMARY_JSON] = `${JSON.stringify(report, null, 2)}\n`;
    }
    return outputs;
  };
}
