// The numbers of the three explorers, without a line that draws. Each function repeats one of a notebook's
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
