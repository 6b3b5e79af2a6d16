// The owner's calendar: one venue, some days, and everything that changes in them a moment later.
import { addDays, dayOf, instantOf, wall } from "../zone.js";
import { Refused, all, call } from "../operator/call.js";
import { choice } from "../operator/dom.js";
import { openBlockForm } from "./block.js";
import { addSeconds, dateRange, longDate, monday, offsetText, time } from "./clock.js";
import { openDetails } from "./details.js";
import { buttonOf, content, events } from "./entries.js";
import { follow } from "./follow.js";
import { move, slotsOf } from "./move.js";
import { toast } from "./toast.js";

const VIEWS = { people: "resourceTimeGridDay", day: "timeGridDay", week: "timeGridWeek", list: "listDay" };
/** Hours that are shown also when nothing happens in them. */
const [OPENS, CLOSES] = ["08:00", "18:00"];
/** However much changes, the days are read at most so often. */
const PACE_MS = 400;
const DAY_MS = 86_400_000;

const $ = (id) => document.getElementById(id);
const narrow = matchMedia("(max-width: 40rem)");
const state = { venue: null, venues: [], view: null, date: null, who: "", entries: [] };
let calendar, stopFollowing, drawn, dragging = false;
const page = { get venue() { return state.venue; }, get zone() { return state.venue.timezone; }, reload: () => soon() };

// -- what is shown ----------------------------------------------------------------------------------------------------

function range() {
  const first = state.view === "week" ? monday(state.date) : state.date;
  const days = state.view === "week" ? 7 : 1;
  return { first, last: addDays(first, days - 1), from: instantOf(`${first}T00:00:00`, page.zone), to: instantOf(`${addDays(first, days)}T00:00:00`, page.zone) };
}

async function load() {
  const { from, to } = range();
  const venue = state.venue;
  const asked = new URLSearchParams({ venue: venue.slug, from, to });
  const read = await call("GET", `/v1/calendar?${asked}`);
  if (venue !== state.venue || from !== range().from || to !== range().to) return; // somebody has gone on meanwhile
  state.entries = read.data;
  $("warning").hidden = read.complete && !read.degraded;
  $("warning").textContent = read.complete ? "Redis is away: holds may be missing here." : "There is more than can be shown.";
  draw();
}

function draw() {
  if (dragging) return; // it is drawn when the entry was dropped
  const shown = events(state.entries, { zone: page.zone, resources: state.venue.resources, who: state.who, brief: state.view === "week" && !state.who });
  const people = state.venue.resources.filter(({ id }) => !state.who || id === state.who).map(({ id, name }) => ({ id, title: name }));
  const next = JSON.stringify([shown, people]);
  if (next === drawn) return; // or the focus would be lost for nothing
  drawn = next;
  const focused = document.activeElement?.dataset.entry;
  calendar.setOption("resources", people);
  calendar.setOption("events", shown);
  if (focused) setTimeout(() => document.activeElement === document.body && buttonOf(focused)?.focus());
}

/** The grid calls itself a table, and a list, which it is not: it holds buttons and no cells. What names them stays. */
const TABLE = ["table", "rowgroup", "row", "rowheader", "columnheader", "cell", "list", "listitem"].map((role) => `[role=${role}]`).join();
const COUNTS = ["aria-colindex", "aria-colspan", "aria-rowindex", "aria-colcount", "aria-rowcount"];
function callNothingATable() {
  for (const each of $("calendar").querySelectorAll(TABLE)) each.removeAttribute("role");
  for (const count of COUNTS) for (const each of $("calendar").querySelectorAll(`[${count}]`)) each.removeAttribute(count);
}

/** Read the days again: at once, and afterwards no more often than the pace allows. */
let reading = false, again = false;
async function soon() {
  if (reading) {
    again = true;
    return;
  }
  reading = true;
  const pause = new Promise((resolve) => setTimeout(resolve, PACE_MS));
  try {
    await load();
    $("trouble").hidden = true;
  } catch (error) {
    tellTrouble(error, "The service cannot be reached. Trying again…");
  }
  await pause;
  reading = false;
  if (again) {
    again = false;
    soon();
  }
}

function go(changes) {
  Object.assign(state, changes);
  const { first, last } = range();
  $("calendar-title").textContent = state.view === "week" ? dateRange(first, last) : longDate(first);
  document.title = `${$("calendar-title").textContent} · ${state.venue.name}`;
  $("date").value = state.date;
  for (const button of document.querySelectorAll("[data-view]")) button.setAttribute("aria-pressed", String(button.dataset.view === state.view));
  history.replaceState(null, "", `?${new URLSearchParams({ venue: state.venue.slug, view: state.view, date: state.date })}`);
  drawn = undefined;
  state.entries = [];
  calendar.setOption("view", VIEWS[state.view]);
  calendar.setOption("date", `${first}T00:00:00`);
  draw();
  soon();
  if (state.view === "week") requestAnimationFrame(showDay);
}

