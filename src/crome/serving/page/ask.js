// The first tab: a picture, a question, up to three models' answers side by side.

import { post } from "./api.js";
import { $, acceptDrops, h, say, trouble } from "./dom.js";
import { EXAMPLES } from "./examples/examples.js";
import { Frame, whereabouts } from "./picture.js";
import { curl, python } from "./programs.js";
import { player, Sounds } from "./sound.js";
import { Answer, copy } from "./talk.js";

const MOST = 3;
const MANY = 8; // models; more can be searched
let base; // the model without an adapter
let looks; // whether it has queries whose attention can be shown
let talk = []; // the turns that a further question goes on from
let frame;
let sounds; // the recordings of the next question
let running = null; // AbortController of the turn being answered
let pressed = null; // the button whose regions are shown

export function start(models) {
  frame = new Frame($("#picture"), () => press(null), trouble);
  sounds = new Sounds($("#recordings"), trouble);
  listModels(models);
  listExamples();
  acceptAnywhere();
  $("#composer").addEventListener("submit", (event) => {
    event.preventDefault();
    running ? running.abort() : ask();
  });
  $("#question").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      if (!running) $("#composer").requestSubmit();
    }
  });
  $("#temperature").addEventListener("input", ({ target }) => {
    const value = Number(target.value);
    target.nextElementSibling.textContent = value ? value.toFixed(1) : "none";
  });
}

// -------------------------------------------------------------------- what to ask, of whom

function listModels(models) {
  const own = models.find((model) => !model.parent) ?? models[0];
  base = own.id;
  looks = own.capabilities?.attention ?? true;
  $("#recordings").hidden = !own.capabilities?.media.includes("audio");
  const chosen = models.length > 1 ? models.slice(0, 2) : models;
  $("#models").append(
    ...models.map((model) =>
      h(
        "label",
        { title: about(model) },
        h("input", { type: "checkbox", name: "model", value: model.id, checked: chosen.includes(model) }),
        h("span", {}, model.id),
      ),
    ),
  );
  $("#models").addEventListener("change", () => limit(models));
  $("#search").hidden = models.length <= MANY;
  $("#search").addEventListener("input", ({ target }) => {
    const words = target.value.toLowerCase().split(/\s+/);
    for (const label of $("#models").querySelectorAll("label")) {
      const text = `${label.textContent} ${label.title}`.toLowerCase();
      label.hidden = !label.querySelector("input").checked && !words.every((word) => text.includes(word));
    }
  });
  limit(models);
}

/** What is known of an adapter, in a line. */
function about(model) {
  if (!model.parent) return "the base, without an adapter";
  const { stage, data } = model.metadata?.training ?? {};
  const scores = Object.entries(model.metadata?.metrics ?? {})
    .filter(([, value]) => typeof value === "number")
    .slice(0, 2)
    .map(([name, value]) => `${name} ${Number(value.toPrecision(3))}`);
  return ["an adapter", stage && `stage ${stage}`, data && `trained on ${data}`, ...scores].filter(Boolean).join(", ");
}

function limit(models) {
  const boxes = [...$("#models").querySelectorAll("input")];
  const checked = boxes.filter((box) => box.checked);
  for (const box of boxes) box.disabled = !box.checked && checked.length >= MOST;
  $("#go").disabled = !checked.length;
  const chosen = models.filter((model) => checked.some((box) => box.value === model.id));
  $("#about").textContent = chosen.map((model) => `${model.id}: ${about(model)}`).join(" · ");
}

function listExamples() {
  $("#examples").append(
    ...EXAMPLES.map(({ file, name, question }) => {
      const button = h(
        "button",
        { type: "button", title: `${name}: ${question}` },
        h("img", { src: `examples/${file}`, alt: `${name}: ${question}` }),
      );
      button.addEventListener("click", async () => {
        await frame.take([[`examples/${file}`, name]]);
        $("#question").value = question;
        $("#question").focus();
        say(`Example chosen: ${name}.`);
      });
      return h("li", {}, button);
    }),
  );
}

