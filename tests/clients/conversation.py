#!/usr/bin/env python3
"""Talks to a running server as its users' programs do, through the official clients of OpenAI and Anthropic, and checks
what comes back.

    conversation.py http://127.0.0.1:8080 [--key KEY]            # the model thinks, as the embedded one does
    conversation.py http://127.0.0.1:8080 [--key KEY] --tools    # its template has tools; `--template` writes one

Prints a line for each check; the exit code is 1 if one failed.
"""

import argparse
import json
import sys
import traceback

import anthropic
import openai
import requests

QUESTION = "Tom has 3 apples. Ann has 2 more apples than Tom. How many apples does Ann have?"
MESSAGES = [{"role": "user", "content": QUESTION}]
PARAMETERS = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 12},
        "days": {"type": "integer", "minimum": 1, "maximum": 9},
    },
    "required": ["city", "days"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "weather", "description": "Forecast", "parameters": PARAMETERS}}
SCHEMA = {
    "type": "object",
    "properties": {"answer": {"type": "integer"}, "unit": {"enum": ["apples", "coins"]}},
    "required": ["answer", "unit"],
    "additionalProperties": False,
}
# Calls are the whole of an answer, so that the grammar makes a small model call.
TEMPLATE = """{{- bos_token }}
{%- if tools %}
    {{- '<|header|>system<|/header|>Answer {"name": a function, "parameters": its arguments} to call one of:' }}
    {%- for tool in tools %}{{- '\\n' + tool | tojson }}{%- endfor %}
    {{- '<|eot|>' }}
{%- endif %}
{%- for message in messages %}
    {{- '<|header|>' + message.role + '<|/header|>' }}
    {%- if message.tool_calls %}
        {{- '{"name": "' + message.tool_calls[0].function.name + '", "parameters": ' }}
        {{- message.tool_calls[0].function.arguments | tojson + '}' }}
    {%- else %}
        {{- message.content }}
    {%- endif %}
    {{- '<|eot|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|header|>assistant<|/header|>' }}{%- endif %}
"""
THINKING = 512  # tokens, enough for the model to come to its answer

CHECKS = []


def check(function):
    CHECKS.append(function)
    return function


def raises(kind, call):
    try:
        call()
    except kind as error:
        return error
    raise AssertionError(f"expected {kind.__name__}, nothing was raised")


def of_schema(text):
    value = json.loads(text)
    assert set(value) == {"answer", "unit"}, value
    assert type(value["answer"]) is int and value["unit"] in ("apples", "coins"), value


def of_tool(value):
    assert set(value) == {"city", "days"}, value
    assert type(value["city"]) is str and type(value["days"]) is int and 1 <= value["days"] <= 9, value


class Clients:
    def __init__(self, url, key):
        self.url, self.key = url.rstrip("/"), key or "none"
        self.openai = openai.OpenAI(base_url=self.url + "/v1", api_key=self.key, max_retries=0, timeout=120)
        self.anthropic = anthropic.Anthropic(base_url=self.url, api_key=self.key, max_retries=0, timeout=120)
        self.model = self.openai.models.list().data[0].id

    def chat(self, messages=MESSAGES, **fields):
        fields.setdefault("temperature", 0)
        return self.openai.chat.completions.create(model=self.model, messages=messages, **fields)

    def message(self, messages=MESSAGES, **fields):
        fields.setdefault("max_tokens", THINKING)
        return self.anthropic.messages.create(
            model=self.model, messages=messages, extra_body={"temperature": 0}, **fields
        )


def gathered(stream):
    """The choices of a stream, put together: text, reasoning, calls, reasons; and its chunks."""
    choices, chunks = {}, list(stream)
    for chunk in chunks:
        for choice in chunk.choices:
            one = choices.setdefault(
                choice.index, {"content": "", "reasoning": "", "calls": {}, "reason": None, "first": None}
            )
            if one["first"] is None:
                one["first"] = choice.delta
            assert one["reason"] is None, "a delta after finish_reason"
            one["content"] += choice.delta.content or ""
            one["reasoning"] += getattr(choice.delta, "reasoning_content", None) or ""
            for call in choice.delta.tool_calls or []:
                whole = one["calls"].setdefault(call.index, {"id": None, "name": None, "arguments": ""})
                whole["id"] = whole["id"] or call.id
                whole["name"] = whole["name"] or call.function.name
                whole["arguments"] += call.function.arguments or ""
            one["reason"] = choice.finish_reason or one["reason"]
    return choices, chunks


