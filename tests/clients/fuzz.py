#!/usr/bin/env python3
"""Sends a running server requests that it should refuse or survive, and reports what it does neither with.

    stepflow serve --metrics --slots -n 8 --timeout 5 &
    fuzz.py http://127.0.0.1:8080 10000 [--seed 1] [--pid $!]

Requests come from openapi.json (by schemathesis, where it is installed), from valid requests with something changed,
and as raw bytes. A finding is a status of 500 or above other than 501 and 503, the same within a stream, an answer that
is no JSON where it should be, more than 30 seconds without an answer, or a server that is gone. What a finding came
from is made smaller as long as it shows. The exit code is 1 if there was one.
"""

import argparse
import collections
import copy
import http.client
import json
import pathlib
import random
import socket
import sys
import threading
import time
import urllib.parse

TIMEOUT = 30
SHARES = {"schema": 0.3, "changed": 0.55, "raw": 0.15}
LIMIT = 4  # tokens of most answers
SHOWN = 1500  # bytes of a request

QUESTION = "Tom has 3 apples. Ann has 2 more apples than Tom. How many apples does Ann have?"
TOOL = {
    "name": "weather",
    "description": "Forecast",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
SAMPLING = {
    "temperature": 0.8, "dynatemp_range": 0.1, "dynatemp_exponent": 1.0, "top_k": 40, "top_p": 0.9, "min_p": 0.05,
    "typical_p": 0.9, "top_n_sigma": 1.0, "xtc_probability": 0.5, "xtc_threshold": 0.1, "min_keep": 1,
    "repeat_last_n": 64, "repeat_penalty": 1.1, "presence_penalty": 0.1, "frequency_penalty": 0.1,
    "dry_multiplier": 0.8, "dry_base": 1.75, "dry_allowed_length": 2, "dry_penalty_last_n": -1,
    "dry_sequence_breakers": ["\n"], "mirostat": 1, "mirostat_tau": 5.0, "mirostat_eta": 0.1, "seed": 1,
    "samplers": ["penalties", "dry", "top_n_sigma", "top_k", "typ_p", "top_p", "min_p", "xtc", "temperature"],
    "logit_bias": [[5, 1.5], ["a", False]], "ignore_eos": True, "n_probs": 3, "post_sampling_probs": True,
    "cache_prompt": False, "return_tokens": True, "return_progress": True, "timings_per_token": True, "id_slot": 0,
    "n": 2, "t_max_predict_ms": 500, "stop": ["x", "y"], "stream": True, "stream_options": {"include_usage": True},
    "stepflow": {"oeb": True, "smi": True, "oeb_layers": "0-1", "smi_layers": "25%", "tau_max": 0.1, "alpha": 0.1,
                 "smi_window": "step"},
}  # fmt: skip
CHAT = {
    "model": "m", "messages": [{"role": "system", "content": "Be short."}, {"role": "user", "content": QUESTION}],
    "max_tokens": LIMIT,
}  # fmt: skip
TURNS = [
    {"role": "user", "content": [{"type": "text", "text": QUESTION}]},
    {"role": "assistant", "content": "", "reasoning_content": "hm", "tool_calls": [
        {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": "{\"city\": \"Oslo\"}"}}]},
    {"role": "tool", "tool_call_id": "c1", "content": "sunny"},
]  # fmt: skip
CHAT_MORE = {
    "tools": [{"type": "function", "function": TOOL}], "tool_choice": "required", "parallel_tool_calls": True,
    "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}}, "json_schema": SCHEMA,
    "grammar": 'root ::= "yes" | "no"', "add_generation_prompt": True, "continue_final_message": True,
    "reasoning_format": "auto", "reasoning_effort": "low", "chat_template_kwargs": {"enable_thinking": False},
    "reasoning_budget_tokens": 2, "reasoning_budget_message": "done", "logprobs": True, "top_logprobs": 2,
    "max_completion_tokens": LIMIT, "n_cmpl": 2, "messages": TURNS,
}  # fmt: skip
COMPLETION_MORE = {
    "grammar": 'root ::= "yes" | "no"', "json_schema": SCHEMA, "logprobs": 3, "n_cmpl": 2,
    "response_fields": ["content", "timings/predicted_n"], "prompt": [1, 2, "three", 4],
}  # fmt: skip
TRACE = {
    "stepflow_trace": 1, "model": {}, "family": "think-tags",
    "markers": {"think_start": "<think>", "think_end": "</think>"},
    "tokens": [{"id": id, "piece": "a", "segment": "question" if id < 4 else "thinking"} for id in range(1, 10)],
    "steps": [{"segment": "question", "start": 0, "end": 3}, {"segment": "thinking", "start": 3, "end": 6},
              {"segment": "thinking", "start": 6, "end": 9}],
}  # fmt: skip

# Paths, a valid body of each, and fields that it can have besides.
VALID = [
    ("/v1/chat/completions", CHAT, {**SAMPLING, **CHAT_MORE}, 8),
    ("/completion", {"prompt": QUESTION, "n_predict": LIMIT}, {**SAMPLING, **COMPLETION_MORE}, 5),
    ("/v1/completions", {"prompt": [QUESTION, "a"], "max_tokens": LIMIT}, {**SAMPLING, **COMPLETION_MORE}, 4),
    ("/apply-template", CHAT, CHAT_MORE, 1),
    ("/v1/chat/completions/input_tokens", CHAT, CHAT_MORE, 1),
    ("/v1/responses", {"model": "m", "input": QUESTION, "max_output_tokens": LIMIT}, {
        **SAMPLING, "instructions": "Be short.", "tools": [{"type": "function", **TOOL}], "tool_choice": "required",
        "reasoning": {"effort": "low"}, "text": {"format": {"type": "json_schema", "name": "n", "schema": SCHEMA}},
        "input": [{"role": "user", "content": [{"type": "input_text", "text": "hi"}]},
                  {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": "{}"},
                  {"type": "function_call_output", "call_id": "c1", "output": "sunny"},
                  {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]}],
    }, 4),
    ("/v1/messages", {"model": "m", "messages": [{"role": "user", "content": QUESTION}], "max_tokens": LIMIT}, {
        **SAMPLING, "system": [{"type": "text", "text": "Be short."}], "stop_sequences": ["x"],
        "tools": [{"name": "weather", "description": "", "input_schema": SCHEMA}], "tool_choice": {"type": "any"},
        "thinking": {"type": "enabled", "budget_tokens": 2},
        "messages": [{"role": "user", "content": [{"type": "text", "text": QUESTION}]},
                     {"role": "assistant", "content": [
                         {"type": "thinking", "thinking": "hm", "signature": ""},
                         {"type": "tool_use", "id": "t1", "name": "weather", "input": {"n": 1}}]},
                     {"role": "user", "content": [
                         {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "s"}]}]}],
    }, 4),
    ("/v1/messages/count_tokens", {"messages": [{"role": "user", "content": QUESTION}]}, {"system": "a"}, 1),
    ("/tokenize", {"content": QUESTION}, {"add_special": True, "parse_special": True, "with_pieces": True}, 1),
    ("/detokenize", {"tokens": [1, 2, 3]}, {}, 1),
    ("/v1/saliency", {"trace": TRACE}, {"method": "probe", "layers": [0], "format": "csv"}, 1),
]  # fmt: skip

