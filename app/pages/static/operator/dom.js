// Building elements of the operators' pages. Whatever people typed becomes text and never markup.

/**
 * Make an element: `el("p", { class: "quiet", onclick: … }, "text", child, …)`. `on…` are listeners; `false` and `null`
 * leave an attribute out, null children are left out.
 */
export function el(name, properties = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (value === true) made.setAttribute(key, "");
    else if (value !== false && value != null) made.setAttribute(key, value);
  }
  made.append(...children.filter((child) => child != null));
  return made;
}

/** Make a list of terms; pairs whose value is null are left out. */
export function facts(pairs) {
  const known = pairs.filter(([, value]) => value != null && value !== "");
  return el("dl", { class: "facts" }, ...known.flatMap(([term, value]) => [el("dt", {}, term), el("dd", {}, value)]));
}

/** Make a labelled field of a form. */
export function field(label, control) {
  return el("p", {}, el("label", { for: control.id }, label), control);
}

/** Make a choice of [value, text] pairs. */
export function choice(id, pairs, chosen) {
  return el("select", { id }, ...pairs.map(([value, text]) => el("option", { value, selected: value === chosen }, text)));
}
