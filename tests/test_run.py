"""core/run.py: what a run directory believes, and what it refuses."""

import json
import os
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import ROOT, Killed

from core import run as run_module
from core.config import Config
from core.errors import UserError
from core.files import read_jsonl, write_jsonl
from core.records import Work
from core.run import Run, check_record, other_arithmetic, unnamed, write_record

ROWS = [{"id": 0, "text": "one\u2028"}, {"id": 1, "text": "two"}, {"id": 2, "text": "three"}]


@pytest.fixture
def run(tmp_path) -> Run:
    return Run(tmp_path / "run", print)


def keep(run: Run, rows=ROWS, stage="prompts") -> list[dict]:
    def make() -> list[dict]:
        run.note("made")
        return rows

    return run.keep(1, stage, make)


def never() -> list[dict]:
    raise AssertionError("a stage that is there is not made again")


# ---- stages ----


def test_a_stage_is_made_once(run, capsys):
    """Guards against: work that is done twice, and a stage without its line."""
    assert keep(run) == ROWS and run.keep(1, "prompts", never) == ROWS
    [told] = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"M1 \| prompts   \| made \| 0\.0 s(, \d+\.\d\d GB)?", told)
    [line] = run.lines()
    assert (line["t"], line["stage"], line["told"]) == (1, "prompts", "made")


LINES = [json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS]
SPOILT = {
    "cut off": LINES[:2],
    "doubled": [*LINES, LINES[2]],
    "shuffled": [LINES[1], LINES[0], LINES[2]],
    "one letter": [LINES[0].replace("one", "onE"), *LINES[1:]],
    "emptied": [],
    "zeroed": ["\0" * sum(map(len, LINES))],
    "half a line": [*LINES[:2], LINES[2][:5]],
}


@pytest.mark.parametrize("name", SPOILT)
def test_a_spoilt_stage_is_refused(run, name):
    """Guards against: another M_2 without a word, from a file that somebody or something changed.

    The message names the file, and what to do helps.
    """
    keep(run)
    path = run.folder / "t1/prompts.jsonl"
    path.write_text("".join(SPOILT[name]))
    with pytest.raises(UserError, match="t1/prompts.jsonl is not as its stage wrote it; delete it"):
        run.keep(1, "prompts", never)
    path.unlink()
    assert keep(run) == ROWS and run.keep(1, "prompts", never) == ROWS
    assert len(run.lines()) == 1, "its line takes the place of the old one"


def test_an_empty_stage_is_a_stage(run):
    """Guards against: a stage that found nothing, made again and again."""
    assert keep(run, []) == [] and run.keep(1, "prompts", never) == []


def test_files_without_a_line_are_taken(run):
    """Guards against: a run of an earlier version, or one that inherits files, that is refused."""
    write_jsonl(run.folder / "t1/prompts.jsonl", ROWS)
    assert run.keep(1, "prompts", never) == ROWS
    write_jsonl(run.folder / "log.jsonl", [{"t": 1, "stage": "prompts", "seconds": 0, "told": ""}])
    assert run.keep(1, "prompts", never) == ROWS


@pytest.mark.parametrize("moment", range(8))
def test_killed_while_a_stage_is_kept(run, monkeypatch, moment):
    """Guards against: a line that is lost, or doubled, where a kill falls between two files.

    The process ends at the moment-th operation on files, and starts again.
    """
    count = 0

    def dying(real):
        def operation(*args, **more):
            nonlocal count
            if count == moment:
                raise Killed
            count += 1
            return real(*args, **more)

        return operation

    keep(run, stage="before")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", dying(Path.replace))
        patch.setattr(os, "fsync", dying(os.fsync))
        try:
            keep(run)
            died = False
        except Killed:
            died = True
    assert died == (moment < 5), "five operations: two for each file, and the name"
    again = Run(run.folder, print)
    assert keep(again) == ROWS and keep(again, stage="before") == ROWS
    assert [line["stage"] for line in again.lines()] == ["before", "prompts"]
    assert not list(run.folder.rglob("*.new"))


def test_a_model_gets_its_name_last(run, monkeypatch):
    """Guards against: an M_2 that is there although its step was not logged; an old, incomplete one
    that is mixed with the new one."""
    (run.folder / "M2").mkdir(parents=True)
    (run.folder / "M2/old").write_text("from a step that was killed")
    unnamed(run.folder / "M2").mkdir()
    (unnamed(run.folder / "M2") / "new").write_text("whole")
    write_jsonl(unnamed(run.folder / "t1/dpo.jsonl"), ROWS)
    with monkeypatch.context() as patch, pytest.raises(OSError, match="full"):
        patch.setattr(run_module, "write_jsonl", full_disk)
        run.finish(1, "dpo", time.time(), "M2", "t1/dpo.jsonl")
    assert not (run.folder / "t1/dpo.jsonl").exists() and not run.has_step(1)
    run.finish(1, "dpo", time.time(), "M2", "t1/dpo.jsonl")
    assert [path.name for path in (run.folder / "M2").iterdir()] == ["new"] and run.has_step(1)
    assert read_jsonl(run.folder / "t1/dpo.jsonl") == ROWS


def full_disk(*_) -> None:
    raise OSError("the disk is full")


# ---- one process at a time ----

