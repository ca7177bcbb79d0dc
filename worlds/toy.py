"""worlds/toy.py: a toy world in which the truth is known.

A task asks for a short list, for somebody:

    Count up from three to six for Mia.      ->  Mia: three, four, five, six.
    Give Bob two animals.                    ->  Bob: owl, cat.

People answer with mixed quality: an item is missing or wrong or is there twice, the answer is for
another person, the full stop is missing. `oracle` reads prompt and answer as text. It gives one
point for each of these, 0-5 in all:

    relevant   at least one item belongs to the answer
    complete   nothing that the task asks for is missing
    exact      nothing else is there: no wrong, extra or repeated item, and none out of order where
               the order matters
    personal   it is addressed to the right person
    clear      it begins with a capital letter and ends with a full stop

In: a random.Random.  Out: tasks, answers and verdicts, and the whole as a `World`.
The oracle labels the seed data (it plays the people who judged answers) and marks the exam.
Training never reads it. The order of random draws is part of the data: another order makes other
data, and its figures do not compare with earlier ones.
Left out on purpose: what a small model could not learn in minutes (arithmetic, sorting, grammar).
"""

import random
import re
from collections import Counter
from dataclasses import dataclass
from typing import NamedTuple
from zlib import crc32

from worlds.world import Exam, World


# ---- words and phrasings ----
def word_list(text: str) -> list[str]:
    return text.split()


def word_pairs(text: str) -> dict[str, str]:
    """For example: "snow-white mud-brown" -> {"snow": "white", "mud": "brown"}."""
    return dict(pair.split("-") for pair in text.split())


