// Messages on the page.

import { add, call, markdown } from "./api.js";
import { StepMap } from "./map.js";

/** Milliseconds between two renderings of an answer that grows. */
const PAUSE = 400;

export function showQuestion(parent, message) {
  return add(parent, "div", "user text", message.content);
}

/** A box for an answer: its thinking, in steps if they are known, what it says, and what can be done with it. */
export class AnswerView {
  constructor(parent) {
    this.box = add(parent, "section", "assistant");
    this.thinking = add(this.box, "details", "thinking");
    this.thinking.hidden = true;
    this.summary = add(this.thinking, "summary", "", "Thinking …");
    this.thought = add(this.thinking, "div", "text");
    this.steps = null;
    this.said = add(this.box, "div", "text");
    this.foot = add(this.box, "div", "foot");
    this.rendered = "";
    this.timer = null;
  }

  /** Shows a message as far as it has come. */
  grow(message) {
    const { reasoning_content: thought, steps, content } = message;
    this.thinking.hidden = !thought;
    if (steps.length) this.growSteps(steps);
    else this.thought.textContent = thought;
    if (content === this.rendered) return;
    this.tail ??= add(this.said, "span", "tail");
    this.tail.textContent = content.slice(this.rendered.length);
    this.timer ??= setTimeout(() => this.render(message), PAUSE);
  }

  growSteps(steps) {
    if (!this.steps) this.thought.replaceChildren();
    this.steps ??= add(this.thought, "ol", "steps");
    for (let index = Math.max(0, this.steps.children.length - 1); index < steps.length; index += 1) {
      const item = this.steps.children[index] ?? add(this.steps, "li", "step");
      item.value = index + 1;
      item.textContent = steps[index]?.trim();
    }
  }

  async render(message) {
    const { content } = message;
    try {
      const [html] = await markdown([content]);
      if (!this.over) this.take(html, content);
      this.timer = null;
      if (!this.over) this.grow(message);
    } catch {
      // It stays plain until it is over.
    }
  }

  take(html, content) {
    this.said.innerHTML = html;
    this.said.classList.add("markdown");
    this.rendered = content;
    this.tail = null;
  }

  /** Shows a message that is over. `actions` are pairs of a name and what to do. */
  async finish(message, actions) {
    this.grow(message);
    this.over = true;
    clearTimeout(this.timer);
    const steps = message.steps.map((step) => step ?? "");
    this.summary.textContent = steps.length ? `Thinking, ${steps.length} ${steps.length > 1 ? "steps" : "step"}` : "Thinking";
    this.addFoot(message, actions);
    // What nothing renders, be it too long, is read as it was written.
    await this.finishSaid(message.content).catch(() => {});
    await this.finishSteps(steps).catch(() => {});
    for (const code of this.box.querySelectorAll("pre")) addCopy(code, code.textContent, "copy-code");
  }

  async finishSaid(content) {
    this.take((await markdown([content]))[0], content);
  }

  async finishSteps(steps) {
    if (!steps.length) return;
    (await markdown(steps)).forEach((html, index) => {
      this.steps.children[index].innerHTML = html;
      this.steps.children[index].classList.add("markdown");
    });
  }

  addFoot(message, actions) {
    const { timings } = message;
    if (timings) {
      add(this.foot, "span", "speed", `${timings.tokens} tokens, ${timings.speed.toFixed(1)} tokens/s`);
      const { repairs } = timings;
      if (repairs) {
        add(this.foot, "span", "repairs", `StepFlow: ${repairs.rows_bridged} rows bridged, ${repairs.injections} injections`);
      }
    }
    addCopy(this.foot, message.content, "copy");
    for (const [name, text, act] of actions) add(this.foot, "button", name, text).onclick = act;
    if (message.id) this.addMap(message.id);
  }

  addMap(id) {
    const button = add(this.foot, "button", "show-map", "Step map");
    button.onclick = async () => {
      button.disabled = true;
      try {
        const found = await (await call("/v1/saliency", { id, method: "attention" })).json();
        new StepMap(this.box, asRun(found)).box.scrollIntoView({ block: "nearest" });
      } catch (error) {
        this.fail(error);
      }
    };
  }

  fail(error) {
    add(this.box, "div", "error", error.message);
  }
}

/** The answer of /v1/saliency as the step map takes it. Steps have the numbers of steps.csv: the question is 0. */
function asRun({ steps, layers }) {
  const rows = ({ values }) => Float32Array.from(values.flat(), (value) => value ?? NaN);
  const shown = layers.map(({ layer, maps }) => ({ layer, values: rows(maps[0]), below: null }));
  return { unit: layers[0].maps[0].unit, steps, layers: shown };
}

function addCopy(parent, text, name) {
  const button = add(parent, "button", name, "Copy");
  button.type = "button";
  button.onclick = async () => {
    button.textContent = (await copy(text)) ? "Copied" : "Not allowed";
    setTimeout(() => (button.textContent = "Copy"), 1500);
  };
}

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    // Without HTTPS browsers have the older way alone.
    const area = add(document.body, "textarea", "", text);
    area.select();
    const copied = document.execCommand("copy");
    area.remove();
    return copied;
  }
}
