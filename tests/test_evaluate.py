"""measure/truth.py, exam.py and the command evaluate.py.

Order, length and missing scores cannot win a comparison.
"""

import json
import random

import pytest
import torch
from conftest import (
    assert_refused,
    command,
    flat_gpt,
    leaning_gpt,
    mute_writer,
    tiny_gpt,
    write_tokenizer,
)

import evaluate as evaluate_module
from core.chat import Chat
from core.device import pick_dtype
from core.draw import Sampling
from core.files import read_jsonl
from core.records import Candidate
from core.statistics import mean
from evaluate import COMPARE, by_score, head_to_head, preferred
from judge import Judging
from measure import exam as exam_module
from measure.exam import (
    Student,
    distinct,
    divergence,
    divergences,
    ending,
    first_answer_logps,
    measure,
)
from measure.truth import true_score, versus
from model import GPT, load, save
from sample import Writer, respond
from worlds.toy import oracle, perfect, read_task
from worlds.world import Exam

# ---- truth ----


def exam_rows(*scores: int | None) -> list[dict]:
    return [{"true_score": score} for score in scores]


def test_versus():
    """Guards against: ties and missing scores that count as wins."""
    third = pytest.approx(1 / 3)
    shares = versus(exam_rows(5, 3, 2, None), exam_rows(4, 3, 4, 1))
    assert shares == {"win_rate": third, "lose_rate": third}
    nothing = {"win_rate": None, "lose_rate": None}
    assert versus(exam_rows(5), []) == nothing
    assert versus(exam_rows(None), exam_rows(3)) == nothing


def test_an_unfinished_answer_is_no_success():
    """Guards against: a mean over the survivors, which flatters."""
    prompt = "Spell cat for Mia."
    answer = perfect(read_task(prompt), random.Random(0)).text()
    exam = Exam([], [], oracle)
    assert true_score(exam, Candidate(0, 0, prompt, answer, [], True)) == 5
    assert true_score(exam, Candidate(0, 0, prompt, answer, [], False)) == 0
    assert true_score(Exam([], []), Candidate(0, 0, "x", "y", [], True)) is None


# ---- the model and those before it ----


@torch.no_grad()
def test_divergence(model, chat):
    """Guards against: a mean over tokens, the prompt counted in, the sign turned round."""
    other = tiny_gpt(seed=1)
    answers = [
        {"prompt": "Why?", "sample": 0, "tokens": [70, 71, 72, 1]},
        {"prompt": "How so?", "sample": 0, "tokens": [80, 1]},
    ]

    def logp(m: GPT, answer: dict) -> float:
        prompt = chat.prompt(answer["prompt"])
        ids = torch.tensor([prompt + answer["tokens"]])
        table = m.logits(m(ids))[0].log_softmax(-1)
        first = len(prompt) - 1
        return sum(float(table[first + i, token]) for i, token in enumerate(answer["tokens"]))

    expected = mean([logp(model, a) - logp(other, a) for a in answers])
    assert abs(expected) > 0.1
    writer, before = Writer(model, chat), Writer(other, chat)

    def between(one: Writer, two: Writer, rows: list[dict]) -> float:
        return divergence(first_answer_logps(one, rows), first_answer_logps(two, rows))

    found = between(writer, before, answers)
    assert found == pytest.approx(expected, abs=1e-3)
    more = [*answers, {"prompt": "Why?", "sample": 1, "tokens": [90, 91, 1]}]
    first_samples = between(writer, before, more)
    assert first_samples == found, "of several answers to a prompt, the first"
    assert between(writer, writer, answers) == 0

    def load_alone(t: int) -> Writer:
        assert not hasattr(writer, "model"), "one copy at a time"
        return before

    student = Student(writer, Sampling(4), None, "key", load_alone)
    assert divergences(3, student, answers) == {"kl_prev": found, "kl_first": found}
    assert set(divergences(1, student, answers).values()) == {None}
    assert set(divergences(2, student, []).values()) == {None}


@torch.no_grad()
def test_divergence_is_that_of_the_distributions(chat):
    """Guards against: a figure that is called KL and is none.

    One token an answer, drawn at temperature 1.
    """
    model, other = (leaning_gpt({65: 40.0, 66: a, 1: 0.0}, seed=0) for a in (40.0, 42.0))
    ids = torch.tensor([chat.prompt("Why?")])
    p, q = (m.logits(m(ids))[0, -1].log_softmax(-1) for m in (model, other))
    exact = float((p.exp() * (p - q)).sum())
    candidates = respond(Writer(model, chat), ["Why?"], Sampling(1, n=1000), key="kl", label=None)
    answers = [{"prompt": c.prompt, "sample": 0, "tokens": c.tokens} for c in candidates]
    assert exact > 0.1
    one, two = (first_answer_logps(Writer(m, chat), answers) for m in (model, other))
    found = divergence(one, two)
    assert found == pytest.approx(exact, abs=0.1)


