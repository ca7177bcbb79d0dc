"""measure/duel.py: whether M_t has lost against the model before it, in the eyes of M_1.

In: the exam of both, which is held out, and M_1 as the judge.  Out: rewards by prompt, and which
model was the first to lose. --keep-best ends the loop with it. The truth is never asked, and M_1
judges because a judge that learnt from itself may have learnt to like its own faults.
A rubric reads one answer at a time, so there is no order of two answers that could win.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from core.files import read_existing, read_jsonl
from core.records import Candidate
from core.statistics import mean
from judge import Judging, judge_answers, with_rewards
from measure.alarms import LEAST_READABLE, alarms
from measure.exam import ANSWER_KEYS
from measure.run_files import load_run
from sample import Writer

# What no score makes up for: verdicts that can no longer be read, and answers that are all alike.
GRAVE = ("Lost format", "Collapsing diversity")


class Loss(NamedTuple):
    """A model that lost, and why."""

    t: int
    reason: str


# ---- M_1 judges ----


def duel_rows(folder: Path, t: int, judge: Writer, judging: Judging, key: str) -> list[dict]:
    """Prompt by prompt of the exam: the mean reward of M_{t-1} ("before") and M_t ("after")."""
    before, after = (
        rewards_of(folder / f"exam/M{s}.jsonl", judge, judging, key) for s in (t - 1, t)
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


# ---- who has lost ----


def wins_and_losses(rows: Sequence[dict]) -> tuple[int, int]:
    """At how many prompts the later model has the larger reward, and at how many the smaller.

    A prompt where one of the two has no reward is a tie.
    """
    gains = [row["after"] - row["before"] for row in rows if None not in row.values()]
    return sum(gain > 0 for gain in gains), sum(gain < 0 for gain in gains)


def why_lost(folder: Path, t: int, grave: dict[int, set[str]]) -> str | None:
    """Why M_t lost against the model before it; None where it did not. `grave`: of grave_alarms.

    It loses more prompts than it wins, by more than one standard error: if both were as good, that
    of the difference would be sqrt(wins + losses). Or it rings a grave alarm that the model before
    it did not ring.
    """
    wins, losses = wins_and_losses(read_existing(folder / f"t{t - 1}/duel.jsonl"))
    if losses - wins > math.sqrt(wins + losses):
        return f"it loses {losses} prompts and wins {wins}"
    new = grave[t] - grave[t - 1]
    return f"it rings an alarm ({', '.join(sorted(new)).lower()})" if new else None


def grave_alarms(folder: Path) -> dict[int, set[str]]:
    """t -> those of GRAVE that M_t rings. M_1 is compared with nothing, but may lack the format."""
    run = load_run(folder)
    ringing: dict[int, set[str]] = defaultdict(set)
    readable = run.models[0].get("judge_parse_rate")
    if readable is not None and readable < LEAST_READABLE:
        ringing[1].add(GRAVE[0])
    for alarm in alarms(run):
        name = alarm.advice.partition(":")[0]
        if name in GRAVE:
            ringing[int(alarm.model.removeprefix("M"))].add(name)
    return ringing


def first_loss(folder: Path, last: int) -> Loss | None:
    """The first of M_2 .. M_last that lost."""
    grave = grave_alarms(folder)
    for t in range(2, last + 1):
        reason = why_lost(folder, t, grave)
        if reason is not None:
            return Loss(t, reason)
    return None


def mark_best(folder: Path, models: Sequence[dict]) -> list[dict]:
    """Rows of the table; the last model before one that lost has "best": True."""
    lost = first_loss(folder, len(models))
    best = len(models) if lost is None else lost.t - 1
    return [model | {"best": model["t"] == best} for model in models]
