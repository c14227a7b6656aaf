// The page: takes images from files, by drag and drop, and from the camera, and shows what the model finds.

import { colorsOf, css, drawDetections, drawLabels } from './draw.js';

const element = (id) => document.getElementById(id);
const [canvas, view, video, status, failure] = ['canvas', 'view', 'video', 'status', 'error'].map(element);
const [threshold, opacity, backend, threads] = ['threshold', 'opacity', 'backend', 'threads'].map(element);
const MOST_THREADS = 8;
// A small image is enlarged at most to this width in CSS pixels.
const ENLARGED = 900;

let model, colors, worker;
let shown = null; // the image on the canvas: { bitmap, shape, found, times }
let stream = null; // of the camera
let asked = 0;
const waiting = new Map(); // the questions to the worker

function say(text, state) {
  status.textContent = text;
  status.dataset.state = state;
}

function complain(text = '') {
  failure.textContent = text;
  failure.hidden = !text;
}

// ---------------------------------------------------------------------------------------------------- the model

function ask(task, given, transfer = []) {
  return new Promise((resolve, reject) => {
    waiting.set(++asked, { resolve, reject });
    worker.postMessage({ id: asked, task, ...given }, transfer);
  });
}

function startWorker() {
  worker?.terminate();
  waiting.clear(); // the old one does not answer any more
  worker = new Worker('worker.js', { type: 'module' });
  worker.onmessage = ({ data: { id, result, error } }) => {
    const question = waiting.get(id);
    waiting.delete(id);
    if (error === undefined) question?.resolve(result);
    else question?.reject(new Error(error));
  };
  worker.onerror = (event) => {
    const error = new Error(event.message || 'A script of this page could not be loaded.');
    waiting.forEach(({ reject }) => reject(error));
    waiting.clear();
  };
}

// Load the model and run it once on an empty image: the first run is slower, and only a run shows that WebGPU works.
async function load() {
  allow(false);
  const gpu = backend.value === 'webgpu';
  threads.disabled = gpu || threads.options.length < 2;
  say(`Loading ${(model.bytes / 2 ** 20).toFixed(1)} MiB …`, 'busy');
  try {
    startWorker();
    await ask('load', { description: model, backend: backend.value, threads: gpu ? 1 : Number(threads.value) });
    const [height, width] = model.input.size ?? [64, 64];
    await predict(await createImageBitmap(new ImageData(width, height)));
  } catch (error) {
    if (gpu) {
      complain(`WebGPU failed, so the model runs on the CPU: ${error.message}`);
      backend.value = 'wasm';
      return load();
    }
    say('The model could not be loaded', 'failed');
    complain(error.message);
    return;
  }
  const count = Number(threads.value);
  say(gpu ? 'Ready on the GPU' : `Ready on ${count} CPU ${count === 1 ? 'thread' : 'threads'}`, 'ready');
  allow(true);
}

function allow(yes) {
  element('file').disabled = !yes;
  element('camera').disabled = !yes;
}

const predict = (bitmap) =>
  ask('predict', { bitmap, sure: model.task === 'segmentor' && Number(threshold.value) > 0 }, [bitmap]);

// ---------------------------------------------------------------------------------------------------- images

// Predict on an image and show both. A bitmap that is handed to the worker is gone here, so it gets a copy.
async function show(bitmap) {
  const { shape, found, times } = await predict(await createImageBitmap(bitmap));
  if (shown?.bitmap !== bitmap) shown?.bitmap.close();
  shown = { bitmap, shape, found, times };
  element('invitation').hidden = true;
  canvas.hidden = false;
  view.classList.remove('empty');
  draw();
  const rate = stream ? ` · ${(1000 / (times.prepare + times.model + times.finish)).toFixed(1)} images/s` : '';
  element('times').innerHTML = `<strong>${times.model.toFixed(0)} ms</strong> model · ${(
    times.prepare + times.finish
  ).toFixed(0)} ms before and after${rate}`;
  document.dispatchEvent(new CustomEvent('prediction', { detail: { shape, found, times } }));
}

async function showFile(file) {
  stopCamera();
  complain();
  let bitmap;
  try {
    // As OpenCV reads an image: turned as its EXIF entry says, with its colors as they are.
    bitmap = await createImageBitmap(file, { colorSpaceConversion: 'none', premultiplyAlpha: 'none' });
  } catch {
    complain(`${file.name} cannot be read as an image.`);
    return;
  }
  await show(bitmap).catch((error) => complain(error.message));
}

async function startCamera() {
  complain();
  try {
    if (!navigator.mediaDevices) throw new Error('browsers open it only for https and localhost');
    stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: 'environment' } });
    video.srcObject = stream;
    await video.play();
  } catch (error) {
    stopCamera();
    complain(`The camera cannot be used: ${error.message}.`);
    return;
  }
  element('camera').textContent = 'Stop the camera';
  element('camera').setAttribute('aria-pressed', 'true');
  const current = stream;
  while (stream === current) {
    try {
      await show(await createImageBitmap(video));
    } catch (error) {
      if (stream !== current) break;
      stopCamera();
      complain(error.message);
    }
    await new Promise(requestAnimationFrame); // none comes while the page is hidden
  }
}

function stopCamera() {
  stream?.getTracks().forEach((track) => track.stop());
  stream = video.srcObject = null;
  element('camera').textContent = 'Start the camera';
  element('camera').setAttribute('aria-pressed', 'false');
}

// ---------------------------------------------------------------------------------------------------- the display

