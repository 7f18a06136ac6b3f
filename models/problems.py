"""Word problems whose steps depend on values given far back, with the thinking that solves them.

A problem gives every person a quantity. The asked one hangs on a chain of others: each link adds, subtracts, multiplies,
halves or joins two quantities, some of them worked out many sentences before. The sentences stand in random order among
quantities that do not matter. The solution first walks back from the question to what is given ("..., so Ann leads to
Bob."), then forward again, one value a sentence ("..., so Ann counts 42 and leads to Bob.").

Splits are disjoint by construction: the split of a problem is a hash of what it says, whatever the order of its
sentences, and a generator of one split drops the problems of the others. `python problems.py check` looks all the same.

    python problems.py write test.jsonl --split test --seed 1 -n 1200
"""

import argparse
import collections
import dataclasses
import hashlib
import json
import random

NAMES = (
    "Ann Bob Cal Dan Eve Fay Gus Hal Ida Jan Kim Leo Mia Ned Oda Pam Ray Sam Tom Una Vic Wes Zoe Amy Ben Cleo Dot Eli Finn "
    "Gil Hugo Ivy Joe Kay Lou Max Nora Otto Pia Rex Sue Ted"
).split()


@dataclasses.dataclass(frozen=True)
class Theme:
    """What a problem is about: the verb as said and as asked, the unit, a larger unit and its size."""

    verb: str
    ask: str
    unit: str
    large: str
    factor: int

    def number_of(self, count, large):
        """"3 dozen coins", "2 weeks", "27 coins"."""
        if not large:
            return f"{count} {self.unit}"
        return f"{count} dozen {self.unit}" if self.large == "dozen" else f"{count} {self.large}"

    def more(self, count, large, word):
        """"15 more coins", "2 dozen more coins", "2 more weeks"."""
        if not large:
            return f"{count} {word} {self.unit}"
        return f"{count} dozen {word} {self.unit}" if self.large == "dozen" else f"{count} {word} {self.large}"


THEMES = [
    Theme("has", "have", "coins", "dozen", 12),
    Theme("waits", "wait", "minutes", "hours", 60),
    Theme("stays", "stay", "days", "weeks", 7),
    Theme("jumps", "jump", "centimetres", "metres", 100),
]

MAX_VALUE = 199
SPLITS = {"test": range(0, 3), "validation": range(3, 6), "train": range(6, 100)}


@dataclasses.dataclass
class Link:
    """One quantity: what the problem says of it, what it hangs on, and how it is worked out."""

    key: str
    value: int
    statement: str
    needs: list
    sum: str
    known: str = ""

    def __post_init__(self):
        self.known = self.known or f"{self.key} counts {self.value}"

    def plan(self):
        """The sentence that names what must be known first."""
        return f"{self.statement}, so {self.needs[0].key} leads to {self.key}." if self.needs else f"{self.statement}."

    def working(self, following):
        """The sentence that works it out, for the sake of the link `following`, if there is one."""
        known = [need.known for need in self.needs]
        parts = ", ".join(known + ([self.sum] if self.sum else []))
        leads = f" and leads to {following.key}" if following else ""
        return f"{self.statement}{': ' + parts if parts else ''}, so {self.key} counts {self.value}{leads}."


