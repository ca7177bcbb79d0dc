"""core/recipe.py: how a training stage steps: in which order, how far, with what arithmetic.

In: settings.  Out: a Recipe, the rows of each step, and the learning rate of each step.
"""

import math
import random
from dataclasses import dataclass
from itertools import pairwise

import torch

from core.config import LORA_RATE

PAPER_WIDTH = 8192  # hidden size of the paper's model
PAPER_SFT_LR = 5.5e-6
PAPER_DPO_LR = 1e-6


@dataclass(frozen=True)
class Recipe:
    """How one training stage steps."""

    epochs: int = 1
    batch_size: int = 16  # examples or pairs a step
    lr: float = 1e-6
    lr_end: float = 1e-7  # linear decay from lr to this
    warmup: float = 0.1  # share of the steps in which the rate rises from 0 to lr
    clip: float = 1.0  # largest gradient norm
    dropout: float = 0.0
    recompute: bool = False  # keep less in the forward pass, and compute it again in the backward
    block: int = 1  # examples that stand together in their list stay together: questions on a text
    per_example: bool = False  # SFT: every example weighs the same; else every token does
    tokens: int = 2048  # of one forward and backward pass; a step adds up as many as it needs
    dtype: torch.dtype = torch.float32  # of the arithmetic; weights and sums stay fp32
    seed: int = 0


def plan(count: int, recipe: Recipe) -> list[list[int]]:
    """The rows of each step: every epoch in another order, cut into steps of nearly equal size."""
    rng = random.Random(f"order {recipe.seed}")
    n = math.ceil(count / recipe.batch_size)
    blocks = blocks_of(count, recipe.block)
    steps = []
    for _ in range(recipe.epochs):
        order = [row for block in rng.sample(blocks, len(blocks)) for row in block]
        for i in range(n):
            steps.append(order[count * i // n : count * (i + 1) // n])
    return steps


def blocks_of(count: int, size: int) -> list[range]:
    """Rows cut into blocks from the end, where the judge examples stand; the first may be short."""
    borders = [0, *range(count % size or size, count + 1, size)]
    return [range(start, end) for start, end in pairwise(borders)]


def rate(step: int, steps: int, recipe: Recipe) -> float:
    """The learning rate as a share of its peak: a linear rise, then a linear fall to lr_end."""
    rise = max(1, round(recipe.warmup * steps))
    if step < rise:
        return (step + 1) / rise
    end = recipe.lr_end / recipe.lr
    return 1 - (1 - end) * (step + 1 - rise) / max(1, steps - rise)


def default_rate(of_paper: float, width: int, lora: int | None) -> float:
    """The paper's learning rate times 8192 / width: narrow models bear more, and so do adapters."""
    times = 1 if lora is None else LORA_RATE
    return times * of_paper * PAPER_WIDTH / width
