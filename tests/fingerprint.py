"""tests/fingerprint.py: one hash for each stage of two tiny runs.

    python tests/fingerprint.py        # prints a line a stage

Two trees with the same lines compute the same, so a change of shape can be told from a change of
result. In: the commands as people run them. Out: `stage hash` lines over texts, scores, pairs,
figures and weights. The first run is the toy. The second is a random llama that learns from files
of people: instructions, ranked answers and prompts. Seconds, dates and the report are left out.
Hashes differ between machines and versions of torch.
"""

import hashlib
import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path

from conftest import ROOT, leaning_gpt, write_tokenizer

from model import save

TOY = (
    "--iters 2 --n-prompts 24 --n 3 --k 2 --seed-limit 200 --exam 16 --slots 64 --batch-size 16 "
    "--run toy"
)
LLAMA = (
    "--model llama --ift ift.jsonl --ranked ranked.jsonl --prompts prompts.jsonl "
    "--judge expected --iters 2 --n-prompts 12 --n 3 --exam 6 --max-new-tokens 12 --batch-size 8 "
    "--dpo-lr 1e-3 --replay 4 --nll 0.5 --dropout 0.1 --rubric rubric.txt --run llama"
)
# Files that hold seconds, dates or paths.
TIMED = ("config.json", "log.jsonl", "metrics.jsonl", "report.html")
WORDS = ("red", "blue", "fast", "slow", "cat", "dog", "tree", "river", "stone", "light")


def write_lines(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def make_llama(folder: Path) -> None:
    """A random llama, and files of people for it.

    It likes digits after "Score:" and ends half of its answers.
    """
    write_tokenizer(folder / "llama")
    likely = {i: 6.0 for i in range(19, 25)} | {1: 6.5}  # the bytes 0 to 5, and an end
    save(leaning_gpt(likely, model_type="llama", max_position_embeddings=2048), folder / "llama")
    ends = {"eos_token_id": [1, *range(132, 260)]}
    (folder / "llama" / "generation_config.json").write_text(json.dumps(ends))
    rng = random.Random(0)

    def sentence() -> str:
        return " ".join(rng.choices(WORDS, k=rng.randrange(2, 6)))

    rows = [{"prompt": f"Ask {i}: {sentence()}?", "response": sentence()} for i in range(24)]
    write_lines(folder / "ift.jsonl", rows)
    groups = []
    for i in range(30):
        group = {"prompt": f"Rank {i}: {sentence()}?"}
        group["responses"] = [sentence() for _ in range(3)]
        group["ranks"] = rng.sample(range(3), 3)
        groups.append(group)
    write_lines(folder / "ranked.jsonl", groups)
    prompts = [{"prompt": f"New {i}: {sentence()}?"} for i in range(24)]
    write_lines(folder / "prompts.jsonl", prompts)
    (folder / "rubric.txt").write_text("Rate {response}\nfor {prompt}\n")


def start(folder: Path, settings: str) -> subprocess.Popen:
    """The real command, on one thread: two may add up in another order."""
    return subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *settings.split()],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(process: subprocess.Popen) -> str:
    """What a process that went well has printed. Raises RuntimeError where it did not."""
    out, errors = process.communicate(timeout=600)
    if process.returncode:
        raise RuntimeError(errors)
    return out


def hashes(run: Path) -> dict[str, str]:
    """File -> hash of its bytes; of metrics.jsonl without seconds."""
    contents = {}
    for path in sorted(run.rglob("*")):
        if path.suffix in (".jsonl", ".safetensors") and path.name not in TIMED:
            contents[str(path.relative_to(run))] = path.read_bytes()
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for row in metrics:
        del row["seconds"]
    contents["metrics.jsonl"] = json.dumps(metrics).encode()
    return {name: hashlib.sha256(content).hexdigest()[:16] for name, content in contents.items()}


def fingerprints(count: int) -> list[dict[str, str]]:
    """Both runs, `count` times: stage -> hash, each time. All commands run side by side."""
    with tempfile.TemporaryDirectory() as scratch:
        folders = [Path(scratch) / str(i) for i in range(count)]
        processes = []
        for folder in folders:
            make_llama(folder)
            processes += [start(folder, TOY), start(folder, LLAMA)]
        for process in processes:
            wait_for(process)
        return [stages(folder) for folder in folders]


def stages(folder: Path) -> dict[str, str]:
    lines = {}
    for name in ("toy", "llama"):
        for file, value in hashes(folder / "runs" / name).items():
            lines[f"{name}/{file}"] = value
    return lines


if __name__ == "__main__":
    for stage, value in fingerprints(1)[0].items():
        print(f"{stage:<36} {value}")