# Chat


@check
def models_are_listed(c):
    models = c.openai.models.list()
    assert models.object == "list" and models.data and models.data[0].object == "model"
    assert models.data[0].created > 0 and models.data[0].owned_by


@check
def chat_whole(c):
    answer = c.chat()
    assert answer.object == "chat.completion" and answer.id.startswith("chatcmpl-") and answer.created > 0
    message = answer.choices[0].message
    assert message.role == "assistant" and answer.choices[0].finish_reason == "stop"
    assert message.content and message.reasoning_content
    assert "think>" not in message.content and "think>" not in message.reasoning_content
    usage = answer.usage
    assert usage.prompt_tokens > 0 and usage.completion_tokens > 0
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens


@check
def chat_streamed_is_the_whole(c):
    whole = c.chat().choices[0].message
    choices, chunks = gathered(c.chat(stream=True))
    assert chunks[0].choices[0].delta.role == "assistant" and not chunks[0].choices[0].delta.content
    assert all(chunk.object == "chat.completion.chunk" and chunk.id == chunks[0].id for chunk in chunks)
    assert choices[0]["content"] == whole.content, (choices[0]["content"], whole.content)
    assert choices[0]["reasoning"] == whole.reasoning_content
    assert choices[0]["reason"] == "stop" and all(chunk.usage is None for chunk in chunks)


@check
def chat_streamed_by_helper(c):
    with c.openai.chat.completions.stream(model=c.model, messages=MESSAGES, temperature=0) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_completion()
    assert "content.delta" in kinds and final.choices[0].message.content == c.chat().choices[0].message.content


@check
def chat_usage_in_stream(c):
    _, chunks = gathered(c.chat(stream=True, stream_options={"include_usage": True}))
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens > 0
    assert all(chunk.usage is None for chunk in chunks[:-1])


@check
def chat_several_choices(c):
    answer = c.chat(n=2, temperature=1, seed=1)
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert all(choice.message.reasoning_content or choice.message.content for choice in answer.choices)
    choices, _ = gathered(c.chat(n=2, temperature=1, seed=1, stream=True))
    assert sorted(choices) == [0, 1]
    for choice in answer.choices:
        streamed = choices[choice.index]
        assert streamed["first"].role == "assistant" and streamed["reason"] == choice.finish_reason
        assert streamed["content"] == (choice.message.content or "")


@check
def chat_turns(c):
    first = c.chat().choices[0].message
    turns = MESSAGES + [{"role": "assistant", "content": first.content}, {"role": "user", "content": QUESTION}]
    answer = c.chat(messages=[{"role": "system", "content": "Be short."}] + turns)
    assert answer.choices[0].message.content and answer.usage.prompt_tokens > 2 * len(QUESTION) / 8


@check
def chat_content_in_parts(c):
    parts = [{"role": "user", "content": [{"type": "text", "text": QUESTION}]}]
    assert c.chat(messages=parts).choices[0].message.content == c.chat().choices[0].message.content


@check
def chat_logprobs(c):
    answer = c.chat(logprobs=True, top_logprobs=3, max_tokens=6)
    tokens = answer.choices[0].logprobs.content
    assert len(tokens) == answer.usage.completion_tokens == 6
    for token in tokens:
        assert (
            token.logprob <= 0
            and len(token.top_logprobs) == 3
            and bytes(token.bytes).decode(errors="replace") == token.token
        )
        assert token.top_logprobs[0].token == token.token, "at temperature 0 the likeliest token is taken"
        assert [t.logprob for t in token.top_logprobs] == sorted((t.logprob for t in token.top_logprobs), reverse=True)
    streamed = [
        token.token
        for chunk in c.chat(logprobs=True, top_logprobs=3, max_tokens=6, stream=True)
        for choice in chunk.choices
        if choice.logprobs
        for token in choice.logprobs.content
    ]
    assert streamed == [token.token for token in tokens]


