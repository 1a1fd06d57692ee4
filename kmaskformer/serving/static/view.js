// The picture with its segments: three canvases on one another, and the name of what the pointer is at.

import { paintHighlight, paintSegments, runLengths, segmentIndices } from "./masks.js";

const element = (id) => document.getElementById(id);

export class View {
  constructor(announce) {
    this.box = element("view");
    this.photo = element("photo");
    this.overlay = element("overlay");
    this.highlight = element("highlight");
    this.tip = element("tip");
    this.announce = announce;
    this.hidden = new Set();
    this.answer = null;
    this.chosen = -1;
    this.box.addEventListener("pointermove", (event) => this.point(event));
    this.box.addEventListener("pointerdown", (event) => this.point(event));
    this.box.addEventListener("pointerleave", () => this.choose(-1));
    this.box.addEventListener("blur", () => this.choose(-1));
    this.box.addEventListener("keydown", (event) => this.step(event));
  }

  /** Shows an answer of the server over its image; `bitmap` is null where the browser cannot decode the file. */
  show(bitmap, answer) {
    for (const segment of answer.segments) segment.runs ??= runLengths(segment.segmentation.counts);
    this.answer = answer;
    const { width, height } = answer;
    for (const canvas of [this.photo, this.overlay, this.highlight]) Object.assign(canvas, { width, height });
    if (bitmap) this.photo.getContext("2d").drawImage(bitmap, 0, 0, width, height);
    this.box.style.aspectRatio = `${width} / ${height}`;
    this.box.style.maxWidth = `calc((100vh - 12rem) * ${width / height})`;
    this.box.hidden = false;
    this.box.setAttribute("aria-label", `${answer.task} segmentation, ${answer.segments.length} segments`);
    this.redraw();
  }

  redraw() {
    this.indices = segmentIndices(this.answer, (segment) => !this.hidden.has(segment.category_id));
    paintSegments(this.overlay, this.indices, this.answer.segments);
    this.choose(-1);
  }

  setOpacity(percent) {
    this.overlay.style.opacity = percent / 100;
  }

  /** Lights up all segments of a class; -1 for none. */
  lightUp(categoryId) {
    const { segments } = this.answer;
    paintHighlight(this.highlight, this.indices, (index) => segments[index].category_id === categoryId);
  }

  point(event) {
    const place = this.box.getBoundingClientRect();
    const { width, height } = this.answer;
    const left = event.clientX - place.left, top = event.clientY - place.top;
    const column = Math.min(Math.max(Math.floor((left / place.width) * width), 0), width - 1);
    const row = Math.min(Math.max(Math.floor((top / place.height) * height), 0), height - 1);
    this.choose(this.indices[row * width + column], left, top);
  }

  /** The next or last segment that shows, for the arrow keys. */
  step(event) {
    if (event.key === "Escape") return this.choose(-1);
    const by = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (!by) return;
    event.preventDefault();
    const shown = [...this.answer.segments.keys()].filter((i) => !this.hidden.has(this.answer.segments[i].category_id));
    if (!shown.length) return;
    const now = shown.indexOf(this.chosen);
    const next = shown[now < 0 ? (by > 0 ? 0 : shown.length - 1) : (now + by + shown.length) % shown.length];
    const [x0, y0, x1, y1] = this.answer.segments[next].box;
    const place = this.box.getBoundingClientRect();
    const scale = place.width / this.answer.width;
    this.choose(next, ((x0 + x1) / 2) * scale, ((y0 + y1) / 2) * scale);
    this.announce(this.tip.textContent);
  }

  choose(index, left = 0, top = 0) {
    if (index !== this.chosen) {
      this.chosen = index;
      paintHighlight(this.highlight, this.indices, (other) => other === index);
    }
    this.tip.hidden = index < 0;
    if (index < 0) return;
    this.tip.textContent = describe(this.answer.segments[index], this.answer);
    const { clientWidth, clientHeight } = this.box;
    this.tip.style.left = `${Math.max(0, Math.min(left + 14, clientWidth - this.tip.offsetWidth))}px`;
    this.tip.style.top = `${Math.max(0, Math.min(top + 14, clientHeight - this.tip.offsetHeight))}px`;
  }

  /** Image and overlay, as they are seen, at the image's own size. */
  picture() {
    const canvas = document.createElement("canvas");
    Object.assign(canvas, { width: this.answer.width, height: this.answer.height });
    const context = canvas.getContext("2d");
    context.drawImage(this.photo, 0, 0);
    context.globalAlpha = Number(this.overlay.style.opacity);
    context.drawImage(this.overlay, 0, 0);
    return canvas;
  }
}

function describe(segment, { width, height }) {
  const part = (100 * segment.area) / (width * height);
  const area = part < 0.1 ? "under 0.1" : part.toFixed(1);
  return `${segment.label}, ${Math.round(100 * segment.score)} % sure, ${area} % of the image`;
}
