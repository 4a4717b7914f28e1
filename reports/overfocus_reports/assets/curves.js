// The curves follow the pickers: severity and head move the lines, the corruption gets the band, the layer the marker.
function buildCurves() {
  for (const holder of document.querySelectorAll(".curves")) {
    const svg = holder.querySelector("svg");
    const plot = { svg, metric: svg.dataset.metric, name: holder.id, value: holder.parentElement.querySelector(".value") };
    for (const part of ["left", "step", "bottom", "rise"]) plot[part] = Number(svg.dataset[part]);
    const layerAt = (event) => {
      const box = svg.getBoundingClientRect();
      const x = ((event.clientX - box.left) / box.width) * svg.viewBox.baseVal.width;
      return Math.max(0, Math.min(modelOf().layers.length - 1, Math.round((x - plot.left) / plot.step / depthOf(1))));
    };
    svg.addEventListener("pointermove", (event) => tellValues(plot, layerAt(event)));
    svg.addEventListener("pointerleave", () => tellValues(plot, state.layer));
    svg.addEventListener("click", (event) => pick({ layer: layerAt(event) }));
    whenPicked(["model", "variant", "layer", "head"], () => drawCurves(plot));
    registerFigure(holder.id, { svg: () => svg, csv: () => curvesTable(plot.metric) });
  }
}

// Position of a layer on the axis: its number, or where models differ in their layers its relative depth.
const relativeDepth = new Set(data.models.map((model) => model.layers.length)).size > 1;
const depthOf = (layer, model = state.model) => layer / (relativeDepth ? Math.max(1, modelOf(model).layers.length - 1) : 1);

const groupOf = (plot, part) => plot.svg.getElementById(`${plot.name}-${part}`);

function drawCurves(plot) {
  const { corruption, severity } = pickedVariant();
  data.models.forEach((model, number) => {
    const values = model.metrics[plot.metric];
    if (!values) return;
    const head = values.mean[state.head] ? state.head : 0;
    const setLine = (part, variant) => {
      const group = groupOf(plot, part);
      const path = group?.querySelector("path");
      if (!path) return null;
      group.querySelectorAll("defs, g").forEach((marker) => marker.remove());
      path.setAttribute("d", lineOf(plot, values.mean[head][variant] ?? [], number));
      path.style.strokeLinecap = "round";
      return path;
    };
    setLine(`clean-line-${number}`, 0);
    if (several) setLine(`line-${number}-picked`, state.variant);
    else drawCorruptions(setLine, corruption, severity);
    const colour = several ? data.modelColours[number] : data.lineColours[data.corruptions.indexOf(corruption)];
    setBand(plot, `clean-band-${number}`, values, 0, number);
    setBand(plot, `picked-band-${number}`, values, state.variant, number, colour);
  });
  const marker = groupOf(plot, "picked-layer")?.querySelector("path");
  const x = (plot.left + depthOf(state.layer) * plot.step).toFixed(2);
  marker?.setAttribute("d", marker.getAttribute("d").replace(/([ML]) [\d.]+ /g, `$1 ${x} `));
  tellValues(plot, state.layer);
}

// Every corruption of the one model, the picked one in front.
function drawCorruptions(setLine, corruption, severity) {
  data.corruptions.forEach((name, place) => {
    const path = setLine(`line-0-${place}`, variantOf(name, severity));
    if (!path) return;
    path.style.strokeWidth = name === corruption ? "2" : "1.1";
    path.style.strokeOpacity = name === corruption ? "1" : "0.6";
    if (name === corruption) path.closest("g").parentElement.append(path.closest("g"));
  });
}

const ring = "m -2.5 0 a 2.5 2.5 0 1 0 5 0 a 2.5 2.5 0 1 0 -5 0";

// A line through the known values; a value without neighbours becomes a ring.
function lineOf(plot, values, model) {
  const at = (value, layer) => `${(plot.left + depthOf(layer, model) * plot.step).toFixed(2)} ${(plot.bottom - value * plot.rise).toFixed(2)}`;
  return values
    .map((value, layer) => {
      if (!known(value)) return "";
      if (layer && known(values[layer - 1])) return `L ${at(value, layer)}`;
      return `M ${at(value, layer)} ${known(values[layer + 1]) ? "" : ring}`;
    })
    .join(" ");
}

// The band between the ends of the intervals; only all heads together have one.
function setBand(plot, part, values, variant, model, colour) {
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
  const at = (end) => (layer) => `${(plot.left + depthOf(layer, model) * plot.step).toFixed(2)} ${(plot.bottom - values[end][variant][layer] * plot.rise).toFixed(2)}`;
  const runs = [];
  for (const layer of layers) {
    if (runs.length && runs.at(-1).at(-1) === layer - 1) runs.at(-1).push(layer);
    else runs.push([layer]);
  }
  const outline = (run) => `M ${[...run.map(at("low")), ...run.toReversed().map(at("high"))].join(" L ")} Z`;
  band.setAttribute("d", state.head === 0 ? runs.map(outline).join(" ") : "");
}

function tellValues(plot, layer) {
  const says = (model, variant) => {
    const values = modelOf(model).metrics[plot.metric];
    const place = model === state.model ? layer : Math.round((layer / Math.max(1, modelOf().layers.length - 1)) * (modelOf(model).layers.length - 1));
    const head = values?.mean[state.head] ? state.head : 0;
    const value = values?.mean[head][variant]?.[place];
    if (!known(value)) return null;
    const [low, high] = [values.low[variant][place], values.high[variant][place]];
    const interval = head === 0 && known(low) ? ` (${digits(low)}–${digits(high)})` : "";
    return `${data.variants[variant].label}: ${digits(value)}${interval}`;
  };
  const shown = [...new Set([0, state.variant])];
  const lines = data.models.map(({ name }, model) => [several ? name : null, ...shown.map((variant) => says(model, variant))].filter(Boolean).join(" · "));
  const title = `Layer ${modelOf().layers[layer].number}`;
  plot.value.textContent = several ? [title, ...lines].join("\n") : `${title} · ${lines[0] || "not measured"}`;
}

function curvesTable(metric) {
  const head = ["metric", "head", "corruption", "severity", "layer", "module", "mean", "low", "high", "images", "uniform", "another image"];
  const rows = [several ? ["model", ...head] : head];
  for (const model of data.models) {
    const values = model.metrics[metric];
    if (!values) continue;
    model.heads.forEach((name, place) =>
      data.variants.forEach(({ corruption, severity }, variant) =>
        model.layers.forEach((layer, index) => {
          const value = values.mean[place][variant][index];
          if (!known(value)) return;
          const interval = place === 0 ? [values.low[variant][index], values.high[variant][index], values.count[variant][index]] : ["", "", ""];
          const row = [metric, name, corruption, severity, layer.number, layer.module, value, ...interval, values.uniform[index], values.control[index]];
          rows.push(several ? [model.name, ...row] : row);
        }),
      ),
    );
  }
  return rows;
}
