// The page "Try it": the network of the package answers in the browser. The panel is drawn at once. The
// network and the program that runs it are fetched when the visitor asks for them; after that nothing is
// fetched or sent any more. What the page knows of the network, the notebook has written into an attribute.
import {prepare} from './resize.js';

// onnxruntime-web, from a CDN: this version and no other, each file with the hash that it must have. The same
// version stands in tests/package.json, and a test compares the hashes with npm's files.
const VERSION = '1.24.3';
const CDN = `https://cdn.jsdelivr.net/npm/onnxruntime-web@${VERSION}/dist/`;
const PROGRAM = {
  url: `${CDN}ort.wasm.bundle.min.mjs`, bytes: 72812,
  integrity: 'sha384-4HiQDEugQUFkPlLUj3qhNSeZ1HHozwhNB7/k1r3JFy6gWwKJE5C+w6E/ymlZx4h9',
};
const BINARY = {
  url: `${CDN}ort-wasm-simd-threaded.wasm`, bytes: 12361745,
  integrity: 'sha384-sZw0EVBgUn+dNhQfjHDg8lwtmicKMm1bTvWS4rIRNxoVN1S9HkVyJ2nreMpYruEZ',
};

const CONVOLUTIONS = ['conv1', 'conv2', 'conv3', 'conv4', 'conv5'];
const STRONGEST = 16; // maps shown of conv2 to conv5
const UNITS = 8;      // shown of fc7
const STRIP = 2 ** 21; // pixels read at a time: a telephone allows no canvas as large as its own photographs

const root = document.getElementById('try-it');
const about = JSON.parse(root.dataset.network); // recipe, classes, bytes, unsure_below
const megabytes = bytes => (bytes / 1e6).toFixed(1);
const percent = value => `${(100 * value).toFixed(value > 0.9995 || value < 0.0005 ? 0 : 1)} %`;
const withArticle = name => `${'aeiou'.includes(name[0]) ? 'an' : 'a'} ${name}`;

/** What went wrong, in words for the visitor. */
class Trouble extends Error {}

// ------------------------------------------------------------------------------------------------- the panel

const PANEL = `
<div class="try-load">
  <button type="button" class="try-main" id="try-fetch">Fetch the network
    <small>${megabytes(about.bytes)} MB, and the program that runs it, ${megabytes(BINARY.bytes)} MB before
    compression</small></button>
  <p>Nothing is fetched before you press this. Afterwards the network answers on this machine, and nothing of
    your pictures is sent anywhere.</p>
</div>
<progress id="try-progress" max="1" value="0" aria-label="What has been fetched" hidden></progress>
<p id="try-status" role="status"></p>
<div class="try-ways">
  <label class="try-button"><input type="file" id="try-file" accept="image/*" disabled>Choose a
    picture</label>
  <button type="button" class="try-button" id="try-camera" aria-pressed="false" disabled>Use the
    camera</button>
  <span class="try-hint">or drop one here, or paste it, or take one of these ten:</span>
</div>
<div class="try-samples" role="group" aria-label="Ten test photographs"></div>
<div class="try-answer" hidden>
  <figure><canvas id="try-picture" role="img" aria-label="Your picture"></canvas>
    <video id="try-video" muted playsinline hidden></video>
    <figcaption id="try-caption"></figcaption></figure>
  <figure><canvas id="try-seen" role="img" aria-label="The picture as the network gets it"></canvas>
    <figcaption>What the network gets: ${about.recipe.size} × ${about.recipe.size} pixels<span
    id="try-by-way">, by way of ${about.recipe.first_to} × ${about.recipe.first_to}, since all that it has
    learnt from was that small</span></figcaption></figure>
  <div class="try-result">
    <p id="try-says" role="status"></p>
    <ol id="try-bars" aria-label="Probabilities of the ten classes"></ol>
    <p id="try-time" class="try-hint"></p>
  </div>
</div>`;

