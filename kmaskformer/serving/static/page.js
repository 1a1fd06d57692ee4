// From a dropped file to the server and back.

import { Legend } from "./legend.js";
import { View } from "./view.js";

const element = (id) => document.getElementById(id);
const view = new View((text) => (element("status").textContent = text));
const legend = new Legend(view, element("legend"));
let models = [];
let limits = {};
let file = null;
let request = null;

async function start() {
  const answer = await fetch("models");
  ({ models, limits } = await answer.json());
  const shown = models.filter((model) => model.describes_segments);
  for (const { name, task } of shown) {
    element("model").add(new Option(name === task ? task : `${task} (${name})`, name));
  }
  if (!shown.length) fail("No model of this server was exported with all of its outputs.");
}

/** Sends the file to the chosen model, in place of a request that may be under way. */
async function segment() {
  if (!file) return;
  request?.abort();
  const mine = (request = new AbortController());
  begin();
  try {
    const [bitmap, answer] = await Promise.all([decode(file), ask(file, element("model").value, mine.signal)]);
    if (mine === request) finish(bitmap, answer);
  } catch (error) {
    if (mine === request) fail(error.message);
  }
}

async function ask(file, model, signal) {
  if (file.size > limits.body_bytes) throw new Error(`The file is larger than the ${limits.body_bytes} bytes allowed.`);
  const response = await fetch(`segment?model=${encodeURIComponent(model)}&format=json`, {
    method: "POST", body: file, headers: { "content-type": "application/octet-stream" }, signal,
  });
  const answer = await response.json().catch(() => ({ error: `The server answered ${response.status}.` }));
  if (!response.ok) throw new Error(answer.error);
  return answer;
}

/** The image, or null for formats that the server reads and the browser does not, such as TIFF. */
function decode(file) {
  return createImageBitmap(file).catch(() => null);
}

function begin() {
  document.body.classList.add("busy");
  element("error").hidden = true;
  element("status").textContent = `Segmenting ${file.name} ...`;
}

function finish(bitmap, answer) {
  document.body.classList.remove("busy");
  element("empty").hidden = true;
  element("help").hidden = false;
  document.querySelector(".legend").hidden = false;
  view.setOpacity(element("opacity").value);
  view.show(bitmap, answer);
  legend.show(answer, models.find((model) => model.name === answer.model));
  for (const id of ["save-png", "save-json"]) element(id).disabled = false;
  const count = answer.segments.length;
  const note = bitmap ? "" : " This browser cannot show the file; the segments lie on grey.";
  element("status").textContent =
    `${file.name}: ${count} segment${count === 1 ? "" : "s"}, ${answer.width} × ${answer.height} pixels.${note}`;
}

function fail(message) {
  document.body.classList.remove("busy");
  element("status").textContent = "";
  element("error").textContent = message;
  element("error").hidden = false;
}

function choose(chosen) {
  if (!chosen) return;
  if (!file || chosen.name !== file.name) view.hidden.clear();
  file = chosen;
  segment();
}

function save(blob, suffix) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = file.name.replace(/\.[^.]*$/, "") + suffix;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

function saveJson() {
  const segments = view.answer.segments.map(({ runs, ...segment }) => segment);
  save(new Blob([JSON.stringify({ ...view.answer, segments }, null, 1)], { type: "application/json" }), ".json");
}

element("file").addEventListener("change", (event) => choose(event.target.files[0]));
element("model").addEventListener("change", () => {
  view.hidden.clear();
  segment();
});
element("opacity").addEventListener("input", (event) => view.setOpacity(event.target.value));
element("controls").addEventListener("submit", (event) => event.preventDefault());
element("show-all").addEventListener("click", () => legend.setAll(true));
element("hide-all").addEventListener("click", () => legend.setAll(false));
element("save-png").addEventListener("click", () => view.picture().toBlob((blob) => save(blob, "_overlay.png")));
element("save-json").addEventListener("click", saveJson);
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.add("dropping");
});
document.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) document.body.classList.remove("dropping");
});
document.addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("dropping");
  choose(event.dataTransfer.files[0]);
});
document.addEventListener("paste", (event) => choose(event.clipboardData.files[0]));
start().catch((error) => fail(`The server does not answer: ${error.message}`));
