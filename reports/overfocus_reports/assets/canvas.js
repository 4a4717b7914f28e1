// Drawing on canvases: pictures, cells of a grid in colour, outlines.
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

// A frame just inside a cell: dark under bright, so that it shows on any picture.
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

function frames(canvas, map, places, colour, dash) {
  for (const place of places) frame(canvas, map.rows, map.columns, Math.floor(place / map.columns), place % map.columns, colour, dash, 2);
}
