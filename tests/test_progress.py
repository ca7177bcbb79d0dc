"""core/progress.py: a training that was killed ends with the same bytes as one that was not."""

import gc
from pathlib import Path

import pytest
import torch
from conftest import TINY, Killed, command, forget, tiny_gpt
from test_train import results
from test_train import run as run_fixture

import core.progress
import core.run
import dpo
import judge
import sample
import train
from core.files import read_jsonl
from core.progress import Progress
from core.recipe import Recipe
from core.records import Example
from dpo import Objective, sft
from experiments.make_seed import muon

run = run_fixture  # a copy of the finished run, to be spoilt


@pytest.fixture
def eager(monkeypatch):
    """The file is written after every step."""
    monkeypatch.setattr(core.progress, "SECONDS", 0.0)
    monkeypatch.setattr(core.progress, "SHARE", 1e9)


@pytest.fixture
def dies(monkeypatch):
    """Lets the next training die when it comes to this step."""
    real = dpo.add_up_gradients

    def at(step: int) -> None:
        def dying(model, passes, recipe, *, place):
            if place.endswith(f"step {step}"):
                monkeypatch.setattr(dpo, "add_up_gradients", real)
                raise Killed
            return real(model, passes, recipe, place=place)

        monkeypatch.setattr(dpo, "add_up_gradients", dying)

    return at


EXAMPLES = [Example([4 + i, 5, 6], [7 + i, 8 + i % 3, 1]) for i in range(24)]
RECIPE = Recipe(batch_size=4, lr=1e-2, lr_end=1e-3, epochs=1, dropout=0.2, seed=3, tokens=16)


def train_sft(path: Path | None, optimizers=dpo.adamw) -> tuple:
    model = tiny_gpt()
    progress = Progress(path) if path else None
    log = sft(model, EXAMPLES, RECIPE, optimizers=optimizers, progress=progress)
    return log, [weight.detach().clone() for weight in model.parameters()]


def train_dpo(path: Path | None, optimizers=None) -> tuple:
    model = tiny_gpt()
    pairs = [(one, one._replace(response=[9, 1])) for one in EXAMPLES]
    progress = Progress(path) if path else None
    log = dpo.dpo(model, pairs, RECIPE, Objective(nll=0.5), progress=progress)
    return log, [weight.detach().clone() for weight in model.parameters()]


@pytest.mark.parametrize("step", [0, 1, 3, 5])
@pytest.mark.parametrize(
    "train, optimizers",
    [(train_sft, dpo.adamw), (train_sft, muon), (train_dpo, None)],
    ids=["sft", "muon", "dpo"],
)
def test_killed_and_continued(tmp_path, eager, dies, train, optimizers, step):
    """Guards against: moments, random numbers, a learning rate or a reference that start anew."""
    log, weights = train(None, optimizers)
    path = tmp_path / "t0/training.safetensors"
    dies(step)
    with pytest.raises(Killed):
        train(path, optimizers)
    assert path.exists() == (step > 0)
    found_log, found = train(path, optimizers)
    assert found_log == log and len(log) == 6
    assert all(torch.equal(a, b) for a, b in zip(found, weights, strict=True))


def test_another_training_is_not_taken(tmp_path, eager):
    """Guards against: the middle of one training as the middle of another; a file that is cut."""
    path = tmp_path / "training.safetensors"
    train_sft(path)
    model = tiny_gpt()
    before = model.norm.weight.clone()
    assert Progress(path).restore(model, dpo.adamw(model, RECIPE), 7) == []
    assert torch.equal(model.norm.weight, before)
    assert len(Progress(path).restore(model, dpo.adamw(model, RECIPE), 6)) == 6
    path.write_bytes(path.read_bytes()[:-100])
    assert Progress(path).restore(tiny_gpt(), [], 6) == []
    assert Progress(tmp_path / "nowhere").restore(tiny_gpt(), [], 6) == []


def test_it_is_not_written_all_the_time(tmp_path, monkeypatch):
    """Guards against: a training that spends its time on files."""
    path = tmp_path / "training.safetensors"
    train_sft(path)
    assert not path.exists(), "nothing within the first minute"
    now = [0.0]
    monkeypatch.setattr(core.progress.time, "monotonic", lambda: now[0])
    real, written = core.progress.save_file, []

    def slow(*args, **more):
        now[0] += 10  # seconds that writing takes
        written.append(now[0])
        real(*args, **more)

    monkeypatch.setattr(core.progress, "save_file", slow)
    progress = Progress(path)
    model = tiny_gpt()
    for _ in range(100):
        now[0] += 10
        progress.keep(model, [], [], 6)
    # the first after a minute; then writing may take a twentieth of the time
    assert written[0] == 70 and all(b - a >= 200 for a, b in zip(written, written[1:]))
    assert 4 <= len(written) <= 6


@pytest.mark.parametrize("first, t", [("M2", 1), ("exam/M1.jsonl", 0)])
def test_a_run_killed_inside_its_training(finished, run, eager, dies, first, t):
    """Guards against: a run that differs, or keeps the file, after a kill inside SFT or DPO."""
    forget(run, first)
    if t == 0:
        for path in (run / "sft.jsonl", run / "M1/model.safetensors"):
            path.unlink()
        (run / "M1").rename(run / "M1.gone")
    dies(2)
    with pytest.raises(Killed):
        command("train.py", *TINY)
    gc.collect()  # the lock of the process that died
    assert (run / f"t{t}/training.safetensors").exists()
    done = command("train.py", *TINY)
    assert done.code == 0, done.err
    assert not list(run.rglob("training.*"))
    found = {n: v for n, v in results(run).items() if not n.startswith("M1.gone")}
    assert found == results(finished / "runs" / "toy")


# The stage that is killed, what writes its texts, and how often in all: 3 parts or 5, one of them
# again, and the judge once more in the exam.
TEXTS = [("t1/responses.jsonl", "respond", 4), ("t1/verdicts.jsonl", "judge_answers", 7)]


@pytest.mark.parametrize("first, stage, count", TEXTS)
def test_a_run_killed_inside_its_texts(finished, run, monkeypatch, first, stage, count):
    """Guards against: answers or verdicts that are all lost, doubled, or counted by half."""
    monkeypatch.setattr(core.run, "PART", 1000)
    forget(run, first)
    real, calls = getattr(train, stage), []

    def dying(*args, **more):
        calls.append(stage)
        if len(calls) == 3:
            raise Killed
        return real(*args, **more)

    for place in (sample, judge):
        if hasattr(place, stage):
            monkeypatch.setattr(place, stage, dying)
    with pytest.raises(Killed):
        command("train.py", *TINY)
    gc.collect()
    assert len(list((run / "parts").rglob("*.jsonl"))) == 2
    done = command("train.py", *TINY)
    assert done.code == 0, done.err
    assert results(run) == results(finished / "runs" / "toy")
    assert len(calls) == count, "none of them is made twice, but for the one that was cut off"
    lines = [(row["t"], row["stage"]) for row in read_jsonl(run / "log.jsonl")]
    assert len(lines) == len(set(lines))
    told = {}
    for folder in (run, finished / "runs/toy"):
        for row in read_jsonl(folder / "log.jsonl"):
            told.setdefault((row["t"], row["stage"]), []).append(row["told"].split(" | ")[0])
    assert all(a == b for a, b in told.values() if (a, b)[0].count("seconds") == 0)
