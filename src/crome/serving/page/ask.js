// The first tab: a picture, a question, up to three models' answers side by side.

import { chat, post } from "./api.js";
import { $, acceptDrops, h, say, trouble } from "./dom.js";
import { EXAMPLES } from "./examples/examples.js";
import { Frame, whereabouts } from "./picture.js";

const MOST = 3;
let frame;
let running = null; // AbortController of the turn being answered
let pressed = null; // the button whose regions are shown

export function start(models) {
  frame = new Frame($("#picture"), () => press(null), trouble);
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
  $("#models").addEventListener("change", limit);
  limit();
}

/** What is known of an adapter, in a line. */
function about(model) {
  if (!model.parent) return "the base, without an adapter";
  const { stage, data } = model.metadata?.training ?? {};
  return ["an adapter", stage && `stage ${stage}`, data && `trained on ${data}`].filter(Boolean).join(", ");
}

function limit() {
  const boxes = [...$("#models").querySelectorAll("input")];
  const checked = boxes.filter((box) => box.checked);
  for (const box of boxes) box.disabled = !box.checked && checked.length >= MOST;
  $("#go").disabled = !checked.length;
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
        await frame.take(`examples/${file}`, name);
        $("#question").value = question;
        $("#question").focus();
        say(`Example chosen: ${name}.`);
      });
      return h("li", {}, button);
    }),
  );
}

/** Pictures may be dropped anywhere on this tab, and pasted. */
function acceptAnywhere() {
  acceptDrops($("#ask"), $("#picture"), ({ files }) => files.length && frame.take(files[0]));
  document.addEventListener("paste", ({ clipboardData }) => {
    const file = [...clipboardData.files].find(({ type }) => type.startsWith("image/"));
    if (file && !$("#ask").hidden) frame.take(file, "pasted");
  });
}

// -------------------------------------------------------------------- answers

async function ask() {
  trouble(null);
  const question = $("#question").value.trim();
  if (!question) return;
  const picture = frame.picture;
  const models = [...$("#models").querySelectorAll(":checked")].map((box) => box.value);
  const answers = models.map((model, i) => new Answer(model, i, question, picture));
  const turn = h(
    "li",
    { className: "turn" },
    h(
      "div",
      { className: "asked" },
      picture && h("img", { src: picture.url, alt: picture.name }),
      h("h3", {}, question),
      picture && lookButton(picture, question, models[0]),
    ),
    h("div", { className: "answers" }, ...answers.map((answer) => answer.element)),
  );
  $("#empty").hidden = true;
  $("#turns").prepend(turn);
  press(null);
  $("#question").select();
  running = new AbortController();
  $("#go").textContent = "Stop";
  say("Answering.");
  await Promise.all(answers.map((answer) => answer.stream(settings(), running.signal)));
  running = null;
  $("#go").textContent = "Ask";
  say(answers.map((answer) => `${answer.model}: ${answer.text.textContent}`).join("\n"));
}

function settings() {
  return {
    temperature: Number($("#temperature").value),
    max_tokens: Math.max(1, Math.round(Number($("#tokens").value)) || 128),
  };
}

/** One model's answer to one question. */
class Answer {
  constructor(model, place, question, picture) {
    Object.assign(this, { model, question, picture });
    this.text = h("p", { ariaBusy: "true" });
    this.facts = h("small");
    this.element = h(
      "article",
      { className: `answer run${place}`, ariaLabel: `Answer of ${model}` },
      h("h4", {}, model),
      this.text,
      this.facts,
    );
  }

  async stream(settings, signal) {
    const began = performance.now();
    let first;
    try {
      const stream = chat({ model: this.model, messages: [this.message()], ...settings }, signal);
      let { value, done } = await stream.next();
      for (; !done; { value, done } = await stream.next()) {
        first ??= performance.now();
        this.text.append(value);
      }
      this.tell(value, first - began, performance.now() - (first ?? began));
    } catch (error) {
      this.fail(error);
    }
    this.text.ariaBusy = "false";
  }

  message() {
    const text = { type: "text", text: this.question };
    const picture = this.picture && { type: "image_url", image_url: { url: this.picture.url } };
    return { role: "user", content: picture ? [picture, text] : this.question };
  }

  /** Tells the times of a whole answer. */
  tell(usage, untilFirst, after) {
    if (!this.text.textContent) this.text.append(h("small", {}, "(an empty answer)"));
    const tokens = usage?.completion_tokens ?? 0;
    const facts = [`${(untilFirst / 1000 || 0).toFixed(2)} s to the first word`];
    if (tokens > 1 && after > 0) facts.push(`${((1000 * (tokens - 1)) / after).toFixed(0)} tokens/s`);
    this.facts.textContent = facts.join(" · ");
  }

  /** Says what went wrong; what had come of the answer stays. */
  fail(error) {
    if (error.name === "AbortError") this.facts.textContent = "stopped";
    else if (this.text.textContent) this.facts.textContent = error.message;
    else {
      this.text.className = "failed";
      this.text.append(error.message);
    }
  }
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
    if (frame.picture !== picture) frame.show(picture);
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
