// The panels of one image as one drawing, and its classes as numbers.
function segmentedDownloads(image) {
  const name = `segmentation-${image}`;
  registerFigure(name, { svg: () => segmentedFigure(image), csv: () => segmentedTable(image) });
  const button = (format) =>
    make("button", { type: "button", class: "quiet", "data-download": format, "data-figure": name, "aria-label": `Download as ${format.toUpperCase()}` }, format.toUpperCase());
  return make("span", { class: "downloads" }, ...["svg", "png", "csv"].map(button));
}

function segmentedFigure(image) {
  const { panels, said } = segmentedParts.get(image);
  const svg = svgElement("svg", {});
  const [width, gap, columns] = [250, 12, segmentedColumns.length];
  svg.append(svgElement("text", { x: 0, y: 14, "font-size": 13, "font-weight": "bold", fill: "#1a1d23" }, nameOf(image)));
  svg.append(svgElement("text", { x: 0, y: 30, "font-size": 9, fill: "#1a1d23" }, said.textContent));
  let [top, bottom] = [40, 40];
  Object.values(panels).forEach((figure, number) => {
    const [canvas, caption] = figure.children;
    const x = (number % columns) * (width + gap);
    if (number % columns === 0) top = bottom;
    const height = (width * canvas.height) / canvas.width;
    svg.append(svgElement("image", { x, y: top, width, height, href: canvas.toDataURL("image/png") }));
    svg.append(svgElement("text", { x, y: top + height + 11, "font-size": 9, fill: "#1a1d23" }, caption.textContent));
    bottom = Math.max(bottom, top + height + 20);
  });
  const { names, colours, images } = modelOf().segmentation;
  images[image].present.forEach((number, place) => {
    const [x, y] = [(place % (2 * columns)) * 128, bottom + 14 * Math.floor(place / (2 * columns))];
    svg.append(svgElement("rect", { x, y, width: 9, height: 9, fill: css(colours[number]) }));
    svg.append(svgElement("text", { x: x + 13, y: y + 8, "font-size": 9, fill: "#1a1d23" }, names[number]));
  });
  bottom += 14 * Math.ceil(images[image].present.length / (2 * columns));
  addRamp(svg, bottom, `× uniform attention; ${several ? `${modelOf().name}, ` : ""}layer ${layerOf().label}`);
  svg.setAttribute("viewBox", `-8 -4 ${columns * (width + gap) + 6} ${bottom + 36}`);
  return svg;
}

// One row for each class and version: its share of the pixels, and of the attention of each layer.
function segmentedTable(image) {
  const { names, images } = modelOf().segmentation;
  const { present, predictedShares, trueShares, attention } = images[image];
  const { layers } = modelOf();
  const rows = [["image", "corruption", "severity", "class", "share of pixels, truth", "share of pixels, predicted", ...layers.map(({ number }) => `share of attention, layer ${number}`)]];
  data.variants.forEach(({ corruption, severity }, variant) => {
    for (const number of present) {
      const received = layers.map((layer) => attention?.[layer.number]?.[variant][number] ?? null);
      rows.push([nameOf(image), corruption, severity, names[number], trueShares?.[number] ?? null, predictedShares[variant][number], ...received]);
    }
  });
  return rows;
}
