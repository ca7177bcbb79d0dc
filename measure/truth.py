"""measure/truth.py: figures that only a world with a known truth has; None where nobody knows it.

In: an exam, answers, and the pairs that a model learnt from.  Out: scores from 0 to 5, and shares.
People read them. Training does not, except in the variant oracle-judge (experiments/variants.py).
"""

from collections.abc import Sequence

from core.records import Candidate
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


def pairs_right(pairs: Sequence[dict], truth: Truth | None) -> float | None:
    """Share of the rows of pairs.jsonl whose chosen answer is truly better than the rejected."""
    if truth is None:
        return None
    right = []
    for pair in pairs:
        chosen = truth(pair["prompt"], pair["chosen"])
        rejected = truth(pair["prompt"], pair["rejected"])
        if None not in (chosen, rejected):
            right.append(chosen > rejected)
    return mean(right)
