"""experiments/: tables that say what the runs say, and a sweep whose short cut changes nothing."""

import json
import shutil
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from conftest import ROOT, TINY, command
from data import read_jsonl

sys.path.insert(0, str(ROOT / "experiments"))

import ablations  # noqa: E402
import hole  # noqa: E402
import seeds  # noqa: E402


def models(*truths: float | None, judge: float = 0.9) -> list[dict]:
    return [
        {
            "model": f"M{t}",
            "t": t,
            "true_score": v,
            "judge_pairwise": judge - 0.01 * t,
            "win_rate": None,
            "judge_interval": [0, 1],
        }
        for t, v in enumerate(truths, 1)
    ]


def test_summary_over_seeds():
    """Guards against: standard errors called intervals, and a seed without a figure counted as 0."""
    rows = seeds.summarise([models(3.0, 4.0), models(4.0, 4.0), models(5.0, None)])
    assert rows[0]["true_score"] == pytest.approx(
        {"mean": 4.0, "half": 4.30 / 3**0.5, "min": 3.0, "max": 5.0, "n": 3}
    )
    assert (
        rows[1]["true_score"]["mean"] == 4.0
        and rows[1]["true_score"]["n"] == 2
        and "win_rate" not in rows[0]
        and "t" not in rows[0]
    )


def test_a_seed_that_ended_early_takes_nothing_from_the_others():
    """Guards against: all runs cut to the shortest, and a mean over three seeds told as one over five."""
    rows = seeds.summarise([models(3.0, 4.0), models(4.0), models(5.0, 6.0)])
    assert [r["model"] for r in rows] == ["M1", "M2"] and rows[1]["true_score"]["mean"] == 5.0
    assert ablations.cell(rows[1]["true_score"], 1, 1, seeds=3).endswith("(2 of 3 seeds)")
    assert "seeds" not in ablations.cell(rows[0]["true_score"], 1, 1, seeds=3)


def test_differences_are_taken_seed_by_seed():
    """Guards against: the spread between seeds, which both settings share, drowning the difference between settings."""
    runs = {
        "default": [models(3.0, 4.0), models(1.0, 2.0)],
        "IPO": [models(3.0, 4.5), models(1.0, 2.5)],
    }
    assert ablations.against_default(runs, "IPO", "true_score") == pytest.approx(
        {"mean": 0.5, "half": 0.0, "min": 0.5, "max": 0.5, "n": 2}
    )
    assert ablations.against_default(runs, "default", "true_score") is None
    assert ablations.rise(runs["IPO"], "judge_pairwise")["mean"] == pytest.approx(-0.01)


def test_a_row_that_ended_early():
    """Guards against: a run without pairs that stops the sweep, or M1's figures told as those of the last model."""
    runs = {
        "default": [models(3.0, 4.0), models(1.0, 2.0)],
        "no judge data": [models(3.0), models(1.0)],
    }
    text = ablations.markdown(runs)
    first = next(line for line in text.splitlines() if line.startswith("| no judge data"))
    assert first == "| no judge data | - | - | - | - | - |"
    assert "| no judge data | 2.00 ± 12.71 | - |" in text
    assert ElementTree.fromstring(
        ablations.figure({row: seeds.summarise(of) for row, of in runs.items()})
    ).tag.endswith("svg")


def test_what_is_written(cwd):
    """Guards against: a file of every figure of every run, which nobody reads, or one that lacks the seeds."""
    ablations.write({"default": [models(3.0, 4.0), models(1.0, 2.0)]}, cwd)
    found = json.loads((cwd / "ablations.json").read_text())
    assert [m[1]["true_score"] for m in found["runs"]["default"]] == [4.0, 2.0] and found[
        "summary"
    ]["default"][1]["true_score"]["mean"] == 3.0
    assert "judge_interval" not in found["runs"]["default"][0][0] and {
        p.name for p in cwd.iterdir()
    } == {f"ablations.{e}" for e in ("json", "md", "svg")}


def test_every_row_is_a_command_line(cwd):
    """Guards against: a row whose setting no longer exists, found out after an hour."""
    import config

    for steps, settings in ablations.ROWS.values():
        assert steps <= len(ablations.STEPS)
        flags = [s.removeprefix("--").replace("-", "_") for s in settings if s.startswith("--")]
        assert {*flags} <= {f.name for f in config.fields(config.Config)}
    assert len({ablations.name_of(row) for row in ablations.ROWS}) == len(ablations.ROWS)


def test_a_row_that_starts_from_the_default_run(finished, cwd):
    """Guards against: the short cut of the sweep giving another result than the whole run."""
    shutil.copytree(finished / "runs/toy", cwd / "runs/default")
    ablations.inherit(Path("runs/short"), Path("runs/default"), 4)
    for run in ("short", "whole"):
        assert command("train.py", *TINY, "--loss", "ipo", "--run", run).code == 0
    for file in ("t1/pairs.jsonl", "t1/dpo.jsonl", "exam/M2.jsonl"):
        assert read_jsonl(f"runs/short/{file}") == read_jsonl(f"runs/whole/{file}"), file
    assert (cwd / "runs/short/t1/dpo.jsonl").read_text() != (
        cwd / "runs/default/t1/dpo.jsonl"
    ).read_text()


def test_a_run_without_pairs(monkeypatch, cwd):
    """Guards against: any failure taken for a run that found no pair."""

    class Ended:
        returncode, stdout, stderr = 2, "", "error: M1 gave no preference pair (0 from 4 prompts)"

    (cwd / "runs/x-s0").mkdir(parents=True)
    (cwd / "runs/x-s0/metrics.jsonl").write_text(json.dumps({"model": "M1"}) + "\n")
    monkeypatch.setattr(seeds.subprocess, "run", lambda *a, **k: Ended)
    assert seeds.one_run("x", 0, [], 1, may_end_early=True) == [{"model": "M1"}]
    with pytest.raises(SystemExit):
        seeds.one_run("x", 0, [], 1)
    Ended.stderr = "error: something else"
    with pytest.raises(SystemExit):
        seeds.one_run("x", 0, [], 1, may_end_early=True)


def test_judge_data_with_a_hole_is_the_toys_own(cwd):
    """Guards against: the judge learning on the writer's own demonstrations, or all seeds on the same."""
    import train
    from config import TOY, Config

    own = train.gather(Config(**TOY), True)
    rows = read_jsonl(hole.judge_data(0))
    assert (
        [r["response"] for r in rows]
        == [r["response"] for r in own.eft]
        != [r["response"] for r in own.ift]
    )
    assert 400 < sum(hole.says_twice(r["response"]) for r in rows) < 700 and rows != own.eft
    assert read_jsonl(hole.judge_data(1)) != rows
