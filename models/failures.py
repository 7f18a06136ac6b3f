"""Where the wrong answers of the embedded model come from: the first thing in each that does not follow.

    python failures.py stepflow-reasoner.test.jsonl RUN/samples.jsonl

Samples are those of `stepflow eval -o RUN`. For every arm it counts, among wrong answers, what went wrong first, and
says how OEB's mean bridge mass before (pB, the share of attention on the bridged segment) differs between right and wrong
ones.
"""

import argparse
import collections
import json
import re
import statistics

KINDS = {
    "misread": "a statement that the problem does not make: a given value lost or wrongly carried",
    "thread": "a sentence about somebody else than is due: the thread lost",
    "value": "a value worked out before, carried wrongly",
    "operands": "a sum of other numbers than its sentence names",
    "arithmetic": "a wrong sum of the right numbers",
    "answer": "another answer than was worked out",
    "form": "no sentence of either kind",
    "unfinished": "no end",
}
SUM = re.compile(r"(\d+) ([-+*/]) (\d+) = (\d+)")
KNOWN = re.compile(r"(\w+) (?:counts|has|waits|stays|jumps) (\d+)")


def apply(a, sign, b):
    """The right result of a sum."""
    return {"+": a + b, "-": a - b, "*": a * b, "/": a / b if b else None}[sign]


def first_failure(problem, text):
    """The kind of the first thing in `text` that does not follow from the problem or from what stands before it."""
    *statements, question = re.split(r"(?<=\.) ", problem)
    statements = {statement.rstrip(".") for statement in statements}
    due = re.search(r"does (\w+)", question).group(1)
    thinking, end, summary = text.partition("</think>")
    if not end:
        return "unfinished"
    counts, needs = {}, {}
    planning = True
    for sentence in re.findall(r"[^.]+\.", thinking):
        sentence = sentence.strip().rstrip(".")
        said = re.split(r", so |: ", sentence)[0]
        if said not in statements:
            return "misread"
        name = said.split()[0]
        plan = re.fullmatch(r"(\w+) leads to (\w+)", sentence[len(said) + 5 :])
        if planning and (plan or sentence == said):
            if name != due or (plan and (plan[2] != name or plan[1] not in said)):
                return "thread"
            planning = plan is not None
            if plan:
                needs[plan[1]], due = name, plan[1]
            continue
        result = re.search(r", so (\w+) counts (\d+)(?: and leads to (\w+))?$", sentence)
        if planning or not result:
            return "form"
        if name != due or result[1] != name or result[3] != needs.get(name):
            return "thread"
        failure = working_failure(said, sentence[len(said) : result.start()], int(result[2]), counts, statements)
        if failure:
            return failure
        counts[name], due = int(result[2]), needs.get(name)
    boxed = re.search(r"\\boxed\{(\d+)\}", summary)
    return "answer" if due is None and boxed else "thread"


def working_failure(said, working, result, counts, statements):
    """What is wrong with a sentence that works a value out, if anything is."""
    numbers = {int(number) for number in re.findall(r"\d+", said)}
    for name, value in KNOWN.findall(SUM.sub("", working)):
        given = any(re.fullmatch(rf"{name} \w+ {value} \w+", statement) for statement in statements)
        if counts.get(name) != int(value) and not given:
            return "value"
        numbers.add(int(value))
    last = None
    for a, sign, b, c in SUM.findall(working):
        a, b, c = int(a), int(b), int(c)
        if not {a, b} <= numbers | {2, 7, 12, 60, 100}:
            return "operands"
        if apply(a, sign, b) != c:
            return "arithmetic"
        numbers.add(c)
        last = c
    if last is None:
        last = next((int(number) for number in re.findall(r"\d+", said)), None)
    return None if last == result else "value"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("problems")
    parser.add_argument("samples")
    args = parser.parse_args()
    with open(args.problems) as file:
        problems = {row["id"]: row["problem"] for row in map(json.loads, file)}
    kinds, bridge = collections.defaultdict(collections.Counter), collections.defaultdict(lambda: ([], []))
    with open(args.samples) as file:
        for sample in map(json.loads, file):
            if not sample["correct"]:
                kinds[sample["arm"]][first_failure(problems[sample["problem"]], sample["text"])] += 1
            if sample["stepflow"]["rows_seen"]:
                bridge[sample["arm"]][sample["correct"]].append(sample["stepflow"]["mean_bridge_before"])
    for arm, counts in kinds.items():
        print(f"{arm}: {sum(counts.values())} wrong")
        for kind, count in counts.most_common():
            print(f"  {count:5} {kind:10} {KINDS[kind]}")
    for arm, (wrong, right) in bridge.items():
        if len(wrong) > 1 and len(right) > 1:
            difference = statistics.mean(right) - statistics.mean(wrong)
            error = (statistics.variance(right) / len(right) + statistics.variance(wrong) / len(wrong)) ** 0.5
            print(f"{arm}: pB {statistics.mean(right):.4f} in right answers, {statistics.mean(wrong):.4f} in wrong ones, "
                  f"difference {difference:+.4f}, 95% interval {difference - 1.96 * error:+.4f} to {difference + 1.96 * error:+.4f}")


if __name__ == "__main__":
    main()
