"""What flips a design decision: losses, references, pairs, judges.

Each by hand where it is a formula, and in a whole tiny run.
"""

import json
import math
import shlex

import pytest
import torch
from conftest import TINY, assert_refused, command, tiny_gpt

import dpo as module
import evaluate
import judge
import world
from data import Candidate, Example, read_jsonl
from dpo import Recipe, dpo, dpo_loss
from judge import choose_pair, verdict_pairs
from model import load


def answer(sample: int, reward: float | None, length: int, *, number: int = 0) -> Candidate:
    text, tokens = f"answer {sample}", list(range(length))
    return Candidate(number, sample, "Why?", text, tokens, True, (reward,), reward)


def losses(**more) -> torch.Tensor:
    logps = ([-3.0, -1.0], [-5.0, -2.0], [-4.0, -1.5], [-4.5, -3.5])
    given = [torch.tensor(values, dtype=torch.float64) for values in logps]
    return dpo_loss(*given, beta=0.2, **more)


# ---- losses ----
H = (1.5, -1.0)  # (chosen - ref) - (rejected - ref) of the two pairs above


def test_ipo_by_hand():
    """Guards against: the square of beta * h, or of h - beta."""
    assert losses(kind="ipo").tolist() == pytest.approx([(h - 1 / 0.4) ** 2 for h in H])


def test_label_smoothing_by_hand():
    """Guards against: smoothing that scales the loss and does not turn pairs round."""

    def log_sigmoid(x: float) -> float:
        return -math.log1p(math.exp(-x))

    assert losses().tolist() == pytest.approx([-log_sigmoid(0.2 * h) for h in H])
    smooth = [-0.75 * log_sigmoid(0.2 * h) - 0.25 * log_sigmoid(-0.2 * h) for h in H]
    assert losses(smoothing=0.25).tolist() == pytest.approx(smooth)
    assert losses(smoothing=0.5)[0] > losses()[0]
    assert losses(smoothing=1.0).tolist() == pytest.approx([-log_sigmoid(-0.2 * h) for h in H])


