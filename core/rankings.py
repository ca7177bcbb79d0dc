"""core/rankings.py: how good is a judge? The statistics of answers that people ranked.

In: the rewards that a judge gave, group by group, and the ranks that people gave to the same
answers (the lowest is the best). A group holds the answers to one prompt. A reward is None where no
verdict could be read.
Out: the paper's five figures with their tie rules (section 3.1), and how alike two judges are.
"""

from collections import defaultdict
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


def correlation(a: Sequence[float], b: Sequence[float]) -> float:
    """Pearson's correlation of two lists of one length; 0 where one does not vary, or is empty."""
    mean_a = mean(a)
    mean_b = mean(b)
    deviations_a = [x - mean_a for x in a]
    deviations_b = [y - mean_b for y in b]
    products = sum(x * y for x, y in zip(deviations_a, deviations_b, strict=True))
    squares_a = sum(x * x for x in deviations_a)
    squares_b = sum(y * y for y in deviations_b)
    spread = (squares_a * squares_b) ** 0.5
    return products / spread if spread else 0.0


def kendall(a: Sequence[float], b: Sequence[float]) -> float:
    """Kendall's tau-b: the correlation of the signs of all differences between two values."""
    signs_a = [(x > y) - (x < y) for x, y in permutations(a, 2)]
    signs_b = [(x > y) - (x < y) for x, y in permutations(b, 2)]
    return correlation(signs_a, signs_b)


def pair_signs(rewards: Rewards, ranks: Ranks) -> list[int]:
    """Of every two answers of different rank: do the rewards order them as people do?

    1 they do, 0 they tie or one is missing, -1 they turn the order round.
    Example: pair_signs([5, 3, None], [0, 1, 1]) is [1, 0].
    """
    signs = []
    answers = zip(rewards, ranks, strict=True)
    for (reward, rank), (other_reward, other_rank) in permutations(answers, 2):
        if rank < other_rank:
            missing = None in (reward, other_reward)
            signs.append(0 if missing else (reward > other_reward) - (reward < other_reward))
    return signs


def judge_figures(rewards: Sequence[Rewards], ranks: Sequence[Ranks]) -> dict:
    """The paper's five figures on answers that people ranked (section 3.1), with their tie rules.

    judge_pairwise  share of all pairs of different rank that the rewards order as people do; ties
                    and missing rewards are wrong; `judge_interval`: its 95 % interval over groups
    judge_ties      share of those pairs that no reward orders
    judge_best5     of the answers whose reward rounds to 5, the share that people ranked first
    judge_exact     share of the groups whose whole order, ties included, is that of people
    judge_spearman, judge_kendall (tau-b)
                    means over groups; an answer without a reward is left out of its group, and a
                    group whose rewards do not vary counts 0
    """
    values = defaultdict(list)  # of pairs, answers or groups; a figure is the mean of its values
    right_in_group = []
    pairs_in_group = []
    for group_rewards, group_ranks in zip(rewards, ranks, strict=True):
        # Pairs
        signs = pair_signs(group_rewards, group_ranks)
        right_in_group.append(signs.count(1))
        pairs_in_group.append(len(signs))
        values["judge_pairwise"] += [sign == 1 for sign in signs]
        values["judge_ties"] += [sign == 0 for sign in signs]
        # Answers with a reward, and their order
        answers = zip(group_rewards, group_ranks, strict=True)
        scored = [(reward, rank) for reward, rank in answers if reward is not None]
        scores = [reward for reward, _ in scored]
        merits = [-rank for _, rank in scored]  # high is good, as in scores
        fives = [rank for reward, rank in scored if reward >= 4.5]
        same_order = places(scores) == places(merits) and len(scored) == len(group_ranks)
        values["judge_best5"] += [rank == min(group_ranks) for rank in fives]
        values["judge_exact"].append(same_order)
        values["judge_spearman"].append(correlation(places(scores), places(merits)))
        values["judge_kendall"].append(kendall(scores, merits))
    means = {name: mean(of_figure) for name, of_figure in values.items()}
    return {
        "judge_pairwise": means["judge_pairwise"],
        "judge_interval": bootstrap_interval(right_in_group, pairs_in_group),
        **means,
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
            ours = [a for a, _ in pairs]
            theirs = [b for _, b in pairs]
            taus.append(kendall(ours, theirs))
    return None if not taus else (1 + mean(taus)) / 2
