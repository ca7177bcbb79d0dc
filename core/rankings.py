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


def pair_signs(rewards: Rewards, ranks: Ranks, lengths: Sequence[int] | None = None) -> list[int]:
    """Of every two answers of different rank: do the rewards order them as people do?

    1 they do, 0 they tie or one is missing, -1 they turn the order round. With `lengths`: only
    pairs of like length, the shorter at least nine tenths of the longer.
    Example: pair_signs([5, 3, None], [0, 1, 1]) is [1, 0].
    """
    signs = []
    for i, j in permutations(range(len(ranks)), 2):
        if ranks[i] >= ranks[j]:
            continue
        if lengths is not None and not alike(lengths[i], lengths[j]):
            continue
        reward = rewards[i]
        other = rewards[j]
        sign = 0
        if None not in (reward, other):
            sign = (reward > other) - (reward < other)
        signs.append(sign)
    return signs


def alike(length: int, other: int) -> bool:
    """Whether the shorter of two answers has nine tenths of the longer, or more."""
    return min(length, other) >= 0.9 * max(length, other)


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


# ---- more than the paper's figures ----


def text_lengths(groups: Sequence[dict]) -> list[list[int]]:
    """Characters of each answer."""
    return [list(map(len, group["responses"])) for group in groups]


def alike_accuracy(
    rewards: Sequence[Rewards], ranks: Sequence[Ranks], lengths: Sequence[Sequence[int]]
) -> float | None:
    """Pairwise accuracy on pairs of like length, where "the longer is better" says nothing."""
    signs = []
    for of_group in zip(rewards, ranks, lengths, strict=True):
        group_rewards, group_ranks, group_lengths = of_group
        signs += pair_signs(group_rewards, group_ranks, group_lengths)
    return mean(sign == 1 for sign in signs)


def accuracy_by_kind(
    rewards: Sequence[Rewards], kinds: Sequence[Sequence[dict[str, bool]]]
) -> dict[str, tuple[int, int]]:
    """Kind of requirement -> (pairs that the rewards order right, pairs).

    The pairs are those of two answers to one prompt that differ in this kind alone.
    """
    right_order = defaultdict(list)
    for group_rewards, group_kinds in zip(rewards, kinds, strict=True):
        answers = zip(group_rewards, group_kinds, strict=True)
        for (reward, kept), (other_reward, other_kept) in permutations(answers, 2):
            differing = [kind for kind in kept if kept[kind] != other_kept[kind]]
            if len(differing) != 1:
                continue
            kind = differing[0]
            # each two answers come in both orders: count the one whose first answer keeps it
            if kept[kind]:
                missing = None in (reward, other_reward)
                is_right = not missing and reward > other_reward
                right_order[kind].append(is_right)
    counts = {}
    for kind in sorted(right_order):
        of_kind = right_order[kind]
        counts[kind] = (sum(of_kind), len(of_kind))
    return counts


def ranked_figures(rewards: Sequence[Rewards], groups: Sequence[dict]) -> dict:
    """All that can be told about a judge. The groups may name the `kinds` that an answer keeps."""
    ranks = [group["ranks"] for group in groups]
    figures = {"groups": len(groups)}
    figures |= judge_figures(rewards, ranks)
    figures["judge_alike"] = alike_accuracy(rewards, ranks, text_lengths(groups))
    if all("kinds" in group for group in groups):
        kinds = [group["kinds"] for group in groups]
        figures["kinds"] = accuracy_by_kind(rewards, kinds)
    return figures


PRINTED = {  # what a figure is called -> its key in a report
    "pairwise accuracy": "judge_pairwise",
    "ties": "judge_ties",
    "readable verdicts": "judge_parse_rate",
    "pairs of like length": "judge_alike",
    "5-best": "judge_best5",
    "exact match": "judge_exact",
    "Spearman": "judge_spearman",
    "Kendall tau": "judge_kendall",
}


def figures_text(report: dict) -> str:
    """A report for people: one line of figures, and one for each kind of requirement."""
    parts = []
    for name, key in PRINTED.items():
        value = report[key]
        parts.append(f"{name} none" if value is None else f"{name} {value:.3f}")
    # the first figure has an interval
    low, high = report["judge_interval"]
    parts[0] += f" ({low:.3f} to {high:.3f})"
    # who judged what
    head = f"{report['judge']}: {report['groups']} groups, {report['seconds']:.1f} s"
    lines = [" | ".join([head, *parts])]
    for kind, counts in report.get("kinds", {}).items():
        right, pairs = counts
        lines.append(f"  {kind}: {right} of {pairs} pairs that differ in it alone")
    return "\n".join(lines)


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