DEEP = 20000


class Raw:
    """A piece of JSON that no JSON value is written as."""

    def __init__(self, text):
        self.text = text


def deep(opened, inner, closed, n=DEEP):
    return Raw(opened * n + inner + closed * n)


GRAMMARS = [
    "", "root", "root ::=", "root ::= root", "root ::= a\na ::= b\nb ::= a", 'root ::= root "a"', "root ::= (",
    "root ::= [^", 'root ::= "\\x', 'root ::= "\\xZZ"', "root ::= [a-", "root ::= []", "root ::= [z-a]+",
    'root ::= "a"{1000000}', 'root ::= "a"{0,4294967296}', 'root ::= "a"{99999999999999999999}',
    'root ::= (("a"{100}){100}){100}', 'root ::= ""*', 'root ::= (""*)*', 'root ::= ("a"*)*', 'root ::= ("a"?){5000}',
    'root ::= nothing', "root ::= " + "(" * DEEP + '"a"' + ")" * DEEP, "root ::= " + '"a" | ' * DEEP + '"b"', "\0",
    "root ::= \0", "root ::= <[1]>", "root ::= <[99999999]>", "root ::= !<[5]>*", "root ::= <think>",
    "root ::= <|im_end|>", "root ::= .", "root ::= .*", "root ::= [\U0010ffff]", 'root ::= "\\U7FFFFFFF"',
    'root ::= "\\uD800"', "root ::= [\\U00000000-\\UFFFFFFFF]*",
    'root ::= a a a a\n' + "".join(f"a{i} ::= a{i + 1} a{i + 1}\n" for i in range(40)),
    'root ::= x0\n' + "".join(f"x{i} ::= x{i + 1}? x{i + 1}?\n" for i in range(30)) + 'x30 ::= "a"',
    "root ::= ((((((((((a?)?)?)?)?)?)?)?)?)?)?\na ::= \"\"", "root ::= a\n" * 3, "# only a comment",
    'root ::= "a"\nroot ::= "b"', "%llguidance {}\nstart: /a/", "../../../etc/passwd",
]  # fmt: skip
SCHEMAS = [
    True, False, {}, [], {"$ref": "#"}, {"$ref": "#/nothing"}, {"$ref": "file:///etc/passwd"},
    {"$ref": "../../../etc/passwd"}, {"$ref": "http://127.0.0.1:9/x.json"}, {"$ref": ""}, {"$ref": 5},
    {"$ref": "#/definitions/a", "definitions": {"a": {"$ref": "#/definitions/a"}}},
    {"type": "string", "pattern": "((("}, {"type": "string", "pattern": "^(a{1000}){1000}$"},
    {"type": "string", "pattern": "^" + "(" * DEEP + "$"}, {"type": "string", "pattern": "^[z-a]$"},
    {"type": "string", "pattern": "^(a|aa)+$"}, {"type": "string", "pattern": "^a{99999999999}$"},
    {"type": "string", "pattern": "^\\"}, {"type": "string", "pattern": "^[\\"},
    {"type": "string", "pattern": "^a{$"}, {"type": "string", "pattern": "^a{,}$"},
    {"type": "string", "pattern": "^+*?$"}, {"type": "string", "pattern": "^(?=a)\\1$"},
    {"type": "string", "pattern": "a"}, {"type": "string", "pattern": ""}, {"type": "string", "pattern": "^\0$"},
    {"type": "string", "minLength": 10**9}, {"type": "string", "minLength": 5, "maxLength": 1},
    {"type": "string", "minLength": -1}, {"type": "string", "maxLength": 10**18},
    {"type": "array", "minItems": 10**9, "items": {}}, {"type": "array", "maxItems": -1, "items": {}},
    {"type": "array", "items": {"type": "array", "minItems": 5000, "maxItems": 9000}},
    {"type": "array", "prefixItems": []}, {"type": "array", "items": []}, {"type": "array", "items": 5},
    {"type": "integer", "minimum": -(2**63), "maximum": 2**63 - 1}, {"type": "integer", "minimum": 5, "maximum": 1},
    {"type": "integer", "minimum": 1e308}, {"type": "integer", "exclusiveMinimum": 2**63 - 1},
    {"type": "integer", "exclusiveMaximum": -(2**63)}, {"type": "integer", "minimum": "a"},
    {"type": "integer", "minimum": -99999, "maximum": 99999}, {"enum": []}, {"enum": {}}, {"enum": [{"a": [None]}]},
    {"enum": list(range(5000))}, {"const": None}, {"const": {"a": "\0"}}, {"type": []},
    {"type": ["string", "nothing"]}, {"type": "nothing"}, {"type": 5}, {"type": {"a": 1}}, {"anyOf": []},
    {"anyOf": 5}, {"oneOf": [{}]}, {"allOf": []}, {"allOf": [{"$ref": "#"}]},
    {"allOf": [{"type": "object", "properties": {"a": {"$ref": "#/allOf/0"}}}]}, {"not": {}}, {"format": "date-time"},
    {"type": "string", "format": "nothing"}, {"type": "object", "properties": []},
    {"type": "object", "properties": {"a": 5}}, {"type": "object", "properties": {"": {}, "\0": {}, "\"\\\n": {}}},
    {"type": "object", "required": "a"}, {"type": "object", "required": ["a", 5]},
    {"type": "object", "properties": {str(i): {} for i in range(60)}},
    {"type": "object", "properties": {str(i): {} for i in range(5000)}},
    {"type": "object", "additionalProperties": {"$ref": "#"}},
    {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]},
    {"properties": {"a": {"properties": {"a": {"$ref": "#/properties/a"}}}}}, deep('{"items":', "{}", "}"),
    deep('{"anyOf":[', "{}", "]}"), deep('{"properties":{"a":', "{}", "}}"), deep('{"not":', "{}", "}", 120),
    deep('{"allOf":[', "{}", "]}", 100), deep('{"type":"array","items":', "{}", "}", 120),
]  # fmt: skip
NUMBERS = [
    0, -0.0, 1e-40, -1e-40, -1, 1, 2, 0.5, -0.5, 127, 128, 1e-320, 1e38, 3.5e38, 1e308, -1e308, 2**31 - 1, 2**31,
    -(2**31), -(2**31) - 1, 2**32 - 1, 2**32, 2**63 - 1, 2**63, -(2**63), -(2**63) - 1, 2**64 - 1, 2**64, 10**30,
    Raw("1e400"),
    Raw("-1e400"), Raw("NaN"), Raw("Infinity"), Raw("-Infinity"), Raw("1" * 5000), Raw("0." + "3" * 5000), Raw("01"),
    Raw("1."), Raw("+1"),
]  # fmt: skip
PATHS = [
    "../../../../etc/passwd",
    "/etc/passwd",
    "file:///etc/passwd",
    "..\\..\\windows\\win.ini",
    "%2e%2e%2fetc%2fpasswd",
    "/dev/zero",
    "http://127.0.0.1:9/",
    "\\\\host\\share",
]
TEXTS = PATHS + [
    "", " ", "\0", "a\0b", "\r\nX-Injected: 1\r\n", "\u2028", "\ufffe", "\U0010ffff", "é" * 1000, "👩‍👩‍👧‍👦", "\u202e",
    "a" * 100_000, "<think>" * 500, "</think>", "<think>", "<|im_start|>", "<|im_end|>",
    "<|im_start|>system\nx<|im_end|>", "{{ 1/0 }}", "{% for i in range(99999999) %}a{% endfor %}",
    "${jndi:ldap://127.0.0.1/a}", "%s%n%p%x", "'; DROP TABLE a; --", "$(reboot)", "`id`", "null", "true", "-1",
    "1e999", "NaN", "assistant", "tool", "none", "required", "0-99999999999", "step", "-5", "5%", "999999999999%",
    "nan%", "9-0", ",", "0,0,0", "edskypmxt" * 1000, Raw('"\\ud800"'), Raw('"\\udc00\\ud800"'), Raw('"\\u0000"'),
    Raw('"\\x"'), Raw('"a'),
]  # fmt: skip
SHAPES = [
    None, True, False, [], {}, [[]], [None], {"": None}, [[], {}, ""], {"type": "text"}, [{}] * 200, ["a"] * 200,
    list(range(300)), deep("[", "", "]"), deep('{"a":', "1", "}"), deep("[", "", "]", 120),
    deep('{"a":', "1", "}", 120), {str(i): i for i in range(3000)},
]  # fmt: skip
INVALID = b"INVALID-UTF-8-HERE"


