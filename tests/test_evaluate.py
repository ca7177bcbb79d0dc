"""evaluate.py: comparisons that order, length and missing scores cannot win."""

import json
import random

import pytest
import torch

import evaluate
import world
from conftest import assert_refused, command, flat_gpt, leaning_gpt, tiny_gpt, write_tokenizer
from config import pick_dtype
from data import Candidate, Chat, read_jsonl
from dpo import Recipe
from evaluate import (
    COMPARE,
    Exam,
    by_score,
    distinct,
    divergence,
    ending,
    head_to_head,
    measure,
    preferred,
    true_score,
    versus,
)
from judge import mean
from model import load, save
from sample import Sampling, respond


# ---- truth ----


def test_versus():
    """Guards against: ties and missing scores that count as wins."""
    assert versus([5, 3, 2, None], [4, 3, 4, 1]) == {
        "win_rate": pytest.approx(1 / 3),
        "lose_rate": pytest.approx(1 / 3),
    }
    assert versus([5], []) == {"win_rate": None, "lose_rate": None} == versus([None], [3])


def test_an_unfinished_answer_is_no_success():
    """Guards against: a mean over the survivors, which flatters."""
    exam, answer = (
        Exam([], [], world.oracle),
        world.perfect(world.read_task("Spell cat for Mia."), random.Random(0)).text(),
    )
    assert [
        true_score(exam, Candidate(0, 0, "Spell cat for Mia.", answer, [], done))
        for done in (True, False)
    ] == [5, 0]
    assert true_score(Exam([], []), Candidate(0, 0, "x", "y", [], True)) is None


# ---- what became of the model before ----


@torch.no_grad()
def test_divergence(model, chat):
    """Guards against: a mean over tokens, the prompt counted in, the sign turned round."""
    other = tiny_gpt(seed=1)
    answers = [
        {"prompt": "Why?", "tokens": [70, 71, 72, 1]},
        {"prompt": "How so?", "tokens": [80, 1]},
    ]

    def logp(m, answer) -> float:
        ids = torch.tensor([(start := chat.prompt(answer["prompt"])) + answer["tokens"]])
        table = m.logits(m(ids))[0].log_softmax(-1)
        return sum(
            float(table[len(start) - 1 + i, token]) for i, token in enumerate(answer["tokens"])
        )

    wanted = mean([logp(model, a) - logp(other, a) for a in answers])
    assert abs(wanted) > 0.1 and divergence(model, other, chat, answers, Recipe()) == pytest.approx(
        wanted, abs=1e-3
    )
    assert (
        divergence(model, model, chat, answers, Recipe()) == 0
        and divergence(model, other, chat, [], Recipe()) is None
    )


@torch.no_grad()
def test_divergence_is_that_of_the_distributions(chat):
    """Guards against: a figure that is called KL and is none. One token an answer, drawn at temperature 1."""
    likes = [leaning_gpt({65: 40.0, 66: a, 1: 0.0}, seed=0) for a in (40.0, 42.0)]
    ids = torch.tensor([chat.prompt("Why?")])
    p, q = (m.logits(m(ids))[0, -1].log_softmax(-1) for m in likes)
    exact = float((p.exp() * (p - q)).sum())
    rows = respond(likes[0], chat, ["Why?"], Sampling(1), key="kl", n=3000, label=None)
    found = divergence(
        *likes, chat, [{"prompt": c.prompt, "tokens": c.tokens} for c in rows], Recipe()
    )
    assert exact > 0.1 and found == pytest.approx(exact, abs=0.05)


def test_distinct():
    assert distinct(["a b a b"]) == pytest.approx(2 / 3) and distinct(["a"]) is None


def test_ending():
    """Guards against: the first steps told as the last, and a short log that has no last tenth."""
    assert ending([{"loss": float(i)} for i in range(40)]) == {"loss": 37.5}
    assert ending([{"loss": 2.0}, {"loss": 1.0}]) == {"loss": 1.0} and ending([]) == {}


