"use strict";

// A page of `supermask export --web`: page.json says what the network is, model.onnx takes uint8 pictures
// [N, H, W, C] and gives probabilities [N, classes].

const SHOWN = 10; // up to so many classes stay in their order; of more the likeliest five are shown
const PEN = 24 / 280; // of the canvas's width: MNIST's strokes are 2 to 3 of 28 pixels wide

const element = (id) => document.getElementById(id);
const drawing = element("drawing");
const paper = drawing.getContext("2d", { willReadFrequently: true });
const seen = element("seen");
const sight = seen.getContext("2d", { willReadFrequently: true });
const say = (text) => (element("status").textContent = text);
const count = (n) => n.toLocaleString("en");
const percent = (share, digits = 1) => `${(100 * share).toFixed(digits)}%`;
const bytes = (n) => (n < 1e3 ? `${n}\u00a0B` : n < 1e6 ? `${(n / 1e3).toFixed(1)}\u00a0kB` : `${(n / 1e6).toFixed(1)}\u00a0MB`);

let page, network, ort;
let wanted = null; // the newest picture, uint8 [H, W, C]
let busy = false; // the network runs
let fromFile = false; // what the canvas shows

// --- Pixels ---

/** Of each of `size` pixels along a side, which of `length` it is made of: antialiased bilinear weights, as Pillow's. */
function taps(length, from, side, size) {
  const scale = side / size, support = Math.max(1, scale);
  return Array.from({ length: size }, (_, i) => {
    const centre = from + (i + 0.5) * scale;
    const start = Math.max(0, Math.floor(centre - support + 0.5));
    const end = Math.min(length, Math.floor(centre + support + 0.5));
    const weights = Array.from({ length: end - start }, (_, j) =>
      Math.max(0, 1 - Math.abs(start + j + 0.5 - centre) / support));
    const sum = weights.reduce((a, b) => a + b);
    return { start, weights: weights.map((weight) => weight / sum) };
  });
}

/** The rows of uint8 [h, w, channels] resized to the taps, the picture turned on its side: uint8 [taps, h, channels]. */
function alongRows(pixels, h, w, channels, taps) {
  const out = new Uint8Array(taps.length * h * channels);
  taps.forEach(({ start, weights }, i) => {
    for (let y = 0; y < h; y++)
      for (let c = 0; c < channels; c++) {
        let sum = 0;
        for (let j = 0; j < weights.length; j++) sum += weights[j] * pixels[(y * w + start + j) * channels + c];
        out[(i * h + y) * channels + c] = Math.round(sum);
      }
  });
  return out;
}

/** The channels that the network takes of RGBA; grey with Pillow's weights (ITU-R 601-2). */
function channelsOf(rgba, channels) {
  const out = new Uint8Array((rgba.length / 4) * channels);
  for (let i = 0, j = 0; i < rgba.length; i += 4)
    if (channels === 1) out[j++] = (19595 * rgba[i] + 38470 * rgba[i + 1] + 7471 * rgba[i + 2] + 32768) >> 16;
    else for (let c = 0; c < 3; c++) out[j++] = rgba[i + c];
  return out;
}

/** The square of a picture that begins at (left, top), as the network takes it: uint8 [size, size, channels]. */
function seenOf({ data, width, height }, left, top, side) {
  const [channels, size] = page.shape;
  const turned = alongRows(channelsOf(data, channels), height, width, channels, taps(width, left, side, size));
  return alongRows(turned, size, height, channels, taps(height, top, side, size));
}

/** What was drawn, brought to the place and size that the data set gives its strokes; null if there is nothing. */
function drawn() {
  const n = drawing.width;
  const canvas = paper.getImageData(0, 0, n, n), ink = channelsOf(canvas.data, 1);
  let left = n, right = -1, top = n, bottom = -1, mass = 0, massX = 0, massY = 0;
  ink.forEach((value, i) => {
    if (!value) return;
    const x = i % n, y = (i - x) / n;
    [left, right, top, bottom] = [Math.min(left, x), Math.max(right, x), Math.min(top, y), Math.max(bottom, y)];
    [mass, massX, massY] = [mass + value, massX + value * (x + 0.5), massY + value * (y + 0.5)];
  });
  if (right < 0) return null;
  if (!page.strokes) return seenOf(canvas, 0, 0, n);
  const side = Math.round(Math.max(right + 1 - left, bottom + 1 - top) / page.strokes.fill);
  const [x, y] = page.strokes.centre === "mass"
    ? [massX / mass, massY / mass]
    : [(left + right + 1) / 2, (top + bottom + 1) / 2];
  // Beyond the canvas there is nothing, which is black.
  return seenOf(paper.getImageData(Math.round(x - side / 2), Math.round(y - side / 2), side, side), 0, 0, side);
}