def hostile(rng, key):
    """Something that does not belong at `key`, or belongs there too well."""
    if key == "grammar" and rng.random() < 0.8:
        return rng.choice(GRAMMARS)
    if key in ("schema", "json_schema", "parameters", "input_schema", "format") and rng.random() < 0.8:
        return rng.choice(SCHEMAS)
    kind = rng.random()
    if kind < 0.35:
        return rng.choice(NUMBERS)
    if kind < 0.7:
        return rng.choice(TEXTS)
    if kind < 0.85:
        return rng.choice(SHAPES)
    if kind < 0.9:
        return INVALID.decode()
    if kind < 0.93:
        return "a " * rng.choice([100, 2000, 100_000])
    return {rng.choice(["a", "role", "content", "type", "$ref"]): rng.choice(TEXTS + NUMBERS)}


def places(value, path=()):
    yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in inner:
        yield from places(one, path + (key,))


def put(value, path, new):
    if not path:
        return new
    at = value
    for key in path[:-1]:
        at = at[key]
    if new is places:  # nothing: the field goes
        del at[path[-1]]
    else:
        at[path[-1]] = new
    return value


def written(value):
    """The JSON of a value, raw pieces and invalid bytes as they are."""
    raws = []

    def plain(value):
        if isinstance(value, Raw):
            raws.append(value.text)
            return f"RAW-{len(raws) - 1}-PIECE"
        if isinstance(value, dict):
            return {key: plain(one) for key, one in value.items()}
        if isinstance(value, list):
            return [plain(one) for one in value]
        return value

    text = json.dumps(plain(value), ensure_ascii=False)
    for i, raw in enumerate(raws):
        text = text.replace(f'"RAW-{i}-PIECE"', raw)
    return text.encode("utf-8", "surrogatepass").replace(INVALID, b"\xff\xfe\xc0\x80")


