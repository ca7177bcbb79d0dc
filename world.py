"""world.py: a toy world in which the truth is known.

A task asks for a short list, for somebody:

    Count up from three to six for Mia.      ->  Mia: three, four, five, six.
    Give Bob two animals.                    ->  Bob: owl, cat.

People answer with mixed quality: an item is missing or wrong or said twice, the name is another's, the full stop is
forgotten. `oracle` reads prompt and answer as text and gives one point each, 0-5 in all:

    relevant   at least one item belongs to the answer
    complete   nothing that was asked for is missing
    exact      nothing else is there: no wrong, extra or repeated item, nor one out of order where the order matters
    personal   it is addressed to the right person
    clear      it begins with a capital letter and ends with a full stop

In: a random.Random.  Out: tasks, answers and verdicts.
The oracle labels the seed data (it plays the people who ranked answers) and reports; no stage of the loop reads it.
Left out on purpose: anything a small model could not learn in minutes (arithmetic, sorting, grammar).
"""

import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple
from zlib import crc32

NAMES = "Ana Bob Cleo Dan Eva Finn Gus Hana Ivo Jade Kim Leo Mia Nora Omar Pia Quin Rosa Sam Tara Uma Vic Wes Zoe".split()
NUMBERS = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen".split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
KINDS = {
    "animals": "cat dog cow fox hen pig owl bee goat duck".split(),
    "fruits": "apple pear plum fig lemon grape peach cherry".split(),
    "colours": "red blue green black white brown yellow pink".split(),
    "tools": "saw axe hammer drill rake spade brush nail".split(),
    "clothes": "hat coat shoe sock scarf glove shirt belt".split(),
    "foods": "bread rice soup cake cheese egg jam pie".split(),
}
THINGS = [word for kind, words in KINDS.items() if kind != "colours" for word in words]
SHORT = [w for w in THINGS if len(w) <= 4]
PAIRS = "hot-cold big-small fast-slow old-new wet-dry happy-sad hard-soft open-shut full-empty dark-light long-short good-bad"
OPPOSITE = {
    a: b for pair in PAIRS.split() for x, y in [pair.split("-")] for a, b in ((x, y), (y, x))
}
COLOUR = dict(
    p.split("-")
    for p in (
        "snow-white grass-green coal-black blood-red sky-blue sun-yellow mud-brown "
        "milk-white leaf-green night-black sea-blue rose-pink"
    ).split()
)
SOUND = dict(
    p.split("-")
    for p in (
        "cow-moo dog-woof cat-meow duck-quack hen-cluck pig-oink bee-buzz owl-hoot "
        "goat-baa lion-roar snake-hiss frog-croak"
    ).split()
)
PHRASINGS = {
    "tell": [
        "Tell {name} about {list}.",
        "Name {list} for {name}.",
        "{name} wants to hear about {list}.",
        "Please say {list} to {name}.",
    ],
    "kind": [
        "Give {name} {n} {kind}.",
        "Name {n} {kind} for {name}.",
        "{name} needs {n} {kind}.",
        "Think of {n} {kind} for {name}.",
    ],
    "up": [
        "Count up from {a} to {b} for {name}.",
        "Count for {name} from {a} up to {b}.",
        "{name} wants to count up from {a} to {b}.",
    ],
    "down": [
        "Count down from {a} to {b} for {name}.",
        "Count for {name} from {a} down to {b}.",
        "{name} wants to count down from {a} to {b}.",
    ],
    "say": [
        "Say {word} {n} times to {name}.",
        "Repeat {word} {n} times for {name}.",
        "{name} wants to hear {word} {n} times.",
    ],
    "spell": [
        "Spell {word} for {name}.",
        "How is {word} spelt? Tell {name}.",
        "{name} wants to spell {word}.",
    ],
    "days": [
        "Tell {name} the {n} days after {day}.",
        "Which {n} days follow {day}? Tell {name}.",
        "{name} asks for {n} days after {day}.",
    ],
    "opposite": [
        "Tell {name} the opposite of {list}.",
        "What is the opposite of {list}? Ask {name}.",
        "{name} needs the opposite of {list}.",
    ],
    "colour": [
        "Tell {name} the colour of {list}.",
        "Which colour has {list}? Tell {name}.",
        "{name} asks for the colour of {list}.",
    ],
    "sound": [
        "What does {list} say? Tell {name}.",
        "Make the sound of {list} for {name}.",
        "{name} wants the sound of {list}.",
    ],
}
WORDS = {
    "tell": THINGS,
    "up": NUMBERS,
    "down": NUMBERS,
    "say": THINGS,
    "spell": list("abcdefghijklmnoprstuwxy"),
    "days": DAYS,
    "opposite": list(OPPOSITE),
    "colour": KINDS["colours"],
    "sound": list(SOUND.values()),
}
ORDERED = ("up", "down", "spell", "days")  # in the other families the order of the items is free
POINTS = ("relevant", "complete", "exact", "personal", "clear")
RUBRIC = (
    "Judge the answer. One point each: relevant, complete, exact, personal, clear.\n"
    "{prompt}\n{response}"
)


