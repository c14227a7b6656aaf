// From the outputs of the model to detections or a label map, in pixels of the image.

/**
 * Return the detections of an image, without the empty rows of the model.
 * @returns {{boxes: number[][], scores: number[], labels: number[], masks: Float32Array[]|null, side: number}} Masks
 *   are probabilities within their boxes, `side` by `side`.
 */
export function detections(outputs, planned) {
  const { boxes, scores, labels, masks } = outputs;
  const found = { boxes: [], scores: [], labels: [], masks: masks ? [] : null, side: masks?.dims[2] ?? 0 };
  const area = found.side ** 2;
  scores.data.forEach((score, i) => {
    if (!(score > 0)) return;
    const box = Array.from(boxes.data.subarray(4 * i, 4 * i + 4));
    found.boxes.push(box.map((value, j) => Math.min(value, planned.used[1 - (j % 2)]) / planned.scale[j % 2]));
    found.scores.push(score);
    found.labels.push(Number(labels.data[i]));
    found.masks?.push(masks.data.slice(i * area, (i + 1) * area));
  });
  return found;
}

/**
 * Paste the mask of a box into an image.
 * @param {Float32Array} mask Probabilities, `side` by `side`.
 * @param {number[]} box x1, y1, x2, y2 in pixels of the image.
 * @param {number[]} shape Height and width of the image.
 * @returns {{left: number, top: number, width: number, height: number, inside: Uint8Array}} The part of the image that
 *   the mask can reach, and 1 for each of its pixels that lies in the mask.
 */
export function paste(mask, side, box, [height, width], threshold) {
  const left = Math.max(Math.floor(box[0]) - 1, 0);
  const top = Math.max(Math.floor(box[1]) - 1, 0);
  const part = {
    left,
    top,
    width: Math.max(Math.min(Math.ceil(box[2]) + 1, width) - left, 0),
    height: Math.max(Math.min(Math.ceil(box[3]) + 1, height) - top, 0),
  };
  part.inside = new Uint8Array(part.width * part.height);
  const at = (x, y) => (x < 0 || y < 0 || x >= side || y >= side ? 0 : mask[y * side + x]);
  for (let y = 0, i = 0; y < part.height; y++) {
    const v = ((top + y + 0.5 - box[1]) / (box[3] - box[1])) * side - 0.5;
    const y0 = Math.floor(v);
    for (let x = 0; x < part.width; x++, i++) {
      const u = ((left + x + 0.5 - box[0]) / (box[2] - box[0])) * side - 0.5;
      const x0 = Math.floor(u);
      const upper = at(x0, y0) + (at(x0 + 1, y0) - at(x0, y0)) * (u - x0);
      const lower = at(x0, y0 + 1) + (at(x0 + 1, y0 + 1) - at(x0, y0 + 1)) * (u - x0);
      part.inside[i] = upper + (lower - upper) * (v - y0) >= threshold ? 1 : 0;
    }
  }
  return part;
}

// Values of all classes that are interpolated for one image. A larger map is computed at a lower resolution.
const MOST_VALUES = 2 ** 26;

/**
 * Return the class of each pixel of an image, from logits that are interpolated as mmseg does it.
 * @param {boolean} sure Return the probability of that class as well.
 * @returns {{height: number, width: number, labels: Uint16Array, probabilities: Float32Array|null}}
 */
export function labelMap(logits, shape, planned, output, sure) {
  const factor = Math.min(1, Math.sqrt(MOST_VALUES / (output.classes * shape[0] * shape[1])));
  const [height, width] = shape.map((side) => Math.max(Math.round(side * factor), 1));
  const labels = new Uint16Array(height * width);
  const [rows, columns] = [height, width].map((side, i) => sources(planned.used[i], side, output.align_corners));
  if (output.argmax) {
    for (let y = 0, i = 0; y < height; y++) {
      const row = Math.round(rows.place[y]) * planned.size[1];
      for (let x = 0; x < width; x++, i++) labels[i] = Number(logits.data[row + Math.round(columns.place[x])]);
    }
    return { height, width, labels, probabilities: null };
  }
  const best = new Float32Array(height * width).fill(-Infinity);
  eachLogit(logits.data, output.classes, planned.size, rows, columns, (value, i, label) => {
    if (value > best[i]) {
      best[i] = value;
      labels[i] = label;
    }
  });
  if (output.classes === 1) {
    const probabilities = best.map((value) => 1 / (1 + Math.exp(-value)));
    probabilities.forEach((value, i) => {
      labels[i] = value > output.threshold ? 1 : 0;
      probabilities[i] = Math.max(value, 1 - value);
    });
    return { height, width, labels, probabilities };
  }
  if (!sure) return { height, width, labels, probabilities: null };
  const sums = new Float32Array(height * width);
  eachLogit(logits.data, output.classes, planned.size, rows, columns, (value, i) => {
    sums[i] += Math.exp(value - best[i]);
  });
  return { height, width, labels, probabilities: sums.map((sum) => 1 / sum) };
}

// As torch.nn.functional.interpolate does it.
function sources(from, to, alignCorners) {
  const place = new Float32Array(to);
  const first = new Int32Array(to);
  for (let i = 0; i < to; i++) {
    const exact = alignCorners ? (i * (from - 1)) / Math.max(to - 1, 1) : (i + 0.5) * (from / to) - 0.5;
    place[i] = Math.min(Math.max(exact, 0), from - 1);
    first[i] = Math.min(Math.floor(place[i]), Math.max(from - 2, 0));
  }
  return { place, first, step: Math.min(1, from - 1) };
}

function eachLogit(data, classes, [height, width], rows, columns, visit) {
  for (let label = 0; label < classes; label++) {
    for (let y = 0, i = 0; y < rows.place.length; y++) {
      const top = (label * height + rows.first[y]) * width;
      const bottom = top + rows.step * width;
      const low = rows.place[y] - rows.first[y];
      for (let x = 0; x < columns.place.length; x++, i++) {
        const left = columns.first[x];
        const right = left + columns.step;
        const far = columns.place[x] - left;
        const upper = data[top + left] + (data[top + right] - data[top + left]) * far;
        const lower = data[bottom + left] + (data[bottom + right] - data[bottom + left]) * far;
        visit(upper + (lower - upper) * low, i, label);
      }
    }
  }
}
