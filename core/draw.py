"""core/draw.py: one token: logits and a random number -> an id.

In: logits of many rows, and for each row a number in [0, 1).  Out: one id a row.
The numbers come from keys, not from a generator with a state. So a text is drawn with the same
numbers whatever is written beside it, and in whatever order. The key of the third answer (sample 2)
to prompt 17 in iteration 1 of a run with seed 0 is "0 answers 1 17 2".
Left out on purpose: penalties, and samplers beyond temperature, top-k and nucleus.

Shapes: B rows, V vocabulary, C candidates for a token.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from core.device import waits_cost_nothing
from core.errors import UserError

# The nucleus of nearly every row lies among its 32 likeliest tokens. Else 1,024, then all.
NUCLEUS_LOOKS = (32, 1024)


@dataclass(frozen=True)
class Sampling:
    """How to draw. Temperature 0 is greedy; top_p 1 and top_k None keep the whole vocabulary."""

    max_new_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int | None = None
    n: int = 1  # texts for each prompt
    slots: int = 64  # texts that are written side by side
    stop: Callable[[str], bool] | None = None  # ends a text; it is asked whenever a line ends

    def __post_init__(self):
        """Raises UserError for numbers that would draw nothing, or nonsense."""
        # what is not a number fails every comparison
        if not 0 <= self.temperature <= 100:
            raise UserError(f"a temperature must be from 0 to 100, not {self.temperature}.")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top-p must be above 0 and at most 1, not {self.top_p}.")
        counts = {"tokens": self.max_new_tokens, "texts": self.n, "slots": self.slots}
        for name, count in counts.items():
            if not 1 <= count <= 10_000_000:
                raise UserError(f"the number of {name} must be at least 1, not {count}.")


def uniforms(keys: Sequence[str], count: int) -> Tensor:
    """(len(keys), count) numbers in [0, 1). A key always gives the same numbers.

    A hash of the key seeds a splitmix64 sequence (Steele et al. 2014), and number i is its i-th.
    So number i does not depend on `count`, and no generator has a state that a batch could share.
    """
    # 1) hash the keys
    digests = [hashlib.blake2b(key.encode(), digest_size=8).digest() for key in keys]
    seeds = np.array([int.from_bytes(digest, "little") for digest in digests], np.uint64)
    # 2) mix seed + i x the golden ratio, as splitmix64 does
    steps = np.arange(1, count + 1, dtype=np.uint64)
    with np.errstate(over="ignore"):  # the arithmetic is modulo 2^64
        z = seeds[:, None] + steps * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    # 3) keep 24 bits, which fp32 holds exactly
    top_24_bits = z >> np.uint64(40)
    return torch.from_numpy(top_24_bits.astype(np.float32) / np.float32(2**24))


def inverse_cdf(weights: Tensor, u: Tensor) -> Tensor:
    """Weights (B,C), u (B,) -> the column (B,) where a row's running sum passes u of its total."""
    cdf = weights.cumsum(-1)
    total = cdf[:, -1:]
    # Rounding must not reach past the last weight.
    below_total = total.nextafter(cdf.new_zeros(1))
    reached = (u[:, None] * total).minimum(below_total)  # (B,1)
    return torch.searchsorted(cdf, reached, right=True)[:, 0]


def pick(logits: Tensor, u: Tensor, sampling: Sampling) -> Tensor:
    """One token a row: logits (B,V), u (B,) in [0,1) -> ids (B,). top_p counts within top_k."""
    if sampling.temperature == 0:
        return logits.argmax(-1)
    probs = (logits.float() / sampling.temperature).softmax(-1)
    if sampling.top_k is not None:
        top, ids = probs.topk(min(sampling.top_k, probs.shape[-1]))
        return draw(top / top.sum(-1, keepdim=True), ids, u, sampling.top_p)
    if sampling.top_p < 1:
        return pick_from_nucleus(probs, u, sampling.top_p)
    return inverse_cdf(probs, u)


def pick_at_once(logits: Tensor, u: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """`pick` in one shape, without a wait for the device: ids (B,), and bool (B,): not sure.

    All rows look at the same number of candidates. Where the nucleus may be wider, the id is not
    sure, and `pick` must say it.
    """
    sure = torch.zeros_like(u, dtype=torch.bool)
    other = sampling.temperature == 0 or sampling.top_k is not None or sampling.top_p == 1
    if other or waits_cost_nothing(logits.device):
        return pick(logits, u, sampling), sure
    probs = (logits.float() / sampling.temperature).softmax(-1)
    size = min(NUCLEUS_LOOKS[-1], probs.shape[-1])
    top, ids = probs.topk(size)  # (B,C), falling
    unsure = sure if size == probs.shape[-1] else top.sum(-1) < sampling.top_p
    return draw(top, ids, u, sampling.top_p), unsure


def draw(top: Tensor, ids: Tensor, u: Tensor, top_p: float) -> Tensor:
    """Draws from the nucleus of candidates `ids` with falling probabilities `top` (B,C): (B,)."""
    # The mass of all that is likelier: 0 for the first candidate, which so always stays.
    likelier = top.cumsum(-1) - top  # (B,C)
    column = inverse_cdf(torch.where(likelier < top_p, top, 0), u)
    return ids.gather(-1, column[:, None])[:, 0]


def pick_from_nucleus(probs: Tensor, u: Tensor, top_p: float) -> Tensor:
    """Nucleus sampling (Holtzman et al. 2020) of probs (B,V), without a sort of the vocabulary.

    Exact: a row whose likeliest tokens hold less than top_p is looked at again, wider.
    """
    best, token = probs.max(-1)
    # In all other rows the likeliest token alone is the nucleus.
    rows = (best < top_p).nonzero()[:, 0]
    for size in (*NUCLEUS_LOOKS, probs.shape[-1]):
        if len(rows) == 0:
            break
        top, ids = probs[rows].topk(min(size, probs.shape[-1]))  # (rows,C), falling
        drawn = draw(top, ids, u[rows], top_p)
        # a row is done where the candidates hold its whole nucleus
        enough = (top.sum(-1) >= top_p) | (size >= probs.shape[-1])
        token[rows[enough]] = drawn[enough]
        rows = rows[~enough]
    return token


def check_overflow(finite: Tensor) -> None:
    """Raises UserError where the model's numbers are no longer all finite."""
    if not finite:
        raise UserError(
            "the model's numbers became infinite or NaN while it read or wrote, so its weights are "
            "broken. If it was trained here, go back to the model before it and lower --dpo-lr."
        )