def test_another_reference():
    """Guards against: --ref seed that still compares with M_t.

    Also against: changes that count from the reference and not from M_t.
    """
    pairs = [(Example([5, 6, 7], [8, 9, 1]), Example([5, 6, 7], [10, 1])) for _ in range(4)]
    recipe = Recipe(lr=1e-4, batch_size=4)
    own = dpo(tiny_gpt(), pairs, recipe, beta=0.1)[0]
    other = dpo(tiny_gpt(), pairs, recipe, beta=0.1, ref=tiny_gpt(seed=3))[0]
    assert own["dpo_loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert abs(other["dpo_loss"] - math.log(2)) > 1e-3
    assert abs(other["chosen_change"]) < 1e-4 and abs(own["chosen_change"]) < 1e-4


# ---- pairs ----
def test_length_control():
    """Guards against: the longest of the best.

    Also against: a rejected answer that is as good as the chosen one.
    """
    group = [
        answer(0, 5.0, 30),
        answer(1, 4.7, 10),
        answer(2, 1.0, 5),
        answer(3, 1.3, 20),
        answer(4, 3.0, 1),
        answer(5, None, 0),
    ]
    plain, controlled = choose_pair(group), choose_pair(group, 0.1)
    assert (plain.chosen.sample, plain.rejected.sample) == (0, 2)
    assert (controlled.chosen.sample, controlled.rejected.sample) == (1, 3)
    assert choose_pair([answer(0, 3.0, 1), answer(1, 3.0, 9)], 0.3) is None


def test_pairs_for_the_judge(chat):
    """Guards against: the outlier preferred.

    Also against: unreadable votes taken for outliers, several pairs a prompt.
    """
    answers = [answer(0, 4.0, 1), answer(1, 4.0, 1)]
    answers += [answer(0, 2.0, 1, number=1), answer(0, None, 1, number=2)]
    votes = [(4, 4, 3), (5, 1, 5), (2, 2, 2), (None, None, None)]
    rows = []
    for judged, scores in zip(answers, votes):
        for v, score in enumerate(scores):
            place = {"id": judged.id, "sample": judged.sample, "vote": v}
            rows.append({**place, "text": f"text {score}", "score": score})
    [(chosen, rejected)] = verdict_pairs(chat, "{prompt}|{response}", answers, rows)
    assert chosen.prompt == rejected.prompt == chat.prompt("Why?|answer 1")
    assert chat.decode(chosen.response) == "text 5" and chat.decode(rejected.response) == "text 1"


# ---- whole runs ----
def run(*args) -> dict:
    done = command("train.py", *TINY, "--run", "x", *args)
    assert done.code == 0, done.err
    log = [r for r in read_jsonl("runs/x/log.jsonl") if r["t"] == 1]
    return {r["stage"]: r["told"] for r in log} | {"out": done.out}


@pytest.fixture
def spied(monkeypatch):
    """What every DPO was asked for."""
    calls, real = [], module.dpo

    def noting(model, pairs, recipe, **more):
        calls.append((pairs, more))
        return real(model, pairs, recipe, **more)

    monkeypatch.setattr(module, "dpo", noting)
    return calls


def test_switches_reach_the_loss(cwd, spied):
    """Guards against: a flag that is recorded and never used."""
    run(*shlex.split("--loss ipo --ref seed --label-smoothing 0.2 --meta --beta 0.4 --k 3"))
    [(pairs, more)] = spied
    assert (more["kind"], more["smoothing"], more["beta"]) == ("ipo", 0.2, 0.4)
    assert more["ref"] is not None
    assert len(pairs) > len(read_jsonl("runs/x/t1/pairs.jsonl")), "pairs for the judge join in"
    assert json.loads((cwd / "runs/x/config.json").read_text())["settings"]["meta"] is True


def test_default_switches(cwd, spied):
    """Guards against: a switch that is on by itself."""
    run()
    [(pairs, more)] = spied
    assert (more["kind"], more["smoothing"], more["ref"]) == ("dpo", 0.0, None)
    assert len(pairs) == len(read_jsonl("runs/x/t1/pairs.jsonl"))


def test_cream(cwd, spied):
    """Guards against: a ranking compared with itself.

    M_1 has no one before it; M_2 is compared with M_1 on M_2's answers.
    """
    run("--cream", "--iters", 2)
    (_, first), (_, second) = spied
    assert first["smoothing"] == 0 and 0 < second["smoothing"] < 1
    rows = read_jsonl("runs/x/t2/verdicts_before.jsonl")
    paired = {p["id"] for p in read_jsonl("runs/x/t2/pairs.jsonl")}
    verdicts = read_jsonl("runs/x/t2/verdicts.jsonl")
    judged = {(r["id"], r["sample"]) for r in verdicts if r["id"] in paired}
    assert {(r["id"], r["sample"]) for r in rows} == judged, (
        "prompts that gave no pair are not learnt from, so their ties count for nothing"
    )


def test_positive_only(cwd, spied):
    """Guards against: DPO all the same."""
    told = run("--positive-only")
    assert not spied
    assert "dpo_loss" not in read_jsonl("runs/x/t1/dpo.jsonl")[0]
    assert "pairs, loss" in told["dpo"]


def test_no_judge_data(cwd):
    """Guards against: judge examples that come in all the same.

    Without them few verdicts can be read, so pairs may be none.
    """
    done = command("train.py", *TINY, "--run", "x", "--no-eft")
    assert (cwd / "runs/x/t0/eft.jsonl").read_text() == ""
    readable = [v["score"] is not None for v in read_jsonl("runs/x/t1/verdicts.jsonl")]
    assert sum(readable) < len(readable) / 2
    if done.code:
        assert_refused(done, "no preference pair", "--eft")


def test_the_oracle_as_judge(cwd):
    """Guards against: an upper bound that is not the truth."""
    run("--judge-model", "oracle")
    answers = {(r["id"], r["sample"]): r for r in read_jsonl("runs/x/t1/responses.jsonl")}
    prompts = [r["prompt"] for r in read_jsonl("runs/x/t1/prompts.jsonl")]
    for v in read_jsonl("runs/x/t1/verdicts.jsonl"):
        response = answers[v["id"], v["sample"]]
        if response["finished"]:
            assert v["score"] == world.oracle(prompts[v["id"]], response["response"])
        else:
            assert v["score"] == 0


def test_another_judge(cwd, finished, monkeypatch):
    """Guards against: --judge-model that is read and not asked.

    Also against: one that is asked in the exam of M_t as a judge too.
    """
    other, asked, real = finished / "runs/toy/M2", {}, judge.score

    def score(model, *args, key, **more):
        asked[key] = model.norm.weight.tolist()
        return real(model, *args, key=key, **more)

    for place in (judge, evaluate):
        monkeypatch.setattr(place, "score", score)
    run("--judge-model", other)
    theirs = load(other).norm.weight.tolist()
    assert asked["0 verdicts 1"] == theirs and asked["0 exam verdicts"] != theirs


@pytest.mark.parametrize(
    "args, says",
    [
        (("--judge-model", "nowhere"), "nowhere"),
        (("--prompt-writer", "nowhere"), "nowhere"),
        (("--loss", "hinge"), "--loss"),
        (("--ref", "mine"), "--ref"),
        (("--label-smoothing", -1), "--label-smoothing"),
        (("--ranked", "x.jsonl"), "--ranked"),
        (("--cream", "--judge-model", "oracle"), "--cream"),
    ],
    ids=str,
)
def test_refused_before_anything_is_made(cwd, args, says):
    """Guards against: a mistake that is found out after an hour of training."""
    assert_refused(command("train.py", *TINY, *args), says)
    assert not (cwd / "runs").exists()


def test_the_oracle_knows_only_the_toy(checkpoint):
    """Guards against: a truth made up for prompts that the toy world never wrote."""
    args = ("--prompts", "x", "--judge-model", "oracle")
    assert_refused(command("train.py", "--model", checkpoint, *args), "oracle")
