"""measure/ifeval.py and `evaluate.py DIR --ifeval FILE`.

The last part compares every check with the reference checker, which the package lm-eval holds. It
is skipped where that package or ../shared/data is absent. A requirements file cannot say --no-deps:

    pip install --no-deps lm-eval==0.4.13 langdetect==1.0.9 immutabledict==4.3.1 nltk==3.10.4
    pip install six regex

Two things of the reference are replaced there: its language detector always says "en", as ours are
checks of the case alone, and words are split without a sentence splitter first, which needs data.
"""

import functools
import importlib
import json
import random
import sys
import types
from pathlib import Path

import pytest
import torch
from conftest import ROOT, assert_refused, command

from core.chat import Chat
from core.device import pick_dtype
from core.draw import Sampling
from core.errors import UserError
from core.files import read_jsonl, read_ranked, write_jsonl
from core.records import Candidate
from measure.ifeval import (
    DemandingPrompt,
    checkable_prompts,
    ifeval_figures,
    ifeval_text,
    read_ifeval,
)
from model import load
from sample import Writer, respond
from worlds.requirements import CHECKS, LEFT_OUT, Requirement, loose_variants

SENTENCES = "length_constraints:number_sentences"
LANGUAGE = "language:response_language"

# ---- every check, kept and broken ----

