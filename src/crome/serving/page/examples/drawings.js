// Pictures by class that need no folder: shapes, each time drawn anew.

import { fromCanvas } from "../picture.js";

const COLOURS = ["#d62f2f", "#2456c8", "#2f9e44", "#f2b705", "#8e44ad", "#e4761b"];
const SHAPES = { circle: 0, triangle: 3, square: 4, hexagon: 6 }; // corners

const between = (low, high) => low + Math.random() * (high - low);

/** Classes of four drawings each: {name, pictures}. */
export async function drawings() {
  return Promise.all(
    Object.entries(SHAPES).map(async ([name, corners]) => ({
      name,
      pictures: await Promise.all([1, 2, 3, 4].map((n) => draw(`${name} ${n}`, corners))),
    })),
  );
}

function draw(name, corners, size = 224) {
  const canvas = Object.assign(document.createElement("canvas"), { width: size, height: size });
  const context = canvas.getContext("2d");
  context.fillStyle = `hsl(${between(0, 360)} 30% ${between(88, 95)}%)`;
  context.fillRect(0, 0, size, size);
  context.fillStyle = COLOURS[Math.floor(between(0, COLOURS.length))];
  const radius = between(0.22, 0.34) * size;
  const [x, y] = [between(radius, size - radius), between(radius, size - radius)];
  const sides = corners || 90; // a circle has many
  const turn = corners === 4 ? Math.PI / 4 : Math.PI / 2;
  context.beginPath();
  for (let i = 0; i < sides; i++) {
    const angle = (2 * Math.PI * i) / sides - turn;
    context.lineTo(x + radius * Math.cos(angle), y + radius * Math.sin(angle));
  }
  context.fill();
  return fromCanvas(canvas, name);
}
