// One model's answer to one question, and what was said before it.

import { chat } from "./api.js";
import { h } from "./dom.js";
import { rendered } from "./text.js";

const FEW = 8; // tokens; from fewer a rate says nothing

export class Answer {
  /**
   * @param model Its name for the server.
   * @param place Its column.
   * @param asked The turn: question, pictures, sounds, and the turns before it.
   * @param title What stands above the answer.
   */
  constructor(model, place, asked, title = model) {
    Object.assign(this, { model, asked, said: "", whole: false });
    this.text = h("div", { className: "text", ariaBusy: "true" }, h("p"));
    this.facts = h("small");
    this.copy = h("button", { type: "button", className: "plain", hidden: true }, "Copy");
    this.copy.addEventListener("click", () => copy(this.said, this.copy));
    this.element = h(
      "article",
      { className: `answer run${place}`, ariaLabel: `Answer of ${title}` },
      h("h4", {}, title),
      this.text,
      h("div", { className: "row" }, this.facts, this.copy),
    );
  }

  async stream(settings, signal) {
    const began = performance.now();
    let first;
    try {
      const stream = chat({ model: this.model, messages: this.messages(), ...settings }, signal);
      let { value, done } = await stream.next();
      for (; !done; { value, done } = await stream.next()) {
        first ??= performance.now();
        this.said += value;
        this.text.replaceChildren(...rendered(this.said));
      }
      this.whole = true;
      this.tell(value, first - began, performance.now() - (first ?? began));
    } catch (error) {
      this.fail(error);
    }
    this.text.ariaBusy = "false";
    this.copy.hidden = !this.said;
  }

  /** What is sent: the earlier turns that this model has answered, and the question. */
  messages() {
    const messages = [];
    const shown = new Set();
    const ask = ({ question, pictures, sounds }) => {
      const fresh = [...pictures, ...sounds].filter((one) => !shown.has(one));
      fresh.forEach((one) => shown.add(one));
      messages.push({ role: "user", content: content(question, fresh) });
    };
    for (const turn of this.asked.before) {
      const answer = turn.answers.find(({ model, said }) => model === this.model && said);
      if (!answer) continue;
      ask(turn);
      messages.push({ role: "assistant", content: answer.said });
    }
    ask(this.asked);
    return messages;
  }

  /** Tells the times of a whole answer. */
  tell(usage, untilFirst, after) {
    if (!this.said) this.text.replaceChildren(h("p", {}, h("small", {}, "(an empty answer)")));
    const tokens = usage?.completion_tokens ?? 0;
    const facts = [`${(untilFirst / 1000 || 0).toFixed(2)} s to the first word`];
    if (tokens >= FEW && after > 0) facts.push(`${((1000 * (tokens - 1)) / after).toFixed(0)} tokens/s`);
    this.facts.textContent = facts.join(" · ");
  }

  /** Says what went wrong; what had come of the answer stays. */
  fail(error) {
    if (error.name === "AbortError") this.facts.textContent = "stopped";
    else if (this.said) this.facts.textContent = error.message;
    else this.text.replaceChildren(h("p", { className: "failed" }, error.message));
  }
}

function content(question, media) {
  return media.length ? [...media.map(part), { type: "text", text: question }] : question;
}

function part({ url, sound }) {
  return sound
    ? { type: "input_audio", input_audio: { data: url.split(",")[1], format: "wav" } }
    : { type: "image_url", image_url: { url } };
}

/** Copies a text and says so on the button for a moment. */
export async function copy(text, button) {
  const label = button.textContent;
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
  } catch {
    button.textContent = "The browser does not allow it";
  }
  setTimeout(() => (button.textContent = label), 1500);
}
