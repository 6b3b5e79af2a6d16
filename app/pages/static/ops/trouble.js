// What did not end well by itself: jobs that failed, webhooks that nobody took, payments that a person must look at.
import { call } from "../operator/call.js";
import { el } from "../operator/dom.js";
import { money } from "../written.js";
import { act } from "./ask.js";
import { every } from "./every.js";
import { keep, say } from "./keep.js";
import { clock, count } from "./words.js";

const SECONDS = 5;
const MOST = 50;

/** What a job is there for. */
const TASKS = {
  apply_stripe_event: "Act on what Stripe told",
  look_payment: "Look at a payment",
  close_payment: "End a payment that nobody made",
  refund_payment: "Give money back",
  look_at_refunds: "See whether a refund failed later",
  deliver_webhook: "Send a webhook",
  tell_mirror: "Tell Redis of an offer",
  send_mail: "Send an e-mail",
};

panel("#failed-jobs", `/v1/jobs?status=failed&limit=${MOST}`, "No job has failed", (job, again) => ({
  what: TASKS[job.task] ?? job.task,
  why: `${job.error ?? "ended without a word"} · ${count(job.attempts, "attempt")}${job.failed_at ? ` · ${clock(job.failed_at)}` : ""}`,
  about: Object.entries(job.about).map(([name, value]) => `${name} ${value}`).join(", "),
  verb: "Retry",
  act: (button) => act(button, () => call("POST", `/v1/jobs/${job.id}/retry`), "The worker tries it again.").then(again),
}));

panel("#dead-webhooks", `/v1/webhook-deliveries?status=dead&limit=${MOST}`, "Every webhook was taken, or is still tried", (sent, again) => ({
  what: `${sent.type} to ${sent.venue}`,
  why: `${sent.error ?? `answered ${sent.answer_status}`} · ${count(sent.attempts, "attempt")} · ${clock(sent.created_at)}`,
  about: `delivery ${sent.id}`,
  verb: "Redeliver",
  act: (button) =>
    act(button, () => call("POST", `/v1/webhook-deliveries/${sent.id}/redeliver`), "It is sent again.").then(again),
}));

panel("#mismatched-payments", `/v1/payments?status=mismatched&limit=${MOST}`, "None was paid with another amount", payment);
panel("#failed-refunds", `/v1/payments?refund_status=failed&limit=${MOST}`, "No refund has failed", payment);
// A refund is due for seconds when all is well: only what was due at the look before is shown.
let dueBefore = new Set();
panel("#due-refunds", `/v1/payments?refund_status=due&limit=${MOST}`, "No refund is stuck", payment, (due) => {
  const stuck = due.filter(({ id }) => dueBefore.has(id));
  dueBefore = new Set(due.map(({ id }) => id));
  return stuck;
});

function payment(paid) {
  return {
    what: `${money("en-GB", paid.amount)}, ${paid.status}`,
    why: `refund ${paid.refund_status}${paid.refund_reason ? `: ${paid.refund_reason}` : ""} · ${clock(paid.created_at)}`,
    about: `payment ${paid.id}`,
  };
}

/** Follow a list of one kind. `told` says what a row shows, and what its button does if it has one. */
function panel(id, path, empty, told, choose = (data) => data) {
  const here = document.querySelector(id);
  const [list, summary] = [here.querySelector("ul"), here.querySelector("[data-summary]")];
  const again = every(SECONDS, read, (error) => error && say(summary, `Not known now: ${error.message}`));

  async function read() {
    const page = await call("GET", path);
    const data = choose(page.data);
    say(summary, data.length ? `${data.length}${page.next_cursor ? " and more" : ""}` : empty);
    here.classList.toggle("alarmed", data.length > 0);
    keep(list, data, key, (thing) => row(told(thing, again)));
  }
}

/** What failed once more is told anew. */
function key(thing) {
  return [thing.id, thing.failed_at, thing.attempts, thing.refund_status].join(" ");
}

function row({ what, why, about, verb, act: onAct }) {
  const button = verb && el("button", { type: "button", "aria-label": `${verb}: ${what}, ${about}` }, verb);
  button?.addEventListener("click", () => onAct(button));
  return el(
    "li", {},
    el("div", { class: "what" }, el("strong", {}, what), el("span", {}, why), el("code", { class: "quiet" }, about)),
    button ?? "",
  );
}
