// Calls of the service, from whatever page the widget stands on: no cookies, and patience where the service asks for it.

/** Where the service is: whence this module came. */
export const SERVICE = new URL("/", import.meta.url);

/** Fetch the month picker, when it is wanted. Here, for modules are joined (assets.py), and paths are from this folder. */
export const monthPicker = () => import("../vendor/cally/cally.js");

const TRY_MS = 15_000;
const FIRST_PAUSE_MS = 600;
const LONGEST_PAUSE_MS = 15_000;
/** What passes by itself: too many at once, a store away, a proxy without its service. */
const PASSING = new Set([429, 502, 503, 504]);

/** A refusal: `problem` is its RFC 9457 body; `passing` ones may be repeated, with the same Idempotency-Key. */
export class Refused extends Error {
  constructor(status, problem, retryAfter) {
    super(problem.detail || `HTTP ${status}`);
    this.status = status;
    this.problem = problem;
    this.passing = PASSING.has(status) && problem.code !== "payment_failed";
    this.retryAfter = retryAfter;
  }
}

/** The visitor gave a repeated call up. */
export class GivenUp extends Error {}

/**
 * Call once, and return the answer's JSON, or null.
 * `asking()` is told each time that it is asked. What is read, browsers keep and revalidate by its ETag themselves.
 * @throws {Refused} any status of 400 and more  @throws {TypeError|DOMException} the service cannot be reached
 */
export async function call(method, path, { body, headers = {}, keepalive = false, asking } = {}) {
  asking?.();
  const answer = await fetch(new URL(path, SERVICE), {
    method,
    headers: { ...(body === undefined ? {} : { "Content-Type": "application/json" }), ...headers },
    body: body === undefined ? undefined : JSON.stringify(body),
    credentials: "omit",
    keepalive,
    signal: AbortSignal.timeout(TRY_MS),
  });
  const json = await answer.json().catch(() => null);
  if (answer.ok) return json;
  throw new Refused(answer.status, json ?? {}, Number(answer.headers.get("Retry-After")) || 0);
}

/**
 * Call until there is an answer that means something, with growing pauses that differ from visitor to visitor.
 * `patience(attempt, refused)` is told before each pause (`refused` null: nobody answered), and returns a promise that is
 * rejected when the visitor gives up.
 * @throws {GivenUp}  @throws {Refused} whatever waiting does not change
 */
export async function persist(method, path, options, patience) {
  for (let attempt = 1; ; attempt++) {
    let pause = Math.min(LONGEST_PAUSE_MS, FIRST_PAUSE_MS * 2 ** (attempt - 1)) * (0.5 + Math.random());
    let refused = null;
    try {
      return await call(method, path, options);
    } catch (failure) {
      if (failure instanceof Refused) {
        if (!failure.passing) throw failure;
        refused = failure;
        pause = Math.max(pause, failure.retryAfter * 1000);
      }
    }
    await Promise.race([new Promise((resume) => setTimeout(resume, pause)), patience(attempt, refused)]);
  }
}