class Request:
    """What is sent: a method, a path and a body, of which `value` is the JSON before it was written; or raw bytes."""

    def __init__(self, method, path, body=b"", value=None, raw=None, closes=True, kind=""):
        self.method, self.path, self.body, self.value, self.raw = method, path, body, value, raw
        self.closes, self.kind = closes, kind

    def shown(self):
        sent = self.raw if self.raw is not None else f"{self.method} {self.path} ".encode() + self.body
        more = f" ... ({len(sent)} bytes)" if len(sent) > SHOWN else ""
        return repr(sent[:SHOWN])[1:] + more


def changed(rng):
    """A valid request with something changed."""
    path, body, more, _ = rng.choices(VALID, weights=[weight for *_, weight in VALID])[0]
    body = copy.deepcopy(body)
    for key in rng.sample(sorted(more), min(len(more), rng.choice([0, 1, 1, 2, 4, 8]))):
        body[key] = copy.deepcopy(more[key])
    for _ in range(rng.choice([0, 1, 1, 1, 2, 3])):
        plan = rng.random()
        where = rng.choice(list(places(body)))
        if plan < 0.55 and where:
            body = put(body, where, copy.copy(hostile(rng, where[-1])))
        elif plan < 0.85 and more:
            key = rng.choice(sorted(more))
            body[key] = copy.copy(hostile(rng, key))
        elif plan < 0.92 and where:
            body = put(body, where, places)
        elif plan < 0.96:
            body[rng.choice(["a", "__proto__", "x" * 5000, "", "\0", "n_keep", "lora", "image_data", "slot_id"])] = (
                hostile(rng, "")
            )
        elif where:
            body = put(body, where, [copy.copy(hostile(rng, "")) for _ in range(rng.choice([1, 20]))])
        if not isinstance(body, dict):
            break
    if isinstance(body, dict):
        tame(body)
    return Request("POST", path, written(body), body, kind="changed")


