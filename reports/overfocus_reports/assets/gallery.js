// The images whose attention moved most and least under the picked corruption.
function buildGallery() {
  if (!byId("gallery")) return;
  registerFigure("gallery", { csv: galleryTable });
  whenPicked(["model", "variant"], drawGallery);
}

const galleryItems = () => modelOf().gallery.items[shownVariant()] ?? [[], []];

function drawGallery() {
  const [most, least] = galleryItems();
  byId("gallery-layer").textContent = String(modelOf().gallery.layer);
  byId("gallery-most").replaceChildren(...most.map(galleryCard));
  byId("gallery-least").replaceChildren(...(least.length ? least.map(galleryCard) : ["There are too few images for a second list."]));
}

function galleryCard({ image, moved, maps }) {
  const displayed = data.displayed.includes(image);
  const source = displayed ? picturesOf()[image][0] : modelOf().gallery.pictures[image];
  const picture = source ? make("img", { src: source, alt: "" }) : make("span", { class: "missing" }, "no image");
  const canvas = make("canvas", { role: "img", "aria-label": "received attention, clean and corrupted" });
  if (maps) drawPair(canvas, maps);
  const after = predictionText(image, shownVariant());
  const parts = [
    make("span", { class: "pictures" }, picture, maps ? canvas : null),
    make("span", { class: "name" }, shortName(image)),
    make("span", {}, `${percent(moved)} moved`),
    after ? make("span", { class: "prediction" }, after) : null,
  ];
  if (!displayed) return make("div", { class: "item", title: nameOf(image) }, ...parts);
  const open = () => {
    pick({ image, pinned: null });
    byId("explorer").scrollIntoView();
  };
  return make("button", { type: "button", class: "item", title: `${nameOf(image)}: open in the explorer`, onclick: open }, ...parts);
}

async function drawPair(canvas, maps) {
  const { width, height, values } = await readGrey(maps, data.received.perOctave);
  const gap = 1;
  canvas.width = width + gap;
  canvas.height = height;
  const half = width / 2;
  const part = (start) => Float32Array.from({ length: half * height }, (_, place) => values[Math.floor(place / half) * width + start + (place % half)]);
  const context = canvas.getContext("2d");
  context.drawImage(cells(height, half, part(0), amountColour), 0, 0);
  context.drawImage(cells(height, half, part(half), amountColour), half + gap, 0);
}

function galleryTable() {
  const { corruption, severity } = data.variants[shownVariant()];
  const rows = [["list", "image", "name", "corruption", "severity", "attention moved"]];
  galleryItems().forEach((list, number) =>
    list.forEach(({ image, moved }) => rows.push([number ? "least" : "most", image, nameOf(image), corruption, severity, moved])),
  );
  return rows;
}