root.innerHTML = PANEL + root.innerHTML;
const element = name => document.getElementById(`try-${name}`);
const layers = document.getElementById('try-layers'); // the folded part of the page, further down
const samples = root.querySelector('.try-samples');
samples.append(...root.querySelectorAll('img'));
for (const image of samples.querySelectorAll('img')) {
  const button = document.createElement('button');
  button.type = 'button';
  button.disabled = true;
  button.title = image.alt;
  image.replaceWith(button);
  button.append(image);
  button.addEventListener('click', () => take(image, image.alt));
}
element('bars').innerHTML = about.classes.map(name =>
  `<li><span>${name}</span><i><b></b></i><output></output></li>`).join('');

function say(text, wrong = false) {
  element('status').textContent = text;
  element('status').classList.toggle('try-wrong', wrong);
}

// ----------------------------------------------------------------------------------------------- the network

let network = null; // {ort, session} once it has arrived

/** The bytes of a file; `arrived` is told how many there are so far. */
async function fetchBytes({url, integrity}, arrived) {
  const name = new URL(url).pathname.split('/').pop();
  const byHand = integrity && globalThis.crypto?.subtle; // missing where a page is not served by https
  let response;
  const parts = [];
  try {
    // the browser itself would compare the hash with the whole file only, and not tell how much is there
    response = await fetch(url, integrity && !byHand ? {integrity} : {});
    if (response.ok) {
      const reader = response.body.getReader();
      for (let part = await reader.read(); !part.done; part = await reader.read()) {
        parts.push(part.value);
        arrived(part.value.length);
      }
    }
  } catch {
    throw new Trouble(`${name} could not be fetched from ${new URL(url).host}. Is this machine online?`);
  }
  if (!response.ok)
    throw new Trouble(`${name} could not be fetched: ${new URL(url).host} said ${response.status}.`);
  const bytes = new Uint8Array(await new Blob(parts).arrayBuffer());
  if (byHand) {
    const hash = new Uint8Array(await crypto.subtle.digest('SHA-384', bytes));
    if (`sha384-${btoa(String.fromCharCode(...hash))}` !== integrity)
      throw new Trouble(`${name} came, but it is not the file that it should be, so it was not used.`);
  }
  return bytes;
}

/** Fetch and start the network; `Trouble` says why that cannot be. */
async function load(progress) {
  if (typeof WebAssembly === 'undefined')
    throw new Trouble('This browser has no WebAssembly, or it is switched off; the network needs it.');
  const graph = {url: new URL('alexnet.onnx', import.meta.url).href, bytes: about.bytes};
  const files = [PROGRAM, BINARY, graph];
  const all = files.reduce((sum, file) => sum + file.bytes, 0);
  let here = 0;
  const [program, binary, weights] = await Promise.all(
    files.map(file => fetchBytes(file, count => progress(Math.min((here += count) / all, 1)))));
  const url = URL.createObjectURL(new Blob([program], {type: 'text/javascript'}));
  try {
    const ort = await import(url);
    ort.env.wasm.numThreads = 1; // more would need headers that the site's host does not send
    ort.env.wasm.wasmBinary = binary.buffer;
    const session = await ort.InferenceSession.create(weights, {executionProviders: ['wasm']});
    return {ort, session};
  } catch (error) {
    throw new Trouble(`The network is here, but this browser cannot run it (${error.message}). Chrome, ` +
      'Edge, Firefox and Safari can, if they are of 2023 or later.');
  } finally {
    URL.revokeObjectURL(url);
  }
}

async function fetchNetwork() {
  const [button, bar] = [element('fetch'), element('progress')];
  button.disabled = true;
  bar.hidden = false;
  say('On its way.');
  try {
    network = await load(value => { bar.value = value; });
    await ask({pixels: new Uint8Array(3), width: 1, height: 1}); // the first is slow: nobody waits for it
    root.querySelector('.try-load').hidden = true;
    root.querySelectorAll('input, button').forEach(control => { control.disabled = false; });
    say('The network is here. You may pull the network cable now.');
    element('file').focus({preventScroll: true});
  } catch (error) {
    network = null;
    button.disabled = false;
    say(error instanceof Trouble ? error.message : `Something went wrong: ${error.message}`, true);
  }
  bar.hidden = true;
}

let last = Promise.resolve(); // one question at a time

