"""core/ranks.py and core/shards.py: several processes under torchrun do what one does."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import MORE, ROOT, TINY, forget, tiny_gpt
from fingerprint import LLAMA, make_llama, start, wait_for

from core.files import read_jsonl
from core.ranks import deal, in_shares, tokens_in
from core.records import Work
from model import load, save

LAUNCH = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
QUIET = {**os.environ, "OMP_NUM_THREADS": "1"}
ROUNDING = 1e-3  # of weights that moved by up to 0.05: AdamW divides by small numbers
SCORES = ("score", "digits", "chosen_score", "rejected_score")
TEXTS = ("prompts", "responses", "verdicts", "pairs")


def torchrun(processes: int, folder: Path, *words: str) -> subprocess.Popen:
    """`torchrun --nproc-per-node N train.py ...` in a folder."""
    return subprocess.Popen(
        [*LAUNCH, str(processes), "--", str(ROOT / "train.py"), *words],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=QUIET,
    )


def texts_of(run: Path) -> dict[str, list[dict]]:
    return {name: read_jsonl(run / f"t1/{name}.jsonl") for name in TEXTS}


def differences(one: Path, other: Path) -> torch.Tensor:
    """Of all weights of two models."""
    a, b = load(one), load(other)
    pairs = zip(a.parameters(), b.parameters(), strict=True)
    return torch.cat([(x - y).detach().abs().flatten() for x, y in pairs])


def distance(one: Path, other: Path) -> float:
    return float(differences(one, other).max())


def mean_distance(one: Path, other: Path) -> float:
    return float(differences(one, other).mean())


# ---- one process plays several ----


@pytest.mark.parametrize("shares", [1, 2, 3, 7])
def test_deal(shares):
    """Every item goes somewhere, once; and shares cost alike, not count alike."""
    costs = [100, 1, 1, 1, 50, 50, 1, 1]
    dealt = deal(costs, shares)
    assert len(dealt) == shares and sorted(i for share in dealt for i in share) == list(range(8))
    totals = [sum(costs[i] for i in share) for share in dealt]
    if shares == 2:
        assert max(totals) - min(totals) <= 3
    assert deal([5, 5, 5, 5], 2) == [[0, 2], [1, 3]]
    assert deal([], 2) == [[], []]


def test_tokens_in():
    assert tokens_in([1, 2, 3]) == 3
    assert tokens_in([([1, 2], [3]), ([4], [])]) == 4


def test_shares_come_back_in_order(monkeypatch):
    """Guards against: results filed under another process's items, and work counted twice."""

    class Meter:
        group_size = 1
        work = Work(prompts=100)

    @in_shares("items", "names")
    def describe(writer, items, names):
        writer.work.prompts += len(items)
        return [f"{name}:{item}" for item, name in zip(items, names, strict=True)]

    items, names = [[1] * size for size in (9, 1, 5, 5, 2)], list("abcde")
    expected = [f"{name}:{item}" for item, name in zip(items, names, strict=True)]
    writer = Meter()
    assert describe(writer, items, names) == expected
    assert writer.work.prompts == 105

    # two processes, one after the other: what the first one finds waits for the second one
    found = []
    monkeypatch.setattr("core.ranks.count", lambda: 2)
    for process in (0, 1):
        monkeypatch.setattr("core.ranks.rank", lambda process=process: process)
        monkeypatch.setattr("core.ranks.exchange", lambda value: found.append(value) or [value] * 2)
        with pytest.raises(ValueError, match="zip"):  # shares of 2 and 3 items
            describe(Meter(), items, names)
    monkeypatch.setattr("core.ranks.exchange", lambda _: found)
    writer = Meter()
    writer.work = Work(prompts=100)
    assert describe(writer, items, names) == expected
    assert writer.work.prompts == 105 and len(writer.work.seconds) == 2
    assert "processes took" in writer.work.summary()