HOLD = """
import sys, time
from pathlib import Path
sys.path.insert(0, {root!r})
from core.run import Run
run = Run(Path({folder!r}), print)
run.lock()
print("locked", flush=True)
time.sleep(60)
"""


def test_a_second_process_is_refused(run):
    """Guards against: two processes that write to one run; a dead one that locks it for ever."""
    code = HOLD.format(root=str(ROOT), folder=str(run.folder))
    other = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline() == "locked\n"
        with pytest.raises(UserError, match=f"process {other.pid} is writing to .*run"):
            run.lock()
    finally:
        other.kill()
        other.wait()
    run.lock()
    assert (run.folder / "lock").read_text() == f"{os.getpid()}\n"


# ---- the record ----


def recorded(tmp_path, **settings) -> tuple[Path, Config]:
    for name in ("ift", "ranked", "prompts", "rubric"):
        (tmp_path / name).write_text(f"{name}\n")
        settings.setdefault(name, str(tmp_path / name))
    config = Config(model="x", **settings)
    write_record(tmp_path / "run", config, None, torch.device("cpu"))
    return tmp_path / "run", config


@pytest.mark.parametrize("name", ["ift", "ranked", "prompts", "rubric"])
def test_files_that_were_changed(tmp_path, name):
    """Guards against: an old M_1 that goes on under a new exam, as a file has other contents."""
    folder, config = recorded(tmp_path)
    check_record(folder, config, None)
    (tmp_path / name).write_text("something else\n")
    with pytest.raises(UserError, match=f"{name} .--{name}. was changed since .*run began"):
        check_record(folder, config, None)
    (tmp_path / name).unlink()
    with pytest.raises(UserError, match=f"{name} cannot be read"):
        check_record(folder, config, None)


def test_settings_that_were_changed(tmp_path):
    """Guards against: a refusal that does not say what was, and what is."""
    folder, config = recorded(tmp_path, beta=0.2)
    with pytest.raises(UserError, match="beta was 0.2, now 0.5, n was 4, now 6"):
        check_record(folder, replace(config, beta=0.5, n=6), None)
    with pytest.raises(UserError, match="variant was None, now ipo"):
        check_record(folder, config, "ipo")
    with pytest.raises(UserError, match="ift was .*, now None"):
        check_record(folder, replace(config, ift=None), None)
    free = {"iters": 9, "device": "cpu", "slots": 3, "tokens": 99, "recompute": True}
    check_record(folder, replace(config, **free), None)


def test_another_machine_is_told(tmp_path, monkeypatch):
    """Guards against: a run that goes on with other rounding, without a word."""
    folder, _ = recorded(tmp_path)
    assert other_arithmetic(folder, torch.device("cpu")) == []
    assert other_arithmetic(tmp_path / "nowhere", torch.device("cpu")) == []
    threads = torch.get_num_threads()
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads + 3)
    [told] = other_arithmetic(folder, torch.device("cpu"))
    assert f"threads {threads}, now {threads + 3}" in told and "device" not in told
    assert "device cpu, now cuda" in other_arithmetic(folder, torch.device("cuda"))[0]


# ---- stages in parts ----


class Meter:
    """What counts, as a Writer does."""

    def __init__(self):
        self.work = Work()


def doubled(meter: Meter, dies_at: int | None = None):
    """A stage that makes one row of each item, and dies when it comes to one of them."""

    def make(items, first: int) -> list[dict]:
        rows = []
        for i, item in enumerate(items):
            if first + i == dies_at:
                raise Killed
            meter.work.read += item
            meter.work.too_long.append(f"item {item}")
            rows.append({"number": first + i, "twice": 2 * item})
        return rows

    return make


@pytest.mark.parametrize("dies_at", [0, 1, 3, 4, 6, None])
def test_a_stage_in_parts(run, monkeypatch, dies_at):
    """Guards against: work that is lost or done twice, rows out of order, a count of half the work.

    Seven items, two to a part.
    """
    monkeypatch.setattr(run_module, "PART", 20)
    items = list(range(10, 17))
    meter = Meter()
    if dies_at is not None:
        with pytest.raises(Killed):
            run.in_parts("0 answers 1", items, 10, doubled(meter, dies_at), meter)
        kept = sorted((run.folder / "parts/0-answers-1").glob("*")) if dies_at > 1 else []
        assert len(kept) == dies_at // 2
    meter, seen = Meter(), []

    def make(part, first: int) -> list[dict]:
        seen.append(first)
        return doubled(meter)(part, first)

    rows = Run(run.folder, print).in_parts("0 answers 1", items, 10, make, meter)
    assert rows == [{"number": i, "twice": 2 * item} for i, item in enumerate(items)]
    assert seen == [first for first in (0, 2, 4, 6) if first >= 2 * ((dies_at or 0) // 2)]
    assert meter.work.read == sum(items) and len(meter.work.too_long) == 7
    assert keep(run) == ROWS and not (run.folder / "parts").exists(), "a finished stage has none"


def test_parts_of_another_stage(run):
    """Guards against: the answers of one iteration taken for those of the next."""
    for t in (1, 2):
        meter = Meter()
        rows = run.in_parts(f"0 answers {t}", [t], 10, doubled(meter), meter)
        assert rows == [{"number": 0, "twice": 2 * t}]
    assert run.in_parts("0 answers 3", [], 10, doubled(Meter()), Meter()) == []
