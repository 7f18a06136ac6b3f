// The panel of settings, kept in the browser, and what requests say by it.

import { at } from "./api.js";
import * as store from "./store.js";

const NUMBERS = ["temperature", "top_p", "top_k", "min_p", "max_tokens", "seed"];

const form = at("settings").querySelector("form");
const fields = [...form.elements].filter((element) => element.name);

let server = { default: {}, settings: null };
let values = store.settings();

function show() {
  for (const field of fields) field.value = values[field.name] ?? "";
  const byDefault = Boolean(server.default.oeb || server.default.smi);
  at("stepflow").checked = Boolean(server.settings) && (values.stepflow ?? byDefault);
}

function keep() {
  for (const field of fields) values[field.name] = field.value;
  store.saveSettings(values);
}

/** Takes in what the server tells of itself. */
export function serverIs(props) {
  server = props.stepflow;
  at("stepflow").disabled = at("repairs").disabled = !server.settings;
  at("switch").title = server.settings ? "" : "The server was started without --stepflow";
  const known = { ...props.default_generation_settings?.params, ...server.settings };
  for (const field of fields) {
    if (field.type === "number") field.placeholder = placeholder(field.name, known[field.name]);
  }
  show();
}

function placeholder(name, value) {
  if (typeof value !== "number" || value < 0 || name === "seed") return "";
  return String(Number(value.toPrecision(6)));
}

/** The fields of a request that the settings ask for. */
export function asked() {
  const request = {};
  for (const name of NUMBERS) if (values[name]) request[name] = Number(values[name]);
  if (server.settings) request.stepflow = at("stepflow").checked && repairs();
  return request;
}

/** Both repairs are named where anything is set: one alone would turn the other off. */
function repairs() {
  const set = ["oeb", "smi", "tau_max", "alpha"].filter((name) => values[name]);
  if (!set.length) return true;
  const on = (name) => (values[name] ? values[name] === "on" : server.settings[name]);
  const request = { oeb: on("oeb"), smi: on("smi") };
  for (const name of ["tau_max", "alpha"]) if (values[name]) request[name] = Number(values[name]);
  return request;
}

/** The messages that come before a chat's own. */
export function before() {
  return values.system?.trim() ? [{ role: "system", content: values.system }] : [];
}

at("show-settings").onclick = () => {
  show();
  at("settings").showModal();
};
form.onchange = () => {
  if (form.reportValidity()) keep();
};
at("settings").onclose = () => {
  // What is no number is not kept, nor shown as if it were.
  if (form.checkValidity()) keep();
  show();
};
at("reset").onclick = () => {
  values = {};
  store.saveSettings(values);
  show();
};
at("stepflow").onchange = () => {
  values.stepflow = at("stepflow").checked;
  store.saveSettings(values);
};
