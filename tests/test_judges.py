"""judge.py: judges that write nothing, pairs of like length, and what is said about judges.

Against brute force: each question by itself, each log-prob by a plain forward pass. Figures are
compared with numbers by hand.
"""

import copy
import json
import math
import random
from dataclasses import replace
from itertools import permutations
from pathlib import Path

import pytest
import torch
from conftest import assert_refused, command, flat_gpt, leaning_gpt, tiny_gpt, write_tokenizer

import judge
from core.chat import Chat
from core.checklist import instruction_of, requirements_of, with_requirements
from core.config import READINGS
from core.draw import Sampling
from core.errors import UserError
from core.files import write_jsonl
from core.kernels import pack, picked_probs
from core.rankings import accuracy_by_kind, alike_accuracy, pair_signs
from core.records import Candidate, Pair, most_certain
from core.statistics import crossed_interval
from judge import QUESTION, RUBRIC, Judging, choose_pair, judge_answers, read_rubric, with_rewards
from measure.exam import own_groups
from measure.truth import judge_of_own, pair_truths, share_by_kind
from model import GPT, save
from sample import Writer, writing_copy
from worlds.world import Exam

LISTS = ([], ["Use no commas."], ["Use no commas.", "All in lower case.", 'End with "so".'])


def written(chat: Chat, *, drawn: bool = True) -> list[Candidate]:
    """Three answers to each of six prompts, which ask for 0, 1 or 3 requirements.

    The lengths are mixed. Answers of a file have no tokens (`drawn` False).
    """
    answers = []
    for number in range(6):
        prompt = "Write" + " a line" * (number + 1)
        if requirements := LISTS[number % 3]:
            prompt = with_requirements(prompt, requirements)
        for sample in range(3):
            text = f"{number}: so{' it is' * ((number + 2 * sample) % 5)}"
            tokens = [*chat.response(text), chat.eos] if drawn else []
            answers.append(Candidate(number, sample, prompt, text, tokens, finished=True))
    return answers


def judged(writer: Writer, answers: list[Candidate], how: str, rubric: str = QUESTION) -> list:
    judging = Judging(rubric, Sampling(8, n=3), how)
    return judge_answers(writer, answers, judging, key="k", label=None)


def places(rows: list) -> list[tuple[int, int]]:
    return [(row["id"], row["sample"]) for row in rows]


def writer_of(model: GPT, chat: Chat, *, packed: bool) -> Writer:
    # a model of these tests may be a subclass, which writing_copy is not for
    return Writer(pack(copy.deepcopy(model)) if packed else model, chat)


@pytest.fixture(params=[4096, 300], ids=["one batch", "batches"])
def batches(request, monkeypatch):
    """Rows of one pass: all of them, or one or two."""
    monkeypatch.setattr("sample.READ_AT_ONCE", request.param)


# ---- the checklist ----


def test_parts_of_a_prompt():
    """Guards against: a list that is not read back as it was written."""
    prompt = with_requirements("Write\n\nRequirements:\n- none", LISTS[2])
    assert instruction_of(prompt) == "Write\n\nRequirements:\n- none"
    assert requirements_of(prompt) == LISTS[2]
    assert (instruction_of("Write."), requirements_of("Write.")) == ("Write.", [])


def yes_by_hand(model: GPT, chat: Chat, question: str) -> tuple[float, float]:
    """p(yes) and p(no) after one question that is asked alone: bytes y and n in this tokenizer."""
    with torch.no_grad():
        ids = torch.tensor([chat.prompt(question)])
        probs = model.logits(model(ids))[0, -1].softmax(-1)
    return tuple(float(probs[chat.tokenizer.token_to_id(letter)]) for letter in "yn")


def checklist_by_hand(model: GPT, chat: Chat, answer: Candidate) -> tuple[float | None, list]:
    shares = []
    readable = True
    for requirement in requirements_of(answer.prompt) or [answer.prompt]:
        question = QUESTION.replace("{response}", answer.response).replace("{prompt}", requirement)
        yes, no = yes_by_hand(model, chat, question)
        readable = readable and yes + no >= 0.5
        shares.append(yes / (yes + no))
    return (5 * sum(shares) / len(shares) if readable else None), shares


