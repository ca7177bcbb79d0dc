"""core/statistics.py: a mean that leaves out what is missing, and four kinds of 95 % interval.

In: numbers.  Out: numbers, or None where nothing can be said. No torch.
The bootstrap is for shares over groups of answers, also crossed with seeds; Student's t is for a
handful of seeds, the normal distribution for many held-out answers.
"""

import statistics
from collections.abc import Iterable, Sequence

import numpy as np

# Student's t, two-sided 95 %, at 1 to 9 degrees of freedom. More than ten values use the last one:
# their interval is a little too wide.
T95 = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26)
DRAWS = 2000  # of the bootstrap


def mean(values: Iterable[float | None]) -> float | None:
    """The mean of the values that are not None; None where none is left."""
    present = [value for value in values if value is not None]
    return sum(present) / len(present) if present else None


def bootstrap_interval(part: Sequence[float], whole: Sequence[float]) -> list[float]:
    """The 95 % bootstrap interval of sum(part) / sum(whole), as [low, high].

    One number a group in both. Whole groups are drawn, since answers to one prompt hang together.
    """
    groups = len(whole)
    # Seeded: the same data always give the same interval.
    picks = np.random.default_rng(0).integers(0, groups, (DRAWS, groups))
    parts = np.array(part, float)[picks].sum(1)  # (DRAWS,)
    wholes = np.array(whole, float)[picks].sum(1)
    shares = parts / np.maximum(1, wholes)
    return [round(float(share), 4) for share in np.quantile(shares, (0.025, 0.975))]


def crossed_interval(values: Sequence[Sequence[float]]) -> list[float]:
    """The 95 % bootstrap interval of the mean of values[seed][prompt], as [low, high].

    Seeds and prompts are both drawn, the same prompts for every seed. Three seeds are few: what
    differs between seeds is then understated.
    """
    table = np.array(values, float)  # (seeds, prompts)
    seed_count, prompt_count = table.shape
    rng = np.random.default_rng(0)
    means = []
    for _ in range(DRAWS):
        seeds = rng.integers(0, seed_count, seed_count)
        prompts = rng.integers(0, prompt_count, prompt_count)
        drawn = table[seeds][:, prompts]
        means.append(drawn.mean())
    low, high = np.quantile(means, (0.025, 0.975))
    return [round(float(low), 4), round(float(high), 4)]


def student_interval(values: Sequence[float]) -> dict:
    """Mean and half width of the 95 % interval over seeds; `half` is None where there is one."""
    half = None
    n = len(values)
    if n > 1:
        t = T95[min(n - 1, len(T95)) - 1]
        half = t * statistics.stdev(values) / n**0.5
    # statistics.mean sums exactly: equal seeds give their own value.
    middle = statistics.mean(values)
    return {"mean": middle, "half": half, "min": min(values), "max": max(values), "n": n}


def normal_interval(values: Sequence[float]) -> tuple[float | None, float | None]:
    """The 95 % interval of a mean over many answers; (None, None) for fewer than two."""
    n = len(values)
    if n < 2:
        return None, None
    middle = mean(values)
    squares = [(value - middle) ** 2 for value in values]
    variance = sum(squares) / (n - 1)
    error = (variance / n) ** 0.5
    half = 1.96 * error
    return middle - half, middle + half