@check
def chat_stop(c):
    whole = c.chat().choices[0].message.reasoning_content
    word = whole.split()[3]
    answer = c.chat(stop=[word])
    assert (
        answer.choices[0].finish_reason == "stop"
        and answer.choices[0].message.reasoning_content == whole[: whole.index(word)].rstrip()
    )
    choices, _ = gathered(c.chat(stop=word, stream=True))
    assert word not in choices[0]["reasoning"] and choices[0]["reason"] == "stop"


@check
def chat_length(c):
    for field in ("max_tokens", "max_completion_tokens"):
        answer = c.chat(**{field: 3})
        assert answer.choices[0].finish_reason == "length" and answer.usage.completion_tokens == 3
    choices, _ = gathered(c.chat(max_tokens=3, stream=True))
    assert choices[0]["reason"] == "length"


@check
def chat_seed(c):
    texts = [
        c.chat(temperature=1.5, seed=seed, max_tokens=40).choices[0].message.reasoning_content for seed in (7, 7, 8, 9)
    ]
    assert texts[0] == texts[1] and len(set(texts)) > 1


@check
def chat_logit_bias_rules_out(c):
    first = c.chat(logprobs=True, top_logprobs=1, max_tokens=1).choices[0].logprobs.content[0]
    biased = c.chat(logprobs=True, top_logprobs=1, max_tokens=1, logit_bias={str(first.id): -100})
    assert biased.choices[0].logprobs.content[0].token != first.token


# Tools and schemas


@check
def tool_call(c):
    answer = c.chat(tools=[TOOL], tool_choice="required", max_tokens=THINKING)
    choice = answer.choices[0]
    assert choice.finish_reason == "tool_calls", choice
    call = choice.message.tool_calls[0]
    assert call.type == "function" and call.id and call.function.name == "weather"
    of_tool(json.loads(call.function.arguments))


@check
def tool_call_of_one_function(c):
    choice = {"type": "function", "function": {"name": "weather"}}
    answer = c.chat(tools=[TOOL], tool_choice=choice, max_tokens=THINKING).choices[0]
    assert answer.message.tool_calls[0].function.name == "weather"


@check
def tool_call_streamed(c):
    whole = c.chat(tools=[TOOL], tool_choice="required", max_tokens=THINKING).choices[0].message.tool_calls[0]
    choices, _ = gathered(c.chat(tools=[TOOL], tool_choice="required", max_tokens=THINKING, stream=True))
    assert choices[0]["reason"] == "tool_calls" and list(choices[0]["calls"]) == [0]
    call = choices[0]["calls"][0]
    assert call["id"] and call["name"] == "weather"
    of_tool(json.loads(call["arguments"]))
    assert json.loads(call["arguments"]) == json.loads(whole.function.arguments)


@check
def tool_result_goes_back(c):
    call = c.chat(tools=[TOOL], tool_choice="required", max_tokens=THINKING).choices[0].message.tool_calls[0]
    turns = MESSAGES + [
        {"role": "assistant", "content": None, "tool_calls": [call.model_dump()]},
        {"role": "tool", "tool_call_id": call.id, "content": "sunny"},
    ]
    answer = c.chat(messages=turns, tools=[TOOL], tool_choice="none", max_tokens=16)
    assert not answer.choices[0].message.tool_calls and answer.usage.completion_tokens > 0


@check
def json_schema(c):
    form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA, "strict": True}}
    answer = c.chat(response_format=form, max_tokens=THINKING).choices[0]
    assert answer.finish_reason == "stop", answer
    of_schema(answer.message.content)
    choices, _ = gathered(c.chat(response_format=form, max_tokens=THINKING, stream=True))
    assert choices[0]["content"] == answer.message.content


@check
def json_object(c):
    answer = c.chat(response_format={"type": "json_object", "schema": SCHEMA}, max_tokens=THINKING)
    of_schema(answer.choices[0].message.content)


