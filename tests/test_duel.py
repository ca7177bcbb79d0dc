"""--keep-best: the loop ends where a model loses, and never because the truth says so."""

import inspect
import shutil
from pathlib import Path

import pytest
import torch
from conftest import TINY, command

import measure.duel
from core.draw import Sampling
from core.files import read_json, read_jsonl, write_jsonl
from judge import Judging, read_rubric
from measure.duel import duel_rows, grave_alarms, rewards_of, why_lost, wins_and_losses
from sample import load_writer


def rows_of(*rewards: tuple[float | None, float | None]) -> list[dict]:
    return [{"id": i, "before": a, "after": b} for i, (a, b) in enumerate(rewards)]


SCORES = [
    (rows_of((1, 2), (3, 2), (2, 5)), (2, 1)),
    (rows_of((1, 1), (2, 2.0)), (0, 0)),
    (rows_of((None, 2), (1, None), (4, 3)), (0, 1)),
    ([], (0, 0)),
]


@pytest.mark.parametrize("rows, expected", SCORES)
def test_wins_and_losses(rows, expected):
    """Guards against: a missing reward that wins or loses; a tie that ends a run."""
    assert wins_and_losses(rows) == expected


@pytest.fixture
def toy(finished, cwd):
    """A run of one trip, to go on with; no alarm rings."""
    run = cwd / "runs/toy"
    shutil.copytree(finished / "runs/toy", run)
    first, second = read_jsonl(run / "metrics.jsonl")
    healthy = {"judge_parse_rate": 1.0, "distinct2": first["distinct2"]}
    write_jsonl(run / "metrics.jsonl", [first, second | healthy])
    return run