CASES = [  # kind, arguments, texts that keep it, texts that break it
    (
        "keywords:existence",
        {"keywords": ["cat", "U.S."]},
        ["A Cat in the u.s. of old", "concatenate U.S.A"],
        ["cat", "U.S.", "cat UxSx"],
    ),
    (
        "keywords:frequency",
        {"keyword": " war ", "frequency": 2, "relation": "at least"},
        ["war and War", "toward a warm one"],
        ["war", "peace"],
    ),
    (
        "keywords:frequency",
        {"keyword": "war", "frequency": 2, "relation": "less than"},
        ["war", "peace"],
        ["war and War"],
    ),
    (
        "keywords:forbidden_words",
        {"forbidden_words": ["bark", "run"]},
        ["We embarked.", "Rerun it."],
        ["BARK!", "a run", "dogs-bark"],
    ),
    (
        "keywords:letter_frequency",
        {"letter": "O", "let_frequency": 3, "let_relation": "at least"},
        ["Ooo", "to go on"],
        ["go on"],
    ),
    (
        "keywords:letter_frequency",
        {"letter": "#", "let_frequency": 2, "let_relation": "less than"},
        ["# one", "none"],
        ["# and #"],
    ),
    (
        "length_constraints:number_words",
        {"num_words": 3, "relation": "at least"},
        ["one two three", "it's two", "a-b-c"],
        ["one two", "one, ... two!"],
    ),
    (
        "length_constraints:number_paragraphs",
        {"num_paragraphs": 2},
        ["a\n***\nb", "*** a *** b ***", "a***b"],
        ["a\n\nb", "a *** *** b", "a *** b *** c", "a ****** b"],
    ),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "It"},
        ["a\n\nit is", "a\n\nIT, b", "a\n\n'it's", 'a\n\n"It" is', "a\n\nit\n\n"],
        ["it\n\na", "a\nit", "a\n\nits", "a\n\nit\n\nb", "\n\na\n\nit", "a\n\n(it) is"],
    ),
    (
        "detectable_content:number_placeholders",
        {"num_placeholders": 2},
        ["[name] [address]", "[] [a b] [c]"],
        ["[name]", "[name\naddress] [x", "(a) (b)"],
    ),
    (
        "detectable_content:postscript",
        {"postscript_marker": "P.S."},
        ["Bye\nP.S. you", "Bye. p. s. you", "P.S."],
        ["Bye\nPS: you", "P.S you", "P.P.S you", ""],
    ),
    (
        "detectable_content:postscript",
        {"postscript_marker": "P.P.S"},
        ["Bye\nP.P.S you", "p. p. s"],
        ["P.S. you", "PPS"],
    ),
    (
        "detectable_content:postscript",
        {"postscript_marker": "N.B."},
        ["Bye. n.b. this"],
        ["nxbx this"],
    ),
    (
        "detectable_format:number_bullet_lists",
        {"num_bullets": 2},
        ["* a\n* b", "- a\n  - b", "x\n*a\n-b\n**bold** line"],
        ["* a", "* a\n* b\n- c", "• a\n• b", "* a\n** b", "* a\n---\n- b"],
    ),
    (
        "detectable_format:constrained_response",
        {},
        ["My answer is yes.", "Well. My answer is maybe. Sorry."],
        ["My answer is yes", "my answer is no.", "Yes."],
    ),
    (
        "detectable_format:number_highlighted_sections",
        {"num_highlights": 2},
        ["*a* and *b*", "**a** and **b c**", "*a* **b**"],
        ["*a*", "**a**", "* a\n* b", "** ** *a*", "****"],
    ),
    (
        "detectable_format:multiple_sections",
        {"section_spliter": "Section", "num_sections": 2},
        ["Section 1\na\nSection 2\nb", "Section1 a Section2 b", "Section 1, 2 and Section 3"],
        ["Section 1", "section 1 section 2", "Section A Section B", "SECTION 1 SECTION 2"],
    ),
    (
        "detectable_format:json_format",
        {},
        ['{"a": 1}', '```json\n{"a": 1}\n```', "```\n[1]\n```", " 3 "],
        ["{'a': 1}", '{"a": 1} as JSON', "```python\n[1]\n```", "[" * 100_000],
    ),
    (
        "detectable_format:title",
        {},
        ["<<Joy>>\nText", "a <<b>> c"],
        ["<Joy>", "<< >>", "<<>>", "<<a\nb>>", "<<<>>>"],
    ),
    (
        "combination:two_responses",
        {},
        ["a ****** b", "******a******b******"],
        ["a", "a ****** a", "a ****** b ****** c", "a ****** ****** b", "a *** b"],
    ),
    (
        "combination:repeat_prompt",
        {"prompt_to_repeat": "Say hi. "},
        ["Say hi. Hi!", "  say HI.\nHi!"],
        ["Hi! Say hi.", "Say hi, Hi!"],
    ),
    (
        "startend:end_checker",
        {"end_phrase": "The end."},
        ["a. The end.", 'a "the END."', " the end. \n"],
        ["The end. a", "the end", "The end.)"],
    ),
    ("startend:quotation", {}, ['"a"', ' "a" b "c" \n'], ['"', '"a', "'a'", '"a" b', "“a”"]),
    (
        "change_case:capital_word_frequency",
        {"capital_frequency": 2, "capital_relation": "at least"},
        [
            "I am OK",
            "I'M",
            "CAN'T",
            "CANNOT",
            "A B",
            "(NASA)ESA",
            "U.S. 10AM",
            "one—TWO III",
            "I-X, C3PO!",
        ],
        ["OK", "U.S.", "I'm", "A-B", "Ok No", "10 20", "NATO-based EU", "a.B.C"],
    ),
    (
        "change_case:capital_word_frequency",
        {"capital_frequency": 1, "capital_relation": "less than"},
        ["none of it", "McDonald"],
        ["I do"],
    ),
    ("change_case:english_capital", {}, ["ALL OF 3!"], ["ALL of it", "3!"]),
    ("change_case:english_lowercase", {}, ["all of 3!"], ["All of it", "3!"]),
    ("punctuation:no_comma", {}, ["a; b", "a، b"], ["a, b"]),
]


@pytest.mark.parametrize("kind, arguments, kept, broken", CASES)
def test_a_check(kind, arguments, kept, broken):
    """Guards against: a check that says yes to everything, or reads its argument wrongly."""
    requirement = Requirement(kind, arguments)
    assert [text for text in kept if not requirement.met(text)] == []
    assert [text for text in broken if requirement.met(text)] == []