function draw() {
  element('threshold-value').textContent = `${Math.round(100 * threshold.value)}%`;
  element('opacity-value').textContent = `${Math.round(100 * opacity.value)}%`;
  if (!shown) return;
  const { bitmap, shape, found } = shown;
  const [height, width] = shape;
  const room = view.clientWidth;
  const scale = Math.min(room / width, Math.max(0.72 * innerHeight, 240) / height, Math.max(1, ENLARGED / width));
  const pixel = devicePixelRatio;
  canvas.width = Math.max(Math.round(width * scale * pixel), 1);
  canvas.height = Math.max(Math.round(height * scale * pixel), 1);
  canvas.style.width = `${canvas.width / pixel}px`;
  const context = canvas.getContext('2d');
  context.imageSmoothingQuality = 'high';
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  const options = { model, colors, threshold: Number(threshold.value), opacity: Number(opacity.value), pixel };
  if (model.task === 'detector') drawDetections(context, found, { ...options, scale: canvas.width / width });
  else drawLabels(context, found, options);
  list(model.task === 'detector' ? detectionRows(options.threshold) : classRows(options.threshold));
}

const nameOf = (label) => model.classes[label] ?? `class ${label}`;

function detectionRows(least) {
  const { labels, scores } = shown.found;
  return labels.flatMap((label, i) => (scores[i] >= least ? [[label, scores[i]]] : []));
}

function classRows(least) {
  const { labels, probabilities } = shown.found;
  const counts = new Map();
  labels.forEach((label, i) => {
    if (!probabilities || probabilities[i] >= least) counts.set(label, (counts.get(label) ?? 0) + 1);
  });
  return [...counts].sort((a, b) => b[1] - a[1]).map(([label, count]) => [label, count / labels.length]);
}

function list(rows) {
  const detector = model.task === 'detector';
  const table = element('results');
  element('scroll').hidden = rows.length === 0;
  element('nothing').hidden = rows.length > 0;
  element('nothing').textContent = 'Nothing lies above the threshold.';
  element('results-name').textContent = detector ? `Detections: ${rows.length}` : `Classes: ${rows.length}`;
  table.tHead.replaceChildren(row('th', ['Class', detector ? 'Score' : 'Share of the image']));
  table.tBodies[0].replaceChildren(
    ...rows.map(([label, value]) => row('td', [nameOf(label), `${(100 * value).toFixed(1)}%`], colors[label % colors.length])),
  );
  const names = [...new Set(rows.map(([label]) => nameOf(label)))].join(', ');
  canvas.setAttribute('aria-label', `Image with ${rows.length} ${detector ? 'detections' : 'classes'}: ${names}`);
}

function row(kind, [name, value], color) {
  const line = document.createElement('tr');
  const head = line.appendChild(document.createElement('th'));
  head.scope = color ? 'row' : 'col';
  if (color) {
    const swatch = head.appendChild(document.createElement('span'));
    swatch.className = 'swatch';
    swatch.style.background = css(color);
  }
  head.append(name);
  line.appendChild(document.createElement(kind)).append(value);
  return line;
}

// ---------------------------------------------------------------------------------------------------- the start

async function start() {
  say('Starting …', 'busy');
  const answer = await fetch('model.json');
  if (!answer.ok) throw new Error('model.json is missing in the folder of this page.');
  model = await answer.json();
  colors = colorsOf(model);
  document.title = element('name').textContent = model.name;
  const size = model.input.size ? `${model.input.size[0]} × ${model.input.size[1]} pixels` : 'images of any size';
  const kind = { detector: 'Detector', segmentor: 'Segmentor' }[model.task];
  element('about').textContent =
    `${kind} of ${model.classes.length} classes on ${size}, ${model.precision}. ` +
    'Images and camera stay on this machine.';
  element('footer').textContent = `Written by ${model.writer}, run by ONNX Runtime Web ${model.runtime ?? ''}`;
  const segments = model.task === 'segmentor';
  threshold.value = segments ? 0 : 0.3;
  if (segments) element('threshold-name').textContent = 'Probability threshold';
  element('threshold-row').hidden = segments && model.output.argmax;
  element('isolation').hidden = crossOriginIsolated;
  const most = crossOriginIsolated ? Math.min(navigator.hardwareConcurrency || 1, MOST_THREADS) : 1;
  threads.append(...Array.from({ length: most }, (_, i) => new Option(i + 1, i + 1, i + 1 === most, i + 1 === most)));
  if (await navigator.gpu?.requestAdapter().catch(() => null)) backend.append(new Option('GPU (WebGPU)', 'webgpu'));
  draw();
  await load();
}

element('file').addEventListener('change', async ({ target }) => {
  const [file] = target.files;
  if (file) await showFile(file);
  target.value = ''; // so that the same file can be chosen again
});
element('camera').addEventListener('click', () => (stream ? stopCamera() : startCamera()));
addEventListener('dragover', (event) => {
  event.preventDefault();
  view.classList.add('target');
});
addEventListener('dragleave', (event) => {
  if (!event.relatedTarget) view.classList.remove('target');
});
addEventListener('drop', (event) => {
  event.preventDefault();
  view.classList.remove('target');
  const [file] = event.dataTransfer.files;
  if (file && !element('file').disabled) showFile(file);
});
opacity.addEventListener('input', draw);
threshold.addEventListener('input', draw);
// The probabilities of a segmentor are computed only where they are needed.
threshold.addEventListener('change', () => {
  if (shown && model.task === 'segmentor' && !stream && !shown.found.probabilities) {
    show(shown.bitmap).catch((error) => complain(error.message));
  }
});
for (const choice of [backend, threads]) {
  choice.addEventListener('change', async () => {
    stopCamera();
    complain();
    await load();
    if (shown) await show(shown.bitmap).catch((error) => complain(error.message));
  });
}
new ResizeObserver(draw).observe(view);

start().catch((error) => {
  say('The page could not start', 'failed');
  complain(error.message);
});
