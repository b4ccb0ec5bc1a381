// Elements from plain words. Text goes in as text nodes only, so nothing that a client sent can become markup.

const SVG = "http://www.w3.org/2000/svg";

function filled(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

export function h(name, attributes, ...children) {
  return filled(document.createElement(name), attributes, children);
}

export function s(name, attributes, ...children) {
  return filled(document.createElementNS(SVG, name), attributes, children);
}

export function byId(id) {
  return document.getElementById(id);
}

export function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

// Children of `parent` become those of `items`, in order; one that stays keeps its node, and so its focus.
export function keyed(parent, items, keyOf, create, update) {
  const old = parent.keyedNodes || new Map();
  const now = new Map();
  let before = null;
  for (const item of items) {
    const key = keyOf(item);
    const node = old.get(key) || create(item);
    if (update) update(node, item);
    now.set(key, node);
    const place = before ? before.nextSibling : parent.firstChild;
    if (node !== place) parent.insertBefore(node, place);
    before = node;
  }
  for (const [key, node] of old) if (!now.has(key)) node.remove();
  parent.keyedNodes = now;
}
