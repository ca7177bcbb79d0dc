"""What tests/test_ranks.py starts under torchrun: trainings of a tiny model, sharded or whole.

    torchrun --nproc-per-node 2 -- tests/ranks_worker.py FOLDER

In: FOLDER/base, a checkpoint.  Out: FOLDER/CASE-N, the model after each of CASES with N processes,
and FOLDER/CASE-N.json, its log.
"""

import json
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from test_dpo import STEADY, examples, pairs

import model as model_module
from core.cli import run_command
from core.errors import UserError
from core.lora import prepare_training, save_adapters, start_adapters
from core.ranks import count, join, leave, rank
from dpo import Objective, dpo, sft
from model import load, save

FEW = Objective(replay=examples(8, seed=3), replay_size=4)  # fewer passes of pairs than processes
CASES = {
    "weights": (None, STEADY, Objective(nll=1.0), 12),
    "recompute": (None, replace(STEADY, recompute=True), Objective(), 12),
    "replay": (None, STEADY, FEW, 1),
    "adapters": (4, replace(STEADY, recompute=True), Objective(), 12),
    "adapters-bf16": (4, replace(STEADY, dtype=torch.bfloat16), Objective(), 12),
}
CPU = torch.device("cpu")


def train(folder: Path, case: str) -> None:
    lora, recipe, objective, number = CASES[case]
    dtype = torch.float32 if lora is None else recipe.dtype
    prepare = partial(prepare_training, lora=lora, device=CPU, dtype=recipe.dtype)
    model = load(folder / "base", dtype=dtype, prepare=prepare)
    start_adapters(model, seed=1)
    log = sft(model, examples(6), recipe) + dpo(model, pairs(number), recipe, objective)
    target = folder / f"{case}-{count()}"
    save(model, target)
    save_adapters(model, target / "adapter", base="base")
    if rank() == 0:
        (folder / f"{case}-{count()}.json").write_text(json.dumps(log))


def check_memory_of_a_shard(folder: Path) -> None:
    """With memory for three quarters of the weights, one process refuses, and each of two fits."""
    needed = []

    def check(size: int, device: torch.device, what: str) -> None:
        needed.append(size)

    model_module.check_memory = check
    load(folder / "base")
    load(folder / "base", prepare=partial(prepare_training, lora=None, device=CPU, dtype=None))
    whole, shard = needed
    assert shard <= whole / count() * 1.1, needed


def main() -> None:
    join()
    folder = Path(sys.argv[1])
    if len(sys.argv) > 2:  # one process fails alone
        if rank() == count() - 1:
            raise UserError("the numbers are broken.")
        return
    for case in CASES:
        train(folder, case)
    check_memory_of_a_shard(folder)
    leave()


if __name__ == "__main__":
    run_command(main)
