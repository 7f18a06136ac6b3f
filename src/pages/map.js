// The step map: how strongly each step of a trace draws on each earlier one, beside the text of all steps. Both the page that
// `stepflow saliency` leaves and the server's chat show it. map.css goes with it.

/** From weak to strong on white. On a dark page they run the other way, so that the weak fade there too. */
const COLOURS = ["fff3d6", "fcd27b", "f59545", "dc4d52", "97286b", "35104a"].map((hex) =>
  [0, 2, 4].map((at) => parseInt(hex.slice(at, at + 2), 16)));
const SHADES = 256;

/** Most values are weak: the more above 1, the more of the colours are left to the strong. */
const BEND = { light: 2, dark: 2.6 };

/** How much of its colour a value below noise keeps. */
const PALE = 0.25;
const UNMEASURED = "rgb(128 128 128 / .18)";
const UNLIT = { background: "", ink: "", amount: "" };

/** Factors that the scale spans at least and at most. */
const LEAST_SPAN = 10;
const MOST_SPAN = 1e4;

/** Pixels that a cell has at least if all cells are to be of whole pixels; smaller ones are drawn finer and shrunk. */
const WHOLE_PIXELS = 5;

/** Pixels that a cell has at most, and the share of the window's height that all of them have. */
const MOST_PIXELS = 56;
const MOST_HEIGHT = 0.6;

/** Steps that a line names of those that a step draws most from. */
const NAMED = 3;

const HINT =
  "Point at a step or a cell; click to keep it. Arrow keys: up and down a step, left and right a layer; Escape lets go.";

const between = (value, least, most) => Math.min(most, Math.max(least, value));
const brief = (value) => value.toExponential(1);

/** Where a value stands among those of a layer: its rows follow each other, each up to the diagonal. */
const place = (query, key) => (query * (query + 1)) / 2 + key;

function add(parent, tag, name, settings = {}) {
  const element = parent.appendChild(document.createElement(tag));
  element.className = name;
  for (const [key, value] of Object.entries(settings)) {
    if (key in element) element[key] = value;
    else element.setAttribute(key, value);
  }
  return element;
}

/**
 * From which value to which colours run: four decades at most, without the thousandth part that is highest. The first step has
 * but itself to draw from: often far more than anything else, that says nothing, and is left out.
 */
function limits(layers) {
  const known = layers.map(({ values }) => values.subarray(1).filter((value) => value > 0 && value < Infinity));
  const sorted = new Float32Array(known.reduce((length, values) => length + values.length, 0));
  known.reduce((start, values) => (sorted.set(values, start), start + values.length), 0);
  sorted.sort();
  const at = (share) => sorted[Math.round(share * (sorted.length - 1))];
  const high = at(0.999) ?? 1;
  return { low: between(at(0.01) ?? 0, high / MOST_SPAN, high / LEAST_SPAN), high };
}

/** The mean of every cell over layers, of those that were measured; a mean is below noise if all of it is. */
function mean(layers) {
  if (layers.length === 1) return layers[0];
  const values = new Float32Array(layers[0].values.length);
  const counts = new Uint16Array(values.length);
  for (const layer of layers) {
    for (let cell = 0; cell < values.length; cell += 1) {
      const value = layer.values[cell];
      if (Number.isNaN(value)) continue;
      values[cell] += value;
      counts[cell] += 1;
    }
  }
  for (let cell = 0; cell < values.length; cell += 1) values[cell] /= counts[cell];
  const isBelow = (_, cell) => layers.every(({ below }) => below[cell]);
  return { values, below: layers.every(({ below }) => below) ? Uint8Array.from(values, isBelow) : null };
}

