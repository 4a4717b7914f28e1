// The sticky pickers and the keys that do the same from anywhere on the page.
function buildPickers() {
  const [corruption, severity, layer, head] = ["corruption", "severity", "layer", "head"].map((name) => byId(`pick-${name}`));
  corruption?.addEventListener("change", () => pickVariant(corruption.value, pickedVariant().severity));
  severity?.addEventListener("change", () => pickVariant(pickedVariant().corruption, Number(severity.value)));
  layer.addEventListener("input", () => pick({ layer: Number(layer.value) }));
  head?.addEventListener("change", () => pick({ head: Number(head.value) }));
  byId("pickers").addEventListener("submit", (event) => event.preventDefault());
  const model = byId("pick-model");
  model?.addEventListener("change", () => pickModel(Number(model.value)));
  document.addEventListener("keydown", pressed);
  whenPicked(["model"], () => {
    if (model) model.value = String(state.model);
    layer.max = String(modelOf().layers.length - 1);
    document.querySelectorAll("[data-model]").forEach((block) => (block.hidden = Number(block.dataset.model) !== state.model));
    document.querySelectorAll("[data-shows=model]").forEach((place) => (place.textContent = modelOf().name));
    head?.replaceChildren(...modelOf().heads.map((name, number) => make("option", { value: number }, name)));
    if (head) byId("head-picker").hidden = modelOf().heads.length < 2;
  });
  whenPicked(["model", "variant", "layer", "head"], () => {
    if (head) head.value = String(state.head);
    if (corruption) corruption.value = pickedVariant().corruption;
    if (severity) severity.value = String(pickedVariant().severity);
    layer.value = String(state.layer);
    layer.setAttribute("aria-valuetext", layerOf().label);
    byId("layer-name").textContent = layerOf().label;
    document.querySelectorAll("[data-shows=variant], #key-picked").forEach((place) => (place.textContent = pickedVariant().label));
    const number = data.corruptions.indexOf(pickedVariant().corruption);
    if (number >= 0 && !several) document.documentElement.style.setProperty("--picked", data.lineColours[number]);
  });
}

// The variant that was asked for, or the same corruption at a severity that was measured.
function pickVariant(corruption, severity) {
  const exact = variantOf(corruption, severity);
  const other = data.variants.findIndex((variant) => variant.corruption === corruption);
  pick({ variant: exact >= 0 ? exact : other });
}

const neighbour = (list, value, step) => list[Math.max(0, Math.min(list.length - 1, list.indexOf(value) + step))];

function pressed(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, select, textarea, summary, .scroll:focus")) return;
  if (several && /^[1-9]$/.test(event.key)) pickModel(Number(event.key) - 1);
  const step = { ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1 }[event.key];
  if (!step) return;
  const across = event.key === "ArrowLeft" || event.key === "ArrowRight";
  if (across && !event.shiftKey) pick({ layer: Math.max(0, Math.min(modelOf().layers.length - 1, state.layer + step)) });
  else if (event.shiftKey && data.corruptions.length) {
    const { corruption, severity } = pickedVariant();
    if (across) pickVariant(neighbour(data.corruptions, corruption, step), severity);
    else pickVariant(corruption, neighbour(data.severities, severity, -step));
  } else return;
  event.preventDefault();
}
