// Pillow's bilinear resize, to the last bit, as alexnet_nb/base/resize.py does it in Python. A browser's own
// resize is another one in each browser, and the network would be shown other pixels than in training.
// Pictures are Uint8Arrays of red, green, blue, red, green, blue..., row by row from the top.

const ONE = 2 ** 22; // a share is a whole number of these parts

/** Along one side: for each of `size` new pixels the first old one that it is mixed of, and their shares. */
export function taps(length, size) {
  const scale = length / size;
  const reach = Math.max(scale, 1); // old pixels on either side
  const found = [];
  for (let i = 0; i < size; i++) {
    const centre = (i + 0.5) * scale;
    const first = Math.max(Math.trunc(centre - reach + 0.5), 0);
    const end = Math.min(Math.trunc(centre + reach + 0.5), length);
    const weights = [];
    let total = 0;
    for (let pixel = first; pixel < end; pixel++) {
      weights.push(Math.max(1 - Math.abs((pixel - centre + 0.5) * (1 / reach)), 0));
      total += weights[weights.length - 1];
    }
    found.push({first, shares: Int32Array.from(weights, weight => Math.floor((weight / total) * ONE + 0.5))});
  }
  return found;
}

// One pass, along the rows or the columns; every sum fits into 32 bits and is rounded to a whole level.
function resizeSide({pixels, width, height}, size, alongRows) {
  const lines = alongRows ? height : width;
  const out = {width: alongRows ? size : width, height: alongRows ? height : size};
  const [step, stride] = alongRows ? [3, 3 * width] : [3 * width, 3]; // to the next pixel, the next line
  const [outStep, outStride] = alongRows ? [3, 3 * out.width] : [3 * out.width, 3];
  out.pixels = new Uint8Array(3 * out.width * out.height);
  taps(alongRows ? width : height, size).forEach(({first, shares}, i) => {
    for (let line = 0; line < lines; line++) {
      let at = line * stride + first * step, red = ONE / 2, green = ONE / 2, blue = ONE / 2;
      for (let k = 0; k < shares.length; k++, at += step) {
        const share = shares[k];
        red += pixels[at] * share;
        green += pixels[at + 1] * share;
        blue += pixels[at + 2] * share;
      }
      const to = line * outStride + i * outStep;
      out.pixels[to] = red >> 22;
      out.pixels[to + 1] = green >> 22;
      out.pixels[to + 2] = blue >> 22;
    }
  });
  return out;
}

/** A picture {pixels, width, height} in another size, as Pillow 13 resizes it. */
export function resize(picture, width, height) {
  // There is rounding between the two passes, so their order matters. Pillow begins with the rows, but since
  // version 13 with the columns where the height loses more than twice the pixels that the width loses.
  const lost = picture.height - height;
  const rowsFirst = !(lost > 0 && lost > 2 * (picture.width - width));
  for (const alongRows of rowsFirst ? [true, false] : [false, true]) {
    const size = alongRows ? width : height;
    if (size !== (alongRows ? picture.width : picture.height)) picture = resizeSide(picture, size, alongRows);
  }
  return picture;
}

/** What the network is shown: a square, by way of a smaller one where both sides are longer than that. */
export function prepare(picture, recipe) {
  const small = recipe.first_to;
  if (small && Math.min(picture.width, picture.height) > small) picture = resize(picture, small, small);
  return resize(picture, recipe.size, recipe.size);
}