class YesAndNo(GPT):
    """A GPT that says yes or no more often than not."""

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        logits = super().logits(hidden)
        logits[..., self.likely] += 5.2
        return logits


def yes_and_no_gpt(chat: Chat, *, tied: bool = False) -> GPT:
    model = tiny_gpt(YesAndNo, seed=7, tie_word_embeddings=tied)
    model.likely = [chat.tokenizer.token_to_id(letter) for letter in "yn"]
    return model


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "packed"])
def test_checklist_by_brute_force(chat, batches, packed):
    """Guards against: questions of one text that see each other, or count on from each other.

    Also against: the answer of a pad, scores in another order than the answers.
    """
    model = yes_and_no_gpt(chat)
    answers = written(chat)
    rows = judged(writer_of(model, chat, packed=packed), answers, "checklist")
    assert places(rows) == [(y.id, y.sample) for y in answers]
    for row, answer in zip(rows, answers, strict=True):
        score, yes = checklist_by_hand(model, chat, answer)
        assert row["yes"] == pytest.approx(yes, abs=2e-4)
        assert row["score"] == (None if score is None else pytest.approx(score, abs=1e-3))
    sizes = [len(row["yes"]) for row in rows]
    assert sizes == [1, 1, 1, 1, 1, 1, 3, 3, 3] * 2
    for count in (1, 3):
        readable = [row["score"] is not None for row in rows if len(row["yes"]) == count]
        assert 0 < sum(readable) < len(readable), "the test wants readable and unreadable ones"
    parts = [row["yes"] for row in rows if len(row["yes"]) == 3]
    assert all(max(part) - min(part) > 0.01 for part in parts), "other questions, other answers"


@pytest.mark.parametrize("how", [how for how in READINGS])
def test_what_is_too_long_cannot_be_read(chat, how):
    """Guards against: a run that one long text ends, and a score past the end of the context."""
    model = yes_and_no_gpt(chat)
    model.config.max_position_embeddings = 900
    answers = written(chat)
    long = replace(answers[0], sample=99, response="so " * 600, tokens=[])
    writer = writer_of(model, chat, packed=False)
    rows = judged(writer, [long, *answers], how)
    assert "1 left out as too long" in writer.take_meter()
    scores = {(row["id"], row["sample"]): row["score"] for row in rows}
    assert scores.pop((long.id, 99)) is None
    expected = {}
    for row in judged(writer, answers, how):
        expected[row["id"], row["sample"]] = row["score"]
    assert scores == pytest.approx(expected, abs=1e-3) and len(scores) == len(answers)
    json.dumps(rows, allow_nan=False)


def test_checklist_with_a_tied_head(chat):
    """Guards against: a packed head that is not the head (core/kernels.pack)."""
    model = yes_and_no_gpt(chat, tied=True)
    answers = written(chat)
    plain, packed = (
        judged(writer_of(model, chat, packed=packed), answers, "checklist")
        for packed in (False, True)
    )
    for row, other in zip(plain, packed, strict=True):
        assert row["yes"] == pytest.approx(other["yes"], abs=2e-4)
    assert plain[6]["yes"] == pytest.approx(checklist_by_hand(model, chat, answers[6])[1], abs=2e-4)


def test_checklist_reads_only_what_is_said(chat):
    """Guards against: a judge that says neither, read as one that is of two minds."""
    yes, no = (chat.tokenizer.token_to_id(letter) for letter in "yn")
    cases = [
        ({yes: 1}, 5),
        ({no: 1}, 0),
        ({yes: 0.45, no: 0.15, 40: 0.4}, 3.75),
        ({yes: 0.2, no: 0.2, 40: 0.6}, None),
        ({40: 1}, None),
    ]
    answers = written(chat)
    for weights, wanted in cases:
        rows = judged(Writer(flat_gpt(weights), chat), answers, "checklist")
        score = None if wanted is None else pytest.approx(wanted, abs=1e-4)
        assert [row["score"] for row in rows] == [score] * len(answers)


