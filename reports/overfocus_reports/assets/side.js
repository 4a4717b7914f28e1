// All models side by side on the picked image: clean, corrupted and difference of received attention, a row, a column or the matrix.
const sideParts = [];

function buildSide() {
  if (!several) return;
  data.models.forEach((model, number) => {
    const parts = { name: make("button", { type: "button", class: "link", onclick: () => pickModel(number) }, model.name), note: make("p", { class: "caption" }), said: make("p", { class: "prediction" }) };
    const figures = roles.map((role) => {
      parts[role] = make("canvas", { role: "img", tabindex: "0", "data-role": role, "data-model-number": number, "aria-label": `${model.name}, ${role}` });
      listenToPicture(parts[role], () => byId("side-what").value !== "matrix");
      return make("figure", {}, parts[role], make("figcaption", {}));
    });
    sideParts.push(parts);
    byId("side").append(make("article", { style: `--key: ${data.modelColours[number]}` }, make("h4", {}, parts.name), parts.said, make("div", { class: "trio" }, ...figures), parts.note));
  });
  byId("side-what").addEventListener("change", drawExplorer);
  registerFigure("side", { svg: sideFigure, csv: sideTable });
}

let sideDrawn = [];

function drawSide(models) {
  sideDrawn = models;
  const what = byId("side-what").value;
  models.forEach((drawn, number) => {
    const parts = sideParts[number];
    parts.name.setAttribute("aria-pressed", String(number === state.model));
    parts.note.textContent = `Layer ${drawn.layer.label}${roles.length > 1 ? `; ${keptText(drawn)}` : ""}`;
    parts.said.textContent = predictionText(drawn.image, drawn.corrupted?.variant ?? 0, number);
    for (const role of roles) {
      const version = versionOf(role, drawn);
      if (what === "matrix") drawMatrix(parts[role], version, role, drawn);
      else drawPart(parts[role], what, version, role, drawn);
      parts[role].nextElementSibling.textContent = role === "difference" ? "difference" : data.variants[version.variant].label;
    }
  });
}

// Received attention of every patch in every model, clean and corrupted.
function sideTable() {
  const rows = [["model", "image", "layer", "corruption", "severity", "row", "column", "received attention, × uniform"]];
  for (const { model, image, layer, clean, corrupted } of sideDrawn) {
    for (const version of [clean, corrupted].filter((one) => one?.received)) {
      const { corruption, severity } = data.variants[version.variant];
      const { columns, values } = version.received;
      values.forEach((value, place) =>
        rows.push([data.models[model].name, nameOf(image), layer.number, corruption, severity, Math.floor(place / columns) + 1, (place % columns) + 1, value]),
      );
    }
  }
  return rows;
}

// The panel as it stands: a row of canvases for each model, with the colour scale.
function sideFigure() {
  const svg = svgElement("svg", {});
  const width = 180;
  let top = 0;
  sideParts.forEach((parts, number) => {
    svg.append(svgElement("text", { x: 0, y: top + 14, "font-size": 13, "font-weight": "bold", fill: "#1a1d23" }, data.models[number].name));
    svg.append(svgElement("text", { x: 0, y: top + 28, "font-size": 9, fill: "#1a1d23" }, parts.note.textContent));
    let lowest = top;
    roles.forEach((role, column) => {
      const canvas = parts[role];
      const height = (width * canvas.height) / canvas.width;
      const x = column * (width + 10);
      svg.append(svgElement("image", { x, y: top + 48, width, height, href: canvas.toDataURL("image/png") }));
      svg.append(svgElement("text", { x, y: top + 43, "font-size": 9, fill: "#1a1d23" }, canvas.nextElementSibling.textContent));
      lowest = Math.max(lowest, top + 48 + height);
    });
    top = lowest + 16;
  });
  addRamp(svg, top, `× uniform attention; ${nameOf(state.image)}`);
  svg.setAttribute("viewBox", `-8 -4 ${roles.length * (width + 10) + 6} ${top + 34}`);
  return svg;
}
