// The curves follow the pickers: severity and head move the lines, the corruption gets the band, the layer the marker.
function buildCurves() {
  for (const holder of document.querySelectorAll(".curves")) {
    const svg = holder.querySelector("svg");
    const plot = { svg, metric: svg.dataset.metric, name: holder.id, value: holder.parentElement.querySelector(".value") };
    for (const part of ["left", "step", "bottom", "rise"]) plot[part] = Number(svg.dataset[part]);
    const layerAt = (event) => {
      const box = svg.getBoundingClientRect();
      const x = ((event.clientX - box.left) / box.width) * svg.viewBox.baseVal.width;
      return Math.max(0, Math.min(data.layers.length - 1, Math.round((x - plot.left) / plot.step)));
    };
    svg.addEventListener("pointermove", (event) => tellValues(plot, layerAt(event)));
    svg.addEventListener("pointerleave", () => tellValues(plot, state.layer));
    svg.addEventListener("click", (event) => pick({ layer: layerAt(event) }));
    whenPicked(["variant", "layer", "head"], () => drawCurves(plot));
    registerFigure(holder.id, { svg: () => svg, csv: () => curvesTable(plot.metric) });
  }
}

const groupOf = (plot, part) => plot.svg.getElementById(`${plot.name}-${part}`);

function drawCurves(plot) {
  const values = data.metrics[plot.metric];
  const { corruption, severity } = pickedVariant();
  const setLine = (part, variant) => {
    const group = groupOf(plot, part);
    const path = group?.querySelector("path");
    if (!path) return null;
    group.querySelectorAll("defs, g").forEach((marker) => marker.remove());
    path.setAttribute("d", lineOf(plot, values.mean[state.head][variant]));
    path.style.strokeLinecap = "round";
    return path;
  };
  setLine("clean-line", 0);
  data.corruptions.forEach((name, number) => {
    const variant = variantOf(name, severity);
    const path = setLine(`line-${number}`, variant);
    if (!path) return;
    path.style.strokeWidth = name === corruption ? "2" : "1.1";
    path.style.strokeOpacity = name === corruption ? "1" : "0.6";
    if (name === corruption) path.closest("g").parentElement.append(path.closest("g"));
  });
  setBand(plot, "clean-band", values, 0);
  setBand(plot, "picked-band", values, state.variant, data.lineColours[data.corruptions.indexOf(corruption)]);
  const marker = groupOf(plot, "picked-layer")?.querySelector("path");
  const x = (plot.left + state.layer * plot.step).toFixed(2);
  marker?.setAttribute("d", marker.getAttribute("d").replace(/([ML]) [\d.]+ /g, `$1 ${x} `));
  tellValues(plot, state.layer);
}

// A line through the known values; a value without neighbours becomes a dot.
function lineOf(plot, values) {
  const at = (value, layer) => `${(plot.left + layer * plot.step).toFixed(2)} ${(plot.bottom - value * plot.rise).toFixed(2)}`;
  return values
    .map((value, layer) => {
      if (!known(value)) return "";
      if (layer && known(values[layer - 1])) return `L ${at(value, layer)}`;
      return `M ${at(value, layer)} ${known(values[layer + 1]) ? "" : "h 0.01"}`;
    })
    .join(" ");
}

// The band between the ends of the intervals; only all heads together have one.
function setBand(plot, part, values, variant, colour) {
  const group = groupOf(plot, part);
  if (!group) return;
  let band = group.querySelector("path.band");
  if (!band) {
    band = document.createElementNS("http://www.w3.org/2000/svg", "path");
    band.setAttribute("class", "band");
    band.setAttribute("style", group.querySelector("use")?.getAttribute("style") ?? "");
    group.replaceChildren(band);
  }
  if (colour) band.style.fill = colour;
  const layers = values.low[variant].map((low, layer) => layer).filter((layer) => known(values.low[variant][layer]) && known(values.high[variant][layer]));
  const at = (end) => (layer) => `${(plot.left + layer * plot.step).toFixed(2)} ${(plot.bottom - values[end][variant][layer] * plot.rise).toFixed(2)}`;
  const runs = [];
  for (const layer of layers) {
    if (runs.length && runs.at(-1).at(-1) === layer - 1) runs.at(-1).push(layer);
    else runs.push([layer]);
  }
  const outline = (run) => `M ${[...run.map(at("low")), ...run.toReversed().map(at("high"))].join(" L ")} Z`;
  band.setAttribute("d", state.head === 0 ? runs.map(outline).join(" ") : "");
}

function tellValues(plot, layer) {
  const values = data.metrics[plot.metric];
  const says = (variant) => {
    const value = values.mean[state.head][variant][layer];
    if (!known(value)) return null;
    const [low, high] = [values.low[variant][layer], values.high[variant][layer]];
    const interval = state.head === 0 && known(low) ? ` (${digits(low)}–${digits(high)})` : "";
    return `${data.variants[variant].label}: ${digits(value)}${interval}`;
  };
  const parts = [...new Set([0, state.variant])].map(says).filter(Boolean);
  plot.value.textContent = `Layer ${data.layers[layer].number} · ${parts.join(" · ") || "not measured"}`;
}

function curvesTable(metric) {
  const values = data.metrics[metric];
  const rows = [["metric", "head", "corruption", "severity", "layer", "module", "mean", "low", "high", "images", "uniform", "chance"]];
  data.heads.forEach((head, place) =>
    data.variants.forEach(({ corruption, severity }, variant) =>
      data.layers.forEach((layer, index) => {
        const value = values.mean[place][variant][index];
        if (!known(value)) return;
        const interval = place === 0 ? [values.low[variant][index], values.high[variant][index], values.count[variant][index]] : ["", "", ""];
        rows.push([metric, head, corruption, severity, layer.number, layer.module, value, ...interval, values.uniform[index], values.chance[index]]);
      }),
    ),
  );
  return rows;
}
