"""worlds/toy.py: the oracle knows a perfect answer and every way to miss it.

The held-out prompts stay held out.
"""

import random
import re

import pytest
from conftest import ROOT

from core.chat import Chat
from experiments.make_seed import corpus
from judge import parse_score, read_rubric
from worlds import toy
from worlds.toy import (
    FLAWS,
    KINDS,
    ORDERED,
    PHRASINGS,
    POINTS,
    Draft,
    demonstration,
    draw_slots,
    draw_task,
    eft_examples,
    flawed,
    held_out_prompts,
    held_out_ranked,
    ift_examples,
    oracle,
    perfect,
    points,
    read_task,
    toy_world,
    verdict,
)


def tasks(family: str, draws: int = 25):
    """Tasks of one family in each of its phrasings."""
    rng = random.Random(family)
    for phrasing in PHRASINGS[family]:
        for _ in range(draws):
            prompt = phrasing.format(**draw_slots(family, rng))
            task = read_task(prompt)
            assert task is not None and (task.prompt, task.family) == (prompt, family), prompt
            yield task, perfect(task, rng)


def lost(task, draft: Draft) -> set[str]:
    return {p for p, got in zip(POINTS, points(task, draft.text())) if not got}


@pytest.mark.parametrize("family", PHRASINGS)
def test_perfect_answers_and_single_flaws(family):
    """Guards against: a truth that is wrong, for which the whole loop would then be praised."""
    for task, draft in tasks(family):
        items = draft.items
        assert oracle(task.prompt, draft.text()) == 5 and not lost(task, draft), (task, draft)
        assert lost(task, draft._replace(items=[*items, "zebra"])) == {"exact"}
        assert lost(task, draft._replace(items=[*items, items[-1]])) == {"exact"}
        assert lost(task, draft._replace(items=["zebra", *items[1:]])) >= {"complete", "exact"}
        assert lost(task, draft._replace(items=["zebra"])) == {"relevant", "complete", "exact"}
        assert lost(task, draft._replace(name="Zacharias")) == {"personal"}
        assert (
            lost(task, draft._replace(capital=False))
            == lost(task, draft._replace(stop=False))
            == {"clear"}
        )
        if len(items) > 1:
            assert lost(task, draft._replace(items=items[:-1])) == {"complete"}
        if not task.kind and items != items[::-1]:
            assert lost(task, draft._replace(items=items[::-1])) == (
                {"exact"} if family in ORDERED else set()
            )
        assert oracle(task.prompt, "") == 0


def is_right(task, answer: str) -> bool:
    """The truth once more, told in another way."""
    match = re.fullmatch(r"(\w+): (\w+(?:, \w+)*)\.", answer)
    if not match or match[1] != task.name:
        return False
    items = match[2].split(", ")
    if not task.kind:
        return (
            items == list(task.items)
            if task.family in ORDERED
            else sorted(items) == sorted(task.items)
        )
    return len(items) == len(set(items) & set(KINDS[task.kind])) == task.n


@pytest.mark.parametrize("flaw", FLAWS)
def test_flaws_of_the_demonstrations(flaw):
    """Guards against: a "mistake" that is none, and a 5 for an answer that is not right."""
    rng, found = random.Random(flaw), 0
    for _ in range(400):
        task = draw_task(rng)
        text = flawed(perfect(task, rng), flaw, task=task, rng=rng).text()
        assert (oracle(task.prompt, text) == 5) == is_right(task, text), (task, text)
        found += not is_right(task, text)
    assert found > 100  # a swap is a mistake in four of the ten families only


def test_demonstrations_are_of_mixed_quality():
    """Guards against: flawless demonstrations, where the judge errs with the writer and nothing
    can improve."""
    rng = random.Random(0)
    scores = [
        oracle(t.prompt, demonstration(t, rng)) for t in (draw_task(rng) for _ in range(1000))
    ]
    assert set(scores) >= {1, 2, 3, 4, 5} and 150 < scores.count(5) < 450
    assert len(PHRASINGS) >= 8 and all(len(p) >= 3 for p in PHRASINGS.values())


