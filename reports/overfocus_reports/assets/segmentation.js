// Segmentation: for each displayed image the received attention above the class of every pixel, clean, corrupted and what changed.
const segmented = data.models.some((model) => model.segmentation);
const segmentedColumns = (data.variants?.length ?? 0) > 1 ? ["clean", "corrupted", "change"] : ["clean"];
const flipColours = { lost: [213, 94, 0], gained: [0, 158, 115], other: [240, 228, 66] };
const nothing = [0, 0, 0, 0];
const ignored = 255;
const widest = 800;
let segmentedTurn = 0;
const segmentedParts = new Map();

function buildSegmentation() {
  if (!segmented || !byId("segmentation-images")) return;
  for (const image of data.displayed) {
    const parts = segmentedImage(image);
    segmentedParts.set(image, parts);
    byId("segmentation-images").append(parts.article);
  }
  drawScale(byId("segmentation-scale"), amountRamp, amountTicks(), "attention, × uniform");
  if (segmentedColumns.length > 1) drawScale(byId("segmentation-difference-scale"), differenceRamp, differenceTicks(), "moved, × uniform");
  byId("segmentation-opacity").addEventListener("input", drawSegmentation);
  whenPicked(["model", "variant", "layer"], drawSegmentation);
}

function segmentedImage(image) {
  const parts = { panels: {}, said: make("p", { class: "counts" }), table: make("table"), note: make("p", { class: "flip-key" }) };
  const panel = (name) => {
    const canvas = make("canvas", { role: "img", tabindex: "0", "aria-label": `${name}, ${nameOf(image)}` });
    const figure = make("figure", { "data-panel": name }, canvas, make("figcaption"));
    const enlarge = () => figure.classList.toggle("enlarged");
    canvas.addEventListener("click", enlarge);
    canvas.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" && event.key !== " ") return;
      event.preventDefault();
      enlarge();
    });
    parts.panels[name] = figure;
    return figure;
  };
  const grid = make("div", { class: "panels" }, ...["attention", "classes"].flatMap((what) => segmentedColumns.map((column) => panel(`${what}-${column}`))));
  grid.style.setProperty("--columns", segmentedColumns.length);
  const truth = data.models.some((model) => model.segmentation?.images[image]?.truth) ? panel("truth") : null;
  const legend = make("div", { class: "classes-legend" }, parts.note, make("div", { class: "scroll tall" }, parts.table));
  grid.append(...[truth, legend].filter(Boolean));
  legend.classList.toggle("alone", !truth);
  parts.article = make("article", { class: "card segmented", "data-image": image }, make("div", { class: "head" }, make("h3", {}, nameOf(image)), segmentedDownloads(image)), parts.said, grid);
  return parts;
}

// The number of the class of each pixel: {width, height, values}.
async function readClasses(base64) {
  const picture = await loadPicture(`data:image/png;base64,${base64}`);
  const canvas = make("canvas", { width: picture.width, height: picture.height });
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(picture, 0, 0);
  const pixels = context.getImageData(0, 0, picture.width, picture.height).data;
  return { width: picture.width, height: picture.height, values: Uint8Array.from({ length: picture.width * picture.height }, (_, place) => pixels[4 * place]) };
}

const classesOf = (model, image, variant) =>
  remembered(`classes ${model} ${image} ${variant}`, () => readClasses(data.models[model].segmentation.images[image].maps[variant]));
const truthOf = (model, image) => {
  const { truth } = data.models[model].segmentation.images[image];
  return truth ? remembered(`truth ${model} ${image}`, () => readClasses(truth)) : null;
};

async function drawSegmentation() {
  const turn = (segmentedTurn += 1);
  const holder = byId("segmentation-images");
  holder.setAttribute("aria-busy", "true");
  byId("segmentation").hidden = !modelOf().segmentation;
  if (!modelOf().segmentation) return;
  byId("segmentation-layer").textContent = layerOf().label;
  for (const [image, parts] of segmentedParts) {
    const versions = segmentedColumns.length > 1 ? [0, shownVariant()] : [0];
    const found = await Promise.all(versions.map(async (variant) => ({
      variant,
      picture: await pictureOf(state.model, image, variant),
      received: await receivedOf(state.model, image, variant),
      classes: await classesOf(state.model, image, variant),
    })));
    const truth = await truthOf(state.model, image);
    if (turn !== segmentedTurn) return; // something else was picked meanwhile
    drawSegmentedImage(image, parts, found, truth);
  }
  holder.setAttribute("aria-busy", "false");
}

function drawSegmentedImage(image, parts, [clean, corrupted], truth) {
  const label = corrupted ? data.variants[corrupted.variant].label : "";
  const draw = (name, picture, grey, caption, over) => {
    const [canvas, text] = parts.panels[name].children;
    drawPicture(canvas, picture, grey, widest);
    over(canvas);
    text.textContent = caption;
  };
  const opacity = Number(byId("segmentation-opacity").value) / 100;
  const attention = (map, colourOf) => (canvas) => map && overlay(canvas, map, colourOf, opacity);
  const classes = (map) => (canvas) => paintClasses(canvas, map, classColours(), opacity);
  draw("attention-clean", clean.picture, false, "attention, clean", attention(clean.received, amountColour));
  draw("classes-clean", clean.picture, true, "prediction, clean", classes(clean.classes));
  if (corrupted) {
    draw("attention-corrupted", corrupted.picture, false, `attention, ${label}`, attention(corrupted.received, amountColour));
    draw("classes-corrupted", corrupted.picture, true, `prediction, ${label}`, classes(corrupted.classes));
    draw("attention-change", clean.picture, true, "where attention moved", attention(minus(corrupted.received, clean.received), differenceColour));
    const flipped = flippedPixels(clean.classes, corrupted.classes, truth);
    draw("classes-change", clean.picture, true, "pixels that change their class", (canvas) => {
      dim(canvas);
      paintClasses(canvas, flipped, [nothing, ...Object.values(flipColours)], 1);
    });
  }
  if (parts.panels.truth) draw("truth", clean.picture, true, "ground truth", (canvas) => truth && paintClasses(canvas, truth, classColours(), opacity));
  parts.said.textContent = segmentedSentence(image, corrupted);
  parts.note.replaceChildren(...(corrupted ? flipKeys(image, corrupted.variant) : []));
  drawClassTable(image, parts.table, corrupted);
}