def tame(body):
    """Keeps answers short: it is not the model that is looked at."""
    for key in ("max_tokens", "max_completion_tokens", "n_predict", "max_output_tokens"):
        if type(body.get(key)) in (int, float) and not 0 <= body[key] <= 64:
            body[key] = LIMIT
    for key in ("n", "n_cmpl"):
        if type(body.get(key)) is int and 8 < body[key] <= 128:
            body[key] = 2


def from_schema(path, n, seed):
    """Requests that fit openapi.json, and that do not."""
    try:
        import schemathesis
        from hypothesis import HealthCheck, Phase, given, seed as seeded, settings
        from hypothesis.errors import Unsatisfiable
    except ImportError:
        print("schemathesis is not installed: no requests from openapi.json", flush=True)
        return
    schema = schemathesis.openapi.from_path(path)
    operations = [result.ok() for result in schema.get_all_operations()]
    weight = {
        operation.label: 12 if operation.body and operation.method.upper() == "POST" else 1 for operation in operations
    }
    total = sum(weight.values())
    for operation in operations:
        for mode in (schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE):
            cases = []
            count = max(2, n * weight[operation.label] // total // 2)

            @seeded(seed)
            @settings(
                max_examples=count,
                database=None,
                deadline=None,
                phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            )
            @given(operation.as_strategy(generation_mode=mode))
            def collect(case):
                cases.append(case)

            try:
                collect()
            except Unsatisfiable:
                pass
            for case in cases:
                try:
                    arguments = case.as_transport_kwargs(base_url="http://h")
                    url = urllib.parse.urlsplit(arguments["url"])
                except Exception:
                    continue
                value = arguments.get("json")
                if isinstance(value, dict):
                    tame(value)
                body = arguments.get("data") or b""
                if "json" in arguments:
                    body = json.dumps(value).encode()
                if isinstance(body, str):
                    body = body.encode("utf-8", "surrogatepass")
                query = urllib.parse.urlencode(arguments.get("params") or {}, doseq=True, errors="replace")
                target = url.path + ("?" + query if query else "")
                yield Request(
                    case.method,
                    urllib.parse.quote(target, safe="/%?=&+"),
                    body if isinstance(body, bytes) else b"",
                    value,
                    kind="schema",
                )


def raw(rng):
    """Bytes that are HTTP, nearly so, or not at all."""
    body = json.dumps({"prompt": "a", "n_predict": 1}).encode()
    head = b"POST /completion HTTP/1.1\r\nHost: h\r\n"
    length = b"Content-Length: %d\r\n" % len(body)
    bad_length = rng.choice(
        [
            b"-1",
            b"99999999999999999999",
            b"abc",
            b"0x10",
            b"",
            b"5, 6",
            b"+5",
            b"1e3",
            b" 5 5",
            b"18446744073709551616",
        ]
    )
    junk = bytes(rng.randrange(256) for _ in range(rng.choice([1, 20, 500, 5000])))
    name = rng.choice(
        [
            b"X-A",
            b"Authorization",
            b"Origin",
            b"Host",
            b"Content-Type",
            b"x-api-key",
            b"Accept",
            b"Transfer-Encoding",
            b"Expect",
            b"Connection",
            b"Upgrade",
        ]
    )
    value = rng.choice(
        [
            b"a\r\nX-Injected: 1",
            b"a\nX-Injected: 1",
            b"a\rb",
            b"\0",
            b"\xff\xfe",
            b"a" * 5000,
            b"../../etc/passwd",
            b"http://evil.example",
            b"null",
            b"100-continue",
            b"chunked, chunked",
            b"gzip",
            b"websocket",
            b"",
        ]
    )
    target = rng.choice([
        b"/../../../../etc/passwd", b"/..%2f..%2f..%2fetc/passwd", b"//etc/passwd", b"/%00", b"/%ff%fe",
        b"/v1/saliency/../../etc/passwd", b"/v1/saliency/%2e%2e%2f", b"/v1/saliency/" + b"a" * 20000,
        b"/slots?fail_on_no_slot=" + b"1" * 9000, b"/slots?a=%zz", b"*", b"http://evil.example/", b"", b"/ /",
        b"/slots/-1", b"/slots/99999999999999999999", b"/?" + b"a=b&" * 5000, b"/index.html/../x",
        b"/" + b"a" * 70000,
    ])  # fmt: skip
    method = rng.choice(
        [
            b"GET",
            b"POST",
            b"PUT",
            b"DELETE",
            b"HEAD",
            b"OPTIONS",
            b"PATCH",
            b"TRACE",
            b"CONNECT",
            b"PRI",
            b"get",
            b"A" * 5000,
            b"\0",
            b"G ET",
        ]
    )
    chunk = rng.choice(
        [
            b"5\r\nabcde\r\n0\r\n\r\n",
            b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body),
            b"ffffffffffffffff\r\na",
            b"-1\r\na\r\n",
            b"zz\r\n",
            b"5;" + b"x" * 9000 + b"\r\nabcde\r\n0\r\n\r\n",
            b"1\r\nab\r\n0\r\n\r\n",
            b"0\r\nX-A: b\r\n\r\n",
        ]
    )
    many = b"".join(b"X-%d: a\r\n" % i for i in range(rng.choice([90, 200, 5000])))
    cut = rng.randrange(1, len(head) + len(length) + 2 + len(body))
    no_json = rng.choice([b"\xff" * len(body), b"\0" * len(body), b"{" * len(body), b"\xef\xbb\xbf" + body[3:]])
    large = b"Content-Length: 17000000\r\n\r\n" + b" " * 17_000_000
    forms = [
        (head + b"Content-Length: " + bad_length + b"\r\n\r\n" + body, True),
        (head + length + b"Content-Length: 1\r\n\r\n" + body, True),
        (head + b"Content-Length: %d\r\n\r\n" % (len(body) + 50) + body, rng.random() < 0.9),
        (head + b"Content-Length: %d\r\n\r\n" % (1 << 40) + body, True),
        (head + b"Content-Length: 1\r\n\r\n" + body, True),
        (head + b"Transfer-Encoding: chunked\r\n\r\n" + chunk, True),
        (head + length + b"Transfer-Encoding: chunked\r\n\r\n" + chunk, True),
        (head + length + name + b": " + value + b"\r\n\r\n" + body, True),
        (head + length + name + b" : " + value + b"\r\n " + value + b"\r\n\r\n" + body, True),
        (head + length + b"X-A: " + b"a" * rng.choice([60_000, 70_000, 1_000_000]) + b"\r\n\r\n" + body, True),
        (head + many + length + b"\r\n" + body, True),
        (method + b" " + target + b" HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n", True),
        (b"GET " + target + b" HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n", True),
        (method + b" /completion HTTP/1.1\r\nHost: h\r\n" + length + b"\r\n" + body, True),
        (b"GET /health HTTP/" + rng.choice([b"0.9", b"1.0", b"2.0", b"3", b"9.9", b"1.1.1", b""]) + b"\r\n\r\n", True),
        (b"GET /health\r\n", True), (junk, True), (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + junk, True),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + junk, True),
        ((head + length + b"\r\n" + body)[:cut], rng.random() < 0.9),
        ((b"GET /health HTTP/1.1\r\nHost: h\r\n\r\n") * rng.choice([2, 50]), True),
        (head + length + b"\r\n" + body + b"GET /health HTTP/1.1\r\nHost: h\r\n\r\n" + junk, True),
        (head + length + b"\r\n" + no_json, True),
        (head + (large if rng.random() < 0.05 else b"\r\n"), True),
    ]  # fmt: skip
    sent, closes = rng.choice(forms)
    return Request("", "", raw=sent, closes=closes, kind="raw")


