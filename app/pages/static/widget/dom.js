// Elements, made without markup: whatever people typed only ever becomes text.

/**
 * Make an element. Of `props`, `on…` are listeners, `class`, `part`, `aria-…`, `data-…` and the like attributes, false
 * and null ones left out; children are nodes or text.
 */
export function h(tag, props = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return made;
}

/** Make a button that submits nothing. */
export function button(text, onclick, props = {}) {
  return h("button", { type: "button", onclick, ...props }, ...[text].flat());
}

/** Make a heading that can be given the focus, so that a screen reader begins a step with it. */
export function heading(text) {
  return h("h2", { tabindex: "-1", part: "heading" }, text);
}

const SVG = "http://www.w3.org/2000/svg";

/** Draw an icon of one path in a box of 24 by 24. */
export function icon(path) {
  const svg = document.createElementNS(SVG, "svg");
  for (const [name, value] of Object.entries({ viewBox: "0 0 24 24", width: 20, height: 20, "aria-hidden": "true" })) {
    svg.setAttribute(name, value);
  }
  const line = document.createElementNS(SVG, "path");
  const look = { d: path, fill: "none", stroke: "currentColor", "stroke-width": 2, "stroke-linecap": "round", "stroke-linejoin": "round" };
  for (const [name, value] of Object.entries(look)) line.setAttribute(name, value);
  svg.append(line);
  return svg;
}

export const BACK = "M15 5l-7 7 7 7";
export const NEXT = "M9 5l7 7-7 7";
export const CHECK = "M4 12.5l5.5 5.5L20 7";
export const CLOSE = "M6 6l12 12M18 6L6 18";
