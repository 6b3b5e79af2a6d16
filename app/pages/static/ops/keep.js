// Texts and lists that follow what there is: what stays the same is left alone, whoever reads or uses it.

/** Set an element's text, unless it says that already: a screen reader need not look again. */
export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/**
 * Keep a list in step with things. What stays keeps its element, and with it the focus.
 * @param {Element} list
 * @param {Object[]} things
 * @param {(thing) => string} key
 * @param {(thing) => Element} create
 * @param {(element: Element, thing) => void} update
 */
export function keep(list, things, key, create, update = () => {}) {
  const known = new Map([...list.children].map((element) => [element.dataset.key, element]));
  const wanted = new Set(things.map(key));
  for (const [name, element] of known) if (!wanted.has(name)) element.remove();
  let at = list.firstElementChild;
  for (const thing of things) {
    let element = known.get(key(thing));
    if (!element) {
      element = create(thing);
      element.dataset.key = key(thing);
    }
    update(element, thing);
    if (element === at) at = at.nextElementSibling;
    else list.insertBefore(element, at);
  }
}