@check
def grammar(c):
    answer = c.chat(extra_body={"grammar": 'root ::= "yes" | "no"'}).choices[0].message
    assert (answer.content or answer.reasoning_content) in ("yes", "no"), answer


# Completions and responses


@check
def completions(c):
    fields = dict(model=c.model, prompt="Tom has 3 apples.", temperature=0, max_tokens=8)
    answer = c.openai.completions.create(**fields)
    assert answer.object == "text_completion" and answer.choices[0].text and answer.usage.completion_tokens <= 8
    streamed = list(c.openai.completions.create(**fields, stream=True))
    assert "".join(choice.text for chunk in streamed for choice in chunk.choices) == answer.choices[0].text
    assert [choice.finish_reason for chunk in streamed for choice in chunk.choices if choice.finish_reason] == [
        answer.choices[0].finish_reason
    ]
    several = c.openai.completions.create(**{**fields, "prompt": ["Tom has", "Ann has"]})
    assert [choice.index for choice in several.choices] == [0, 1]


@check
def responses_whole(c):
    answer = c.openai.responses.create(model=c.model, input=QUESTION, temperature=0)
    assert answer.object == "response" and answer.status == "completed" and answer.usage.output_tokens > 0
    assert [item.type for item in answer.output] == ["reasoning", "message"]
    assert answer.output_text == c.chat().choices[0].message.content


@check
def responses_streamed(c):
    whole = c.openai.responses.create(model=c.model, input=QUESTION, temperature=0)
    events = list(c.openai.responses.create(model=c.model, input=QUESTION, temperature=0, stream=True))
    kinds = [event.type for event in events]
    assert kinds[:2] == ["response.created", "response.in_progress"] and kinds[-1] == "response.completed"
    assert [event.sequence_number for event in events] == list(range(len(events)))
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert text == whole.output_text == events[-1].response.output_text
    thought = "".join(event.delta for event in events if event.type == "response.reasoning_text.delta")
    assert thought == whole.output[0].content[0].text
    for start, end in (("output_item.added", "output_item.done"), ("content_part.added", "content_part.done")):
        assert kinds.count("response." + start) == kinds.count("response." + end) > 0


@check
def responses_by_helper(c):
    with c.openai.responses.stream(model=c.model, input=QUESTION, temperature=0) as stream:
        for _ in stream:
            pass
        assert stream.get_final_response().output_text


@check
def responses_cut_off(c):
    answer = c.openai.responses.create(model=c.model, input=QUESTION, temperature=0, max_output_tokens=3)
    assert answer.status == "incomplete" and answer.incomplete_details.reason == "max_output_tokens"


@check
def responses_tools(c):
    tool = {"type": "function", **TOOL["function"]}
    answer = c.openai.responses.create(
        model=c.model, input=QUESTION, tools=[tool], tool_choice="required", temperature=0, max_output_tokens=THINKING
    )
    calls = [item for item in answer.output if item.type == "function_call"]
    assert calls[0].name == "weather"
    of_tool(json.loads(calls[0].arguments))
    turns = [
        {"role": "user", "content": QUESTION},
        {"type": "function_call", "call_id": calls[0].call_id, "name": "weather", "arguments": calls[0].arguments},
        {"type": "function_call_output", "call_id": calls[0].call_id, "output": "sunny"},
    ]
    again = c.openai.responses.create(model=c.model, input=turns, tools=[tool], tool_choice="none", max_output_tokens=8)
    assert again.usage.output_tokens > 0


@check
def responses_schema(c):
    form = {"format": {"type": "json_schema", "name": "answer", "schema": SCHEMA, "strict": True}}
    answer = c.openai.responses.create(
        model=c.model, input=QUESTION, text=form, temperature=0, max_output_tokens=THINKING
    )
    of_schema(answer.output_text)


# Errors