@dataclass(frozen=True)
class Task:
    """What a prompt asks for: these `items` in this order or, where `kind` is given, any `n` of that kind."""

    prompt: str
    family: str
    name: str
    items: tuple[str, ...] = ()
    kind: str | None = None
    n: int = 0


# ---- prompts: drawn from slots, and read back from their text ----
def join(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1]


def draw_slots(family: str, rng: random.Random) -> dict[str, str]:
    """Random values for the slots that the phrasings of one family use."""
    source = {
        "tell": THINGS,
        "opposite": list(OPPOSITE),
        "colour": list(COLOUR),
        "sound": list(SOUND),
    }.get(family)
    ends = (low := rng.randrange(0, 11)), low + rng.randrange(2, 5)
    a, b = ends if family == "up" else reversed(ends)
    return {
        "name": rng.choice(NAMES),
        "list": join(rng.sample(source, rng.randrange(2, 4))) if source else "",
        "n": NUMBERS[rng.randrange(1, 4)],
        "kind": rng.choice(list(KINDS)),
        "day": rng.choice(DAYS),
        "word": rng.choice(SHORT if family == "spell" else THINGS),
        "a": NUMBERS[a],
        "b": NUMBERS[b],
    }


def expected(family: str, slots: dict[str, str]) -> tuple[str, ...]:
    """The items of the right answer. Raises KeyError, ValueError or IndexError where the slots make no sense."""
    listed = slots["list"].replace(" and ", ", ").split(", ") if "list" in slots else []
    n = NUMBERS.index(slots["n"]) + 1 if "n" in slots else 0
    if family in ("up", "down"):
        a, b = NUMBERS.index(slots["a"]), NUMBERS.index(slots["b"])
        return tuple(NUMBERS[a : b + 1] if family == "up" else NUMBERS[b : a + 1][::-1])
    if family == "days":
        return tuple(DAYS[(DAYS.index(slots["day"]) + i) % 7] for i in range(1, n + 1))
    if family == "say":
        return (slots["word"],) * n
    if family == "spell":
        return tuple(slots["word"])
    table = {"opposite": OPPOSITE, "colour": COLOUR, "sound": SOUND}.get(family)
    return tuple(table[w] for w in listed) if table else tuple(listed)


def _pattern(phrasing: str) -> re.Pattern:
    pattern = re.sub(r"\\{(\w+)\\}", r"(?P<\1>\\w+)", re.escape(phrasing))
    return re.compile(pattern.replace(r"(?P<list>\w+)", r"(?P<list>\w+(?:, \w+)* and \w+)"))


PATTERNS = [(family, _pattern(p)) for family, phrasings in PHRASINGS.items() for p in phrasings]


def read_task(prompt: str) -> Task | None:
    """The task that a text asks for; None where the text is no task of this world."""
    for family, pattern in PATTERNS:
        if (match := pattern.fullmatch(prompt.strip())) and (slots := match.groupdict())[
            "name"
        ] in NAMES:
            try:
                if family == "kind" and (n := NUMBERS.index(slots["n"]) + 1) <= len(
                    KINDS[slots["kind"]]
                ):
                    return Task(prompt, family, slots["name"], kind=slots["kind"], n=n)
                items = () if family == "kind" else expected(family, slots)
            except (KeyError, ValueError):
                return None
            return Task(prompt, family, slots["name"], items) if items else None
    return None


def draw_task(rng: random.Random, *, held_out: bool = False) -> Task:
    """A random task. A fixed tenth of all prompts, told by a checksum of the text, is held out from all training."""
    while True:
        family = rng.choice(list(PHRASINGS))
        prompt = rng.choice(PHRASINGS[family]).format(**draw_slots(family, rng))
        if (crc32(prompt.encode()) % 10 == 0) == held_out:
            return read_task(prompt)


# ---- answers: right ones, and the ways people get them wrong ----
class Draft(NamedTuple):
    name: str
    items: list[str]
    capital: bool = True
    stop: bool = True

    def text(self) -> str:
        line = f"{self.name}: {', '.join(self.items)}"
        return (line if self.capital else line[0].lower() + line[1:]) + ("." if self.stop else "")


