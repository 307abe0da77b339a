// Making and finding elements, and figures in words.

const SVG = "http://www.w3.org/2000/svg";

export const byId = (id) => document.getElementById(id);
export const element = (name, attributes, ...children) => made(document.createElement(name), attributes, children);
export const drawing = (name, attributes, ...children) => made(document.createElementNS(SVG, name), attributes, children);

function made(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children);
  return node;
}

// Texts that have not changed are left alone, so that nothing is drawn or read out again.
export function say(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

export const NONE = "–";
export const known = (value) => value !== null && value !== undefined && Number.isFinite(value);
export const milliseconds = (value) => (known(value) ? `${value.toFixed(value < 10 ? 1 : 0)} ms` : NONE);
export const accuracy = (value) => (known(value) ? value.toFixed(3) : NONE);
export const perSecond = (value) => (known(value) ? value.toFixed(value < 9.95 ? 1 : 0) : NONE);

export function percent(share) {
  if (!known(share)) return NONE;
  // Nearly all is not all: 99.97 % does not become 100 %.
  const near = share > 0 && share < 1 && (share < 0.1 || share > 0.9);
  return `${(Math.floor(share * 1000 + 1e-9) / 10).toFixed(near ? 1 : 0)} %`;
}

export const plural = (count, one, several = `${one}s`) => `${count} ${count === 1 ? one : several}`;
export const chain = (stages) => stages.join(" → ");