FOREIGN = [
    "",
    "Hello.",
    "Tell Mia about",
    "Give Bob two planets.",
    "Give Bob ninety animals.",
    "Count up from six to three for Mia.",
    "Count up from one to zebra for Mia.",
    "Tell Nobody the opposite of hot and old.",
    "Tell Mia the opposite of tea and old.",
    "Say cat two times to Mia. Please.",
]


@pytest.mark.parametrize("prompt", FOREIGN)
def test_no_task_no_score(prompt):
    """Guards against: a text of the model's own that crashes the oracle, or gets a score although
    it asks for nothing."""
    assert oracle(prompt, "Mia: cat.") is None


def test_verdict_is_read_back():
    """Guards against: judge data whose score the parser reads as another number."""
    rng = random.Random(0)
    for row in eft_examples(500, rng):
        assert parse_score(row["verdict"]) == oracle(row["prompt"], row["response"])
    task = draw_task(rng)
    assert all(p in verdict(task, "") for p in POINTS)


def test_held_out_prompts_are_never_trained_on():
    """Guards against: figures measured on what was learnt by heart."""
    rng = random.Random(1)
    held = {*held_out_prompts(4000), *(g["prompt"] for g in held_out_ranked(200))}
    learnt = {r["prompt"] for r in ift_examples(4000, rng) + eft_examples(4000, rng)}
    read = {line.removeprefix("Task: ") for text in corpus(4000, rng) for line in text.splitlines()}
    assert len(held) > 1000 and not held & (learnt | read)
    assert len({*ift_prompts(1)} & {*ift_prompts(2)}) > 10, (
        "the world is so wide that this test shows nothing"
    )


def ift_prompts(seed: int) -> list[str]:
    return [r["prompt"] for r in ift_examples(4000, random.Random(seed))]


def test_same_random_same_data():
    """Guards against: seed data that changes under a resumed run."""
    assert (
        eft_examples(50, random.Random(3))
        == eft_examples(50, random.Random(3))
        != eft_examples(50, random.Random(4))
    )
    assert held_out_prompts(20) == held_out_prompts(20) and held_out_ranked(5) == held_out_ranked(5)


def test_ranked_groups_are_ranked_by_truth():
    """Guards against: an exam whose key is upside down."""
    for group in held_out_ranked(50):
        truth = [oracle(group["prompt"], a) for a in group["responses"]]
        assert [5 - r for r in group["ranks"]] == truth


def test_files_replace_the_people_of_the_toy():
    """Guards against: a file that is ignored or not cut to the limit, and an exam made of it."""
    written = [{"prompt": f"Task {i}", "response": "Mia: cat."} for i in range(30)]
    of_people = toy_world(3, limit=20, exam=8, ift=None, eft=None)
    of_file = toy_world(3, limit=20, exam=8, ift=written, eft=of_people.eft)
    assert of_people.ift == ift_examples(20, random.Random("people 3"))
    assert (of_file.ift, of_file.eft) == (written[:20], of_people.eft)
    assert of_file.prompts == [row["prompt"] for row in written], "all of them, to write new ones"
    assert of_file.exam == of_people.exam
    assert (len(of_file.exam.prompts), len(of_file.exam.groups)) == (8, 2)


# ---- the shipped seed/ ----


def test_seed_can_write_every_word():
    """Guards against: a digit or a letter missing from the tokenizer, which silently makes every
    verdict unreadable."""
    tokenizer = Chat(ROOT / "seed").tokenizer
    words = {w for rows in (KINDS.values(), toy.WORDS.values()) for row in rows for w in row}
    words |= {*toy.NAMES, *map(str.lower, toy.NAMES), *toy.NUMBERS, *toy.DAYS}
    words |= {*toy.OPPOSITE, *toy.COLOUR, *toy.SOUND}
    rng = random.Random(5)
    texts = [*words, *(f"Score: {i}" for i in range(6)), *corpus(300, rng), toy.RUBRIC]
    for text in texts:
        assert (
            tokenizer.decode(
                tokenizer.encode(text, add_special_tokens=False).ids, skip_special_tokens=True
            )
            == text
        )


def test_seed_belongs_to_this_world():
    """Guards against: a seed made by another version of the toy; a clone that is not small."""
    assert read_rubric(ROOT / "seed" / "rubric.txt") == toy.RUBRIC
    assert sum(p.stat().st_size for p in (ROOT / "seed").iterdir()) <= 2_000_000
