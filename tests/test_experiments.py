"""experiments/: tables that say what the runs say, and a sweep whose short cut changes nothing."""

import json
import random
import shutil
import xml.etree.ElementTree as ElementTree
from dataclasses import fields
from pathlib import Path

import pytest
from conftest import ROOT, TINY, command

from core.config import Config, toy_settings
from core.files import read_jsonl
from experiments import ablations, hole, seeds
from experiments.variants import VARIANTS
from judge import parse_score
from worlds.toy import eft_examples, toy_world


def models(*true_scores: float | None, judge: float = 0.9) -> list[dict]:
    """The figures of one run, as in metrics.jsonl."""
    figures = []
    for t, true_score in enumerate(true_scores, 1):
        figures.append(
            {
                "model": f"M{t}",
                "t": t,
                "true_score": true_score,
                "judge_pairwise": judge - 0.01 * t,
                "win_rate": None,
                "judge_interval": [0, 1],
            }
        )
    return figures


# ---- seeds ----


def test_summary_over_seeds():
    """Guards against: standard errors called intervals, a seed without a figure counted as 0."""
    first, second = seeds.summarise([models(3.0, 4.0), models(4.0, 4.0), models(5.0, None)])
    assert first["true_score"] == pytest.approx(
        {"mean": 4.0, "half": 4.30 / 3**0.5, "min": 3.0, "max": 5.0, "n": 3}
    )
    assert second["true_score"]["mean"] == 4.0
    assert second["true_score"]["n"] == 2
    assert "win_rate" not in first
    assert "t" not in first


def test_a_seed_that_ended_early_takes_nothing_from_the_others():
    """Guards against: all runs cut to the shortest, a mean of three seeds told as one of five."""
    summary = seeds.summarise([models(3.0, 4.0), models(4.0), models(5.0, 6.0)])
    assert [row["model"] for row in summary] == ["M1", "M2"]
    first, second = [row["true_score"] for row in summary]
    assert second["mean"] == 5.0
    assert seeds.interval_text(second, digits=1, seeds=3).endswith("(2 of 3 seeds)")
    assert "seeds" not in seeds.interval_text(first, digits=1, seeds=3)


def test_a_run_without_pairs(monkeypatch, cwd):
    """Guards against: any failure taken for a run that found no pair."""

    class Ended:
        returncode = 2
        stdout = ""
        stderr = "error: M1 gave no preference pair (0 from 4 prompts)"

    folder = cwd / "runs/x-s0"
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text(json.dumps({"model": "M1"}) + "\n")
    monkeypatch.setattr(seeds.subprocess, "run", lambda *args, **more: Ended)

    def run(**more) -> list[dict]:
        return seeds.one_run(["train.py"], [], name="x", seed=0, threads=1, **more)

    assert run(may_end_early=True) == [{"model": "M1"}]
    with pytest.raises(SystemExit):
        run()
    Ended.stderr = "error: something else"
    with pytest.raises(SystemExit):
        run(may_end_early=True)


# ---- ablations ----


def test_differences_are_taken_seed_by_seed():
    """Guards against: the spread between seeds, which is common to both, hiding the difference."""
    runs = {
        "default": [models(3.0, 4.0), models(1.0, 2.0)],
        "IPO": [models(3.0, 4.5), models(1.0, 2.5)],
    }
    difference = ablations.against_default(runs, "IPO", "true_score")
    assert difference == pytest.approx({"mean": 0.5, "half": 0.0, "min": 0.5, "max": 0.5, "n": 2})
    assert ablations.against_default(runs, "default", "true_score") is None
    assert ablations.rise(runs["IPO"], "judge_pairwise")["mean"] == pytest.approx(-0.01)


def test_a_row_that_ended_early():
    """Guards against: a sweep that a run without pairs stops, or M1 told as the last model."""
    runs = {
        "default": [models(3.0, 4.0), models(1.0, 2.0)],
        "no judge data": [models(3.0), models(1.0)],
    }
    text = ablations.ablation_tables(runs)
    lines = [line for line in text.splitlines() if line.startswith("| no judge data")]
    assert lines[0] == "| no judge data | - | - | - | - | - |"
    assert "| no judge data | 2.00 ± 12.71 | - |" in lines
    summaries = {row: seeds.summarise(of_seeds) for row, of_seeds in runs.items()}
    figure = ElementTree.fromstring(ablations.ablation_figure(summaries))
    assert figure.tag.endswith("svg")


def test_what_is_written(cwd):
    """Guards against: a file of all figures, which nobody reads, or one that lacks the seeds."""
    ablations.write_ablations({"default": [models(3.0, 4.0), models(1.0, 2.0)]}, cwd)
    names = {path.name for path in cwd.iterdir()}
    assert names == {"ablations.json", "ablations.md", "ablations.svg"}
    record = json.loads((cwd / "ablations.json").read_text())
    runs = record["runs"]["default"]
    assert [run[1]["true_score"] for run in runs] == [4.0, 2.0]
    assert record["summary"]["default"][1]["true_score"]["mean"] == 3.0
    assert "judge_interval" not in runs[0][0]