@check
def errors_of_requests(c):
    for fields in ({"messages": None}, {"temperature": "hot"}, {"n": 0}, {"stop": 5}, {"max_tokens": "many"}):
        body = {"model": c.model, "messages": MESSAGES, "max_tokens": 1, **fields}
        body = {key: value for key, value in body.items() if value is not None}
        error = raises(openai.BadRequestError, lambda: c.openai.post("/chat/completions", cast_to=object, body=body))
        assert error.body["type"] == "invalid_request_error" and error.body["message"], error.body
    error = raises(openai.BadRequestError, lambda: c.chat(extra_body={"grammar": "root ::= ("}))
    assert "grammar" in error.body["message"].lower(), error.body


@check
def errors_of_context(c):
    for stream in (False, True):
        long = [{"role": "user", "content": "apples and coins " * 20000}]
        error = raises(openai.BadRequestError, lambda: c.chat(messages=long, stream=stream))
        assert error.body["type"] == "exceed_context_size_error", error.body
        assert error.body["n_prompt_tokens"] > error.body["n_ctx"] > 0, error.body


@check
def errors_of_paths(c):
    raises(openai.NotFoundError, lambda: c.openai.get("/nothing", cast_to=object))
    error = raises(openai.APIStatusError, lambda: c.openai.embeddings.create(model=c.model, input="a"))
    assert error.status_code == 501


@check
def errors_of_keys(c):
    if c.key == "none":
        return
    for client in (c.openai.with_options(api_key="wrong"), c.openai.with_options(api_key=c.key + "x")):
        raises(openai.AuthenticationError, lambda: client.models.list())
    raises(
        anthropic.AuthenticationError,
        lambda: c.anthropic.with_options(api_key="wrong").messages.create(
            model=c.model, messages=MESSAGES, max_tokens=1
        ),
    )


# StepFlow


@check
def stepflow(c):
    plain = c.chat()
    assert "stepflow" not in plain.timings
    for asked in (True, {"oeb": True, "smi": True, "tau_max": 0.1, "alpha": 0.05}):
        answer = c.chat(extra_body={"stepflow": asked})
        assert answer.timings["stepflow"], answer.timings
        chunks = list(c.chat(extra_body={"stepflow": asked}, stream=True))
        assert chunks[-1].timings["stepflow"]
    for wrong in ({"alpha": "much"}, {"tau_max": 2}, {"nothing": 1}, 5):
        error = raises(openai.BadRequestError, lambda: c.chat(extra_body={"stepflow": wrong}))
        assert "stepflow" in error.body["message"], error.body


# Anthropic


@check
def message_whole(c):
    answer = c.message()
    assert answer.type == "message" and answer.role == "assistant" and answer.stop_reason == "end_turn"
    assert [block.type for block in answer.content] == ["thinking", "text"]
    assert answer.content[0].thinking and answer.content[1].text == c.chat().choices[0].message.content
    assert (
        answer.usage.input_tokens + (answer.usage.cache_read_input_tokens or 0) > 0 and answer.usage.output_tokens > 0
    )


@check
def message_streamed(c):
    whole = c.message()
    events = list(c.message(stream=True))
    kinds = [event.type for event in events]
    assert kinds[0] == "message_start" and kinds[-2:] == ["message_delta", "message_stop"]
    open_block, blocks = None, []
    for event in events[1:-2]:
        if event.type == "content_block_start":
            assert open_block is None and event.index == len(blocks)
            open_block = event.index
            blocks.append([event.content_block.type, ""])
        elif event.type == "content_block_delta":
            assert event.index == open_block
            delta = event.delta
            blocks[-1][1] += getattr(delta, "text", None) or getattr(delta, "thinking", None) or ""
        elif event.type == "content_block_stop":
            assert event.index == open_block
            open_block = None
    assert open_block is None
    assert blocks == [["thinking", whole.content[0].thinking], ["text", whole.content[1].text]]
    last = events[-2]
    assert last.delta.stop_reason == "end_turn" and last.usage.output_tokens == whole.usage.output_tokens


@check
def message_streamed_by_helper(c):
    with c.anthropic.messages.stream(
        model=c.model, messages=MESSAGES, max_tokens=THINKING, extra_body={"temperature": 0}
    ) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == final.content[-1].text == c.message().content[-1].text


@check
def message_thinking(c):
    short = c.message(thinking={"type": "enabled", "budget_tokens": 1024}, max_tokens=2048)
    assert short.content[0].type == "thinking"


