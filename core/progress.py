"""core/progress.py: where a training stands, so that a kill costs a minute and not the stage.

In: a model, its optimisers and its log, after a step.  Out: one file with all that the next step
depends on: weights, the state of the optimisers, random numbers, and the log. A training that goes
on from it ends with the same bytes as one that was never stopped.
The bar that people see while a stage works is here too.
Left out on purpose: pickles. The file is safetensors, with the log as text in its header.
"""

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import Optimizer
from tqdm import tqdm

from core.device import random_states, restore_random_states
from core.files import writing
from core.ranks import rank

SECONDS = 60.0  # between two files
SHARE = 0.05  # of the time that writing them may take


class Progress:
    """The file of one training. It is written after a step, about once a minute."""

    def __init__(self, path: Path):
        self.path = path
        self.written = time.monotonic()  # when the last file was complete
        self.cost = 0.0  # seconds that it took

    def restore(self, model: nn.Module, optimizers: Sequence[Optimizer], steps: int) -> list[dict]:
        """Brings everything back to where the file stands, and returns the log up to there.

        [] where there is no file, or where it is of a training with another number of steps.
        """
        try:
            with safe_open(self.path, "pt") as file:
                story = file.metadata()
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError):
            return []
        if story.get("steps") != str(steps):
            return []
        with torch.no_grad():
            for name, weight in trained_weights(model).items():
                weight.copy_(tensors[f"weight {name}"])
        for number, optimizer in enumerate(optimizers):
            restore_optimizer(optimizer, f"state {number} ", tensors)
        restore_random_states(tensors)
        return json.loads(story["log"])

    def keep(
        self, model: nn.Module, optimizers: Sequence[Optimizer], log: Sequence[dict], steps: int
    ) -> None:
        """Writes the file, if the last one is old enough."""
        started = time.monotonic()
        if started - self.written < max(SECONDS, self.cost / SHARE):
            return
        tensors = random_states()
        for name, weight in trained_weights(model).items():
            tensors[f"weight {name}"] = weight.detach()
        for number, optimizer in enumerate(optimizers):
            tensors |= state_of(optimizer, f"state {number} ")
        unfinished = self.path.with_name(self.path.name + ".new")
        with writing(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            save_file(tensors, unfinished, metadata={"steps": str(steps), "log": json.dumps(log)})
            with open(unfinished, "rb") as file:
                os.fsync(file.fileno())
            unfinished.replace(self.path)
        self.written = time.monotonic()
        self.cost = self.written - started


def trained_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """The weights that a training changes: all, or those of adapters."""
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}


def parameters(optimizer: Optimizer) -> list[Tensor]:
    return [weight for group in optimizer.param_groups for weight in group["params"]]


def state_of(optimizer: Optimizer, prefix: str) -> dict[str, Tensor]:
    """Every tensor of an optimiser's state, under the number of its weight."""
    tensors = {}
    for i, weight in enumerate(parameters(optimizer)):
        for key, value in optimizer.state.get(weight, {}).items():
            tensors[f"{prefix}{i} {key}"] = value
    return tensors


def restore_optimizer(optimizer: Optimizer, prefix: str, tensors: dict[str, Tensor]) -> None:
    weights = parameters(optimizer)
    for name, value in tensors.items():
        if name.startswith(prefix):
            i, key = name.removeprefix(prefix).split(" ", 1)
            weight = weights[int(i)]
            # AdamW counts its steps on the CPU unless it is fused there
            optimizer.state[weight][key] = value.to(weight.device)


def progress_bar(label: str | None, *items, **options) -> tqdm:
    """A bar, hidden where it has no label; with disable=None also where there is no terminal."""
    shown = label and rank() == 0
    return tqdm(*items, desc=label, leave=False, disable=None if shown else True, **options)
