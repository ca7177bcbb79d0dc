"""core/rankings.py: ties and missing scores are not right, and textbooks agree.

The intervals come from core/statistics.py.
"""

import random
from itertools import combinations

import pytest
import torch

from core.rankings import agreement, judge_figures
from core.statistics import bootstrap_interval

ACCURACY = [
    ([[5, 3, 1]], [[0, 1, 2]], 1),
    ([[1, 3, 5]], [[0, 1, 2]], 0),
    ([[5, 1, 3]], [[0, 1, 2]], 2 / 3),
    ([[5, 5, 1]], [[0, 1, 2]], 2 / 3),
    ([[5, 4, 1]], [[0, 0, 1]], 1),
    ([[None, 4, 1]], [[0, 1, 2]], 1 / 3),
    ([[0, None]], [[0, 1]], 0),
    ([[None, None]], [[0, 1]], 0),
    ([[5, 5]], [[1, 1]], None),
    ([[5, 1], [1, 5]], [[0, 1], [0, 1]], 0.5),
]


@pytest.mark.parametrize("rewards, ranks, share", ACCURACY, ids=str)
def test_pairwise_accuracy(rewards, ranks, share):
    """Guards against: errors and ties that count as wins (LifeOS #1731, NeMo-Gym #2103)."""
    accuracy = judge_figures(rewards, ranks)["judge_pairwise"]
    assert accuracy == (None if share is None else pytest.approx(share))


FIGURES = [  # rewards and ranks of one group: pairwise, ties, best5, exact, spearman, kendall
    ([5, 3, 1], [0, 1, 2], 1, 0, 1, 1, 1, 1),
    ([1, 3, 5], [0, 1, 2], 0, 0, 0, 0, -1, -1),
    ([5, 5, 1], [0, 1, 2], 2 / 3, 1 / 3, 1 / 2, 0, 3**0.5 / 2, (2 / 3) ** 0.5),
    ([3, 3, 3], [0, 1, 2], 0, 1, None, 0, 0, 0),
    ([5, 5], [0, 1], 0, 1, 1 / 2, 0, 0, 0),
    ([4, 4, 1], [0, 0, 1], 1, 0, None, 1, 1, 1),
    ([4, 3, 1], [0, 0, 1], 1, 0, None, 0, 3**0.5 / 2, (2 / 3) ** 0.5),
    ([None, 4, 1], [0, 1, 2], 1 / 3, 2 / 3, None, 0, 1, 1),
    ([4.5, None], [1, 0], 0, 1, 0, 0, 0, 0),
    ([5, 1], [1, 3], 1, 0, 1, 1, 1, 1),
    ([None, None], [0, 1], 0, 1, None, 0, 0, 0),
    ([4.49, 1], [0, 1], 1, 0, None, 1, 1, 1),
    ([4.5, 5, 1], [0, 0, 1], 1, 0, 1, 0, 3**0.5 / 2, (2 / 3) ** 0.5),
]
NAMES = ("pairwise", "ties", "best5", "exact", "spearman", "kendall")


@pytest.mark.parametrize("case", FIGURES, ids=str)
def test_figures_by_hand(case):
    """Guards against: ties that count as right.

    Also against: missing scores that count as zeros, a share of no fives.
    """
    rewards, ranks, *values = case
    figures = judge_figures([rewards], [ranks])
    assert {n: figures[f"judge_{n}"] for n in NAMES} == {
        n: None if v is None else pytest.approx(v) for n, v in zip(NAMES, values)
    }


def test_figures_of_several_groups():
    """Guards against: a mean over the wrong thing.

    Pairs and fives are counted over all groups, the others a group each.
    """
    figures = judge_figures([[5, 3, 1], [1, 5], [2, 2]], [[0, 1, 2], [0, 1], [0, 0]])
    assert [figures[f"judge_{n}"] for n in NAMES] == pytest.approx([3 / 4, 0, 1 / 2, 2 / 3, 0, 0])


def brute_tau_b(a: list[float], b: list[float]) -> float:
    """(concordant - discordant) / sqrt((pairs - ties in a) (pairs - ties in b))."""
    pairs = list(combinations(range(len(a)), 2))
    signs = [((a[i] - a[j]), (b[i] - b[j])) for i, j in pairs]
    concordant = sum(x * y > 0 for x, y in signs)
    discordant = sum(x * y < 0 for x, y in signs)
    untied_a = sum(x != 0 for x, _ in signs)
    untied_b = sum(y != 0 for _, y in signs)
    below = untied_a * untied_b
    return (concordant - discordant) / below**0.5 if below else 0.0