def test_distinct():
    assert distinct(["a b a b"]) == pytest.approx(2 / 3)
    assert distinct(["a"]) is None


def test_ending():
    """Guards against: the first steps told as the last.

    Also against: a short log that has no last tenth.
    """
    assert ending([{"loss": float(i)} for i in range(40)]) == {"loss": 37.5}
    assert ending([{"loss": 2.0}, {"loss": 1.0}]) == {"loss": 1.0}
    assert ending([]) == {}


def test_variance_of_the_votes(chat, monkeypatch):
    """Guards against: the variance over all answers, which says nothing of how sure the judge is
    of one."""

    def fixed_votes(writer, candidates, judging, **_) -> list[dict]:
        votes = [[1.0, 1.0, 4.0], [5.0, 5.0, 5.0], [2.0, None, None]]
        rows = []
        for candidate, scores in zip(candidates, votes):
            rows += [{"id": candidate.id, "sample": candidate.sample, "score": s} for s in scores]
        return rows

    monkeypatch.setattr(exam_module, "judge_answers", fixed_votes)
    monkeypatch.setattr(exam_module, "judge_ranked", lambda *a, **k: ([], []))
    ends = flat_gpt({65: 0.5, 1: 0.5})
    student = Student(
        writer=Writer(ends, chat),
        answering=Sampling(64),
        judging=Judging("", Sampling(4, n=3)),
        key="x",
        load=None,
    )
    figures, answers, rewards = measure(student, Exam(["a", "b", "c"], []))
    assert figures["verdict_variance"] == pytest.approx(1.0)
    assert rewards == []
    assert all(row["tokens"] for row in answers)


# ---- head to head ----


def side(*texts: str, tokens: int = 1) -> list[Candidate]:
    return [
        Candidate(i, 0, f"prompt {i}", text, [7] * tokens, True) for i, text in enumerate(texts)
    ]


def letters(chat: Chat) -> tuple[int, int]:
    return tuple(chat.tokenizer.token_to_id(c) for c in "AB")


@pytest.mark.parametrize("a, b", [(0.9, 0.1), (0.1, 0.9), (0.5, 0.5)])
def test_a_judge_that_likes_a_place_says_nothing(chat, a, b):
    """Guards against: position bias reported as a win.

    The first answer always wins, so every prompt is a tie.
    """
    judge = Writer(flat_gpt(dict(zip(letters(chat), (a, b)))), chat)
    ours = side("one", "two", "three")
    theirs = side("uno", "due", "tre")
    assert preferred(judge, ours, theirs, slots=2) == [0.5] * 3


def test_both_orders_are_asked(chat, monkeypatch):
    """Guards against: one order asked twice, prompts or answers mixed up.

    Also against: points that go to the other side.
    """
    questions = []

    def likes_good(judge, prompts, wanted, **_) -> list[list[float]]:
        """The judge prefers what says "good"; of two such, the first place."""
        questions.extend(map(chat.decode, prompts))
        probs = []
        for text in questions:
            first = "good" not in text or text.index("good") < text.index("Answer B")
            probs.append([0.6, 0.4] if first else [0.4, 0.6])
        return probs

    monkeypatch.setattr(evaluate_module, "next_probs", likes_good)
    ours = side("good x", "bad {}", "so so", "good y")
    theirs = side("bad", "good {prompt}", "la la", "good z")
    assert preferred(mute_writer(chat), ours, theirs, slots=8) == [1, 0, 0.5, 0.5]
    expected = []
    for a, b in zip(ours, theirs):
        expected.append(COMPARE.format(a.prompt, a.response, b.response))
        expected.append(COMPARE.format(a.prompt, b.response, a.response))
    assert questions == [chat.decode(chat.prompt(text)) for text in expected]


