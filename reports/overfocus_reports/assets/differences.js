// The table of differences to the baseline, filtered by layers and version of the images; its CSV file has every row.
const layersInWords = { all: "all layers", early: "early third", middle: "middle third", late: "late third", output: "output" };

function buildDifferences() {
  if (!data.differences) return;
  const { columns, names } = data.differences;
  const groups = [...new Set(columns.layers)].filter((group) => names.layers[group] !== "output");
  byId("difference-layers").append(...groups.map((group) => make("option", { value: group }, layersInWords[names.layers[group]] ?? names.layers[group])));
  byId("difference-layers").parentElement.hidden = !groups.length;
  for (const id of ["difference-layers", "difference-version"]) byId(id).addEventListener("change", drawDifferences);
  registerFigure("difference-table", { csv: differencesTable });
  whenPicked(["variant"], drawDifferences);
}

// (corruption, severity) that the rows are of.
function differenceVersion() {
  const wanted = byId("difference-version").value;
  return wanted === "picked" ? pickedVariant() : { corruption: wanted, severity: 0 };
}

function drawDifferences() {
  const { columns, names } = data.differences;
  const { corruption, severity } = differenceVersion();
  const layers = Number(byId("difference-layers").value);
  const chosen = columns.metric
    .map((_, row) => row)
    .filter((row) => names.corruption[columns.corruption[row]] === corruption && columns.severity[row] === severity)
    .filter((row) => columns.layers[row] === layers || names.layers[columns.layers[row]] === "output");
  const widest = new Map();
  for (const row of chosen) {
    const reach = Math.max(...["low", "high", "difference"].map((end) => Math.abs(columns[end][row] ?? 0)));
    widest.set(columns.metric[row], Math.max(widest.get(columns.metric[row]) ?? 0, reach));
  }
  byId("difference-table").tBodies[0].replaceChildren(...chosen.map((row) => differenceRow(row, widest.get(columns.metric[row]))));
  byId("difference-note").textContent = chosen.length ? "" : "Nothing was measured for this choice.";
}

function differenceRow(row, reach) {
  const { columns, names, titles } = data.differences;
  const value = (name) => columns[name][row];
  const cell = (name, text = digits(value(name))) => make("td", { "data-value": value(name) ?? "" }, text);
  const said = inWords(row);
  const model = names.model[value("model")];
  return make(
    "tr",
    {},
    make("th", { scope: "row", "data-value": titles[value("metric")] }, titles[value("metric")], names.layers[value("layers")] === "output" ? make("small", {}, " output") : null),
    make("td", { "data-value": model }, make("span", { class: "dot", style: `--key: ${data.differences.colours[value("model")]}` }), model),
    cell("baseline_mean"),
    cell("mean"),
    cell("control"),
    cell("difference", signed(value("difference"))),
    make("td", { "data-value": value("low") ?? "" }, intervalBar(value("low"), value("difference"), value("high"), reach, said), ` ${signed(value("low"))} … ${signed(value("high"))}`),
    make("td", { "data-value": said, class: `said-${said}` }, said),
    cell("effect_size"),
    cell("p_adjusted", known(value("p_adjusted")) ? (value("p_adjusted") < 0.001 ? "< 0.001" : value("p_adjusted").toFixed(3)) : "–"),
    cell("count", String(value("count"))),
  );
}

const signed = (value) => (known(value) && value > 0 ? "+" : "") + digits(value);

// Better, worse or different where the interval leaves 0 out and the corrected test agrees; "open" elsewhere.
function inWords(row) {
  const { columns, directions } = data.differences;
  const [low, high] = [columns.low[row], columns.high[row]];
  const p = columns.p_adjusted[row];
  if (!known(low) || !known(high) || (low <= 0 && high >= 0) || (known(p) && p >= 0.05)) return "open";
  const bad = directions[columns.metric[row]];
  if (bad === "neither") return "different";
  return (bad === "high") === high < 0 ? "better" : "worse";
}

// A line from low to high with a dot at the difference, 0 in the middle.
function intervalBar(low, difference, high, reach, said) {
  const svg = svgElement("svg", { viewBox: "-52 0 104 14", class: `interval ${said}`, "aria-hidden": "true" });
  const at = (value) => (reach ? (50 * value) / reach : 0);
  svg.append(svgElement("line", { x1: 0, x2: 0, y1: 0, y2: 14, class: "zero" }));
  if (known(low) && known(high)) svg.append(svgElement("line", { x1: at(low), x2: at(high), y1: 7, y2: 7, class: "range" }));
  if (known(difference)) svg.append(svgElement("circle", { cx: at(difference), cy: 7, r: 3.2 }));
  return svg;
}

function differencesTable() {
  const { columns, names, order } = data.differences;
  const text = (name, row) => (names[name] ? names[name][columns[name][row]] : columns[name][row]);
  return [order, ...columns.metric.map((_, row) => order.map((name) => text(name, row)))];
}
