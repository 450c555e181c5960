// The second tab: pictures by class → a classifier on the server → verdicts on other pictures.

import { call, get, post } from "./api.js";
import { $, acceptDrops, h, trouble } from "./dom.js";
import { drawings } from "./examples/drawings.js";
import { open } from "./picture.js";

const LONGEST = 512; // pixels of a side: encoders of this kind read 224 to 448
const SHOWN = 8; // pictures of a class that are shown
const CLASSES = []; // {name, pictures}

export async function start() {
  acceptDrops($("#folders"), $("#folders"), async ({ items }) => {
    const entries = [...items].map((item) => item.webkitGetAsEntry()).filter(Boolean);
    addFiles((await Promise.all(entries.map((entry) => walk(entry)))).flat());
  });
  $("#folder").addEventListener("change", ({ target }) => {
    addFiles([...target.files].map((file) => ({ file, folder: parent(file.webkitRelativePath) })));
    target.value = "";
  });
  $("#add-class").addEventListener("click", () => {
    CLASSES.push({ name: `class ${CLASSES.length + 1}`, pictures: [] });
    list();
    $(".class:last-child input").select();
  });
  $("#use-drawings").addEventListener("click", async () => {
    CLASSES.splice(0, CLASSES.length, ...(await drawings()));
    $("#fit-name").value ||= "drawings";
    list();
  });
  $("#fit").addEventListener("submit", (event) => {
    event.preventDefault();
    fit();
  });
  acceptDrops($("#unknown"), $("#unknown"), ({ files }) => classifyAll([...files]));
  $("#unknown-file").addEventListener("change", ({ target }) => {
    classifyAll([...target.files]);
    target.value = "";
  });
  await listClassifiers();
}

// -------------------------------------------------------------------- pictures by class

const parent = (path) => path.split("/").at(-2) ?? "";

/** Files below a dropped entry, each with the name of its folder. */
async function walk(entry, folder = "") {
  if (entry.isFile) return [{ file: await new Promise((ok, no) => entry.file(ok, no)), folder }];
  const reader = entry.createReader();
  const found = [];
  for (;;) {
    const some = await new Promise((ok, no) => reader.readEntries(ok, no)); // a hundred at a time
    if (!some.length) return found;
    for (const child of some) found.push(...(await walk(child, entry.name)));
  }
}

/** Sorts files into classes by folder; other files than pictures are left out. */
async function addFiles(found) {
  trouble(null);
  const pictures = found.filter(({ file }) => file.type.startsWith("image/"));
  if (!pictures.length) return trouble("There is no picture in what was chosen.");
  const order = new Intl.Collator(undefined, { numeric: true }).compare;
  pictures.sort((a, b) => order(a.folder, b.folder) || order(a.file.name, b.file.name));
  for (const { file, folder } of pictures) {
    const name = folder || "class";
    let entry = CLASSES.find((other) => other.name === name);
    if (!entry) CLASSES.push((entry = { name, pictures: [] }));
    await addPicture(entry, file);
  }
  list();
}

async function addPicture(entry, file) {
  try {
    entry.pictures.push(await open(file, file.name, LONGEST));
  } catch (error) {
    trouble(error.message);
  }
}

function list() {
  $("#classes").replaceChildren(...CLASSES.map(card));
  ready();
}

function ready() {
  const usable = CLASSES.filter(({ name, pictures }) => name.trim() && pictures.length);
  const names = new Set(usable.map(({ name }) => name.trim()));
  $("#fit-go").disabled = usable.length < 2 || usable.length < CLASSES.length || names.size < usable.length;
}

/** One class: its name, its pictures, and what can be done with them. */
function card(entry) {
  const name = h("input", { type: "text", value: entry.name, ariaLabel: "Name of the class", maxLength: 100 });
  name.addEventListener("input", () => {
    entry.name = name.value;
    ready();
  });
  const more = h("input", { type: "file", accept: "image/*", multiple: true, hidden: true });
  more.addEventListener("change", async () => {
    for (const file of more.files) await addPicture(entry, file);
    list();
  });
  const add = h("button", { type: "button", className: "plain", ariaLabel: `Add pictures to ${entry.name}` }, "Add");
  add.addEventListener("click", () => more.click());
  const remove = h("button", { type: "button", className: "plain", ariaLabel: `Remove ${entry.name}` }, "Remove");
  remove.addEventListener("click", () => {
    CLASSES.splice(CLASSES.indexOf(entry), 1);
    list();
  });
  const count = entry.pictures.length;
  return h(
    "li",
    { className: "class" },
    h("div", { className: "row" }, name, h("small", {}, count === 1 ? "1 picture" : `${count} pictures`), more, add, remove),
    h("div", { className: "thumbs" }, ...entry.pictures.slice(0, SHOWN).map(({ url }) => h("img", { src: url, alt: "" }))),
  );
}

