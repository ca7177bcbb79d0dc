"""prompts.py: new prompts are new, and each has demonstrations of its own.

Every refusal is counted.
"""

import itertools
import random
import time
from collections import Counter

import pytest
from conftest import flat_gpt, mute_writer

import prompts
from core.draw import Sampling
from core.errors import UserError
from core.likeness import KnownPrompts, PromptText
from prompts import few_shot, new_prompts, refusal
from sample import Completion, Writer

DRAW = Sampling(24, temperature=1.0, top_p=0.9)

REFUSED = [
    ("Name three fruits.", False, "unfinished"),
    ("Name fruits.", True, "length"),
    ("", True, "length"),
    ("a " * 151, True, "length"),
    ("count  UP to four", True, "duplicate"),
    ("Please draw a cat.", True, "keyword"),
    ("Look at this image: what is it?", True, "keyword"),
    ("Please count up to four", True, "similar"),
    ("Name three fruits.", True, None),
    ("Drawing is fun, why?", True, None),
]


@pytest.mark.parametrize("text, finished, reason", REFUSED, ids=str)
def test_refusal(text, finished, reason):
    """Guards against: copies taken as new prompts.

    Also against: fragments, and tasks that no text model can do.
    """
    known = KnownPrompts(["Count up to four"], 0.7)
    assert refusal(PromptText(text), finished, known) == reason


def test_copies_only():
    """Guards against: a limit of 1 that still refuses what is only like another prompt."""
    known = KnownPrompts(["Count up to four"], 1.0)
    assert refusal(PromptText("Please count up to four"), True, known) is None
    assert refusal(PromptText("Count up to  FOUR"), True, known) == "duplicate"


def test_thousands_of_prompts_are_compared_in_seconds():
    """Guards against: a filter that takes longer than the model.

    (An hour at 3,000 prompts, when every pair was aligned.)
    """
    rng, known, started = random.Random(0), KnownPrompts(limit=0.7), time.process_time()
    words = [f"word{i}" for i in range(2000)]

    def draw() -> list[str]:
        """Common words and rare ones."""
        return [words[int(2000 * rng.random() ** 3)] for _ in range(rng.randrange(5, 25))]

    texts = [draw() for _ in range(2900)]
    near_copies = [[w for w in rng.choice(texts) if rng.random() < 0.95] for _ in range(100)]
    for line in texts + near_copies:
        text = PromptText(" ".join(line))
        if not refusal(text, True, known):
            known.add(text)
    assert time.process_time() - started < 15
    assert 2700 < len(known.lines) < 2950


def prompts_of(writer, seeds, count: int, *, rouge: float = 1.0, exclude=(), **more):
    """`new_prompts` that are like none of the seeds, and like nothing in `exclude`."""
    known = KnownPrompts([*seeds, *exclude], rouge)
    settings = {"sampling": DRAW, "key": "k"} | more
    return new_prompts(writer, seeds, count, known=known, **settings)


@pytest.fixture
def scripted(monkeypatch, chat):
    """Makes the model write these texts, in turn, whatever it is asked.

    Returns the list and the log of what it read. A text that ends in " and" never ended.
    """
    texts, read, written = [], [], itertools.count()

    def write(writer, asked, sampling, keys, **_):
        assert sampling.n == 1
        assert len(set(keys)) == len(asked)
        read.extend(chat.decode(p) for p in asked)
        lines = [texts[next(written) % len(texts)] for _ in asked]
        groups = []
        for line in lines:
            finished = not line.endswith(" and")
            groups.append([Completion(chat.tokenizer.encode(line).ids, finished)])
        return groups

    monkeypatch.setattr(prompts, "generate", write)
    return texts, read


def test_new_prompts_are_new(scripted, chat):
    """Guards against: Oxen's decode, where the few-shot prompts came back as new ones.

    Also against: held-out prompts trained on.
    """
    texts, read = scripted
    seeds = [f"Seed task number {i}." for i in range(12)]
    texts += ["New task number 3.", "held  OUT task.", "new  TASK number 3."] * 4 + seeds
    texts += [f"New task number {i}.\nTask: more" for i in range(30)]
    held_out = ["Held out task."]
    found, _ = prompts_of(mute_writer(chat), seeds, 20, exclude=held_out)
    kept = [" ".join(t.lower().split()) for t in found]
    assert len(found) == len(set(kept)) == 20
    assert not set(kept) & {s.lower() for s in [*seeds, "held out task."]}
    assert all(t.startswith("New task number") and "\n" not in t for t in found)
    assert all(shot.count("Task:") == 9 and shot.endswith("Task:") for shot in read)


