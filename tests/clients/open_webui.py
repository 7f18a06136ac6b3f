#!/usr/bin/env python3
"""Asks a running server what Open WebUI's backend asks of one, in its order and with its fields, and checks the answers
as far as Open WebUI reads them.

    open_webui.py http://127.0.0.1:8080 [--key KEY]

The requests are those of a connection that is tried, a chat of two turns, the tasks that follow a first answer (title,
follow-ups, tags), tools called natively, a chat that is stopped, and pictures, which are refused. What Open WebUI keeps
for itself (`metadata`, `features`, `chat_id` and the like) it takes out before it sends a request; so does this.
"""

import argparse
import json
import sys
import time
import traceback

import requests

QUESTION = "Tom has 3 apples. Ann has 2 more apples than Tom. How many apples does Ann have?"
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TASK = """### Task:
{task}
### Output:
JSON format: {form}
### Chat History:
<chat_history>
USER: {question}
ASSISTANT: {answer}
</chat_history>"""


class WebUI:
    def __init__(self, url, key):
        self.url, self.base = url.rstrip("/"), url.rstrip("/") + "/v1"
        # With ENABLE_FORWARD_USER_INFO_HEADERS; names are percent-encoded.
        self.headers = {
            "Content-Type": "application/json",
            "Authorization": f"Bearer {key or ''}",
            "X-OpenWebUI-User-Name": "Ann%20%C3%85s",
            "X-OpenWebUI-User-Id": "7d3c0c5e-5a0d-4a34-9d9c-0f3f9a1d1f11",
            "X-OpenWebUI-User-Email": "ann@example.com",
            "X-OpenWebUI-User-Role": "admin",
            "X-OpenWebUI-Chat-Id": "0b6b6d9e-2b8e-4b0a-8a1b-5f4f5e4c3b2a",
            "Accept": "*/*",
        }
        self.model, self.answer = None, None

    def post(self, body, **more):
        # The body is sent as text, as aiohttp does with data=json.dumps(...).
        return requests.post(
            f"{self.base}/chat/completions", json.dumps(body), headers=self.headers, timeout=120, **more
        )

    def stream(self, body):
        """Content, reasoning, calls and usage of a stream, read line by line as Open WebUI's middleware reads them."""
        body = {**body, "stream": True, "stream_options": {"include_usage": True}}
        answer = self.post(body, stream=True)
        assert answer.status_code == 200, (answer.status_code, answer.text)
        assert "text/event-stream" in answer.headers["Content-Type"]
        content, reasoning, calls, usage, done = "", "", {}, {}, False
        for line in answer.iter_lines():
            line = line.decode("utf-8")
            if not line.startswith("data:"):
                assert not line.strip() or line.startswith(":"), line
                continue
            text = line[len("data:") :].strip()
            if text == "[DONE]":
                done = True
                continue
            data = json.loads(text)
            assert "error" not in data, data
            # It calls dict.update with both, which null would break.
            found = data.get("usage", {}) or {}
            found.update(data.get("timings", {}))
            usage.update(found)
            choices = data.get("choices", [])
            if not choices:
                continue
            delta = choices[0].get("delta", {})
            for call in delta.get("tool_calls") or []:
                one = calls.setdefault(call.get("index"), {"id": "", "function": {"name": "", "arguments": ""}})
                one["id"] = call.get("id") or one["id"]
                for field in ("name", "arguments"):
                    one["function"][field] += call.get("function", {}).get(field) or ""
            content += delta.get("content") or ""
            reasoning += delta.get("reasoning_content") or delta.get("reasoning") or delta.get("thinking") or ""
        assert done, "no [DONE]"
        return content, reasoning, calls, usage


def connection_is_tried(w):
    answer = requests.get(f"{w.base}/models", headers=w.headers, timeout=10)
    assert answer.status_code == 200, answer.text
    models = answer.json()["data"]
    assert isinstance(models, list) and models[0]["id"], models
    assert models[0].get("name", "") is not None, "a name that is null"
    w.model = models[0]["id"]


def connection_with_a_wrong_key(w):
    headers = {**w.headers, "Authorization": "Bearer wrong"}
    answer = requests.get(f"{w.base}/models", headers=headers, timeout=10)
    if answer.status_code != 200:  # 200: the server has no keys
        assert answer.status_code == 401 and answer.json()["error"]["message"], answer.text


def first_turn(w):
    content, reasoning, calls, usage = w.stream({"model": w.model, "messages": [{"role": "user", "content": QUESTION}]})
    assert content and not calls and "</think>" not in content + reasoning
    assert usage["prompt_tokens"] > 0 and usage["completion_tokens"] > 0 and usage["predicted_per_second"] > 0, usage
    w.answer = content