def test_variance_of_the_votes(chat, monkeypatch):
    """Guards against: the variance over all answers, which says nothing of how sure the judge is of one."""

    def votes(model, chat, candidates, sampling, **_):
        given = [[1.0, 1.0, 4.0], [5.0, 5.0, 5.0], [2.0, None, None]]
        return [
            {"id": c.id, "sample": c.sample, "score": v}
            for c, vs in zip(candidates, given)
            for v in vs
        ]

    monkeypatch.setattr(evaluate, "score", votes)
    monkeypatch.setattr(evaluate, "rank_answers", lambda *a, **k: ([], []))
    ends = flat_gpt({65: 0.5, 1: 0.5})
    figures, rows, rewards = measure(
        ends, chat, Exam(["a", "b", "c"], []), Sampling(64), Sampling(4), k=3, rubric="", key="x"
    )
    assert (
        figures["verdict_variance"] == pytest.approx(1.0)
        and rewards == []
        and all(r["tokens"] for r in rows)
    )


# ---- head to head ----


def side(*texts: str, tokens: int = 1) -> list[Candidate]:
    return [
        Candidate(i, 0, f"prompt {i}", text, [7] * tokens, True) for i, text in enumerate(texts)
    ]


def letters(chat) -> tuple[int, int]:
    return tuple(chat.tokenizer.token_to_id(c) for c in "AB")


@pytest.mark.parametrize("a, b", [(0.9, 0.1), (0.1, 0.9), (0.5, 0.5)])
def test_a_judge_that_likes_a_place_says_nothing(chat, a, b):
    """Guards against: position bias reported as a win. The first answer always wins, so every prompt is a tie."""
    likes = flat_gpt(dict(zip(letters(chat), (a, b))))
    assert (
        preferred(likes, chat, side("one", "two", "three"), side("uno", "due", "tre"), slots=2)
        == [0.5] * 3
    )


def test_both_orders_are_asked(chat, monkeypatch):
    """Guards against: one order asked twice, prompts or answers mixed up, and points that go to the other side."""
    asked = []

    def likes_good(judge, prompts, wanted, **_):
        """The judge prefers what says "good"; of two such, the first place."""
        asked.extend(map(chat.decode, prompts))
        first = [
            text.index("good") < text.index("Answer B") if "good" in text else True
            for text in asked
        ]
        return torch.tensor([[0.6, 0.4] if f else [0.4, 0.6] for f in first])

    monkeypatch.setattr(evaluate, "next_probs", likes_good)
    ours, theirs = (
        side("good x", "bad {}", "so so", "good y"),
        side("bad", "good {prompt}", "la la", "good z"),
    )
    assert preferred(None, chat, ours, theirs, slots=8) == [1, 0, 0.5, 0.5]
    expected = [
        chat.prompt(COMPARE.format(x.prompt, x.response, y.response))
        for a, b in zip(ours, theirs)
        for x, y in ((a, b), (b, a))
    ]
    assert asked == [chat.decode(p) for p in expected]


def test_the_letters_decide(chat):
    """Guards against: the probability of another token read as preference. By brute force, on a real model."""
    judge, (a, b) = tiny_gpt(seed=4), letters(chat)
    ours, theirs = side(*(f"mine {i}" for i in range(12))), side(*(f"{i} yours" for i in range(12)))

    @torch.no_grad()
    def first(x, y) -> bool:
        logits = judge.logits(
            judge(torch.tensor([chat.prompt(COMPARE.format(x.prompt, x.response, y.response))]))
        )[0, -1]
        return bool(logits[a] > logits[b])

    points = preferred(judge, chat, ours, theirs, slots=4)
    assert points == [(first(x, y) + (not first(y, x))) / 2 for x, y in zip(ours, theirs)]
    assert len(set(points)) > 1
    assert preferred(judge, chat, theirs, ours, slots=4) == [1 - p for p in points]


def test_letters_behind_a_space(tmp_path):
    """Guards against: a base model as judge that can only say tie."""
    chat = Chat(write_tokenizer(tmp_path, chat_template=None))
    judge, a = tiny_gpt(seed=4), letters(chat)[0]
    assert chat.response("A")[-1] == a
    ours, theirs = side(*(f"mine {i}" for i in range(12))), side(*(f"{i} yours" for i in range(12)))
    assert len(set(preferred(judge, chat, ours, theirs, slots=4))) > 1


