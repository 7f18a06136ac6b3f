#!/usr/bin/env python3
"""Measures what a server gives under load, beside another one, and what it does under too much.

    load.py OURS_URL STOCK_URL [--rounds 7]               # both with the same model, -np, -c and -t
    load.py OURS_URL --overload 60 --slots 8 --queue 16 [--pid PID]

The first gives tokens per second over all and the median time to the first token, at 8 requests at a time, by rounds
that change between the two servers. The second keeps four times as many clients as there is room for at a server, and
fails unless each request ends in an answer or in 429 with Retry-After.
"""

import argparse
import collections
import http.client
import json
import pathlib
import statistics
import sys
import threading
import time
import urllib.parse

NAMES = ["Tom", "Ann", "Ida", "Bob", "Ned", "Una", "Max", "Finn"]


def question(i):
    a, b = NAMES[i % 8], NAMES[(i // 8 + i + 1) % 8]
    return f"{a} has {i % 17 + 3} apples. {b} has {i % 5 + 2} more apples than {a}. How many apples does {b} have?"


def post(url, body, on_data):
    """Sends a streamed request; `on_data` gets each event. The status, Retry-After and the last event."""
    at = urllib.parse.urlsplit(url)
    connection = http.client.HTTPConnection(at.hostname, at.port, timeout=300)
    try:
        connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        if answer.status != 200:
            answer.read()
            return answer.status, answer.headers.get("Retry-After"), None
        last, done = None, False
        for line in answer:
            if line.startswith(b"data: "):
                data = line[6:].strip()
                if data == b"[DONE]":
                    done = True
                else:
                    last = json.loads(data)
                    on_data(last)
        return answer.status, None, last if done else None
    finally:
        connection.close()


def one_round(url, concurrency, n, tokens, start):
    """Tokens per second over all, and the median time to the first token in ms."""
    times, counts, lock, place = [], [], threading.Lock(), iter(range(n))

    def client():
        while True:
            with lock:
                i = next(place, None)
            if i is None:
                return
            sent, first = time.monotonic(), []

            def on_data(event):
                delta = event["choices"][0]["delta"] if event.get("choices") else {}
                if not first and (delta.get("content") or delta.get("reasoning_content")):
                    first.append(time.monotonic() - sent)

            body = {
                "messages": [{"role": "user", "content": question(start + i)}],
                "stream": True, "stream_options": {"include_usage": True}, "max_tokens": tokens, "seed": i,
                "temperature": 1, "ignore_eos": True, "cache_prompt": False,
            }  # fmt: skip
            status, _, last = post(url, body, on_data)
            assert status == 200 and last, f"{url} answered {status}"
            with lock:
                times.append(first[0])
                counts.append(last["usage"]["completion_tokens"])

    began = time.monotonic()
    run([client] * concurrency)
    return sum(counts) / (time.monotonic() - began), 1000 * statistics.median(times)


def run(targets):
    errors = []

    def guarded(target):
        try:
            target()
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(target,)) for target in targets]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def compare(urls, arguments):
    names = ["ours", "stock"][: len(urls)]
    rates, firsts = {name: [] for name in names}, {name: [] for name in names}
    for i in range(-1, arguments.rounds):
        # Who begins changes, so that what else the machine does falls on both.
        for name, url in sorted(zip(names, urls), reverse=i % 2 == 1):
            rate, first = one_round(url, arguments.concurrency, arguments.requests, arguments.tokens, 100 * (i + 1))
            if i < 0:  # to warm up
                continue
            rates[name].append(rate)
            firsts[name].append(first)
            print(f"round {i} {name:5} {rate:8.1f} tokens/s, first token after {first:7.1f} ms", flush=True)
    for what, values, unit in (("throughput", rates, "tokens/s"), ("first token", firsts, "ms")):
        for name in names:
            low, high = min(values[name]), max(values[name])
            print(f"{what} {name:5} median {statistics.median(values[name]):8.1f} {unit} ({low:.1f} to {high:.1f})")
        if len(names) == 2:
            ratios = [a / b for a, b in zip(values["ours"], values["stock"])]
            print(
                f"{what} ours / stock, median of rounds {statistics.median(ratios):.3f}"
                f" ({min(ratios):.3f} to {max(ratios):.3f})"
            )


def rss(pid):
    if not pid:
        return 0
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))


def overload(url, arguments):
    clients = 4 * (arguments.slots + arguments.queue)
    counts, waits, lock, wrong = collections.Counter(), collections.Counter(), threading.Lock(), []
    memory, began = [rss(arguments.pid)], time.monotonic()
    end = began + arguments.overload

    def client(me):
        i = 0
        while time.monotonic() < end:
            i += 1
            body = {
                "messages": [{"role": "user", "content": question(me * 1000 + i)}],
                "max_tokens": arguments.tokens, "temperature": 1, "stream": True,
            }  # fmt: skip
            try:
                status, retry, last = post(url, body, lambda event: None)
            except Exception as error:
                with lock:
                    counts[type(error).__name__] += 1
                    wrong.append(repr(error))
                continue
            with lock:
                counts[status] += 1
                if status == 429:
                    waits[retry] += 1
                if status == 200 and not (last and last["choices"][0]["finish_reason"]):
                    wrong.append(f"a stream that ends with {last}")
                if status not in (200, 429) or (status == 429 and not (retry or "").isdigit()):
                    wrong.append(f"status {status}, Retry-After {retry}")
            if status == 429:
                time.sleep(0.05)  # far less than was asked for: that is the overload

    def watch():
        time.sleep(arguments.overload / 2)
        memory.append(rss(arguments.pid))

    run([lambda me=me: client(me) for me in range(clients)] + [watch])
    memory.append(rss(arguments.pid))
    print(f"{clients} clients for {time.monotonic() - began:.0f} s: {dict(counts)}; Retry-After {dict(waits)}")
    if arguments.pid:
        print("memory at start, middle and end:", ", ".join(f"{kib / 1024:.1f} MiB" for kib in memory))
    for line in sorted(set(wrong))[:10]:
        print("WRONG:", line)
    at = urllib.parse.urlsplit(url)
    connection = http.client.HTTPConnection(at.hostname, at.port, timeout=30)
    connection.request("GET", "/health")
    assert connection.getresponse().status == 200
    assert counts[429], "the server was not overloaded: are --slots and --queue right?"
    sys.exit(1 if wrong else 0)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("urls", nargs="+", metavar="url")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--concurrency", type=int, default=8)
    parser.add_argument("--requests", type=int, default=32, help="in a round")
    parser.add_argument("--tokens", type=int, default=128, help="of each answer")
    parser.add_argument("--overload", type=float, metavar="SECONDS")
    parser.add_argument("--slots", type=int, default=8, help="the server's -np")
    parser.add_argument("--queue", type=int, default=16, help="the server's --queue")
    parser.add_argument("--pid", type=int, help="the server's, to tell what memory it takes")
    arguments = parser.parse_args()
    if arguments.overload:
        overload(arguments.urls[0], arguments)
    else:
        compare(arguments.urls[:2], arguments)


if __name__ == "__main__":
    main()