def test_one_process_makes_no_group():
    """Guards against: a process group that nobody asked for."""
    words = (
        "import core.ranks, torch.distributed as d; core.ranks.join(); print(d.is_initialized())"
    )
    done = subprocess.run([sys.executable, "-c", words], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "False"


# ---- torchrun ----


SPLIT = """
import json, sys
from functools import partial
import torch
from torch.distributed.tensor import DTensor
from core.chat import Chat
from core.draw import Sampling
from core.ranks import join, rank
from core.shards import split
from judge import response_logps
from core.records import Example
from model import load, save
from sample import Writer, respond
join()
folder, size = sys.argv[1], int(sys.argv[2])
model = load(folder, prepare=partial(split, device=torch.device("cpu"), size=size))
writer = Writer(model, Chat(folder), group_size=size)
answers = respond(writer, ["one", "two words", "three short words"], Sampling(12, n=2), key="k")
examples = [Example([5, 6, 7], [8, 9, 1]), Example([5, 6], [7, 7, 7, 1])]
logps = response_logps(writer, examples, None).tolist()
parts = [p.to_local() if isinstance(p, DTensor) else p for p in model.parameters()]
held = sum(part.numel() for part in parts)
if rank() == 0:
    print(json.dumps({"tokens": [y.tokens for y in answers], "logps": logps, "held": held}))
"""


@pytest.mark.parametrize("processes, size", [(4, 2)] if MORE else [(2, 2)])
def test_processes_write_with_one_copy(checkpoint, processes, size):
    """Tensor parallelism: the same texts and log-probs, with a part of the weights in each."""
    found = []
    for many, parts in ((1, 1), (processes, size)):
        launch = [*LAUNCH, str(many), "--no-python", sys.executable, "-c", SPLIT]
        words = [*launch, str(checkpoint), str(parts)]
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, env=QUIET)
        assert done.returncode == 0, done.stderr
        found.append(json.loads(done.stdout))
    alone, together = found
    assert together["tokens"] == alone["tokens"]
    assert together["logps"] == pytest.approx(alone["logps"], abs=1e-4)
    assert together["held"] < 0.75 * alone["held"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """What tests/ranks_worker.py trains with one, two and three processes."""
    folder = tmp_path_factory.mktemp("trained")
    save(tiny_gpt(), folder / "base")
    for processes in (1, 3 if MORE else 2):
        worker = [*LAUNCH, str(processes), "--", str(ROOT / "tests/ranks_worker.py"), str(folder)]
        done = subprocess.run(worker, capture_output=True, text=True, env=QUIET)
        assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("processes", [3 if MORE else 2])
@pytest.mark.parametrize("case", ["weights", "recompute", "replay", "adapters", "adapters-bf16"])
def test_shards_learn_the_same(trained, case, processes):
    """Guards against: gradients that are averaged, counted twice or lost on the way."""
    one, several = (trained / f"{case}-{number}" for number in (1, processes))
    # Where a gradient is near 0, AdamW makes a step of its rounding. So the mean counts.
    rounding = 0.1 if case.endswith("bf16") else 1e-3
    moved = mean_distance(trained / "base", one)
    assert moved > 1e-3 and mean_distance(one, several) < rounding * moved
    logs = [json.loads(Path(f"{folder}.json").read_text()) for folder in (one, several)]
    for mine, theirs in zip(*logs, strict=True) if not case.endswith("bf16") else ():
        if mine["step"] == 0:  # nothing has moved yet, so the sign of a margin is rounding
            mine.pop("accuracy", None)
            theirs.pop("accuracy", None)
        assert theirs == pytest.approx(mine, rel=rounding, abs=rounding)
    assert (one / "adapter").exists() == (several / "adapter").exists() == ("ad" in case)


def test_one_process_that_fails_ends_all():
    worker = [*LAUNCH, "2", "--", str(ROOT / "tests/ranks_worker.py"), "nowhere", "fail"]
    done = subprocess.run(worker, capture_output=True, text=True, env=QUIET, timeout=120)
    assert done.returncode != 0 and done.stderr.count("error: the numbers are broken.") == 1


def test_a_split_that_does_not_fit(tmp_path):
    process = torchrun(2, tmp_path, *TINY, "--split", "2")
    _, err = process.communicate(timeout=120)
    assert "error: --split 2 does not divide 3 key/value heads" in err


@pytest.fixture(scope="module", params=[4] if MORE else [2])
def launched(request, tmp_path_factory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("ranks")
    out = wait_for(torchrun(request.param, folder, *TINY))
    return folder / "runs/toy", out


def test_processes_write_the_same(launched, finished):
    """Prompts, answers, verdicts and pairs are those of one process; weights up to rounding."""
    run, _ = launched
    one = finished / "runs/toy"
    assert distance(run / "M1", one / "M1") < ROUNDING
    theirs = texts_of(one)
    for name, rows in texts_of(run).items():
        assert rows == theirs[name], name
    assert distance(run / "M2", one / "M2") < ROUNDING


def test_only_one_process_speaks(launched, finished):
    """Guards against: every line once a process, and stragglers that nobody sees."""
    run, out = launched
    stages = [line for line in out.splitlines() if line.startswith("M1 | ")]
    assert len(stages) == len(set(stages)) == 6, out
    assert "processes took" in out
    names = {path.relative_to(run) for path in run.rglob("*") if path.is_file()}
    alone = finished / "runs/toy"
    assert names == {path.relative_to(alone) for path in alone.rglob("*") if path.is_file()}
    record = json.loads((run / "config.json").read_text())
    assert record["processes"] in (2, 4)


def test_a_run_may_change_its_processes(launched, finished):
    """A run of several goes on with one, which says so."""
    run, _ = launched
    forget(run, "M2")
    done = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), *TINY],
        cwd=run.parent.parent,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "now 1; from here on" in done.stdout
    assert distance(run / "M2", finished / "runs/toy/M2") < ROUNDING


