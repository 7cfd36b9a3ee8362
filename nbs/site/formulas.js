// The numbers of the four explorers, without a line that draws. Each function repeats one of a notebook's
// cells (named above it); tests/test_explorers.py computes both and compares.

// Python's format(x, "g"): six digits at most, no zeros at the end.
export function general(x) {
  if (x !== 0 && (Math.abs(x) < 1e-4 || Math.abs(x) >= 1e6)) {
    const [digits, power] = x.toExponential(5).split("e");
    return `${Number(digits)}e${power[0]}${power.slice(1).padStart(2, "0")}`;
  }
  return String(Number(x.toPrecision(6)));
}

// --- 03_model: windows and draw_windows

// First pixel of each window on an axis, and how many pixels are left over (negative: zeros it lacks).
export function windows({ w, z, s, p, up }) {
  const places = Math.max(0, Math.floor((w + 2 * p - z) / s) + 1);
  const starts = Array.from({ length: places }, (_, i) => i * s - p);
  if (up && places && (w + 2 * p - z) % s) starts.push(starts.at(-1) + s);  // as the authors' program rounds
  return { starts, left: w + p - (starts.length ? starts.at(-1) + z : -p) };
}

// The formula with the numbers put in, and what it comes to.
export function windowsRule(values) {
  const { w, z, s, p } = values, { starts, left } = windows(values);
  const rest = left >= 0 ? `${left} left over` : `the last one lacks ${-left}`;
  const sum = `(${w} + 2·${p} - ${z}) / ${s} + 1 = ${general((w + 2 * p - z) / s + 1)}`;
  return `${sum}: ${starts.length} windows; pixels: ${rest}`;
}

// The pixels of the input that stand in at least one window.
export function readPixels({ w, z }, starts) {
  const read = new Set();
  for (const start of starts) for (let i = Math.max(0, start); i < Math.min(w, start + z); i++) read.add(i);
  return read;
}

// --- 02_lrn: bump and shares

export const MAPS = 32;

// Activations: a broad bump around map 9, map 24 loud by itself, a tenth of that elsewhere.
export function bump(loud) {
  const one = (_, i) => loud * (0.1 + 0.9 * Math.exp(-(((i - 9) / 3) ** 2)) + 0.9 * (i === 24));
  return Array.from({ length: MAPS }, one);
}

// The first and the last map in the window of map i; beyond the ends there is nothing.
export function lrnWindow(i, n) {
  return [Math.max(0, i - Math.floor(n / 2)), Math.min(MAPS - 1, i + Math.floor((n - 1) / 2))];
}

// The sum of the squares of the activations in the window of map i.
export function squares(a, i, n) {
  const [first, last] = lrnWindow(i, n);
  return a.slice(first, last + 1).reduce((sum, x) => sum + x * x, 0);
}

// What local response normalisation leaves of each map: alpha times the mean of the squares, or their sum.
export function shares({ n, k, alpha, beta, loud }, alphaIs) {
  const a = bump(loud), factor = alphaIs === "mean" ? alpha / n : alpha;
  return a.map((_, i) => (k + factor * squares(a, i, n)) ** -beta);
}

// --- 04_train: paper_step, valley, descend

export const STEEP = [1, 20], BOTTOM = [2, 1], START = [-3, 2.5];

// One update as section 5 prints it, of one weight: the new weight and the new velocity.
export function paperStep(w, v, g, rate, momentum, decay) {
  const velocity = momentum * v - decay * rate * w - rate * g;
  return [w + velocity, velocity];
}

export function valley(w) {
  return w.reduce((sum, x, i) => sum + STEEP[i] * (x - BOTTOM[i]) ** 2, 0) / 2;
}

// The places that the paper's rule visits; a walk that has left for good ends early.
export function descend({ rate, momentum, decay }, steps = 80) {
  let w = START, v = [0, 0];
  const path = [w];
  while (path.length <= steps && valley(w) < 1e6) {
    const moved = w.map((x, i) =>
      paperStep(x, v[i], STEEP[i] * (x - BOTTOM[i]), rate, momentum, decay));
    w = moved.map(([weight]) => weight);
    v = moved.map(([, velocity]) => velocity);
    path.push(w);
  }
  return path;
}

