// Explorers that move on the site. In a notebook the same pictures are ipywidgets; here there is no Python,
// so an empty <div class="explorer" id="explore-…"> on the page becomes sliders and a drawing, in place of
// the stored picture just above it. Without this script the stored picture stays.
import * as f from "./formulas.js";

const SVG = "http://www.w3.org/2000/svg";

// An element with attributes and children; a number or a string becomes text.
function make(name, attributes = {}, ...children) {
  const html = /^(div|p|label|span|input|output|button|select|option)$/.test(name);
  const element = html ? document.createElement(name) : document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

const range = (n) => Array.from({ length: n }, (_, i) => i);
const many = (n, one, more = `${one}s`) => `${n} ${n === 1 ? one : more}`;
const round = (x) => Math.round(x * 100) / 100;  // pixels, for attributes
// A number for a sentence: three digits, thousands with commas.
const say = (x) => Number(x.toPrecision(3)).toLocaleString("en", { maximumSignificantDigits: 3 });

// Ten to the power of n.
const raised = (sign) => "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"["-0123456789".indexOf(sign)];
const power = (n) => n === 0 ? "1" : `10${[...String(n)].map(raised).join("")}`;

// --- parts of a drawing

const text = (x, y, what, attributes = {}) => make("text", { x: round(x), y: round(y), ...attributes }, what);
const line = (x1, y1, x2, y2, kind) =>
  make("line", { x1: round(x1), y1: round(y1), x2: round(x2), y2: round(y2), class: kind });
const box = (x, y, width, height, kind) =>
  make("rect", { x: round(x), y: round(y), width: round(width), height: round(height), class: kind });

// A frame with ticks at given values, [value, label]; x and y lead from values to pixels.
function frame({ left, top, width, height, x: [x0, x1], y: [y0, y1], ticksX, ticksY, label }) {
  const x = (value) => left + (value - x0) / (x1 - x0) * width;
  const y = (value) => top + height - (value - y0) / (y1 - y0) * height;
  const parts = [];
  for (const [value, name] of ticksX) {
    parts.push(line(x(value), top + height, x(value), top + height + 4, "axis"));
    if (name !== "") parts.push(text(x(value), top + height + 17, name, { "text-anchor": "middle" }));
  }
  for (const [value, name] of ticksY) {
    parts.push(line(left - 4, y(value), left, y(value), "axis"));
    parts.push(text(left - 7, y(value) + 4, name, { "text-anchor": "end" }));
  }
  parts.push(line(left, top, left, top + height, "axis"));
  parts.push(line(left, top + height, left + width, top + height, "axis"));
  if (label) parts.push(text(left, top - 8, label));
  return { x, y, parts };
}

// Points joined by a line, each with a mark.
function curve(points, kind, mark = "circle") {
  const at = points.map(([x, y]) => `${round(x)},${round(y)}`).join(" ");
  const marks = points.map(([x, y]) => mark === "circle"
    ? make("circle", { cx: round(x), cy: round(y), r: 2.6 }) : box(x - 2.4, y - 2.4, 4.8, 4.8, "dot"));
  return make("g", { class: `curve ${kind}` }, make("polyline", { points: at }), ...marks);
}

// Signs and their meaning in one row, which begins a new one where the width ends.
function legend(entries, left, top, width) {
  const parts = [];
  let x = left, y = top;
  for (const [sign, name] of entries) {
    const needs = 34 + 7.2 * name.length;
    if (x + needs > left + width && x > left) { x = left; y += 20; }
    parts.push(...[sign(x, y)].flat(), text(x + 20, y + 4, name));
    x += needs;
  }
  return { parts, bottom: y + 12 };
}

// --- convolution arithmetic

// Pixels from first to last of the row, and the windows below it, as far as they reach into this piece.
function drawPiece(values, starts, ghost, [first, last], left, top, width, rows) {
  const { w, z } = values, side = width / (last - first), read = f.readPixels(values, starts);
  const x = (pixel) => left + (pixel - first) * side, high = Math.min(22, side), parts = [];
  for (let i = first; i < last; i++) {
    const kind = i < 0 || i >= w ? "zero" : read.has(i) ? "read" : "missed";
    parts.push(box(x(i), top + 22, side, high, `pixel ${kind}`));
    if (kind === "missed") parts.push(line(x(i) + side * 0.25, top + 22 + high / 2,
      x(i) + side * 0.75, top + 22 + high / 2, "strike"));
  }
  const every = [1, 2, 5, 10, 20].find((step) => step * side >= 34);
  for (let i = Math.ceil(first / every) * every; i < last; i += every) {
    parts.push(text(x(i) + side / 2, top + 15, i, { "text-anchor": "middle" }));
  }
  const bar = (n, start, kind) => {
    const from = Math.max(start, first), to = Math.min(start + z, last), y = top + 30 + high + n % rows * 20;
    if (from >= to) return;
    parts.push(box(x(from) + 0.5, y, (to - from) * side - 1, 16, kind));
    if (kind === "ghost" || (to - from) * side < 6.8 * String(n + 1).length + 2) return;
    parts.push(text(x((from + to) / 2), y + 12.5, n + 1, { "text-anchor": "middle", class: "inside" }));
  };
  starts.forEach((start, n) => bar(n, start, "window"));
  if (ghost !== null) bar(starts.length, ghost, "ghost");
  return { parts, bottom: top + 30 + high + rows * 20 };
}

const convolution = {
  title: "Explorer: how often a kernel fits",
  sliders: {
    w: { label: "input w", min: 5, max: 256, step: 1, value: 227 },
    z: { label: "kernel z", min: 1, max: 11, step: 1, value: 11 },
    s: { label: "stride s", min: 1, max: 8, step: 1, value: 4 },
    p: { label: "padding p", min: 0, max: 5, step: 1, value: 0 },
    up: { label: "up: rounded up, as in the program", box: true, value: false },
  },
  rule: f.windowsRule,
  words(values) {
    const { w, z, s, p } = values, { starts, left } = f.windows(values);
    if (!starts.length) return `A kernel of ${z} does not fit into the input at all.`;
    const missed = w - f.readPixels(values, starts).size;
    const end = left < 0 ? `The last window reaches ${-left} beyond the input and reads zeros there.`
      : left ? `One more window does not fit: ${many(s - left, "pixel")} short.`
        : `The last window ends exactly where the ${p ? "padding" : "input"} ends.`;
    const unread = missed === 1 ? "One pixel (red, struck through) is read by no window."
      : missed ? `${missed} pixels (red, struck through) are read by no window.`
        : "Every pixel is read.";
    const apart = `each ${many(s, "pixel")} after the one before`;
    return `${many(starts.length, "window")}, ${apart}. ${end} ${unread}`;
  },
  draw(values, width) {
    const { w, z, s, p } = values, { starts, left } = f.windows(values);
    const next = starts.length ? starts.at(-1) + s : -p;
    const ghost = left > 0 ? next : null;  // the window for which there is no room
    const end = starts.length ? starts.at(-1) + z : 0;
    const first = -p, last = Math.max(w + p, end, left > 0 ? next + z : 0);
    const rows = Math.floor(z / s) + 1;
    const pieces = last - first > 44 ? [[first, first + 22], [last - 22, last]] : [[first, last]];
    const besides = pieces.length === 2 && width > 600, inner = width - 10;
    const wide = besides ? (inner - 28) / 2 : inner, parts = [];
    let top = 0, bottom = 0;
    pieces.forEach((piece, i) => {
      const from = besides ? i * (wide + 28) : 0;
      const drawn = drawPiece(values, starts, ghost, piece, from, top, wide, rows);
      parts.push(...drawn.parts);
      bottom = Math.max(bottom, drawn.bottom);
      if (besides && i) parts.push(text(inner / 2, 37, "…", { "text-anchor": "middle" }));
      if (!besides) top = drawn.bottom + 14;
    });
    const sign = (kind) => (x, y) => box(x, y - 7, 14, 14, kind);
    const entries = [[sign("pixel read"), "input"], [sign("window"), "window"]];
    if (starts.length && w > f.readPixels(values, starts).size || !starts.length)
      entries.push([sign("pixel missed"), "not read"]);
    if (p || left < 0) entries.push([sign("pixel zero"), "zeros"]);
    if (ghost !== null) entries.push([sign("ghost"), "does not fit"]);
    const key = legend(entries, 0, bottom + 14, width);
    return { parts: [...parts, ...key.parts], height: key.bottom };
  },
};

// --- local response normalisation

const normalisation = {
  title: "Explorer: the four constants of local response normalisation",
  sliders: {
    n: { label: "n", min: 1, max: 15, step: 1, value: 5 },
    k: { label: "k", min: 1, max: 10, step: 0.5, value: 2 },
    alpha: { label: "alpha", steps: range(9).map((i) => 10 ** (-6 + i / 2)), value: 1e-4,
      show: (x) => x.toExponential(1) },
    beta: { label: "beta", min: 0, max: 1.5, step: 0.25, value: 0.75 },
    loud: { label: "loud", steps: [10, 25, 50, 100, 200, 400], value: 200 },
    map: { label: "map", min: 0, max: f.MAPS - 1, step: 1, value: 24 },
  },
  rule({ n, k, alpha, beta, loud, map }) {
    const sum = f.squares(f.bump(loud), map, n), share = (kind) =>
      f.shares({ n, k, alpha, beta, loud }, kind)[map].toFixed(3);
    const power = `${f.general(k)} + ${f.general(Number(alpha.toPrecision(2)))}`;
    const times = `^-${f.general(beta)}`;
    return `map ${map}, mean: (${power} · ${say(sum / n)})${times} = ${share("mean")}\n`
      + `map ${map}, sum: (${power} · ${say(sum)})${times} = ${share("sum")}`;
  },
  words(values) {
    const { n, k, beta, loud, map } = values, a = f.bump(loud)[map];
    const [first, last] = f.lrnWindow(map, n);
    const [mean, sum] = ["mean", "sum"].map((kind) => say(a * f.shares(values, kind)[map]));
    const window = first === last ? `map ${map} alone` : `maps ${first} to ${last}`;
    return `The window of map ${map} is ${window}. Its activation of ${say(a)} becomes ${mean} with the mean `
      + `of the squares and ${sum} with their sum. No map keeps more than ${say(k ** -beta)} of itself.`;
  },
  draw(values, width) {
    const { n, k, beta, loud, map } = values, a = f.bump(loud), maps = [-0.7, f.MAPS - 0.3];
    const left = 38, inner = width - left - 4, top = 46, tall = 170, low = top + tall + 40, small = 120;
    const ticksX = range(f.MAPS).filter((i) => i % 4 === 0).map((i) => [i, ""]);
    const above = frame({ left, top, width: inner, height: tall, x: maps, y: [0, 1.15 * loud], ticksX,
      ticksY: [0, loud / 2, loud].map((v) => [v, v]), label: "activation" });
    const below = frame({ left, top: low, width: inner, height: small, x: maps, y: [0, 1.05],
      ticksX: ticksX.map(([i]) => [i, i]), ticksY: [0, 0.5, 1].map((v) => [v, v]), label: "share left" });
    const [first, last] = f.lrnWindow(map, n), step = above.x(1) - above.x(0), parts = [];
    for (const [from, tallness] of [[top, tall], [low, small]]) {
      parts.push(box(above.x(first - 0.5), from, (last - first + 1) * step, tallness, "shade"));
    }
    a.forEach((value, i) => {
      const kind = i === map ? "bar chosen" : "bar";
      parts.push(box(above.x(i) - 0.4 * step, above.y(value), 0.8 * step, above.y(0) - above.y(value), kind));
    });
    const most = below.y(k ** -beta);
    parts.push(line(left, most, left + inner, most, "most"));
    for (const [kind, style, mark] of [["mean", "one", "circle"], ["sum", "two", "square"]]) {
      const share = f.shares(values, kind);
      parts.push(curve(share.map((part, i) => [above.x(i), above.y(part * a[i])]), style, mark));
      parts.push(curve(share.map((part, i) => [below.x(i), below.y(part)]), style, mark));
    }
    const sign = (style, mark) => (x, y) => curve([[x, y], [x + 14, y]], style, mark);
    const square = (kind) => (x, y) => box(x, y - 7, 14, 14, kind);
    const key = legend([[square("bar"), "before"], [sign("one", "circle"), "after, mean"],
      [sign("two", "square"), "after, sum"], [square("shade"), "window"]], left, 8, inner);
    const shift = Math.max(0, key.bottom - 20);  // on a narrow page the legend takes two rows
    const under = text(left + inner, low + small + 34, "map", { "text-anchor": "end" });
    parts.push(...above.parts, ...below.parts, under);
    const moved = make("g", { transform: `translate(0 ${shift})` }, ...parts);
    return { parts: [...key.parts, moved], height: low + small + 40 + shift };
  },
};

// --- the valley of momentum

const WAYS = {
  stands: "does not move", stays: "neither settles nor leaves", creeps: "comes to rest from one side",
  swings: "swings to rest", leaps: "leaps from side to side and comes to rest",
  leaves: "leaps from side to side, further every time",
};

const momentum = {
  title: "Explorer: a walk with momentum",
  sliders: {
    rate: { label: "rate", min: 0, max: 0.25, step: 0.005, value: 0.03, show: (x) => x.toFixed(3) },
    momentum: { label: "momentum", min: 0, max: 0.99, step: 0.01, value: 0.9, show: (x) => x.toFixed(2) },
    decay: { label: "decay", min: 0, max: 2, step: 0.0005, value: 0.0005, show: (x) => x.toFixed(4) },
  },
  rule(values) {
    const { rate, momentum: m, decay } = values, path = f.descend(values);
    return `v ← ${f.general(m)} v − ${f.general(decay)} · ${f.general(rate)} w − ${f.general(rate)} g\n`
      + `loss after ${many(path.length - 1, "step")}: ${f.valley(path.at(-1)).toExponential(1)}`;
  },
  words(values) {
    const [along, across] = [0, 1].map((i) => f.fate(values, i));
    const verdict = [along, across].some(({ kind }) => kind === "leaves") ? "It diverges."
      : [along, across].some(({ kind }) => kind === "stands" || kind === "stays") ? "It never settles."
        : [along, across].some(({ kind }) => kind === "swings" || kind === "leaps")
          ? "It oscillates and converges." : "It converges without oscillating.";
    const way = ({ kind, factor }) => WAYS[kind]
      + (kind === "stands" || kind === "stays" ? "" : ` (distance × ${factor.toFixed(3)} a step)`);
    return `${verdict} Along the valley it ${way(along)}; across, it ${way(across)}.`;
  },
  draw(values, width) {
    const path = f.descend(values), besides = width > 600, id = "explore-valley-view";
    const left = 30, top = 24, wide = besides ? width * 0.6 - left - 10 : width - left - 8, tall = wide * 0.6;
    const map = frame({ left, top, width: wide, height: tall, x: [-4, 6], y: [-2, 4], label: "weight 2",
      ticksX: [-4, -2, 0, 2, 4, 6].map((v) => [v, v]), ticksY: [-2, 0, 2, 4].map((v) => [v, v]) });
    const [bx, by] = f.BOTTOM, [s1, s2] = f.STEEP, unit = map.x(1) - map.x(0), view = [];
    for (const height of [0.2, 1, 3, 8, 16, 32, 64]) {  // a quadratic's contours are ellipses
      view.push(make("ellipse", { class: "contour", cx: round(map.x(bx)), cy: round(map.y(by)),
        rx: round(Math.sqrt(2 * height / s1) * unit), ry: round(Math.sqrt(2 * height / s2) * unit) }));
    }
    const far = (v, most) => Math.max(-most, Math.min(most, v));  // a walk that has left stays drawable
    view.push(curve(path.map(([x, y]) => [map.x(far(x, 1e3)), map.y(far(y, 1e3))]), "one"));
    const stroke = (x, y, up) => line(x - 5, y - up, x + 5, y + up, "rest");
    const cross = (x, y) => [stroke(x, y, 5), stroke(x, y, -5)];
    const [rx, ry] = f.restingPlace(values.decay);
    view.push(box(map.x(f.START[0]) - 4, map.y(f.START[1]) - 4, 8, 8, "start"));
    view.push(...cross(map.x(rx), map.y(ry)));
    const window = make("clipPath", { id }, box(left, top, wide, tall, ""));
    const under = text(left + wide, top + tall + 34, "weight 1", { "text-anchor": "end" });
    const key = legend([[(x, y) => box(x + 3, y - 4, 8, 8, "start"), "start"],
      [(x, y) => cross(x + 7, y), "loss and decay balance"]], left, top + tall + 54, wide);
    const parts = [make("defs", {}, window), make("g", { "clip-path": `url(#${id})` }, ...view),
      ...map.parts, under, ...key.parts];

    const powers = path.map((w) => Math.log10(Math.max(f.valley(w), 1e-9)));
    const low = 3 * Math.floor(Math.min(0, ...powers) / 3), high = 3 * Math.ceil(Math.max(...powers) / 3);
    const place = besides
      ? { left: width * 0.6 + 48, top, width: width * 0.4 - 56, height: tall }
      : { left: left + 18, top: key.bottom + 34, width: wide - 18, height: wide * 0.45 };
    const loss = frame({ ...place, x: [0, 80], y: [low, high], label: "loss",
      ticksX: [0, 20, 40, 60, 80].map((v) => [v, v]),
      ticksY: range((high - low) / 3 + 1).map((i) => [low + 3 * i, power(low + 3 * i)]) });
    const [right, bottom] = [place.left + place.width, place.top + place.height];
    parts.push(...loss.parts, text(right, bottom + 34, "step", { "text-anchor": "end" }));
    const points = powers.map((power, i) => `${round(loss.x(i))},${round(loss.y(power))}`).join(" ");
    parts.push(make("g", { class: "curve one" }, make("polyline", { points })));
    return { parts, height: Math.max(key.bottom, bottom + 40) };
  },
};

// --- chances of one's own: crop, mirror image, colours

const CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"];

// An image in a drawing, from pixels in RGBA.
function image(x, y, shown, pixels, side) {
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = side;
  canvas.getContext("2d").putImageData(new ImageData(pixels, side, side), 0, 0);
  return make("image", { x, y, width: shown, height: shown, href: canvas.toDataURL() });
}

const chances = {
  title: "Explorer: crop, mirror image and colours of your choice",
  sliders: {
    picture: { label: "picture", names: CLASSES, value: 7 },
    mirror: { label: "mirror", box: true, value: true },
    down: { label: "down", min: 0, max: 29, step: 1, value: 3 },
    right: { label: "right", min: 0, max: 29, step: 1, value: 26 },
    first: { label: "first", min: -3, max: 3, step: 0.5, value: 2 },
    second: { label: "second", min: -3, max: 3, step: 0.5, value: -2 },
    third: { label: "third", min: -3, max: 3, step: 0.5, value: 0 },
    strength: { label: "strength", min: 0, max: 0.5, step: 0.05, value: 0.1, show: (x) => x.toFixed(2) },
  },
  // The ten photographs stand side by side in one file.
  async load() {
    const sheet = new Image();
    sheet.src = new URL("ten.png", import.meta.url);
    await sheet.decode();
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [sheet.width, sheet.height];
    const pen = canvas.getContext("2d");
    pen.drawImage(sheet, 0, 0);
    this.large = CLASSES.map((_, k) => {
      const { data } = pen.getImageData(k * f.SIDE, 0, f.SIDE, f.SIDE);
      return f.enlarge(data.filter((_, i) => i % 4 < 3));
    });
  },
  rule(values) {
    const levels = f.colourShift(values).map((x) => `${x < 0 ? "−" : "+"}${Math.abs(255 * x).toFixed(1)}`);
    return `crop (${values.down}, ${values.right})${values.mirror ? ", mirrored" : ""}\n`
      + `red ${levels[0]}, green ${levels[1]}, blue ${levels[2]} levels of 255`;
  },
  words({ picture, down, right, mirror, ...colour }) {
    const mean = f.colourShift(colour).reduce((sum, x) => sum + x, 0) / 3;
    const light = Math.abs(mean) < 0.004 ? "as light as before" : mean > 0 ? "lighter" : "darker";
    const place = `${many(down, "pixel")} from the top and ${many(right, "pixel")} from the left`;
    return `The picture (${CLASSES[picture]}) has 256 pixels a side; the crop of 227 begins ${place}. `
      + `It is ${mirror ? "mirrored" : "not mirrored"}, and ${light}.`;
  },
  draw(values, width) {
    const gap = 12, side = (width - 2 * gap) / 3, scale = side / f.LARGE, large = this.large[values.picture];
    const whole = new Uint8ClampedArray(f.LARGE ** 2 * 4).fill(255), centre = (f.LARGE - f.CROP + 1) >> 1;
    for (let i = 0; i < f.LARGE ** 2; i++) whole.set(large.subarray(3 * i, 3 * i + 3), 4 * i);
    const plain = { down: centre, right: centre, mirror: false, first: 0, second: 0, third: 0, strength: 0 };
    const place = ({ down, right }, kind) =>
      box(right * scale, 20 + down * scale, f.CROP * scale, f.CROP * scale, kind);
    const titles = ["256 × 256", "without chance", "with yours"];
    return {
      parts: [image(0, 20, side, whole, f.LARGE), place(plain, "centre"), place(values, "crop"),
        image(side + gap, 20, side, f.prepared(large, plain), f.CROP),
        image(2 * (side + gap), 20, side, f.prepared(large, values), f.CROP),
        ...titles.map((title, i) => text(i * (side + gap), 12, title))],
      height: side + 24,
    };
  },
};

const EXPLORERS = {
  "explore-chances": chances,
  "explore-windows": convolution, "explore-lrn": normalisation, "explore-valley": momentum,
};

// --- sliders around a drawing

// A slider or a box with its name and its value; `changed` is called with every new value.
function control(name, { label, value, show = String, ...spec }, changed) {
  const id = `${name}-control`;
  if (spec.box) {
    const input = make("input", { type: "checkbox", id });
    input.addEventListener("input", () => changed(input.checked));
    const set = () => { input.checked = value; };
    return { row: make("div", { class: "explorer-row" }, make("span"),
      make("label", { for: id, class: "explorer-box" }, input, ` ${label}`)), set };
  }
  if (spec.names) {
    const options = spec.names.map((word, i) => make("option", { value: i }, word));
    const input = make("select", { id }, ...options), title = make("label", { for: id }, label);
    input.addEventListener("input", () => changed(Number(input.value)));
    const set = () => { input.value = value; };
    const row = make("div", { class: "explorer-row" }, title, input, make("span"));
    return { row, set };
  }
  const { steps } = spec;  // values that are not evenly spaced are chosen by their place in the list
  const { min, max, step } = steps ? { min: 0, max: steps.length - 1, step: 1 } : spec;
  const input = make("input", { type: "range", id, min, max, step });
  const printed = make("output", { for: id });
  const tell = () => {
    const now = steps ? steps[Number(input.value)] : Number(input.value);
    printed.textContent = show(now);
    input.setAttribute("aria-valuetext", show(now));
    return now;
  };
  input.addEventListener("input", () => changed(tell()));
  const set = () => { input.value = steps ? steps.indexOf(value) : value; tell(); };
  const row = make("div", { class: "explorer-row" }, make("label", { for: id }, label), input, printed);
  return { row, set };
}

// Fills the place on the page with sliders and their drawing.
function start(place, explorer) {
  const values = {}, controls = [];
  const rule = make("p", { class: "explorer-rule" });
  const words = make("p", { class: "explorer-words", "aria-live": "polite" });
  const drawing = make("svg", { role: "img", class: "explorer-drawing" });
  let width = 0;
  const draw = () => {
    if (!width) return;
    const { parts, height } = explorer.draw(values, width);
    drawing.replaceChildren(...parts);
    drawing.setAttribute("viewBox", `0 0 ${width} ${Math.ceil(height)}`);
    drawing.setAttribute("aria-label", `${explorer.rule(values)}. ${explorer.words(values)}`);
    rule.textContent = explorer.rule(values);
    words.textContent = explorer.words(values);
  };
  for (const [name, spec] of Object.entries(explorer.sliders)) {
    controls.push(control(`${place.id}-${name}`, spec, (value) => { values[name] = value; draw(); }));
  }
  const reset = () => {
    for (const [name, { value }] of Object.entries(explorer.sliders)) values[name] = value;
    for (const { set } of controls) set();
    draw();
  };
  const back = make("button", { type: "button", class: "explorer-back" }, "As at first");
  back.addEventListener("click", reset);
  place.setAttribute("role", "group");
  place.setAttribute("aria-label", explorer.title);
  const rows = make("div", { class: "explorer-rows" }, ...controls.map(({ row }) => row), back);
  place.append(rows, rule, drawing, words);  // sliders first: they stay where they are when the rest changes
  reset();
  // letters keep their size: the drawing is made for the width it has, and again when that changes
  new ResizeObserver(([{ contentRect }]) => {
    if (Math.round(contentRect.width) === width) return;
    width = Math.round(contentRect.width);
    draw();
  }).observe(place);
}

// The stored picture that stands last before an element.
function pictureBefore(element) {
  const before = [...document.querySelectorAll("main img")].filter((picture) =>
    picture.compareDocumentPosition(element) & Node.DOCUMENT_POSITION_FOLLOWING);
  return before.at(-1)?.closest(".cell-output-display") ?? null;
}

for (const place of document.querySelectorAll(".explorer")) {
  const explorer = EXPLORERS[place.id], picture = pictureBefore(place);
  if (!explorer || !picture) continue;
  await explorer.load?.();
  picture.after(place);
  start(place, explorer);
  picture.hidden = true;
}
