// What every client of k6 sends where there is no wrk: the same requests as post.lua, at a higher price. k6 takes more
// CPU than the service that it measures, so its figures compare with each other only.

import http from 'k6/http';
import exec from 'k6/execution';
import { Counter } from 'k6/metrics';
import { SharedArray } from 'k6/data';

const { URL, BODY, SLOTS, KEYS, CONNECTIONS, SECONDS } = __ENV;
const slots = new SharedArray('slots', () => open(SLOTS).trim().split('\n'));
const [before, after] = BODY.split('%s');
const not2xx = new Counter('not_2xx');
const broken = new Counter('broken');

export const options = {
  vus: Number(CONNECTIONS),
  duration: `${SECONDS}s`,
  gracefulStop: '10s',
  discardResponseBodies: true,
  summaryTrendStats: ['med', 'p(99)'],
};

export default function () {
  const headers = { 'Content-Type': 'application/json' };
  if (KEYS) headers['Idempotency-Key'] = `${KEYS}${exec.vu.idInTest}-${exec.vu.iterationInInstance}`;
  const slot = slots[Math.floor(Math.random() * slots.length)];
  const response = http.post(URL, before + slot + after, { headers, timeout: '10s' });
  if (response.status === 0) broken.add(1);
  else if (response.status >= 300) not2xx.add(1);
}

export function handleSummary({ metrics }) {
  const of = (name) => (metrics[name] ? metrics[name].values : { count: 0 });
  const told = ['http_reqs', 'http_req_duration', 'not_2xx', 'broken'].map((name) => [name, of(name)]);
  return { stdout: `${JSON.stringify(Object.fromEntries(told))}\n` };
}
