"""experiments/: rows that are command lines, and tables that say what the runs say."""

import json
import random
import shutil
import xml.etree.ElementTree as ElementTree
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from conftest import ROOT, TINY, command, tiny_gpt

import sample
from core.chat import Chat
from core.checklist import instruction_of, requirements_of
from core.config import FEW_KINDS, Config, settings_of
from core.files import read_jsonl, write_jsonl
from core.records import Candidate
from experiments import ablations, harm, hole, seeds
from experiments.variants import VARIANTS
from judge import parse_score
from model import load, save
from worlds.checked import read_demand
from worlds.kinds import KINDS
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
    column = seeds.Column("true_score", "true score", 1)
    assert column.cell(second, 3).endswith("(2 of 3 seeds)")
    assert "seeds" not in column.cell(first, 3)


def test_the_best_model_of_each_seed():
    """Guards against: a mean over models that lost, told as that of the best."""
    one, two = models(3.0, 4.0, 2.0), models(1.0, 5.0)
    one[1]["best"], two[1]["best"] = True, True
    one[0]["best"], two[0]["best"] = False, False
    *_, best = seeds.summarise([one, two])
    assert best["model"] == "best" and best["true_score"]["mean"] == 4.5
    assert "best" not in best and best["true_score"]["n"] == 2


def test_a_run_without_pairs(monkeypatch, cwd):
    """Guards against: a sweep that a run without pairs stops; any failure taken for one."""

    class Ended:
        returncode = 2
        stdout = ""
        stderr = "error: M1 gave no preference pair (0 from 4 prompts)"

    folder = cwd / "runs/x-s0"
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text(json.dumps({"model": "M1"}) + "\n")
    monkeypatch.setattr(seeds.subprocess, "run", lambda *args, **more: Ended)
    assert seeds.one_run(["train.py"], "x", 0) == [{"model": "M1"}]
    Ended.stderr = "error: something else"
    with pytest.raises(SystemExit):
        seeds.one_run(["train.py"], "x", 0)


def test_every_command_on_every_seed(monkeypatch):
    """Guards against: figures under another name or seed than those of their run."""
    monkeypatch.setattr(seeds, "one_run", lambda *run: run)
    a, b = ["train.py"], ["train.py", "--k", "1"]
    runs = seeds.run_all({"a": a, "b": b}, seeds=2, jobs=3)
    assert runs["a"] == [(a, "a", 0), (a, "a", 1)]
    assert runs["b"] == [(b, "b", 0), (b, "b", 1)]


# ---- ablations ----


def test_differences_are_taken_seed_by_seed():
    """Guards against: the spread between seeds, which is common to both, hiding the difference."""
    runs = {
        "default": [models(3.0, 4.0), models(1.0, 2.0)],
        "IPO": [models(3.0, 4.5), models(1.0, 2.5)],
    }
    *_, default, ipo = ablations.difference_table(runs).splitlines()
    assert ipo == "| IPO | +0.50 ± 0.00 | - | - | +0.000 ± 0.000 | -0.010 ± 0.000 |"
    assert default == "| default | - | - | - | - | -0.010 ± 0.000 |"


def test_a_row_that_ended_early():
    """Guards against: M1 told as the last model, against the last of the default run."""
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
    """Guards against: tables or a figure in docs/ that the code no longer writes from the runs."""
    record = json.loads((ROOT / "docs/ablations.json").read_text())
    ablations.write_ablations(record["runs"], cwd)
    for name in ("ablations.md", "ablations.svg"):
        assert (cwd / name).read_text() == (ROOT / "docs" / name).read_text()
    assert json.loads((cwd / "ablations.json").read_text())["summary"] == record["summary"]


def test_every_row_is_a_command_line():
    """Guards against: a row whose setting no longer exists, found out after an hour."""
    known = {field.name for field in fields(Config)}
    for command_line in ablations.ABLATIONS.values():
        program, *words = command_line.split()
        assert (ROOT / program).exists()
        if program != "train.py":
            assert words.pop(0).partition("=")[0] in VARIANTS
        flags = [word for word in words if word.startswith("--")]
        assert {flag.removeprefix("--").replace("-", "_") for flag in flags} <= known
    names = {ablations.run_name(row) for row in ablations.ABLATIONS}
    assert len(names) == len(ablations.ABLATIONS)


# ---- a judge with a hole ----


def test_judge_data_with_a_hole_is_the_toys_own(cwd):
    """Guards against: judge data that is the writer's demonstrations, or the same on all seeds."""
    toy = settings_of("toy")
    world = toy_world(0, limit=toy["seed_limit"], exam=toy["exam"], ift=None, eft=None)
    hole.write_judge_data(0)
    hole.write_judge_data(1)
    examples = read_jsonl("runs/hole-s0.jsonl")
    responses = [example["response"] for example in examples]
    assert responses == [example["response"] for example in world.eft]
    assert responses != [example["response"] for example in world.ift]
    assert 400 < sum(map(hole.says_twice, responses)) < 700
    assert examples != world.eft
    assert read_jsonl("runs/hole-s1.jsonl") != examples


def test_what_the_hole_is():
    """Guards against: a hole that is wider or narrower than an item twice in a row."""
    answers = ("a, a", "a, b, a", "a", "b, c, c")
    through = [hole.says_twice(f"Mia: {items}.") for items in answers]
    assert through == [True, False, False, True]


