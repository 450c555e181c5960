// Starts the page: tabs, and what the server offers.

import { get } from "./api.js";
import { start as startAsk } from "./ask.js";
import { $, trouble } from "./dom.js";
import { start as startFewshot } from "./fewshot.js";

const tabs = [...document.querySelectorAll("[role=tab]")];

function choose(tab) {
  for (const other of tabs) {
    const chosen = other === tab;
    other.ariaSelected = String(chosen);
    other.tabIndex = chosen ? 0 : -1;
    $(`#${other.getAttribute("aria-controls")}`).hidden = !chosen;
  }
}

for (const [i, tab] of tabs.entries()) {
  tab.addEventListener("click", () => choose(tab));
  tab.addEventListener("keydown", ({ key }) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[key];
    if (!step) return;
    const next = tabs[(i + step + tabs.length) % tabs.length];
    choose(next);
    next.focus();
  });
}

try {
  const { data } = await get("v1/models");
  const base = data.find((model) => !model.parent) ?? data[0];
  const adapters = data.length - 1;
  $("#serves").textContent = `${base.id} · ${adapters} adapter${adapters === 1 ? "" : "s"}`;
  document.title = `${base.id} · crome`;
  startAsk(data);
  await startFewshot();
} catch (error) {
  trouble(`${error.message} Reload the page to try again.`);
  if (!$("#serves").textContent) document.querySelectorAll(".tabs, .panel").forEach((part) => (part.hidden = true));
}
