// What the model says of each image, clean and under the picked corruption.
function predictionOf(image, variant, model = state.model) {
  const { predictions } = modelOf(model);
  const place = predictions.images.indexOf(image);
  const number = place < 0 ? null : predictions.predicted[variant][place];
  if (number === null) return null;
  return { name: predictions.classes[number], confidence: predictions.confidence[variant][place] };
}

const sayPrediction = (found) => (found ? `${found.name}${known(found.confidence) ? ` (${percent(found.confidence)})` : ""}` : "");

// "lynx (42 %)" for the clean image; with "was …" where the corruption changed it.
function predictionText(image, variant, model = state.model) {
  if (modelOf(model).segmentation) return pixelText(image, variant, model);
  const [clean, now] = [predictionOf(image, 0, model), predictionOf(image, variant, model)];
  if (!now) return "";
  return variant && clean && clean.name !== now.name ? `${sayPrediction(now)}, was ${clean.name}` : sayPrediction(now);
}

// Of segmentation: "12 % of the pixels change, IoU 44 %".
function pixelText(image, variant, model) {
  const { kept, iou, images } = modelOf(model).predictions;
  const place = images.indexOf(image);
  if (place < 0) return "";
  const changed = known(kept[variant][place]) ? [`${percent(1 - kept[variant][place])} of the pixels change`] : [];
  return [...changed, ...(known(iou[variant][place]) ? [`IoU ${percent(iou[variant][place])}`] : [])].join(", ");
}

function buildPredictions() {
  if (!byId("predictions")) return;
  const { left } = modelOf().predictions;
  const notes = segmented ? ["Classes are those of most pixels; confidence is the mean over pixels, IoU the mean over an image's classes."] : [];
  if (left) notes.push(`${left} more images are in predictions/*.parquet.`);
  byId("prediction-note").textContent = notes.join(" ");
  byId("prediction-note").hidden = !notes.length;
  whenPicked(["model", "variant", "image"], drawPredictions);
}

function drawPredictions() {
  const variant = state.variant;
  const { classified, labelled } = data;
  const cell = (value, text, attributes = {}) => make("td", { "data-value": value ?? "", ...attributes }, text);
  const rows = modelOf().predictions.images.map((image) => {
    const [clean, after] = [predictionOf(image, 0), predictionOf(image, variant)];
    const [name, label] = [nameOf(image), data.images[image]?.label ?? "–"];
    const opens = () => {
      pick({ image, pinned: null });
      byId("explorer").scrollIntoView();
    };
    const title = data.displayed.includes(image) ? make("button", { type: "button", class: "link", onclick: opens }, name) : name;
    const cells = [make("th", { scope: "row", "data-value": name }, title)];
    if (labelled) cells.push(cell(label, label));
    if (classified) cells.push(cell(clean?.name, clean?.name ?? "–"), cell(clean?.confidence, percent(clean?.confidence)));
    if (variant && classified) {
      const same = clean && after ? clean.name === after.name : null;
      cells.push(cell(after?.name, after?.name ?? "–"), cell(after?.confidence, percent(after?.confidence)));
      if (segmented) cells.push(pixelCell(image, variant, "kept"));
      else cells.push(cell(same === null ? "" : Number(same), same === null ? "–" : same ? "✓ same" : "✗ changed", { class: same === false ? "changed" : null }));
    }
    if (segmented) cells.push(pixelCell(image, 0, "iou"), ...(variant ? [pixelCell(image, variant, "iou")] : []));
    if (variant) cells.push(cell(movedOf(image, variant), percent(movedOf(image, variant))));
    return make("tr", { class: image === state.image ? "current" : null }, ...cells);
  });
  byId("prediction-table").tBodies[0].replaceChildren(...rows);
}

const pixelCell = (image, variant, score) => {
  const { images, [score]: values } = modelOf().predictions;
  const value = values?.[variant][images.indexOf(image)];
  return make("td", { "data-value": value ?? "" }, percent(value));
};

const movedOf = (image, variant) => {
  const place = modelOf().predictions.images.indexOf(image);
  return modelOf().predictions.moved[variant][place];
};