@check
def message_limits(c):
    assert c.message(max_tokens=3).stop_reason == "max_tokens"
    word = c.message().content[0].thinking.split()[3]
    stopped = c.message(stop_sequences=[word])
    assert stopped.stop_reason == "stop_sequence" and stopped.stop_sequence == word


@check
def message_tools(c):
    tool = {"name": "weather", "description": "Forecast", "input_schema": PARAMETERS}
    for choice in ({"type": "any"}, {"type": "tool", "name": "weather"}):
        answer = c.message(tools=[tool], tool_choice=choice)
        assert answer.stop_reason == "tool_use", answer
        use = next(block for block in answer.content if block.type == "tool_use")
        assert use.name == "weather" and use.id
        of_tool(use.input)
    with c.anthropic.messages.stream(
        model=c.model,
        messages=MESSAGES,
        max_tokens=THINKING,
        tools=[tool],
        tool_choice={"type": "any"},
        extra_body={"temperature": 0},
    ) as stream:
        for _ in stream:
            pass
        streamed = stream.get_final_message()
    assert streamed.stop_reason == "tool_use" and streamed.content[-1].input == use.input
    result = {"type": "tool_result", "tool_use_id": use.id, "content": [{"type": "text", "text": "sunny"}]}
    turns = MESSAGES + [
        {"role": "assistant", "content": [block.model_dump() for block in answer.content]},
        {"role": "user", "content": [result, {"type": "text", "text": "So?"}]},
    ]
    again = c.message(messages=turns, tools=[tool], tool_choice={"type": "none"}, max_tokens=16)
    assert again.usage.output_tokens > 0 and all(block.type != "tool_use" for block in again.content)


@check
def message_tokens_are_counted(c):
    count = c.anthropic.messages.count_tokens(model=c.model, messages=MESSAGES, system="Be short.").input_tokens
    usage = c.message(system="Be short.", max_tokens=1).usage
    assert count == usage.input_tokens + (usage.cache_read_input_tokens or 0), (count, usage)


@check
def message_errors(c):
    path, body = "/v1/messages", {"model": c.model, "max_tokens": 1}
    error = raises(anthropic.BadRequestError, lambda: c.anthropic.post(path, cast_to=object, body=body))
    assert error.body["type"] == "error" and error.body["error"]["type"] == "invalid_request_error", error.body
    raises(anthropic.BadRequestError, lambda: c.message(extra_headers={}, max_tokens="many"))
    error = raises(
        anthropic.BadRequestError, lambda: c.message(messages=[{"role": "user", "content": "apples " * 50000}])
    )
    assert error.body["error"]["type"] == "exceed_context_size_error", error.body
    raises(anthropic.NotFoundError, lambda: c.anthropic.get("/v1/nothing", cast_to=object))
    for path, body in ((path, b"{"), (path, b"[]"), (path + "/count_tokens", b"{}")):
        answer = requests.post(c.url + path, data=body, headers={"x-api-key": c.key}, timeout=30)
        assert answer.status_code == 400 and answer.json()["type"] == "error", (path, body, answer.text)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("url", nargs="?", help="where the server is, such as http://127.0.0.1:8080")
    parser.add_argument("--key", help="one of the server's API keys")
    parser.add_argument("--only", help="checks whose names have this in them", default="")
    parser.add_argument("--tools", action="store_true", help="check calls of tools alone")
    parser.add_argument("--template", action="store_true", help="write a template with tools, for --chat-template-file")
    arguments = parser.parse_args()
    if arguments.template:
        print(TEMPLATE, end="")
        return
    if not arguments.url:
        parser.error("expected the server's URL")
    clients = Clients(arguments.url, arguments.key)
    failed = 0
    for function in CHECKS:
        name = function.__name__
        if arguments.only not in name or arguments.tools != ("tool" in name):
            continue
        try:
            function(clients)
            print("ok     ", name, flush=True)
        except Exception:
            failed += 1
            print("FAILED ", name, flush=True)
            traceback.print_exc(file=sys.stdout, limit=-2)
    print(f"{failed} failed")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
