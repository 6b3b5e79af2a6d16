// Calls of the service's API from the operators' pages, which a session's cookie signs in.

/** A refusal of the service: `problem` is its RFC 9457 body, or an empty object. */
export class Refused extends Error {
  constructor(status, problem) {
    super(problem.detail || problem.title || `The service answered ${status}`);
    this.status = status;
    this.problem = problem;
  }
}

/**
 * Call the API and return its JSON (null when there is none).
 * Signed out meanwhile, the page is loaded anew, which shows where to sign in.
 * @throws {Refused} any status of 400 and more  @throws {TypeError} the service cannot be reached
 */
export async function call(method, path, body, headers = {}) {
  const answer = await fetch(path, {
    method,
    headers: { "Holdfast-Page": "1", ...(body === undefined ? {} : { "Content-Type": "application/json" }), ...headers },
    body: body === undefined ? undefined : JSON.stringify(body),
    signal: AbortSignal.timeout(15_000),
  });
  const json = await answer.json().catch(() => null);
  if (answer.ok) return json;
  if (answer.status === 401 && path !== "/session") location.reload();
  throw new Refused(answer.status, json ?? {});
}

/** Call for every page of a list, and return all its items; at most `limit` of them. */
export async function all(path, limit = 5_000) {
  const found = [];
  const url = new URL(path, location.origin);
  do {
    const page = await call("GET", url.pathname + url.search);
    found.push(...page.data);
    url.searchParams.set("cursor", page.next_cursor ?? "");
    if (!page.next_cursor) break;
  } while (found.length < limit);
  return found;
}

/** Sign out, and show where to sign in. */
export async function signOut() {
  await call("DELETE", "/session");
  location.reload();
}
