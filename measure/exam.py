"""measure/exam.py: the exam of one model, on prompts and ranked answers that training never sees.

In: a model M_t with its settings, the exam of its world, and the files of the run so far.
Out: one row of metrics.jsonl, and in exam/ the answers and the rewards behind it. People read these
files, training does not. A figure is None where it does not exist: a real run knows no truth, and
M_1 has no model before it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import pvariance

from core.chat import Chat
from core.draw import Sampling
from core.files import read_existing, write_jsonl
from core.rankings import agreement, judge_figures
from core.records import Example
from core.run import Run
from core.statistics import mean
from dpo import Recipe, reference_logps
from judge import Judging, attach, rank_answers, score
from measure.truth import pairs_right, true_score, versus
from model import GPT, load
from sample import Writer, respond
from worlds.world import Exam, World

ANSWER_KEYS = ("id", "prompt", "response", "finished", "tokens")  # of a Candidate, in exam/M{t}.jsonl
DPO_FIGURES = ("margin", "accuracy", "chosen_change", "rejected_change")  # see dpo.jsonl
Rewards = list[list[float | None]]  # of the ranked answers, group by group


@dataclass(frozen=True)
class Student:
    """A model in the exam: M_t twice, and how it works there."""

    model: GPT  # fp32 weights, for log-probabilities
    writer: Writer  # the same weights as the stages write with them
    answering: Sampling  # one answer to each prompt
    judging: Judging
    recipe: Recipe  # the arithmetic of log-probabilities; nothing is trained here
    key: str  # names the randomness, for example "0 exam"


def examine(run: Run, world: World, student: Student, t: int) -> dict | None:
    """Examines M_t and writes its files. Returns the figures; None where M_t was examined already.

    The row of metrics.jsonl comes last: it says that the exam is complete.
    """
    examined = run.metrics()
    if any(row["t"] == t for row in examined):
        return None
    figures, answers, rewards = measure(student, world.exam)
    figures |= training_figures(run.folder, t, world.exam)
    figures |= progress(run.folder, t, answers, rewards)
    figures |= divergences(run.folder, t, student, answers)
    figures |= ...

    write_jsonl(run.folder / f"exam/M{t}.jsonl", answers)
    write_jsonl(run.folder / f"exam/rewards-M{t}.jsonl", [{"rewards": group} for group in rewards])
    write_jsonl(run.folder / "exam/ranked.jsonl", world.exam.groups)  # for judge.py --file
    write_jsonl(run.folder / "metrics.jsonl", [*examined, {"model": f"M{t}", "t": t, **figures}])
    return figures
