// What the page knows, and how to make elements. Text from outside only ever becomes textContent or an attribute value.
const data = JSON.parse(document.getElementById("data").textContent);

const byId = (id) => document.getElementById(id);

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

// An element of an SVG.
function svgElement(tag, attributes, text = "") {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.textContent = text;
  return made;
}

const known = (value) => value !== null && value !== undefined && Number.isFinite(value);
const percent = (share) => (known(share) ? `${(100 * share).toFixed(share > 0 && share < 0.0995 ? 1 : 0)}\u00a0%` : "–");
const nameOf = (image) => data.images?.[image]?.name ?? `image ${image}`;
const fileName = (image) => nameOf(image).split(/[\\/]/).pop();

// What file names of the displayed images have in common at the front says nothing under a thumbnail.
const sharedFront = (data.displayed ?? []).map(fileName).reduce((shared, name) => {
  let count = 0;
  while (count < shared.length && shared[count] === name[count]) count += 1;
  return shared.slice(0, count);
}, fileName(data.displayed?.[0] ?? 0)).replace(/[^_\-. ]*$/, "");
const shortName = (image) => {
  const name = fileName(image);
  return (data.displayed?.length ?? 0) > 1 && sharedFront.length > 3 && name.startsWith(sharedFront) ? `…${name.slice(sharedFront.length)}` : name;
};

// A value of a metric: three significant digits, a true minus sign.
function digits(value) {
  if (!known(value)) return "–";
  const size = Math.abs(value);
  if (size && size < 0.001) return value.toExponential(1).replaceAll("-", "−");
  const text = size >= 100 ? size.toFixed(0) : size >= 10 ? size.toFixed(1) : size >= 1 ? size.toFixed(2) : size.toFixed(3);
  return (value < 0 ? "−" : "") + text;
}

// A multiple of uniform attention.
const times = (multiple) => `${multiple >= 10 ? multiple.toFixed(0) : multiple >= 1 ? multiple.toFixed(1) : multiple.toFixed(2)}\u00a0×`;

const mean = (values) => {
  const found = values.filter(known);
  return found.length ? found.reduce((sum, value) => sum + value, 0) / found.length : null;
};
