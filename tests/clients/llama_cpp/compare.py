#!/usr/bin/env python3
"""Runs llama.cpp's own server tests, as they are, against llama-server and against stepflow, and writes a table.

    compare.py TESTS --model M.gguf --stock LLAMA_SERVER --ours STEPFLOW [--groups basic template ...] [--table FILE]

TESTS is `tools/server/tests` of llama.cpp's source. Where a test passes with llama-server and fails here, `reasons.json`
says why; exits with 1 if it does not. Tests that llama.cpp marks as slow need models of gigabytes and are left out.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import xml.etree.ElementTree

HERE = pathlib.Path(__file__).resolve().parent
# Those that need no second model and nothing that only llama-server serves.
GROUPS = [
    "basic", "template", "tokenize", "ignore_eos", "metrics", "security", "chat_completion", "completion", "stream",
    "ctx_shift", "compat_anthropic", "compat_oai_responses", "tool_call",
]  # fmt: skip


def run(tests, group, server, arguments):
    """The result of each test of a group: `passed`, `failed` or `skipped`."""
    environment = os.environ | {
        "LLAMA_SERVER_BIN_PATH": str(HERE / "server"),
        "SERVER_UNDER_TEST": str(server),
        "SERVER_TEST_MODEL": str(arguments.model),
        "PYTHONPATH": f"{HERE}:{tests}",
    }
    with tempfile.TemporaryDirectory() as folder:
        report = pathlib.Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-p", "local_models", "-q", "--tb=line", f"--junitxml={report}"]
        command += ["-m", "not slow", f"--timeout={arguments.timeout}", f"unit/test_{group}.py"]
        log = subprocess.run(command, cwd=tests, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        if arguments.logs:
            arguments.logs.mkdir(exist_ok=True, parents=True)
            (arguments.logs / f"{group}-{pathlib.Path(server).name}.log").write_bytes(log.stdout)
        return {case.get("name"): result(case) for case in xml.etree.ElementTree.parse(report).iter("testcase")}


def result(case):
    if case.find("skipped") is not None:
        return "skipped"
    return "passed" if case.find("failure") is None and case.find("error") is None else "failed"


def table(results, reasons):
    """The table in Markdown, and how many tests pass with llama-server alone without a reason."""
    lines = ["| group | tests | llama-server passes | stepflow passes |", "|---|---|---|---|"]
    differences, wrong = [], 0
    for group, (stock, ours) in results.items():
        passes = [sum(value == "passed" for value in side.values()) for side in (stock, ours)]
        lines.append(f"| {group} | {len(stock)} | {passes[0]} | {passes[1]} |")
        for name in stock:
            if stock[name] == ours[name]:
                continue
            reason = next((why for prefix, why in reasons.get(group, {}).items() if name.startswith(prefix)), None)
            needs_reason = stock[name] == "passed"
            wrong += needs_reason and reason is None
            shown = name.replace("|", "\\|")[:90]
            differences.append(f"| {group} | `{shown}` | {stock[name]} | {ours[name]} | {reason or ''} |")
    lines += ["", "Tests whose result differs:", "", "| group | test | llama-server | stepflow | reason |"]
    return "\n".join([*lines, "|---|---|---|---|---|", *differences, ""]), wrong


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tests", type=pathlib.Path)
    for name in ("--model", "--stock", "--ours"):
        parser.add_argument(name, type=pathlib.Path, required=True)
    parser.add_argument("--groups", nargs="+", default=GROUPS)
    parser.add_argument("--timeout", type=int, default=60, help="seconds for one test")
    parser.add_argument("--table", type=pathlib.Path, help="file for the table instead of stdout")
    parser.add_argument("--logs", type=pathlib.Path, help="folder for what pytest says")
    arguments = parser.parse_args()
    for name in ("tests", "model", "stock", "ours"):
        setattr(arguments, name, getattr(arguments, name).resolve(strict=True))

    results = {}
    for group in arguments.groups:
        print(f"{group} ...", file=sys.stderr, flush=True)
        results[group] = [run(arguments.tests, group, server, arguments) for server in (arguments.stock, arguments.ours)]
    text, wrong = table(results, json.loads((HERE / "reasons.json").read_text()))
    text = f"Model: {arguments.model.name}. `compare.py` makes this table.\n\n{text}"
    arguments.table.write_text(text) if arguments.table else print(text)
    if wrong:
        sys.exit(f"{wrong} tests pass with llama-server and fail here without a reason in reasons.json")


main()