// Where loss and decay balance.
export function restingPlace(decay) {
  return STEEP.map((steep, i) => steep * BOTTOM[i] / (steep + decay));
}

// How the walk goes along direction i, in the long run. Each place follows from the two before it, and such a
// rule has a quadratic equation: the larger of its roots, in size, is the factor by which the distance from
// rest changes in a step. Complex roots swing, a negative one changes sides at every step.
export function fate({ rate, momentum, decay }, i) {
  const middle = 1 + momentum - rate * (STEEP[i] + decay), inside = middle ** 2 - 4 * momentum;
  if (rate === 0) return { kind: "stands", factor: 1 };
  if (inside < 0) return { kind: "swings", factor: Math.sqrt(momentum) };
  const root = (middle + Math.sign(middle || 1) * Math.sqrt(inside)) / 2, factor = Math.abs(root);
  if (Math.abs(factor - 1) < 1e-9) return { kind: "stays", factor: 1 };
  if (factor > 1) return { kind: "leaves", factor };
  return { kind: root < 0 ? "leaps" : "creeps", factor };
}

// --- 01_data: prepare and choice, by the paper's recipe

export const SIDE = 32, LARGE = 256, CROP = 227;  // a picture, the same enlarged, what the network is given

// The principal colours of the training pictures, each as long as its deviation (of pixels from 0 to 1), and
// brightening. tools/ten_pictures.py prints them.
export const COLOURS = [
  [0.23191, 0.23975, 0.24841], [0.07621, 0.00531, -0.07628], [0.02231, -0.04167, 0.01939],
];

// What is added to every pixel, red, green and blue, of pixels from 0 to 1.
export function colourShift({ first, second, third, strength }) {
  return [0, 1, 2].map((channel) => strength * [first, second, third]
    .reduce((sum, chance, i) => sum + chance * COLOURS[i][channel], 0));
}

// For each of `to` places along a side, the two pixels out of `from` that it lies between, and their weights.
// As Pillow resizes: bilinear, weights in 22 bits, each side for itself and rounded to whole levels.
function neighbours(from, to) {
  const scale = from / to, one = 2 ** 22;
  return Array.from({ length: to }, (_, place) => {
    const centre = (place + 0.5) * scale, low = Math.max(0, Math.floor(centre - 0.5));
    const high = Math.min(from, Math.floor(centre + 1.5)), weights = [];
    for (let i = low; i < high; i++) weights.push(Math.max(0, 1 - Math.abs(i + 0.5 - centre)));
    const sum = weights.reduce((a, b) => a + b);
    return { low, weights: weights.map((weight) => Math.floor(weight / sum * one + 0.5)) };
  });
}

// A square picture (side x side, RGB, whole levels) enlarged.
export function enlarge(pixels, from = SIDE, to = LARGE) {
  const places = neighbours(from, to), half = 2 ** 21, one = 2 ** 22;
  const wide = new Uint8ClampedArray(from * to * 3), result = new Uint8ClampedArray(to * to * 3);
  const level = (values, at, step, { low, weights }) => Math.floor(
    weights.reduce((sum, weight, k) => sum + weight * values[at + (low + k) * step], half) / one);
  for (let y = 0; y < from; y++) for (let x = 0; x < to; x++) for (let c = 0; c < 3; c++) {
    wide[(y * to + x) * 3 + c] = level(pixels, y * from * 3 + c, 3, places[x]);
  }
  for (let y = 0; y < to; y++) for (let x = 0; x < to; x++) for (let c = 0; c < 3; c++) {
    result[(y * to + x) * 3 + c] = level(wide, x * 3 + c, to * 3, places[y]);
  }
  return result;
}

// What the network is given of an enlarged picture, in levels: RGBA, as a canvas has it.
export function prepared(large, { down, right, mirror, ...colour }) {
  const shift = colourShift(colour), result = new Uint8ClampedArray(CROP * CROP * 4).fill(255);
  for (let y = 0; y < CROP; y++) for (let x = 0; x < CROP; x++) {
    const from = ((y + down) * LARGE + right + (mirror ? CROP - 1 - x : x)) * 3, at = (y * CROP + x) * 4;
    for (let c = 0; c < 3; c++) result[at + c] = Math.round(large[from + c] + 255 * shift[c]);
  }
  return result;
}