class Finding(Exception):
    pass


class Target:
    def __init__(self, url, key, pid):
        self.host, self.port = urllib.parse.urlsplit(url).hostname, urllib.parse.urlsplit(url).port
        self.key, self.pid = key, pid

    def lives(self):
        for _ in range(3):
            connection = http.client.HTTPConnection(self.host, self.port, timeout=TIMEOUT)
            try:
                connection.request("GET", "/health")
                if connection.getresponse().status == 200:
                    return True
            except OSError:
                time.sleep(0.5)
            finally:
                connection.close()
        return False

    def send(self, request):
        """The status; raises a `Finding` where there is something to find."""
        started = time.monotonic()
        try:
            status = self.send_raw(request) if request.raw is not None else self.send_http(request)
        except TimeoutError:
            raise Finding(f"no answer within {TIMEOUT} s") from None
        except http.client.HTTPException as error:
            raise Finding(f"an answer that is no HTTP: {error!r}") from None
        except OSError as error:
            # A refusal may come before all was sent.
            if len(request.body) < 1 << 20 and request.raw is None and isinstance(error, ConnectionRefusedError):
                raise Finding("connection refused") from None
            return "reset" if not isinstance(error, ConnectionRefusedError) else "refused"
        if time.monotonic() - started > TIMEOUT:
            raise Finding(f"took {time.monotonic() - started:.0f} s")
        if isinstance(status, int) and status >= 500 and status not in (501, 503):
            raise Finding(f"status {status}")
        return status

    def send_http(self, request):
        connection = http.client.HTTPConnection(self.host, self.port, timeout=TIMEOUT)
        headers = {"Content-Type": "application/json"}
        if self.key:
            headers["Authorization"] = "Bearer " + self.key
        try:
            connection.request(request.method, request.path, request.body, headers)
            answer = connection.getresponse()
            text = answer.read()
        finally:
            connection.close()
        kind = answer.headers.get("Content-Type", "")
        if kind.startswith("application/json") and request.method != "HEAD":
            try:
                value = json.loads(text)
            except ValueError:
                raise Finding(f"status {answer.status} with JSON that cannot be read: {text[:300]!r}") from None
            if answer.status >= 400 and not (isinstance(value, dict) and value.get("error", {}).get("message")):
                raise Finding(f"status {answer.status} without an error object: {text[:300]!r}")
            if answer.status >= 500 and answer.status not in (501, 503):
                raise Finding(f"status {answer.status}: {value['error']['message'][:300]}")
        elif kind.startswith("text/event-stream"):
            for line in text.decode("utf-8").splitlines():
                data = line.removeprefix("data: ") if line.startswith("data: ") else ""
                if data and data != "[DONE]":
                    error = json.loads(data).get("error")
                    if error and error.get("code", 0) >= 500 and error["code"] not in (501, 503):
                        raise Finding(f"in a stream, {error}")
        elif answer.status >= 400 and answer.status not in (404, 405) and request.method != "HEAD" and kind:
            # What the framework answers on its own has plain text.
            return f"{answer.status} as {kind.split(';')[0]}"
        return answer.status

    def send_raw(self, request):
        with socket.create_connection((self.host, self.port), timeout=TIMEOUT) as link:
            try:
                link.sendall(request.raw)
                if request.closes:
                    link.shutdown(socket.SHUT_WR)
            except (BrokenPipeError, ConnectionResetError, OSError) as error:
                if isinstance(error, TimeoutError):
                    raise
            got, end = b"", time.monotonic() + TIMEOUT
            while len(got) < 1 << 20:
                if time.monotonic() > end:
                    raise TimeoutError
                try:
                    piece = link.recv(65536)
                except ConnectionResetError:
                    break
                if not piece:
                    break
                got += piece
        if b"X-Injected" in got.split(b"\r\n\r\n")[0]:
            raise Finding("a header was let through")
        if b"root:" in got:
            raise Finding("a file of the machine's was read")
        first = got.split(b"\r\n")[0].split()
        return int(first[1]) if len(first) > 1 and first[0].startswith(b"HTTP/") and first[1].isdigit() else "closed"

    def rss(self):
        if self.pid:
            for line in pathlib.Path(f"/proc/{self.pid}/status").read_text().splitlines():
                if line.startswith("VmRSS"):
                    return f"{int(line.split()[1]) // 1024} MiB"
        return "?"


