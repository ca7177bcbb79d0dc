"""measure/duel.py: whether M_t has lost against the model before it, in the eyes of M_1.

In: the exam of both, which is held out, and M_1 as the judge.  Out: rewards by prompt, and a word.
--keep-best ends the loop with it. The truth is never asked, and M_1 judges because a judge that
learnt from itself may have learnt to like its own faults.
A rubric reads one answer at a time, so there is no order of two answers that could win.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from core.files import read_existing, read_jsonl
from core.records import Candidate
from core.statistics import mean
from judge import Judging, judge_answers, with_rewards
from measure.alarms import alarms
from measure.exam import ANSWER_KEYS
from measure.run_files import load_run
from sample import Writer

# what no score makes up for: answers that no judge can read, and answers that are all alike
GRAVE = ("Lost format", "Collapsing diversity")


def duel_rows(folder: Path, t: int, judge: Writer, judging: Judging, key: str) -> list[dict]:
    """Prompt by prompt of the exam: the mean reward of M_{t-1} ("before") and M_t ("after")."""
    before, after = (
        rewards_of(folder / f"exam/M{s}.jsonl", judge, judging, f"{key} {s}") for s in (t - 1, t)
    )
    rows = []
    for number, reward in after.items():
        rows.append({"id": number, "before": before[number], "after": reward})
    return rows


def rewards_of(path: Path, judge: Writer, judging: Judging, key: str) -> dict[int, float | None]:
    """Prompt of the exam -> mean reward. An answer that never ended has done nothing right: 0.

    None where no verdict on any of its answers can be read.
    """
    answers = []
    for row in read_jsonl(path):
        answers.append(Candidate(**{name: row[name] for name in ANSWER_KEYS}))
    verdicts = judge_answers(judge, answers, judging, key=key, label="duel")
    rewards = defaultdict(list)
    for y in with_rewards(answers, verdicts):
        rewards[y.id].append(y.reward if y.finished else 0.0)
    return {number: mean(of_prompt) for number, of_prompt in rewards.items()}


def wins_and_losses(rows: Sequence[dict]) -> tuple[int, int]:
    """At how many prompts the later model has the larger reward, and at how many the smaller.

    A prompt without a reward of both ties.
    """
    gains = [row["after"] - row["before"] for row in rows if None not in row.values()]
    return sum(gain > 0 for gain in gains), sum(gain < 0 for gain in gains)


def has_lost(folder: Path, t: int, rows: Sequence[dict]) -> bool:
    """Whether M_t loses more prompts than it wins, by more than chance, or rings a grave alarm.

    If both were as good, the difference would have a standard error of sqrt(wins + losses).
    """
    wins, losses = wins_and_losses(rows)
    is_worse = losses - wins > math.sqrt(wins + losses)
    ringing = [alarm for alarm in alarms(load_run(folder)) if alarm.model == f"M{t}"]
    return is_worse or any(alarm.advice.startswith(GRAVE) for alarm in ringing)


def mark_best(folder: Path, models: Sequence[dict]) -> list[dict]:
    """Rows of the table; the last model that has not lost has "best": True."""
    best = 1
    for t in range(2, len(models) + 1):
        if has_lost(folder, t, read_existing(folder / f"t{t - 1}/duel.jsonl")):
            break
        best = t
    return [model | {"best": model["t"] == best} for model in models]
