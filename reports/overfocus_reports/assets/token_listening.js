// The chosen token: what it receives, in words, and how pointer and arrow keys choose it.
// What the chosen patch receives, in words; also read out by screen readers.
function readout({ layer, token, clean, corrupted }) {
  if (token.prefix !== undefined) return layer.matrix ? `Token ${token.prefix} before the patches.` : "";
  const received = clean.received;
  if (!received) return "This layer's patches have no known grid.";
  const [rows, columns] = gridOf(layer);
  const where = `Patch in row ${clampIndex(token.y, rows) + 1}, column ${clampIndex(token.x, columns) + 1}`;
  const says = (map) => {
    const value = map.values[clampIndex(token.y, map.rows) * map.columns + clampIndex(token.x, map.columns)];
    const rank = map.values.reduce((above, other) => above + (other > value ? 1 : 0), 1);
    return `${times(value)} uniform (rank ${rank} of ${map.values.length})`;
  };
  const after = corrupted?.received ? `; under ${data.variants[corrupted.variant].label}, ${says(corrupted.received)}` : "";
  return `${where} receives ${says(received)}${after}.`;
}

// What choosing a patch shows in this layer, for this pointer; nothing where it shows nothing.
function hint({ layer, clean }) {
  const shape = layer.matrix;
  const directed = shape && (layer.kind === "window" ? layer.partition !== null : shape.queryGrid && shape.keyGrid);
  if (!directed && !clean.received) return "";
  const shows = directed ? "where it attends and who attends to it" : "how much attention it receives";
  if (matchMedia("(hover: none)").matches) return `Tap a patch to see ${shows}.`;
  return `Hover over a patch to see ${shows}; click to keep it; the arrow keys move it.`;
}

// `listens` tells whether the canvas shows an image at the moment.
function listenToPicture(canvas, listens = () => true) {
  const tokenAt = (event) => {
    const box = canvas.getBoundingClientRect();
    return { x: Math.max(0, Math.min(0.999, (event.clientX - box.left) / box.width)), y: Math.max(0, Math.min(0.999, (event.clientY - box.top) / box.height)) };
  };
  canvas.addEventListener("pointermove", (event) => {
    if (event.pointerType !== "touch" && listens()) pick({ hovered: tokenAt(event) });
  });
  canvas.addEventListener("pointerleave", () => pick({ hovered: null }));
  canvas.addEventListener("click", (event) => listens() && pick({ pinned: tokenAt(event), hovered: null }));
  canvas.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (!step || event.shiftKey || !explorerDrawn || !listens()) return;
    event.preventDefault();
    event.stopPropagation();
    const [rows, columns] = gridOf(layerOf());
    const { x, y } = explorerDrawn.token.prefix === undefined ? explorerDrawn.token : { x: 0, y: 0 };
    const move = (share, count, by) => (Math.max(0, Math.min(count - 1, clampIndex(share, count) + by)) + 0.5) / count;
    pick({ pinned: { x: move(x, columns, step[0]), y: move(y, rows, step[1]) }, hovered: null });
  });
}