const classColours = () => modelOf().segmentation.colours;

// Every pixel of a class map in its class's colour; numbers without one, such as ignored pixels, stay clear.
function paintClasses(canvas, { width, height, values }, colours, opacity) {
  const words = new Uint32Array(256);
  const bytes = new Uint8Array(words.buffer);
  colours.forEach(([red, green, blue, alpha = 255], number) => bytes.set([red, green, blue, alpha], 4 * number));
  const small = make("canvas", { width, height });
  const image = new ImageData(width, height);
  new Uint32Array(image.data.buffer).set(Uint32Array.from(values, (number) => words[number]));
  small.getContext("2d").putImageData(image, 0, 0);
  const context = canvas.getContext("2d");
  context.imageSmoothingEnabled = false;
  context.globalAlpha = opacity;
  context.drawImage(small, 0, 0, canvas.width, canvas.height);
  context.globalAlpha = 1;
}

// Darkens an image, so that single bright pixels show on it.
function dim(canvas) {
  const context = canvas.getContext("2d");
  context.fillStyle = "rgba(0, 0, 0, 0.55)";
  context.fillRect(0, 0, canvas.width, canvas.height);
}

// 0 where the class stays, 1 where it was right and is no longer, 2 where it becomes right, 3 for every other change.
function flippedPixels(clean, corrupted, truth) {
  const values = clean.values.map((before, place) => {
    const [after, right] = [corrupted.values[place], truth?.values[place]];
    if (before === after || right === ignored) return 0;
    return before === right ? 1 : after === right ? 2 : 3;
  });
  return { ...clean, values };
}

function segmentedSentence(image, corrupted) {
  const { iou, flips } = modelOf().segmentation.images[image];
  if (!corrupted) return known(iou[0]) ? `Mean IoU of this image: ${percent(iou[0])}.` : "";
  const { variant } = corrupted;
  const { label } = data.variants[variant];
  const sentences = [`${percent(flips[variant][0])} of the pixels change their class under ${label}.`];
  if (known(iou[0])) sentences.push(`Mean IoU of this image: ${percent(iou[0])} clean, ${percent(iou[variant])} corrupted`);
  const set = modelOf().segmentation.set;
  if (known(iou[0]) && known(set[0])) sentences[1] += `; mIoU of all images: ${percent(set[0])} and ${percent(set[variant])}`;
  return sentences.join(" ") + (sentences.length > 1 ? "." : "");
}

function flipKeys(image, variant) {
  const [, lost, gained, other] = modelOf().segmentation.images[image].flips[variant];
  const key = (colour, text) => make("span", { class: "swatch", style: `--key: ${css(colour)}` }, text);
  if (!known(lost)) return [key(flipColours.other, "changes its class")];
  return [
    key(flipColours.lost, `right → wrong, ${percent(lost)} of the pixels`),
    key(flipColours.gained, `wrong → right, ${percent(gained)}`),
    key(flipColours.other, `wrong → otherwise wrong, ${percent(other)}`),
  ];
}

// The legend: each class with its colour, its share of the pixels, and of the layer's attention where masks show what is there.
function drawClassTable(image, table, corrupted) {
  const { names, colours, images } = modelOf().segmentation;
  const { present, predictedShares, trueShares, attention } = images[image];
  const received = attention?.[layerOf().number];
  const after = corrupted?.variant;
  const columns = [
    ...(trueShares ? [["Truth", (number) => trueShares[number]]] : []),
    ["Predicted", (number) => predictedShares[0][number]],
    ...(corrupted ? [["Corrupted", (number) => predictedShares[after][number]]] : []),
    ...(received ? [["Attention", (number) => received[0][number]]] : []),
    ...(received && corrupted ? [["Corrupted", (number) => received[after][number]]] : []),
  ];
  const size = (number) => (trueShares ?? predictedShares[0])[number];
  const rows = [...present].sort((one, other) => size(other) - size(one)).map((number) =>
    make("tr", {}, make("th", { scope: "row" }, make("span", { class: "swatch", style: `--key: ${css(colours[number])}` }, names[number])), ...columns.map(([, value]) => make("td", {}, percent(value(number))))),
  );
  const pixels = columns.length - (received ? (corrupted ? 2 : 1) : 0);
  const groups = make("tr", {}, make("td"), make("th", { scope: "colgroup", colspan: pixels }, "of the pixels"), received ? make("th", { scope: "colgroup", colspan: columns.length - pixels }, "of the layer's attention, by truth") : null);
  const head = make("tr", {}, make("th", { scope: "col" }, "Class"), ...columns.map(([name]) => make("th", { scope: "col" }, name)));
  table.replaceChildren(make("thead", {}, groups, head), make("tbody", {}, ...rows));
}