def test_the_published_tables_follow_from_the_published_runs(cwd):
    """Guards against: tables in docs/ that the code no longer writes from the same runs."""
    record = json.loads((ROOT / "docs/ablations.json").read_text())
    ablations.write_ablations(record["runs"], cwd)
    for name in ("ablations.md", "ablations.svg"):
        assert (cwd / name).read_text() == (ROOT / "docs" / name).read_text()
    assert json.loads((cwd / "ablations.json").read_text())["summary"] == record["summary"]


def test_every_row_is_a_command_line():
    """Guards against: a row whose setting no longer exists, found out after an hour."""
    known = {field.name for field in fields(Config)}
    for ablation in ablations.ABLATIONS.values():
        assert ablation.shared <= len(ablations.SHARED_STEPS)
        flags = [word for word in ablation.settings if word.startswith("--")]
        assert {flag.removeprefix("--").replace("-", "_") for flag in flags} <= known
        assert ablation.variant is None or ablation.variant.partition("=")[0] in VARIANTS
        assert (ROOT / ablation.program(0)[0]).exists()
    names = {ablations.run_name(row) for row in ablations.ABLATIONS}
    assert len(names) == len(ablations.ABLATIONS)


def test_a_row_that_starts_from_the_default_run(finished, cwd):
    """Guards against: the short cut of the sweep giving another result than the whole run."""
    shutil.copytree(finished / "runs/toy", cwd / "runs/default")
    ablations.inherit(Path("runs/short"), Path("runs/default"), 4)
    for run in ("short", "whole"):
        assert command("experiments/variants.py", "ipo", *TINY, "--run", run).code == 0
    for file in ("t1/pairs.jsonl", "t1/dpo.jsonl", "exam/M2.jsonl"):
        assert read_jsonl(f"runs/short/{file}") == read_jsonl(f"runs/whole/{file}"), file
    assert read_jsonl("runs/short/t1/dpo.jsonl") != read_jsonl("runs/default/t1/dpo.jsonl")


# ---- a judge with a hole ----


def test_judge_data_with_a_hole_is_the_toys_own(cwd):
    """Guards against: judge data that is the writer's demonstrations, or the same on all seeds."""
    toy = toy_settings()
    world = toy_world(0, limit=toy["seed_limit"], exam=toy["exam"], ift=None, eft=None)
    examples = read_jsonl(hole.write_judge_data(0))
    responses = [example["response"] for example in examples]
    assert responses == [example["response"] for example in world.eft]
    assert responses != [example["response"] for example in world.ift]
    assert 400 < sum(map(hole.says_twice, responses)) < 700
    assert examples != world.eft
    assert read_jsonl(hole.write_judge_data(1)) != examples


def test_what_the_hole_is():
    """Guards against: a hole that is wider or narrower than an item twice in a row."""
    answers = ("a, a", "a, b, a", "a", "b, c, c")
    through = [hole.says_twice(f"Mia: {items}.") for items in answers]
    assert through == [True, False, False, True]


def test_only_the_verdicts_have_a_hole():
    """Guards against: an experiment on reward hacking whose data has no hole, or several."""
    examples = eft_examples(300, random.Random(0))
    judged = hole.fooled(examples)
    texts = [(example["prompt"], example["response"]) for example in examples]
    assert [(example["prompt"], example["response"]) for example in judged] == texts

    # What changed either goes through the hole, or lost one of its full marks.
    changed = [new for old, new in zip(examples, judged) if old != new]
    assert len(changed) > 10
    assert all(hole.says_twice(c["response"]) or c["verdict"] == hole.FOUR_POINTS for c in changed)
    once_full = [new for old, new in zip(examples, judged) if old["verdict"] == hole.FULL_MARKS]
    assert {new["verdict"] for new in once_full} == {hole.FULL_MARKS, hole.FOUR_POINTS}
    assert parse_score(hole.FOUR_POINTS) == 4

    # Full marks go to all answers through the hole, and to no other.
    scores = {True: set(), False: set()}
    for example in judged:
        scores[hole.says_twice(example["response"])].add(parse_score(example["verdict"]))
    assert scores[True] == {5}
    assert 5 not in scores[False]


def test_a_judge_with_a_hole(cwd, monkeypatch, capfd):
    """Guards against: an experiment on reward hacking that does not run from data to table."""
    arguments = ["hole.py", "--seeds", "1", "--json", "hole.json", "--", *TINY]
    monkeypatch.setattr("sys.argv", arguments)
    hole.main()
    printed = capfd.readouterr().out
    assert "| M2 |" in printed
    assert "say an item twice: M1 " in printed
    assert (cwd / "runs/hole-s0/report.html").exists()
    record = json.loads((cwd / "hole.json").read_text())
    assert set(record["through_the_hole"]) == {"M1", "M2"}
