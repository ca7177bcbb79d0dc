"""worlds/checked.py: the checked world: instructions of people with requirements of a program.

    Write a sentence about rain.

    Requirements:
    - Use no commas.
    - End with the exact phrase "That is all."

In: instructions with answers, from files of people.  Out: a `World` for a real model, whose truth
no model wrote: which requirements an answer keeps. It labels the seed data and marks the exam;
between these two, nothing reads it. The seed answers are those of people, edited to keep a
requirement or to break it, as what no answer ever shows, no loop can choose. Some kinds of
requirement are in the exam only.
Left out on purpose: whether an answer serves its instruction. A program cannot check that.
"""

import re
from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from random import Random

from core.checklist import requirements_of, with_requirements
from core.config import Config
from core.errors import UserError
from worlds.kinds import KINDS, PLACES, SEEN, UNSEEN, Kind
from worlds.people import best_answers, gather, prompts_of, split_off_exam
from worlds.world import Exam, World

KEPT = 0.6  # share of the requirements that a seed answer is edited to keep
SIGNS = {"yes": 1, "no": -1}
QUESTIONS = 4  # asked about one text in the judge data
MIN_WORDS = 5  # of a seed answer: shorter ones leave nothing to edit
MAX_WORDS = 50  # longer ones take longer, and teach nothing more about requirements
NUMBERS_OF_REQUIREMENTS = (1, 1, 2, 2, 3)  # one of these is drawn for each prompt

# of arguments
SHAPES = {"n": r"\d+", "word": r"\w+", "name": r"\w+", "phrase": ".+"}

Demand = tuple[Kind, str, dict]  # a kind, its sentence, and the arguments of its check


# ---- requirements: drawn, and read back from their sentence ----


def draw_demand(rng: Random, kind: Kind) -> Demand:
    arguments = {name: rng.choice(values) for name, values in kind.values.items()}
    return kind, rng.choice(kind.sentences).format(**arguments), arguments


def draw_demands(rng: Random, kinds: Sequence[Kind], count: int) -> list[Demand]:
    """Requirements that one answer can keep together, in the order in which edits make them."""
    order = rng.sample(list(kinds), len(kinds))
    by_place = {kind.place: kind for kind in order}  # one kind of each place
    chosen = list(by_place.values())[:count]
    chosen.sort(key=lambda kind: PLACES.index(kind.place))
    return [draw_demand(rng, kind) for kind in chosen]


def kinds_of(names: str | None) -> tuple[list[Kind], list[Kind]]:
    """The kinds that training sees, and those that only the exam has.

    With names, separated by commas, both see these kinds alone. "all", or no names, are those that
    training may see. Raises UserError for other names.
    """
    if names in (None, "all"):
        return list(SEEN), list(UNSEEN)
    by_name = {kind.name: kind for kind in KINDS}
    wanted = [name.strip() for name in names.split(",")]
    unknown = [name for name in wanted if name not in by_name]
    if unknown or len(set(wanted)) < QUESTIONS:
        raise UserError(
            f"--kinds takes all, or at least {QUESTIONS} of these, separated by commas: "
            f"{', '.join(by_name)}; not {names!r}."
        )
    return [kind for name, kind in by_name.items() if name in wanted], []


def pattern(sentence: str) -> re.Pattern[str]:
    """What finds the arguments in a sentence. The same argument may occur in it once only."""
    parts = re.split(r"\{(\w+)\}", sentence)
    fixed = [re.escape(part) for part in parts[::2]]
    groups = [f"(?P<{name}>{SHAPES[name]})" for name in parts[1::2]] + [""]
    return re.compile("".join(text + group for text, group in zip(fixed, groups, strict=True)))


PATTERNS = [(kind, pattern(sentence)) for kind in KINDS for sentence in kind.sentences]


def read_demand(sentence: str) -> Demand | None:
    """A sentence -> what it asks for; None where this world has no such sentence."""
    for kind, regex in PATTERNS:
        match = regex.fullmatch(sentence)
        if match:
            arguments = match.groupdict()
            if "n" in arguments:
                arguments["n"] = int(arguments["n"])
            return kind, sentence, arguments
    return None


# ---- the truth ----


def keeps(demand: Demand, response: str) -> bool:
    """Whether a text keeps a requirement. An empty text keeps none."""
    kind, _, arguments = demand
    return response.strip() != "" and kind.check(response, **arguments)


def check_answer(prompt: str, response: str) -> dict[str, bool]:
    """Kind -> whether the answer keeps the prompt's requirement of that kind."""
    found = {}
    for sentence in requirements_of(prompt):
        demand = read_demand(sentence)
        if demand is not None:
            kind, _, _ = demand
            found[kind.name] = keeps(demand, response)
    return found


def checked_truth(prompt: str, response: str) -> int | None:
    """0 to 5: the share of the requirements that are kept. None where the prompt has none."""
    found = check_answer(prompt, response)
    if not found:
        return None
    share = sum(found.values()) / len(found)
    return round(5 * share)


# ---- seed data ----


