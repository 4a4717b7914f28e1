// The attention explorer: clean, corrupted and their difference side by side, for the picked model, image and layer.
const roles = (data.variants?.length ?? 0) > 1 ? ["clean", "corrupted", "difference"] : ["clean"];
const columnsOf = {};
let explorerTurn = 0;
let explorerDrawn = null;

function buildExplorer() {
  if (state.image === null) return;
  for (const role of roles) {
    const parts = explorerParts(role);
    columnsOf[role] = parts;
    const small = (part, text) => make("figure", {}, parts[part], make("figcaption", {}, text));
    byId("versions").append(
      make(
        "article",
        { "data-role": role },
        parts.title,
        parts.prediction,
        parts.main,
        make("div", { class: "small" }, small("to", "the token attends to"), small("from", "attend to the token")),
        make("figure", { class: "whole" }, parts.matrix, parts.note),
      ),
    );
    for (const part of ["main", "to", "from"]) listenToPicture(parts[part]);
    listenToMatrix(parts.matrix);
  }
  buildStrip();
  buildSide();
  byId("opacity").addEventListener("input", drawExplorer);
  byId("outline").addEventListener("change", drawExplorer);
  whenPicked(["model", "variant", "layer", "image", "pinned", "hovered"], drawExplorer);
  whenPicked(["image"], markStrip);
  whenPicked(["model", "layer"], buildQueries);
}

function explorerParts(role) {
  const canvas = (what, label) =>
    make("canvas", { class: what, role: "img", "aria-label": label, "data-role": role, "data-what": what, tabindex: what === "main" ? "0" : null });
  return {
    title: make("h3"),
    prediction: make("p", { class: "prediction" }),
    main: canvas("main", `received attention, ${role}`),
    to: canvas("to", `where the chosen token attends, ${role}`),
    from: canvas("from", `who attends to the chosen token, ${role}`),
    matrix: canvas("matrix", `attention matrix, ${role}`),
    note: make("p", { class: "caption" }),
  };
}

function buildStrip() {
  for (const image of data.displayed) {
    const picture = make("img", { src: data.models[0].pictures[image][0], alt: "" });
    byId("strip").append(
      make("button", { type: "button", "data-image": image, title: nameOf(image), onclick: () => pick({ image, pinned: null }) }, picture, make("span", {}, shortName(image))),
    );
  }
}

function markStrip() {
  for (const button of byId("strip").children) button.setAttribute("aria-pressed", String(Number(button.dataset.image) === state.image));
}

// Buttons for tokens that have no place on the image, and for the most attended patch.
function buildQueries() {
  const shape = layerOf().matrix;
  const prefix = shape ? Math.max(prefixCount(shape.queries, shape.queryGrid), prefixCount(shape.keys, shape.keyGrid)) : 0;
  const button = (text, token) =>
    make("button", { type: "button", class: "quiet", onclick: () => pick({ pinned: token, hovered: null }) }, text);
  const names = Array.from({ length: Math.min(prefix, 8) }, (_, number) => (prefix === 1 ? "class token" : `prefix token ${number}`));
  byId("queries").replaceChildren(button("most attended patch", null), ...names.map((name, number) => button(name, { prefix: number })));
}

// The chosen token: hovered, else pinned, else the clean image's most attended patch.
function chosenToken(received) {
  if (state.hovered || state.pinned) return state.hovered ?? state.pinned;
  const place = received?.top[0] ?? 0;
  const [rows, columns] = received ? [received.rows, received.columns] : [1, 1];
  return { x: ((place % columns) + 0.5) / columns, y: (Math.floor(place / columns) + 0.5) / rows };
}