// -------------------------------------------------------------------- the classifier

async function fit() {
  const name = $("#fit-name").value.trim();
  const form = new FormData();
  form.append("name", name);
  let count = 0;
  for (const { name: label, pictures } of CLASSES) {
    for (const { blob } of pictures) {
      form.append("labels", label.trim());
      form.append("images", blob, `${++count}`);
    }
  }
  tell(`Reading ${count} pictures …`);
  $("#fit-go").disabled = true;
  try {
    await call("v1/classifiers", { method: "POST", body: form });
    await listClassifiers(name);
    trouble(null); // that there was none
    tell(`${name} is ready: ${CLASSES.length} classes, ${count} pictures.`);
  } catch (error) {
    tell(error.message, true);
  }
  ready();
}

function tell(text, failed = false) {
  $("#fit-status").textContent = text;
  $("#fit-status").classList.toggle("failed", failed);
}

async function listClassifiers(chosen) {
  const { data } = await get("v1/classifiers");
  chosen = data.find(({ id }) => id === chosen) ?? data[0];
  $("#classifiers").querySelector("span.note").hidden = data.length > 0;
  $("#classifiers").querySelectorAll("label").forEach((label) => label.remove());
  $("#classifiers").append(
    ...data.map((classifier) => {
      const input = h("input", { type: "radio", name: "classifier", value: classifier.id, checked: classifier === chosen });
      input.addEventListener("change", () => offerRemoval(classifier));
      return h("label", { title: classifier.classes.join(", ") }, input, h("span", {}, classifier.id));
    }),
  );
  $("#unknown-file").disabled = !data.length;
  offerRemoval(chosen);
}

/** Whoever has made a classifier may remove it. */
function offerRemoval(classifier) {
  const button = $("#forget");
  button.hidden = !classifier?.own;
  if (button.hidden) return;
  button.textContent = `Remove ${classifier.id}`;
  button.onclick = async () => {
    if (!confirm(`Remove the classifier ${classifier.id}? It cannot be brought back.`)) return;
    try {
      await call(`v1/classifiers/${encodeURIComponent(classifier.id)}`, { method: "DELETE" });
      await listClassifiers();
      tell(`${classifier.id} was removed.`);
    } catch (error) {
      trouble(error.message);
    }
  };
}

// -------------------------------------------------------------------- verdicts

async function classifyAll(files) {
  const model = $("#classifiers :checked")?.value;
  if (!model) return trouble("There is no classifier yet: make one first.");
  trouble(null);
  for (const file of files) await classify(model, file);
}

async function classify(model, file) {
  const verdict = h("li", { className: "verdict" });
  try {
    const picture = await open(file, file.name, LONGEST);
    const answer = h("p", {}, "…");
    verdict.append(h("img", { src: picture.url, alt: picture.name }), answer);
    $("#verdicts").prepend(verdict);
    const { data } = await post("v1/classify", { model, images: [picture.url], top: 5 });
    answer.replaceWith(bars(data[0].classes));
    const [{ label, probability }] = data[0].classes;
    $("#verdict-status").textContent = `${picture.name}: ${label}, ${percent(probability)}.`;
  } catch (error) {
    if (!verdict.isConnected) return trouble(error.message);
    verdict.querySelector("p").className = "failed";
    verdict.querySelector("p").textContent = error.message;
  }
}

const percent = (share) => `${(100 * share).toFixed(1)} %`;

function bars(classes) {
  const rows = classes.flatMap(({ label, probability }) => {
    const fill = h("i");
    fill.style.width = `${100 * probability}%`;
    return [h("dt", { title: label }, label), h("div", { className: "bar", ariaHidden: "true" }, fill), h("dd", {}, percent(probability))];
  });
  return h("dl", {}, ...rows);
}