@pytest.mark.parametrize("how", ["checklist", "contrast"])
def test_one_row_for_each_text_that_ended(chat, how):
    """Guards against: an answer that was cut off and is judged all the same.

    Also against: one text to one prompt that is judged twice.
    """
    prompt = with_requirements("Write.", LISTS[2])

    def answer(number: int, sample: int, text: str, *, finished: bool = True) -> Candidate:
        return Candidate(number, sample, prompt, text, chat.response(text), finished)

    answers = [
        answer(0, 0, "So it is.", finished=False),
        answer(0, 1, "So."),
        answer(0, 2, "So."),
        answer(1, 0, "So."),
    ]
    model = flat_gpt(dict.fromkeys(range(260), 1.0) | {chat.tokenizer.token_to_id("y"): 900.0})
    rows = judged(Writer(model, chat), answers, how)
    assert places(rows) == [(0, 1), (1, 0)]
    rewards = [y.reward for y in with_rewards(answers, rows)]
    assert rewards[0] is None and rewards[1:] == pytest.approx([rewards[1]] * 3, abs=1e-4)
    assert judged(Writer(model, chat), answers[:1], how) == []


def test_a_tokenizer_that_does_not_tell_yes_from_no(tmp_path, monkeypatch):
    """Guards against: an answer that is read off a token which both begin with."""
    chat = Chat(write_tokenizer(tmp_path))
    monkeypatch.setattr(Chat, "response", lambda self, text: [7, 8])
    with pytest.raises(UserError, match="'yes' to 'no'"):
        judged(Writer(tiny_gpt(), chat), written(chat), "checklist")


def test_each_judge_has_its_question(tmp_path):
    """Guards against: the checklist asked with a rubric that wants a score line.

    Also against: a user's own question that is not asked.
    """
    (tmp_path / "rubric.txt").write_text("of the model {prompt} {response}")
    (tmp_path / "mine.txt").write_text("mine {prompt} {response}")
    for how in READINGS:
        wanted = (
            (QUESTION, QUESTION)
            if how == "checklist"
            else (RUBRIC, "of the model {prompt} {response}")
        )
        assert (read_rubric(None, how=how), read_rubric(None, tmp_path, how=how)) == wanted
        mine = read_rubric(tmp_path / "mine.txt", tmp_path, how=how)
        assert mine == "mine {prompt} {response}"
    assert QUESTION.index("{response}") < QUESTION.index("{prompt}"), "the text is what is shared"


# ---- the contrast ----


def logp_by_hand(model: GPT, chat: Chat, prompt: str, tokens: list[int]) -> float:
    """log p(tokens | prompt) by one plain forward pass."""
    start = chat.prompt(prompt)
    with torch.no_grad():
        table = model.logits(model(torch.tensor([start + tokens])))[0].log_softmax(-1)
    return sum(float(table[len(start) - 1 + i, token]) for i, token in enumerate(tokens))


def ratio_by_hand(model: GPT, chat: Chat, answer: Candidate) -> float:
    """The gain in nats over the instruction alone; without a list, over no instruction."""
    tokens = [*chat.response(answer.response), chat.eos]
    bare = answer.prompt.split("\n\nRequirements:\n")[0]
    if bare == answer.prompt:
        bare = ""
    full = logp_by_hand(model, chat, answer.prompt, tokens)
    return full - logp_by_hand(model, chat, bare, tokens)


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("packed", [False, True], ids=["plain", "packed"])
@pytest.mark.parametrize("drawn", [False, True], ids=["of a file", "drawn"])
def test_contrast_by_brute_force(chat, batches, tied, packed, drawn):
    """Guards against: a mean a token where the sum is meant, an answer without its end.

    Also against: a packed model whose head is gone, the sign turned round.
    """
    model = tiny_gpt(seed=6, tie_word_embeddings=tied)
    answers = written(chat, drawn=drawn)
    rows = judged(writer_of(model, chat, packed=packed), answers, "contrast", RUBRIC)
    assert places(rows) == [(y.id, y.sample) for y in answers]
    for row, answer in zip(rows, answers, strict=True):
        ratio = ratio_by_hand(model, chat, answer)
        assert row["ratio"] == pytest.approx(ratio, abs=5e-3)
        assert row["score"] == pytest.approx(5 / (1 + math.exp(-ratio / 10)), abs=2e-3)
    ratios = [row["ratio"] for row in rows]
    assert min(ratios) < -0.01 and max(ratios) > 0.01


