// The page of `serve`: uploads what is dropped, shows what the server says. Texts from images are
// set as text, never as markup; nothing is asked of any other address.
"use strict";

const at = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";
const UPLOADS = 4; // at a time
let busy = false;
let drop = 0; // number of the images that this window shows or sends; another window may drop others

function make(parent, tag, attributes = {}, text = "") {
  const space = ["svg", "image", "rect"].includes(tag) ? SVG : "http://www.w3.org/1999/xhtml";
  const element = document.createElementNS(space, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.textContent = text;
  return parent.appendChild(element);
}

async function ask(method, path, body) {
  let answer;
  try {
    answer = await fetch(path, { method, body });
  } catch {
    throw new Error("No answer: start serve again and open the address that it prints.");
  }
  const told = await answer.json();
  if (!answer.ok) throw new Error(`${told.cause}; what to do: ${told.remedy}`);
  return told;
}

function showError(text) {
  at("error").hidden = !text;
  at("error").textContent = text;
}

function showProgress(text, share) {
  at("message").textContent = text;
  at("progress").hidden = share === null;
  if (share !== null) at("progress").value = share;
}

// What was dropped

async function filesOf(entry, path = "") {
  if (entry.isFile) {
    const file = await new Promise((done, failed) => entry.file(done, failed));
    return [{ path: path + entry.name, file }];
  }
  const reader = entry.createReader();
  const found = [];
  for (;;) {
    const some = await new Promise((done, failed) => reader.readEntries(done, failed));
    if (!some.length) return found; // a browser lists a folder by hundreds
    for (const one of some) found.push(...(await filesOf(one, `${path}${entry.name}/`)));
  }
}

async function upload(files) {
  const limit = Number(document.querySelector("main").dataset.limit);
  const kept = files.filter(({ file }) => ![".DS_Store", "Thumbs.db"].includes(file.name));
  const total = kept.reduce((sum, { file }) => sum + file.size, 0);
  if (!kept.length) throw new Error("There is no file in what was dropped.");
  if (total > limit) throw new Error(`These are ${Math.round(total / 1e6)} MB; drop one patient at a time.`);
  let sent = 0;
  const waiting = kept[Symbol.iterator](); // shared, so that each file is taken once
  const send = async () => {
    for (const { path, file } of waiting) {
      await ask("PUT", `files/${path.split("/").map(encodeURIComponent).join("/")}?drop=${drop}`, file);
      sent += file.size;
      showProgress(`Copying ${kept.length} files`, sent / Math.max(total, 1));
    }
  };
  await Promise.all(Array.from({ length: UPLOADS }, send));
}

async function predict(collect) {
  if (busy) return;
  busy = true;
  try {
    showError("");
    show(await ask("POST", "clear", ""));
    await upload(await collect());
    await ask("POST", `predict?drop=${drop}`, "");
    await wait();
  } catch (error) {
    showProgress("", null);
    showError(error.message);
  } finally {
    busy = false;
  }
}

async function wait() {
  for (;;) {
    const state = await ask("GET", "state");
    show(state);
    if (state.phase !== "working") return;
    await new Promise((done) => setTimeout(done, 100));
  }
}

// What came of it

function show(state) {
  const done = state.phase === "done";
  drop = state.drop;
  at("threshold").textContent = `${state.threshold.toFixed(3)} (${state.origin})`;
  at("scale").textContent = state.scale.toFixed(2);
  at("results").hidden = !done;
  at("maps").hidden = !state.maps;
  if (state.phase === "working") {
    showProgress(state.series ? `Predicting, series ${state.done + 1} of ${state.series}` : "Reading", state.series ? state.done / state.series : 0);
  } else showProgress("", null);
  showError(state.error ? `${state.error[0]}; what to do: ${state.error[1]}` : "");
  const suspected = state.patients.filter((patient) => patient.decision).length;
  at("headline").textContent = done
    ? `MVO suspected in ${suspected} of ${state.patients.length} ${state.patients.length === 1 ? "patient" : "patients"}`
    : "Is there microvascular obstruction?";
  rows("patients", state.patients.map((one) => [one.patient_id, one.slices, one.probability.toFixed(3), verdict(one.decision)]));
  rows("failed", state.failed.map((one) => [one.case_id, one.cause, one.remedy]));
  at("failed").hidden = !state.failed.length;
  at("slices").replaceChildren();
  state.slices.forEach((one, index) => at("slices").append(card(one, index, state)));
}

const verdict = (suspected) => (suspected ? "MVO suspected" : "not suspected");

function rows(id, values) {
  const body = document.querySelector(`#${id} tbody`);
  body.replaceChildren();
  for (const [first, ...others] of values) {
    const row = make(body, "tr");
    make(row, "th", { scope: "row" }, first);
    for (const value of others) make(row, "td", { class: "left" }, value);
  }
}

const placed = { given: "you", motion: "motion, to be reviewed" };

function card(one, index, state) {
  const card = make(document.createDocumentFragment(), "article", { class: "slice", id: `slice-${index}` });
  const header = make(card, "header");
  make(header, "h3", {}, `Patient ${one.patient_id}, slice ${one.slice_index}`);
  make(header, "span", { class: "note" }, `crop placed by ${placed[one.centre_from] ?? one.centre_from}`);
  make(header, "span", { class: "verdict" }, verdict(one.suspected));
  const views = make(card, "div", { class: "views" });
  views.append(source(one, index));
  const beside = one.map ? ", beside it with the predicted map" : "";
  make(views, "img", { alt: `One heart beat${beside}`, src: `beat/${index}.webp?${one.version}-${state.scale}&drop=${drop}` });
  const line = make(card, "div", { class: "probability" });
  make(make(line, "span", {}, "Probability of MVO "), "strong", {}, one.probability.toFixed(3));
  bar(line, one.probability, state.threshold);
  return card;
}

function bar(parent, probability, threshold) {
  const svg = make(parent, "svg", { viewBox: "0 0 400 22", preserveAspectRatio: "none", "aria-hidden": "true" });
  const part = (x, y, width, height, fill) => make(svg, "rect", { x, y, width, height, fill });
  part(0, 8, 400, 6, "#e8ebee");
  part(0, 8, 400 * probability, 6, probability >= threshold ? "#d55e00" : "#0072b2");
  part(400 * threshold - 1, 2, 2, 18, "#1a1f27");
}

// The source with its crop: the dashed square follows the pointer, a click puts the crop there.
function source(one, index) {
  const [left, top, right, bottom] = one.box;
  const [across, down] = [right - left, bottom - top];
  const view = [Math.min(0, left), Math.min(0, top)];
  view.push(Math.max(one.width, right) - view[0], Math.max(one.height, bottom) - view[1]);
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", view.join(" "));
  const name = make(svg, "image", { href: `source/${index}.webp?${one.version}&drop=${drop}`, width: one.width, height: one.height });
  name.setAttribute("aria-label", "Source and crop");
  make(svg, "rect", { x: left, y: top, width: across, height: down });
  const next = make(svg, "rect", { class: "next", width: across, height: down });
  const place = (event) => new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
  svg.addEventListener("pointermove", (event) => {
    const { x, y } = place(event);
    next.setAttribute("x", x - across / 2);
    next.setAttribute("y", y - down / 2);
  });
  svg.addEventListener("click", async (event) => {
    const { x, y } = place(event);
    if (busy || x < 0 || y < 0 || x > one.width || y > one.height) return;
    busy = true;
    at(`slice-${index}`).classList.add("busy");
    try {
      // The server counts from the centre of pixel 0, the picture from its edge.
      const [row, column] = [y, x].map((value) => Math.round(10 * (value - 0.5)) / 10);
      show(await ask("POST", `move?drop=${drop}`, JSON.stringify({ slice: index, row, column })));
    } catch (error) {
      at(`slice-${index}`).classList.remove("busy");
      showError(error.message);
    } finally {
      busy = false;
    }
  });
  return svg;
}

// Start

for (const kind of ["dragover", "drop"]) document.addEventListener(kind, (event) => event.preventDefault());
document.addEventListener("dragover", () => at("drop").classList.add("over"));
document.addEventListener("dragleave", () => at("drop").classList.remove("over"));
document.addEventListener("drop", (event) => {
  at("drop").classList.remove("over");
  // Entries must be taken before the event ends.
  const entries = [...event.dataTransfer.items].map((item) => item.webkitGetAsEntry()).filter(Boolean);
  predict(async () => (await Promise.all(entries.map((entry) => filesOf(entry)))).flat());
});
for (const id of ["folder", "files"]) {
  at(id).addEventListener("change", (event) => {
    const files = [...event.target.files].map((file) => ({ path: file.webkitRelativePath || file.name, file }));
    event.target.value = "";
    predict(async () => files);
  });
}
at("clear").addEventListener("click", async () => show(await ask("POST", "clear", "")));
wait().catch((error) => showError(error.message)); // a page that is loaded again shows what is there
