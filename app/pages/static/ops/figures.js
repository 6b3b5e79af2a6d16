// The figures that the console plots, each made of what /metrics says. docs/grafana/holdfast.json shows the same.
import { increase, quantile, total } from "./metrics.js";

const OUTCOMES = "holdfast_outcomes_total";
const SECONDS = "holdfast_http_request_seconds";
const GATHERED = "holdfast_gathered_calls";

/** Words for a refusal that Postgres decided; layer 1 says `refused_early`. */
const REFUSED_LATE = ["full", "occupied", "closed", "past", "refused"];

/**
 * @typedef {import("./metrics.js").Reading} Reading
 * @typedef {{label: string, value: (before: Reading, now: Reading) => number | null, total: (now: Reading) => number | null}} Series
 * @typedef {{id: string, title: string, about: string, unit: string, counted?: string, series: Series[]}} Figure: `counted` says of what the totals are, where the unit does not
 */

/** So many a second. */
function rate(label, selector) {
  return {
    label,
    value: (before, now) => increase(before, now, selector) / (now.at - before.at),
    total: (now) => total(now, selector),
  };
}

/** So many as there are. */
function level(label, selector) {
  return { label, value: (_, now) => total(now, selector), total: () => null };
}

/** So many calls in one round trip. */
function together(label, store) {
  return {
    label,
    value: (before, now) => {
      const trips = increase(before, now, { name: `${GATHERED}_count`, store });
      return trips ? increase(before, now, { name: `${GATHERED}_sum`, store }) / trips : null;
    },
    total: (now) => total(now, { name: `${GATHERED}_sum`, store }),
  };
}

/** Milliseconds within which so large a part of the requests was answered. */
function latency(label, q, labels) {
  return {
    label,
    value: (before, now) => {
      const seconds = quantile(before, now, { name: SECONDS, ...labels }, q);
      return seconds === null ? null : 1000 * seconds;
    },
    total: (now) => total(now, { name: `${SECONDS}_count`, ...labels }),
  };
}

function latencies(labels) {
  return [latency("p50", 0.5, labels), latency("p95", 0.95, labels), latency("p99", 0.99, labels)];
}

/** @type {Figure[]} */
export const FIGURES = [
  {
    id: "sales",
    title: "Bookings and holds",
    about: "What customers got.",
    unit: "per second",
    series: [
      rate("Bookings", { name: OUTCOMES, operation: ["book", "book_several"], outcome: "booked" }),
      rate("Holds", { name: OUTCOMES, operation: ["hold", "hold_several"], outcome: ["held", "degraded"] }),
    ],
  },
  {
    id: "conflicts",
    title: "Conflicts",
    about: "Refusals because the place was taken: by Redis at once, or by Postgres.",
    unit: "per second",
    series: [
      rate("By Redis", { name: OUTCOMES, outcome: "refused_early" }),
      rate("By Postgres", { name: OUTCOMES, outcome: REFUSED_LATE }),
    ],
  },
  {
    id: "booking-time",
    title: "Time of a booking",
    about: "POST /v1/bookings, refusals included.",
    unit: "ms",
    counted: "Requests",
    series: latencies({ method: "POST", route: "/v1/bookings" }),
  },
  {
    id: "hold-time",
    title: "Time of a hold",
    about: "POST /v1/holds, refusals included.",
    unit: "ms",
    counted: "Requests",
    series: latencies({ method: "POST", route: "/v1/holds" }),
  },
  {
    id: "gathered",
    title: "Calls that went together",
    about: "Calls of a store in one round trip: it grows with the load.",
    unit: "calls",
    counted: "Calls",
    series: [together("Redis", "redis"), together("Postgres", "postgres")],
  },
  {
    id: "streams",
    title: "Live streams",
    about: "Pages that follow along (GET /v1/live).",
    unit: "open",
    series: [level("Streams", { name: "holdfast_live_streams" })],
  },
  {
    id: "doubts",
    title: "Unexpected",
    about: "Conflicts that Redis had let through, and commits whose answer was lost.",
    unit: "per second",
    series: [
      rate("Backstop conflicts", { name: "holdfast_backstop_conflicts_total" }),
      rate("Commits in doubt", { name: "holdfast_in_doubt_total" }),
    ],
  },
  {
    id: "errors",
    title: "Answers of 5xx",
    about: "503: busy or without a store, try again. Anything else is a bug or Stripe.",
    unit: "per second",
    series: [
      rate("Try again (503)", { name: `${SECONDS}_count`, status: "503" }),
      rate("Others", { name: `${SECONDS}_count`, status: (status) => status.startsWith("5") && status !== "503" }),
    ],
  },
];

/** What the state of the service is told from, beside /readyz. */
export const STATE = {
  degraded: { name: "holdfast_degraded" },
  drift: { name: "holdfast_reconcile_drift_total" },
  money: { name: "holdfast_money_mismatches" },
};
