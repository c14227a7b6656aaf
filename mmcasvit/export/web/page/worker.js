// Runs the model in a thread of its own, so that the page answers while it computes.

import { detections, labelMap } from './finish.js';
import { plan, prepare } from './prepare.js';

const MOST_PIXELS = 50e6;
let ort, session, model;

async function load({ description, backend, threads }) {
  model = description;
  ort = await import(backend === 'webgpu' ? './ort/ort.webgpu.min.mjs' : './ort/ort.wasm.min.mjs');
  ort.env.wasm.wasmPaths = new URL('./ort/', import.meta.url).href; // never a server of the makers
  ort.env.wasm.numThreads = threads;
  session = await ort.InferenceSession.create(new URL('./model.onnx', import.meta.url).href, {
    executionProviders: [backend],
  });
}

async function predict({ bitmap, sure }) {
  const start = performance.now();
  const shape = [bitmap.height, bitmap.width];
  if (shape[0] * shape[1] > MOST_PIXELS) {
    throw new Error(`The image has more than ${MOST_PIXELS / 1e6} million pixels.`);
  }
  const canvas = new OffscreenCanvas(bitmap.width, bitmap.height);
  const context = canvas.getContext('2d', { willReadFrequently: true });
  context.drawImage(bitmap, 0, 0);
  bitmap.close();
  const planned = plan(...shape, model.input);
  const pixels = context.getImageData(0, 0, shape[1], shape[0]).data;
  const image = new ort.Tensor('float32', prepare(pixels, shape, planned, model.input), [1, 3, ...planned.size]);
  const prepared = performance.now();
  const outputs = await session.run({ image });
  const computed = performance.now();
  const found =
    model.task === 'detector'
      ? detections(outputs, planned)
      : labelMap(Object.values(outputs)[0], shape, planned, model.output, sure);
  const times = { prepare: prepared - start, model: computed - prepared, finish: performance.now() - computed };
  return { shape, found, times };
}

onmessage = async ({ data: { id, task, ...given } }) => {
  try {
    postMessage({ id, result: await { load, predict }[task](given) });
  } catch (error) {
    postMessage({ id, error: error.message ?? String(error) });
  }
};
