"""worlds/kinds.py and worlds/checked.py: requirements that a program can check.

The edits do what their kinds say, the checks are right about texts written by hand, and the truth
stays outside of the loop.
"""

import importlib
import itertools
import json
import random
import re
import shlex
from collections import Counter
from dataclasses import replace
from zlib import crc32

import pytest
from conftest import ROOT, assert_refused, command, leaning_gpt

from core.chat import Chat
from core.checklist import instruction_of, requirements_of, with_requirements
from core.config import Config
from core.errors import UserError
from core.files import read_jsonl, write_jsonl
from core.likeness import KnownPrompts, PromptText
from model import save
from worlds import checked
from worlds.checked import (
    MAX_WORDS,
    MIN_WORDS,
    QUESTIONS,
    add_requirements,
    check_answer,
    checked_truth,
    draw_demand,
    draw_demands,
    edited,
    exam_prompts,
    is_short,
    keeps,
    read_demand,
    seed_answers,
    seed_verdicts,
)
from worlds.kinds import KINDS, PLACES, SEEN, UNSEEN
from worlds.open_world import open_world

BY_NAME = {kind.name: kind for kind in KINDS}
SEEN_NAMES = {kind.name for kind in SEEN}
UNSEEN_NAMES = {kind.name for kind in UNSEEN}


# ---- texts of all sorts ----


WORDS = """rain falls on a green town where people make new paper boats and use the river well
    Anna says very little about music in winter NASA it is I know 7 or 12 letters""".split()  # noqa: SIM905


def clause(rng: random.Random) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(rng.randint(2, 12)))


def one_word(rng: random.Random) -> str:
    return rng.choice(["Yes", "no.", "Paris!", "WHY?", "7", "garden", "Müller", '"Hm"'])


def several_sentences(rng: random.Random) -> str:
    return " ".join(
        f"{clause(rng).capitalize()}, {clause(rng)}{rng.choice('.!?')}"
        for _ in range(rng.randint(1, 6))
    )


def lines_of_a_list(rng: random.Random) -> str:
    lines = [f"{rng.choice(['-', '*', '1.', '2)', ''])} {clause(rng)}." for _ in range(4)]
    return "\n".join(["My list:", *lines])


def quoting(rng: random.Random) -> str:
    said = f'"{clause(rng)}," she said. "{clause(rng)}?"'
    return rng.choice([said, f'He wrote "{clause(rng)}" on it.', f'"{clause(rng)}."'])


def foreign(rng: random.Random) -> str:
    words = ["été", "Ça", "naïve", "日本語", "Straße", "сад", "½", "“ja”", "…", "—", "✓", "Ünal"]
    return " ".join(rng.choice([*words, clause(rng)]) for _ in range(rng.randint(2, 9))) + "."


def awkward(rng: random.Random) -> str:
    """Texts on which an edit once failed."""
    return rng.choice(
        [
            "One.\n\n***\n\nTwo.",
            "* one\n* two\n* three",
            "It is 3.5 * 2 in the U.S. of old.",
            "As in section 1 and section 2.",
            "I came. I saw. I won.",
            "It was a life-changing event in the Schloßstraße",
            "what-you-see-is-what-you-get-" * 10,
        ]
    )


FAMILIES = (one_word, several_sentences, lines_of_a_list, quoting, foreign, awkward)


def any_text(rng: random.Random) -> str:
    return rng.choice(FAMILIES)(rng)


def with_marks(rng: random.Random, place: str) -> str:
    """What the requirements of other places left behind: the edits of a prompt meet such texts."""
    others = [kind for kind in KINDS if kind.place != place]
    return edited(any_text(rng), draw_demands(rng, others, rng.randint(1, 3)), rng, kept=0.6)


def has_case(text: str) -> bool:
    """A text without letters is neither in capitals nor in small letters, whatever one does."""
    return text.lower() != text.upper()


# ---- every kind ----


