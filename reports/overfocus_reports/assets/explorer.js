// The attention explorer: clean, corrupted and their difference side by side, for the picked image and layer.
const roles = data.variants.length > 1 ? ["clean", "corrupted", "difference"] : ["clean"];
const columnsOf = {};
let explorerTurn = 0;

function buildExplorer() {
  if (state.image === null) return;
  for (const role of roles) {
    const canvas = (what, label) =>
      make("canvas", { class: what, role: "img", "aria-label": label, "data-role": role, "data-what": what, tabindex: what === "main" ? "0" : null });
    const parts = {
      title: make("h3"),
      prediction: make("p", { class: "prediction" }),
      main: canvas("main", `received attention, ${role}`),
      to: canvas("to", `where the chosen token attends, ${role}`),
      from: canvas("from", `who attends to the chosen token, ${role}`),
      matrix: canvas("matrix", `attention matrix, ${role}`),
      note: make("p", { class: "caption" }),
    };
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
  byId("opacity").addEventListener("input", drawExplorer);
  byId("outline").addEventListener("change", drawExplorer);
  whenPicked(["variant", "layer", "image", "pinned", "hovered"], drawExplorer);
  whenPicked(["image"], markStrip);
  whenPicked(["layer"], buildQueries);
  buildQueries();
}

function buildStrip() {
  for (const image of data.displayed) {
    const picture = make("img", { src: data.pictures[image][0], alt: "" });
    byId("strip").append(
      make("button", { type: "button", "data-image": image, title: nameOf(image), onclick: () => pick({ image, pinned: null }) }, picture, make("span", {}, shortName(image))),
    );
  }
  markStrip();
}

function markStrip() {
  for (const button of byId("strip").children) button.setAttribute("aria-pressed", String(Number(button.dataset.image) === state.image));
}

// Buttons for tokens that have no place on the picture, and for the most attended patch.
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
  byId("versions").setAttribute("aria-busy", "true");
  const { image, layer } = state;
  const versions = roles.length > 1 ? [0, shownVariant()] : [0];
  const kept = await Promise.all(
    versions.map(async (variant) => ({
      variant,
      picture: await pictureOf(image, variant),
      received: await receivedOf(image, variant, layer),
      matrix: await matrixOf(image, variant, layer),
    })),
  );
  if (turn !== explorerTurn) return; // something else was picked meanwhile
  const [clean, corrupted] = kept;
  const token = chosenToken(clean.received);
  const located = locate(token, layerOf());
  const drawn = { image, layer, token, located, clean, corrupted };
  drawVersion("clean", clean, clean, drawn, amountColour);
  if (corrupted) {
    drawVersion("corrupted", corrupted, clean, drawn, amountColour);
    const difference = { variant: corrupted.variant, picture: clean.picture, received: minus(corrupted.received, clean.received), matrix: minus(corrupted.matrix, clean.matrix) };
    drawVersion("difference", difference, clean, drawn, differenceColour);
  }
  byId("readout").textContent = readout(drawn);
  explorerDrawn = drawn;
  byId("versions").setAttribute("aria-busy", "false");
}
let explorerDrawn = null;

// Corrupted minus clean of two maps or matrices.
function minus(after, before) {
  if (!after || !before) return null;
  return { ...after, values: after.values.map((value, place) => value - before.values[place]), top: [] };
}