def kill_one(process: subprocess.Popen, which: int, *, once: Path) -> None:
    """SIGKILL for one of the processes, as soon as a file is there; then all end in a minute."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    if not children.exists():
        process.kill()
        pytest.skip("processes are found through /proc")
    patience = time.time() + 120
    while not once.exists():
        assert time.time() < patience
        time.sleep(0.1)
        assert process.poll() is None, process.communicate()
    workers = [int(word) for word in children.read_text().split()]
    os.kill(workers[which], signal.SIGKILL)
    started = time.time()
    _, err = process.communicate(timeout=60)
    assert process.returncode != 0 and time.time() - started < 60
    assert "SIGKILL" in err or "exitcode" in err


# Each is the end of a stage: SFT, answers and so on are killed as they begin.
ENDS = ["t0/eft.jsonl", "M1", "exam/M1.jsonl", "t1/prompts.jsonl", "t1/responses.jsonl"]
ENDS += ["t1/verdicts.jsonl", "M2"]  # pairs are there at once


def test_a_killed_process_ends_the_run_and_it_goes_on(tmp_path, finished):
    """Guards against: processes that wait for a dead one for ever; a result that a kill changes."""
    run = tmp_path / "runs/toy"
    for number, end in enumerate(ENDS if MORE else ["M1"]):
        process = torchrun(2, tmp_path, *TINY)
        kill_one(process, 1 - number % 2, once=run / end)
        assert not (run / "exam/M2.jsonl").exists()  # there was something left to kill
    wait_for(torchrun(2, tmp_path, *TINY))
    assert texts_of(run) == texts_of(finished / "runs/toy")
    assert distance(run / "M2", finished / "runs/toy/M2") < ROUNDING


@pytest.mark.skipif(not MORE, reason="MORE=1 runs it")
@pytest.mark.parametrize("more", ["", "--split 2", "--lora 4", "--lora 4 --split 2"])
def test_a_llama_in_parts(tmp_path, more):
    """Files of people, a whole run: judge data, pairs, replay, exam. Only rounding may differ."""
    make_llama(tmp_path)
    settings = LLAMA.replace("--dropout 0.1", "--sft-lr 1e-3").replace("--iters 2", "--iters 1")
    wait_for(start(tmp_path, f"{settings} {more.replace('--split 2', '')}"))
    wait_for(torchrun(2, tmp_path, *f"{settings} {more} --run parts".split()))
    one, several = tmp_path / "runs/llama", tmp_path / "runs/parts"
    for name, rows in texts_of(several).items():
        theirs = texts_of(one)[name]
        assert len(rows) == len(theirs)
        for row, other in zip(rows, theirs, strict=True):
            assert row.keys() == other.keys()
            for key, value in row.items():
                near = pytest.approx(other[key], abs=2e-4) if key in SCORES else other[key]
                assert value == near, (name, key)
    for model in ("M1", "M2"):
        moved = mean_distance(tmp_path / "llama", one / model)
        assert mean_distance(one / model, several / model) < 1e-2 * moved
    for mine, theirs in zip(exam_of(several), exam_of(one), strict=True):
        assert mine == pytest.approx(theirs, rel=1e-2, abs=1e-2)


def exam_of(run: Path) -> list[dict]:
    """The figures of each model, without seconds and bytes."""
    rows = []
    for row in read_jsonl(run / "metrics.jsonl"):
        kept = {}
        for name, value in row.items():
            if isinstance(value, float) and "second" not in name:
                kept[name] = value
        rows.append(kept)
    return rows


@pytest.mark.skipif(not MORE, reason="MORE=1 runs it")
def test_a_mistake_is_told_once(tmp_path):
    process = torchrun(2, tmp_path, "--iters", "-1")
    _, err = process.communicate(timeout=120)
    assert process.returncode != 0
    assert err.count("error: --iters must be at least 0") == 1, err