def test_kinds_and_places():
    """Guards against: fewer kinds than promised; two of one name, whose figures would be mixed.

    Also against: a kind that the exam alone has, in a place that training never meets.
    """
    assert len(KINDS) == len(BY_NAME) >= 20
    assert {*BY_NAME} == SEEN_NAMES | UNSEEN_NAMES
    assert not SEEN_NAMES & UNSEEN_NAMES
    assert len(UNSEEN) >= 5
    assert {kind.place for kind in KINDS} == {kind.place for kind in SEEN} == {*PLACES}


@pytest.mark.parametrize("name", BY_NAME)
def test_sentences_are_read_back(name):
    """Guards against: a requirement that is checked as another one, or with another number.

    Every sentence, with every argument.
    """
    kind = BY_NAME[name]
    assert len({*kind.sentences}) == len(kind.sentences) >= 2
    for values in itertools.product(*kind.values.values()):
        arguments = dict(zip(kind.values, values))
        for form in kind.sentences:
            sentence = form.format(**arguments)
            assert "\n" not in sentence, "a list has one line for each"
            read_kind, read_sentence, read_arguments = read_demand(sentence)
            assert (read_kind.name, read_sentence) == (name, sentence)
            assert read_arguments == arguments, sentence


@pytest.mark.parametrize(
    "sentence", ["", "Be nice.", "Use no commas", "Use fewer than ten words.", "- Use no commas."]
)
def test_no_sentence_no_demand(sentence):
    """Guards against: a line of a person's own list that is checked as something else."""
    assert read_demand(sentence) is None


@pytest.mark.parametrize("name", BY_NAME)
def test_edits_keep_and_spoil(name):
    """Guards against: demonstrations that were meant to keep a requirement and do not.

    Also against: a kind that no edit breaks, for which every judge example says yes.
    """
    kind = BY_NAME[name]
    rng = random.Random(name)
    for i in range(400):
        text = any_text(rng) if i % 2 else with_marks(rng, kind.place)
        if kind.place == "case" and not has_case(text):
            continue
        demand = draw_demand(rng, kind)
        _, sentence, arguments = demand
        good = kind.keep(text, rng, **arguments)
        assert keeps(demand, good), (sentence, text, good)
        for start in (text, good):
            bad = kind.spoil(start, rng, **arguments)
            assert not keeps(demand, bad), (sentence, start, bad)


def test_edits_leave_the_rest_as_it_is():
    """Guards against: demonstrations that teach a slip: "3. 5", "example. com", "Yes!!"."""
    rng = random.Random(0)
    text = 'It costs 3.5 euros at example.com. "Why?" she asked. Yes (no!), in the U.S. too.'
    sentences = {"It costs 3.5 euros at example.com.", '"Why?" she asked.'}
    for name in ("keyword", "keyword often", "bullets", "paragraphs"):
        kind = BY_NAME[name]
        _, _, arguments = draw_demand(rng, kind)
        if "n" in arguments:
            arguments["n"] = 2
        answer = kind.keep(text, rng, **arguments)
        assert all(sentence in answer for sentence in sentences), answer
        assert all(word in answer.split() for word in text.split()), answer
    exclamation = BY_NAME["exclamation"]
    assert exclamation.keep("Yes.", rng) == exclamation.keep("Yes?\n", rng) == "Yes!"


@pytest.mark.parametrize("kinds, least", [(SEEN, 0.99), (KINDS, 0.97)], ids=["seen", "all"])
def test_requirements_go_together(kinds, least):
    """Guards against: prompts that no answer can keep, where a perfect model looks half good."""
    rng = random.Random(0)
    together = []
    while len(together) < 2000:
        text = any_text(rng)
        if not has_case(text):
            continue
        demands = draw_demands(rng, kinds, rng.choice((1, 2, 3)))
        answer = edited(text, demands, rng, kept=1)
        together.append(all(keeps(demand, answer) for demand in demands))
    assert sum(together) >= least * len(together)