/** A colour for each shade, and what to write upon it: black or white, whichever stands out more. */
function palette(dark) {
  const [stops, bend] = dark ? [[...COLOURS].reverse(), BEND.dark] : [COLOURS, BEND.light];
  const linear = (part) => (part / 255) ** 2.2;
  return Array.from({ length: SHADES }, (_, shade) => {
    const at = (shade / (SHADES - 1)) ** bend * (stops.length - 1);
    const [from, share] = [Math.floor(at), at % 1];
    const rgb = stops[from].map((part, i) => Math.round(part + share * ((stops[from + 1] ?? stops[from])[i] - part)));
    const [red, green, blue] = rgb.map(linear);
    return { rgb, ink: 0.21 * red + 0.72 * green + 0.07 * blue > 0.18 ? "#000" : "#fff" };
  });
}

/** The distance between the numbers along an axis: at most twelve, at round places. */
function spacing(n) {
  return [1, 2, 5, 10, 20, 50, 100, 200, 500].find((distance) => n / distance <= 12) ?? 1000;
}

export class StepMap {
  /**
   * Shows in `box` a run: `{ unit, steps: [{ segment, start, end, text }], layers: [{ layer, values, below }] }`. `values` are
   * the rows of a layer one after the other, each up to the diagonal; NaN was not measured. `below` says of each whether it is
   * below noise, or is null. `told` is called with the numbers of the first and the last layer whenever others are shown.
   */
  constructor(box, run, told = () => {}) {
    Object.assign(this, { run, told, n: run.steps.length, limits: limits(run.layers) });
    // What is pointed at, whether it stays, and the step that the Tab key comes to.
    Object.assign(this, { query: null, key: null, kept: false, stop: 0 });
    this.box = add(box, "section", "step-map", { "aria-label": "Step map" });
    const panel = (this.panel = add(this.box, "div", "panel"));
    this.addCells(panel);
    this.addScale(panel);
    this.said = add(panel, "p", "said", { "aria-live": "polite" });
    this.addLayers(panel);
    this.addPassages();
    this.listen();
    this.show(0, run.layers.length - 1);
  }

  addCells(panel) {
    this.figure = add(panel, "div", "figure");
    this.addAxis("down");
    this.cells = add(this.figure, "div", "cells");
    const label = "Each step down, the steps that it draws from across. Up and down choose a step, left and right a layer.";
    this.canvas = add(this.cells, "canvas", "", { tabIndex: 0, role: "img", "aria-label": label });
    this.row = add(this.cells, "div", "mark row", { hidden: true });
    this.column = add(this.cells, "div", "mark column", { hidden: true });
    this.addAxis("across");
  }

  /** Numbers of steps along an axis, and a strip in the colours of their segments. */
  addAxis(direction) {
    const axis = add(this.figure, "div", `axis ${direction}`, { "aria-hidden": true });
    const side = direction === "down" ? "top" : "left";
    for (let step = 0; step < this.n; step += spacing(this.n)) {
      add(axis, "span", "", { textContent: step }).style[side] = this.percent(step + 0.5);
    }
    const bands = this.run.steps.map(({ segment }, step) => `var(--${segment}) ${this.percent(step)} ${this.percent(step + 1)}`);
    add(axis, "i", "").style.background = `linear-gradient(to ${side === "top" ? "bottom" : "right"}, ${bands})`;
  }

  addScale(panel) {
    const { low, high } = this.limits;
    const scale = add(panel, "div", "scale");
    add(scale, "span", "", { textContent: brief(low) });
    const label = `Colours from ${brief(low)} to ${brief(high)} ${this.run.unit}`;
    this.bar = add(scale, "div", "bar", { role: "img", "aria-label": label });
    for (let power = Math.ceil(Math.log10(low)); power <= Math.log10(high); power += 1) {
      add(this.bar, "i", "", { title: `1e${power}` }).style.left = `${100 * this.position(10 ** power)}%`;
    }
    add(scale, "span", "", { textContent: `${brief(high)} ${this.run.unit}` });
  }

