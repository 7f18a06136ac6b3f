// The step map of an answer: the attention between its steps, layer by layer.

import { add } from "./api.js";

const SVG = "http://www.w3.org/2000/svg";
const HINT = "Rows look at columns; the darker, the more. Point at a cell to read its steps, or move with the arrow keys.";

/** `found` is the answer of /v1/saliency. Steps have the numbers of steps.csv: the question is 0. */
export function drawMaps(box, found) {
  const map = add(box, "div", "map");
  const svg = map.appendChild(document.createElementNS(SVG, "svg"));
  svg.setAttribute("role", "img");
  svg.setAttribute("tabindex", 0);
  svg.setAttribute("aria-label", "How much each step attends to each earlier step");
  const side = add(map, "div", "side");
  const last = found.layers.length - 1;
  add(side, "p", "size", `${found.steps.length} steps, ${found.layers.length} layers`);
  const label = add(side, "label", "", "Layer ");
  const slider = add(label, "input", "layer");
  Object.assign(slider, { type: "range", min: 0, max: last, value: last });
  const number = add(label, "span", "layer-number");
  const words = add(side, "p", "words", HINT);
  words.setAttribute("aria-live", "polite");
  const place = { query: 0, key: 0 };
  const read = () => {
    const { values, unit } = found.layers[slider.value].maps[0];
    const step = (index) => `${index} (${found.steps[index].segment}): ${found.steps[index].text.trim().slice(0, 300)}`;
    const value = values[place.query][place.key];
    words.textContent = `${value?.toExponential(2)} ${unit}\n\nfrom ${step(place.query)}\n\nto ${step(place.key)}`;
    svg.querySelector(".here")?.classList.remove("here");
    svg.querySelector(`[data-cell="${place.query},${place.key}"]`).classList.add("here");
  };
  const draw = () => {
    number.textContent = " " + found.layers[slider.value].layer;
    drawMap(svg, found.layers[slider.value].maps[0], (query, key) => {
      Object.assign(place, { query, key });
      read();
    });
  };
  svg.onkeydown = (event) => {
    const move = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (!move) return;
    event.preventDefault();
    place.query = Math.max(0, Math.min(found.steps.length - 1, place.query + move[0]));
    place.key = Math.max(0, Math.min(place.query, place.key + move[1]));
    read();
  };
  slider.oninput = draw;
  draw();
  map.scrollIntoView({ block: "nearest" });
}

function drawMap(svg, map, enter) {
  const n = map.values.length;
  const known = map.values.flat().filter((value) => value > 0).map(Math.log);
  const [least, most] = known.reduce(([a, b], value) => [Math.min(a, value), Math.max(b, value)], [Infinity, -Infinity]);
  svg.setAttribute("viewBox", `0 0 ${n} ${n}`);
  svg.replaceChildren();
  map.values.forEach((row, query) => row.forEach((value, key) => {
    const cell = svg.appendChild(document.createElementNS(SVG, "rect"));
    const share = value > 0 ? (Math.log(value) - least) / (most - least || 1) : 0;
    const place = { x: key, y: query, width: 1, height: 1, "fill-opacity": 0.05 + 0.95 * share, "data-cell": `${query},${key}` };
    Object.entries(place).forEach(([name, setting]) => cell.setAttribute(name, setting));
    cell.onmouseenter = () => enter(query, key);
  }));
}