def test_a_prompt_asks_for_one_kind_of_a_place():
    """Guards against: all capitals and no capitals in one prompt; edits in an order that undoes
    them.
    """
    rng = random.Random(0)
    drawn = Counter()
    for _ in range(600):
        count = rng.choice((1, 2, 3))
        demands = draw_demands(rng, KINDS, count)
        places = [PLACES.index(kind.place) for kind, _, _ in demands]
        assert len(demands) == count
        assert places == sorted(set(places))
        drawn.update(kind.name for kind, _, _ in demands)
    assert {*drawn} == {*BY_NAME}


# ---- checks, on texts written by hand ----


CASES = [  # kind, arguments, texts that keep it, texts that break it
    ("few words", {"n": 5}, ["one two three four", "...", "a, b"], ["a b c d e", "a-b-c-d-e"]),
    ("many words", {"n": 3}, ["one two three", "it's so"], ["one two", "one. Two!", "- - - -"]),
    ("keyword", {"word": "river"}, ["A River.", "riverbank"], ["A stream.", "ri ver"]),
    (
        "keyword often",
        {"word": "river", "n": 2},
        ["River to river", "rivers, riverbank"],
        ["One river.", "riv er river"],
    ),
    ("word avoided", {"word": "use"}, ["We were used to it.", "because"], ["Use it.", "no USE!"]),
    (
        "bullets",
        {"n": 2},
        ["- one\n- two", "Two:\n* one\n  - two\nEnd.", "-one\n-two"],
        ["- one\n- two\n- three", "- one", "1. one\n2. two", "a - b - c"],
    ),
    (
        "numbered list",
        {"n": 2},
        ["1. one\n2. two", "Here:\n1) one\n  2) two\nIn 1999 too."],
        [
            "1. one\n3. two",
            "2. one\n1. two",
            "1. one\n2. two\n3. three",
            "1. one 2. two",
            "- a\n- b",
        ],
    ),
    (
        "paragraphs",
        {"n": 2},
        ["one\n***\ntwo", "one *** two", "***\none\n***\ntwo\n***"],
        ["one\n\ntwo", "one\n***\ntwo\n***\nthree", "one\n***\n***\ntwo", "one\n***"],
    ),
    (
        "sections",
        {"n": 2},
        ["Section 1: a\nSection 2: b", "SECTION 1\na\nsection2"],
        ["Section 1: a", "Section one\nSection two", "sections 1 and 2"],
    ),
    (
        "two answers",
        {},
        ["Yes.\n******\nNo.", "yes ****** no ******"],
        ["Yes.\n******\nYes.", "Yes.\n***\nNo.", "a\n******\nb\n******\nc", "Yes.\n******\n"],
    ),
    ("one line", {}, ["One. Two.", "One.\n", "\n\nOne."], ["One.\nTwo.", "- a\n- b", "a\n\nb"]),
    ("no commas", {}, ["One; two.", "eins、zwei"], ["One, two.", "1,000"]),
    ("exclamation", {}, ["Hi!", "a != b"], ["Hi.", "¡Hola"]),
    ("digits", {}, ["I have 3.", "M4"], ["I have three.", "½ of it", "IV"]),
    ("brackets", {}, ["One (two).", "f(x) and )("], ["One two.", "()", "[a]", "(a\nb)"]),
    (
        "placeholders",
        {"n": 2},
        ["Dear [name] of [town]", "[a][b]"],
        ["Dear [name]", "Dear (name) of (town)", "[one\ntwo] [three]"],
    ),
    (
        "highlights",
        {"n": 2},
        ["*one* and *two*", "**one**, *two*", "a *b c* d *e*"],
        ["*one* and two", "** ** * *", "*one\ntwo* *three"],
    ),
    ("title", {}, ["<<Rain>> It fell.", "It fell.\n<<Rain>>"], ["<Rain>", "<< >>", "<<a\nb>>"]),
    (
        "quotation marks",
        {},
        ['"All of it."', ' "\nTwo\nlines"\n', '""'],
        ['"', 'He said "no".', '"Half', "'single'", "“curly”"],
    ),
    (
        "opening phrase",
        {"phrase": "Of course"},
        ["Of course: yes.", "\n OF COURSE I do."],
        ["Yes, of course.", '"Of course."', "Of  course"],
    ),
    (
        "end phrase",
        {"phrase": "That is all."},
        ["Yes. That is all.", '"Yes. That is all."', "that is ALL.\n"],
        ["That is all. Yes.", "That is all", "That is all.)"],
    ),
    (
        "postscript",
        {},
        ["Bye. P.S. Write!", "p. s. write", "P.S. first"],
        ["Bye. PS Write!", "P S", "Bye."],
    ),
    ("question", {}, ["Why?", '"Yes. Or no?" ', "No!?\n"], ["Why? Because.", "Why", "?."]),
    (
        "signature",
        {"name": "Anna"},
        ["Bye. Signed Anna", "SIGNED ANNA", '"Bye. signed Anna"'],
        ["Signed Anna.", "Signed Anna Bye.", "Signed Boris", "Anna"],
    ),
    ("hashtag", {}, ["Rain. #rain", '"Rain #wet."', "#a #b!"], ["#rain falls", "Rain #", "rain"]),
    ("lower case", {}, ["all small.", "été 7 日本"], ["One capital.", "7", "aBc", "日本"]),
    ("capitals", {}, ["ALL LARGE.", "ÉTÉ 7"], ["ALMOST ALl", "7!", "A b"]),
    (
        "capital words",
        {"n": 2},
        ["It is VERY LOUD.", "I like NASA", "A B"],
        ["It is VERY loud.", "Very Loud", "1 2 3"],
    ),
]


