// The attention matrix with the sums of its columns above and of its rows beside it.
const edge = 44; // pixels of the canvas that the sums take

// Draws it and returns what to say below it.
function drawMatrix(canvas, version, role, drawn) {
  const { layer } = drawn;
  const shape = layer.matrix;
  const colourOf = role === "difference" ? differenceColour : amountColour;
  canvas.parentElement.classList.toggle("empty", !version.matrix);
  if (!version.matrix || !shape) {
    canvas.width = canvas.height = 1;
    return missingMatrix(version.variant, drawn);
  }
  const [rows, columns] = keptSides(shape);
  const window = drawn.located?.window ?? 0;
  const values = version.matrix.values.subarray(window * rows * columns, (window + 1) * rows * columns);
  const scale = Math.max(1, Math.ceil(600 / columns));
  const proportion = Math.max(0.12, Math.min(1, Math.sqrt(shape.queries / shape.keys))); // of the tokens, however they are pooled
  const [width, height] = [columns * scale, Math.round(columns * scale * proportion)];
  canvas.width = width + edge;
  canvas.height = height + edge;
  const context = canvas.getContext("2d");
  context.imageSmoothingEnabled = false;
  context.drawImage(cells(rows, columns, values, colourOf), 0, edge, width, height);
  const sums = role === "difference" ? null : edgeSums(values, rows, columns, shape);
  if (sums) drawEdges(context, sums, width, height);
  markToken(context, drawn.located, rows, columns, width, height);
  const note = role === "difference" ? "Corrupted minus clean." : matrixNote(layer, sums);
  canvas.setAttribute("aria-label", `attention matrix, ${role}: ${shape.queries} queries by ${shape.keys} keys. ${note}`);
  return note;
}

// Why there is no matrix to show.
function missingMatrix(variant, { model, layer, image }) {
  if (!layer.matrix) return "No matrix is kept for this layer: it has too many tokens, or the page would have grown too large.";
  if (modelOf(model).matrices[image]?.[variant]) return "No matrix is kept for this image.";
  const severities = [...new Set(Object.keys(modelOf(model).matrices[image] ?? {}).map((number) => data.variants[number].severity))].filter(Boolean);
  return `To keep the page small, it holds matrices at severity ${severities.join(", ")} only; pick that to see where tokens attend.`;
}

// Column sums in multiples of what uniform attention gives (every query counts once), and each row's share that goes to patches.
function edgeSums(values, rows, columns, shape) {
  const rowWeights = blockSizes(shape.queries, shape.queryGrid, shape.queryBlock);
  const columnWeights = blockSizes(shape.keys, shape.keyGrid, shape.keyBlock);
  const prefix = prefixCount(shape.keys, shape.keyGrid);
  const columnSums = new Float64Array(columns);
  const rowSums = new Float64Array(rows);
  for (let row = 0; row < rows; row += 1) {
    for (let column = 0; column < columns; column += 1) {
      const value = values[row * columns + column];
      columnSums[column] += (value * rowWeights[row]) / shape.queries;
      if (column >= prefix) rowSums[row] += (value * columnWeights[column]) / shape.keys;
    }
  }
  return { columnSums, rowSums, largest: Math.max(...columnSums) };
}

// How many tokens each kept row or column stands for.
function blockSizes(tokens, grid, block) {
  const prefix = prefixCount(tokens, grid);
  if (!grid || block === 1) return new Array(tokens).fill(1);
  const sizes = new Array(prefix).fill(1);
  for (let place = 0; place < grid[0] * grid[1]; place += 1) {
    const number = blockOf(place, grid, block, prefix);
    sizes[number] = (sizes[number] ?? 0) + 1;
  }
  return sizes;
}

function drawEdges(context, { columnSums, rowSums, largest }, width, height) {
  context.fillStyle = ink();
  context.globalAlpha = 0.75;
  const room = edge - 6;
  columnSums.forEach((sum, column) => {
    const size = (room * sum) / largest;
    context.fillRect((column * width) / columnSums.length, room - size, Math.max(1, width / columnSums.length), size);
  });
  rowSums.forEach((sum, row) => {
    context.globalAlpha = 0.35;
    const size = room * Math.min(1, sum);
    context.fillRect(width + 6, edge + (row * height) / rowSums.length, size, Math.max(1, height / rowSums.length));
  });
  context.globalAlpha = 1;
}

function markToken(context, located, rows, columns, width, height) {
  if (!located) return;
  context.fillStyle = "#ff9d5c";
  if (located.row !== null) context.fillRect(width, edge + (located.row * height) / rows, 5, Math.max(3, height / rows));
  if (located.column !== null) context.fillRect((located.column * width) / columns, edge - 5, Math.max(3, width / columns), 5);
}

function matrixNote(layer, sums) {
  const { queryBlock, keyBlock } = layer.matrix;
  const what = layer.kind === "window" ? "One window; rows are queries, columns keys." : "Rows are queries, columns keys.";
  const edges = `Above: column sums, up to ${times(sums.largest)} uniform; beside: share of each row that goes to patches.`;
  const averaged = (block, name) => (block > 1 ? [`${block} × ${block} ${name}`] : []);
  const blocks = [...averaged(queryBlock, "queries"), ...averaged(keyBlock, "keys")];
  return `${what} ${edges}${blocks.length ? ` To keep the page small, a cell averages ${blocks.join(" and ")}.` : ""}`;
}

// Hovering a row of the matrix chooses its query.
function listenToMatrix(canvas) {
  const tokenAt = (event) => {
    const layer = layerOf();
    const shape = layer.matrix;
    if (!shape?.queryGrid || layer.kind === "window") return null;
    const box = canvas.getBoundingClientRect();
    const [rows] = keptSides(shape);
    const top = (edge / canvas.height) * box.height;
    const row = clampIndex((event.clientY - box.top - top) / (box.height - top), rows);
    const prefix = prefixCount(shape.queries, shape.queryGrid);
    if (row < prefix) return { prefix: row };
    const across = Math.ceil(shape.queryGrid[1] / shape.queryBlock);
    const middle = (number, count) => Math.min(0.999, ((number + 0.5) * shape.queryBlock) / count);
    return { x: middle((row - prefix) % across, shape.queryGrid[1]), y: middle(Math.floor((row - prefix) / across), shape.queryGrid[0]) };
  };
  canvas.addEventListener("pointermove", (event) => {
    if (event.pointerType !== "touch") pick({ hovered: tokenAt(event) });
  });
  canvas.addEventListener("pointerleave", () => pick({ hovered: null }));
  canvas.addEventListener("click", (event) => pick({ pinned: tokenAt(event), hovered: null }));
}