function drawVersion(role, version, clean, drawn, colourOf) {
  const parts = columnsOf[role];
  const opacity = Number(byId("opacity").value) / 100;
  const { label } = data.variants[version.variant];
  const missing = version.variant && version.variant !== state.variant ? ` (this page has no pictures at severity ${pickedVariant().severity})` : "";
  parts.title.textContent = role === "difference" ? `${label} − clean` : `${label}${missing}`;
  parts.prediction.textContent = role === "difference" ? keptText(drawn) : predictionText(drawn.image, version.variant);
  const layer = layerOf();
  const onPicture = (canvas, map) => {
    drawPicture(canvas, version.picture, role === "difference");
    if (map) overlay(canvas, map, colourOf, opacity);
  };
  onPicture(parts.main, version.received);
  if (version.received && byId("outline").checked && role !== "difference") {
    const lost = clean.received.top.filter((place) => !version.received.top.includes(place));
    frames(parts.main, version.received, lost, colours.lost, [5, 4]);
    frames(parts.main, version.received, version.received.top, colours.kept, []);
  }
  for (const direction of ["to", "from"]) {
    const map = version.matrix && drawn.located ? mapOf(version.matrix, layer, drawn.located, direction) : null;
    onPicture(parts[direction], map);
    parts[direction].parentElement.classList.toggle("empty", !map);
    if (drawn.token.prefix === undefined) frameToken(parts[direction], drawn.token);
  }
  if (drawn.token.prefix === undefined) frameToken(parts.main, drawn.token);
  drawMatrix(parts, version, role, drawn, colourOf);
}

function frameToken(canvas, token) {
  const [rows, columns] = gridOf(layerOf());
  frame(canvas, rows, columns, clampIndex(token.y, rows), clampIndex(token.x, columns), colours.chosen, [], 3);
}

// The grid that patches are chosen on.
const gridOf = (layer) => (layer.kind === "window" ? layer.imageGrid : layer.matrix?.queryGrid ?? layer.imageGrid) ?? [1, 1];

function keptText({ clean, corrupted }) {
  if (!clean.received || !corrupted.received) return "";
  const kept = corrupted.received.top.filter((place) => clean.received.top.includes(place)).length;
  return `${kept} of ${clean.received.top.length} top patches kept`;
}

// What the chosen patch receives, in words; also read out by screen readers.
function readout({ token, clean, corrupted }) {
  if (token.prefix !== undefined) return layerOf().matrix ? `Token ${token.prefix} before the patches.` : "";
  const received = clean.received;
  if (!received) return "This layer's patches have no known grid.";
  const [rows, columns] = gridOf(layerOf());
  const where = `Patch in row ${clampIndex(token.y, rows) + 1}, column ${clampIndex(token.x, columns) + 1}`;
  const says = (map) => {
    const value = map.values[clampIndex(token.y, map.rows) * map.columns + clampIndex(token.x, map.columns)];
    const rank = map.values.reduce((above, other) => above + (other > value ? 1 : 0), 1);
    return `${times(value)} uniform (rank ${rank} of ${map.values.length})`;
  };
  const after = corrupted?.received ? `; under ${data.variants[corrupted.variant].label} ${says(corrupted.received)}` : "";
  return `${where} receives ${says(received)}${after}.`;
}

function listenToPicture(canvas) {
  const tokenAt = (event) => {
    const box = canvas.getBoundingClientRect();
    return { x: Math.max(0, Math.min(0.999, (event.clientX - box.left) / box.width)), y: Math.max(0, Math.min(0.999, (event.clientY - box.top) / box.height)) };
  };
  canvas.addEventListener("pointermove", (event) => {
    if (event.pointerType !== "touch") pick({ hovered: tokenAt(event) });
  });
  canvas.addEventListener("pointerleave", () => pick({ hovered: null }));
  canvas.addEventListener("click", (event) => pick({ pinned: tokenAt(event), hovered: null }));
  canvas.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (!step || event.shiftKey || !explorerDrawn) return;
    event.preventDefault();
    event.stopPropagation();
    const [rows, columns] = gridOf(layerOf());
    const { x, y } = explorerDrawn.token.prefix === undefined ? explorerDrawn.token : { x: 0, y: 0 };
    const move = (share, count, by) => (Math.max(0, Math.min(count - 1, clampIndex(share, count) + by)) + 0.5) / count;
    pick({ pinned: { x: move(x, columns, step[0]), y: move(y, rows, step[1]) }, hovered: null });
  });
}