def test_contrast_takes_the_tokens_that_were_drawn(chat):
    """Guards against: an answer that is tokenised again before it is judged."""
    model = tiny_gpt(seed=6)
    (answer, *_) = written(chat)
    other = Candidate(1, 0, answer.prompt, answer.response, [80, 81, 82, 1], True)
    rows = judged(Writer(model, chat), [answer, other], "contrast")
    full = logp_by_hand(model, chat, other.prompt, other.tokens)
    ratio = full - logp_by_hand(model, chat, "", other.tokens)
    assert rows[1]["ratio"] == pytest.approx(ratio, abs=1e-3)
    assert abs(rows[0]["ratio"] - rows[1]["ratio"]) > 0.01


@pytest.mark.parametrize("how, module", [("checklist", "judge"), ("expected", "sample")])
def test_no_judge_reads_rounded_logits(chat, monkeypatch, how, module):
    """Guards against: p of a judge that picked_probs did not compute, and that tie in bf16."""
    found = []

    def note(*arguments) -> torch.Tensor:
        found.append(picked_probs(*arguments))
        return found[-1]

    monkeypatch.setattr(f"{module}.picked_probs", note)
    answers = written(chat)[:2]
    rows = judged(writing_copy(yes_and_no_gpt(chat), chat, torch.bfloat16), answers, how)
    assert len(rows) == 2 and sum(map(len, found)) >= 2


@pytest.mark.parametrize("how", ["checklist", "contrast"])
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_judges_in_bf16(chat, how, tied):
    """Guards against: a packed bf16 model that cannot be asked, or whose numbers are others."""
    model = yes_and_no_gpt(chat, tied=tied)
    answers = written(chat)
    exact = judged(Writer(model, chat), answers, how)
    half = judged(writing_copy(model, chat, torch.bfloat16), answers, how)
    key = "yes" if how == "checklist" else "score"
    gaps = []
    for row, other in zip(exact, half, strict=True):
        difference = torch.tensor(row[key]) - torch.tensor(other[key])
        gaps += difference.abs().flatten().tolist()
    assert sum(gaps) / len(gaps) < 0.05, "in the mean: bf16 has three digits"


def test_judges_write_nothing(chat, monkeypatch):
    """Guards against: a judge that samples although its score is read off."""
    monkeypatch.setattr(judge, "generate", None)
    for how in ("expected", "checklist", "contrast"):
        rows = judged(Writer(tiny_gpt(), chat), written(chat), how, "{prompt}|{response}")
        assert {(row["vote"], row["text"]) for row in rows} == {(0, "")}


# ---- pairs of like length ----


def sized(*answers: tuple[float | None, int]) -> list[Candidate]:
    """(reward, length in tokens) of each answer to one prompt."""
    group = []
    for sample, (reward, length) in enumerate(answers):
        group.append(Candidate(0, sample, "Why?", f"{sample}", [7] * length, True, reward=reward))
    return group


NEAR = [  # near, (reward, length) of each answer, (chosen, rejected)
    # the old rule: the best against the worst, the first of equals, whatever the lengths
    (None, [(5, 30), (5, 10), (1, 10), (1, 30)], (0, 2)),
    (None, [(1, 9), (5, 90), (4, 9)], (1, 0)),
    # the nearest in length of those with half of the widest gap
    (0.5, [(5, 40), (4, 12), (3, 30), (1, 10)], (1, 3)),
    (0.5, [(4, 10), (2, 30), (0, 31)], (1, 2)),  # exactly half
    (0.5, [(4, 10), (1.9, 30), (0, 31)], (0, 1)),  # a little less than half does not count
    (0.5, [(5, 10), (5, 40), (1, 20)], (0, 2)),  # shorter by 10 is nearer than longer by 20
    (0.5, [(5, 10), (3, 10), (1, 10)], (0, 2)),  # of equal lengths, the widest gap
    (0.5, [(5, 10), (5, 10), (1, 10), (1, 10)], (0, 2)),  # then the first
    # near = 1: only the widest gap, and of equal answers those nearest in length
    (1.0, [(5, 40), (4, 12), (3, 30), (1, 10)], (0, 3)),
    (1.0, [(5, 10), (5, 29), (1, 30), (3, 29)], (1, 2)),
    # near = 0: any gap, but no pair of equals
    (0.0, [(5, 10), (4, 20), (3, 19)], (1, 2)),
    (0.0, [(3, 10), (3, 10), (5, 50)], (2, 0)),
    # small rewards and negative ones
    (0.5, [(-3, 9), (-30, 90), (-20, 88)], (0, 2)),
    # missing rewards, and nothing to choose
    (0.5, [(None, 20), (5, 10), (1, 30), (None, 30)], (1, 2)),
    (0.5, [(2, 10), (2, 20), (None, 10)], None),
    (1.0, [(None, 10), (4, 20)], None),
    (0.0, [], None),
    (None, [(2, 10), (2, 20)], None),
]