def second_turn_with_parameters(w):
    messages = [
        {"role": "system", "content": "The user's name is Ann."},
        {"role": "user", "content": QUESTION},
        {"role": "assistant", "content": w.answer},
        {"role": "user", "content": [{"type": "text", "text": QUESTION}]},
    ]
    body = {
        "model": w.model, "messages": messages, "temperature": 0.7, "top_p": 0.9, "max_tokens": 64, "seed": 3,
        "frequency_penalty": 0.1, "presence_penalty": 0.1, "stop": ["\nUSER:"], "logit_bias": {"5": -100},
        "reasoning_effort": "low", "top_k": 40, "min_p": 0.05, "repeat_penalty": 1.1,
    }  # fmt: skip
    content, reasoning, _, usage = w.stream(body)
    assert content + reasoning and usage["completion_tokens"] <= 64


def thinking_sent_back(w):
    messages = [
        {"role": "user", "content": QUESTION},
        {"role": "assistant", "content": f"<think>\nhm\n</think>\n\n{w.answer}"},
        {"role": "user", "content": QUESTION},
    ]
    content, reasoning, _, _ = w.stream({"model": w.model, "messages": messages, "max_tokens": 64})
    assert content + reasoning


def task(w, what, form, **more):
    prompt = TASK.format(task=what, form=form, question=QUESTION, answer=w.answer)
    body = {"model": w.model, "messages": [{"role": "user", "content": prompt}], "stream": False, **more}
    answer = w.post(body)
    assert answer.status_code == 200, answer.text
    assert answer.headers["Content-Type"].startswith("application/json")
    message = answer.json()["choices"][0]["message"]
    # It takes the content, or what was thought where there is none, and looks for braces in it.
    said = message.get("content") or message.get("reasoning_content", "")
    assert isinstance(said, str) and said, message
    said[said.find("{") : said.rfind("}") + 1]


def title(w):
    task(w, "A title of 3 to 5 words for this chat.", '{ "title": "..." }', max_completion_tokens=1000)


def follow_ups(w):
    task(w, "Questions that the user may ask next.", '{ "follow_ups": ["..."] }')


def tags(w):
    task(w, "1 to 3 tags for this chat.", '{ "tags": ["..."] }')


def tools(w):
    function = {"name": "weather", "description": "Forecast", "parameters": PARAMETERS}
    body = {
        "model": w.model, "messages": [{"role": "user", "content": QUESTION}], "max_tokens": 64,
        "tools": [{"type": "function", "function": function}],
    }  # fmt: skip
    content, reasoning, calls, _ = w.stream(body)
    assert content + reasoning or calls
    call = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
    body["messages"] += [
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "sunny"},
    ]
    content, reasoning, calls, _ = w.stream(body)
    assert content + reasoning or calls


def stopped(w):
    body = {"model": w.model, "messages": [{"role": "user", "content": QUESTION}], "stream": True, "ignore_eos": True}
    answer = w.post({**body, "stream_options": {"include_usage": True}}, stream=True)
    next(answer.iter_lines())
    answer.close()
    end = time.monotonic() + 5
    while True:
        slots = requests.get(f"{w.url}/slots", headers=w.headers, timeout=10)
        if slots.status_code == 501 or not any(slot["is_processing"] for slot in slots.json()):
            return
        assert time.monotonic() < end, "the slot is still at work"
        time.sleep(0.05)


def pictures(w):
    parts = [
        {"type": "text", "text": "What is this?"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}},
    ]
    body = {"model": w.model, "messages": [{"role": "user", "content": parts}], "stream": True}
    answer = w.post(body)
    assert answer.status_code == 400 and answer.json()["error"]["message"], answer.text


def too_long(w):
    body = {"model": w.model, "messages": [{"role": "user", "content": QUESTION * 5000}], "stream": True}
    answer = w.post(body)
    assert answer.status_code == 400 and "context" in answer.json()["error"]["message"], answer.text


CHECKS = [
    connection_is_tried, connection_with_a_wrong_key, first_turn, title, follow_ups, tags, second_turn_with_parameters,
    thinking_sent_back, tools, stopped, pictures, too_long,
]  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("url", help="where the server is, such as http://127.0.0.1:8080")
    parser.add_argument("--key", help="one of the server's API keys")
    arguments = parser.parse_args()
    w, failed = WebUI(arguments.url, arguments.key), 0
    for check in CHECKS:
        try:
            check(w)
            print("ok     ", check.__name__, flush=True)
        except Exception:
            failed += 1
            print("FAILED ", check.__name__, flush=True)
            traceback.print_exc(file=sys.stdout, limit=-2)
    print(f"{failed} failed")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
