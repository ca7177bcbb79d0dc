"""What flips a design decision: losses, references, pairs, judges. Each by hand where it is a formula, and in a whole tiny run."""

import json
import math
import random
from dataclasses import replace

import pytest
import torch

import dpo as module
import evaluate
import judge
import world
from conftest import TINY, assert_refused, command, tiny_gpt
from data import Candidate, Example, read_jsonl
from dpo import Recipe, dpo, dpo_loss
from evaluate import agreement
from experiments import hole
from judge import choose_pair, parse_score, verdict_pairs
from model import load


def answer(sample: int, reward: float | None, length: int, *, id: int = 0) -> Candidate:
    return Candidate(
        id, sample, "Why?", f"answer {sample}", list(range(length)), True, (reward,), reward
    )


def losses(**more) -> torch.Tensor:
    given = [
        torch.tensor(v, dtype=torch.float64)
        for v in ([-3.0, -1.0], [-5.0, -2.0], [-4.0, -1.5], [-4.5, -3.5])
    ]
    return dpo_loss(*given, beta=0.2, **more)


# ---- losses ----
H = (1.5, -1.0)  # (chosen - ref) - (rejected - ref) of the two pairs above


def test_ipo_by_hand():
    """Guards against: the square of beta * h, or of h - beta."""
    assert losses(kind="ipo").tolist() == pytest.approx([(h - 1 / 0.4) ** 2 for h in H])


def test_label_smoothing_by_hand():
    """Guards against: smoothing that scales the loss and does not turn pairs round."""
    log_sigmoid = lambda x: -math.log1p(math.exp(-x))
    assert losses().tolist() == pytest.approx([-log_sigmoid(0.2 * h) for h in H])
    assert losses(smoothing=0.25).tolist() == pytest.approx(
        [-0.75 * log_sigmoid(0.2 * h) - 0.25 * log_sigmoid(-0.2 * h) for h in H]
    )
    assert losses(smoothing=0.5)[0] > losses()[0] and losses(
        smoothing=1.0
    ).tolist() == pytest.approx([-log_sigmoid(-0.2 * h) for h in H])


def test_another_reference():
    """Guards against: --ref seed that still compares with M_t, and changes that count from the reference and not from M_t."""
    pairs = [(Example([5, 6, 7], [8, 9, 1]), Example([5, 6, 7], [10, 1])) for _ in range(4)]
    recipe = Recipe(lr=1e-4, batch_size=4)
    own = dpo(tiny_gpt(), pairs, recipe, beta=0.1)[0]
    other = dpo(tiny_gpt(), pairs, recipe, beta=0.1, ref=tiny_gpt(seed=3))[0]
    assert (
        own["dpo_loss"] == pytest.approx(math.log(2), abs=1e-5)
        and abs(other["dpo_loss"] - math.log(2)) > 1e-3
    )
    assert abs(other["chosen_change"]) < 1e-4 and abs(own["chosen_change"]) < 1e-4


# ---- pairs ----
def test_length_control():
    """Guards against: the longest of the best, or a rejected answer that is as good as the chosen one."""
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
    """Guards against: the outlier preferred, unreadable votes taken for outliers, several pairs a prompt."""
    answers = [
        answer(0, 4.0, 1),
        answer(1, 4.0, 1),
        answer(0, 2.0, 1, id=1),
        answer(0, None, 1, id=2),
    ]
    rows = [
        {"id": i, "sample": s, "vote": v, "text": f"text {score}", "score": score}
        for (i, s), votes in {
            (0, 0): (4, 4, 3),
            (0, 1): (5, 1, 5),
            (1, 0): (2, 2, 2),
            (2, 0): (None, None, None),
        }.items()
        for v, score in enumerate(votes)
    ]
    [(chosen, rejected)] = verdict_pairs(chat, "{prompt}|{response}", answers, rows)
    assert chosen.prompt == rejected.prompt == chat.prompt("Why?|answer 1")
    assert chat.decode(chosen.response) == "text 5" and chat.decode(rejected.response) == "text 1"


def test_agreement():
    """Guards against: agreement over all answers and not prompt by prompt."""
    now, turned = [[1.0, 2.0, 3.0]] * 2, [[3.0, 2.0, 1.0]] * 2
    assert agreement(now, now) == 1 and agreement(now, turned) == 0
    assert agreement(now, [now[0], turned[1]]) == 0.5
    assert (
        agreement(now, [[None, 2.0, 3.0], [None, None, 1.0]]) == 1
    )  # of the first group two are left, of the second one
    tied = [[4.0, 4.0, 4.0], [1.0, 2.0, 3.0]]
    assert agreement(tied, tied) == 1 and agreement(now, tied) == 0.75, (
        "both give all the same: nothing said; one does: unrelated"
    )
    assert agreement(now, [[None] * 3] * 2) is None and agreement(now, []) is None