def test_cases_for_every_kind():
    """Guards against: a check that nobody ever saw say yes and no."""
    assert {name for name, *_ in CASES} == {*BY_NAME}
    assert all(len(good) >= 2 and len(bad) >= 2 for _, _, good, bad in CASES)


@pytest.mark.parametrize("name, arguments, good, bad", CASES, ids=[case[0] for case in CASES])
def test_checks_by_hand(name, arguments, good, bad):
    """Guards against: a truth that is wrong, on which labels, exam and figures would agree."""
    demand = BY_NAME[name], "", arguments
    assert {text: keeps(demand, text) for text in good} == dict.fromkeys(good, True)
    assert {text: keeps(demand, text) for text in bad} == dict.fromkeys(bad, False)
    assert not any(keeps(demand, text) for text in ("", " ", "\n\t\n")), "silence keeps nothing"


# ---- prompts with a list, and their score ----


INSTRUCTIONS = [
    "Write a sentence about rain.",
    "Sum up:\n\n- one\n- two\n\nIn one line.",
    "What are the Requirements: of a visa?",
    "Name them.\n\nRequirements:\n- Use no commas.\n- A passport",
    "Requirements:\n- none",
]


@pytest.mark.parametrize("instruction", INSTRUCTIONS)
@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_list_is_read_back(instruction, count):
    """Guards against: an instruction's own lines read as requirements of the world."""
    demands = draw_demands(random.Random(instruction), KINDS, count)
    sentences = [sentence for _, sentence, _ in demands]
    prompt = with_requirements(instruction, sentences)
    assert instruction_of(prompt) == instruction
    assert requirements_of(prompt) == sentences
    assert {*check_answer(prompt, "So.")} == {kind.name for kind, _, _ in demands}


@pytest.mark.parametrize("prompt", ["Write a poem.", INSTRUCTIONS[1], INSTRUCTIONS[2], ""])
def test_without_a_list_there_is_no_truth(prompt):
    """Guards against: 0 or 5 points for a prompt that demands nothing that can be checked."""
    assert instruction_of(prompt) == prompt
    assert requirements_of(prompt) == []
    assert checked_truth(prompt, "So.") is None and check_answer(prompt, "So.") == {}


def test_a_list_of_other_demands_has_no_truth():
    """Guards against: a demand that no program can check counted as broken, or as kept."""
    prompt = with_requirements("Write a poem.", ["Be kind.", "Make it rhyme."])
    assert checked_truth(prompt, "So.") is None
    mixed = with_requirements("Write a poem.", ["Be kind.", "Use no commas."])
    assert check_answer(mixed, "One, two.") == {"no commas": False}
    assert (checked_truth(mixed, "One, two."), checked_truth(mixed, "One.")) == (0, 5)