/** Of a week that has no room for all its days, show the chosen one. */
function showDay() {
  const days = (Date.parse(state.date) - Date.parse(range().first)) / DAY_MS;
  const head = $("calendar").querySelectorAll(".ec-header .ec-col-head")[days];
  if (head) head.closest(".ec-main").scrollLeft = head.offsetLeft - head.closest(".ec-header").querySelector(".ec-sidebar").offsetWidth;
}

// -- what is done -----------------------------------------------------------------------------------------------------

async function dropped({ event, delta, newResource, revert }) {
  const entry = event.extendedProps;
  const resourceId = newResource?.id ?? entry.resource.id;
  const to = addSeconds(wall(entry.starts_at, page.zone), (delta.days ?? 0) * 86_400 + (delta.seconds ?? 0));
  const back = (text, actions = []) => {
    revert();
    toast(text, { bad: true, actions });
  };
  try {
    const slots = await slotsOf(entry, resourceId, to.slice(0, 10), page.zone);
    const wanted = instantOf(to, page.zone);
    const slot = slots.find((each) => Date.parse(each.starts_at) === Date.parse(wanted));
    if (!slot) {
      back(`${entry.service?.name ?? entry.resource.name} cannot begin at ${time(wanted, page.zone)} there.`, nearest(slots, wanted, entry));
      return;
    }
    const moved = await move(entry, slot.id);
    const undo = () => moveTo({ starts_at: entry.starts_at, id: entry.slot_id, resource: entry.resource }, { ...entry, version: moved.version });
    toast(movedText(slot, entry), { actions: [["Undo", undo]] });
  } catch (error) {
    back(error.message, (error.problem?.alternatives ?? []).slice(0, 3).map((slot) => offer(slot, entry)));
  }
  drawn = undefined; // the entry stands where it was dropped, whatever is told of it
  soon();
}

function nearest(slots, wanted, entry) {
  const far = (slot) => Math.abs(Date.parse(slot.starts_at) - Date.parse(wanted));
  return slots.filter((slot) => slot.available >= entry.quantity).sort((a, b) => far(a) - far(b)).slice(0, 3).map((slot) => offer(slot, entry));
}

function offer(slot, entry) {
  const name = `${time(slot.starts_at, page.zone)} ${slot.resource.id === entry.resource.id ? "" : slot.resource.name}`.trim();
  return [name, () => moveTo(slot, entry)];
}

function movedText(slot, entry) {
  const person = slot.resource.id === entry.resource.id ? "" : ` with ${slot.resource.name}`;
  return `${entry.customer} was moved to ${time(slot.starts_at, page.zone)}${person}, and is told by e-mail.`;
}

async function moveTo(slot, entry) {
  try {
    await move(entry, slot.id);
    toast(movedText(slot, entry));
  } catch (error) {
    toast(error.message, { bad: true });
  }
  soon();
}

function blockForm(given = {}) {
  const from = given.from ?? nextHour();
  openBlockForm({ resourceId: given.resourceId ?? state.who, from, to: given.to ?? addSeconds(from, 3600) }, page);
}

function nextHour() {
  const now = wall(Date.now(), page.zone);
  return state.date === now.slice(0, 10) ? `${addSeconds(now, 3600).slice(0, 13)}:00:00` : `${state.date}T12:00:00`;
}

/** What the day begins with on the screen: of today what is now, with the hour before it. */
function firstHour() {
  const now = wall(Date.now(), page.zone);
  return state.date === now.slice(0, 10) ? addSeconds(now, -3600).slice(11, 16) : OPENS;
}

// -- the page ---------------------------------------------------------------------------------------------------------

