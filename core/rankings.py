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


def places(values: Sequence[float]) -> list[float]:
    """The place of each value in rising order, from 0. Equal values share the mean place.

    Example: places([5, 1, 5]) is [1.5, 0.0, 1.5].
    """
    rising = sorted(values)
    return [rising.index(value) + (rising.count(value) - 1) / 2 for value in values]


def difference_signs(values: Sequence[float]) -> list[int]:
    """1, 0 or -1 for every ordered pair of values: is the first one larger, equal or smaller?"""
    return [(x > y) - (x < y) for x, y in permutations(values, 2)]


def deviations(values: Sequence[float]) -> list[float]:
    middle = mean(values)
    return [value - middle for value in values]


def correlation(a: Sequence[float], b: Sequence[float]) -> float:
    """Pearson's correlation of two lists of one length; 0 where one does not vary, or is empty.

    Of places it is Spearman's rank correlation, and of difference signs Kendall's tau-b.
    """
    deviations_a = deviations(a)
    deviations_b = deviations(b)
    products = sum(x * y for x, y in zip(deviations_a, deviations_b, strict=True))
    squares_a = sum(x * x for x in deviations_a)
    squares_b = sum(y * y for y in deviations_b)
    spread = (squares_a * squares_b) ** 0.5
    return products / spread if spread else 0.0


def pair_signs(rewards: Rewards, ranks: Ranks) -> list[int]:
    """Of every two answers of different rank: do the rewards order them as people do?

    1 they do, 0 they tie or one is missing, -1 they turn the order round.
    """
    signs = []
    answers = zip(rewards, ranks, strict=True)
    for (reward, rank), (other_reward, other_rank) in permutations(answers, 2):
        if rank < other_rank:
            missing = None in (reward, other_reward)
            signs.append(0 if missing else (reward > other_reward) - (reward < other_reward))
    return signs


def judge_figures(rewards: Sequence[Rewards], ranks: Sequence[Ranks]) -> dict:
    """The paper's five figures on answers that people ranked (section 4.1), with their tie rules.

    judge_pairwise  share of all pairs of different rank that the rewards order as people do; ties
                    and missing rewards are wrong; `judge_interval`: its 95 % interval over groups
    judge_ties      share of those pairs that no reward orders
    judge_best5     of the answers whose reward rounds to 5, the share that people ranked first
    judge_exact     share of the groups whose whole order, ties included, is that of people
    judge_spearman, judge_kendall (tau-b)
                    means over groups; an answer without a reward is left out of its group, and a
                    group whose rewards do not vary counts 0
    """
    signs = [pair_signs(*group) for group in zip(rewards, ranks, strict=True)]
    all_signs = [sign for group in signs for sign in group]
    figures = {
        "judge_pairwise": mean(sign == 1 for sign in all_signs),
        "judge_interval": bootstrap_interval([s.count(1) for s in signs], [len(s) for s in signs]),
        "judge_ties": mean(sign == 0 for sign in all_signs),
    }
    return figures | order_figures(rewards, ranks)


def order_figures(rewards: Sequence[Rewards], ranks: Sequence[Ranks]) -> dict:
    """The figures that look at the best answers and at the order of whole groups."""
    fives = []
    exact = []
    spearmans = []
    kendalls = []
    for group_rewards, group_ranks in zip(rewards, ranks, strict=True):
        answers = list(zip(group_rewards, group_ranks, strict=True))
        scored = [(reward, rank) for reward, rank in answers if reward is not None]
        scores = [reward for reward, _ in scored]
        merits = [-rank for _, rank in scored]  # high is good, as in scores
        fives += [rank == min(group_ranks) for reward, rank in scored if reward >= 4.5]
        exact.append(len(scored) == len(answers) and places(scores) == places(merits))
        spearmans.append(correlation(places(scores), places(merits)))
        kendalls.append(correlation(difference_signs(scores), difference_signs(merits)))
    return {
        "judge_best5": mean(fives),
        "judge_exact": mean(exact),
        "judge_spearman": mean(spearmans),
        "judge_kendall": mean(kendalls),
    }


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
            ours = difference_signs([a for a, _ in pairs])
            theirs = difference_signs([b for _, b in pairs])
            taus.append(correlation(ours, theirs))
    return None if not taus else (1 + mean(taus)) / 2