def add_requirements(instruction: str, key: str, kinds: Sequence[Kind] = SEEN) -> str:
    """A new prompt: an instruction with requirements that training may see, drawn by `key`."""
    rng = Random(f"requirements {key}")
    return demanding(instruction, draw_demands(rng, kinds, rng.choice(NUMBERS_OF_REQUIREMENTS)))


def demanding(instruction: str, demands: Sequence[Demand]) -> str:
    return with_requirements(instruction, [sentence for _, sentence, _ in demands])


def edited(text: str, demands: Sequence[Demand], rng: Random, kept: float) -> str:
    """The text with an edit for each requirement: it keeps a share `kept` of them."""
    for kind, _, arguments in demands:
        edit = kind.keep if rng.random() < kept else kind.spoil
        text = edit(text, rng, **arguments)
    return text


def seed_answers(
    examples: Sequence[dict], count: int, rng: Random, kinds: Sequence[Kind] = SEEN
) -> list[dict]:
    """`count` demonstrations of mixed quality: {"prompt", "response"}."""
    rows = []
    for _ in range(count):
        example = rng.choice(examples)
        demands = draw_demands(rng, kinds, rng.choice(NUMBERS_OF_REQUIREMENTS))
        response = edited(example["response"], demands, rng, KEPT)
        rows.append({"prompt": demanding(example["prompt"], demands), "response": response})
    return rows


def seed_verdicts(
    examples: Sequence[dict], count: int, rng: Random, kinds: Sequence[Kind] = SEEN
) -> list[dict]:
    """`count` judge examples: {"prompt": a requirement, "response", "verdict": yes or no}.

    QUESTIONS of them stand together and ask about one text. Yes and no are as common in each kind.
    """
    balance: dict[str, int] = defaultdict(int)  # kind -> how many more yes than no so far
    rows: list[dict] = []
    while len(rows) < count:
        # 1) a text, and what can be asked about it: first what it was edited for
        demands = draw_demands(rng, kinds, 3)
        text = edited(rng.choice(examples)["response"], demands, rng, 0.5)
        demands += [draw_demand(rng, kind) for kind in rng.sample(kinds, len(kinds))]
        # 2) the first questions whose answer is not too common already
        questions: dict[str, dict] = {}  # kind -> the one question about it
        for demand in demands:
            name = demand[0].name
            verdict = "yes" if keeps(demand, text) else "no"
            if balance[name] * SIGNS[verdict] <= 0 and len(questions) < QUESTIONS:
                question = {"prompt": demand[1], "response": text, "verdict": verdict}
                questions.setdefault(name, question)
        if len(questions) < QUESTIONS:
            continue  # most kinds have had one too many of the answer that this text gives
        for name, question in questions.items():
            balance[name] += SIGNS[question["verdict"]]
        rows += questions.values()
    return rows[:count]


# ---- the world ----


def exam_prompts(
    instructions: Sequence[str], count: int, kinds: Sequence[Kind] = KINDS
) -> list[str]:
    """Held-out instructions with requirements of these kinds. The same in every run."""
    rng = Random("checked exam")
    prompts = []
    for i in range(count):
        demands = draw_demands(rng, kinds, NUMBERS_OF_REQUIREMENTS[i % 5])
        prompts.append(demanding(instructions[i % len(instructions)], demands))
    return prompts


def checked_world(config: Config, ift: list[dict], eft: list[dict]) -> World:
    """The instructions of people, with requirements. Of ranked answers the best is taken too.

    A fifth of the instructions is in the exam only. Raises UserError where too few of them have an
    answer of MIN_WORDS to MAX_WORDS words.
    """
    ift, ranked, notes = gather(config, ift)
    ift = [*ift, *best_answers(ranked)]
    examples, held_out = split_off_exam(list(filter(is_short, ift)))
    if not (examples and held_out):
        raise UserError(
            f"--world checked needs instructions whose answers have {MIN_WORDS} to {MAX_WORDS} "
            f"words (--ift, --ranked, --oasst); {len(examples)} for training and {len(held_out)} "
            f"for the exam were found."
        )
    seen, unseen = kinds_of(config.kinds)
    rng = Random(f"checked {config.seed}")
    answers = seed_answers(examples, config.seed_limit, rng, seen)
    eft = split_off_exam(eft)[0][: config.most_eft()]
    verdicts = seed_verdicts(examples, config.most_eft() - len(eft), rng, seen)
    prompts = prompts_of(examples)
    exam = Exam(
        exam_prompts(prompts_of(held_out), config.exam, seen + unseen),
        [],  # ranked answers have no requirements: judge.py --file measures them
        checked_truth,
        check_answer,
        [kind.name for kind in unseen],
    )
    finish = partial(add_requirements, kinds=seen)
    return World(answers, verdicts + eft, [], prompts, exam, finish_prompt=finish, notes=notes)


def is_short(example: dict) -> bool:
    answer = len(example["response"].split())
    return MIN_WORDS <= answer <= MAX_WORDS and len(example["prompt"].split()) <= MAX_WORDS