function build() {
  new MutationObserver(callNothingATable).observe($("calendar"), { subtree: true, childList: true, attributeFilter: ["role", ...COUNTS] });
  calendar = EventCalendar.create($("calendar"), {
    view: VIEWS[state.view],
    date: `${state.date}T00:00:00`,
    locale: "en-GB",
    firstDay: 1,
    headerToolbar: { start: "", center: "", end: "" },
    allDaySlot: false,
    nowIndicator: true,
    timeZone: offsetText(page.zone), // for the line of now: all other times are the wall's
    slotDuration: "00:30",
    snapDuration: "00:05",
    scrollTime: firstHour(),
    slotMinTime: OPENS,
    slotMaxTime: CLOSES,
    flexibleSlotTimeLimits: { eventFilter: (event) => event.end - event.start < DAY_MS },
    slotEventOverlap: false,
    slotHeight: 36,
    displayEventEnd: false,
    views: {
      listDay: { displayEventEnd: true },
      // Where there is no room for all of them they are scrolled, under the days and beside the hours.
      timeGridWeek: { columnWidth: "minmax(7rem, 1fr)" },
      resourceTimeGridDay: { columnWidth: "minmax(7rem, 1fr)" },
    },
    slotLabelFormat: { hour: "2-digit", minute: "2-digit", hourCycle: "h23" },
    eventTimeFormat: { hour: "2-digit", minute: "2-digit", hourCycle: "h23" },
    dayHeaderFormat: { weekday: "short", day: "numeric" },
    listDayFormat: { weekday: "long", day: "numeric", month: "long" },
    listDaySideFormat: () => "",
    noEventsContent: "Nothing on this day.",
    eventContent: (info) => content(info, page.zone, (entry) => dragging || openDetails(entry, page)),
    eventDragStart: () => { dragging = true; },
    eventDragStop: () => setTimeout(() => { // after the click that ends it
      dragging = false;
      draw();
    }),
    eventDrop: dropped,
    selectable: true,
    select: ({ startStr, endStr, resource }) => {
      calendar.unselect();
      blockForm({ resourceId: resource?.id, from: startStr.slice(0, 19), to: endStr.slice(0, 19) });
    },
  });
}

/** Read a venue, and go over to it; false when another was chosen meanwhile. Until it is read, the last one stays. */
async function choose(slug) {
  const venue = await call("GET", `/v1/venues/${encodeURIComponent(slug)}`);
  if ($("venue").value !== slug) return false;
  stopFollowing?.();
  $("notes").replaceChildren(); // they are about the venue before
  state.venue = venue;
  $("zone").textContent = `Times in ${page.zone}`;
  const { resources } = state.venue;
  $("who").replaceChildren(...choice("", [["", "Everybody"], ...resources.map(({ id, name }) => [id, name])], "").children);
  $("who-choice").hidden = resources.length < 2;
  $("who").value = state.who = "";
  calendar?.setOption("timeZone", offsetText(page.zone));
  if (!calendar) build();
  stopFollowing = follow(slug, soon, (isLive) => {
    $("live").textContent = isLive ? "Live" : "Not live: read every few seconds";
    $("live").classList.toggle("off", !isLive);
  });
  return true;
}

async function chooseAnother(slug) {
  try {
    if (await choose(slug)) go({ date: dayOf(Date.now(), page.zone) });
  } catch (error) {
    if ($("venue").value !== slug) return; // and is read by now
    $("venue").value = state.venue.slug;
    tellTrouble(error, "The service cannot be reached. Choose again.");
  }
}

function tellTrouble(error, unreachable) {
  $("trouble").textContent = error instanceof Refused ? error.message : unreachable;
  $("trouble").hidden = false;
}

async function start() {
  const given = new URLSearchParams(location.search);
  state.venues = await all("/v1/venues?limit=100");
  $("loading").hidden = true;
  if (!state.venues.length) {
    $("nothing").hidden = false;
    return;
  }
  const slug = state.venues.find((venue) => venue.slug === given.get("venue"))?.slug ?? state.venues[0].slug;
  $("venue").replaceChildren(...choice("", state.venues.map((venue) => [venue.slug, venue.name]), slug).children);
  $("venue").value = slug;
  $("venue-choice").hidden = state.venues.length < 2;
  state.view = VIEWS[given.get("view")] ? given.get("view") : narrow.matches ? "list" : "people";
  const zone = state.venues.find((venue) => venue.slug === slug).timezone;
  state.date = /^\d{4}-\d\d-\d\d$/.test(given.get("date")) ? given.get("date") : dayOf(Date.now(), zone);
  await choose(slug);
  $("tools").hidden = false;
  go({});
}

const step = (days) => go({ date: addDays(state.date, state.view === "week" ? 7 * days : days) });
$("back").addEventListener("click", () => step(-1));
$("ahead").addEventListener("click", () => step(1));
$("today").addEventListener("click", () => go({ date: dayOf(Date.now(), page.zone) }));
$("date").addEventListener("change", (event) => event.target.value && go({ date: event.target.value }));
$("venue").addEventListener("change", (event) => chooseAnother(event.target.value));
$("who").addEventListener("change", (event) => go({ who: event.target.value }));
$("block").addEventListener("click", () => blockForm());
for (const button of document.querySelectorAll("[data-view]")) button.addEventListener("click", () => go({ view: button.dataset.view }));
document.addEventListener("visibilitychange", () => document.hidden || (state.venue && soon()));

start().catch((error) => {
  $("loading").hidden = true;
  tellTrouble(error, "The service cannot be reached. Load the page again.");
});