def test_only_the_verdicts_have_a_hole():
    """Guards against: an experiment on reward hacking whose data has no hole, or several."""
    examples = eft_examples(300, random.Random(0))
    judged = [hole.fooled(example) for example in examples]
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
    assert "says an item twice, %" in printed
    assert (cwd / "runs/hole-s0/report.html").exists()
    record = json.loads((cwd / "hole.json").read_text())
    assert ["says_twice" in model for model in record["summary"]] == [True, True]


def test_a_row_that_starts_from_the_default_run(finished, cwd):
    """Guards against: the short cut of the sweep giving another result than the whole run."""
    shutil.copytree(finished / "runs/toy", cwd / "runs/default")
    ablations.inherit(Path("runs/short"), Path("runs/default"), "verdicts")
    for run in ("short", "whole"):
        assert command("experiments/variants.py", "ipo", *TINY, "--run", run).code == 0
    for file in ("t1/pairs.jsonl", "t1/dpo.jsonl", "exam/M2.jsonl"):
        assert read_jsonl(f"runs/short/{file}") == read_jsonl(f"runs/whole/{file}"), file


def test_what_a_row_shares():
    """Guards against: a row that starts from a stage which its own setting would have changed."""
    rows = {*ablations.ABLATIONS} - {"default"}
    assert {*ablations.LAST_SHARED} <= rows
    assert {*ablations.LAST_SHARED.values()} <= {*ablations.STAGES, None}
    for row, arguments in ablations.ABLATIONS.items():
        if "--seed-limit" in arguments or "no-judge-data" in arguments:
            assert ablations.LAST_SHARED[row] is None
        if "--k" in arguments or "--judge" in arguments:
            assert ablations.LAST_SHARED[row] == "M_1"
        if "judge=" in arguments or "oracle-judge" in arguments:
            assert ablations.LAST_SHARED[row] == "answers"


def test_what_a_loop_costs_elsewhere(cwd, checkpoint):
    """Guards against: answers that training saw, sums over prompts, a change of the wrong sign."""
    rows = [{"prompt": f"Why {i}?", "response": "So." * (i % 3 + 1)} for i in range(40)]
    write_jsonl(cwd / "ift.jsonl", rows)
    ranked = {"responses": ["bad", "good"], "ranks": [1, 0]}
    groups = [{"prompt": f"How {i}?", **ranked} for i in range(40)]
    write_jsonl(cwd / "ranked.jsonl", groups)
    found = harm.held_out_answers("ift.jsonl", "ranked.jsonl")
    prompts = {row["prompt"] for row in found}
    assert 5 < len(found) < 30 and prompts < {row["prompt"] for row in rows + groups}
    assert all(row["response"] == "good" for row in found if row["prompt"].startswith("How"))
    chat, model = Chat(checkpoint), load(checkpoint)
    expected = []
    for row in found:
        prompt, answer = chat.example(row["prompt"], row["response"])
        ids = torch.tensor([prompt + answer])
        logps = model.logits(model(ids)).log_softmax(-1)[0, len(prompt) - 1 : -1]
        expected.append(float(logps[torch.arange(len(answer)), torch.tensor(answer)].sum()))
    logps, sizes = harm.answer_logps(checkpoint, found, torch.device("cpu"))
    assert logps == pytest.approx(expected, abs=1e-3)
    assert sizes == [len(row["response"]) + 1 for row in found]
    other = tiny_gpt(seed=5, model_type="llama", max_position_embeddings=2048)
    save(other, cwd / "M2", source=checkpoint)
    files = ("--ift", "ift.jsonl", "--ranked", "ranked.jsonl")
    done = command("experiments/harm.py", checkpoint, "M2", *files)
    assert "No held-out answer has 5 to 50 words" in done.out
    table = [line for line in done.out.splitlines() if line.startswith("|")]
    first, second = [line.split(" | ") for line in table[-2:]]
    assert first[1] == second[1] == str(len(found)) and first[3].startswith("+0.000")
    change = float(second[3].split()[0])
    assert change == pytest.approx(
        float(second[2].split()[0]) - sum(expected) / sum(sizes), abs=2e-3
    )


def test_kinds_that_training_never_saw(cwd, checkpoint, monkeypatch):
    """Guards against: kinds or instructions of training, an answer without an end that keeps."""
    rows = [{"prompt": f"Why {i}?", "response": "It is so and so."} for i in range(60)]
    write_jsonl(cwd / "ift.jsonl", rows)
    found = harm.held_out_answers("ift.jsonl", None)
    prompts = harm.prompts_of_other_kinds(found, FEW_KINDS)
    demands = [read_demand(line) for prompt in prompts for line in requirements_of(prompt)]
    asked = {kind.name for kind, _, _ in demands}
    assert asked == {kind.name for kind in KINDS} - {*FEW_KINDS.split(",")}
    assert {instruction_of(prompt) for prompt in prompts} == {row["prompt"] for row in found}
    capitals = "Say it.\n\nRequirements:\n- Write everything in capitals."
    both = capitals + "\n- End with a hashtag such as #topic."
    answers = []
    for i, prompt in enumerate((capitals, both)):
        for j, (text, finished) in enumerate([("SO", True), ("SO #b", True), ("SO", False)]):
            answers.append(Candidate(i, j, prompt, text, [], finished=finished))
    for module in (harm, sample):
        monkeypatch.setattr(module, "respond", lambda *words, **more: answers)
    assert harm.requirements_kept(checkpoint, prompts, torch.device("cpu")) == ([1, 2], [3, 6])
    done = command("experiments/harm.py", checkpoint, checkpoint, "--ift", "ift.jsonl")
    last = done.out.splitlines()[-1].split(" | ")
    assert last[1] == "2" and last[2].startswith("+0.333 (") and last[3].startswith("+0.000 (")
