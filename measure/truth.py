"""measure/truth.py: figures that only a world with a known truth has. Nothing here feeds training.

In: an exam, answers, and the pairs that a model learnt from.
Out: scores from 0 to 5, and shares; None where nobody knows the truth.
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


def versus(scores: Sequence[int | None], previous: Sequence[int | None]) -> dict[str, float | None]:
    """Share of the prompts whose answer is truly better, or worse, than the previous model's.

    The rest tie. A prompt that lacks one of the two scores is left out. M_1 has no `previous`.
    """
    pairs = [pair for pair in zip(scores, previous, strict=False) if None not in pair]
    return {
        "win_rate": mean([new > old for new, old in pairs]),
        "lose_rate": mean([new < old for new, old in pairs]),
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