@pytest.mark.parametrize("near, answers, wanted", NEAR, ids=str)
def test_choose_pair_near_in_length(near, answers, wanted):
    """Guards against: a pair whose answers are alike in length and in reward.

    Also against: the pair turned round, a missing reward that becomes the rejected answer.
    """
    pair = choose_pair(sized(*answers), near)
    assert (pair and (pair.chosen.sample, pair.rejected.sample)) == wanted


@pytest.mark.parametrize("near", [None, 0.0, 0.3, 0.5, 1.0], ids=str)
def test_choose_pair_keeps_its_word(near):
    """Guards against: a rule that holds on five groups by hand and on no others."""
    rng = random.Random(0)
    for _ in range(200):
        count = rng.randrange(2, 7)
        rewards = [rng.choice([None, 0, 1, 2.5, 4, 5]) for _ in range(count)]
        group = sized(*[(reward, rng.randrange(1, 40)) for reward in rewards])
        pair = choose_pair(group, near)
        scored = [y for y in group if y.reward is not None]
        gaps = [a.reward - b.reward for a, b in permutations(scored, 2)]
        if not gaps or max(gaps) == 0:
            assert pair is None
            continue
        assert pair.gap() > 0
        if near is None:
            assert pair.gap() == max(gaps)
            continue
        assert pair.gap() >= near * max(gaps)
        for a, b in permutations(scored, 2):
            if a.reward - b.reward >= max(near * max(gaps), 1e-9):
                assert abs(len(a.tokens) - len(b.tokens)) >= abs(pair.extra_length())


CERTAIN = [  # share, the gap of each pair, the pairs that are used
    (1.0, [1, 3, 2], [0, 1, 2]),
    (0.5, [1, 4, 2, 3], [1, 3]),
    (0.5, [4, 1, 3, 2], [0, 2]),  # in their old order, not by their gaps
    (0.5, [2, 2, 2, 2], [0, 1]),  # of equal gaps the first
    (0.3, [1, 5, 2, 3, 4], [1, 4]),  # rounded to the nearest number
    (0.01, [1, 4, 2], [1]),  # one at least
    (0.5, [], []),
]


@pytest.mark.parametrize("share, gaps, wanted", CERTAIN, ids=str)
def test_most_certain(share, gaps, wanted):
    """Guards against: the half that differs least, and a share that leaves nothing."""
    pairs = [Pair(*sized((gap + 0.5, 10), (0.5, 10))) for gap in gaps]
    used = most_certain(pairs, share)
    assert [id(pair) for pair in used] == [id(pairs[i]) for i in wanted]


# ---- figures about judges, by hand ----


