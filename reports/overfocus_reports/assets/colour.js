// Colours of amounts (one logarithmic scale for all attention) and of differences (one logarithmic scale with a sign).
const tables = Object.fromEntries(
  Object.entries(data.colours).map(([name, text]) => [name, Uint8Array.from(text.match(/../g), (pair) => parseInt(pair, 16))]),
);

function entry(table, share) {
  const place = 3 * Math.max(0, Math.min(255, Math.round(255 * share)));
  return [table[place], table[place + 1], table[place + 2]];
}

const differenceLimit = 2 ** data.scale.high;
const amountShare = (multiple) => (Math.log2(Math.max(multiple, 1e-9)) - data.scale.low) / (data.scale.high - data.scale.low);
const differenceStart = 0.25; // below this the scale is nearly linear
const differenceSize = (difference) => Math.min(1, Math.log2(1 + Math.abs(difference) / differenceStart) / Math.log2(1 + differenceLimit / differenceStart));
const differenceShare = (difference) => 0.5 + 0.5 * Math.sign(difference) * differenceSize(difference);

const amountColour = (multiple) => entry(tables.sequential, amountShare(multiple));
const css = ([red, green, blue, alpha = 255]) => `rgb(${red} ${green} ${blue} / ${(alpha / 255).toFixed(3)})`;

// No difference is clear, so that only what changed covers the image.
function differenceColour(difference) {
  const start = difference < 0 ? 0 : 3;
  return [...tables.difference.subarray(start, start + 3), Math.round(255 * differenceSize(difference) ** 0.8)];
}

// Black or white, whichever reads better on a colour.
function textOn(colour) {
  const [red, green, blue] = colour.map((byte) => (byte / 255 <= 0.04045 ? byte / 255 / 12.92 : ((byte / 255 + 0.055) / 1.055) ** 2.4));
  return 0.2126 * red + 0.7152 * green + 0.0722 * blue < 0.179 ? "#ffffff" : "#000000";
}

const steps = Array.from({ length: 65 }, (_, step) => step / 64);
const gradient = (colours) => `linear-gradient(90deg, ${colours.map(css).join(", ")})`;
const amountRamp = steps.map((share) => entry(tables.sequential, share));
const differenceAt = (share) => Math.sign(share - 0.5) * differenceStart * ((1 + differenceLimit / differenceStart) ** Math.abs(2 * share - 1) - 1);
const differenceRamp = steps.map((share) => differenceColour(differenceAt(share)));

const fractions = { 0.125: "⅛", 0.25: "¼", 0.5: "½" };
const multipleLabel = (value) => fractions[value] ?? String(value);

function amountTicks() {
  const ticks = [];
  const step = data.scale.high - data.scale.low > 7 ? 2 : 1; // more would run into each other
  for (let power = data.scale.high; power >= data.scale.low; power -= step) ticks.unshift(2 ** power);
  return ticks.map((value) => ({ share: amountShare(value), label: multipleLabel(value) }));
}

function differenceTicks() {
  const sizes = (differenceLimit > 16 ? [1, 8, 64] : [1, 4, 16]).filter((size) => size <= differenceLimit); // more would overlap
  const values = [...sizes.map((size) => -size).reverse(), 0, ...sizes];
  return values.map((value) => ({ share: differenceShare(value), label: `${value > 0 ? "+" : value < 0 ? "−" : ""}${multipleLabel(Math.abs(value))}` }));
}

function drawScale(place, ramp, ticks, title) {
  const bar = make("span", { class: "ramp" });
  bar.style.background = gradient(ramp);
  const marks = make("span", { class: "ticks" });
  for (const { share, label } of ticks) {
    const mark = make("span", {}, label);
    mark.style.left = `${100 * share}%`;
    marks.append(mark);
  }
  place.replaceChildren(make("span", { class: "title" }, title), make("span", { class: "body" }, bar, marks));
}
