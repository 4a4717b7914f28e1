// Drawing on canvases: images, cells of a grid in colour, outlines.
const ink = () => getComputedStyle(document.body).color;

// A small canvas with one pixel per cell; cells without a value stay clear.
function cells(rows, columns, values, colourOf) {
  const canvas = make("canvas", { width: columns, height: rows });
  const context = canvas.getContext("2d");
  const image = context.createImageData(columns, rows);
  for (let place = 0; place < rows * columns; place += 1) {
    if (Number.isNaN(values[place])) continue;
    const [red, green, blue, alpha = 255] = colourOf(values[place]);
    image.data.set([red, green, blue, alpha], 4 * place);
  }
  context.putImageData(image, 0, 0);
  return canvas;
}

function drawPicture(canvas, picture, grey, side = 448) {
  const context = canvas.getContext("2d");
  const longest = side / Math.max(picture.width, picture.height);
  canvas.width = Math.round(picture.width * longest);
  canvas.height = Math.round(picture.height * longest);
  context.imageSmoothingEnabled = picture.width > 96;
  context.filter = grey ? "grayscale(1)" : "none";
  context.drawImage(picture, 0, 0, canvas.width, canvas.height);
  context.filter = "none";
}

function overlay(canvas, map, colourOf, opacity) {
  const context = canvas.getContext("2d");
  context.imageSmoothingEnabled = false;
  context.globalAlpha = opacity;
  context.drawImage(cells(map.rows, map.columns, map.values, colourOf), 0, 0, canvas.width, canvas.height);
  context.globalAlpha = 1;
}

// A frame just inside a cell: dark under bright, so that it shows on any image.
function frame(canvas, rows, columns, row, column, colour, dash = [], width = 3) {
  const context = canvas.getContext("2d");
  const [cellWidth, cellHeight] = [canvas.width / columns, canvas.height / rows];
  const box = [column * cellWidth + 1.5, row * cellHeight + 1.5, cellWidth - 3, cellHeight - 3];
  context.setLineDash([]);
  context.strokeStyle = "rgba(0, 0, 0, 0.75)";
  context.lineWidth = width + 2;
  context.strokeRect(...box);
  context.setLineDash(dash);
  context.strokeStyle = colour;
  context.lineWidth = width;
  context.strokeRect(...box);
  context.setLineDash([]);
}

const colours = { kept: "#ff9d5c", lost: "#ffffff", chosen: "#ffffff" };

// One line round all cells at `places`; neighbours share it, so that many cells do not hide the image.
function frames(canvas, { rows, columns }, places, colour, dash) {
  const context = canvas.getContext("2d");
  const [width, height] = [canvas.width / columns, canvas.height / rows];
  const inside = new Set(places);
  const thick = Math.max(1.2, Math.min(3, Math.min(width, height) / 9));
  const inset = thick / 2 + 0.5;
  context.beginPath();
  for (const place of places) {
    const [row, column] = [Math.floor(place / columns), place % columns];
    const [left, top, right, bottom] = [column * width, row * height, (column + 1) * width, (row + 1) * height];
    const has = (down, across) => row + down >= 0 && row + down < rows && column + across >= 0 && column + across < columns && inside.has(place + down * columns + across);
    const edge = (open, x1, y1, x2, y2) => open && (context.moveTo(x1, y1), context.lineTo(x2, y2));
    const [l, r] = [has(0, -1) ? left : left + inset, has(0, 1) ? right : right - inset];
    const [t, b] = [has(-1, 0) ? top : top + inset, has(1, 0) ? bottom : bottom - inset];
    edge(!has(-1, 0), l, top + inset, r, top + inset);
    edge(!has(1, 0), l, bottom - inset, r, bottom - inset);
    edge(!has(0, -1), left + inset, t, left + inset, b);
    edge(!has(0, 1), right - inset, t, right - inset, b);
  }
  context.lineCap = "square";
  for (const [shade, line, dashes] of [["rgba(0, 0, 0, 0.7)", thick + 1.4, []], [colour, thick, dash]]) {
    context.setLineDash(dashes);
    context.strokeStyle = shade;
    context.lineWidth = line;
    context.stroke();
  }
  context.setLineDash([]);
}
