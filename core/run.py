"""core/run.py: a run directory. What is there is read, and what is missing is made.

In: stages, as functions that return rows.  Out: their files, one line of text for each, and a log.
A file is written whole or not at all, and every stage goes on from files. So a run that was stopped
goes on at the first missing file, and ends with the same result as one that was not.
"""

import json
import platform
import subprocess
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch

from core.config import Config
from core.errors import UserError
from core.files import read_existing, read_json, write_jsonl, write_whole

Say = Callable[[str], None]
MAY_CHANGE = {"iters", "device"}  # these settings may change when a run goes on


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
        """The rows of one stage: read from its file, or made, written and logged."""
        path = self.folder / f"t{t}/{stage}.jsonl"
        if not path.exists():
            started = time.time()
            write_jsonl(path, make(*inputs))
            self.log(t, stage, started)
        # Read back, so that a fresh run and a resumed one go on from the same rows.
        return read_existing(path)

    def note(self, text: str) -> None:
        """What a stage has to say, for its line."""
        self.notes.append(text)

    def log(self, t: int, stage: str, started: float) -> None:
        """One line for people and one for log.jsonl, with the notes since the last line."""
        seconds = time.time() - started
        notes = " | ".join(self.notes)
        self.notes.clear()
        self.say(f"M{t} | {stage:<9} | {notes} | {seconds:.1f} s")
        path = self.folder / "log.jsonl"
        row = {"t": t, "stage": stage, "seconds": round(seconds, 3), "told": notes}
        write_jsonl(path, [*read_existing(path), row])


# ---- the record in config.json ----


def check_record(folder: Path, config: Config, variant: str | None) -> None:
    """Raises UserError where a run directory was made with other settings."""
    record = read_json(folder / "config.json")
    if not record:
        return
    # a setting that is newer than the run had its default
    before = asdict(Config()) | record["settings"] | {"variant": record.get("variant")}
    now = asdict(config) | {"variant": variant}
    names = {*before, *now} - MAY_CHANGE
    changed = sorted(name for name in names if before.get(name) != now.get(name))
    if changed:
        raise UserError(
            f"{folder} was made with other settings ({', '.join(changed)}); give --run another "
            f"name or delete it."
        )


def write_record(folder: Path, config: Config, variant: str | None, device: torch.device) -> None:
    """Every setting, versions, the device and the commit."""
    record = {
        "settings": asdict(config),
        "variant": variant,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": str(device),
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
        "commit": current_commit(),
    }
    write_whole(folder / "config.json", json.dumps(record, indent=2) + "\n")


def current_commit() -> str | None:
    command = ["git", "rev-parse", "HEAD"]
    here = Path(__file__).parent
    done = subprocess.run(command, cwd=here, capture_output=True, text=True)
    return done.stdout.strip() or None