def perfect(task: Task, rng: random.Random) -> Draft:
    return Draft(task.name, list(task.items) or rng.sample(KINDS[task.kind], task.n))


def flawed(draft: Draft, flaw: str, task: Task, rng: random.Random) -> Draft:
    """The draft with one more mistake."""
    items, pool = list(draft.items), WORDS.get(task.family, THINGS)
    at = rng.randrange(len(items))
    if flaw == "missing" and len(items) > 1:
        del items[at]
    elif flaw == "extra":
        items.insert(rng.randrange(len(items) + 1), rng.choice(pool))
    elif flaw == "wrong":
        items[at] = rng.choice(pool)
    elif flaw == "repeat":
        items.insert(at, items[at])
    elif flaw == "double":
        items[at] = rng.choice(items)
    elif flaw == "swap" and len(items) > 1:
        at = max(at, 1)
        items[at - 1], items[at] = items[at], items[at - 1]
    elif flaw == "off-topic":
        items = perfect(draw_task(rng), rng).items
    return draft._replace(
        items=items,
        name=rng.choice(NAMES) if flaw == "name" else draft.name,
        capital=draft.capital and flaw != "capital",
        stop=draft.stop and flaw != "stop",
    )


FLAWS = [
    "missing",
    "extra",
    "wrong",
    "repeat",
    "double",
    "swap",
    "off-topic",
    "name",
    "capital",
    "stop",
]


def demonstration(task: Task, rng: random.Random) -> str:
    """An answer as people write them: about a fifth are perfect, the others have one to three flaws."""
    draft = perfect(task, rng)
    for flaw in rng.sample(FLAWS, rng.choices((0, 1, 2, 3), (18, 38, 28, 16))[0]):
        draft = flawed(draft, flaw, task, rng)
    return draft.text()


# ---- the truth ----
def points(task: Task, answer: str) -> tuple[bool, ...]:
    """The five points of the rubric, in the order of POINTS."""
    name, _, rest = answer.strip().partition(":")
    items = [w for w in rest.strip().removesuffix(".").split(", ") if w]
    if task.kind:
        relevant = any(w in KINDS[task.kind] for w in items)
        complete = len(set(items) & set(KINDS[task.kind])) >= task.n
        exact = set(items) <= set(KINDS[task.kind]) and len(items) == len(set(items)) <= task.n
    else:
        relevant = any(w in task.items for w in items)
        complete = all(items.count(w) >= task.items.count(w) for w in task.items)
        rest_of = iter(task.items)
        exact = (
            all(w in rest_of for w in items)
            if task.family in ORDERED
            else not Counter(items) - Counter(task.items)
        )
    clear = answer[:1].isupper() and answer.endswith(".")
    return relevant, complete, relevant and exact, name.lower() == task.name.lower(), clear


def oracle(prompt: str, answer: str) -> int | None:
    """The true score 0-5 of an answer; None where the prompt is no task of this world."""
    task = read_task(prompt)
    return None if task is None else sum(points(task, answer))


def verdict(task: Task, answer: str) -> str:
    """The verdict a faultless judge writes: reasons first, then the score line."""
    got = points(task, answer)
    return (
        ", ".join(f"{p} {'yes' if g else 'no'}" for p, g in zip(POINTS, got))
        + f".\nScore: {sum(got)}"
    )


# ---- data ----
def ift_examples(count: int, rng: random.Random) -> list[dict]:
    """Human demonstrations, of mixed quality: {"prompt", "response"}."""
    tasks = [draw_task(rng) for _ in range(count)]
    return [{"prompt": t.prompt, "response": demonstration(t, rng)} for t in tasks]


def eft_examples(count: int, rng: random.Random) -> list[dict]:
    """Judged answers: {"prompt", "response", "verdict"}; the oracle plays the people who judged."""
    tasks = [draw_task(rng) for _ in range(count)]
    rows = [(t, demonstration(t, rng)) for t in tasks]
    return [{"prompt": t.prompt, "response": a, "verdict": verdict(t, a)} for t, a in rows]


def held_out_prompts(count: int) -> list[str]:
    rng = random.Random("held-out prompts, second exam")
    return [draw_task(rng, held_out=True).prompt for _ in range(count)]


def held_out_ranked(count: int) -> list[dict]:
    """Groups of five answers of mixed quality, written by no model, ranked by truth: what the judge is measured on."""
    rng = random.Random("held-out answers, second exam")
    tasks = [draw_task(rng, held_out=True) for _ in range(count)]
    answers = [[demonstration(t, rng) for _ in range(5)] for t in tasks]
    return [
        {"prompt": t.prompt, "responses": a, "ranks": [5 - sum(points(t, x)) for x in a]}
        for t, a in zip(tasks, answers)
    ]