def test_the_letters_decide(chat):
    """Guards against: the probability of another token read as preference.

    By brute force, on a real model.
    """
    model = tiny_gpt(seed=4)
    judge = Writer(model, chat)
    a, b = letters(chat)
    ours = side(*(f"mine {i}" for i in range(12)))
    theirs = side(*(f"{i} yours" for i in range(12)))

    @torch.no_grad()
    def first(x: Candidate, y: Candidate) -> bool:
        ids = torch.tensor([chat.prompt(COMPARE.format(x.prompt, x.response, y.response))])
        logits = model.logits(model(ids))[0, -1]
        return bool(logits[a] > logits[b])

    points = preferred(judge, ours, theirs, slots=4)
    assert points == [(first(x, y) + (not first(y, x))) / 2 for x, y in zip(ours, theirs)]
    assert len(set(points)) > 1
    assert preferred(judge, theirs, ours, slots=4) == [1 - p for p in points]


def test_letters_behind_a_space(tmp_path):
    """Guards against: a base model as judge that can only say tie."""
    chat = Chat(write_tokenizer(tmp_path, chat_template=None))
    judge = Writer(tiny_gpt(seed=4), chat)
    assert chat.response("A")[-1] == letters(chat)[0]
    ours = side(*(f"mine {i}" for i in range(12)))
    theirs = side(*(f"{i} yours" for i in range(12)))
    assert len(set(preferred(judge, ours, theirs, slots=4))) > 1


def test_head_to_head_by_hand():
    """Guards against: ties counted as half a win in the shares.

    Also against: a mean that one side's length decides.
    """
    ours = side(*"abcde", tokens=3)
    theirs = side(*"abc", tokens=1) + side("d", tokens=3) + side("e", tokens=9)
    report = head_to_head([1, 1, 0.5, 0, 1], ours, theirs)
    assert report["prompts"] == 5
    assert [report[f"{name}_rate"] for name in ("win", "tie", "lose")] == [0.6, 0.2, 0.2]
    assert report["points"] == pytest.approx(0.7)
    # Ours is the longer one three times, and is not twice.
    assert report["length_controlled"] == pytest.approx((2.5 / 3 + 1 / 2) / 2)
    assert report["mean_length"] == [3, 3]
    for name in ("win", "tie", "lose"):
        low, high = report[f"{name}_interval"]
        assert 0 <= low <= report[f"{name}_rate"] <= high <= 1
        assert high - low > 0.3
    assert report["points_interval"][0] < 0.7 < report["points_interval"][1] <= 1


@pytest.mark.parametrize("ours, theirs", [(3, 1), (1, 3), (2, 2)])
def test_no_length_control_without_both_kinds(ours, theirs):
    """Guards against: a figure made up where our answer is never, or always, the longer one."""
    report = head_to_head([1, 0], side("a", "b", tokens=ours), side("c", "d", tokens=theirs))
    assert report["length_controlled"] is None
    assert report["points"] == 0.5


def test_sure_wins_have_no_spread():
    """Guards against: an interval that is not one of the shares it stands beside."""
    report = head_to_head([1] * 20, side(*["a"] * 20), side(*["b"] * 20))
    assert report["win_interval"] == report["points_interval"] == [1, 1]
    assert report["lose_interval"] == [0, 0]
    wide, narrow = (
        head_to_head([1, 0] * n, side(*["a"] * 2 * n), side(*["b"] * 2 * n))["win_interval"]
        for n in (10, 250)
    )
    assert wide == [pytest.approx(0.28, abs=0.05), pytest.approx(0.72, abs=0.05)]
    assert narrow == [pytest.approx(0.456, abs=0.01), pytest.approx(0.544, abs=0.01)]


def test_points_from_scores():
    """Guards against: a missing score taken for 0, and a lead of a hair that does not count."""
    points = by_score([5, 1, 3, None, 2, None], [4, 2, 3, 1, None, None])
    assert points == [1, 0, 0.5, 0.5, 0.5, 0.5]
    assert by_score([3.01, 3.0], [3.0, 3.01]) == [1, 0]


# ---- the command ----


def test_oracle_decides_between_two_models(finished):
    """Guards against: figures of other texts than the two models wrote.

    Everything is computed once more here.
    """
    one, two, exam = (finished / "runs" / "toy" / name for name in ("M1", "M2", "exam/M1.jsonl"))
    args = ["evaluate.py", two, one, "--judge", "oracle", "--prompts", exam]
    args += ["--count", 12, "--max-new-tokens", 18]
    done = command(*args)
    report = json.loads(command(*args, "--json").out)
    prompts = [r["prompt"] for r in read_jsonl(exam)][:12]
    dtype = pick_dtype("auto", torch.device("cpu"))
    sides = []
    for folder in (two, one):
        model = load(folder, dtype=dtype)
        sampling = Sampling(18, 0.7, 0.9)
        sides.append(respond(Writer(model, Chat(folder)), prompts, sampling, key="0", label=None))
    scores = [
        [oracle(c.prompt, c.response) if c.finished else 0 for c in answers] for answers in sides
    ]
    assert report == {
        "judge": "oracle",
        **head_to_head(by_score(*scores), *sides),
        "scores": [mean(s) for s in scores],
    }
    assert report["prompts"] == 12
    assert 0 < report["tie_rate"] < 1
    assert not all(c.finished for answers in sides for c in answers)
    assert done.code == 0
    assert "by truth" in done.out
    assert f"win {report['win_rate']:.1%}" in done.out
    assert f"{report['scores'][0]:.2f} against {report['scores'][1]:.2f}" in done.out