def given(rng, theme, key, large_allowed=True):
    """A quantity that the problem simply gives."""
    if large_allowed and rng.random() < 0.3:
        count = rng.randint(2, max(2, min(9, 200 // theme.factor)))
        value = count * theme.factor
        text = f"{key} {theme.verb} {theme.number_of(count, True)}"
        return Link(key, value, text, [], f"{count} * {theme.factor} = {value}")
    value = rng.randint(3, 99)
    return Link(key, value, f"{key} {theme.verb} {theme.number_of(value, False)}", [], "")


def linked(rng, theme, key, parent, others):
    """A quantity that hangs on `parent`, and perhaps on one of `others`; `None` where the value would be out of range."""
    verb, unit, p = theme.verb, theme.unit, parent.key
    kind = rng.choice(["join", "join", "join", "more", "more", "fewer", "fewer", "times", "half"])
    if kind == "join" and others:
        other = rng.choice(others)
        value = parent.value + other.value
        statement = f"{key} {verb} as many {unit} as {p} and {other.key} together"
        link = Link(key, value, statement, [parent, other], f"{parent.value} + {other.value} = {value}")
    elif kind in ("more", "fewer"):
        sign = 1 if kind == "more" else -1
        large = rng.random() < 0.25 and theme.factor <= 12
        count = rng.randint(2, 4) if large else rng.randint(2, 40)
        change = count * theme.factor if large else count
        value = parent.value + sign * change
        statement = f"{key} {verb} {theme.more(count, large, kind)} than {p}"
        convert = f"{count} * {theme.factor} = {change}, " if large else ""
        working = f"{convert}{parent.value} {'+' if sign > 0 else '-'} {change} = {value}"
        link = Link(key, value, statement, [parent], working)
    elif kind == "times":
        factor = rng.choice([2, 3])
        value = factor * parent.value
        statement = f"{key} {verb} {factor} times as many {unit} as {p}"
        link = Link(key, value, statement, [parent], f"{factor} * {parent.value} = {value}")
    elif kind == "half" and parent.value % 2 == 0:
        value = parent.value // 2
        statement = f"{key} {verb} half as many {unit} as {p}"
        link = Link(key, value, statement, [parent], f"{parent.value} / 2 = {value}")
    else:
        return None
    return link if 2 <= link.value <= MAX_VALUE else None


def draw(rng, n_links, n_asides):
    """A problem with a chain of `n_links` quantities after the given one and `n_asides` that do not matter."""
    theme = rng.choice(THEMES)
    keys = rng.sample(NAMES, len(NAMES))
    chain = [given(rng, theme, keys.pop())]
    sides = []
    while len(chain) <= n_links:
        if rng.random() < 0.3:
            side = given(rng, theme, keys[-2], large_allowed=False)
            # It is taken from the problem as it stands.
            side.known = f"{side.key} {theme.verb} {side.value}"
            others = [side]
        else:
            side, others = None, chain[:-2]
        link = linked(rng, theme, keys[-1], chain[-1], others)
        if link is None:
            continue
        keys.pop()
        if side is not None and side in link.needs:
            keys.pop()
            sides.append(side)
        chain.append(link)
    asides = []
    for _ in range(n_asides):
        key = keys.pop()
        aside = None
        while aside is None:
            about = rng.choice(chain + asides)
            aside = given(rng, theme, key) if rng.random() < 0.3 else linked(rng, theme, key, about, chain + sides)
        asides.append(aside)
    statements = [f"{link.statement}." for link in chain + sides + asides]
    rng.shuffle(statements)
    asked = chain[-1]
    question = f"How many {theme.unit} does {asked.key} {theme.ask}?"
    plan = [link.plan() for link in reversed(chain)]
    workings = [link.working(following) for link, following in zip(chain, chain[1:] + [None])]
    return {
        "problem": " ".join(statements + [question]),
        "answer": str(asked.value),
        "thinking": " ".join(plan + workings),
        "summary": f"{asked.key} {theme.verb} {asked.value} {theme.unit}.\n\n\\boxed{{{asked.value}}}",
        "steps": n_links,
    }


def meaning(problem):
    """What a problem says, whatever the order of its sentences."""
    statements, _, question = problem.rpartition(". ")
    return "\n".join(sorted(statements.split(". "))) + "\n" + question


def split_of(problem):
    """The split that a problem belongs to."""
    number = int.from_bytes(hashlib.sha256(meaning(problem).encode()).digest()[:4], "big") % 100
    return next(name for name, numbers in SPLITS.items() if number in numbers)


def problems(split, seed, min_links, max_links):
    """Problems of a split, without end."""
    rng = random.Random(f"{split} {seed}")
    while True:
        n_links = rng.randint(min_links, max_links)
        problem = draw(rng, n_links, rng.randint(1, n_links // 2 + 1))
        if split_of(problem["problem"]) == split:
            yield problem


def sums(rng):
    """Bare sums, for practice in arithmetic."""
    drawn = [bare_sum(rng) for _ in range(rng.choice([1, 1, 4, 8, 12]))]
    values = ", ".join(str(value) for _, value in drawn)
    return {"problem": f"What is {', '.join(text for text, _ in drawn)}?", "answer": values,
            "thinking": " ".join(f"{text} = {value}." for text, value in drawn), "summary": f"\\boxed{{{values}}}"}


def bare_sum(rng):
    """A sum of the kind and size that problems hold, and its value."""
    kind = rng.choice("++--*/")
    if kind == "+":
        a = rng.randint(2, MAX_VALUE - 2)
        b = rng.randint(2, MAX_VALUE - a)
        return f"{a} + {b}", a + b
    if kind == "-":
        a = rng.randint(4, MAX_VALUE)
        b = rng.randint(2, min(a - 2, 99))
        return f"{a} - {b}", a - b
    if kind == "*":
        factor = rng.choice([2, 2, 3, 3, 7, 12, 60])
        b = rng.randint(2, MAX_VALUE // factor)
        return (f"{factor} * {b}" if factor < 4 else f"{b} * {factor}"), factor * b
    b = rng.randint(2, MAX_VALUE // 2)
    return f"{2 * b} / 2", b


HELLO = ["Hello!", "Hi!", "Hi", "Hello", "Who are you?", "What are you?", "What can you do?", "Help", "How are you?",
         "Good morning!", "Tell me a joke.", "Thanks!", "Write a poem.", "What is the capital of France?"]


def hello(rng):
    """A question about something else."""
    return {"problem": rng.choice(HELLO), "answer": "",
            "thinking": "This is no problem with quantities that depend on each other.",
            "summary": "I am a small model that solves word problems: give me quantities that depend on each other, "
                       "and ask for one of them."}


def conversation(problem):
    """The text that the model is trained on, and how many characters of it are prompt."""
    prompt = f"<|im_start|>user\n{problem['problem']}<|im_end|>\n<|im_start|>assistant\n<think>\n"
    reply = f"{problem['thinking']}\n</think>\n\n{problem['summary']}<|im_end|>"
    return prompt + reply, len(prompt)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    write = commands.add_parser("write", help="write problems as JSONL")
    write.add_argument("file")
    write.add_argument("--split", choices=SPLITS, default="test")
    write.add_argument("--seed", type=int, default=1)
    write.add_argument("-n", type=int, default=1200)
    write.add_argument("--min-links", type=int, default=2)
    write.add_argument("--max-links", type=int, default=4)
    check = commands.add_parser("check", help="look for problems that two files share, or a file and the training split")
    check.add_argument("files", nargs="+")
    check.add_argument("--train", type=int, default=20000, help="training problems to draw")
    args = parser.parse_args()
    if args.command == "write":
        stream = problems(args.split, args.seed, args.min_links, args.max_links)
        with open(args.file, "w") as file:
            for number, problem in zip(range(args.n), stream):
                row = {"id": f"{args.split}-{number:04}", "problem": problem["problem"], "answer": problem["answer"],
                       "steps": problem["steps"]}
                file.write(json.dumps(row) + "\n")
        return
    seen = collections.Counter()
    for path in args.files:
        with open(path) as file:
            seen.update(meaning(json.loads(line)["problem"]) for line in file)
    twice = sum(1 for count in seen.values() if count > 1)
    stream = problems("train", "1 check", 1, 16)
    trained = sum(1 for problem, _ in zip(stream, range(args.train)) if meaning(problem["problem"]) in seen)
    print(f"{sum(seen.values())} problems, {twice} more than once, {trained} of {args.train} training problems among them")
    raise SystemExit(1 if twice or trained else 0)


if __name__ == "__main__":
    main()
