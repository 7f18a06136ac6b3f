// What the page keeps in the browser: chats, one entry each, and settings.

import { notice } from "./api.js";

const CHAT = "stepflow.chat.";
const SETTINGS = "stepflow.settings";

// Where the browser lets nothing be kept, things last as long as the page.
const memory = new Map();

function entries() {
  try {
    return Object.keys(localStorage).map((key) => [key, localStorage.getItem(key)]);
  } catch {
    return [];
  }
}

function read(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}

function write(key, value) {
  memory.set(key, value);
  try {
    localStorage.setItem(key, JSON.stringify(value));
    memory.delete(key);
    return true;
  } catch (error) {
    const full = error.name === "QuotaExceededError";
    const reason = full ? "This browser's storage is full: delete chats to make room." : "This browser lets pages keep nothing.";
    notice(`${reason} Until then what is new is lost when the page is closed.`);
    return false;
  }
}

/** All chats, the latest first. */
export function chats() {
  const kept = entries().filter(([key]) => key.startsWith(CHAT) && !memory.has(key)).map(([, text]) => read(text));
  const others = [...memory].filter(([key]) => key.startsWith(CHAT)).map(([, chat]) => chat);
  return [...kept, ...others].filter((chat) => Array.isArray(chat?.messages)).sort((a, b) => b.updated - a.updated);
}

export function newChat() {
  return { id: Date.now().toString(36) + Math.random().toString(36).slice(2), title: "", updated: 0, messages: [] };
}

export function save(chat) {
  chat.updated = Date.now();
  if (write(CHAT + chat.id, chat)) notice("");
}

export function remove(chat) {
  memory.delete(CHAT + chat.id);
  try {
    localStorage.removeItem(CHAT + chat.id);
  } catch {
    // It was never kept.
  }
  // What had no room may have some now.
  for (const [key, value] of [...memory]) if (write(key, value)) notice("");
}

export function settings() {
  const kept = entries().find(([key]) => key === SETTINGS);
  return memory.get(SETTINGS) ?? read(kept?.[1] ?? "null") ?? {};
}

export function saveSettings(values) {
  write(SETTINGS, values);
}
