// Draws predictions over an image.

import { paste } from './finish.js';

/** Return a color [r, g, b] for each class: those of the data set, or hues that lie far apart. */
export function colorsOf(model) {
  if (model.palette) return model.palette;
  const count = Math.max(model.classes.length, model.output.classes ?? 0, 1);
  return Array.from({ length: count }, (_, i) => fromHue((i * 137.508) % 360, i % 2 ? 0.42 : 0.55));
}

function fromHue(hue, lightness) {
  const reach = 0.75 * Math.min(lightness, 1 - lightness);
  return [0, 8, 4].map((n) => {
    const k = (n + hue / 30) % 12;
    return Math.round(255 * (lightness - reach * Math.max(-1, Math.min(k - 3, 9 - k, 1))));
  });
}

export const css = ([r, g, b]) => `rgb(${r} ${g} ${b})`;
// The luminance of sRGB, roughly: black text on light colors, white on dark ones.
const textOn = ([r, g, b]) => (0.299 * r + 0.587 * g + 0.114 * b > 150 ? '#000' : '#fff');

function bitmapOf(height, width, colorAt) {
  const canvas = new OffscreenCanvas(Math.max(width, 1), Math.max(height, 1));
  const context = canvas.getContext('2d');
  const image = context.createImageData(canvas.width, canvas.height);
  for (let i = 0; i < height * width; i++) {
    const color = colorAt(i); // [r, g, b] or [r, g, b, alpha], or nothing
    if (!color) continue;
    image.data.set(color, 4 * i);
    if (color.length === 3) image.data[4 * i + 3] = 255;
  }
  context.putImageData(image, 0, 0);
  return canvas;
}

// Whether a pixel inside of a mask lies at its edge, which is drawn as a line.
function isEdge({ inside, width, height }, j, pixel) {
  const reach = Math.max(Math.round(1.5 * pixel), 1);
  const [x, y] = [j % width, Math.floor(j / width)];
  const out = (dx, dy) =>
    x + dx < 0 || x + dx >= width || y + dy < 0 || y + dy >= height || !inside[j + dy * width + dx];
  return out(-reach, 0) || out(reach, 0) || out(0, -reach) || out(0, reach);
}

/** Draw detections that have at least the score `threshold`. `scale` is that from the image to the canvas. */
export function drawDetections(context, found, { model, colors, threshold, opacity, scale, pixel }) {
  const { width, height } = context.canvas;
  const shown = found.scores.flatMap((score, i) => (score >= threshold ? [i] : [])).reverse(); // the best on top
  const boxes = found.boxes.map((box) => box.map((value) => value * scale));
  if (found.masks) {
    for (const i of shown) {
      const part = paste(found.masks[i], found.side, boxes[i], [height, width], model.output.mask_threshold);
      const color = colors[found.labels[i] % colors.length];
      const [area, edge] = [[...color, 255 * opacity], color];
      const mask = bitmapOf(part.height, part.width, (j) => part.inside[j] && (isEdge(part, j, pixel) ? edge : area));
      context.drawImage(mask, part.left, part.top);
    }
  }
  const size = 12 * pixel;
  context.font = `600 ${size}px system-ui, sans-serif`;
  context.textBaseline = 'middle';
  for (const i of shown) {
    const [x1, y1, x2, y2] = boxes[i];
    const color = colors[found.labels[i] % colors.length];
    context.lineWidth = 2 * pixel;
    context.strokeStyle = context.fillStyle = css(color);
    context.strokeRect(x1, y1, x2 - x1, y2 - y1);
    const text = `${model.classes[found.labels[i]] ?? found.labels[i]} ${Math.round(100 * found.scores[i])}%`;
    const wide = context.measureText(text).width + 0.8 * size;
    const high = 1.5 * size;
    // Above the box, or inside of it at the upper edge of the image, and never beyond the right edge.
    const left = Math.max(Math.min(x1 - pixel, width - wide), 0);
    const top = y1 >= high ? y1 - high : Math.max(y1, 0);
    context.fillRect(left, top, wide, high);
    context.fillStyle = textOn(color);
    context.fillText(text, left + 0.4 * size, top + high / 2 + 0.5 * pixel);
  }
}

/** Draw a label map over the image. Pixels whose class is less probable than `threshold` stay as they are. */
export function drawLabels(context, found, { colors, threshold, opacity }) {
  const sure = (i) => !found.probabilities || found.probabilities[i] >= threshold;
  const map = bitmapOf(found.height, found.width, (i) => sure(i) && colors[found.labels[i] % colors.length]);
  context.globalAlpha = opacity;
  context.imageSmoothingEnabled = false;
  context.drawImage(map, 0, 0, context.canvas.width, context.canvas.height);
  context.globalAlpha = 1;
  context.imageSmoothingEnabled = true;
}
