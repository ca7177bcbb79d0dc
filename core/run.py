"""core/run.py: a run directory. What is there is read, and what is missing is made.

In: stages, as functions that return rows.  Out: their files, one line of text for each, and a log.
A file is written whole or not at all, and every stage goes on from files. So a run that was stopped
goes on at the first missing file, and ends with the same result as one that was not.
- A stage is logged before its files get their names. A kill between the two costs the stage, which
  is made again and logged again in the same place, and never its line.
- The log knows the checksum of every stage. A file that was changed since is refused, not believed.
- One process at a time: a lock names the one that writes.
"""

import hashlib
import json
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Protocol, TextIO

import torch

try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None

from core.config import Config, flag
from core.device import take_peak
from core.errors import UserError
from core.files import read_existing, read_json, read_jsonl, write_jsonl, write_whole
from core.progress import Progress
from core.ranks import count, exchange, first_only
from core.records import Work

Say = Callable[[str], None]


class HasWork(Protocol):
    """Whatever counts what it computes: a Writer."""

    work: Work


PARTS = "parts"  # the folder of what a stage has made so far
PART = 400_000  # tokens that a part may take: some minutes of a small model on a CPU
TRAINING = "t{}/training.safetensors"  # where the training of M_{t+1} stands; gone when it is there
# These settings may change when a run goes on. All but the first two change only the rounding.
MAY_CHANGE = {"iters", "keep_best", "device", "slots", "tokens", "recompute", "split"}
INPUTS = ("ift", "oasst", "eft", "ranked", "prompts", "rubric")  # settings that name a file