def test_demonstrations(scripted, chat):
    """Guards against: one draw of demonstrations for many prompts.

    Also against: a first call that takes all, so that no prompt sees the model's own
    (Self-Instruct: six of people, two of the model).
    """
    texts, read = scripted
    seeds = [f"Seed task number {i}." for i in range(12)]
    texts += [f"New task number {i}." for i in range(90)]
    found, _ = prompts_of(mute_writer(chat), seeds, 40)
    shown = [[line.removeprefix("Task: ") for line in shot.splitlines()[:-1]] for shot in read]
    assert all(len(set(shots)) == len(shots) == 8 for shots in shown)
    own = [sorted(found.index(s) for s in shots if s in found) for shots in shown]
    first = own.index(next(o for o in own if o))
    assert 10 <= first <= 13 and own[:first] == [[]] * first and len(own) > 40
    for at, places in enumerate(own[first:], first):
        assert len(places) == 2 and max(places) < at, "two of its own, written before"
    assert all(sum(s in seeds for s in shots) == 6 for shots in shown[first:])
    assert len({tuple(shots) for shots in shown}) == len(shown)
    assert len({tuple(o) for o in own}) > 10
    places = [shots.index(s) for shots in shown[first:] for s in shots if s in found]
    assert set(places) == set(range(8)), "the model's own stand anywhere in the list"


def test_every_refusal_is_counted(scripted, chat):
    """Guards against: prompts lost without a word, or a surplus counted as refused.

    Also against: a held-out prompt let through.
    """
    texts, _ = scripted
    good = [
        "Name three green birds.",
        "Spell dog backwards twice.",
        "Which river is the longest?",
        "How do clouds form?",
    ]
    bad = {
        "An endless task goes on and": "unfinished",
        "No.": "length",
        "": "length",
        "SEED task number 1.": "duplicate",
        "held OUT task of ours.": "duplicate",
        "Please draw a cat.": "keyword",
        "Please do seed task number 2.": "similar",
        "A held out task of ours.": "similar",
    }
    # Draws of 2, 4, 4 and 3; the last one is a surplus.
    texts += [good[0], *bad, *good[1:], "Why is rain wet today?"]
    seeds = [f"Seed task number {i}." for i in range(4)]
    held_out = ["Held out task of ours."]
    writer = mute_writer(chat)
    found, refused = prompts_of(writer, seeds, 4, rouge=0.7, exclude=held_out)
    assert found == good
    assert refused == Counter(bad.values())


def test_new_prompts_that_never_come(scripted, chat):
    """Guards against: lucidrains' data loop, which never ends.

    Also against: insight-bench #17, infinite retry.
    """
    texts, _ = scripted
    texts.append("no")
    with pytest.raises(UserError, match="length"):
        prompts_of(mute_writer(chat), ["Seed task one."] * 3, 20)


def test_new_prompts_by_a_model(chat):
    """Guards against: the scripted tests above passing where the real call does not.

    Same key, same prompts.
    """
    likely = {"a": 2, "b": 2, "Ġ": 3, "Ċ": 0.3}
    model = flat_gpt({chat.tokenizer.token_to_id(c): weight for c, weight in likely.items()})
    writer = Writer(model, chat)

    def written(key: str) -> list[str]:
        return prompts_of(writer, ["Seed task one."], 8, sampling=Sampling(40), key=key)[0]

    one, other, third = written("k"), written("k"), written("m")
    assert one == other != third and len(set(one)) == 8
    assert all(set(text) <= set("ab ") for text in one)


def test_fewer_examples_where_eight_do_not_fit(chat):
    """Guards against: a run of long instructions that cannot write one prompt."""
    seeds = [f"Task {i} " + "word " * 20 for i in range(20)]
    eight = few_shot(chat, seeds, [], random.Random(0), 10_000)
    assert chat.decode(eight).count("Task:") == 9
    some = few_shot(chat, seeds, [], random.Random(0), 400)
    assert 1 < chat.decode(some).count("Task:") < 9 and len(some) <= 400
    assert chat.decode(eight).startswith(chat.decode(some)[:300])
    assert chat.decode(few_shot(chat, seeds, [], random.Random(0), 3)) == "Task:"
