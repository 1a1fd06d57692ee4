// Masks in COCO's compressed run lengths, and the pictures made of them.

const NOTHING = -1;

/** Run lengths of a compressed mask: down the columns, beginning with pixels that are not in it. */
export function runLengths(text) {
  const runs = [];
  let place = 0;
  while (place < text.length) {
    let value = 0, shift = 0, more = true;
    while (more) {
      const bits = text.charCodeAt(place++) - 48;
      value |= (bits & 0x1f) << shift;
      more = (bits & 0x20) !== 0;
      shift += 5;
      if (!more && bits & 0x10) value |= -1 << shift;
    }
    runs.push(runs.length > 2 ? value + runs[runs.length - 2] : value);
  }
  return runs;
}

/** For each pixel the index of the segment that shows there, or -1. Large segments lie below small ones. */
export function segmentIndices(answer, isVisible) {
  const { width, height, segments } = answer;
  const indices = new Int32Array(width * height).fill(NOTHING);
  const order = [...segments.keys()].sort((a, b) => segments[b].area - segments[a].area);
  for (const index of order) {
    if (isVisible(segments[index])) fill(indices, index, segments[index], width, height);
  }
  return indices;
}

function fill(indices, index, segment, width, height) {
  let place = 0;
  segment.runs.forEach((length, number) => {
    if (number % 2) {
      for (let i = place; i < place + length; i++) {
        const row = i % height;
        indices[row * width + (i - row) / height] = index;
      }
    }
    place += length;
  });
}

/** Draws every pixel's segment in its colour, its border darker. */
export function paintSegments(canvas, indices, segments) {
  paint(canvas, indices, (index, isBorder) => {
    const [red, green, blue] = segments[index].color;
    const part = isBorder ? 0.45 : 1;
    return [red * part, green * part, blue * part, 255];
  });
}

/** Draws a white veil over the chosen segments, with a white border. */
export function paintHighlight(canvas, indices, isChosen) {
  paint(canvas, indices, (index, isBorder) => (isChosen(index) ? [255, 255, 255, isBorder ? 255 : 90] : null));
}

function paint(canvas, indices, colorOf) {
  const { width, height } = canvas;
  const context = canvas.getContext("2d");
  const image = context.createImageData(width, height);
  for (let place = 0; place < indices.length; place++) {
    const index = indices[place];
    if (index === NOTHING) continue;
    const isBorder =
      ((place + 1) % width && indices[place + 1] !== index) ||
      (place % width && indices[place - 1] !== index) ||
      (place + width < indices.length && indices[place + width] !== index) ||
      (place >= width && indices[place - width] !== index);
    const color = colorOf(index, isBorder);
    if (color) image.data.set(color, 4 * place);
  }
  context.putImageData(image, 0, 0);
}
