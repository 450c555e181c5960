/** Makes an element: properties, then children; strings become text, never markup. */
export function h(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children.filter((child) => child !== null));
  return element;
}

export const $ = (selector) => document.querySelector(selector);

/** Lets files be dropped on an element; `mark` shows that they may. */
export function acceptDrops(element, mark, take) {
  const over = (on) => mark.classList.toggle("over", on);
  element.addEventListener("dragover", () => over(true));
  element.addEventListener("dragleave", ({ relatedTarget }) => element.contains(relatedTarget) || over(false));
  element.addEventListener("drop", ({ dataTransfer }) => {
    over(false);
    take(dataTransfer);
  });
}

// Else the browser would leave the page for a file that misses its mark.
for (const type of ["dragover", "drop"]) document.addEventListener(type, (event) => event.preventDefault());

/** A blob as a data URI. */
export async function dataUri(blob) {
  const reader = new FileReader();
  reader.readAsDataURL(blob);
  await new Promise((resolve) => (reader.onload = resolve));
  return reader.result;
}

/** Says something to screen readers. */
export function say(text) {
  $("#status").textContent = text;
}

/** Shows what went wrong above everything, or takes it away. */
export function trouble(text) {
  $("#trouble").textContent = text ?? "";
  $("#trouble").hidden = !text;
}
