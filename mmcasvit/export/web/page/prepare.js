// From the pixels of an image to the input of the model, as the test pipeline of the config does it.
// model.json describes the pipeline; mmcasvit/export/web/preparation.py says what its entries mean.

/**
 * Say how an image of some size gets its place in the input of the model.
 * @returns {{resized: number[], used: number[], size: number[], scale: number[]}} Sizes as [height, width]: of the
 *   resized image, of what the pipeline returns, and of the input. `scale` is [x, y], from the image to the input.
 */
export function plan(height, width, input) {
  const resized = resizedSize(height, width, input.resize);
  const used = paddedSize(resized, input.pad);
  const size = input.size ?? used;
  if (Math.min(...resized) < 1 || used.some((side, i) => side > size[i])) {
    throw new Error(`An image of ${width} × ${height} pixels does not fit into the input of the model.`);
  }
  return { resized, used, size, scale: [resized[1] / width, resized[0] / height] };
}

function resizedSize(height, width, resize) {
  if (resize === null) return [height, width];
  if (resize.rule === 'stretch') return resize.size;
  const long = Math.max(height, width);
  const short = Math.min(height, width);
  const [x, y] = {
    fit: ({ size }) => Array(2).fill(Math.min(size[0] / height, size[1] / width)),
    within: ({ scale }) => Array(2).fill(Math.min(scale[0] / long, scale[1] / short)),
    factor: ({ factor }) => factor,
  }[resize.rule](resize);
  return [Math.floor(height * y + 0.5), Math.floor(width * x + 0.5)];
}

function paddedSize([height, width], pad) {
  if (pad === null) return [height, width];
  if (pad.size) return [Math.max(height, pad.size[0]), Math.max(width, pad.size[1])];
  return [height, width].map((side) => Math.ceil(side / pad.divisor) * pad.divisor);
}

// The source of each position of an axis: two neighbors, and the weight of the second in 1/2048, as OpenCV rounds it.
function axis(from, to) {
  const first = new Int32Array(to);
  const second = new Int32Array(to);
  const weight = new Int32Array(to);
  for (let i = 0; i < to; i++) {
    const place = Math.min(Math.max((i + 0.5) * (from / to) - 0.5, 0), from - 1);
    first[i] = Math.floor(place);
    second[i] = Math.min(first[i] + 1, from - 1);
    weight[i] = Math.round((place - first[i]) * 2048);
  }
  return { first, second, weight };
}

/**
 * Resize, normalize and pad an image.
 * @param {Uint8ClampedArray} rgba Pixels, four bytes each.
 * @param {number[]} shape Height and width of the image.
 * @param {object} planned What `plan` returned for it.
 * @param {object} input Entry `input` of model.json.
 * @returns {Float32Array} Three planes, in the order of channels of the model.
 */
export function prepare(rgba, [height, width], planned, input) {
  const { resized, used, size } = planned;
  const area = size[0] * size[1];
  const tensor = new Float32Array(3 * area); // zeros, as in the padding
  const rows = axis(height, resized[0]);
  const columns = axis(width, resized[1]);
  for (let plane = 0; plane < 3; plane++) {
    const channel = input.channels === 'rgb' ? plane : 2 - plane;
    const normalize = (value) => (value - input.mean[plane]) / input.std[plane];
    const normalized = Float32Array.from({ length: 256 }, (_, value) => normalize(value));
    if (input.pad) {
      for (let y = 0; y < used[0]; y++) {
        const start = plane * area + y * size[1];
        tensor.fill(normalize(input.pad.value[channel]), start, start + used[1]);
      }
    }
    for (let y = 0; y < resized[0]; y++) {
      const top = rows.first[y] * width * 4 + channel;
      const bottom = rows.second[y] * width * 4 + channel;
      const low = rows.weight[y];
      let out = plane * area + y * size[1];
      for (let x = 0; x < resized[1]; x++, out++) {
        const left = columns.first[x] * 4;
        const right = columns.second[x] * 4;
        const far = columns.weight[x];
        // OpenCV's own order of shifts, so that the pixels are the same and not one off.
        const above = rgba[top + left] * (2048 - far) + rgba[top + right] * far;
        const below = rgba[bottom + left] * (2048 - far) + rgba[bottom + right] * far;
        const value = ((((2048 - low) * (above >> 4)) >> 16) + ((low * (below >> 4)) >> 16) + 2) >> 2;
        tensor[out] = normalized[value];
      }
    }
  }
  return tensor;
}