/** What the network says of a picture {pixels, width, height}: its outputs, and what it was shown. */
function ask(picture, wanted = []) {
  const {ort, session} = network;
  const answer = last.then(async () => {
    const seen = prepare(picture, about.recipe);
    const area = seen.width * seen.height;
    const input = new Float32Array(3 * area); // red, then green, then blue
    for (let i = 0; i < 3 * area; i++) input[(i % 3) * area + (i / 3 | 0)] = seen.pixels[i];
    const pixels = new ort.Tensor('float32', input, [1, 3, seen.height, seen.width]);
    return {seen, outputs: await session.run({pixels}, ['probabilities', ...wanted])};
  });
  last = answer.catch(() => {});
  return answer;
}

// ------------------------------------------------------------------------------------------------- a picture

/** The pixels of what a canvas can draw, on white where it is transparent, as the library reads them. */
function pixelsOf(source, width, height) {
  const pixels = new Uint8Array(3 * width * height);
  const canvas = document.createElement('canvas');
  canvas.width = width;
  canvas.height = Math.min(height, Math.max(1, Math.floor(STRIP / width)));
  const context = canvas.getContext('2d', {willReadFrequently: true});
  for (let top = 0, to = 0; top < height; top += canvas.height) {
    const rows = Math.min(canvas.height, height - top);
    context.fillStyle = '#fff';
    context.fillRect(0, 0, width, rows);
    context.drawImage(source, 0, -top);
    const {data} = context.getImageData(0, 0, width, rows);
    for (let from = 0; from < data.length; from += 4) {
      pixels[to++] = data[from];
      pixels[to++] = data[from + 1];
      pixels[to++] = data[from + 2];
    }
  }
  return {pixels, width, height};
}

/** A file's picture, upright as its EXIF says, its numbers as they are stored, as Pillow takes them. */
async function decode(blob, name) {
  try {
    return await createImageBitmap(blob, {imageOrientation: 'from-image', colorSpaceConversion: 'none'})
      .catch(() => createImageBitmap(blob)); // a browser that does not know these options
  } catch {
    throw new Trouble(`This browser cannot read ${name} as a picture. JPEG, PNG and WebP work ` +
      'everywhere; the HEIC of an iPhone only in Safari.');
  }
}

/** Show a picture to the network, and its answer to the visitor: a File, or an image or video of the page. */
async function take(source, name, live = false) {
  if (!network) return;
  if (!live) stopCamera();
  const began = performance.now();
  try {
    const bitmap = source instanceof Blob ? await decode(source, name) : source;
    const width = bitmap.videoWidth || bitmap.naturalWidth || bitmap.width;
    const height = bitmap.videoHeight || bitmap.naturalHeight || bitmap.height;
    if (!width || !height) throw new Trouble(`There are no pixels in ${name}.`);
    const wanted = layers.open ? [...CONVOLUTIONS, 'fc7', 'fc8.weight'] : [];
    const picture = pixelsOf(bitmap, width, height);
    if (!live) drawPicture(bitmap, width, height, `${name}: ${width} × ${height} pixels`);
    const {seen, outputs} = await ask(picture, wanted);
    bitmap.close?.();
    if (live && !camera) return; // stopped in between
    current = picture;
    drawSeen(seen, Math.min(width, height) > about.recipe.first_to);
    drawAnswer(Array.from(outputs.probabilities.data), performance.now() - began);
    if (wanted.length) drawLayers(outputs);
    if (!live) {
      say('');
      root.querySelector('.try-result').scrollIntoView({block: 'nearest'});
    }
    root.dispatchEvent(new CustomEvent('answered', {bubbles: true}));
  } catch (error) {
    say(error instanceof Trouble ? error.message : `Something went wrong: ${error.message}`, true);
  }
}

let current = null; // the latest picture, for the layers

function drawPicture(source, width, height, caption) {
  const canvas = element('picture'), scale = Math.min(1, 640 / Math.max(width, height));
  canvas.width = Math.max(1, Math.round(width * scale));
  canvas.height = Math.max(1, Math.round(height * scale));
  const context = canvas.getContext('2d');
  context.fillStyle = '#fff';
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.imageSmoothingQuality = 'high';
  context.drawImage(source, 0, 0, canvas.width, canvas.height);
  element('caption').textContent = caption;
}

