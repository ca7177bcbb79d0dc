"""core/rankings.py: how good is a judge? The statistics of answers that people ranked.

In: the rewards that a judge gave, group by group, and the ranks that people gave to the same
answers (the lowest is the best). A group holds the answers to one prompt. A reward is None where no
verdict could be read.
Out: the paper's five figures with their tie rules (section 4.1), and how alike two judges are.
"""

from collections.abc import Sequence
from itertools import permutations

from core.statistics import bootstrap_interval, mean

Rewards = Sequence[float | None]
Ranks = Sequence[float]


# ---- correlations ----
def places(values: Sequence[float]) -> list[float]:
    """The place of each value in rising order, from 0. Equal values share the mean place."""
    result = []
    for value in values:
        smaller = sum(other < value for other in values)
        equal = sum(other == value for other in values)  # the value itself counts
        result.append(smaller + (equal - 1) / 2)
    return result


def correlation(a: Sequence[float], b: Sequence[float]) -> float:
    """Pearson's correlation of two lists of one length; 0 where one of them does not vary."""
    mean_a = mean(a)
    mean_b = mean(b)
    deviations_a = [x - mean_a for x in a]
    deviations_b = [y - mean_b for y in b]
    squares_a = sum(x * x for x in deviations_a)
    squares_b = sum(y * y for y in deviations_b)
    products = sum(x * y for x, y in zip(deviations_a, deviations_b, strict=True))
    spread = (squares_a * squares_b) ** 0.5
    return products / spread if spread else 0.0


def spearman(a: Sequence[float], b: Sequence[float]) -> float:
    """The correlation of the places; 0 where there is nothing to correlate."""
    return correlation(places(a), places(b)) if a else 0.0


def difference_signs(values: Sequence[float]) -> list[int]:
    """1, 0 or -1 for every ordered pair of values: is the first one larger, equal or smaller?"""
    return [(x > y) - (x < y) for x, y in permutations(values, 2)]


def kendall(a: Sequence[float], b: Sequence[float]) -> float:
    """Kendall's tau-b: the correlation of the signs of all differences; 0 where there are none."""
    return correlation(difference_signs(a), difference_signs(b)) if len(a) > 1 else 0.0


# ---- a judge against people ----
def ranked_pairs(rewards: Rewards, ranks: Ranks) -> list[tuple[float | None, float | None]]:
    """Of every two answers of different rank: the reward of the better one and of the worse one."""
    pairs = permutations(range(len(ranks)), 2)
    return [(rewards[i], rewards[j]) for i, j in pairs if ranks[i] < ranks[j]]


def is_right(better: float | None, worse: float | None) -> bool:
    """Does the better answer have the higher reward? Where a reward is missing, it does not."""
    return None not in (better, worse) and better > worse


def is_tie(better: float | None, worse: float | None) -> bool:
    """Do the rewards leave the order open? A missing reward does."""
    return None in (better, worse) or better == worse


def pairwise_accuracy(rewards: Sequence[Rewards], ranks: Sequence[Ranks]) -> float | None:
    """Share of all pairs of different rank that the rewards order as people do.

    A tie and a missing reward count as wrong. None where no two ranks differ.
    """
    right = []
    for group in zip(rewards, ranks, strict=True):
        right += [is_right(*pair) for pair in ranked_pairs(*group)]
    return mean(right)


def readable(rewards: Rewards, ranks: Ranks) -> tuple[list[float], list[float]]:
    """Rewards and negative ranks of the answers that have a reward. In both lists high is good."""
    pairs = [(r, -rank) for r, rank in zip(rewards, ranks, strict=True) if r is not None]
    return [reward for reward, _ in pairs], [merit for _, merit in pairs]


def best_of_fives(rewards: Rewards, ranks: Ranks) -> list[bool]:
    """Of the answers whose reward rounds to 5: did people rank this one first?"""
    pairs = zip(rewards, ranks, strict=True)
    return [rank == min(ranks) for reward, rank in pairs if reward is not None and reward >= 4.5]


def same_order(rewards: Rewards, ranks: Ranks) -> bool:
    """Does every answer have a reward, and is the whole order, ties included, that of people?"""
    scores, merits = readable(rewards, ranks)
    return len(scores) == len(ranks) and places(scores) == places(merits)


def judge_figures(rewards: Sequence[Rewards], ranks: Sequence[Ranks]) -> dict:
    """The paper's five figures on answers that people ranked (section 4.1), with their tie rules.

    judge_pairwise  see pairwise_accuracy; `judge_interval` is its 95 % interval over groups
    judge_ties      share of those pairs that no reward orders
    judge_best5     of the answers whose reward rounds to 5, the share that people ranked first
    judge_exact     share of the groups whose whole order is that of people
    judge_spearman, judge_kendall (tau-b)
                    means over groups; an answer without a reward is left out of its group, and a
                    group whose rewards do not vary counts 0
    """
    return pair_figures(rewards, ranks) | order_figures(rewards, ranks)


def pair_figures(rewards: Sequence[Rewards], ranks: Sequence[Ranks]) -> dict:
    """The figures that count pairs of answers, over all groups together."""
    right = []  # of each group, how many pairs
    total = []
    ties = []
    for group in zip(rewards, ranks, strict=True):
        pairs = ranked_pairs(*group)
        right.append(sum(is_right(*pair) for pair in pairs))
        total.append(len(pairs))
        ties += [is_tie(*pair) for pair in pairs]
    return {
        "judge_pairwise": pairwise_accuracy(rewards, ranks),
        "judge_interval": bootstrap_interval(right, total),
        "judge_ties": mean(ties),
    }


def order_figures(rewards: Sequence[Rewards], ranks: Sequence[Ranks]) -> dict:
    """The figures that look at the best answers and at the order of whole groups."""
    fives = []
    exact = []
    spearmans = []
    kendalls = []
    for group in zip(rewards, ranks, strict=True):
        fives += best_of_fives(*group)
        exact.append(same_order(*group))
        scores, merits = readable(*group)
        spearmans.append(spearman(scores, merits))
        kendalls.append(kendall(scores, merits))
    return {
        "judge_best5": mean(fives),
        "judge_exact": mean(exact),
        "judge_spearman": mean(spearmans),
        "judge_kendall": mean(kendalls),
    }


# ---- a judge against another judge ----
def agreement(rewards: Sequence[Rewards], others: Sequence[Rewards]) -> float | None:
    """Do two judges order the same answers alike? 1 the same order, 0.5 unrelated, 0 the reverse.

    The mean of (1 + Kendall's tau-b) / 2 over groups. A group in which both judges give all answers
    the same reward says nothing and is left out. None where no group is left. One variant of
    training learns from this figure: CREAM (Wang et al. 2024).
    """
    taus = []
    for group, other in zip(rewards, others, strict=False):  # M_1 has no judge before it
        pairs = [pair for pair in zip(group, other, strict=True) if None not in pair]
        if len(set(pairs)) > 1:
            taus.append(kendall([a for a, _ in pairs], [b for _, b in pairs]))
    tau = mean(taus)
    return None if tau is None else (1 + tau) / 2
