// The service's metrics, as Prometheus would read them: the console has no other source of figures.

const SAMPLE = /^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)/;
const LABEL = /(\w+)="((?:[^"\\]|\\.)*)"/g;

/**
 * What is counted: a metric's name, and for each label the values that count, or a function that tells.
 * @typedef {{name: string, [label: string]: string | string[] | ((value: string) => boolean)}} Selector
 * @typedef {{at: number, samples: Map<string, {key: string, labels: Object<string, string>, value: number}[]>}} Reading
 */

/** Read the metrics now. @returns {Promise<Reading>} */
export async function read() {
  const answer = await fetch("/metrics", { signal: AbortSignal.timeout(10_000) });
  if (!answer.ok) throw new Error(`The metrics answered ${answer.status}`);
  return { at: Date.now() / 1000, samples: parse(await answer.text()) };
}

/** Parse the text form; only what is the service's own. */
export function parse(text) {
  const samples = new Map();
  for (const line of text.split("\n")) {
    const found = line.startsWith("holdfast_") && SAMPLE.exec(line);
    if (!found) continue;
    const [, name, inside = "", value] = found;
    const labels = Object.fromEntries([...inside.matchAll(LABEL)].map(([, label, said]) => [label, said]));
    if (!samples.has(name)) samples.set(name, []);
    samples.get(name).push({ key: inside, labels, value: Number(value) });
  }
  return samples;
}

/** Add up a metric, over all workers and all labels that are not asked for. */
export function total(reading, selector) {
  return chosen(reading, selector).reduce((sum, sample) => sum + sample.value, 0);
}

/** Tell by how much a counter grew between two readings. One that fell began anew, with the service. */
export function increase(before, now, selector) {
  const known = new Map(chosen(before, selector).map((sample) => [sample.key, sample.value]));
  return chosen(now, selector).reduce((sum, { key, value }) => {
    const grown = value - (known.get(key) ?? 0);
    return sum + (grown < 0 ? value : grown);
  }, 0);
}

/**
 * Estimate a quantile of what a histogram was told between two readings, as `histogram_quantile` does.
 * @param {string} name  of the histogram, without `_bucket`
 * @returns {number | null} null: it was told nothing
 */
export function quantile(before, now, { name, ...labels }, q) {
  const bounds = [...new Set(chosen(now, { name: `${name}_bucket`, ...labels }).map((sample) => sample.labels.le))];
  const grown = bounds
    .map((le) => [Number(le.replace("+Inf", "Infinity")), increase(before, now, { name: `${name}_bucket`, ...labels, le })])
    .sort(([one], [other]) => one - other);
  const all = grown.at(-1)?.[1] ?? 0;
  if (!all) return null;
  const at = grown.findIndex(([, count]) => count >= q * all);
  const [lower, below] = grown[at - 1] ?? [0, 0];
  const [upper, count] = grown[at];
  return upper === Infinity ? lower : lower + ((upper - lower) * (q * all - below)) / (count - below);
}

function chosen(reading, { name, ...wanted }) {
  const conditions = Object.entries(wanted);
  return (reading.samples.get(name) ?? []).filter(({ labels }) => conditions.every(([label, want]) => fits(labels[label], want)));
}

function fits(said, want) {
  if (typeof want === "function") return said !== undefined && want(said);
  return Array.isArray(want) ? want.includes(said) : said === want;
}