/** Pictures may be dropped anywhere on this tab, and pasted; recordings dropped where a model hears. */
function acceptAnywhere() {
  acceptDrops($("#ask"), $("#picture"), (dropped) => {
    const files = [...dropped.files];
    const heard = $("#recordings").hidden ? [] : files.filter(({ type }) => type.startsWith("audio/"));
    const seen = files.filter((file) => !heard.includes(file));
    if (heard.length) sounds.take(heard);
    if (seen.length) frame.take(seen);
  });
  document.addEventListener("paste", ({ clipboardData }) => {
    const files = [...clipboardData.files].filter(({ type }) => type.startsWith("image/"));
    if (files.length && !$("#ask").hidden) frame.take(files.map((file) => [file, "pasted"]));
  });
}

// -------------------------------------------------------------------- answers

async function ask() {
  trouble(null);
  const question = $("#question").value.trim();
  if (!question) return;
  const before = $("#goes-on").checked ? talk : [];
  $("#question").select();
  await take({ question, pictures: frame.pictures, sounds: sounds.all, before: [...before] }, chosenModels());
}

function chosenModels() {
  return [...$("#models").querySelectorAll("input:checked")].map((box) => box.value);
}

/** Has a question answered. Of text alone all models are the language model alone: one answers. */
async function take(asked, models) {
  const shows = [asked, ...asked.before].some(({ pictures, sounds }) => pictures.length + sounds.length);
  const alone = shows ? [] : ["the language model alone"];
  const columns = shows ? models : [base];
  asked.answers = columns.map((model, i) => new Answer(model, i, asked, alone[i]));
  const again = h("button", { type: "button", className: "plain" }, "Ask again");
  again.addEventListener("click", () => running || take({ ...asked }, models));
  const copies = [["Python", python], ["curl", curl]].map(([name, program]) => {
    const button = h("button", { type: "button", className: "plain" }, `Copy as ${name}`);
    button.addEventListener("click", () => copy(program(asked.answers[0], settings()), button));
    return button;
  });
  const turn = h(
    "li",
    { className: "turn" },
    h(
      "div",
      { className: "asked" },
      ...asked.pictures.map(({ url, name }) => h("img", { src: url, alt: name })),
      ...asked.sounds.map(player),
      h("h3", {}, asked.question),
    ),
    h(
      "div",
      { className: "links row" },
      asked.before.length ? h("small", {}, `after ${asked.before.length} earlier`) : null,
      looks && asked.pictures.length === 1 ? lookButton(asked.pictures[0], asked.question, models[0]) : null,
      ...copies,
      again,
    ),
    h("div", { className: "answers" }, ...asked.answers.map((answer) => answer.element)),
  );
  $("#empty").hidden = true;
  $("#turns").prepend(turn);
  press(null);
  running = new AbortController();
  $("#go").textContent = "Stop";
  say("Answering.");
  await Promise.all(asked.answers.map((answer) => answer.stream(settings(), running.signal)));
  running = null;
  $("#go").textContent = "Ask";
  talk = [...asked.before, asked];
  say(asked.answers.map((answer) => `${answer.model}: ${answer.said}`).join("\n"));
}

function settings() {
  return {
    temperature: Number($("#temperature").value),
    max_tokens: Math.max(1, Math.round(Number($("#tokens").value)) || 128),
  };
}

// -------------------------------------------------------------------- where the queries looked

/** One button a question: adapters come behind the queries, so all models of a base look alike. */
function lookButton(picture, question, model) {
  const button = h("button", { type: "button", className: "plain", ariaPressed: "false" }, "Where it looked");
  let grid;
  button.addEventListener("click", async () => {
    if (pressed === button) return press(null);
    try {
      grid ??= (await post("v1/attention", { model, image_url: picture.url, question })).grid;
    } catch (error) {
      return trouble(error.message);
    }
    if (frame.picture !== picture) {
      frame.show(frame.pictures.includes(picture) ? frame.pictures : [picture], picture);
    }
    frame.cover(grid);
    press(button);
    say(whereabouts(grid));
    $("#picture").scrollIntoView({ block: "nearest", behavior: "smooth" });
  });
  return button;
}

function press(button) {
  if (pressed) pressed.ariaPressed = "false";
  pressed = button;
  if (button) button.ariaPressed = "true";
  else frame.uncover();
}
