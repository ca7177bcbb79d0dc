"""Kills a run at random moments, starts it again, and compares it with one that nobody killed.

    python tests/torture.py --kills 50

Every round starts the command and sends SIGKILL after a random time, until the run ends by itself.
Half of the kills fall on file operations: the process is told to die at the n-th of them. Compared,
byte for byte: all files but the lock, and in the others everything but times.
"""

import argparse
import json
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RUN = shlex.split(
    "--iters 2 --n-prompts 24 --n 3 --k 2 --seed-limit 200 --exam 16 --slots 64 --batch-size 16"
)
# Runs the command, and dies at the n-th rename or flush.
DYING = """
import os, runpy, signal, sys
left = int(sys.argv[1])
def dying(real):
    def operation(*args, **more):
        global left
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **more)
    return operation
for name in ("rename", "replace", "fsync", "unlink", "rmdir"):
    setattr(os, name, dying(getattr(os, name)))
sys.argv = sys.argv[2:]
sys.path.insert(0, os.path.dirname(sys.argv[0]))
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def results(run: Path) -> dict[str, object]:
    """File -> what is in it, without times."""
    found: dict[str, object] = {}
    for path in sorted(run.rglob("*")):
        name = str(path.relative_to(run))
        if path.is_dir() or name in ("lock", "report.html"):
            continue
        if name == "config.json":
            found[name] = json.loads(path.read_text())["settings"]
        elif name in ("log.jsonl", "metrics.jsonl"):
            rows = [json.loads(line) for line in path.read_text().splitlines()]
            found[name] = [without_times(row) for row in rows]
        else:
            found[name] = path.read_bytes()
    return found


def without_times(row: dict) -> dict:
    kept = {
        key: value for key, value in row.items() if key not in ("seconds", "peak_bytes", "files")
    }
    if "told" in kept:  # the exam tells how long the iteration took
        kept["told"] = kept["told"].split(", seconds")[0]
    return kept


def check_files(run: Path) -> None:
    """Raises ValueError where a file cannot be read as what it is."""
    for path in run.rglob("*.json*"):
        lines = [path.read_text()] if path.suffix == ".json" else path.read_text().splitlines()
        for line in lines:
            json.loads(line)


def command(folder: Path, dies_at: int | None) -> subprocess.Popen:
    start = [sys.executable]
    if dies_at is not None:
        start += ["-c", DYING, str(dies_at)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    words = [*start, str(ROOT / "train.py"), *RUN]
    return subprocess.Popen(
        words, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )


def tortured(folder: Path, rng: random.Random, kills: int, longest: float) -> int:
    """One run that is killed up to `kills` times. Returns how often it was."""
    count = 0
    while True:
        by_file = count < kills and rng.random() < 0.5
        process = command(folder, rng.randrange(60) if by_file else None)
        if count < kills and not by_file:
            try:
                process.wait(timeout=longest * rng.random())
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
        errors = process.communicate()[1]
        if (folder / "runs").exists():
            check_files(folder / "runs/toy")
        if process.returncode == 0:
            return count
        if process.returncode != -signal.SIGKILL:
            sys.exit(f"after {count} kills the command failed:\n{errors.decode()}")
        count += 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50, help="in all [%(default)s]")
    parser.add_argument("--each", type=int, default=10, help="kills a run, at most [%(default)s]")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as scratch:
        whole = Path(scratch) / "whole"
        whole.mkdir()
        started = time.time()
        process = command(whole, None)
        process.wait()
        longest = time.time() - started
        expected = results(whole / "runs/toy")
        killed = runs = 0
        while killed < args.kills:
            folder = Path(scratch) / f"run{runs}"
            folder.mkdir()
            most = min(args.each, args.kills - killed)
            killed += tortured(folder, rng, most, longest)
            runs += 1
            found = results(folder / "runs/toy")
            differing = [n for n in {*expected, *found} if expected.get(n) != found.get(n)]
            if differing:
                sys.exit(f"run {runs} differs in {', '.join(sorted(differing))}")
            print(f"{killed} kills, {runs} runs: no difference", flush=True)
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()
