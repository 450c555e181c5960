// Files → pictures that the server takes, and the frame that shows them.

import { dataUri, h } from "./dom.js";

/** Opens a file, or a URL of this server, at most so many pixels to a side: more than any encoder
 *  here reads. Gives {name, blob, url, width, height}; the url is a data URI. */
export async function open(source, name = source.name, longest = 1024) {
  const image = new Image();
  const url = typeof source === "string" ? source : URL.createObjectURL(source);
  image.src = url;
  try {
    await image.decode(); // upright: browsers obey the camera's orientation
  } catch {
    throw new Error(`${name} is not a picture that this browser can open.`);
  } finally {
    if (url !== source) URL.revokeObjectURL(url);
  }
  const scale = Math.min(1, longest / Math.max(image.naturalWidth, image.naturalHeight));
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(image.naturalWidth * scale));
  canvas.height = Math.max(1, Math.round(image.naturalHeight * scale));
  const context = canvas.getContext("2d");
  context.fillStyle = "#fff"; // behind what is transparent
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.imageSmoothingQuality = "high";
  context.drawImage(image, 0, 0, canvas.width, canvas.height);
  return fromCanvas(canvas, name);
}

/** A canvas as a picture: drawings without loss, photographs at a tenth of the size. */
export async function fromCanvas(canvas, name) {
  const { width, height } = canvas;
  const type = width * height <= 512 * 512 ? "image/png" : "image/jpeg";
  const blob = await new Promise((resolve) => canvas.toBlob(resolve, type, 0.92));
  return { name, blob, url: await dataUri(blob), width, height };
}

const MOST = 8; // pictures of one question; the server takes no more

/** A place to drop, paste or choose pictures in: one is shown large, all of them small.
 *  `onchange` is called whenever others are there or another is shown. */
export class Frame {
  constructor(element, onchange, onerror) {
    Object.assign(this, { element, onchange, onerror, pictures: [], picture: null });
    this.input = element.querySelector("input");
    this.figure = element.querySelector("figure");
    this.image = element.querySelector("img");
    this.veil = element.querySelector("canvas");
    this.caption = element.querySelector("figcaption span");
    this.small = element.querySelector(".thumbs");
    [this.more, this.less] = element.querySelectorAll("figcaption button");
    this.adds = false; // whether what is chosen next stands beside the others
    this.input.addEventListener("change", () => {
      const files = [...this.input.files];
      this.input.value = ""; // the same file may be chosen again
      if (files.length) this.take(files, this.adds);
      this.adds = false;
    });
    this.more.addEventListener("click", () => {
      this.adds = true;
      this.input.click();
    });
    this.less.addEventListener("click", () => {
      const left = this.pictures.filter((picture) => picture !== this.picture);
      this.show(left, left.at(-1) ?? null);
      (left.length ? this.less : this.input).focus();
    });
  }

  /** Opens and shows files, instead of the pictures that are there or beside them. */
  async take(files, beside = false) {
    const opened = [];
    for (const file of files) {
      try {
        opened.push(await open(...[file].flat()));
      } catch (error) {
        this.onerror(error.message);
      }
    }
    const all = [...(beside ? this.pictures : []), ...opened];
    if (all.length > MOST) this.onerror(`A question may show ${MOST} pictures at most.`);
    if (opened.length) this.show(all.slice(0, MOST), all[Math.min(all.length, MOST) - 1]);
  }

  /** Has these pictures, and shows one of them large. */
  show(pictures, picture = pictures.at(-1) ?? null) {
    Object.assign(this, { pictures, picture });
    this.uncover();
    this.figure.hidden = !picture;
    this.element.classList.toggle("full", Boolean(picture));
    this.more.hidden = pictures.length >= MOST;
    this.small.hidden = pictures.length < 2;
    this.small.replaceChildren(
      ...pictures.map((other, i) => {
        const label = `Show picture ${i + 1} of ${pictures.length}: ${other.name}`;
        const button = h(
          "button",
          { type: "button", title: label, ariaPressed: String(other === picture) },
          h("img", { src: other.url, alt: label }),
        );
        button.addEventListener("click", () => {
          this.show(pictures, other);
          this.small.children[i].focus();
        });
        return button;
      }),
    );
    if (picture) {
      this.image.src = picture.url;
      this.image.alt = `The picture: ${picture.name}`;
      this.image.classList.toggle("small", picture.width < 320);
      this.image.classList.toggle("crisp", picture.width < 128);
    }
    this.onchange();
  }

  /** Darkens what was not looked at, given rows of numbers.
   *
   *  The tenth that was looked at most stays clear. Measured against the one largest value, the
   *  corners on which attention likes to rest would leave all else in the dark.
   */
  cover(grid) {
    const [rows, columns] = [grid.length, grid[0].length];
    const values = grid.flat();
    const clear = values.toSorted((a, b) => a - b)[Math.floor(0.9 * values.length)] || 1;
    const pixels = new ImageData(columns, rows);
    values.forEach((value, i) => {
      pixels.data[4 * i + 3] = Math.round(200 * Math.max(0, 1 - value / clear) ** 1.5);
    });
    const coarse = Object.assign(document.createElement("canvas"), { width: columns, height: rows });
    coarse.getContext("2d").putImageData(pixels, 0, 0);
    Object.assign(this.veil, { width: 336, height: Math.round((336 * rows) / columns) });
    const context = this.veil.getContext("2d");
    context.imageSmoothingQuality = "high";
    context.drawImage(coarse, 0, 0, this.veil.width, this.veil.height);
    this.veil.hidden = false;
    this.caption.textContent = "Clear: the tenth that was looked at most.";
  }

  uncover() {
    this.veil.hidden = true;
    this.caption.textContent = this.picture?.name ?? "";
  }
}

/** Where most of a grid lies, in words, for those who do not see it. */
export function whereabouts(grid) {
  const total = grid.flat().reduce((a, b) => a + b, 0) || 1;
  const third = (i, n) => Math.min(2, Math.floor((3 * (i + 0.5)) / n));
  const sums = Array(9).fill(0);
  grid.forEach((row, y) =>
    row.forEach((v, x) => (sums[3 * third(y, grid.length) + third(x, row.length)] += v)),
  );
  const best = sums.indexOf(Math.max(...sums));
  const place = [
    "upper left", "upper middle", "upper right", "middle left", "centre", "middle right",
    "lower left", "lower middle", "lower right",
  ][best];
  return `Most attention, ${Math.round((100 * sums[best]) / total)} %, on the ${place}.`;
}