function drawSeen({pixels, width, height}, byWay) {
  const canvas = element('seen'), image = new ImageData(width, height);
  image.data.fill(255);
  for (let i = 0; i < 3 * width * height; i++) image.data[4 * (i / 3 | 0) + i % 3] = pixels[i];
  [canvas.width, canvas.height] = [width, height];
  canvas.getContext('2d').putImageData(image, 0, 0);
  element('by-way').hidden = !byWay;
}

function drawAnswer(probabilities, milliseconds) {
  const order = [...probabilities.keys()].sort((a, b) => probabilities[b] - probabilities[a]);
  const [first, second] = order.map(k => withArticle(about.classes[k]));
  const highest = probabilities[order[0]];
  element('says').textContent = highest < about.unsure_below ? `Not sure: perhaps ${first}, perhaps ${second}.`
    : `This is ${first}, with a probability of ${percent(highest)}.`;
  [...element('bars').children].forEach((line, k) => {
    line.classList.toggle('try-first', k === order[0]);
    line.dataset.probability = probabilities[k];
    line.querySelector('b').style.width = `${100 * probabilities[k]}%`;
    line.querySelector('output').textContent = percent(probabilities[k]);
  });
  element('time').textContent = camera
    ? `${camera.rate().toFixed(1)} answers a second` : `Answered in ${milliseconds.toFixed(0)} milliseconds.`;
  root.querySelector('.try-answer').hidden = false;
}

// ------------------------------------------------------------------------------- what each layer makes of it

/** Maps of a layer as tiles of a canvas, on one scale from black (nothing) over red to white (the most). */
function drawMaps(place, {data, dims: [, , height, width]}, chosen, most) {
  const columns = chosen.length > 20 ? 16 : 8, gap = width > 20 ? 2 : 1;
  const canvas = place.querySelector('canvas') ?? place.appendChild(document.createElement('canvas'));
  canvas.width = columns * (width + gap) - gap;
  canvas.height = Math.ceil(chosen.length / columns) * (height + gap) - gap;
  canvas.setAttribute('role', 'img');
  canvas.setAttribute('aria-label', `${place.dataset.layer}: ${chosen.length} feature maps for this picture`);
  const context = canvas.getContext('2d');
  context.clearRect(0, 0, canvas.width, canvas.height);
  chosen.forEach((map, k) => {
    const image = new ImageData(width, height);
    for (let i = 0; i < width * height; i++) {
      const bright = Math.sqrt(data[map * width * height + i] / most); // the root lets weak places be seen
      image.data[4 * i] = 510 * bright;
      image.data[4 * i + 1] = 510 * (bright - 0.4);
      image.data[4 * i + 2] = 510 * (bright - 0.7);
      image.data[4 * i + 3] = 255;
    }
    context.putImageData(image, (k % columns) * (width + gap), Math.floor(k / columns) * (height + gap));
  });
}

function strongest({data, dims: [, maps, height, width]}) {
  const sums = Array.from({length: maps}, (_, map) =>
    data.subarray(map * height * width, (map + 1) * height * width).reduce((a, b) => a + b, 0));
  return sums.map((_, map) => map).sort((a, b) => sums[b] - sums[a]);
}

function drawLayers(outputs) {
  for (const name of CONVOLUTIONS) {
    const place = layers.querySelector(`[data-layer=${name}]`), maps = outputs[name];
    const most = maps.data.reduce((a, b) => Math.max(a, b), 1e-9);
    const chosen = name === 'conv1' ? [...Array(maps.dims[1]).keys()] : strongest(maps).slice(0, STRONGEST);
    drawMaps(place, maps, chosen, most);
    const caption = place.querySelector('p') ?? place.appendChild(document.createElement('p'));
    caption.textContent = name === 'conv1' ? `All ${chosen.length} maps, 0 to ${chosen.length - 1}.`
      : `Of ${maps.dims[1]} maps the ${STRONGEST} strongest: ${chosen.join(', ')}.`;
  }
  const units = outputs.fc7.data, weight = outputs['fc8.weight'].data, count = units.length;
  const top = [...units.keys()].sort((a, b) => units[b] - units[a]).slice(0, UNITS);
  layers.querySelector('[data-layer=fc7]').innerHTML = `<ol>${top.map(unit => {
    const added = about.classes.map((_, k) => units[unit] * weight[k * count + unit]);
    const k = added.indexOf(Math.max(...added));
    return `<li><span>unit ${unit}</span><i><b style="width: ${100 * units[unit] / units[top[0]]}%"></b></i>
      <output>${units[unit].toFixed(2)}, for ${about.classes[k]} +${added[k].toFixed(2)}</output></li>`;
  }).join('')}</ol>`;
  layers.querySelector('.try-none').hidden = true;
}

