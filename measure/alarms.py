"""measure/alarms.py: what usually goes wrong in self-rewarding, and what people do about it.

In: the figures and exam answers of a run.  Out: alarms, each with a value and its threshold. A
figure that is missing rings no alarm. `first`, `previous` and `current` are rows of metrics.jsonl:
the figures of M1, of the model before and of the model in question.
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

from core.statistics import mean
from measure.run_files import RunFiles


class Alarm(NamedTuple):
    """One threshold that a model crossed."""

    model: str  # "M2"
    what: str  # what happened, with the value and the threshold
    advice: str  # what people do about it


Findings = Iterator[tuple[str, str]]  # (what, advice)


def alarms(run: RunFiles) -> list[Alarm]:
    """All alarms, model by model. M1 has none: nothing has changed yet."""
    ringing = []
    for previous, current in pairwise(run.models):
        findings = [
            *judge_alarms(run.models[0], current, run.exam.get(current["t"], [])),
            *learning_alarms(run.models[0], previous, current),
            *truth_alarms(previous, current),
        ]
        ringing += [Alarm(current["model"], what, advice) for what, advice in findings]
    return ringing


def judge_alarms(first: dict, current: dict, answers: list[dict]) -> Findings:
    """What the judge can no longer do. `answers` are those of the current model in the exam."""
    scores = [answer["self_score"] for answer in answers]
    share = mean(float(score >= 4.9) for score in scores if score is not None)
    if above(share, 0.8):
        yield (
            f"{share:.0%} of its answers get 4.9 or more (threshold 80 %)",
            "Score saturation: the judge no longer tells answers apart. "
            "Use a sharper rubric, --judge expected (after score lines), or stop here.",
        )
    change = difference(first, current, "judge_pairwise")
    if below(change, -0.03):
        yield (
            f"judge accuracy {change:+.3f} since M1 (threshold -0.03)",
            "Judge drift: mix judge examples into DPO (--replay), or lower --dpo-lr.",
        )
    share = current.get("judge_parse_rate")
    if below(share, 0.8):
        yield (
            f"{share:.0%} of its verdicts can be read (threshold 80 %)",
            "Lost format: what cannot be judged is neither learnt nor unlearnt. "
            "Mix judge examples into DPO (--replay), or look at the answers.",
        )


def learning_alarms(first: dict, previous: dict, current: dict) -> Findings:
    """What DPO does to the answers, and how much is left to learn from."""
    growth = ratio(first, current, "mean_length")
    if above(growth, 1.5):
        yield (
            f"answers are {growth:.2f} times as long as M1's (threshold 1.5)",
            "Length growth: the judge may reward length; "
            "compare at equal length (evaluate.py prints it).",
        )
    change = current.get("chosen_change")
    if below(change, 0):
        yield (
            f"log-prob of the chosen answers {change:+.1f} (threshold 0)",
            "DPO pushes both answers down: raise --nll or --beta.",
        )
    diversity = ratio(first, current, "distinct2")
    if below(diversity, 0.7):
        yield (
            f"distinct pairs of words at {diversity:.2f} of M1's (threshold 0.7)",
            "Collapsing diversity: raise --temperature, or take prompts from people (--prompts).",
        )
    pairs = ratio(previous, current, "pairs")
    if below(pairs, 0.5):
        yield (
            f"pairs at {pairs:.2f} of the round before (threshold 0.5)",
            "Shrinking yield: more answers (--n), --judge expected, or stop: "
            "little is left to learn from.",
        )


def truth_alarms(previous: dict, current: dict) -> Findings:
    """Where the judge and the truth part. Only a world that knows the truth has these."""
    share = current.get("pairs_right")
    if below(share, 0.5):
        yield (
            f"{share:.0%} of its pairs have a chosen answer that is truly better (threshold 50 %)",
            "Wrong labels: the judge prefers what is no better. Stop, or mend the judge.",
        )
    self_score = current.get("self_score")
    true_score = current.get("true_score")
    if None not in (self_score, true_score) and self_score - true_score > 0.5:
        yield (
            f"self-score {self_score - true_score:+.2f} above the truth (threshold 0.5)",
            "The model flatters itself: what rose is the score, not the answers.",
        )
    self_change = difference(previous, current, "self_score")
    true_change = difference(previous, current, "true_score")
    if above(self_change, 0) and below(true_change, -0.05):
        yield (
            f"true score {true_change:+.2f} in this round (threshold -0.05) "
            "while the self-score rose",
            "Reward hacking: look at the best paid answers, close the hole in the rubric or the "
            "judge data, and go back a model.",
        )


# ---- arithmetic with figures that may be missing ----


def above(value: float | None, threshold: float) -> bool:
    return value is not None and value > threshold


def below(value: float | None, threshold: float) -> bool:
    return value is not None and value < threshold


def difference(earlier: dict, later: dict, key: str) -> float | None:
    if earlier.get(key) is None or later.get(key) is None:
        return None
    return later[key] - earlier[key]


def ratio(earlier: dict, later: dict, key: str) -> float | None:
    return later[key] / earlier[key] if earlier.get(key) and later.get(key) is not None else None