def test_pairs_of_like_length():
    """Guards against: a long answer beside a short one, where length alone can win.

    Also against: ties and missing rewards that count as right.
    """
    assert pair_signs([5, 3, 1], [0, 1, 2], [100, 90, 50]) == [1]
    assert pair_signs([5, 3, 1], [0, 1, 2], [100, 89, 50]) == []
    assert pair_signs([5, 3, 1], [0, 1, 2]) == [1, 1, 1]
    assert alike_accuracy([[5, 3, 1]], [[0, 1, 2]], [[100, 90, 50]]) == 1
    assert alike_accuracy([[5, 3, 1]], [[0, 1, 2]], [[90, 100, 99]]) == 1
    assert alike_accuracy([[5, 3, 4]], [[0, 1, 2]], [[90, 100, 99]]) == pytest.approx(2 / 3)
    assert alike_accuracy([[2, 3], [3, 3]], [[0, 1], [0, 1]], [[10, 10], [9, 10]]) == 0
    assert alike_accuracy([[None, 3], [3, 1]], [[0, 1], [0, 1]], [[10, 10], [9, 10]]) == 0.5
    assert alike_accuracy([[5, 3]], [[0, 1]], [[10, 20]]) is None
    assert alike_accuracy([[5, 3]], [[1, 1]], [[10, 10]]) is None
    assert alike_accuracy([], [], []) is None


def test_accuracy_by_kind():
    """Guards against: two answers that differ in two kinds, counted for both.

    Also against: a pair that is counted in both orders, a tie that counts as right.
    """
    kept = [
        {"comma": True, "upper": True},
        {"comma": False, "upper": True},
        {"comma": False, "upper": False},
    ]
    assert accuracy_by_kind([[3, 2, 2.5]], [kept]) == {"comma": (1, 1), "upper": (0, 1)}
    assert accuracy_by_kind([[2, 2, None]], [kept]) == {"comma": (0, 1), "upper": (0, 1)}
    other = [{"comma": False}, {"comma": True}, {"comma": True}]
    counts = accuracy_by_kind([[3, 2, 2.5], [1, 4, 0]], [kept, other])
    assert counts == {"comma": (2, 3), "upper": (0, 1)}
    assert list(counts) == ["comma", "upper"]
    assert accuracy_by_kind([[1, 2]], [[{"comma": True}, {"comma": True}]]) == {}


def test_judge_of_own():
    """Guards against: answers to different prompts compared, a lower truth taken for a better.

    Also against: an answer without a reward left out, which flatters a judge that is mute.
    """

    def answer(number: int, sample: int, reward: float | None, length: int) -> Candidate:
        return Candidate(number, sample, "p", "y", [7] * length, True, reward=reward)

    scored = [
        answer(0, 0, 4.0, 10),
        answer(0, 1, 3.0, 10),
        answer(0, 2, 2.0, 40),
        answer(1, 0, 1.0, 20),
        answer(1, 1, None, 20),
    ]
    # The first prompt: 5 > 2 right, 5 > 3 right, 3 > 2 wrong. The second: 4 > 0, not judged.
    figures = judge_of_own(scored, [5, 2, 3, 0, 4])
    assert figures["judge_own"] == 2 / 4
    assert figures["judge_own_alike"] == 1 / 2, "the first two, and the two of the second prompt"
    low, high = figures["judge_own_interval"]
    assert (low, high) == (0, pytest.approx(2 / 3, abs=1e-4))
    assert judge_of_own(scored, [5, 2, 3, 0, None]) == {}
    assert judge_of_own(scored, [3, 3, 3, 0, 0]) == {}
    assert judge_of_own([scored[0], scored[3]], [5, 0]) == {}
    assert judge_of_own([], []) == {}


def test_pair_truths():
    """Guards against: a pair of equal truth that counts as wrong, or as right."""
    truths = {"good": 5, "fair": 3, "poor": 1, "unknown": None}

    def truth(prompt: str, response: str) -> int | None:
        assert prompt == "p"
        return truths[response]

    sides = [("good", "poor"), ("fair", "good"), ("poor", "poor"), ("good", "fair")]
    rows = [{"prompt": "p", "chosen": a, "rejected": b} for a, b in [*sides, ("unknown", "poor")]]
    assert pair_truths(rows, truth) == {
        "pairs_right": 0.5,
        "pairs_wrong": 0.25,
        "pairs_equal": 0.25,
        "pairs_truth_gap": 1.0,
    }
    nothing = dict.fromkeys(("pairs_right", "pairs_wrong", "pairs_equal", "pairs_truth_gap"))
    assert pair_truths(rows, None) == pair_truths([], truth) == nothing
    assert pair_truths(rows[-1:], truth) == nothing


def kinds_of(prompt: str, response: str) -> dict[str, bool]:
    """A truth with parts: a prompt names letters, and an answer should have them."""
    return {letter: letter in response for letter in prompt}