def test_head_to_head_by_hand():
    """Guards against: ties counted as half a win in the shares, and a mean that one side's length decides."""
    ours, theirs = (
        side(*"abcde", tokens=3),
        side(*"abc", tokens=1) + side("d", tokens=3) + side("e", tokens=9),
    )
    report = head_to_head([1, 1, 0.5, 0, 1], ours, theirs)
    assert (report["prompts"], report["win_rate"], report["tie_rate"], report["lose_rate"]) == (
        5,
        0.6,
        0.2,
        0.2,
    )
    assert report["points"] == pytest.approx(0.7)
    assert report["length_controlled"] == pytest.approx((2.5 / 3 + 1 / 2) / 2), (
        "three where ours is longer, two where it is not"
    )
    assert report["mean_length"] == [3, 3]
    for name in ("win", "tie", "lose"):
        low, high = report[f"{name}_interval"]
        assert 0 <= low <= report[f"{name}_rate"] <= high <= 1 and high - low > 0.3
    assert report["points_interval"][0] < 0.7 < report["points_interval"][1] <= 1


@pytest.mark.parametrize("ours, theirs", [(3, 1), (1, 3), (2, 2)])
def test_no_length_control_without_both_kinds(ours, theirs):
    """Guards against: a figure made up where our answer is never, or always, the longer one."""
    report = head_to_head([1, 0], side("a", "b", tokens=ours), side("c", "d", tokens=theirs))
    assert report["length_controlled"] is None and report["points"] == 0.5


def test_sure_wins_have_no_spread():
    """Guards against: an interval that is not one of the shares it stands beside."""
    report = head_to_head([1] * 20, side(*["a"] * 20), side(*["b"] * 20))
    assert report["win_interval"] == report["points_interval"] == [1, 1] and report[
        "lose_interval"
    ] == [0, 0]
    wide, narrow = (
        head_to_head([1, 0] * n, side(*["a"] * 2 * n), side(*["b"] * 2 * n))["win_interval"]
        for n in (10, 250)
    )
    assert wide == [pytest.approx(0.28, abs=0.05), pytest.approx(0.72, abs=0.05)]
    assert narrow == [pytest.approx(0.456, abs=0.01), pytest.approx(0.544, abs=0.01)]


def test_points_from_scores():
    """Guards against: a missing score taken for 0, and a lead of a hair that does not count."""
    assert by_score([5, 1, 3, None, 2, None], [4, 2, 3, 1, None, None]) == [
        1,
        0,
        0.5,
        0.5,
        0.5,
        0.5,
    ]
    assert by_score([3.01, 3.0], [3.0, 3.01]) == [1, 0]


# ---- the command ----


def test_oracle_decides_between_two_models(finished):
    """Guards against: figures of other texts than the two models wrote. Everything is computed once more here."""
    one, two, exam = (finished / "runs" / "toy" / name for name in ("M1", "M2", "exam/M1.jsonl"))
    args = (
        "evaluate.py",
        two,
        one,
        "--judge",
        "oracle",
        "--prompts",
        exam,
        "--count",
        12,
        "--max-new-tokens",
        18,
    )
    shown, report = command(*args), json.loads(command(*args, "--json").out)
    prompts = [r["prompt"] for r in read_jsonl(exam)][:12]
    dtype = pick_dtype("auto", torch.device("cpu"))
    sides = [
        respond(
            load(d, dtype=dtype), Chat(d), prompts, Sampling(18, 0.7, 0.9), key="0", n=1, label=None
        )
        for d in (two, one)
    ]
    scores = [
        [world.oracle(c.prompt, c.response) if c.finished else 0 for c in answers]
        for answers in sides
    ]
    assert report == {
        "judge": "oracle",
        **head_to_head(by_score(*scores), *sides),
        "scores": [mean(s) for s in scores],
    }
    assert (
        report["prompts"] == 12
        and 0 < report["tie_rate"] < 1
        and not all(c.finished for answers in sides for c in answers)
    )
    assert (
        shown.code == 0 and "by truth" in shown.out and f"win {report['win_rate']:.1%}" in shown.out
    )
    assert f"{report['scores'][0]:.2f} against {report['scores'][1]:.2f}" in shown.out