def test_every_kind_has_a_case():
    assert {kind for kind, *_ in CASES} == set(CHECKS)
    assert len(CHECKS) + len(LEFT_OUT) == 25
    assert not CHECKS.keys() & LEFT_OUT.keys()


@pytest.mark.parametrize("text", ["", "  \n "])
def test_an_empty_text_meets_nothing(text):
    """Guards against: silence that uses no comma."""
    requirement = Requirement("punctuation:no_comma", {})
    assert not requirement.met(text) and not requirement.met_loosely(text)


def test_loose_variants():
    """Guards against: a variant that is missing, or that takes the wrong line."""
    assert loose_variants("*a*\n\nb\nc") == [
        "*a*\n\nb\nc",
        "b\nc",
        "*a*\n\nb",
        "b",
        "a\n\nb\nc",
        "b\nc",
        "a\n\nb",
        "b",
    ]
    assert loose_variants("a") == ["a", "", "", ""] * 2


@pytest.mark.parametrize(
    "text, kind, arguments",
    [
        ("Sure, here it is:\nno comma", "punctuation:no_comma", {}),
        ("no comma\nHope this helps, friend.", "punctuation:no_comma", {}),
        ("Sure, here:\nno comma\nYours, me", "punctuation:no_comma", {}),
        ('**"a"**', "startend:quotation", {}),
        ('Here:\n*"a"*', "startend:quotation", {}),
        ("a\n**The** end\nBye", "startend:end_checker", {"end_phrase": "the end"}),
    ],
)
def test_loose_forgives_a_frame(text, kind, arguments):
    """Guards against: loose figures that equal the strict ones."""
    requirement = Requirement(kind, arguments)
    assert not requirement.met(text)
    assert requirement.met_loosely(text)
    assert not requirement.met_loosely("a, b\nc, d\ne, f\ng, h".replace("a", "q"))


# ---- the reader ----

WORDS = {"relation": "at least", "num_words": 3}


def line(prompt: object = "Say it.", kinds: object = None, kwargs: object = None) -> dict:
    kinds = ["length_constraints:number_words"] if kinds is None else kinds
    kwargs = [WORDS] if kwargs is None else kwargs
    return {"key": 1, "prompt": prompt, "instruction_id_list": kinds, "kwargs": kwargs}


def test_read_ifeval(tmp_path):
    """Guards against: arguments given to another requirement; nulls taken for arguments."""
    kinds = ["punctuation:no_comma", "length_constraints:number_words", LANGUAGE]
    nulls = {"letter": None, "language": None}
    kwargs = [nulls, WORDS | nulls, {"language": "de"}]
    write_jsonl(tmp_path / "a.jsonl", [line(kinds=kinds, kwargs=kwargs), line()])
    first, second = read_ifeval(tmp_path / "a.jsonl")
    assert first.prompt == "Say it."
    assert [r.kind for r in first.requirements] == kinds
    assert [r.arguments for r in first.requirements] == [{}, WORDS, {"language": "de"}]
    assert not first.checkable() and second.checkable()
    assert checkable_prompts([first, second]) == [second]
    with pytest.raises(UserError, match=LANGUAGE):
        checkable_prompts([first])


