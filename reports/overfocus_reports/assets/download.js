// Every figure can be kept: as SVG, as PNG, and its numbers as CSV.
const figuresByName = new Map();
const registerFigure = (name, figure) => figuresByName.set(name, figure);

function buildDownloads() {
  for (const button of document.querySelectorAll("[data-download]")) {
    button.addEventListener("click", () => download(button.dataset.figure, button.dataset.download));
  }
}

async function download(name, format) {
  const figure = figuresByName.get(name);
  if (!figure) return;
  if (format === "csv") return save(`${name}.csv`, new Blob([csvText(figure.csv())], { type: "text/csv;charset=utf-8" }));
  const text = svgText(await figure.svg());
  if (format === "svg") return save(`${name}.svg`, new Blob([text], { type: "image/svg+xml" }));
  return save(`${name}.png`, await rasterised(text));
}

function save(name, blob) {
  const link = make("a", { href: URL.createObjectURL(blob), download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

// An SVG that stands alone: sized, dark on white, without the page's variables.
function svgText(svg) {
  const copy = svg.cloneNode(true);
  const { width, height } = svg.viewBox.baseVal;
  copy.setAttribute("width", `${width}pt`);
  copy.setAttribute("height", `${height}pt`);
  copy.setAttribute("style", "color: #1a1d23; background: white; font-family: sans-serif");
  copy.querySelectorAll("[tabindex]").forEach((cell) => cell.removeAttribute("tabindex"));
  return new XMLSerializer().serializeToString(copy).replaceAll("var(--sans)", "sans-serif");
}

async function rasterised(text) {
  const source = URL.createObjectURL(new Blob([text], { type: "image/svg+xml" }));
  const picture = await loadPicture(source);
  const canvas = make("canvas", { width: picture.width * 3, height: picture.height * 3 });
  const context = canvas.getContext("2d");
  context.fillStyle = "white";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(picture, 0, 0, canvas.width, canvas.height);
  URL.revokeObjectURL(source);
  return new Promise((done) => canvas.toBlob(done, "image/png"));
}

// The explorer as it stands: canvases with their captions and the colour scale.
function explorerFigure() {
  const element = svgElement;
  const svg = element("svg", {});
  let [bottom, left] = [0, 0];
  for (const role of roles) {
    const parts = columnsOf[role];
    let top = 40;
    svg.append(element("text", { x: left, y: 16, "font-size": 13, fill: "#1a1d23", "font-weight": "bold" }, parts.title.textContent));
    svg.append(element("text", { x: left, y: 32, "font-size": 10, fill: "#1a1d23" }, parts.prediction.textContent));
    const put = (canvas, width, x, caption) => {
      if (canvas.width <= 1) return 0;
      const height = (width * canvas.height) / canvas.width;
      svg.append(element("image", { x, y: top, width, height, href: canvas.toDataURL("image/png") }));
      if (caption) svg.append(element("text", { x, y: top + height + 11, "font-size": 9, fill: "#1a1d23" }, caption));
      return height + (caption ? 18 : 8);
    };
    top += put(parts.main, 250, left);
    const small = put(parts.to, 121, left, "the token attends to");
    put(parts.from, 121, left + 129, "attend to the token");
    top += small;
    top += put(parts.matrix, 250, left);
    [bottom, left] = [Math.max(bottom, top), left + 266];
  }
  addRamp(svg, bottom, `× uniform attention; ${several ? `${modelOf().name}, ` : ""}layer ${layerOf().label}; ${nameOf(state.image)}`);
  svg.setAttribute("viewBox", `-8 -4 ${left + 4} ${bottom + 38}`);
  return svg;
}

// The colour scale of attention at the bottom of a drawing.
function addRamp(svg, bottom, text) {
  const stops = Array.from({ length: 17 }, (_, step) => svgElement("stop", { offset: step / 16, "stop-color": css(entry(tables.sequential, step / 16)) }));
  const ramp = svgElement("linearGradient", { id: "ramp" });
  ramp.append(...stops);
  svg.append(ramp, svgElement("rect", { x: 0, y: bottom + 4, width: 250, height: 10, fill: "url(#ramp)" }));
  for (const { share, label } of amountTicks()) {
    svg.append(svgElement("text", { x: 250 * share, y: bottom + 26, "font-size": 9, "text-anchor": "middle", fill: "#1a1d23" }, label));
  }
  svg.append(svgElement("text", { x: 262, y: bottom + 13, "font-size": 9, fill: "#1a1d23" }, text));
}

function explorerTable() {
  const { clean, corrupted } = explorerDrawn;
  if (!clean.received) return [["row", "column"]];
  const name = corrupted ? data.variants[corrupted.variant].label : null;
  const rows = [["image", "layer", "row", "column", "clean, × uniform", ...(name ? [`${name}, × uniform`] : [])]];
  clean.received.values.forEach((value, place) => {
    const { columns } = clean.received;
    const after = corrupted ? [corrupted.received.values[place]] : [];
    rows.push([nameOf(state.image), layerOf().number, Math.floor(place / columns) + 1, (place % columns) + 1, value, ...after]);
  });
  return rows;
}
