// The server's API, as the page uses it.

export const at = (id) => document.getElementById(id);

export function add(parent, tag, name, text = "") {
  const element = document.createElement(tag);
  if (name) element.className = name;
  element.textContent = text;
  return parent.appendChild(element);
}

export async function call(path, body, signal) {
  const headers = { "Content-Type": "application/json" };
  if (at("key").value) headers.Authorization = "Bearer " + at("key").value;
  const method = body ? "POST" : "GET";
  const response = await fetch(path, { method, headers, signal, body: body && JSON.stringify(body) });
  if (response.ok) return response;
  const error = (await response.json().catch(() => ({}))).error;
  if (response.status === 401) at("key").hidden = false;
  throw new Error(error?.message ?? `the server answered ${response.status}`);
}

/** The objects of a stream of server-sent events. */
export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const lines = (text + value).split("\n");
    text = lines.pop();
    for (const line of lines) {
      if (line.startsWith("data: {")) yield JSON.parse(line.slice(6));
    }
  }
}

/** The HTML of Markdown texts. The server lets no tag or attribute of a text's own through. */
export async function markdown(texts) {
  return (await (await call("/page/markdown", { texts })).json()).html;
}

/** One line below the chat: what could not be done. */
export function notice(text) {
  at("notice").textContent = text;
  at("notice").hidden = !text;
}