NAMES = word_list(
    "Ana Bob Cleo Dan Eva Finn Gus Hana Ivo Jade Kim Leo "
    "Mia Nora Omar Pia Quin Rosa Sam Tara Uma Vic Wes Zoe"
)
NUMBERS = word_list(
    "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen"
)
DAYS = word_list("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
KINDS = {
    "animals": word_list("cat dog cow fox hen pig owl bee goat duck"),
    "fruits": word_list("apple pear plum fig lemon grape peach cherry"),
    "colours": word_list("red blue green black white brown yellow pink"),
    "tools": word_list("saw axe hammer drill rake spade brush nail"),
    "clothes": word_list("hat coat shoe sock scarf glove shirt belt"),
    "foods": word_list("bread rice soup cake cheese egg jam pie"),
}
THINGS = [thing for kind, things in KINDS.items() if kind != "colours" for thing in things]
SHORT = [thing for thing in THINGS if len(thing) <= 4]
OPPOSITE = word_pairs(
    "hot-cold cold-hot big-small small-big fast-slow slow-fast old-new new-old wet-dry dry-wet "
    "happy-sad sad-happy hard-soft soft-hard open-shut shut-open full-empty empty-full "
    "dark-light light-dark long-short short-long good-bad bad-good"
)
COLOUR = word_pairs(
    "snow-white grass-green coal-black blood-red sky-blue sun-yellow "
    "mud-brown milk-white leaf-green night-black sea-blue rose-pink"
)
SOUND = word_pairs(
    "cow-moo dog-woof cat-meow duck-quack hen-cluck pig-oink "
    "bee-buzz owl-hoot goat-baa lion-roar snake-hiss frog-croak"
)
TABLES = {"opposite": OPPOSITE, "colour": COLOUR, "sound": SOUND}
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
}
PHRASINGS |= {  # the answers to these stand in DAYS and TABLES
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
# what people put into an answer by mistake
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


# ---- prompts: made from slots, and read back from their text ----
@dataclass(frozen=True)
class Task:
    """What a prompt asks for: these `items` or, where `kind` is set, any `n` of that kind."""

    prompt: str
    family: str
    name: str
    items: tuple[str, ...] = ()
    kind: str | None = None
    n: int = 0


def draw_task(rng: random.Random, *, held_out: bool = False) -> Task:
    """A random task. A checksum of the text holds a fixed tenth of all prompts out of training."""
    while True:
        family = rng.choice(list(PHRASINGS))
        phrasing = rng.choice(PHRASINGS[family])
        prompt = phrasing.format(**draw_slots(family, rng))
        if (crc32(prompt.encode()) % 10 == 0) == held_out:
            return read_task(prompt)


def draw_slots(family: str, rng: random.Random) -> dict[str, str]:
    """Random values for the slots that the phrasings of one family use."""
    low = rng.randrange(0, 11)
    high = low + rng.randrange(2, 5)
    a, b = (low, high) if family == "up" else (high, low)
    slots = {"a": NUMBERS[a], "b": NUMBERS[b], "name": rng.choice(NAMES)}
    if family == "tell" or family in TABLES:
        source = THINGS if family == "tell" else list(TABLES[family])
        count = rng.randrange(2, 4)
        *first, last = rng.sample(source, count)
        slots["list"] = ", ".join(first) + " and " + last
    slots["n"] = NUMBERS[rng.randrange(1, 4)]
    slots["kind"] = rng.choice(list(KINDS))
    slots["day"] = rng.choice(DAYS)
    slots["word"] = rng.choice(SHORT if family == "spell" else THINGS)
    return slots


def pattern_of(phrasing: str) -> re.Pattern:
    """A regular expression with one named group for each slot of the phrasing."""
    pattern = re.sub(r"\\{(\w+)\\}", r"(?P<\1>\\w+)", re.escape(phrasing))
    return re.compile(pattern.replace(r"(?P<list>\w+)", r"(?P<list>\w+(?:, \w+)* and \w+)"))


PATTERNS = [(family, pattern_of(p)) for family, group in PHRASINGS.items() for p in group]


def read_task(prompt: str) -> Task | None:
    """The task that a text asks for; None where the text is no task of this world."""
    for family, pattern in PATTERNS:
        match = pattern.fullmatch(prompt.strip())
        if match and match["name"] in NAMES:
            try:
                return task_from_slots(prompt, family, match.groupdict())
            except (KeyError, ValueError):  # a word that the lists and tables do not have
                return None
    return None


def task_from_slots(prompt: str, family: str, slots: dict[str, str]) -> Task | None:
    """None where no answer is right. Raises KeyError or ValueError where a word is unknown."""
    if family == "kind":
        n = number_of(slots["n"])
        enough = n <= len(KINDS[slots["kind"]])
        return Task(prompt, family, slots["name"], kind=slots["kind"], n=n) if enough else None
    items = expected_items(family, slots)
    return Task(prompt, family, slots["name"], items) if items else None


def expected_items(family: str, slots: dict[str, str]) -> tuple[str, ...]:
    """The items of the right answer. Raises KeyError or ValueError where a word is unknown."""
    if family == "up":
        return tuple(NUMBERS[number_of(slots["a"]) - 1 : number_of(slots["b"])])
    if family == "down":
        return tuple(reversed(NUMBERS[number_of(slots["b"]) - 1 : number_of(slots["a"])]))
    if family == "days":
        first = DAYS.index(slots["day"]) + 1
        return tuple(DAYS[(first + i) % 7] for i in range(number_of(slots["n"])))
    if family == "say":
        return (slots["word"],) * number_of(slots["n"])
    if family == "spell":
        return tuple(slots["word"])
    listed = slots["list"].replace(" and ", ", ").split(", ")
    if family == "tell":
        return tuple(listed)
    return tuple(TABLES[family][word] for word in listed)


def number_of(word: str) -> int:
    """For example: "three" -> 3. Raises ValueError where the world has no such number."""
    return NUMBERS.index(word) + 1


# ---- answers: right ones, and the ways people get them wrong ----
FLAWS = word_list("missing extra wrong repeat double swap off-topic name capital stop")


class Draft(NamedTuple):
    """An answer in its parts."""

    name: str
    items: list[str]
    capital: bool = True
    stop: bool = True

    def text(self) -> str:
        line = f"{self.name}: {', '.join(self.items)}"
        if not self.capital:
            line = line[0].lower() + line[1:]
        return line + "." if self.stop else line


def perfect(task: Task, rng: random.Random) -> Draft:
    items = list(task.items) or rng.sample(KINDS[task.kind], task.n)
    return Draft(task.name, items)


def flawed(draft: Draft, flaw: str, *, task: Task, rng: random.Random) -> Draft:
    """The draft with one more mistake, one of FLAWS."""
    items = list(draft.items)
    position = rng.randrange(len(items))  # every flaw draws one, used or not
    wrong_words = WORDS.get(task.family, THINGS)
    if flaw == "missing" and len(items) > 1:
        del items[position]
    elif flaw == "extra":
        items.insert(rng.randrange(len(items) + 1), rng.choice(wrong_words))
    elif flaw == "wrong":
        items[position] = rng.choice(wrong_words)
    elif flaw == "repeat":
        items.insert(position, items[position])
    elif flaw == "double":
        items[position] = rng.choice(items)
    elif flaw == "swap" and len(items) > 1:
        second = max(position, 1)
        items[second - 1], items[second] = items[second], items[second - 1]
    elif flaw == "off-topic":
        items = perfect(draw_task(rng), rng).items
    name = rng.choice(NAMES) if flaw == "name" else draft.name
    capital = draft.capital and flaw != "capital"
    stop = draft.stop and flaw != "stop"
    return Draft(name, items, capital, stop)


def demonstration(task: Task, rng: random.Random) -> str:
    """An answer as people write them: about a fifth are perfect, others have up to three flaws."""
    draft = perfect(task, rng)
    [count] = rng.choices((0, 1, 2, 3), weights=(18, 38, 28, 16))
    for flaw in rng.sample(FLAWS, count):
        draft = flawed(draft, flaw, task=task, rng=rng)
    return draft.text()


# ---- the truth ----
def points(task: Task, answer: str) -> tuple[bool, ...]:
    """The five points of the rubric, in the order of POINTS."""
    name, _, rest = answer.strip().partition(":")
    items = [item for item in rest.strip().removesuffix(".").split(", ") if item]
    if task.kind:
        kind = set(KINDS[task.kind])
        relevant = any(item in kind for item in items)
        complete = len(kind & set(items)) >= task.n
        exact = kind >= set(items) and len(items) == len(set(items)) <= task.n
    else:
        relevant = any(item in task.items for item in items)
        complete = all(items.count(item) >= task.items.count(item) for item in task.items)
        if task.family in ORDERED:
            # `in` uses the iterator up, so each item must stand behind the one before it
            rest_of_task = iter(task.items)
            exact = all(item in rest_of_task for item in items)
        else:
            exact = not Counter(items) - Counter(task.items)
    personal = name.lower() == task.name.lower()
    clear = answer[:1].isupper() and answer.endswith(".")
    return relevant, complete, relevant and exact, personal, clear


def oracle(prompt: str, answer: str) -> int | None:
    """The true score 0-5 of an answer; None where the prompt is no task of this world."""
    task = read_task(prompt)
    return None if task is None else sum(points(task, answer))


def verdict(task: Task, answer: str) -> str:
    """The verdict that a judge without mistakes writes: reasons first, then the score line."""
    scored = points(task, answer)
    reasons = [f"{p} {'yes' if got else 'no'}" for p, got in zip(POINTS, scored, strict=True)]
    return ", ".join(reasons) + f".\nScore: {sum(scored)}"


# ---- data ----
def ift_examples(count: int, rng: random.Random) -> list[dict]:
    """Human demonstrations, of mixed quality: {"prompt", "response"}."""
    tasks = [draw_task(rng) for _ in range(count)]
    return [{"prompt": task.prompt, "response": demonstration(task, rng)} for task in tasks]


def eft_examples(count: int, rng: random.Random) -> list[dict]:
    """Judged answers: {"prompt", "response", "verdict"}; the oracle plays the people who judged."""
    examples = []
    for task in [draw_task(rng) for _ in range(count)]:
        answer = demonstration(task, rng)
        example = {"prompt": task.prompt, "response": answer, "verdict": verdict(task, answer)}
        examples.append(example)
    return examples


def held_out_prompts(count: int) -> list[str]:
    """Prompts of the exam, the same in every run."""
    rng = random.Random("held-out prompts, second exam")
    return [draw_task(rng, held_out=True).prompt for _ in range(count)]


def held_out_ranked(count: int) -> list[dict]:
    """The exam of the judge: groups of five answers of mixed quality, ranked by the truth.

    The people of the toy write them, so no model has an advantage.
    """
    rng = random.Random("held-out answers, second exam")
    groups = []
    for task in [draw_task(rng, held_out=True) for _ in range(count)]:
        answers = [demonstration(task, rng) for _ in range(5)]
        ranks = [5 - sum(points(task, answer)) for answer in answers]
        groups.append({"prompt": task.prompt, "responses": answers, "ranks": ranks})
    return groups


def toy_world(seed: int, *, limit: int, exam: int, ift: list | None, eft: list | None) -> World:
    """The toy as a world: at most `limit` examples of each kind of seed data.

    `ift` and `eft` replace what the people of the toy write. `exam` is the number of held-out
    prompts; a quarter as many groups of answers test the judge.
    """
    rng = random.Random(f"people {seed}")
    if ift is None:
        ift = ift_examples(limit, rng)
    if eft is None:
        eft = eft_examples(limit, rng)
    return World(
        ift=ift[:limit],
        eft=eft[:limit],
        groups=[],
        prompts=[example["prompt"] for example in ift],
        exam=Exam(held_out_prompts(exam), held_out_ranked(exam // 4), truth=oracle),
    )
