"""measure/truth.py: figures that only a world with a known truth has; None where nobody knows it.

In: an exam, answers, and the pairs that a model learnt from.  Out: scores from 0 to 5, and shares.
People read them. Training does not, except in the variant oracle-judge (experiments/variants.py).
"""

from collections import defaultdict
from collections.abc import Sequence

from core.rankings import alike_accuracy, judge_figures
from core.records import Candidate, by_prompt, rewards_by_prompt
from core.statistics import mean
from worlds.world import Exam, Truth


def true_score(exam: Exam, candidate: Candidate) -> int | None:
    """The truth about one answer. An answer that never ended has done nothing right."""
    if exam.truth is None:
        return None
    return exam.truth(candidate.prompt, candidate.response) if candidate.finished else 0


def versus(answers: Sequence[dict], previous: Sequence[dict]) -> dict[str, float | None]:
    """Share of the prompts whose answer is truly better, or worse, than that of another model.

    Both are rows of exam/M{t}.jsonl. The rest tie. A prompt that lacks a score is left out.
    """
    gains = []
    for new, old in zip(answers, previous, strict=False):
        if None not in (new["true_score"], old["true_score"]):
            gains.append(new["true_score"] - old["true_score"])
    return {
        "win_rate": mean(gain > 0 for gain in gains),
        "lose_rate": mean(gain < 0 for gain in gains),
    }


def pair_truths(pairs: Sequence[dict], truth: Truth | None) -> dict[str, float | None]:
    """Of the rows of pairs.jsonl: the shares whose chosen answer is truly better than the rejected,
    truly worse, and as good; and the mean of how much better it is.
    """
    gaps = []
    for pair in pairs if truth else []:
        chosen = truth(pair["prompt"], pair["chosen"])
        rejected = truth(pair["prompt"], pair["rejected"])
        if None not in (chosen, rejected):
            gaps.append(chosen - rejected)
    return {
        "pairs_right": mean(gap > 0 for gap in gaps),
        "pairs_wrong": mean(gap < 0 for gap in gaps),
        "pairs_equal": mean(gap == 0 for gap in gaps),
        "pairs_truth_gap": mean(gaps),
    }


def share_by_kind(exam: Exam, answers: Sequence[dict]) -> dict[str, float | None]:
    """Kind of requirement -> the share of the answers that keep it. `exam.checks` is there.

    The answers are rows of exam/M{t}.jsonl. An answer that never ended keeps nothing.
    """
    kept = defaultdict(list)
    for answer in answers:
        for kind, is_kept in exam.checks(answer["prompt"], answer["response"]).items():
            kept[kind].append(is_kept and answer["finished"])
    return {kind: mean(values) for kind, values in sorted(kept.items())}


def judge_of_own(scored: Sequence[Candidate], truths: Sequence[int | None]) -> dict:
    """How well a judge orders several answers of its own to one prompt; {} where it cannot be told.

    Answers that never ended are left out, as they give no pair.
    judge_own        share of the pairs of different truth that the rewards order right
    judge_own_alike  the same, of pairs of like length
    """
    if None in truths:
        return {}
    merits = {(y.id, y.sample): truth for y, truth in zip(scored, truths, strict=True)}
    judged = [y for y in scored if y.finished]
    ranks = []
    lengths = []
    for group in by_prompt(judged):
        ranks.append([-merits[y.id, y.sample] for y in group])
        lengths.append([len(y.tokens) for y in group])
    if not judged:
        return {}
    rewards = rewards_by_prompt(judged)
    figures = judge_figures(rewards, ranks)
    if figures["judge_pairwise"] is None:
        return {}  # no two answers to one prompt differ in truth
    return {
        "judge_own": figures["judge_pairwise"],
        "judge_own_interval": figures["judge_interval"],
        "judge_own_alike": alike_accuracy(rewards, ranks, lengths),
    }
