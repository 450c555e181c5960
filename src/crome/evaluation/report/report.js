"use strict";
// Shows the examples of the chosen outcome and kind.
const filters = document.querySelector("#filters");
if (filters) {
  const cards = document.querySelectorAll(".card");
  const show = () => {
    const chosen = new FormData(filters);
    const outcome = chosen.get("outcome");
    const kind = chosen.get("kind") ?? "";
    let count = 0;
    for (const card of cards) {
      const matches =
        (outcome === "all" || card.dataset.outcome.split(" ").includes(outcome)) &&
        (kind === "" || card.dataset.kind === kind);
      card.hidden = !matches;
      count += matches;
    }
    filters.querySelector("output").textContent = `${count.toLocaleString("en")} shown`;
  };
  filters.hidden = false;
  filters.addEventListener("input", show);
  show(); // browsers keep the choice over a reload
}