async function openLayers() {
  if (!layers.open || !network || !current || camera) return;
  drawLayers((await ask(current, [...CONVOLUTIONS, 'fc7', 'fc8.weight'])).outputs);
}

// ------------------------------------------------------------------------------------------------ the camera

let camera = null, asking = false;

async function startCamera() {
  if (asking) return; // the browser has not been answered yet
  asking = true;
  let stream;
  try {
    stream = await navigator.mediaDevices.getUserMedia(
      {video: {facingMode: 'environment', width: {ideal: 640}, height: {ideal: 480}}});
  } catch (error) {
    say({NotAllowedError: 'The camera may not be used: it was refused here, or in the browser\'s settings.',
      NotFoundError: 'There is no camera on this machine.'}[error.name]
      ?? 'The camera cannot be used here. A browser lends it only to pages that come by https.', true);
    return;
  } finally { asking = false; }
  const times = [];
  camera = {stream, rate: () => times.length < 2 ? 0 : 1000 * (times.length - 1) / (times.at(-1) - times[0])};
  const video = element('video');
  video.srcObject = stream;
  try { await video.play(); } catch { if (camera?.stream === stream) stopCamera(); }
  if (camera?.stream !== stream) return; // stopped in between
  video.hidden = false;
  element('picture').hidden = true;
  element('caption').textContent = 'From the camera; it stays on this machine.';
  element('camera').textContent = 'Stop the camera';
  element('camera').setAttribute('aria-pressed', 'true');
  element('says').setAttribute('aria-live', 'off'); // five answers a second are too many to be read aloud
  say('');
  while (camera?.stream === stream) {
    await take(video, 'camera', true);
    times.push(performance.now());
    if (times.length > 20) times.shift();
    await new Promise(requestAnimationFrame); // let the page be drawn
  }
}

function stopCamera() {
  if (!camera) return;
  for (const track of camera.stream.getTracks()) track.stop();
  camera = null;
  const video = element('video');
  if (video.videoWidth) drawPicture(video, video.videoWidth, video.videoHeight, 'The last picture of the camera');
  video.hidden = true;
  video.srcObject = null;
  element('picture').hidden = false;
  element('camera').textContent = 'Use the camera';
  element('camera').setAttribute('aria-pressed', 'false');
  element('says').removeAttribute('aria-live');
}

// --------------------------------------------------------------------------------------- what a visitor does

function takeFile(files) {
  const file = [...files].find(each => each.type.startsWith('image/')) ?? files[0];
  if (!file) return;
  if (network) take(file, file.name);
  else say('First fetch the network, by the button above.', true);
}

element('fetch').addEventListener('click', fetchNetwork);
element('file').addEventListener('change', event => takeFile(event.target.files));
element('file').addEventListener('click', event => { event.target.value = ''; }); // the same may come again
element('camera').addEventListener('click', () => camera ? stopCamera() : startCamera());
layers.addEventListener('toggle', openLayers);
for (const kind of ['dragenter', 'dragover', 'dragleave', 'drop']) {
  root.addEventListener(kind, event => {
    event.preventDefault();
    root.classList.toggle('try-over', kind === 'dragenter' || kind === 'dragover');
    if (kind === 'drop') takeFile(event.dataTransfer.files);
  });
}
document.addEventListener('paste', event => {
  if (event.clipboardData?.files.length) takeFile(event.clipboardData.files);
});
root.classList.add('try-ready');