async function drawExplorer() {
  const turn = (explorerTurn += 1);
  const { model, image } = state;
  byId("versions").setAttribute("aria-busy", "true");
  const versions = roles.length > 1 ? [0, shownVariant()] : [0];
  const models = several ? data.models.map((_, number) => number) : [0];
  const kept = await Promise.all(models.map((number) => Promise.all(versions.map((variant) => loadVersion(number, image, variant)))));
  if (turn !== explorerTurn) return; // something else was picked meanwhile
  const token = chosenToken(kept[model][0].received);
  const drawnOf = (number) => {
    const [clean, corrupted] = kept[number];
    const layer = layerOf(number);
    return { model: number, image, layer, token, located: locate(token, layer), clean, corrupted };
  };
  explorerDrawn = drawnOf(model);
  for (const role of roles) drawVersion(role, explorerDrawn);
  byId("versions").classList.toggle("without-matrices", modelOf().layers.every((layer) => !layer.matrix));
  byId("readout").textContent = readout(explorerDrawn);
  byId("hint").textContent = hint(explorerDrawn);
  if (several) drawSide(models.map(drawnOf));
  byId("versions").setAttribute("aria-busy", "false");
}

const loadVersion = async (model, image, variant) => ({
  variant,
  picture: await pictureOf(model, image, variant),
  received: await receivedOf(model, image, variant),
  matrix: await matrixOf(model, image, variant),
});

// Corrupted minus clean of two maps or matrices.
function minus(after, before) {
  if (!after || !before) return null;
  return { ...after, values: after.values.map((value, place) => value - before.values[place]), top: [] };
}

function versionOf(role, { clean, corrupted }) {
  if (role === "clean") return clean;
  if (role === "corrupted") return corrupted;
  return { variant: corrupted.variant, picture: clean.picture, received: minus(corrupted.received, clean.received), matrix: minus(corrupted.matrix, clean.matrix) };
}

function drawVersion(role, drawn) {
  const parts = columnsOf[role];
  const version = versionOf(role, drawn);
  const { label } = data.variants[version.variant];
  const missing = version.variant && version.variant !== state.variant ? ` (this page has no images at severity ${pickedVariant().severity})` : "";
  parts.title.textContent = role === "difference" ? `${label} − clean` : `${label}${missing}`;
  parts.prediction.textContent = role === "difference" ? keptText(drawn) : predictionText(drawn.image, version.variant);
  for (const what of ["main", "to", "from"]) {
    const shown = drawPart(parts[what], what, version, role, drawn);
    if (what !== "main") parts[what].parentElement.classList.toggle("empty", !shown);
  }
  parts.note.textContent = drawMatrix(parts.matrix, version, role, drawn);
}

// One image under received attention ("main"), a row ("to") or a column ("from") of the matrix; whether there was such a map.
function drawPart(canvas, what, version, role, drawn) {
  const { layer, token, located, clean } = drawn;
  const directed = () => (version.matrix && located ? mapOf(version.matrix, layer, located, what) : null);
  const map = what === "main" ? version.received : directed();
  drawPicture(canvas, version.picture, role === "difference");
  if (map) overlay(canvas, map, role === "difference" ? differenceColour : amountColour, Number(byId("opacity").value) / 100);
  if (what === "main" && map && byId("outline").checked && role !== "difference") {
    const lost = clean.received.top.filter((place) => !map.top.includes(place));
    frames(canvas, map, lost, colours.lost, [5, 4]);
    frames(canvas, map, map.top, colours.kept, []);
  }
  if (token.prefix === undefined) frameToken(canvas, token, layer);
  return Boolean(map);
}

function frameToken(canvas, token, layer) {
  const [rows, columns] = gridOf(layer);
  frame(canvas, rows, columns, clampIndex(token.y, rows), clampIndex(token.x, columns), colours.chosen, [], 3);
}

// The grid that patches are chosen on.
const gridOf = (layer) => (layer.kind === "window" ? layer.imageGrid : layer.matrix?.queryGrid ?? layer.imageGrid) ?? [1, 1];

function keptText({ clean, corrupted }) {
  if (!clean.received || !corrupted.received) return "";
  const kept = corrupted.received.top.filter((place) => clean.received.top.includes(place)).length;
  return `${kept} of ${clean.received.top.length} top patches kept`;
}