def test_truth_by_hand():
    """Guards against: a truth off the scale from 0 to 5, or perfect where something is missing."""
    sentences = ["Use no commas.", "Use an exclamation mark.", 'Start with "In short".']
    scores = {}
    for count, instruction in itertools.product((1, 2, 3), INSTRUCTIONS):
        prompt = with_requirements(instruction, sentences[:count])
        answers = ["One, two.", "One.", "One!", "In short: one!", " "]
        scores[count] = [checked_truth(prompt, answer) for answer in answers]
        assert scores[count] == {1: [0, 5, 5, 5, 0], 2: [0, 2, 5, 5, 0], 3: [0, 2, 3, 5, 0]}[count]
    assert check_answer(prompt, "In short, one.") == {
        "no commas": False,
        "exclamation": False,
        "opening phrase": True,
    }


# ---- seed data ----


def examples_of(count: int) -> list[dict]:
    """Instructions with answers that can be edited. Each has a word of its own in every text."""
    rng = random.Random(0)
    examples = []
    for i in range(count):
        code = "x" + "".join("abcdefghij"[int(digit)] for digit in f"{i:04}")
        answer = f"The {code} is {clause(rng)}, {clause(rng)}. {clause(rng).capitalize()}."
        examples.append({"prompt": f"Tell me about {code} in short.", "response": answer})
    assert all(map(is_short, examples))
    return examples


def kinds_asked(prompts) -> Counter:
    sentences = [sentence for prompt in prompts for sentence in requirements_of(prompt)]
    return Counter(read_demand(sentence)[0].name for sentence in sentences)


def test_unseen_kinds_are_in_the_exam_only():
    """Guards against: "never trained on" said of what was trained on; an exam without a kind."""
    examples = examples_of(60)
    rng = random.Random(0)
    answers = kinds_asked(row["prompt"] for row in seed_answers(examples, 600, rng))
    new = kinds_asked(add_requirements("Say it.", f"0 finish 1 {i}") for i in range(600))
    verdicts = Counter(
        read_demand(row["prompt"])[0].name for row in seed_verdicts(examples, 600, rng)
    )
    assert {*answers} == {*new} == {*verdicts} == SEEN_NAMES
    exam = kinds_asked(exam_prompts(["Say it.", "Show it."], 256))
    assert {*exam} == {*BY_NAME}
    assert min(exam.values()) >= 4


def test_a_world_of_few_kinds(tmp_path):
    """Guards against: --kinds that training obeys and the exam does not, or new prompts.

    Also against: an exam that still calls kinds unseen which it no longer asks for.
    """
    few = {"title", "end phrase", "no commas", "hashtag", "few words"}
    settings = {"kinds": " end phrase,title, no commas,hashtag,few words", "eft_limit": 200}
    world = world_of(tmp_path, examples_of(80), exam=64, seed_limit=200, **settings)
    new = [world.finish_prompt("Say it.", f"{i}") for i in range(200)]
    verdicts = [read_demand(row["prompt"])[0].name for row in world.eft]
    for prompts in ([row["prompt"] for row in world.ift], new, world.exam.prompts):
        assert {*kinds_asked(prompts)} == few
    assert {*verdicts} == few and world.exam.unseen == []
    assert len(verdicts) == 200


@pytest.mark.parametrize("names", ["title", "title,title,title,title", "a,b,c,d", "", "title,,,"])
def test_kinds_that_nobody_has(tmp_path, names):
    with pytest.raises(UserError, match="--kinds takes all, or at least 4 of these.*end phrase"):
        world_of(tmp_path, examples_of(40), kinds=names)
    with pytest.raises(UserError, match="is for --world checked"):
        world_of(tmp_path, examples_of(40), kinds=names, world="people")


def test_prompts_have_one_to_three_requirements():
    """Guards against: prompts of one requirement only, for which truth is all or nothing."""
    prompts = [add_requirements("Say it.", f"{i}") for i in range(400)]
    counts = Counter(len(requirements_of(prompt)) for prompt in prompts)
    assert {*counts} == {1, 2, 3} and min(counts.values()) > 40
    assert add_requirements("Say it.", "7") == prompts[7], "a resumed run draws the same"


