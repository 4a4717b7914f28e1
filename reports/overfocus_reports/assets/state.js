// What is picked. Panels register a function that runs after each change and is told which names changed.
const state = {
  variant: data.picked,
  layer: data.focus,
  head: 0,
  image: data.displayed[0] ?? null,
  oneLayer: false,
  pinned: null, // the chosen token: {x, y} on the picture, each 0 … 1, or {prefix: number}; null is the most attended patch
  hovered: null,
};
const panels = [];

const whenPicked = (names, update) => panels.push({ names, update });

function pick(change) {
  const changed = Object.keys(change).filter((name) => state[name] !== change[name]);
  if (!changed.length) return;
  Object.assign(state, change);
  for (const { names, update } of panels) if (names.some((name) => changed.includes(name))) update();
}

const redraw = () => panels.forEach(({ update }) => update());

const pickedVariant = () => data.variants[state.variant];
const variantOf = (corruption, severity) =>
  data.variants.findIndex((variant) => variant.corruption === corruption && variant.severity === severity);
const layerOf = () => data.layers[state.layer];

// The version that the explorer shows: the picked one, or, where the page kept fewer pictures, one of the same corruption.
function shownVariant() {
  if (data.shown.includes(state.variant)) return state.variant;
  return data.shown.find((number) => data.variants[number].corruption === pickedVariant().corruption) ?? 0;
}