def smaller(target, request, what, patience=60):
    """The request with all fields taken away without which the finding is still found."""
    if not isinstance(request.value, dict) or "refused" in what or "within" in what:
        return request
    end, best = time.monotonic() + patience, request
    again = True
    while again and time.monotonic() < end:
        again = False
        for where in sorted(places(best.value), key=len):
            if not where or time.monotonic() > end:
                continue
            try:
                value = put(copy.deepcopy(best.value), where, places)
            except (KeyError, IndexError, TypeError):
                continue
            candidate = Request(best.method, best.path, written(value), value, kind=best.kind)
            try:
                target.send(candidate)
            except Finding as finding:
                if str(finding)[:20] == what[:20]:
                    best, again = candidate, True
                    break
    return best


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("url")
    parser.add_argument("n", type=int, nargs="?", default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--key")
    parser.add_argument("--pid", type=int, help="the server's, to tell what memory it takes")
    parser.add_argument("--save", type=pathlib.Path, metavar="FOLDER", help="where to put requests of findings, whole")
    parser.add_argument("--clients", type=int, default=4, help="requests at a time")
    parser.add_argument("--openapi", default=pathlib.Path(__file__).with_name("openapi.json"))
    arguments = parser.parse_args()
    target = Target(arguments.url, arguments.key, arguments.pid)
    rng = random.Random(arguments.seed)
    counts, per_kind = collections.Counter(), collections.Counter()
    findings, lock, dead = {}, threading.Lock(), threading.Event()
    in_flight, recent = {}, collections.deque(maxlen=8)

    requests = list(from_schema(arguments.openapi, int(arguments.n * SHARES["schema"]), arguments.seed))
    requests = requests[: int(arguments.n * SHARES["schema"])]
    rest = arguments.n - len(requests)
    n_raw = int(rest * SHARES["raw"] / (SHARES["raw"] + SHARES["changed"]))
    order = requests + ["raw"] * n_raw + ["changed"] * (rest - n_raw)
    rng.shuffle(order)
    place = iter(range(len(order)))

    def work(me):
        while not dead.is_set():
            with lock:
                at = next(place, None)
                if at is None:
                    return
                request = order[at]
                if request == "raw":
                    request = raw(rng)
                elif request == "changed":
                    request = changed(rng)
                in_flight[me] = request
                per_kind[request.kind] += 1
                if at % 1000 == 0:
                    print(f"{at} sent; memory {target.rss()}", flush=True)
            try:
                status = target.send(request)
                with lock:
                    counts[str(status)] += 1
                    recent.append(request)
                if status in ("reset", "refused", "closed") and not target.lives():
                    raise Finding("the server is gone")
            except Finding as finding:
                what = str(finding)
                with lock:
                    counts["findings"] += 1
                    known = findings.get(what)
                    findings[what] = (known or 0) + 1
                if not target.lives():
                    with lock:
                        if not dead.is_set():
                            dead.set()
                            print("FINDING: the server is gone; in flight, then before:", flush=True)
                            for one in [*in_flight.values(), *recent]:
                                print("   ", one.shown(), flush=True)
                    return
                if not known:
                    request = smaller(target, request, what)
                    shown = request.shown()
                    if arguments.save:
                        arguments.save.mkdir(parents=True, exist_ok=True)
                        name = f"{arguments.seed}-{len(findings)}.txt"
                        head = f"{request.method} {request.path}\n".encode()
                        (arguments.save / name).write_bytes(request.raw or head + request.body)
                    with lock:
                        print(f"FINDING: {what}\n    {shown}", flush=True)
            except Exception as error:
                with lock:
                    print(f"FINDING: {error!r} of\n    {request.shown()}", flush=True)
                    findings[repr(error)] = 1
            finally:
                in_flight.pop(me, None)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(arguments.clients)]
    started = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(f"{sum(per_kind.values())} requests in {time.monotonic() - started:.0f} s: {dict(per_kind)}")
    print("statuses:", dict(sorted(counts.items())), "memory:", target.rss())
    for what, times in findings.items():
        print(f"{times} times: {what}")
    print("no findings" if not findings and not dead.is_set() else "FINDINGS")
    sys.exit(1 if findings or dead.is_set() else 0)


if __name__ == "__main__":
    main()