def test_demonstrations_of_requirements_are_of_mixed_quality():
    """Guards against: flawless demonstrations, where a loop has nothing to gain.

    Also against: a kind that demonstrations never show, which no loop could then choose.
    """
    kept = {name: [] for name in SEEN_NAMES}
    for row in seed_answers(examples_of(60), 1000, random.Random(0)):
        for kind, is_kept in check_answer(row["prompt"], row["response"]).items():
            kept[kind].append(is_kept)
    everything = [value for values in kept.values() for value in values]
    assert 0.45 < sum(everything) / len(everything) < 0.8
    for name, values in kept.items():
        assert 0.3 < sum(values) / len(values) < 0.9, name


@pytest.mark.parametrize("count", [400, 402])
def test_judge_data_is_balanced_and_right(count):
    """Guards against: a judge that learns to say yes to a kind, or from labels that are wrong.

    Also against: questions about one text that stand apart, or are the same question.
    """
    rows = seed_verdicts(examples_of(60), count, random.Random(0))
    surplus = Counter()
    assert len(rows) == count
    for row in rows:
        demand = read_demand(row["prompt"])
        assert row["verdict"] == ("yes" if keeps(demand, row["response"]) else "no")
        surplus[demand[0].name] += 1 if row["verdict"] == "yes" else -1
    assert {*surplus} == SEEN_NAMES
    assert max(map(abs, surplus.values())) <= 1
    groups = [rows[i : i + QUESTIONS] for i in range(0, count, QUESTIONS)]
    texts = [group[0]["response"] for group in groups]
    assert all(row["response"] == text for text, group in zip(texts, groups) for row in group)
    assert all(len({row["prompt"] for row in group}) == len(group) for group in groups)
    assert len({*texts}) > 0.9 * len(texts)


# ---- the world ----


def world_of(folder, examples: list[dict], **settings):
    write_jsonl(folder / "ift.jsonl", examples)
    files = {"model": "x", "world": "checked", "ift": str(folder / "ift.jsonl")}
    sizes = {"seed_limit": 150, "eft_limit": 200, "exam": 64}
    return open_world(Config(**(files | sizes | settings)), toy=False)


def is_held_out(prompt: str) -> bool:
    return crc32(prompt.encode()) % 5 == 0


def code_of(example: dict) -> str:
    return example["prompt"].split()[3]


def test_held_out_instructions_are_never_trained_on(tmp_path):
    """Guards against: figures on instructions, or on answers to them, that were learnt by heart."""
    examples = examples_of(200)
    world = world_of(tmp_path, examples)
    held_out = [example for example in examples if is_held_out(example["prompt"])]
    learnt = [row["response"] for row in world.ift + world.eft]
    learnt += [row["prompt"] for row in world.ift + world.eft] + world.prompts
    words = {word for text in learnt for word in re.findall(r"x[a-j]{4}", text.lower())}
    assert 20 < len(held_out) < 60
    assert not words & {code_of(example) for example in held_out}
    assert len(words) > 100, "the words are so rare that this test shows nothing"
    assert world.prompts == [e["prompt"] for e in examples if not is_held_out(e["prompt"])]
    asked = {instruction_of(prompt) for prompt in world.exam.prompts}
    assert asked == {example["prompt"] for example in held_out}
    assert all(len(requirements_of(prompt)) in (1, 2, 3) for prompt in world.exam.prompts)
    assert (len(world.ift), len(world.eft), len(world.exam.prompts)) == (150, 200, 64)
    assert world.groups == [], "ranks say nothing about requirements"


def test_the_exam_is_the_same_in_every_run(tmp_path):
    """Guards against: runs and lengths of an exam that cannot be compared."""
    examples = examples_of(100)
    world = world_of(tmp_path, examples)
    longer = world_of(tmp_path, examples, exam=256)
    assert longer.exam.prompts[:64] == world.exam.prompts
    assert len({*longer.exam.prompts}) > 250
    again = world_of(tmp_path, examples)
    other = world_of(tmp_path, examples, seed=1)
    assert (again.ift, again.eft) == (world.ift, world.eft)
    assert other.ift != world.ift and other.eft != world.eft
    assert other.exam.prompts == again.exam.prompts == world.exam.prompts