class Run:
    """The files of one run, and what it says."""

    def __init__(self, folder: Path, say: Say):
        self.folder = folder
        self.say = say
        self.notes: list[str] = []

    def model_folder(self, t: int) -> Path:
        """The folder of M_t."""
        return self.folder / f"M{t}"

    def metrics(self) -> list[dict]:
        """The figures of every model that was examined."""
        return read_existing(self.folder / "metrics.jsonl")

    def examined(self) -> set[int]:
        """Every t whose M_t was examined."""
        return {row["t"] for row in self.metrics()}

    def next_iteration(self) -> int:
        """The first t for which M_{t+1} or its log is missing."""
        t = 1
        while self.has_step(t):
            t += 1
        return t

    def has_step(self, t: int) -> bool:
        """Whether M_{t+1} was made, and its log was written."""
        return self.model_folder(t + 1).exists() and (self.folder / f"t{t}/dpo.jsonl").exists()

    # ---- stages ----

    def keep(self, t: int, stage: str, make: Callable[..., list[dict]], *inputs) -> list[dict]:
        """The rows of one stage: read from its file, or made, logged and written.

        Raises UserError where the file is not the one that was written.
        """
        name = f"t{t}/{stage}.jsonl"
        if (self.folder / name).exists():
            self.check(t, stage, name)
        else:
            started = time.time()
            write_jsonl(unnamed(self.folder / name), make(*inputs))
            self.finish(t, stage, started, name)
        # Read back, so that a fresh run and a resumed one go on from the same rows.
        return read_existing(self.folder / name)

    def in_parts(
        self,
        key: str,
        items: Sequence,
        tokens: int,
        make: Callable[[Sequence, int], list[dict]],
        meter: HasWork,
    ) -> list[dict]:
        """The rows of a long stage, made part by part, so that a kill costs one part.

        `key` names the stage. `make` turns some items, and the number of the first, into rows. An
        item takes up to so many `tokens`. `meter.work` counts what was read and written, also by a
        process that was killed.
        """
        size = max(1, PART // tokens)
        total = Work()
        rows: list[dict] = []
        for first in range(0, len(items), size):
            path = self.folder / PARTS / key.replace(" ", "-") / f"{first}.jsonl"
            if not path.exists():
                meter.work = Work()
                made = make(items[first : first + size], first)
                write_jsonl(path, [asdict(meter.work), *made])
            work, *made = read_jsonl(path)
            total.add(Work(**work))
            rows += made
        meter.work = total
        return rows

    def check(self, t: int, stage: str, name: str) -> None:
        """Raises UserError where a file is not the one that its stage wrote."""
        lines = [row for row in self.lines() if (row["t"], row["stage"]) == (t, stage)]
        known = lines[-1].get("files", {}).get(name) if lines else None
        if known is not None and known != checksum(self.folder / name):
            raise UserError(
                f"{self.folder / name} is not as its stage wrote it; delete it, and the same "
                f"command makes it again."
            )

    def note(self, text: str) -> None:
        """What a stage has to say, for its line."""
        self.notes.append(text)

    def finish(self, t: int, stage: str, started: float, *names: str) -> None:
        """Logs a stage, and then gives its files and folders their names.

        The line goes to people and to log.jsonl, with the notes since the last line.
        """
        seconds = time.time() - started
        told = " | ".join(self.notes)
        self.notes.clear()
        took = f"{seconds:.1f} s"
        peaks = [peak for peak in exchange(take_peak()) if peak is not None]
        peak = max(peaks, default=None)  # of the process that took most
        if peak is not None:
            took += f", {peak / 2**30:.2f} GB"
        self.say(f"M{t} | {stage:<9} | {told} | {took}")
        files = {}
        for name in names:
            if unnamed(self.folder / name).is_file():
                files[name] = checksum(unnamed(self.folder / name))
        line = {"t": t, "stage": stage, "seconds": round(seconds, 3), "peak_bytes": peak}
        line |= {"told": told, "files": files}
        # a stage that is made again takes the place of its line
        lines = [row for row in self.lines() if (row["t"], row["stage"]) != (t, stage)]
        write_jsonl(self.folder / "log.jsonl", [*lines, line])
        self.give_names(names)

    @first_only
    def give_names(self, names: Sequence[str]) -> None:
        """The last act of a stage: its files and folders are complete."""
        for name in names:
            path = self.folder / name
            if path.is_dir():  # a model whose step was not complete
                shutil.rmtree(path)
            path.parent.mkdir(parents=True, exist_ok=True)
            unnamed(path).replace(path)
        shutil.rmtree(self.folder / PARTS, ignore_errors=True)
        self.forget_trainings()

    def training(self, t: int) -> Progress | None:
        """Where the training of M_{t+1} stands. Several processes begin a training anew."""
        return Progress(self.folder / TRAINING.format(t)) if count() == 1 else None

    def forget_trainings(self) -> None:
        """Removes what a training kept of itself, once its model is complete."""
        for path in self.folder.glob(TRAINING.format("*")):
            t = int(path.parent.name.removeprefix("t"))
            if self.has_step(t) if t else self.model_folder(1).exists():
                path.unlink()

    def lines(self) -> list[dict]:
        """One object a finished stage."""
        return read_existing(self.folder / "log.jsonl")

    # ---- one process at a time ----

    @first_only
    def lock(self) -> None:
        """Raises UserError where another process writes here. The lock of a dead one is free.

        What a dead one left half written is removed.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        self.locked: TextIO = open(self.folder / "lock", "a+")  # noqa: SIM115  (till the end)
        try:
            if fcntl is not None:
                fcntl.flock(self.locked, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.locked.seek(0)
            owner = self.locked.read().strip()
            raise UserError(
                f"process {owner} is writing to {self.folder}; wait for it, or stop it."
            ) from None
        self.locked.truncate(0)
        self.locked.write(f"{os.getpid()}\n")
        self.locked.flush()
        for pattern in ("*.new", "*.tmp", "*/*.new", "*/*.tmp"):
            for leftover in self.folder.glob(pattern):
                if leftover.is_dir():
                    shutil.rmtree(leftover)
                else:
                    leftover.unlink()
        self.forget_trainings()


def unnamed(path: Path) -> Path:
    """Where a file or folder is written before its stage is logged."""
    return path.with_name(path.name + ".new")


def checksum(path: str | Path) -> str:
    """SHA-256 of a file. Raises UserError where it cannot be read."""
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error}).") from None


# ---- the record in config.json ----


def check_record(folder: Path, config: Config, variant: str | None) -> None:
    """Raises UserError where a run directory was made with other settings, or from other files."""
    record = read_json(folder / "config.json")
    if not record:
        return
    # a setting that is newer than the run had its default
    before = asdict(Config()) | record["settings"] | {"variant": record.get("variant")}
    now = asdict(config) | {"variant": variant}
    names = {*before, *now} - MAY_CHANGE
    changed = sorted(name for name in names if before.get(name) != now.get(name))
    if changed:
        changes = [f"{n} was {before.get(n)}, now {now.get(n)}" for n in changed]
        raise UserError(
            f"{folder} was made with other settings ({', '.join(changes)}); give --run another "
            f"name or delete it."
        )
    for name, known in record.get("inputs", {}).items():
        path = getattr(config, name)
        if known != checksum(path):
            raise UserError(
                f"{path} ({flag(name)}) was changed since {folder} began; give --run another name, "
                f"or bring the old file back."
            )


def write_record(folder: Path, config: Config, variant: str | None, device: torch.device) -> None:
    """Every setting, checksums of the files that it names, versions, the device and the commit."""
    inputs = {}
    for name in INPUTS:
        path = getattr(config, name)
        if path is not None:
            inputs[name] = checksum(path)
    record = {
        "settings": asdict(config),
        "variant": variant,
        "inputs": inputs,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": device.type,
        "threads": torch.get_num_threads(),
        "processes": count(),
        "machine": platform.machine(),
        "commit": current_commit(),
    }
    write_whole(folder / "config.json", json.dumps(record, indent=2) + "\n")


def other_arithmetic(folder: Path, device: torch.device) -> list[str]:
    """A sentence where the machine is not as it was at the start, so that rounding differs."""
    record = read_json(folder / "config.json")
    now = {"torch": torch.__version__, "device": device.type, "threads": torch.get_num_threads()}
    now["processes"] = count()
    changes = []
    for name, value in now.items():
        if record.get(name, value) != value:
            changes.append(f"{name} {record[name]}, now {value}")
    if not changes:
        return []
    return [
        f"the run began with {', '.join(changes)}; from here on it equals a run without a stop "
        f"only up to rounding"
    ]


def current_commit() -> str | None:
    command = ["git", "rev-parse", "HEAD"]
    here = Path(__file__).parent
    try:
        done = subprocess.run(command, cwd=here, capture_output=True, text=True)
    except OSError:  # no git here
        return None
    return done.stdout.strip() or None