def test_rewards_by_hand(toy, monkeypatch):
    """Guards against: answers that never ended left out, so that a model gains by never ending."""
    rows = read_jsonl(toy / "exam/M2.jsonl")[:6]
    for row, finished in zip(rows, [True, True, True, False, True, True], strict=True):
        row["finished"] = finished
    for number, row in enumerate(rows):
        row |= {"id": number // 2, "sample": number % 2, "response": f"text {number}"}
    write_jsonl(toy / "exam/M2.jsonl", rows)

    def verdicts(judge, answers, judging, **more):
        scores = dict(zip(range(6), [4, 2, 3, None, None, None], strict=True))
        return [
            {"id": y.id, "sample": y.sample, "score": scores[2 * y.id + y.sample]} for y in answers
        ]

    monkeypatch.setattr(measure.duel, "judge_answers", verdicts)
    found = rewards_of(toy / "exam/M2.jsonl", None, None, "key")
    assert found == {0: 3.0, 1: 1.5, 2: None}


def with_duel(toy: Path, rows: list[dict]) -> str | None:
    """Why M2 lost, after such a duel."""
    write_jsonl(toy / "t1/duel.jsonl", rows)
    return why_lost(toy, 2, grave_alarms(toy))


def test_a_grave_alarm_is_a_loss(toy):
    """Guards against: a model that writes one answer for all, and wins with it."""
    won = rows_of((1, 2))
    assert with_duel(toy, won) is None
    first, second = read_jsonl(toy / "metrics.jsonl")
    first["judge_parse_rate"] = 1.0
    for name, value in (("judge_parse_rate", 0.1), ("distinct2", first["distinct2"] / 2)):
        write_jsonl(toy / "metrics.jsonl", [first, second | {name: value}])
        assert "rings an alarm" in with_duel(toy, won), name
    # those that know the truth end nothing
    spoilt = {"true_score": 0, "perfect": 0, "pairs_right": 0, "self_score": 5}
    write_jsonl(toy / "metrics.jsonl", [first, second | spoilt])
    assert with_duel(toy, won) is None


def test_an_old_alarm_is_no_loss(toy):
    """Guards against: a judge that got better, and still is not good, taken for a loss."""
    first, second = read_jsonl(toy / "metrics.jsonl")
    rows = [first | {"judge_parse_rate": 0.5}, second | {"judge_parse_rate": 0.7}]
    write_jsonl(toy / "metrics.jsonl", rows)
    assert with_duel(toy, rows_of((1, 2))) is None
    third = rows[1] | {"t": 3, "model": "M3", "judge_parse_rate": 0.6}
    write_jsonl(toy / "metrics.jsonl", [*rows, third])
    shutil.copy(toy / "exam/M2.jsonl", toy / "exam/M3.jsonl")
    write_jsonl(toy / "t2/duel.jsonl", rows_of((1, 2)))
    assert why_lost(toy, 3, grave_alarms(toy)) is None


ENOUGH = [(0, 0, False), (0, 2, True), (33, 37, False), (26, 37, True), (19, 37, True)]


@pytest.mark.parametrize("wins, losses, lost", [*ENOUGH, (37, 19, False), (0, 1, False)])
def test_one_standard_error(toy, wins, losses, lost):
    """Guards against: a run that ends at the first coin that falls on its head."""
    reason = with_duel(toy, rows_of(*[(1, 2)] * wins, *[(2, 1)] * losses, (3, 3)))
    assert reason == (f"it loses {losses} prompts and wins {wins}" if lost else None)


@pytest.mark.parametrize("change", [-1, 1], ids=["loses", "wins"])
def test_the_loop_ends_where_a_model_loses(toy, monkeypatch, change):
    """Guards against: a run that goes on from a worse model, and a best model that is not named.

    Also against: another end of a run that goes on after a kill.
    """
    judged = []

    def verdicts(judge, answers, judging, *, key, label="verdicts"):
        judged.append(key)
        score = 3 + change * (len(judged) % 2 == 0)  # the later model comes second
        return [{"id": y.id, "sample": y.sample, "score": score} for y in answers]

    monkeypatch.setattr(measure.duel, "judge_answers", verdicts)
    done = command("train.py", *TINY, "--keep-best")
    # one key: both models are judged with the same random numbers
    assert done.code == 0 and judged == ["0 duel", "0 duel"], done.err
    lost = "M2 | keep-best | it loses" in done.out and "the best model is M1" in done.out
    assert lost == (change < 0)
    table = done.out.splitlines()[-2:]
    assert [row.split()[0] for row in table] == (["M1*", "M2"] if lost else ["M1", "M2*"])
    assert "M2 wins" in (toy / "report.html").read_text()
    more = [*TINY, "--keep-best", "--iters", 2, "--seed-limit", 200]
    if lost:
        again = command("train.py", *more)
        assert "the best model is M1" in again.out and len(judged) == 2
        assert not (toy / "M3").exists() and not (toy / "t2").exists()
    [line] = [row for row in read_jsonl(toy / "log.jsonl") if row["stage"] == "duel"]
    wins = sum(row["after"] > row["before"] for row in read_jsonl(toy / "t1/duel.jsonl"))
    assert f"M2 wins {wins}, loses" in line["told"] and (wins == 0) == lost


def test_m1_judges(toy):
    """Guards against: M_t as its own judge, and a judge of other settings than the run's."""
    settings = read_json(toy / "config.json")["settings"]
    done = command("train.py", *TINY, "--keep-best")
    assert done.code == 0, done.err
    limit, heat = settings["max_verdict_tokens"], settings["judge_temperature"]
    sampling = Sampling(limit, heat, settings["top_p"], n=settings["k"], slots=settings["slots"])
    judging = Judging(read_rubric(None, toy / "M1", how="sampled"), sampling)
    judge = load_writer(str(toy / "M1"), torch.device("cpu"), torch.float32)
    expected = duel_rows(toy, 2, judge, judging, "0 duel")
    assert read_jsonl(toy / "t1/duel.jsonl") == expected
    other = load_writer(str(toy / "M2"), torch.device("cpu"), torch.float32)
    assert duel_rows(toy, 2, other, judging, "0 duel") != expected


def test_the_truth_is_never_asked():
    """Guards against: an early stop that looks at the answer sheet."""
    text = inspect.getsource(measure.duel)
    assert "true_score" not in text and "oracle" not in text