@pytest.fixture
def three(cwd):
    """Directories of two writers and a judge that likes A and the six digits."""
    for name, logits, seed in (("ours", {1: 5.5}, 1), ("theirs", {1: 4}, 2), ("judge", {}, 3)):
        chat = Chat(write_tokenizer(cwd / name))
        if name == "judge":
            logits = {
                chat.tokenizer.token_to_id("A"): 7,
                **{chat.tokenizer.token_to_id(d): 9 for d in "012345"},
            }
        save(leaning_gpt(logits, seed=seed, max_position_embeddings=2048), cwd / name)
    (cwd / "prompts.txt").write_text(
        "Why?\nHow so?\nWhat is it?\nWhen was that?\nWho?\nWhere to?\nWhich one?\nSince when?\n"
    )
    return cwd


def test_a_model_decides_between_two_models(three):
    """Guards against: a judge whose place-liking becomes wins; scores and comparisons mixed up; shares that do not add up."""
    args = (
        "evaluate.py",
        "ours",
        "theirs",
        "--judge",
        "judge",
        "--prompts",
        "prompts.txt",
        "--max-new-tokens",
        30,
    )
    shown, report = command(*args), json.loads(command(*args, "--json").out)
    assert (report["judge"], report["prompts"], report["tie_rate"], report["points"]) == (
        "judge",
        8,
        1,
        0.5,
    )
    scores = report["by_score"]
    assert (
        scores["win_rate"] + scores["tie_rate"] + scores["lose_rate"] == pytest.approx(1)
        and scores["tie_rate"] < 1
    )
    assert (
        all(0 < s < 5 for s in report["scores"]) and report["mean_length"] == scores["mean_length"]
    )
    assert (
        shown.code == 0
        and "both orders" in shown.out
        and "by score" in shown.out
        and "tie 100.0%" in shown.out
    )
    turned = json.loads(command("evaluate.py", "theirs", "ours", *args[3:], "--json").out)
    assert (turned["by_score"]["win_rate"], turned["by_score"]["lose_rate"]) == (
        scores["lose_rate"],
        scores["win_rate"],
    )
    assert (turned["scores"], turned["mean_length"]) == (
        report["scores"][::-1],
        report["mean_length"][::-1],
    )
    assert len({*report["scores"]}) == len({*report["mean_length"]}) == 2


MISTAKES = {
    "no judge": (["ours", "theirs", "--prompts", "prompts.txt"], "--judge"),
    "no prompts": (["ours", "theirs", "--judge", "judge"], "--prompts"),
    "no such model": (
        ["nowhere", "theirs", "--prompts", "prompts.txt", "--judge", "judge"],
        "nowhere",
    ),
    "no such other": (
        ["ours", "nowhere", "--prompts", "prompts.txt", "--judge", "judge"],
        "nowhere",
    ),
    "no such judge": (
        ["ours", "theirs", "--prompts", "prompts.txt", "--judge", "nowhere"],
        "nowhere",
    ),
    "no such prompts": (
        ["ours", "theirs", "--prompts", "nowhere.txt", "--judge", "judge"],
        "nowhere.txt",
    ),
    "no such device": (
        ["ours", "theirs", "--prompts", "prompts.txt", "--judge", "judge", "--device", "tpu"],
        "tpu",
    ),
    "no room": (
        [
            "ours",
            "theirs",
            "--prompts",
            "prompts.txt",
            "--judge",
            "judge",
            "--max-new-tokens",
            "3000",
        ],
        "context of 2048",
    ),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_on_the_command_line(three, case):
    """Guards against: a traceback where one sentence would do."""
    args, says = MISTAKES[case]
    assert_refused(command("evaluate.py", *args), says)


def test_unknown_arguments_of_evaluate(three):
    """Guards against: one model compared with nothing; typos obeyed as the default."""
    assert command("evaluate.py", "ours").code == 2
    assert (
        command("evaluate.py", "ours", "theirs", "--promts", "prompts.txt", "--judge", "judge").code
        == 2
    )


@pytest.mark.parametrize("count", [0, -1])
def test_a_count_of_nothing(three, count):
    """Guards against: the same, for a number of prompts that is none."""
    assert_refused(
        command(
            "evaluate.py",
            "ours",
            "theirs",
            "--prompts",
            "prompts.txt",
            "--judge",
            "judge",
            "--count",
            count,
        ),
        "--count",
    )
