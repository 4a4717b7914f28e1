// What is picked. Panels register a function that runs after each change of the names it depends on.
const state = {
  model: 0,
  variant: data.picked,
  layer: data.models[0]?.focus ?? 0,
  head: 0,
  image: data.displayed?.[0] ?? null,
  oneLayer: false,
  pinned: null, // the chosen token: {x, y} on the image, each 0 … 1, or {prefix: number}; null is the most attended patch
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

const modelOf = (model = state.model) => data.models[model];
const several = data.models.length > 1;
const pickedVariant = () => data.variants[state.variant];
const variantOf = (corruption, severity) =>
  data.variants.findIndex((variant) => variant.corruption === corruption && variant.severity === severity);

// The picked layer; in another model the one at the same relative depth.
function layerPlace(model = state.model) {
  const [here, there] = [modelOf().layers.length, modelOf(model).layers.length];
  return model === state.model ? state.layer : Math.round((state.layer / Math.max(1, here - 1)) * (there - 1));
}
const layerOf = (model = state.model) => modelOf(model).layers[layerPlace(model)];

function pickModel(model) {
  if (!data.models[model] || model === state.model) return;
  const head = state.head < modelOf(model).heads.length ? state.head : 0;
  pick({ model, layer: layerPlace(model), head });
}

// The version that the explorer shows: the picked one, or, where the page kept fewer images, one of the same corruption.
function shownVariant() {
  if (data.shown.includes(state.variant)) return state.variant;
  return data.shown.find((number) => data.variants[number].corruption === pickedVariant().corruption) ?? 0;
}