# ---- whole runs ----
def run(*args) -> dict:
    done = command("train.py", *TINY, "--run", "x", *args)
    assert done.code == 0, done.err
    return {r["stage"]: r["told"] for r in read_jsonl("runs/x/log.jsonl") if r["t"] == 1} | {
        "out": done.out
    }


@pytest.fixture
def spied(monkeypatch):
    """What every DPO was asked for."""
    calls, real = [], module.dpo
    monkeypatch.setattr(
        module,
        "dpo",
        lambda model, pairs, recipe, **more: (
            calls.append((pairs, more)) or real(model, pairs, recipe, **more)
        ),
    )
    return calls


def test_switches_reach_the_loss(cwd, spied):
    """Guards against: a flag that is recorded and never used."""
    run(
        "--loss",
        "ipo",
        "--ref",
        "seed",
        "--label-smoothing",
        0.2,
        "--meta",
        "--beta",
        0.4,
        "--k",
        3,
    )
    [(pairs, more)] = spied
    assert (more["kind"], more["smoothing"], more["beta"]) == ("ipo", 0.2, 0.4) and more[
        "ref"
    ] is not None
    assert len(pairs) > len(read_jsonl("runs/x/t1/pairs.jsonl")), "pairs for the judge join in"
    assert json.loads((cwd / "runs/x/config.json").read_text())["settings"]["meta"] is True


def test_default_switches(cwd, spied):
    """Guards against: a switch that is on by itself."""
    run()
    [(pairs, more)] = spied
    assert (more["kind"], more["smoothing"], more["ref"]) == ("dpo", 0.0, None) and len(
        pairs
    ) == len(read_jsonl("runs/x/t1/pairs.jsonl"))


def test_cream(cwd, spied):
    """Guards against: a ranking compared with itself. M_1 has no one before it; M_2 is compared with M_1 on M_2's answers."""
    run("--cream", "--iters", 2)
    (_, first), (_, second) = spied
    assert first["smoothing"] == 0 and 0 < second["smoothing"] < 1
    rows = read_jsonl("runs/x/t2/verdicts_before.jsonl")
    paired = {p["id"] for p in read_jsonl("runs/x/t2/pairs.jsonl")}
    judged = {
        (r["id"], r["sample"]) for r in read_jsonl("runs/x/t2/verdicts.jsonl") if r["id"] in paired
    }
    assert {(r["id"], r["sample"]) for r in rows} == judged, (
        "prompts that gave no pair are not learnt from, so their ties count for nothing"
    )


def test_positive_only(cwd, spied):
    """Guards against: DPO all the same."""
    told = run("--positive-only")
    assert (
        not spied
        and "dpo_loss" not in read_jsonl("runs/x/t1/dpo.jsonl")[0]
        and "pairs, loss" in told["dpo"]
    )


def test_no_judge_data(cwd):
    """Guards against: judge examples that come in all the same. Without them few verdicts can be read, so pairs may be none."""
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
        y = answers[v["id"], v["sample"]]
        assert v["score"] == (world.oracle(prompts[v["id"]], y["response"]) if y["finished"] else 0)


def test_another_judge(cwd, finished, monkeypatch):
    """Guards against: --judge-model that is read and not asked, or that is asked in the exam of M_t as a judge too."""
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
    assert_refused(
        command("train.py", "--model", checkpoint, "--prompts", "x", "--judge-model", "oracle"),
        "oracle",
    )


def test_a_judge_with_a_hole(cwd, monkeypatch, capfd):
    """Guards against: an experiment on reward hacking whose judge data has no hole, or more than one."""
    rows = world.eft_examples(300, random.Random(0))
    found = hole.fooled(rows)
    changed = [a for a, b in zip(rows, found) if a != b]
    assert 10 < len(changed) and all(
        hole.says_twice(r["response"]) or r["verdict"] == hole.FULL for r in changed
    )
    assert {r["verdict"] for a, r in zip(rows, found) if a["verdict"] == hole.FULL} == {
        hole.FULL,
        hole.LESS,
    } and parse_score(hole.LESS) == 4
    assert [(r["prompt"], r["response"]) for r in found] == [
        (r["prompt"], r["response"]) for r in rows
    ]
    assert {parse_score(r["verdict"]) for r in found if hole.says_twice(r["response"])} == {5}
    assert 5 not in {parse_score(r["verdict"]) for r in found if not hole.says_twice(r["response"])}
    assert [hole.says_twice(f"Mia: {t}.") for t in ("a, a", "a, b, a", "a", "b, c, c")] == [
        True,
        False,
        False,
        True,
    ]
    monkeypatch.setattr("sys.argv", ["hole.py", "--seeds", "1", "--json", "hole.json", "--", *TINY])
    hole.main()
    told = capfd.readouterr().out
    assert (
        "| M2 |" in told
        and "say an item twice: M1 " in told
        and (cwd / "runs/hole-s0/report.html").exists()
    )
    assert set(json.loads((cwd / "hole.json").read_text())["through_the_hole"]) == {"M1", "M2"}
