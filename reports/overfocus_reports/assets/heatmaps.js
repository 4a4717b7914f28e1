// The heat maps follow the pickers; their cells are buttons that jump to the image that changed most.
function buildHeatMaps() {
  for (const holder of document.querySelectorAll(".map")) {
    const svg = holder.querySelector("svg");
    const { metric, across, layers } = svg.dataset;
    const cellsOf = [...svg.getElementById(`${holder.id}-cells`).children];
    const map = { svg, metric, across, name: holder.id, cells: cellsOf, columns: across === "severity" ? data.severities.length : Number(layers) };
    cellsOf.forEach((cell, number) => {
      cell.setAttribute("role", "button");
      cell.addEventListener("click", () => jump(map, number));
      cell.addEventListener("focus", () => roam(map, number));
    });
    svg.addEventListener("keydown", (event) => walk(map, event));
    svg.removeAttribute("role");
    svg.setAttribute("role", "group");
    roam(map, 0);
    whenPicked(["model", "variant", "layer", "head", "oneLayer"], () => drawHeatMap(map));
    heatMaps.push(map);
    const name = `by-${across}-${metric}`;
    const shown = () => heatMaps.find((other) => other.metric === metric && other.across === across && fitsModel(other)) ?? map;
    registerFigure(name, { svg: () => shown().svg, csv: () => heatMapTable(shown()) });
  }
  byId("one-layer")?.addEventListener("change", (event) => pick({ oneLayer: event.target.checked }));
}

const heatMaps = [];
// Models with another number of layers have a map of their own; so have none those that lack the metric.
const fitsModel = (map) => Boolean(modelOf().metrics[map.metric]) && (map.across === "severity" || map.columns === modelOf().layers.length);

// Which variant and layer a cell shows; layer null is the mean over layers.
function cellMeaning(map, number) {
  const corruption = data.corruptions[Math.floor(number / map.columns)];
  const column = number % map.columns;
  if (map.across === "severity") {
    return { variant: variantOf(corruption, data.severities[column]), layer: state.oneLayer ? state.layer : null };
  }
  return { variant: variantOf(corruption, pickedVariant().severity), layer: column };
}

function cellValue(map, { variant, layer }) {
  const metric = modelOf().metrics[map.metric];
  // What is retained is known for all heads together only.
  const values = data.metrics[map.metric].retained ? metric?.retained[variant] : metric?.mean[state.head][variant];
  if (!values) return null;
  return layer === null ? mean(values) : values[layer];
}

function drawHeatMap(map) {
  const fits = fitsModel(map);
  if (map.across === "layer") map.svg.closest(".map").hidden = !fits;
  if (!fits) return;
  const { low, high, reverse, digits: decimals } = data.metrics[map.metric].scale;
  map.cells.forEach((cell, number) => {
    const meaning = cellMeaning(map, number);
    const value = cellValue(map, meaning);
    const share = known(value) ? (value - low) / (high - low) : 0;
    const colour = entry(tables.sequential, reverse ? 1 - share : share);
    cell.style.fill = known(value) ? css(colour) : "none";
    const text = map.svg.getElementById(`${map.name}-value-${number}`)?.querySelector("text");
    if (text) {
      text.textContent = known(value) ? cellText(value, decimals) : "–";
      text.style.fill = known(value) ? textOn(colour) : "currentColor";
    }
    const variant = data.variants[meaning.variant];
    const layer = meaning.layer === null ? "all layers" : `layer ${modelOf().layers[meaning.layer].number}`;
    cell.setAttribute("aria-label", `${variant?.label ?? "not measured"}, ${layer}: ${digits(value)}`);
    const chosen = meaning.variant === state.variant && (meaning.layer === null || meaning.layer === state.layer);
    cell.classList.toggle("chosen", chosen);
  });
  map.cells.filter((cell) => cell.classList.contains("chosen")).forEach((cell) => cell.parentElement.append(cell));
  const severity = pickedVariant().severity;
  const caption = map.svg.closest(".map").parentElement.querySelector("[data-caption]");
  const over = state.oneLayer ? `layer ${layerOf().number}, mean over images` : "mean over layers and images";
  caption.textContent = map.across === "severity" ? `By severity: ${over}` : `By layer: severity ${severity}, mean over images`;
}

function cellText(value, decimals) {
  const text = Math.abs(value).toFixed(decimals).replace(/^0/, "");
  return value < 0 && /[1-9]/.test(text) ? `−${text}` : text;
}

// One cell of each map is reachable by Tab; arrow keys walk from there.
function roam(map, number) {
  map.cells.forEach((cell, other) => cell.setAttribute("tabindex", other === number ? "0" : "-1"));
  map.current = number;
}

function walk(map, event) {
  const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -map.columns, ArrowDown: map.columns }[event.key];
  if (event.key === "Enter" || event.key === " ") {
    event.preventDefault();
    jump(map, map.current);
  } else if (step && !event.shiftKey) {
    event.preventDefault();
    event.stopPropagation();
    const next = map.current + step;
    const wraps = Math.abs(step) === 1 && Math.floor(next / map.columns) !== Math.floor(map.current / map.columns);
    if (next >= 0 && next < map.cells.length && !wraps) map.cells[next].focus();
  }
}

// Pick what the cell shows and go to the displayed image that changed most; say which image changed most of all.
function jump(map, number) {
  const { variant, layer } = cellMeaning(map, number);
  if (variant < 0) return;
  const worst = modelOf().worst[map.metric];
  const place = layer === null ? 0 : layer + 1;
  const [shown, overall] = [worst.shown[variant][place], worst.image[variant][place]];
  const change = { variant, pinned: null };
  if (layer !== null) change.layer = layer;
  if (shown >= 0) change.image = shown;
  pick(change);
  const { title } = data.metrics[map.metric];
  const where = `${data.variants[variant].label}, ${layer === null ? "all layers" : `layer ${modelOf().layers[layer].number}`}`;
  const most = shown >= 0 ? `Changed most of the displayed images: ${nameOf(shown)} (${digits(worst.shownValue[variant][place])}).` : "";
  const all = overall >= 0 && overall !== shown ? ` Of all images: ${nameOf(overall)} (${digits(worst.value[variant][place])}).` : "";
  byId("jump").textContent = `${title}, ${where}. ${most}${all}`;
  byId("explorer").scrollIntoView({ behavior: matchMedia("(prefers-reduced-motion: reduce)").matches ? "auto" : "smooth" });
}

function heatMapTable(map) {
  const rows = [["metric", "head", "corruption", "severity", "layer", data.metrics[map.metric].retained ? "retained" : "mean"]];
  map.cells.forEach((_, number) => {
    const meaning = cellMeaning(map, number);
    const variant = data.variants[meaning.variant];
    if (!variant) return;
    const layer = meaning.layer === null ? "all" : modelOf().layers[meaning.layer].number;
    rows.push([map.metric, data.metrics[map.metric].retained ? "all" : modelOf().heads[state.head], variant.corruption, variant.severity, layer, cellValue(map, meaning)]);
  });
  return rows;
}
