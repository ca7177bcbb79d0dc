"""worlds/toy.py: a toy world in which the truth is known.

A task asks for a short list, for somebody:

    Count up from three to six for Mia.      ->  Mia: three, four, five, six.
    Give Bob two animals.                    ->  Bob: owl, cat.

People answer with mixed quality. `oracle` reads prompt and answer as text, and gives 0-5 points:

    relevant   at least one item belongs to the answer
    complete   nothing that the task asks for is missing
    exact      no item is wrong, extra, repeated, or out of order where the order matters
    personal   it is addressed to the right person
    clear      it begins with a capital letter and ends with a full stop

In: a Random, whose order of draws is part of the data.  Out: tasks, answers, verdicts, a `World`.
The oracle labels the seed data and marks the exam. Training never reads it.
Left out on purpose: what a small model could not learn in minutes (arithmetic, sorting, grammar).
"""

import re
from collections import Counter
from random import Random
from typing import NamedTuple
from zlib import crc32

from worlds.world import Exam, World


def words(text: str) -> list[str]:
    return text.split()


def pairs(text: str) -> dict[str, str]:
    """For example: "snow-white mud-brown" -> {"snow": "white", "mud": "brown"}."""
    return dict(pair.split("-") for pair in text.split())


def lists(text: str) -> dict[str, list[str]]:
    """For example: "a: x | y" -> {"a": ["x", "y"]}. Lines of one name make one list."""
    table = {}
    for line in text.strip().splitlines():
        name, entries = line.split(": ")
        table.setdefault(name, []).extend(entries.split(" | "))
    return table


NAMES = words("""Ana Bob Cleo Dan Eva Finn Gus Hana Ivo Jade Kim Leo
    Mia Nora Omar Pia Quin Rosa Sam Tara Uma Vic Wes Zoe""")
NUMBERS = words("""one two three four five six seven eight nine ten
    eleven twelve thirteen fourteen fifteen""")
DAYS = words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
KINDS = lists("""
animals: cat | dog | cow | fox | hen | pig | owl | bee | goat | duck
fruits: apple | pear | plum | fig | lemon | grape | peach | cherry
colours: red | blue | green | black | white | brown | yellow | pink
tools: saw | axe | hammer | drill | rake | spade | brush | nail
clothes: hat | coat | shoe | sock | scarf | glove | shirt | belt
foods: bread | rice | soup | cake | cheese | egg | jam | pie
""")
THINGS = [thing for kind, things in KINDS.items() if kind != "colours" for thing in things]
SHORT = [thing for thing in THINGS if len(thing) <= 4]
OPPOSITE = pairs("""hot-cold cold-hot big-small small-big fast-slow slow-fast old-new new-old
    wet-dry dry-wet happy-sad sad-happy hard-soft soft-hard open-shut shut-open full-empty
    empty-full dark-light light-dark long-short short-long good-bad bad-good""")
COLOUR = pairs("""snow-white grass-green coal-black blood-red sky-blue sun-yellow
    mud-brown milk-white leaf-green night-black sea-blue rose-pink""")
SOUND = pairs("""cow-moo dog-woof cat-meow duck-quack hen-cluck pig-oink
    bee-buzz owl-hoot goat-baa lion-roar snake-hiss frog-croak""")