// --- Prediction ---

/** Look at a picture; where the network runs, at the newest one when it is done. */
async function look(pixels) {
  wanted = pixels;
  if (busy) return;
  busy = true;
  const [channels, size] = page.shape;
  for (let given = null; wanted !== given; ) {
    given = wanted;
    const pictures = new ort.Tensor("uint8", given, [1, size, size, channels]);
    const { probabilities } = await network.run({ pictures });
    if (!wanted) break; // cleared meanwhile
    show(given, probabilities.data);
  }
  busy = false;
}

function show(pixels, probabilities) {
  const [channels, size] = page.shape;
  const image = new ImageData(size, size);
  for (let i = 0; i < size * size; i++)
    for (let c = 0; c < 4; c++) image.data[4 * i + c] = c === 3 ? 255 : pixels[i * channels + (channels === 1 ? 0 : c)];
  sight.putImageData(image, 0, 0);
  seen.hidden = false;
  const order = [...page.labels.keys()].sort((a, b) => probabilities[b] - probabilities[a]);
  list(page.labels.length > SHOWN ? order.slice(0, 5) : [...page.labels.keys()], probabilities, order[0]);
  say(`${page.labels[order[0]]}, ${percent(probabilities[order[0]])}`);
}

function list(classes, probabilities, first) {
  element("classes").replaceChildren(...classes.map((i) => {
    const [item, label, bar, value] = ["li", "span", "span", "data"].map((name) => document.createElement(name));
    item.classList.toggle("first", i === first);
    label.className = "label";
    label.textContent = page.labels[i];
    bar.className = "bar";
    if (probabilities) {
      bar.style.setProperty("--share", percent(probabilities[i]));
      value.value = probabilities[i];
      value.textContent = percent(probabilities[i]);
    }
    item.append(label, bar, value);
    return item;
  }));
}

function clear() {
  wanted = null;
  paper.fillRect(0, 0, drawing.width, drawing.height);
  fromFile = false;
  element("file").value = "";
  element("clear").disabled = seen.hidden = true;
  drawing.hidden = page.shape[0] !== 1;
  element("drop").hidden = !drawing.hidden;
  drawing.setAttribute("aria-label", "Drawing");
  list(page.labels.length > SHOWN ? [] : [...page.labels.keys()]);
  say(page.shape[0] === 1 ? "Nothing drawn yet" : "No picture yet");
}

// --- What a person does ---

function listen() {
  paper.lineWidth = PEN * drawing.width;
  paper.lineCap = paper.lineJoin = "round";
  paper.strokeStyle = "#fff";
  const place = (event) => {
    const box = drawing.getBoundingClientRect(), scale = drawing.width / box.width;
    return [(event.clientX - box.left) * scale, (event.clientY - box.top) * scale];
  };
  let last = null; // where the pen was; null while it is up
  const stroke = (event) => {
    const moves = event.getCoalescedEvents?.() ?? [];
    for (const move of moves.length ? moves : [event]) {
      const next = place(move);
      paper.beginPath();
      paper.moveTo(...last);
      paper.lineTo(next[0] + 0.01, next[1]); // nothing is drawn of a line without length, such as a tap
      paper.stroke();
      last = next;
    }
    const pixels = drawn();
    if (pixels) look(pixels);
  };
  if (page.shape[0] === 1) {
    drawing.classList.add("paper");
    drawing.addEventListener("pointerdown", (event) => {
      if (!event.isPrimary || event.button) return;
      if (fromFile) clear();
      drawing.setPointerCapture(event.pointerId);
      element("clear").disabled = false;
      last = place(event);
      stroke(event);
    });
    drawing.addEventListener("pointermove", (event) => last && event.isPrimary && stroke(event));
    for (const end of ["pointerup", "pointercancel"]) drawing.addEventListener(end, () => (last = null));
  }
  element("clear").addEventListener("click", clear);
  element("file").addEventListener("change", (event) => event.target.files[0] && openFile(event.target.files[0]));
  // Anywhere on the page: a file dropped beside the card would otherwise replace the page.
  const over = (on) => element("input").classList.toggle("over", on);
  addEventListener("dragover", (event) => (event.preventDefault(), over(true)));
  addEventListener("dragleave", (event) => event.relatedTarget || over(false));
  addEventListener("drop", (event) => {
    event.preventDefault();
    over(false);
    if (event.dataTransfer.files[0]) openFile(event.dataTransfer.files[0]);
  });
}