def test_share_by_kind():
    """Guards against: an unfinished answer that keeps something.

    Also against: shares over all answers, where only some prompts ask for a kind.
    """
    answers = [
        Candidate(0, 0, "ab", "a", [], True),
        Candidate(0, 1, "ab", "ab", [], False),
        Candidate(1, 0, "a", "a", [], True),
        Candidate(2, 0, "c", "c", [], False),
    ]
    shares = share_by_kind(Exam([], [], checks=kinds_of), [vars(y) for y in answers])
    assert shares == {"a": pytest.approx(2 / 3), "b": 0, "c": 0}
    assert list(shares) == ["a", "b", "c"]
    assert share_by_kind(Exam([], [], checks=kinds_of), []) == {}


def test_own_answers_as_a_file_for_the_judge():
    """Guards against: ranks upside down, an unfinished answer among those that a judge reads."""
    scores = [("p", "x", 2, True), ("p", "y", 5, True), ("q", "z", 4, True), ("q", "w", 0, False)]
    keys = ("prompt", "response", "true_score", "finished")
    rows = [dict(zip(keys, score)) for score in scores]
    [group] = own_groups(Exam([], [], checks=kinds_of), rows)
    assert group == {
        "prompt": "p",
        "responses": ["x", "y"],
        "ranks": [3, 0],
        "kinds": [{"p": False}, {"p": False}],
    }
    assert own_groups(Exam([], []), rows) == []


def width(interval: list[float]) -> float:
    return interval[1] - interval[0]


def test_crossed_interval():
    """Guards against: seeds taken for independent of each other, which narrows an interval.

    Also against: an interval that one seed does not have.
    """
    rng = random.Random(0)
    prompts = [float(rng.random() < 0.4) for _ in range(200)]
    mean = sum(prompts) / 200
    alone = crossed_interval([prompts])
    assert alone[0] < mean < alone[1]
    by_hand = 2 * 1.96 * (mean * (1 - mean) / 200) ** 0.5
    assert width(alone) == pytest.approx(by_hand, rel=0.15)
    # Three seeds that agree in everything know no more than one.
    assert width(crossed_interval([prompts] * 3)) == pytest.approx(width(alone), rel=0.1)
    # The same mean from seeds that differ: two lie 0.2 off.
    apart = [[value + shift for value in prompts] for shift in (-0.2, 0, 0.2)]
    low, high = crossed_interval(apart)
    assert low < mean < high and high - low > 1.8 * width(alone)
    assert crossed_interval(apart) == [low, high], "the same data, the same interval"
    assert crossed_interval([[0.5, 0.5], [0.5, 0.5]]) == [0.5, 0.5]
    assert crossed_interval([[1.0]]) == [1.0, 1.0]


# ---- the command ----


@pytest.fixture
def model_folder(cwd) -> Path:
    """A small judge that says yes or no."""
    folder = write_tokenizer(cwd / "judge")
    chat = Chat(folder)
    likely = {chat.tokenizer.token_to_id(letter): 9 for letter in "yn"}
    save(leaning_gpt(likely, seed=3, max_position_embeddings=2048), folder)
    return folder


def ranked_file(cwd: Path, *, kinds: bool) -> tuple[Path, list[dict]]:
    groups = []
    for number in range(3):
        prompt = with_requirements(f"Write {number}.", LISTS[1 + number % 2])
        responses = [f"{number}: so it is", f"{number}, so it is", f"{number}, so"]
        groups.append({"prompt": prompt, "responses": responses, "ranks": [0, 1, 2]})
        if kinds:
            groups[-1]["kinds"] = [{"no commas": "," not in text} for text in responses]
    write_jsonl(cwd / "ranked.jsonl", groups)
    return cwd / "ranked.jsonl", groups


SMALL = ("--k", 1, "--max-new-tokens", 4)