TABLES = {"opposite": OPPOSITE, "colour": COLOUR, "sound": SOUND}
PHRASINGS = lists("""
tell: Tell {name} about {list}. | Name {list} for {name}. | {name} wants to hear about {list}.
tell: Please say {list} to {name}.
kind: Give {name} {n} {kind}. | Name {n} {kind} for {name}. | {name} needs {n} {kind}.
kind: Think of {n} {kind} for {name}.
up: Count up from {a} to {b} for {name}. | Count for {name} from {a} up to {b}.
up: {name} wants to count up from {a} to {b}.
down: Count down from {a} to {b} for {name}. | Count for {name} from {a} down to {b}.
down: {name} wants to count down from {a} to {b}.
say: Say {word} {n} times to {name}. | Repeat {word} {n} times for {name}.
say: {name} wants to hear {word} {n} times.
spell: Spell {word} for {name}. | How is {word} spelt? Tell {name}. | {name} wants to spell {word}.
days: Tell {name} the {n} days after {day}. | Which {n} days follow {day}? Tell {name}.
days: {name} asks for {n} days after {day}.
opposite: Tell {name} the opposite of {list}. | What is the opposite of {list}? Ask {name}.
opposite: {name} needs the opposite of {list}.
colour: Tell {name} the colour of {list}. | Which colour has {list}? Tell {name}.
colour: {name} asks for the colour of {list}.
sound: What does {list} say? Tell {name}. | Make the sound of {list} for {name}.
sound: {name} wants the sound of {list}.
""")
# what people put into an answer by mistake; in the other families one of THINGS
WORDS = {"up": NUMBERS, "down": NUMBERS, "spell": list("abcdefghijklmnoprstuwxy"), "days": DAYS}
WORDS |= {"opposite": list(OPPOSITE), "colour": KINDS["colours"], "sound": list(SOUND.values())}
FLAWS = words("missing extra wrong repeat double swap off-topic name capital stop")
ORDERED = ("up", "down", "spell", "days")  # in the other families the order of the items is free
POINTS = ("relevant", "complete", "exact", "personal", "clear")
RUBRIC = f"Judge the answer. One point each: {', '.join(POINTS)}.\n{{prompt}}\n{{response}}"


# ---- prompts: made from slots, and read back from their text ----
class Task(NamedTuple):
    """What a prompt asks for: these `items` or, where `kind` is set, any `n` of that kind."""

    prompt: str
    family: str
    name: str
    items: tuple[str, ...] = ()
    kind: str | None = None
    n: int = 0


def draw_task(rng: Random, *, held_out: bool = False) -> Task:
    """A random task. A checksum of the text holds a fixed tenth of all prompts out of training."""
    while True:
        family = rng.choice(list(PHRASINGS))
        phrasing = rng.choice(PHRASINGS[family])
        prompt = phrasing.format(**draw_slots(family, rng))
        if (crc32(prompt.encode()) % 10 == 0) == held_out:
            return read_task(prompt)


def draw_slots(family: str, rng: Random) -> dict[str, str]:
    """Random values for the slots that the phrasings of one family use."""
    low = rng.randrange(0, 11)
    high = low + rng.randrange(2, 5)
    a, b = (low, high) if family == "up" else (high, low)
    slots = {"a": NUMBERS[a], "b": NUMBERS[b], "name": rng.choice(NAMES)}
    if family == "tell" or family in TABLES:
        count = rng.randrange(2, 4)
        *first, last = rng.sample(list(TABLES.get(family, THINGS)), count)
        slots["list"] = f"{', '.join(first)} and {last}"
    return slots | {
        "n": NUMBERS[rng.randrange(1, 4)],
        "kind": rng.choice(list(KINDS)),
        "day": rng.choice(DAYS),
        "word": rng.choice(SHORT if family == "spell" else THINGS),
    }


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
    number = {slot: NUMBERS.index(slots[slot]) + 1 for slot in ("a", "b", "n") if slot in slots}
    listed = slots.get("list", "").replace(" and ", ", ").split(", ")
    if family == "kind":
        kind, n = slots["kind"], number["n"]
        return Task(prompt, family, slots["name"], (), kind, n) if n <= len(KINDS[kind]) else None
    if family == "up":
        items = NUMBERS[number["a"] - 1 : number["b"]]
    elif family == "down":
        items = NUMBERS[number["b"] - 1 : number["a"]][::-1]
    elif family == "days":
        first = DAYS.index(slots["day"]) + 1
        items = [DAYS[(first + i) % 7] for i in range(number["n"])]
    elif family == "say":
        items = [slots["word"]] * number["n"]
    elif family == "spell":
        items = list(slots["word"])
    else:
        items = listed if family == "tell" else [TABLES[family][word] for word in listed]
    return Task(prompt, family, slots["name"], tuple(items)) if items else None