KEYWORDS = ["keywords:existence"]
MALFORMED = {  # what is wrong: a line, and words of the sentence that says so
    "no prompt": ({"instruction_id_list": [], "kwargs": []}, "prompt"),
    "an empty prompt": (line(prompt=" "), "'prompt'"),
    "a prompt that is no text": (line(prompt=3), "'prompt'"),
    "no list": (line(kinds="punctuation:no_comma", kwargs=[{}]), "lists"),
    "nothing demanded": (line(kinds=[], kwargs=[]), "one at least"),
    "fewer arguments": (line(kwargs=[]), "one length"),
    "an unknown kind": (line(kinds=["keywords:rhyme"]), "'keywords:rhyme'"),
    "a kind that is no text": (line(kinds=[["a"]]), "['a']"),
    "arguments that are no object": (line(kwargs=[3]), "'kwargs'"),
    "a missing argument": (line(kwargs=[{"num_words": 3}]), "relation (str)"),
    "an argument too many": (line(kwargs=[WORDS | {"letter": "a"}]), "number_words takes"),
    "an argument for nothing": (line(kinds=["punctuation:no_comma"]), "no arguments"),
    "a number as text": (line(kwargs=[WORDS | {"num_words": "3"}]), "num_words (int)"),
    "another relation": (line(kwargs=[WORDS | {"relation": "at most"}]), "at most"),
    "no keywords": (line(kinds=KEYWORDS, kwargs=[{"keywords": []}]), "keywords (list)"),
    "a keyword that is no text": (line(kinds=KEYWORDS, kwargs=[{"keywords": [1]}]), "(list)"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_rows(tmp_path, case):
    """Guards against: a traceback after an hour of answering, or a check of the wrong thing."""
    row, says = MALFORMED[case]
    write_jsonl(tmp_path / "a.jsonl", [line(), row])
    with pytest.raises(UserError) as error:
        read_ifeval(tmp_path / "a.jsonl")
    assert "a.jsonl, line 2" in str(error.value)
    assert says in str(error.value)


# ---- figures ----


def answered(*texts: str, finished: bool = True) -> list[Candidate]:
    return [Candidate(i, 0, "x", text, [7] * 4, finished) for i, text in enumerate(texts)]


def test_figures_by_hand():
    """Guards against: shares over the wrong whole; a prompt judged by half of its demands."""
    comma = Requirement("punctuation:no_comma", {})
    quoted = Requirement("startend:quotation", {})
    sentences = Requirement(SENTENCES, {"num_sentences": 3, "relation": "less than"})
    prompts = [
        DemandingPrompt("a", [comma]),
        DemandingPrompt("b", [comma, sentences]),
        DemandingPrompt("c", [comma, quoted]),
        DemandingPrompt("d", [comma, quoted, sentences, sentences]),
        DemandingPrompt("e", [quoted]),
    ]
    figures = ifeval_figures(prompts, answered("plain", "no quotes", 'Sure,\n"quoted"'))
    assert (figures["prompts"], figures["prompts_left_out"]) == (3, 2)
    assert figures["left_out"] == {LANGUAGE: 0, SENTENCES: 3}
    assert figures["instructions"] == 4
    assert figures["prompt_strict"] == pytest.approx(1 / 3)
    assert figures["instruction_strict"] == pytest.approx(2 / 4)
    assert figures["prompt_loose"] == pytest.approx(2 / 3)
    assert figures["instruction_loose"] == pytest.approx(3 / 4)
    assert (figures["finished_rate"], figures["mean_length"]) == (1, 4)
    for name in ("prompt_strict", "instruction_strict", "prompt_loose", "instruction_loose"):
        low, high = figures[f"{name}_interval"]
        assert 0 <= low < figures[name] < high <= 1
    lines = ifeval_text(figures).splitlines()
    assert len(lines) == 3
    assert "3 of 5 prompts" in lines[0] and f"{SENTENCES} (3)" in lines[0]
    assert lines[1].startswith("strict: prompts 33.3% (")
    assert lines[2].startswith("loose: prompts 66.7% (")
    with pytest.raises(ValueError):
        ifeval_figures(prompts, answered("plain"))


def test_the_interval_is_over_prompts():
    """Guards against: demands of one prompt taken for independent draws."""
    comma = Requirement("punctuation:no_comma", {})
    prompts = [DemandingPrompt("a", [comma] * 3)] * 40
    figures = ifeval_figures(prompts, answered(*["a", "a, b"] * 20))
    assert figures["instruction_strict"] == figures["prompt_strict"] == 0.5
    assert figures["instruction_strict_interval"] == figures["prompt_strict_interval"]


# ---- the command ----


@pytest.fixture
def demands(checkpoint) -> Path:
    kinds = ["punctuation:no_comma", "startend:quotation"]
    rows = [
        line("Say it.", kinds[:1], [{}]),
        line("In German.", [LANGUAGE], [{"language": "de"}]),
        line("Why?", kinds, [{}, {}]),
        line("How so?"),
    ]
    write_jsonl(checkpoint.parent / "demands.jsonl", rows)
    return checkpoint.parent


def test_one_model_is_checked(demands):
    """Guards against: figures of other texts than the model wrote; prompts asked for nothing."""
    args = ["evaluate.py", "llama", "--ifeval", "demands.jsonl", "--max-new-tokens", 9]
    done = command(*args)
    report = json.loads(command(*args, "--json").out)
    rows = read_ifeval("demands.jsonl")
    model = load("llama", dtype=pick_dtype("auto", torch.device("cpu")))
    writer = Writer(model, Chat("llama"))
    prompts = ["Say it.", "Why?", "How so?"]
    answers = respond(writer, prompts, Sampling(9, 0.7, 0.9), key="0", label=None)
    assert report == ifeval_figures(rows, answers)
    assert (report["prompts"], report["prompts_left_out"], report["instructions"]) == (3, 1, 4)
    assert done.code == 0 and done.out == ifeval_text(report) + "\n"
    fewer = json.loads(command(*args, "--json", "--count", 3).out)
    assert (fewer["prompts"], fewer["prompts_left_out"]) == (2, 1)


@pytest.mark.parametrize(
    "args, says",
    [
        ("llama llama --ifeval demands.jsonl", "one model"),
        ("llama --ifeval demands.jsonl --judge llama", "--judge"),
        ("llama --ifeval demands.jsonl --prompts demands.jsonl", "--prompts"),
        ("llama --ifeval nowhere.jsonl", "nowhere.jsonl"),
        ("nowhere --ifeval demands.jsonl", "nowhere"),
        ("llama --ifeval demands.jsonl --count 0", "--count"),
        ("llama --judge llama --prompts demands.jsonl", "second model"),
        ("llama", "--prompts"),
    ],
)
def test_mistakes_with_ifeval(demands, args, says):
    """Guards against: an option that is obeyed by half."""
    assert_refused(command("evaluate.py", *args.split()), says)


# ---- the reference ----

DATA = ROOT.parent / "shared" / "data"
KEEP = {  # an edit that makes most texts keep a requirement
    "keywords:existence": lambda text, a: " ".join([text, *a["keywords"]]),
    "keywords:frequency": lambda text, a: text + f" {a['keyword']}" * a["frequency"],
    "keywords:forbidden_words": lambda text, a: f"{text} x{a['forbidden_words'][0]}",
    "keywords:letter_frequency": lambda text, a: text + a["letter"] * a["let_frequency"],
    "length_constraints:number_words": lambda text, a: f"{text} more" * (a["num_words"] // 50),
    "length_constraints:number_paragraphs": lambda text, a: "\n***\n".join(
        [text[:40]] * a["num_paragraphs"]
    ),
    "length_constraints:nth_paragraph_first_word": lambda text, a: "\n\n".join(
        [f"{a['first_word']}, {text[:20]}"] * a["num_paragraphs"]
    ),
    "detectable_content:number_placeholders": lambda text, a: text + "[x]" * a["num_placeholders"],
    "detectable_content:postscript": lambda text, a: f"{text}\n\n{a['postscript_marker']} Bye",
    "detectable_format:number_bullet_lists": lambda text, a: (
        " ".join(text.split()) + "\n* one" * a["num_bullets"]
    ),
    "detectable_format:constrained_response": lambda text, a: f"{text} My answer is no.",
    "detectable_format:number_highlighted_sections": lambda text, a: (
        f"{text} *one*" * a["num_highlights"]
    ),
    "detectable_format:multiple_sections": lambda text, a: " ".join(
        f"\n{a['section_spliter']} {i}\n{text[:40]}" for i in range(a["num_sections"])
    ),
    "detectable_format:json_format": lambda text, a: json.dumps({"text": text}),
    "detectable_format:title": lambda text, a: f"<<A title>>\n{text}",
    "combination:two_responses": lambda text, a: f"{text}\n******\n{text[:40]}",
    "combination:repeat_prompt": lambda text, a: f"{a['prompt_to_repeat']}\n{text}",
    "startend:end_checker": lambda text, a: f"{text}\n{a['end_phrase']}",
    "startend:quotation": lambda text, a: f'"{text}"',
    "change_case:capital_word_frequency": lambda text, a: (
        f"{text[:60]} " + "LOUD, " * a["capital_frequency"]
    ),
    "change_case:english_capital": lambda text, a: text.upper(),
    "change_case:english_lowercase": lambda text, a: text.lower(),
    "punctuation:no_comma": lambda text, a: text.replace(",", ""),
}
DAMAGE = [  # edits that break some requirements, or need the loose mode
    lambda text, rng: text,
    lambda text, rng: f"Sure, here it is:\n{text}",
    lambda text, rng: f"{text}\nI hope this helps, A.B.",
    lambda text, rng: f"Sure, here it is:\n\n{text}\n\nCAN'T wait!",
    lambda text, rng: text[: rng.randrange(len(text) + 1)],
    lambda text, rng: text[rng.randrange(len(text) + 1) :],
    lambda text, rng: f'"{text}"',
    lambda text, rng: f"**{text}**",
    lambda text, rng: f"```json\n{text}\n```",
    lambda text, rng: text.replace(" ", rng.choice(["  ", "\n", "\n\n", " *", ", ", "-"]), 5),
    lambda text, rng: text.swapcase(),
    lambda text, rng: text.title(),
    lambda text, rng: f"{text}\n\n***\n\n",
]
SCRAPS = [  # marks that checks look for, and words that are split in odd ways
    *("*", "**", "***", "******", "-", "--", ",", ":", ";", ".", "...", "!", '"', "'", "`", "—"),
    *("’", "“", "”", "[", "]", "(", ")", "<", "<<", ">", ">>", "{", "}", "#", "/", "&", "@", "%"),
    *("10", "1,5", "a:b", "word", "WORD", "Word", "U.S.", "I", "I'M", "I'm", "it's", "IT'S", "I,"),
    *("DON'T", "don't", "CANNOT", "GONNA", "NASA's", "A-B", "a-B", "P.S.", "p. s. ", "P.P.S"),
    *("Section 1", "SECTION 2", "PARAGRAPH", "Day", '{"a": 1}', "```json", "```", "e.g.", "Mr."),
    *("WE'LL", "o'clock", "'TIS", "É", "ß", "ø"),
]


def scrapbook(rng: random.Random) -> str:
    """Words and marks in any order: what a small model writes on a bad day."""
    gaps = [" ", " ", " ", "", "\n", "\n\n"]
    return "".join(
        rng.choice(SCRAPS) + rng.choice(gaps) for _ in range(rng.randrange(1, 60))
    ).strip()


def answers_to(prompt: DemandingPrompt, texts: list[str], rng: random.Random) -> list[str]:
    """Eight answers: as found, with all demands met one after the other, with some, and scraps."""
    answers = [rng.choice(texts)]
    for share in (1.0, 1.0, 0.7, 0.7, 0.4):
        text = rng.choice(texts)
        for requirement in rng.sample(prompt.requirements, len(prompt.requirements)):
            if requirement.kind in KEEP and rng.random() < share:
                text = KEEP[requirement.kind](text, requirement.arguments)
        answers.append(rng.choice(DAMAGE)(text, rng) if len(answers) > 1 else text)
    scraps = scrapbook(rng)
    return [*answers, scraps, rng.choice(DAMAGE)(scraps, rng)]


@pytest.fixture(scope="module")
def reference():
    """The reference's `utils`, imported without what the rest of its package needs."""
    how = "the reference is not installed; the head of this file says how"
    for name in ("nltk", "langdetect", "immutabledict"):
        pytest.importorskip(name, reason=how)
    spec = importlib.util.find_spec("lm_eval")
    if spec is None:
        pytest.skip(how)
    nltk = importlib.import_module("nltk")
    folder = Path(spec.submodule_search_locations[0])
    with pytest.MonkeyPatch.context() as patch:
        packages = {
            "lm_eval": ".",
            "lm_eval.tasks": "tasks",
            "lm_eval.tasks.ifeval": "tasks/ifeval",
        }
        for name, place in packages.items():
            package = types.ModuleType(name)
            package.__path__ = [str(folder / place)]
            patch.setitem(sys.modules, name, package)
        split = functools.partial(nltk.word_tokenize, preserve_line=True)
        patch.setattr(nltk, "word_tokenize", split)
        patch.setattr(nltk, "download", lambda *_, **__: True)
        utils = importlib.import_module("lm_eval.tasks.ifeval.utils")
        patch.setattr("langdetect.detect", lambda text: "en")
        yield utils
    for name in [name for name in sys.modules if name.startswith("lm_eval")]:
        del sys.modules[name]


@pytest.fixture(scope="module")
def texts() -> list[str]:
    if not (DATA / "ifeval.jsonl").exists():
        pytest.skip("../shared/data/ifeval.jsonl is absent: no prompts to compare with")
    found = [row["response"] for row in read_jsonl(DATA / "instructions.jsonl")]
    for group in read_ranked(DATA / "ranked.jsonl"):
        found += group["responses"]
    return found


def comparable(requirement: Requirement) -> bool:
    """Not the kinds left out, nor letters for which the reference draws a random one."""
    letter = requirement.arguments.get("letter", "a")
    return requirement.kind in CHECKS and letter.isascii() and letter.isalpha()


def test_what_the_541_prompts_demand(texts):
    """Guards against: a reader that refuses the real file, and a count that docs tell wrongly."""
    prompts = read_ifeval(DATA / "ifeval.jsonl")
    demanded = [r for prompt in prompts for r in prompt.requirements]
    assert len(prompts) == 541
    assert len(demanded) == 834
    assert sum(not comparable(r) for r in demanded if r.kind in CHECKS) == 2
    left_out = {kind: sum(r.kind == kind for r in demanded) for kind in LEFT_OUT}
    assert left_out == {LANGUAGE: 31, SENTENCES: 52}


def test_like_the_reference(reference, texts):
    """Guards against: figures that nobody else's compare with.

    Eight answers to each of the 541 prompts, every requirement strict and loose. Both yes and no
    occur for every kind.
    """
    rng = random.Random(0)
    verdicts, differing = set(), []
    for prompt in read_ifeval(DATA / "ifeval.jsonl"):
        requirements = [r for r in prompt.requirements if comparable(r)]
        example = reference.InputExample(
            key=0,
            instruction_id_list=[r.kind for r in requirements],
            prompt=prompt.prompt,
            kwargs=[r.arguments for r in requirements],
        )
        for answer in answers_to(prompt, texts, rng):
            strict = reference.test_instruction_following_strict(example, answer)
            loose = reference.test_instruction_following_loose(example, answer)
            for requirement, *wanted in zip(
                requirements, strict.follow_instruction_list, loose.follow_instruction_list
            ):
                ours = [requirement.met(answer), requirement.met_loosely(answer)]
                verdicts |= {(requirement.kind, verdict) for verdict in ours}
                if ours != wanted:
                    differing.append((requirement, answer, ours, wanted))
    assert differing == []
    assert verdicts == {(kind, verdict) for kind in CHECKS for verdict in (True, False)}