@pytest.mark.parametrize("kinds", [False, True], ids=["no kinds", "kinds"])
def test_all_judges_on_one_file(model_folder, cwd, kinds):
    """Guards against: judges that are compared on different answers, or under each other's name.

    Also against: accuracy with nothing to compare it with.
    """
    path, groups = ranked_file(cwd, kinds=kinds)
    args = ("judge.py", "--model", model_folder, "--file", path, "--judge", "all", *SMALL)
    shown, reports = command(*args), json.loads(command(*args, "--json").out)
    assert [report["judge"] for report in reports] == [*READINGS, "longer"]
    by_name = {report["judge"]: report for report in reports}
    readable = {name: report["judge_parse_rate"] for name, report in by_name.items()}
    assert readable == {"sampled": 0, "expected": 0, "checklist": 1, "contrast": 1, "longer": 1}
    for name in READINGS:
        one = ("judge.py", "--model", model_folder, "--file", path, "--judge", name, *SMALL)
        alone = json.loads(command(*one, "--json").out)
        assert alone | {"seconds": 0} == by_name[name] | {"seconds": 0}
    ranks = [group["ranks"] for group in groups]
    lengths = [list(map(len, group["responses"])) for group in groups]
    for report in reports:
        assert report["groups"] == 3
        assert ("kinds" in report) == kinds
        if report["judge"] != "longer":
            alike = alike_accuracy(report["rewards"], ranks, lengths)
            assert report["judge_alike"] == alike is not None
    # The first two answers are of one length, and the third, which is the worst, is the shortest.
    assert by_name["longer"]["judge_pairwise"] == pytest.approx(2 / 3)
    assert by_name["longer"]["judge_alike"] == 0
    assert shown.code == 0
    assert all(f"{name}: 3 groups" in shown.out for name in (*READINGS, "longer"))
    assert shown.out.count("pairs of like length") == 5
    if kinds:
        counts = accuracy_by_kind(by_name["checklist"]["rewards"], [g["kinds"] for g in groups])
        assert by_name["checklist"]["kinds"] == {k: list(v) for k, v in counts.items()}
        assert by_name["longer"]["kinds"] == {"no commas": [3, 6]}
        assert shown.out.count("no commas: ") == 5 and "3 of 6 pairs" in shown.out


SAYS = {
    "sampled": "verdict 1",
    "expected": "probabilities of 0 to 5",
    "checklist": "p(yes) of each requirement",
    "contrast": "log-likelihood ratio, nats",
}


@pytest.mark.parametrize("how", [*READINGS, "all"])
def test_every_judge_on_one_answer(model_folder, how):
    """Guards against: a judge that is shown as an empty verdict."""
    prompt = with_requirements("Write.", LISTS[2])
    asked = ("--prompt", prompt, "--response", "So it is.", "--judge", how, *SMALL)
    args = ("judge.py", "--model", model_folder, *asked)
    shown, found = command(*args), json.loads(command(*args, "--json").out)
    reports = found if how == "all" else [found]
    names = READINGS if how == "all" else [how]
    assert len(reports) == len(names) and shown.code == 0
    assert shown.out.count("mean of the readable scores") == len(names)
    for name, report in zip(names, reports, strict=True):
        assert SAYS[name] in shown.out
        [verdict] = report["verdicts"]
        assert report["reward"] == verdict["score"]
        if name == "checklist":
            assert len(verdict["yes"]) == 3 and 0 <= verdict["score"] <= 5
            assert " ".join(map(str, verdict["yes"])) in shown.out
        if name == "contrast":
            assert str(verdict["ratio"]) in shown.out and f"{report['reward']:.2f}" in shown.out


def test_the_question_of_a_file(model_folder, cwd):
    """Guards against: --rubric that the checklist does not ask."""
    save(tiny_gpt(max_position_embeddings=2048), model_folder)  # no leaning: every word matters
    (cwd / "question.txt").write_text("{prompt}{response}?")
    asked = ("--prompt", "Use no commas.", "--response", "So.", "--judge", "checklist", "--json")
    args = ("judge.py", "--model", model_folder, *asked)
    yes = json.loads(command(*args).out)["verdicts"][0]["yes"]
    mine = json.loads(command(*args, "--rubric", cwd / "question.txt").out)["verdicts"][0]["yes"]
    assert abs(yes[0] - mine[0]) > 0.01
    (cwd / "question.txt").write_text("Well?")
    assert_refused(command(*args, "--rubric", cwd / "question.txt"), "question.txt")
