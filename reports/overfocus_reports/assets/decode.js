// Images and greyscale PNGs, decoded when first needed and kept.
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

// Images stand with the first model where another model saw the very same.
const picturesOf = (model = state.model) => data.models[model].pictures ?? data.models[0].pictures;
const pictureOf = (model, image, variant) => {
  const owner = data.models[model].pictures ? model : 0;
  const source = data.models[owner].pictures[image]?.[variant];
  return source ? remembered(`picture ${owner} ${image} ${variant}`, () => loadPicture(source)) : null;
};

// Received attention of a model's picked layer: {rows, columns, values in multiples of uniform attention, top: places of the top k}.
async function receivedOf(model, image, variant) {
  const kept = data.models[model].sheets[image]?.[variant];
  const place = layerPlace(model);
  const { imageGrid, start, size } = data.models[model].layers[place];
  if (!kept?.sheet || !imageGrid) return null;
  const sheet = await remembered(`sheet ${model} ${image} ${variant}`, () => readGrey(kept.sheet, data.received.perOctave));
  return { rows: imageGrid[0], columns: imageGrid[1], values: sheet.values.subarray(start, start + size), top: kept.top[place] };
}

// Attention matrix of that layer, windows one below the other; null where the page has none.
function matrixOf(model, image, variant) {
  const place = layerPlace(model);
  const source = data.models[model].matrices[image]?.[variant]?.[place];
  const shape = data.models[model].layers[place].matrix;
  return source ? remembered(`matrix ${model} ${image} ${variant} ${place}`, () => readGrey(source, shape.perOctave)) : null;
}
