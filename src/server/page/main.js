// The page: chats, their list, and the conversation that is open.

import { add, at, call, events, notice } from "./api.js";
import * as settings from "./settings.js";
import * as store from "./store.js";
import { AnswerView, showQuestion } from "./view.js";

let chat = store.chats()[0] ?? store.newChat();
let running = null;

/** Asks for an answer to the chat as it is. `former` is the one that it replaces, if it is another try. */
async function answer(former) {
  const message = { role: "assistant", content: "", reasoning_content: "", steps: [] };
  const mine = { chat, message, abort: new AbortController() };
  running = mine;
  const view = new AnswerView(at("chat"));
  at("send").textContent = "Stop";
  showActions();
  let failure = null;
  try {
    const messages = [...settings.before(), ...mine.chat.messages.map(told)];
    const request = { ...settings.asked(), messages, stream: true, return_steps: true };
    const stream = events(await call("/v1/chat/completions", request, mine.abort.signal));
    for await (const chunk of stream) {
      if (chunk.error) throw new Error(chunk.error.message);
      take(chunk, message);
      view.grow(message);
      follow();
    }
  } catch (error) {
    if (error.name !== "AbortError") failure = error;
  }
  if (running === mine) {
    running = null;
    at("send").textContent = "Send";
  }
  end(mine.chat, message, former, view, failure);
}

/** Keeps an answer, or what was there before it if nothing came. */
function end(asked, message, former, view, failure) {
  delete message.step;
  const came = hasCome(message);
  if (came || former) {
    asked.messages.push(came ? message : former);
    store.save(asked);
  }
  if (asked !== chat) return showList();
  if (came) {
    view.finish(message, actions());
  } else {
    takeBack();
    show();
  }
  if (failure) add(at("chat"), "div", "error", failure.message);
  showActions();
  showList();
  follow();
}

const hasCome = (message) => Boolean(message.content || message.reasoning_content);

/** Unanswered, the last question is the user's again. */
function takeBack() {
  if (chat.messages.at(-1)?.role !== "user") return;
  at("prompt").value = [chat.messages.pop().content, at("prompt").value].filter(Boolean).join("\n\n");
  if (chat.messages.length) store.save(chat);
  else store.remove(chat);
}

/** A message as requests have it. */
function told({ role, content, reasoning_content }) {
  return reasoning_content ? { role, content, reasoning_content } : { role, content };
}

function take(chunk, message) {
  message.id = chunk.id;
  const { timings } = chunk;
  if (timings) {
    message.timings = { tokens: timings.predicted_n, speed: timings.predicted_per_second, repairs: timings.stepflow?.total };
  }
  message.step = chunk.thinking_step ?? message.step;
  const delta = chunk.choices[0]?.delta ?? {};
  if (delta.reasoning_content) {
    message.reasoning_content += delta.reasoning_content;
    takeStep(delta.reasoning_content, message);
  }
  if (delta.content) message.content += delta.content;
}

/** A step begins with its first letter: one without any is none. */
function takeStep(text, message) {
  const { steps, step } = message;
  if (step > steps.length && text.trim()) steps[step - 1] = text;
  else if (steps.length) steps[steps.length - 1] += text;
}

const actions = () => [["regenerate", "Regenerate", regenerate]];

function regenerate() {
  if (running || chat.messages.at(-1)?.role !== "assistant") return;
  const former = chat.messages.pop();
  show();
  answer(former);
}

/** Only the last answer can be had anew, and only while none is on its way. */
function showActions() {
  const buttons = [...document.querySelectorAll(".regenerate")];
  buttons.forEach((button, index) => (button.hidden = Boolean(running) || index < buttons.length - 1));
}

function follow() {
  const box = at("chat");
  if (box.scrollHeight - box.scrollTop - box.clientHeight < 120) box.scrollTop = box.scrollHeight;
}

/** Shows the chat that is open. */
function show() {
  at("chat").replaceChildren();
  for (const message of chat.messages) {
    if (message.role === "user") showQuestion(at("chat"), message);
    else new AnswerView(at("chat")).finish({ steps: [], reasoning_content: "", ...message }, actions());
  }
  showActions();
  at("chat").scrollTop = at("chat").scrollHeight;
}

function open(other) {
  running?.abort.abort();
  running = null;
  at("send").textContent = "Send";
  chat = other;
  closeList();
  takeBack();
  show();
  showList();
}

function closeList() {
  at("show-chats").setAttribute("aria-expanded", false);
}

function showList() {
  at("list").replaceChildren();
  for (const other of store.chats()) {
    const item = add(at("list"), "li", "");
    const isOpen = other.id === chat.id;
    const button = add(item, "button", "open", other.title || "Chat");
    if (isOpen) button.setAttribute("aria-current", "true");
    button.onclick = () => (isOpen ? closeList() : open(other));
    if (!isOpen) continue;
    add(item, "button", "rename", "Rename").onclick = rename;
    add(item, "button", "delete", "Delete").onclick = forget;
  }
}

function rename() {
  const title = prompt("Name of this chat", chat.title)?.trim();
  if (!title) return;
  chat.title = title;
  store.save(chat);
  showList();
}

function forget() {
  if (!confirm(`Delete “${chat.title || "Chat"}”?`)) return;
  store.remove(chat);
  open(store.newChat());
}

at("form").onsubmit = (event) => {
  event.preventDefault();
  if (running) return running.abort.abort();
  const content = at("prompt").value.trim();
  if (!content) return;
  at("prompt").value = "";
  chat.title ||= content.split("\n")[0].slice(0, 60);
  const message = { role: "user", content };
  chat.messages.push(message);
  showQuestion(at("chat"), message);
  store.save(chat);
  showList();
  at("chat").scrollTop = at("chat").scrollHeight;
  answer();
};

at("prompt").onkeydown = (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    at("form").requestSubmit();
  }
};

at("clear").onclick = () => {
  open(store.newChat());
  at("prompt").focus();
};
at("show-chats").onclick = () => {
  const isShown = at("show-chats").getAttribute("aria-expanded") === "true";
  at("show-chats").setAttribute("aria-expanded", !isShown);
};
// Another tab's chats.
addEventListener("storage", showList);
// What has come of an answer outlives the page.
addEventListener("pagehide", () => {
  if (running && hasCome(running.message)) store.save({ ...running.chat, messages: [...running.chat.messages, running.message] });
});

async function about() {
  try {
    const props = await (await call("/props")).json();
    at("model").textContent = props.model_alias;
    settings.serverIs(props);
    notice("");
    show();
  } catch (error) {
    at("model").textContent = error.message;
  }
}
at("key").onchange = about;
open(chat);
about();