@pytest.fixture
def three(cwd):
    """Directories of two writers and a judge that likes A and the six digits."""
    for name in ("ours", "theirs", "judge"):
        chat = Chat(write_tokenizer(cwd / name))
    likes = {chat.tokenizer.token_to_id(digit): 9 for digit in "012345"}
    likes[chat.tokenizer.token_to_id("A")] = 7
    for name, logits, seed in (("ours", {1: 5.5}, 1), ("theirs", {1: 4}, 2), ("judge", likes, 3)):
        save(leaning_gpt(logits, seed=seed, max_position_embeddings=2048), cwd / name)
    prompts = "Why? How so? What is it? When was that? Who? Where to? Which one? Since when?"
    (cwd / "prompts.txt").write_text(prompts.replace("? ", "?\n") + "\n")
    return cwd


def test_a_model_decides_between_two_models(three):
    """Guards against: a judge whose place-liking becomes wins.

    Also against: scores and comparisons mixed up; shares that do not add up.
    """
    settings = ("--judge", "judge", "--prompts", "prompts.txt", "--max-new-tokens", 30)
    done = command("evaluate.py", "ours", "theirs", *settings)
    report = json.loads(command("evaluate.py", "ours", "theirs", *settings, "--json").out)
    assert (report["judge"], report["prompts"]) == ("judge", 8)
    assert (report["tie_rate"], report["points"]) == (1, 0.5)
    scores = report["by_score"]
    assert scores["win_rate"] + scores["tie_rate"] + scores["lose_rate"] == pytest.approx(1)
    assert scores["tie_rate"] < 1
    assert all(0 < s < 5 for s in report["scores"])
    assert report["mean_length"] == scores["mean_length"]
    assert done.code == 0
    assert all(words in done.out for words in ("both orders", "by score", "tie 100.0%"))

    turned = json.loads(command("evaluate.py", "theirs", "ours", *settings, "--json").out)
    assert turned["by_score"]["win_rate"] == scores["lose_rate"]
    assert turned["by_score"]["lose_rate"] == scores["win_rate"]
    assert turned["scores"] == report["scores"][::-1]
    assert turned["mean_length"] == report["mean_length"][::-1]
    assert len({*report["scores"]}) == len({*report["mean_length"]}) == 2


MISTAKES = {  # what is wrong: the arguments, and a word of the sentence that says so
    "no judge": ("ours theirs --prompts prompts.txt", "--judge"),
    "no prompts": ("ours theirs --judge judge", "--prompts"),
    "no such model": ("nowhere theirs --prompts prompts.txt --judge judge", "nowhere"),
    "no such other": ("ours nowhere --prompts prompts.txt --judge judge", "nowhere"),
    "no such judge": ("ours theirs --prompts prompts.txt --judge nowhere", "nowhere"),
    "no such prompts": ("ours theirs --prompts nowhere.txt --judge judge", "nowhere.txt"),
    "no such device": ("ours theirs --prompts prompts.txt --judge judge --device tpu", "tpu"),
    "no room": (
        "ours theirs --prompts prompts.txt --judge judge --max-new-tokens 3000",
        "context of both models",
    ),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_on_the_command_line(three, case):
    """Guards against: a traceback where one sentence would do."""
    args, says = MISTAKES[case]
    assert_refused(command("evaluate.py", *args.split()), says)


def test_unknown_arguments_of_evaluate(three):
    """Guards against: one model compared with nothing; typos obeyed as the default."""
    assert command("evaluate.py", "ours").code == 2
    typo = "ours theirs --promts prompts.txt --judge judge"
    assert command("evaluate.py", *typo.split()).code == 2


@pytest.mark.parametrize("count", [0, -1])
def test_a_count_of_nothing(three, count):
    """Guards against: the same, for a number of prompts that is none."""
    args = "ours theirs --prompts prompts.txt --judge judge --count"
    assert_refused(command("evaluate.py", *args.split(), count), "--count")
