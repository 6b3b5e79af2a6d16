// A figure on the page: a plot of the last minutes, and beside it a table of what it says now.
import { el } from "../operator/dom.js";
import uPlot from "../vendor/uplot/uPlot.esm.js";
import { FIGURES } from "./figures.js";
import { say } from "./keep.js";
import { number } from "./words.js";

/** A reading every two seconds for ten minutes; what is older is forgotten. */
const KEPT = 300;
const WINDOW_SECONDS = 600;
const HEIGHT = 150;
/** The service keeps no history: so long a plot says that it is only beginning. */
const BEGINNING_SECONDS = 60;
/** Two readings that are farther apart have a gap between them: nobody looked. */
const GAP_SECONDS = 65;

/**
 * Show all figures in a container.
 * @returns {{add: (before: Reading | null, now: Reading) => void}}
 */
export function plots(container) {
  const shown = FIGURES.map((figure) => card(container, figure));
  const dark = matchMedia("(prefers-color-scheme: dark)");
  dark.addEventListener("change", () => shown.forEach((one) => one.recolour()));
  return { add: (before, now) => shown.forEach((one) => one.add(before, now)) };
}

function card(container, figure) {
  const data = [[], ...figure.series.map(() => [])];
  const canvas = el("div", { class: "plot", role: "img", "aria-label": `${figure.title}: nothing yet` });
  const beginning = el("p", { class: "quiet beginning" }, "Fills from now on");
  const rows = figure.series.map((series, n) => row(series.label, n));
  const heading = el("h3", { id: `figure-${figure.id}` }, figure.title, " ", el("small", {}, figure.unit));
  container.append(
    el(
      "article", { class: "card figure", "aria-labelledby": heading.id, "data-figure": figure.id },
      heading, el("p", { class: "quiet" }, figure.about), el("div", { class: "frame" }, canvas, beginning), table(figure, rows),
    ),
  );
  const plot = draw(canvas, figure, data);
  return {
    add(before, now) {
      const tooOld = before === null || now.at - before.at > GAP_SECONDS;
      const values = figure.series.map((series) => (tooOld ? null : series.value(before, now)));
      push(data, now.at, values);
      plot.setData(data);
      beginning.hidden = now.at - data[0][0] >= BEGINNING_SECONDS;
      figure.series.forEach((series, n) => {
        say(rows[n].now, number(values[n]));
        rows[n].total.dataset.total = series.total(now) ?? "";
        say(rows[n].total, number(series.total(now)));
      });
      canvas.setAttribute("aria-label", described(figure, values));
    },
    recolour: () => plot.redraw(false),
  };
}

function push(data, at, values) {
  for (const [n, column] of data.entries()) {
    column.push(n === 0 ? at : values[n - 1]);
    if (column.length > KEPT) column.shift();
  }
}

function described(figure, values) {
  const told = figure.series.map((series, n) => `${series.label} ${number(values[n])}`);
  return `${figure.title}, ${figure.unit}, the last ten minutes. Now: ${told.join(", ")}`;
}

function row(label, n) {
  const [now, total] = [el("td"), el("td")];
  const name = el("th", { scope: "row" }, el("span", { class: `swatch swatch-${n + 1}`, "aria-hidden": "true" }), label);
  return { element: el("tr", {}, name, now, total), now, total };
}

function table(figure, rows) {
  const head = ["", "Now", figure.counted ?? "Total"].map((title) => el(title ? "th" : "td", title ? { scope: "col" } : {}, title));
  return el(
    "table", {},
    el("caption", { class: "unseen" }, `${figure.title}, ${figure.unit}`),
    el("thead", {}, el("tr", {}, ...head)),
    el("tbody", {}, ...rows.map((one) => one.element)),
  );
}

function draw(canvas, figure, data) {
  const axis = {
    stroke: () => colour("--quiet"),
    grid: { stroke: () => colour("--line"), width: 1 },
    ticks: { show: false },
    font: "12px system-ui, sans-serif",
  };
  const plot = new uPlot(
    {
      width: Math.max(200, canvas.clientWidth),
      height: HEIGHT,
      legend: { show: false },
      padding: [8, 10, 0, 0],
      cursor: { y: false, drag: { x: false, y: false } },
      scales: { x: { range: () => [Date.now() / 1000 - WINDOW_SECONDS, Date.now() / 1000] }, y: { range: fromZero } },
      axes: [
        { ...axis, size: 26, values: (_, ticks) => ticks.map(minute) },
        { ...axis, size: 46, values: (_, ticks) => ticks.map(number) },
      ],
      series: [
        {},
        ...figure.series.map((series, n) => ({
          label: series.label,
          stroke: () => colour(`--plot-${n + 1}`),
          width: 2,
          points: { show: true, size: 5, filter: (_, column) => alone(data[column]) },
        })),
      ],
    },
    data,
    canvas,
  );
  new ResizeObserver(() => plot.setSize({ width: Math.max(200, canvas.clientWidth), height: HEIGHT })).observe(canvas);
  return plot;
}

/** Find the points that no line shows: those between two gaps. */
function alone(values) {
  return [...values.keys()].filter((n) => values[n] !== null && (values[n - 1] ?? null) === null && (values[n + 1] ?? null) === null);
}

/** A quiet service draws a flat line at the bottom, not noise over the whole height. */
function fromZero(_, __, most) {
  return [0, Math.max(1, 1.1 * (most ?? 0))];
}

function minute(seconds) {
  return new Date(1000 * seconds).toLocaleTimeString("en-GB", { hour: "2-digit", minute: "2-digit" });
}

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}