  addLayers(panel) {
    const layers = add(panel, "div", "layers", { role: "group", "aria-label": "Layers" });
    this.shown = add(layers, "output", "");
    const slider = (word) => {
      const label = add(layers, "label", "", { textContent: word });
      return add(label, "input", word, { type: "range", min: 0, max: this.run.layers.length - 1, "aria-label": `${word} layer` });
    };
    this.first = slider("first");
    this.last = slider("last");
    const all = add(layers, "button", "all", { type: "button", textContent: "All" });
    // Of one layer alone the first takes the last along: that is how one goes from layer to layer.
    this.first.oninput = () => {
      const first = Number(this.first.value);
      this.show(first, this.from === this.to ? first : Math.max(first, this.to));
    };
    this.last.oninput = () => {
      const last = Number(this.last.value);
      this.show(Math.min(this.from, last), last);
    };
    all.onclick = () => this.show(0, this.run.layers.length - 1);
    for (const part of layers.querySelectorAll("label, button")) part.hidden = this.run.layers.length < 2;
  }

  addPassages() {
    const trace = add(this.box, "div", "trace");
    this.text = add(trace, "div", "passages", { role: "listbox", "aria-label": "The steps of the trace" });
    this.passages = this.run.steps.map(({ segment, text }, step) => {
      const passage = add(this.text, "div", "passage", { role: "option", tabIndex: step ? -1 : 0, "aria-selected": false });
      Object.assign(passage.dataset, { step, segment });
      add(passage, "b", "", { textContent: step });
      add(passage, "small", "");
      // Text of a trace could be written from right to left.
      add(passage, "span", "words", { textContent: text.trim() || text, dir: "auto" });
      return passage;
    });
    // Much of a long text is out of sight: here all its steps are lit.
    this.ruler = add(trace, "div", "ruler", { "aria-hidden": true, title: "All steps: click to go there" });
    this.ruler.onclick = ({ offsetY }) => this.reveal(Math.floor((offsetY / this.ruler.clientHeight) * (this.n - 1)));
  }

  listen() {
    const stepAt = ({ target }) => target.closest?.(".passage")?.dataset.step;
    const overText = (event, act) => stepAt(event) !== undefined && act.call(this, +stepAt(event), null);
    this.text.onpointerover = (event) => overText(event, this.hover);
    this.text.onclick = (event) => overText(event, this.keep);
    this.text.addEventListener("focusin", (event) => overText(event, this.hover));
    this.canvas.onpointermove = (event) => this.hover(...this.cellAt(event));
    this.canvas.onclick = (event) => this.keep(...this.cellAt(event));
    for (const part of [this.text, this.canvas]) {
      part.onpointerleave = () => this.hover(null, null);
      part.addEventListener("focusout", part.onpointerleave);
    }
    this.box.onkeydown = (event) => this.press(event);
    new ResizeObserver(() => this.fit()).observe(this.figure);
    // Paper is white, whatever the screen is.
    for (const media of ["print", "(prefers-color-scheme: dark)"]) {
      matchMedia(media).addEventListener("change", () => this.paint());
    }
  }

  /** The query and the key of a cell; nothing above the diagonal. */
  cellAt({ offsetX, offsetY }) {
    const [key, query] = [offsetX / this.canvas.clientWidth, offsetY / this.canvas.clientHeight]
      .map((share) => between(Math.floor(share * this.n), 0, this.n - 1));
    return key <= query ? [query, key] : [null, null];
  }

  press(event) {
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    if (event.key === "Escape") return this.letGo();
    // A slider has arrow keys of its own.
    if (event.target.matches("input, button")) return;
    const act = {
      ArrowUp: () => this.walk(-1),
      ArrowDown: () => this.walk(1),
      ArrowLeft: () => this.slide(-1),
      ArrowRight: () => this.slide(1),
    }[event.key];
    if (!act) return;
    event.preventDefault();
    act();
  }

  /** Keeps the step above or below. */
  walk(by) {
    const step = this.query === null ? this.stop : between(this.query + by, 0, this.n - 1);
    this.kept = true;
    this.point(step, null);
    if (this.text.contains(document.activeElement)) this.passages[step].focus({ preventScroll: true });
    this.reveal(step);
  }

