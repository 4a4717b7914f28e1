// Where tokens lie: from a point on the image to a row or column of a layer's matrix, and from a row or column to a map.
const clampIndex = (share, count) => Math.max(0, Math.min(count - 1, Math.floor(share * count)));

const prefixCount = (tokens, grid) => tokens - (grid ? grid[0] * grid[1] : 0);

// Number of the block that a patch falls in, behind the prefix tokens.
function blockOf(place, grid, block, prefix) {
  const [row, column] = [Math.floor(place / grid[1]), place % grid[1]];
  return prefix + Math.floor(row / block) * Math.ceil(grid[1] / block) + Math.floor(column / block);
}

// Sides of a matrix as it is kept: number of rows of one window, and of columns.
function keptSides(shape) {
  const blocks = (tokens, grid, block) =>
    grid && block > 1 ? prefixCount(tokens, grid) + Math.ceil(grid[0] / block) * Math.ceil(grid[1] / block) : tokens;
  return [blocks(shape.queries, shape.queryGrid, shape.queryBlock), blocks(shape.keys, shape.keyGrid, shape.keyBlock)];
}

const modelNumberOf = (layer) => data.models.findIndex((model) => model.layers.includes(layer));
const partitionOf = (layer) => data.models[modelNumberOf(layer)].partitions[layer.partition];

// Window and token of each place on the image's patch grid; made once per layer.
function windowPlaces(layer) {
  return remembered(`windows ${modelNumberOf(layer)} ${layer.number}`, () => {
    const places = new Array(layer.imageGrid[0] * layer.imageGrid[1]).fill(null);
    partitionOf(layer).forEach((tokens, window) => {
      tokens.forEach((place, token) => {
        if (place >= 0) places[place] = { window, token };
      });
    });
    return places;
  });
}

// The chosen token in a layer: {window, row, column} of the matrix, null for what the layer does not have.
function locate(point, layer) {
  const shape = layer.matrix;
  if (!shape) return null;
  const queryPrefix = prefixCount(shape.queries, shape.queryGrid);
  const keyPrefix = prefixCount(shape.keys, shape.keyGrid);
  if (point.prefix !== undefined) {
    const number = point.prefix;
    return { window: 0, row: number < queryPrefix ? number : null, column: number < keyPrefix ? number : null };
  }
  const placeOn = (grid) => clampIndex(point.y, grid[0]) * grid[1] + clampIndex(point.x, grid[1]);
  if (layer.kind === "window") {
    const found = layer.partition === null ? null : windowPlaces(layer)[placeOn(layer.imageGrid)];
    if (!found) return null;
    return {
      window: found.window,
      row: blockOf(found.token, shape.queryGrid, shape.queryBlock, queryPrefix),
      column: blockOf(found.token, shape.keyGrid, shape.keyBlock, keyPrefix),
    };
  }
  return {
    window: 0,
    row: shape.queryGrid ? blockOf(placeOn(shape.queryGrid), shape.queryGrid, shape.queryBlock, queryPrefix) : null,
    column: shape.keyGrid ? blockOf(placeOn(shape.keyGrid), shape.keyGrid, shape.keyBlock, keyPrefix) : null,
  };
}

// A row of a matrix ("to": where a token attends) or a column ("from": who attends to it) laid out on the image.
function mapOf(matrix, layer, located, direction) {
  const shape = layer.matrix;
  const [height] = keptSides(shape);
  const [grid, block, tokens] =
    direction === "to" ? [shape.keyGrid, shape.keyBlock, shape.keys] : [shape.queryGrid, shape.queryBlock, shape.queries];
  const index = direction === "to" ? located.row : located.column;
  if (!grid || index === null) return null;
  const first = located.window * height;
  const valueAt = (place) => {
    const other = blockOf(place, grid, block, prefixCount(tokens, grid));
    return direction === "to"
      ? matrix.values[(first + index) * matrix.width + other]
      : matrix.values[(first + other) * matrix.width + index];
  };
  if (layer.kind !== "window") {
    return { rows: grid[0], columns: grid[1], values: Float32Array.from({ length: grid[0] * grid[1] }, (_, place) => valueAt(place)) };
  }
  const [rows, columns] = layer.imageGrid;
  const values = new Float32Array(rows * columns).fill(NaN);
  partitionOf(layer)[located.window].forEach((place, token) => {
    if (place >= 0) values[place] = valueAt(token);
  });
  return { rows, columns, values };
}