def test_judge_examples_of_a_file_are_taken_first(tmp_path):
    """Guards against: --eft that is read and not used, or added to the limit."""
    eft = [{"prompt": "Use no commas.", "response": "So.", "verdict": "yes"}] * 30
    write_jsonl(tmp_path / "eft.jsonl", eft)
    world = world_of(tmp_path, examples_of(60), eft=str(tmp_path / "eft.jsonl"), judge="checklist")
    assert [row for row in world.eft if row in eft] == eft
    assert len(world.eft) == 200


def test_ranked_answers_alone_will_do(tmp_path):
    """Guards against: --ranked without --ift that is refused, or whose worst answers are shown."""
    groups = []
    for example in examples_of(60):
        answers = ["It is bad and wrong, bad and wrong.", example["response"]]
        groups.append({"prompt": example["prompt"], "responses": answers, "ranks": [1, 0]})
    write_jsonl(tmp_path / "ranked.jsonl", groups)
    ranked = str(tmp_path / "ranked.jsonl")
    config = Config(model="x", world="checked", ranked=ranked, exam=8, seed_limit=40)
    world = open_world(config, toy=False)
    assert len(world.ift) == len(world.eft) == 40
    assert not any("bad" in row["response"].lower() for row in world.ift + world.eft)
    assert world.exam.groups == []
    assert not any(is_held_out(prompt) for prompt in world.prompts)


@pytest.mark.parametrize("case", ["short answers", "long answers", "training only", "exam only"])
def test_too_few_instructions(tmp_path, case):
    """Guards against: a run of hours on one instruction, or a crash without a sentence."""
    examples = examples_of(40)
    if case == "short answers":
        examples = [row | {"response": "one " * (MIN_WORDS - 1)} for row in examples]
    elif case == "long answers":
        examples = [row | {"response": "one " * (MAX_WORDS + 1)} for row in examples]
    else:
        wanted = case == "exam only"
        examples = [row for row in examples if is_held_out(row["prompt"]) == wanted]
    with pytest.raises(UserError, match=f"{MIN_WORDS} to {MAX_WORDS} words"):
        world_of(tmp_path, examples)


def test_the_toy_is_a_world_of_its_own(cwd):
    """Guards against: --world checked that is ignored where no model is named."""
    done = command("train.py", "--world", "checked", "--iters", 1)
    assert_refused(done, "--world checked", "--model")
    assert not (cwd / "runs").exists()


# ---- the truth stays outside ----


@pytest.fixture
def secret(monkeypatch) -> Counter:
    """The checks of all kinds fail a test, but where seed data is labelled and where people look.

    Returns how often they were called, by place.
    """
    places, calls = [], Counter()

    def guarded(check):
        def run_check(*args, **arguments):
            assert places, "training reads the truth"
            calls[places[-1]] += 1
            return check(*args, **arguments)

        return run_check

    def allowed(name: str, function):
        def run_function(*args, **more):
            places.append(name)
            try:
                return function(*args, **more)
            finally:
                places.pop()

        return run_function

    guards = {kind.name: replace(kind, check=guarded(kind.check)) for kind in KINDS}
    patterns = [(guards[kind.name], regex) for kind, regex in checked.PATTERNS]
    monkeypatch.setattr(checked, "PATTERNS", patterns)
    monkeypatch.setattr(checked, "KINDS", [guards[kind.name] for kind in KINDS])
    monkeypatch.setattr(checked, "SEEN", [guards[kind.name] for kind in SEEN])
    for place in ("worlds.open_world.open_world", "measure.exam.examine"):
        module, _, name = place.rpartition(".")
        monkeypatch.setattr(place, allowed(name, getattr(importlib.import_module(module), name)))
    table = importlib.import_module("measure.table")  # an example on the screen
    monkeypatch.setattr(table, "worked_example", allowed("example", table.worked_example))
    return calls