  /** The same number of layers, one further; all of them give way to the one at that end. */
  slide(by) {
    const [end, width] = [this.run.layers.length - 1, this.to - this.from];
    if (width === end) return by > 0 ? this.show(0, 0) : this.show(end, end);
    const from = between(this.from + by, 0, end - width);
    this.show(from, from + width);
  }

  hover(query, key) {
    if (this.kept || (query === this.query && key === this.key)) return;
    this.point(query, key);
    // Of a cell, both steps if there is room; of a step in the text there is nothing to look for.
    if (key !== null) [key, query].forEach((step) => this.reveal(step));
  }

  /** A second click on the same lets go of it. */
  keep(query, key) {
    if (query === null || (this.kept && query === this.query && key === this.key)) return this.letGo();
    this.kept = false;
    this.hover(query, key);
    this.kept = true;
    this.mark();
  }

  letGo() {
    this.kept = false;
    this.point(null, null);
  }

  point(query, key) {
    Object.assign(this, { query, key });
    if (query !== null) this.rove(query);
    this.light();
    this.mark();
    this.say();
  }

  rove(step) {
    this.passages[this.stop].tabIndex = -1;
    this.passages[step].tabIndex = 0;
    this.stop = step;
  }

  /** Scrolls the text, and nothing around it, until a step is in sight. */
  reveal(step) {
    const { offsetTop: top, offsetHeight: height } = this.passages[step];
    const [least, most] = [top + height - this.text.clientHeight, top];
    this.text.scrollTop = Math.min(most, Math.max(least, this.text.scrollTop));
  }

  /** Shows the mean over layers, by their places in the run. */
  show(from, to) {
    Object.assign(this, { from, to }, mean(this.run.layers.slice(from, to + 1)));
    [this.first.value, this.last.value] = [from, to];
    const [first, last] = [from, to].map((index) => this.run.layers[index].layer);
    this.shown.textContent = from === to ? `Layer ${first}` : `Layers ${first}–${last}, mean`;
    this.first.setAttribute("aria-valuetext", `layer ${first}`);
    this.last.setAttribute("aria-valuetext", `layer ${last}`);
    this.paint();
    this.say();
    this.told(first, last);
  }

  /** The size of the map, by the room that it has. */
  fit() {
    const ratio = devicePixelRatio || 1;
    const width = this.figure.clientWidth - this.cells.offsetLeft;
    const room = Math.min(width, innerHeight * MOST_HEIGHT, this.n * MOST_PIXELS);
    const whole = Math.floor((room * ratio) / this.n);
    const isWhole = whole >= WHOLE_PIXELS;
    const size = this.n * (isWhole ? whole : Math.ceil((2 * room * ratio) / this.n));
    if (room <= 0 || size === this.canvas.width) return;
    this.canvas.width = this.canvas.height = size;
    this.panel.style.setProperty("--side", `${isWhole ? size / ratio : room}px`);
    this.paint();
  }

  /** Between the limits, 0 to 1. */
  position(value) {
    const { low, high } = this.limits;
    return between(Math.log(value / low) / Math.log(high / low), 0, 1);
  }

  colour(value) {
    return this.palette[Math.round(this.position(value) * (SHADES - 1))];
  }

  paint() {
    const dark = matchMedia("(prefers-color-scheme: dark)").matches && !matchMedia("print").matches;
    this.palette = palette(dark);
    this.bar.style.background = `linear-gradient(to right, ${this.palette.map(({ rgb }) => `rgb(${rgb})`)})`;
    const pen = this.canvas.getContext("2d");
    pen.imageSmoothingEnabled = false;
    pen.clearRect(0, 0, this.canvas.width, this.canvas.height);
    pen.drawImage(this.picture(), 0, 0, this.canvas.width, this.canvas.height);
    this.light();
  }

