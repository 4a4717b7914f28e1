// Pictures and greyscale PNGs, decoded when first needed and kept.
const codeTables = new Map();
const decodings = new Map();

// Byte to multiple of uniform attention; byte 0 is less than the scale holds.
function codeTable(perOctave) {
  if (!codeTables.has(perOctave)) {
    const table = Float64Array.from({ length: 256 }, (_, code) => (code ? 2 ** (data.received.floor + (code - 1) / perOctave) : 0));
    codeTables.set(perOctave, table);
  }
  return codeTables.get(perOctave);
}

async function loadPicture(source) {
  const picture = new Image();
  picture.src = source;
  await picture.decode();
  return picture;
}

async function readGrey(base64, perOctave) {
  const picture = await loadPicture(`data:image/png;base64,${base64}`);
  const canvas = make("canvas", { width: picture.width, height: picture.height });
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(picture, 0, 0);
  const pixels = context.getImageData(0, 0, picture.width, picture.height).data;
  const table = codeTable(perOctave);
  const values = new Float32Array(picture.width * picture.height);
  for (let place = 0; place < values.length; place += 1) values[place] = table[pixels[4 * place]];
  return { width: picture.width, height: picture.height, values };
}

function remembered(key, load) {
  if (!decodings.has(key)) decodings.set(key, load());
  return decodings.get(key);
}

const pictureOf = (image, variant) => {
  const source = data.pictures[image]?.[variant];
  return source ? remembered(`picture ${image} ${variant}`, () => loadPicture(source)) : null;
};

// Received attention of one layer: {rows, columns, values in multiples of uniform attention, top: places of the top k}.
async function receivedOf(image, variant, layer) {
  const kept = data.sheets[image]?.[variant];
  const { imageGrid, start, size } = data.layers[layer];
  if (!kept?.sheet || !imageGrid) return null;
  const sheet = await remembered(`sheet ${image} ${variant}`, () => readGrey(kept.sheet, data.received.perOctave));
  return { rows: imageGrid[0], columns: imageGrid[1], values: sheet.values.subarray(start, start + size), top: kept.top[layer] };
}

// Attention matrix of one layer, windows one below the other; null where the page has none.
function matrixOf(image, variant, layer) {
  const source = data.matrices[image]?.[variant]?.[layer];
  const shape = data.layers[layer].matrix;
  return source ? remembered(`matrix ${image} ${variant} ${layer}`, () => readGrey(source, shape.perOctave)) : null;
}