def test_a_run_without_the_truth(cwd, checkpoint, secret):
    """Guards against: a loop that reads the truth between seed data and exam.

    Also against: an exam that says nothing about kinds, the judge, or the pairs.
    """
    # a model that says little but y, n and its end: its yes and no can be read from the beginning
    chat = Chat(checkpoint)
    leaning = {chat.tokenizer.token_to_id("y"): 8, chat.tokenizer.token_to_id("n"): 8, chat.eos: 7}
    sizes = {"model_type": "llama", "max_position_embeddings": 2048}
    save(leaning_gpt(leaning, **sizes), checkpoint)
    write_jsonl(cwd / "ift.jsonl", examples_of(60))
    (cwd / "prompts.txt").write_text("".join(f"Speak of thing {i}.\n" for i in range(6)))
    settings = shlex.split(
        "--world checked --kinds all --ift ift.jsonl --prompts prompts.txt --n-prompts 6 --n 3 "
        "--iters 1 --seed-limit 4 --eft-limit 16 --exam 16 --exam-n 3 --max-new-tokens 8 "
        "--temperature 1 --replay 4 --json"
    )
    done = command("train.py", "--model", checkpoint, *settings)
    assert done.code == 0, done.err
    run = cwd / "runs" / "llama"
    assert {*secret} == {"open_world", "examine", "example"}
    assert all(count > 0 for count in secret.values())

    prompts = [row["prompt"] for row in read_jsonl(run / "t1" / "prompts.jsonl")]
    assert [instruction_of(p) for p in prompts] == [f"Speak of thing {i}." for i in range(6)]
    assert {*kinds_asked(prompts)} <= SEEN_NAMES
    verdicts = read_jsonl(run / "t1" / "verdicts.jsonl")
    asked = [requirements_of(prompts[row["id"]]) for row in verdicts]
    assert verdicts and [len(row["yes"]) for row in verdicts] == [len(one) for one in asked]
    first, second = json.loads(done.out)["models"]
    for row in (first, second):
        answers = read_jsonl(run / "exam" / f"{row['model']}.jsonl")
        assert {*row["kinds"]} == {*kinds_asked(answer["prompt"] for answer in answers)}
        assert all(0 <= share <= 1 for share in row["kinds"].values())
        truths = [answer["true_score"] for answer in answers]
        assert row["true_score"] == pytest.approx(sum(truths) / len(truths))
        by_prompt = [{*truths[i : i + 3]} for i in range(0, len(truths), 3)]
        assert any(len(group) > 1 for group in by_prompt), "else judge_own is missing"
        assert 0 <= row["judge_own"] <= 1
    shares = [second[name] for name in ("pairs_right", "pairs_wrong", "pairs_equal")]
    assert sum(shares) == pytest.approx(1)
    assert first["pairs_right"] is None


# ---- beside IFEval ----


DATA = ROOT.parent / "shared" / "data"


def test_no_training_prompt_is_like_one_of_ifeval():
    """Guards against: points in IFEval for prompts that were trained on (ROUGE-L below 0.7)."""
    if not (DATA / "ifeval.jsonl").exists():
        pytest.skip("../shared/data is absent: no instructions and no prompts to compare")
    examples = list(filter(is_short, read_jsonl(DATA / "instructions.jsonl")))
    asked = [row["prompt"] for row in read_jsonl(DATA / "ifeval.jsonl")]
    ifeval = KnownPrompts(asked, 0.7)
    rng = random.Random(0)
    prompts = [row["prompt"] for row in seed_answers(examples, 150, rng)]
    prompts += [add_requirements(rng.choice(examples)["prompt"], f"{i}") for i in range(150)]
    prompts += {instruction_of(prompt) for prompt in prompts}
    assert len(asked) == len(ifeval.texts) == 541
    for text in map(PromptText, prompts):
        assert text.line not in ifeval.lines
        assert not ifeval.like(text), text.line
    assert ifeval.like(PromptText(asked[0] + " Thank you.")), "a copy would be seen"