  /** The map, a pixel a cell. */
  picture() {
    const { n, values, below } = this;
    const small = Object.assign(document.createElement("canvas"), { width: n, height: n });
    const pixels = new ImageData(n, n);
    for (let query = 0; query < n; query += 1) {
      for (let key = 0; key <= query; key += 1) {
        const cell = place(query, key);
        const isKnown = !Number.isNaN(values[cell]);
        const rgb = isKnown ? this.colour(values[cell]).rgb : [128, 128, 128];
        const share = !isKnown ? 0.18 : below?.[cell] ? PALE : 1;
        pixels.data.set([...rgb, 255 * share], 4 * (query * n + key));
      }
    }
    small.getContext("2d").putImageData(pixels, 0, 0);
    return small;
  }

  /** Lights in the text what the step pointed at draws from, in the colours of the map. */
  light() {
    const isDrawnFrom = (key) => this.query !== null && key <= this.query;
    const looks = this.passages.map((_, key) => isDrawnFrom(key) ? this.look(place(this.query, key)) : UNLIT);
    this.passages.forEach((passage, key) => {
      const { background, ink, amount } = looks[key];
      passage.style.background = background;
      passage.style.color = ink;
      passage.children[1].textContent = amount;
      passage.classList.toggle("query", key === this.query);
      passage.classList.toggle("key", key === this.key);
      passage.setAttribute("aria-selected", key === this.query);
    });
    const bands = looks.map(({ background }, key) => `${background || "transparent"} ${this.percent(key)} ${this.percent(key + 1)}`);
    this.ruler.style.background = `linear-gradient(${bands})`;
  }

  /** How a step looks that is drawn from. */
  look(cell) {
    const value = this.values[cell];
    if (Number.isNaN(value)) return { background: UNMEASURED, ink: "", amount: "?" };
    const { rgb, ink } = this.colour(value);
    const isPale = this.below?.[cell];
    return { background: `rgb(${rgb.join(" ")} / ${isPale ? PALE : 1})`, ink: isPale ? "" : ink, amount: brief(value) };
  }

  /** Frames in the map what a step draws from, and what draws from the other. */
  mark() {
    this.frame(this.row, this.query, { top: this.query, height: 1, left: 0, width: this.query + 1 });
    this.frame(this.column, this.key, { top: this.key, height: this.n - this.key, left: this.key, width: 1 });
  }

  frame(mark, step, sides) {
    mark.hidden = step === null;
    mark.classList.toggle("kept", this.kept);
    mark.dataset.step = step;
    for (const [side, steps] of Object.entries(sides)) mark.style[side] = this.percent(steps);
  }

  /** As much of a side as so many steps take. */
  percent(steps) {
    return `${(100 * steps) / this.n}%`;
  }

  say() {
    this.said.classList.toggle("idle", this.query === null);
    this.said.textContent = this.query === null ? HINT : [this.cellSaid(), this.rowSaid()].join("\n");
  }

  /** What the cell pointed at holds, or the step's own. */
  cellSaid() {
    const { segment, start, end } = this.run.steps[this.query];
    if (this.key === null) return `Step ${this.query}, ${segment}, tokens ${start} to ${end - 1}`;
    const cell = place(this.query, this.key);
    const value = this.values[cell];
    const amount = Number.isNaN(value) ? "what was not measured" : `${value.toExponential(3)} ${this.run.unit}`;
    return `Step ${this.query} draws ${amount} from step ${this.key}${this.below?.[cell] ? " (below noise)" : ""}`;
  }

  rowSaid() {
    const row = this.values.subarray(place(this.query, 0), place(this.query, this.query) + 1);
    const known = [...row.keys()].filter((key) => row[key] > 0).sort((a, b) => row[b] - row[a]);
    const named = known.slice(0, NAMED).map((key) => `step ${key} (${brief(row[key])})`);
    return `most from ${named.join(", ") || "none"}`;
  }
}