/** Show a picture file and look at it: the square in its middle, resized. */
async function openFile(file) {
  let image;
  try {
    image = await createImageBitmap(file, { colorSpaceConversion: "none", premultiplyAlpha: "none" });
  } catch {
    clear();
    say(`${file.name} is not a picture that this browser can read.`);
    return;
  }
  const { width, height } = image, side = Math.min(width, height) * page.centre, n = drawing.width;
  const [left, top] = [(width - side) / 2, (height - side) / 2];
  const whole = Object.assign(document.createElement("canvas"), { width, height }).getContext("2d");
  whole.drawImage(image, 0, 0);
  paper.imageSmoothingEnabled = side > n;
  paper.drawImage(image, left, top, side, side, 0, 0, n, n);
  fromFile = true;
  drawing.hidden = false;
  element("drop").hidden = true;
  drawing.setAttribute("aria-label", file.name);
  element("clear").disabled = false;
  look(seenOf(whole.getImageData(0, 0, width, height), left, top, side));
}

// --- Start ---

function describe() {
  const [channels, size] = page.shape;
  document.title = element("title").textContent = page.title;
  const never = page.drawn === page.weights ? "None of its weights was ever trained:" :
    `${count(page.drawn)} of its ${count(page.weights)} weights were never trained:`;
  element("about").textContent = page.drawn
    ? `${never} they were drawn at random, and the search only chose which to keep.`
    : "Its weights are stored one by one, not drawn from a seed.";
  element("hint").textContent =
    channels === 1
      ? `Draw${page.strokes ? " a digit" : ""}, or choose a picture${page.strokes ? ", white on black" : ""}.`
      : "The network sees the square in the picture's middle.";
  element("sees").textContent = `as the network sees it: ${size} by ${size} pixels`;
  element("made").textContent = `Made by ${page.generator}; runs on ONNX Runtime Web ${page.runtime}.`;
  const facts = {
    "Never trained": `${count(page.drawn)} of ${count(page.weights)} weights` +
      (page.drawn ? `, drawn from seed ${page.seed}` : ""),
    Kept: `${count(page.kept)} of ${count(page.weights)} weights (${percent(page.kept / page.weights, 2)})`,
    "The file": `${bytes(page.bytes)}; as float32 ${bytes(page.float32_bytes)}, ` +
      `${(page.float32_bytes / page.bytes).toFixed(1)} times as much`,
  };
  if (page.accuracy !== null) facts.Accuracy = `${percent(page.accuracy, 2)} of the test pictures right`;
  for (const [term, text] of Object.entries(facts))
    for (const [tag, content] of [["dt", term], ["dd", text]])
      element("facts").append(Object.assign(document.createElement(tag), { textContent: content }));
}

async function start() {
  if (location.protocol === "file:") {
    say("A browser loads no network into a page that was opened as a file. In its folder run " +
      "python -m http.server and open http://localhost:8000");
    return;
  }
  try {
    page = await (await fetch("page.json")).json();
    describe();
    ort = await import("./onnxruntime.js");
    // More threads would need headers that a plain static server does not send.
    ort.env.wasm.numThreads = 1;
    ort.env.wasm.wasmPaths = { wasm: new URL("onnxruntime.wasm", document.baseURI).href };
    network = await ort.InferenceSession.create("model.onnx", { executionProviders: ["wasm"] });
  } catch (error) {
    say(`The network could not be loaded: ${error.message}`);
    throw error;
  }
  [seen.width, seen.height] = [page.shape[1], page.shape[1]];
  clear();
  listen();
  element("file").disabled = false;
}

start();