# ---- answers: right ones, and the ways people get them wrong ----
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


def perfect(task: Task, rng: Random) -> Draft:
    """An answer without a mistake."""
    return Draft(task.name, list(task.items) or rng.sample(KINDS[task.kind], task.n))


def flawed(draft: Draft, flaw: str, *, task: Task, rng: Random) -> Draft:
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
        first = max(position, 1) - 1
        items[first : first + 2] = reversed(items[first : first + 2])
    elif flaw == "off-topic":
        items = perfect(draw_task(rng), rng).items
    name = rng.choice(NAMES) if flaw == "name" else draft.name
    return Draft(name, items, draft.capital and flaw != "capital", draft.stop and flaw != "stop")


def demonstration(task: Task, rng: Random) -> str:
    """An answer as people write them: about a fifth are perfect, others have up to three flaws."""
    draft = perfect(task, rng)
    [count] = rng.choices(range(4), weights=(18, 38, 28, 16))
    for flaw in rng.sample(FLAWS, count):
        draft = flawed(draft, flaw, task=task, rng=rng)
    return draft.text()


# ---- the truth ----
def points(task: Task, answer: str) -> tuple[bool, ...]:
    """The five points of the rubric, in the order of POINTS."""
    name, _, rest = answer.strip().partition(":")
    items = [item for item in rest.strip().removesuffix(".").split(", ") if item]
    right = set(task.items or KINDS[task.kind])
    distinct = set(items)
    relevant = not right.isdisjoint(items)
    if task.kind:
        complete = len(right & distinct) >= task.n
        exact = distinct <= right and len(items) == len(distinct) <= task.n
    else:
        complete = not Counter(task.items) - Counter(items)
        exact = not Counter(items) - Counter(task.items)
        if task.family in ORDERED:
            # `in` uses the iterator up, so each item must stand behind the one before it
            rest_of_task = iter(task.items)
            exact = all(item in rest_of_task for item in items)
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
def ift_examples(count: int, rng: Random) -> list[dict]:
    """Human demonstrations, of mixed quality: {"prompt", "response"}."""
    tasks = [draw_task(rng) for _ in range(count)]
    return [{"prompt": task.prompt, "response": demonstration(task, rng)} for task in tasks]


def eft_examples(count: int, rng: Random) -> list[dict]:
    """Judged answers: {"prompt", "response", "verdict"}; the oracle plays the people who judged."""
    examples = ift_examples(count, rng)
    for example in examples:
        task = read_task(example["prompt"])
        example["verdict"] = verdict(task, example["response"])
    return examples


def held_out_prompts(count: int) -> list[str]:
    """Prompts of the exam, the same in every run."""
    rng = Random("held-out prompts, second exam")
    return [draw_task(rng, held_out=True).prompt for _ in range(count)]


def held_out_ranked(count: int) -> list[dict]:
    """The exam of the judge: groups of five answers by the people of the toy, ranked by truth."""
    rng = Random("held-out answers, second exam")
    groups = []
    for task in [draw_task(rng, held_out=True) for _ in range(count)]:
        answers = [demonstration(task, rng) for _ in range(5)]
        ranks = [5 - sum(points(task, answer)) for answer in answers]
        groups.append({"prompt": task.prompt, "responses": answers, "ranks": ranks})
    return groups


def toy_world(seed: int, *, limit: int, exam: int, ift: list | None, eft: list | None) -> World:
    """At most `limit` examples of each kind, and an exam of `exam` prompts and a quarter as many
    groups of answers. `ift` and `eft` replace what the people of the toy write.
    """
    rng = Random(f"people {seed}")
    ift = ift_examples(limit, rng) if ift is None else ift
    eft = eft_examples(limit, rng) if eft is None else eft
    prompts = [example["prompt"] for example in ift]
    held_out = Exam(held_out_prompts(exam), held_out_ranked(exam // 4), truth=oracle)
    return World(ift[:limit], eft[:limit], groups=[], prompts=prompts, exam=held_out)