def shared_ranks(values: list[float]) -> list[float]:
    """Of each value the mean of the places that it takes in the sorted list."""
    ranks = []
    for v in values:
        first, count = sorted(values).index(v), values.count(v)
        ranks.append(sum(range(first, first + count)) / count)
    return ranks


def brute_spearman(a: list[float], b: list[float]) -> float:
    """Pearson's correlation of the ranks, ties sharing theirs."""
    if len({*a}) < 2 or len({*b}) < 2:
        return 0.0
    ranks = torch.tensor([shared_ranks(a), shared_ranks(b)], dtype=torch.float64)
    return float(torch.corrcoef(ranks)[0, 1])


def random_groups(count: int, seed: int = 0) -> tuple[list, list]:
    """Rewards that agree with the ranks more often than not, with ties and missing ones."""
    rng = random.Random(seed)
    rewards = []
    ranks = []
    for _ in range(count):
        ranks.append([rng.randrange(4) for _ in range(rng.randrange(2, 7))])
        rewards.append([rng.choice([None, 4 - r, 4 - r, rng.randrange(6)]) for r in ranks[-1]])
    return rewards, ranks


def test_correlations_against_the_textbook():
    """Guards against: tau-a, or ranks that ties do not share. Groups one by one, and their mean."""
    rewards, ranks = random_groups(300)
    single = [judge_figures([r], [t]) for r, t in zip(rewards, ranks)]
    for figures, given, truth in zip(single, rewards, ranks):
        there = [(r, -t) for r, t in zip(given, truth) if r is not None]
        a = [r for r, _ in there]
        b = [t for _, t in there]
        assert figures["judge_kendall"] == pytest.approx(brute_tau_b(a, b), abs=1e-9)
        assert figures["judge_spearman"] == pytest.approx(brute_spearman(a, b), abs=1e-9)
    whole = judge_figures(rewards, ranks)
    for name in ("judge_kendall", "judge_spearman", "judge_exact"):
        assert whole[name] == pytest.approx(sum(f[name] for f in single) / 300)


@pytest.mark.parametrize("seed", range(6))
def test_interval_holds_the_estimate(seed):
    """Guards against: an interval of something else.

    It lies in [0, 1], and more groups make it narrower.
    """
    few, many = (judge_figures(*random_groups(count, seed)) for count in (30, 300))
    low, high = few["judge_interval"]
    assert 0 <= low < few["judge_pairwise"] < high <= 1
    assert many["judge_interval"][1] - many["judge_interval"][0] < 0.6 * (high - low)


def test_interval_draws_whole_groups():
    """Guards against: answers to one prompt taken for independent.

    That makes the interval too narrow.
    """
    low, high = bootstrap_interval([1] * 50 + [0] * 50, [1] * 100)
    assert bootstrap_interval([10] * 50 + [0] * 50, [10] * 100) == [low, high]
    # 1.96 sqrt(1/4 / 100) = 0.098
    assert (low, high) == (pytest.approx(0.4, abs=0.02), pytest.approx(0.6, abs=0.02))
    assert bootstrap_interval([3], [4]) == [0.75, 0.75]
    assert bootstrap_interval([0, 0], [0, 0]) == [0, 0]
    assert judge_figures([[5, 1]], [[0, 0]])["judge_pairwise"] is None


# ---- two judges ----


def test_agreement():
    """Guards against: agreement over all answers and not prompt by prompt."""
    rising = [[1.0, 2.0, 3.0]] * 2
    falling = [[3.0, 2.0, 1.0]] * 2
    assert agreement(rising, rising) == 1
    assert agreement(rising, falling) == 0
    assert agreement(rising, [rising[0], falling[1]]) == 0.5
    # Of the first group two answers are left, of the second one.
    assert agreement(rising, [[None, 2.0, 3.0], [None, None, 1.0]]) == 1
    # Where both judges tie all answers, the group says nothing. Where one does, they are unrelated.
    tied = [[4.0, 4.0, 4.0], [1.0, 2.0, 3.0]]
    assert agreement(tied, tied) == 1
    assert agreement(rising, tied) == 0.75
    assert agreement(rising, [[None] * 3] * 2) is None
    assert agreement(rising, []) is None
