"use strict";
// Shows the examples of the chosen outcome and kind, a screenful or two at a time.
const filters = document.querySelector("#filters");
if (filters) {
  const STEP = 40;
  const cards = document.querySelectorAll(".card");
  const more = document.querySelector("#more");
  const number = (count) => count.toLocaleString("en");
  let most = STEP;
  const show = () => {
    const chosen = new FormData(filters);
    const outcome = chosen.get("outcome");
    const kind = chosen.get("kind") ?? "";
    let count = 0;
    for (const card of cards) {
      const matches =
        (outcome === "all" || card.dataset.outcome.split(" ").includes(outcome)) &&
        (kind === "" || card.dataset.kind === kind);
      count += matches;
      card.hidden = !matches || count > most;
    }
    filters.querySelector("output").textContent =
      count > most ? `${number(most)} of ${number(count)} shown` : `${number(count)} shown`;
    more.hidden = count <= most;
    more.textContent = `Show ${number(Math.min(STEP, count - most))} more`;
  };
  filters.hidden = false;
  filters.addEventListener("input", () => {
    most = STEP;
    show();
  });
  more.addEventListener("click", () => {
    most += STEP;
    show();
  });
  show(); // browsers keep the choice over a reload
}
