// How the widget looks. Every colour has its partner, and light or dark is whatever the page around it is.
// What pages may set are the custom properties `--holdfast-…`, and the parts.

const CSS = `
:host {
  display: block;
  container-type: inline-size;
  --accent: var(--holdfast-accent, light-dark(#0b6b61, #5fd3c4));
  --on-accent: var(--holdfast-on-accent, light-dark(#ffffff, #06251f));
  --accent-soft: var(--holdfast-accent-soft, light-dark(#dcf1ee, #123a36));
  --surface: var(--holdfast-surface, light-dark(#ffffff, #1b2128));
  --ink: var(--holdfast-ink, light-dark(#17202a, #e9edf1));
  --quiet: var(--holdfast-quiet, light-dark(#55606c, #a8b3be));
  --line: var(--holdfast-line, light-dark(#d5dae0, #37414c));
  --warn: var(--holdfast-warn, light-dark(#8a4b00, #f2c078));
  --warn-soft: var(--holdfast-warn-soft, light-dark(#fdf0dc, #3a2a10));
  --bad: var(--holdfast-bad, light-dark(#a3201f, #ff9d96));
  --radius: var(--holdfast-radius, 10px);
  font-family: var(--holdfast-font, system-ui, -apple-system, "Segoe UI", Roboto, sans-serif);
  font-size: var(--holdfast-font-size, 1rem);
  line-height: 1.5;
}
:host([mode="button"]) { display: inline-block; container-type: normal; }
:host([hidden]) { display: none; }
*, *::before, *::after { box-sizing: border-box; }
[hidden] { display: none !important; }

.frame {
  position: relative;
  max-width: var(--holdfast-max-width, 50rem);
  margin-inline: auto;
  background: var(--surface);
  color: var(--ink);
  border: 1px solid var(--line);
  border-radius: calc(var(--radius) * 1.4);
  padding: clamp(1rem, 4cqi, 1.75rem);
  text-align: start;
}
dialog {
  width: min(46rem, calc(100vw - 1rem));
  max-height: calc(100dvh - 1rem);
  padding: 0;
  border: 0;
  border-radius: calc(var(--radius) * 1.4);
  background: var(--surface);
  color: var(--ink);
  box-shadow: 0 8px 40px rgb(0 0 0 / 35%);
  container-type: inline-size;
}
dialog::backdrop { background: rgb(0 0 0 / 45%); }
dialog > .close { position: sticky; inset-block-start: .5rem; display: flex; margin: .5rem .5rem -52px auto; z-index: 1; background: var(--surface); }
dialog header { padding-inline-end: 3rem; }

h2, h3, p, ul { margin: 0; padding: 0; }
h2 { font-size: 1.35em; line-height: 1.25; text-wrap: balance; }
h3 { font-size: 1em; }
h2:focus, h3:focus { outline: none; }
ul { list-style: none; }
.quiet { color: var(--quiet); }
.unseen { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); white-space: nowrap; }
section { display: grid; gap: 1rem; }
header { display: flex; flex-wrap: wrap; align-items: center; gap: .25rem .75rem; }
.chosen { color: var(--quiet); margin-block-start: -.75rem; }

button, .button, input {
  font: inherit;
  min-height: 44px;
  border-radius: var(--radius);
  border: 1px solid var(--line);
  background: var(--surface);
  color: var(--ink);
}
button, .button {
  display: inline-flex;
  align-items: center;
  justify-content: center;
  gap: .4em;
  padding: .5em 1em;
  text-decoration: none;
  cursor: pointer;
}
button:hover, .button:hover { border-color: var(--accent); }
button:disabled, form [aria-disabled] { opacity: .6; cursor: default; }
.primary { background: var(--accent); border-color: var(--accent); color: var(--on-accent); font-weight: 600; }
.primary:hover { filter: brightness(1.08); }
:focus-visible { outline: 3px solid var(--accent); outline-offset: 2px; }
.back { padding-inline: .5em .9em; margin-inline-start: -.5em; border-color: transparent; color: var(--accent); }
.back svg { margin-inline-end: -.1em; }
.close { border-color: transparent; min-width: 44px; padding: 0; background: transparent; color: inherit; }
.link { border: 0; padding: 0; color: var(--accent); text-decoration: underline; background: var(--surface); }

.rows { display: grid; gap: .6rem; }
.row { width: 100%; justify-content: space-between; text-align: start; padding: .8em 1em; }
.row > span { display: flex; flex-direction: column; }
.row svg { flex: none; color: var(--accent); }
.row:hover { background: var(--accent-soft); }

.when { display: grid; gap: 1.25rem; }
@container (min-width: 40rem) { .when { grid-template-columns: 20rem 1fr; gap: 2rem; align-items: start; } }
.calendar { min-height: 21rem; }
.calendar:has(input) { min-height: 0; }
.calendar input { width: 100%; padding: .5em .75em; border-color: var(--quiet); }
calendar-date { display: block; width: 100%; max-width: 22rem; margin-inline: auto; }
calendar-date::part(header) { align-items: center; margin-block-end: .25rem; }
calendar-date::part(heading) { font-weight: 600; }
calendar-date::part(button) {
  min-width: 44px; min-height: 44px; display: grid; place-items: center;
  border: 1px solid var(--line); border-radius: var(--radius); background: var(--surface); color: var(--ink);
}
calendar-date::part(disabled) { opacity: .5; }
calendar-month { --color-accent: var(--accent); --color-text-on-accent: var(--on-accent); width: 100%; }
calendar-month::part(heading) { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
calendar-month::part(table) { width: 100%; border-collapse: separate; border-spacing: 2px; }
calendar-month::part(th) { font-weight: 500; font-size: .85em; color: var(--quiet); text-transform: none; block-size: 2rem; }
calendar-month::part(button) {
  width: 100%; min-width: 36px; height: 44px; border: 1px solid transparent; border-radius: var(--radius);
  background: var(--surface); color: var(--ink); font: inherit; display: grid; place-items: center;
}
calendar-month::part(button):hover { border-color: var(--accent); }
calendar-month::part(today) { text-decoration: underline; text-underline-offset: 4px; }
calendar-month::part(free) { font-weight: 600; background: var(--accent-soft); color: var(--ink); }
calendar-month::part(selected) { background: var(--accent); color: var(--on-accent); font-weight: 700; }
calendar-month::part(disallowed), calendar-month::part(disabled) { color: var(--quiet); background: var(--surface); opacity: .55; font-weight: 400; text-decoration: none; }
calendar-month::part(button):focus-visible, calendar-date::part(button):focus-visible { outline: 3px solid var(--accent); outline-offset: 1px; }

.that-day { display: grid; gap: .9rem; align-content: start; }
.quantity { display: flex; align-items: center; gap: .5rem; }
.quantity span { margin-inline-end: auto; font-weight: 600; }
.quantity output { min-width: 2ch; text-align: center; font-variant-numeric: tabular-nums; font-weight: 600; }
.quantity button { width: 44px; padding: 0; font-size: 1.2em; }
.times { display: grid; grid-template-columns: repeat(auto-fill, minmax(5.75rem, 1fr)); gap: .5rem; }
.times.wide { grid-template-columns: repeat(auto-fill, minmax(11rem, 1fr)); }
.times:empty { display: none; }
.time { width: 100%; flex-direction: column; gap: 0; padding: .35em .4em; min-height: 48px; line-height: 1.3; font-variant-numeric: tabular-nums; }
.time.free { border-color: var(--accent); font-weight: 600; }
.time.free:hover { background: var(--accent-soft); }
.time small { font-size: .78em; font-weight: 400; color: var(--quiet); }
.time.few, .time.held, .time.sold_out { color: var(--quiet); }
.time[aria-disabled] { cursor: not-allowed; }
.time.held { border-style: dashed; border-color: var(--warn); background: var(--warn-soft); color: var(--warn); }
.time.held small { color: var(--warn); }
.time.sold_out span { text-decoration: line-through; }
.time[aria-busy] { background: var(--accent-soft); color: var(--ink); cursor: progress; }
.empty:empty { display: none; }
.empty { display: grid; gap: .75rem; justify-items: start; }
.zone { font-size: .9em; margin-block-start: -.9rem; }

.lost { display: grid; gap: .75rem; padding: 1rem; border-radius: var(--radius); background: var(--accent-soft); color: var(--ink); }
.summary { display: flex; flex-direction: column; padding: .8rem 1rem; border: 1px solid var(--line); border-inline-start: 4px solid var(--accent); border-radius: var(--radius); }
.hold {
  display: flex; flex-wrap: wrap; align-items: center; justify-content: space-between; gap: .5rem 1rem;
  min-height: 44px; padding: .5rem 1rem; border-radius: var(--radius); background: var(--accent-soft); color: var(--ink);
}
.hold button { background: var(--surface); color: var(--ink); }
.hold .primary { background: var(--accent); color: var(--on-accent); }
.hold.soon, .hold.over { background: var(--warn-soft); color: var(--warn); }
.clock { font-variant-numeric: tabular-nums; }
form { display: grid; gap: 1rem; }
label { display: block; font-weight: 600; margin-block-end: .25em; }
label .quiet { font-weight: 400; }
.field input { width: 100%; padding: .5em .75em; border-color: var(--quiet); }
.field input[aria-invalid="true"] { border-color: var(--bad); box-shadow: inset 0 0 0 1px var(--bad); }
.wrong { color: var(--bad); margin-block-start: .25em; font-size: .95em; }
.actions { display: flex; flex-wrap: wrap; gap: .6rem; }
.actions:empty { display: none; }
.actions > * { flex: 1 1 11rem; }

.note, .toast { display: flex; align-items: center; justify-content: space-between; gap: .5rem 1rem; border-radius: var(--radius); }
.note { flex-wrap: wrap; padding: .6rem 1rem; background: var(--accent-soft); color: var(--ink); }
.note.warn { background: var(--warn-soft); color: var(--warn); }
.note button { border-color: currentColor; background: transparent; color: inherit; }
.notes > *, .toasts > * { margin-block-start: 1rem; }
.beside { display: contents; } /* else the toast would have no room to stick in */
.toasts { position: sticky; inset-block-end: .75rem; z-index: 2; }
.toast { padding: .5rem .5rem .5rem 1rem; background: var(--ink); color: var(--surface); box-shadow: 0 4px 20px rgb(0 0 0 / 30%); animation: rise .25s ease-out; }
.toast button { flex: none; }
@keyframes rise { from { transform: translateY(.75rem); opacity: 0; } }

.done header { gap: .75rem; }
.seal { display: grid; place-items: center; width: 2.5rem; height: 2.5rem; border-radius: 50%; background: var(--accent); color: var(--on-accent); }
.number { display: flex; flex-direction: column; }
code { font: .95em ui-monospace, monospace; overflow-wrap: anywhere; }

@media (prefers-reduced-motion: reduce) { *, *::before, *::after { animation: none !important; transition: none !important; } }
@media (forced-colors: active) { .primary, .time.free { border: 2px solid; } .time.held, .time.sold_out { color: GrayText; } }
`;

export const sheet = new CSSStyleSheet();
sheet.replaceSync(CSS);
