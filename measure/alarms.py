"""measure/alarms.py: what usually goes wrong in self-rewarding, and what people do about it.

In: the figures and exam answers of a run.  Out: alarms. A figure that is missing rings none.
"""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from core.statistics import mean
from measure.run_files import RunFiles, load_run

LEAST_READABLE = 0.8  # share of the verdicts that must be readable


class Alarm(NamedTuple):
    """One threshold that a model crossed."""

    model: str  # "M2"
    what: str  # what happened, with the value and the threshold
    advice: str  # what people do about it


def alarms(run: RunFiles) -> list[Alarm]:
    """All alarms, model by model. M1 has none: nothing has changed yet."""
    ringing = []
    for previous, current in pairwise(run.models):
        scores = [answer["self_score"] for answer in run.exam[current["t"]]]
        for value, what, advice in checks(run.models[0], previous, current, scores):
            if value is not None:
                ringing.append(Alarm(current["model"], what.format(value), advice))
    return ringing


def alarm_lines(folder: Path, t: int) -> list[str]:
    """The alarms of M_t as lines of a run's output."""
    ringing = [alarm for alarm in alarms(load_run(folder)) if alarm.model == f"M{t}"]
    return [f"M{t} | alarm     | {alarm.what}. {alarm.advice}" for alarm in ringing]


def checks(
    first: dict, previous: dict, current: dict, scores: list[float | None]
) -> Iterator[tuple[float | None, str, str]]:
    """For all that may go wrong: the value where it crossed its threshold, what happened, advice.

    In: the figures of M1, of the model before and of the current one, and its scores in the exam.
    """
    yield (
        above(mean(score >= 4.9 for score in scores if score is not None), 0.8),
        "{:.0%} of its answers get 4.9 or more (threshold 80 %)",
        "Score saturation: the judge no longer tells answers apart. "
        "Use a sharper rubric, --judge expected (after score lines), or stop here.",
    )
    yield (
        below(difference(current.get("judge_pairwise"), first.get("judge_pairwise")), -0.03),
        "judge accuracy {:+.3f} since M1 (threshold -0.03)",
        "Judge drift: mix judge examples into DPO (--replay), or lower --dpo-lr.",
    )
    yield (
        below(current.get("judge_parse_rate"), LEAST_READABLE),
        "{:.0%} of its verdicts can be read (threshold 80 %)",
        "Lost format: what cannot be judged is neither learnt nor unlearnt. "
        "Mix judge examples into DPO (--replay), or look at the answers.",
    )
    yield (
        above(ratio(current.get("mean_length"), first.get("mean_length")), 1.5),
        "answers are {:.2f} times as long as M1's (threshold 1.5)",
        "Length growth: the judge may reward length; "
        "compare at equal length (evaluate.py prints it).",
    )
    yield (
        below(ratio(current.get("finished_rate"), first.get("finished_rate")), 0.9),
        "answers that end at {:.2f} of M1's (threshold 0.9)",
        "Endless answers: what never ends is not judged, so no pair teaches to end. "
        "Raise --nll, or lower --dpo-lr.",
    )
    yield (
        below(current.get("chosen_change"), 0),
        "log-prob of the chosen answers {:+.1f} (threshold 0)",
        "DPO pushes both answers down: raise --nll or --beta.",
    )
    yield (
        below(ratio(current.get("distinct2"), first.get("distinct2")), 0.7),
        "distinct pairs of words at {:.2f} of M1's (threshold 0.7)",
        "Collapsing diversity: raise --temperature, or take prompts from people (--prompts).",
    )
    yield (
        below(ratio(current.get("pairs"), previous.get("pairs")), 0.5),
        "pairs at {:.2f} of the round before (threshold 0.5)",
        "Shrinking yield: more answers (--n), --judge expected, or stop: "
        "little is left to learn from.",
    )
    # Only a world that knows the truth has the last three.
    yield (
        below(current.get("pairs_right"), 0.5),
        "{:.0%} of its pairs have a chosen answer that is truly better (threshold 50 %)",
        "Wrong labels: the judge prefers what is no better. Stop, or mend the judge.",
    )
    yield (
        above(difference(current.get("self_score"), current.get("true_score")), 0.5),
        "self-score {:+.2f} above the truth (threshold 0.5)",
        "The model flatters itself: what rose is the score, not the answers.",
    )
    if above(difference(current.get("self_score"), previous.get("self_score")), 0):
        yield (
            below(difference(current.get("true_score"), previous.get("true_score")), -0.05),
            "true score {:+.2f} in this round (threshold -0.05) while the self-score rose",
            "Reward hacking: look at the best paid answers, close the hole in the rubric or the "
            "judge data, and go back a model.",
        )


def above(value: float | None, threshold: float) -> float | None:
    """The value if it is above the threshold, else None."""
    return value if value is not None and value > threshold else None


def below(value: float | None, threshold: float) -> float | None:
    return value if value is not None and value < threshold else None


def difference(later: float | None, earlier: float | None) -> float | None:
    return None if None in (later, earlier) else later - earlier


def ratio(later: float | None, earlier: float | None) -> float | None:
    return later / earlier if earlier and later is not None else None
