"""measure/table.py: the figures of a run as plain text, for the terminal.

In: rows of metrics.jsonl, scored answers.  Out: text. A figure that is missing is "-", or left out.
"""

from collections import Counter
from collections.abc import Sequence

from core.records import Candidate, Pair
from measure.truth import true_score
from worlds.world import Exam

COLUMNS = (  # key in metrics.jsonl, heading, format
    ("perfect", "perfect", ".1%"),
    ("true_score", "true", ".2f"),
    ("self_score", "self", ".2f"),
    ("judge_pairwise", "judge", ".3f"),
    ("judge_parse_rate", "readable", ".1%"),
    ("finished_rate", "finished", ".1%"),
    ("mean_length", "tokens", ".1f"),
    ("win_rate", "win", ".1%"),
    ("lose_rate", "lose", ".1%"),
    ("pairs", "pairs", "d"),
    ("seconds", "seconds", ".1f"),
)


def text_table(models: Sequence[dict]) -> str:
    """One line for each model, a row of metrics.jsonl, under a line of headings."""
    lines = ["model " + "".join(f"{heading:>10}" for _, heading, _ in COLUMNS)]
    for figures in models:
        line = f"{figures['model']:<6}"
        for key, _, form in COLUMNS:
            cell = "-" if figures.get(key) is None else format(figures[key], form)
            line += f"{cell:>10}"
        lines.append(line)
    return "\n".join(lines)


def one_line(figures: dict) -> str:
    """The figures of one model in one line, without those that are missing."""
    return ", ".join(
        f"{heading} {figures[key]:{form}}"
        for key, heading, form in COLUMNS
        if figures.get(key) is not None
    )


def worked_example(exam: Exam, scored: Sequence[Candidate], pair: Pair) -> str:
    """The prompt of a pair with its N answers, their scores, and which one won and lost."""
    lines = [f"     example   | {pair.chosen.prompt}"]
    marks = {pair.chosen.sample: "chosen", pair.rejected.sample: "rejected"}
    for answer in scored:
        if answer.id != pair.chosen.id:
            continue
        mark = marks.get(answer.sample, "")
        score = "none" if answer.reward is None else f"{answer.reward:.2f}"
        truth = true_score(exam, answer)
        truth_note = "" if truth is None else f" (true {truth})"
        text = " ".join(answer.response.split())
        lines.append(f"     {mark:<9} | score {score}{truth_note}  {text[:100]}")
    return "\n".join(lines)


def pair_funnel(groups: Sequence[Sequence[Candidate]], pairs: Sequence[Pair]) -> str:
    """What became of every prompt and answer, in words."""
    answers = [y for group in groups for y in group]
    scores = Counter(y.id for y in answers if y.reward is not None)
    compared = sum(count > 1 for count in scores.values())
    finished = sum(y.finished for y in answers)
    return (
        f"{len(pairs)} from {len(groups)} prompts: {compared - len(pairs)} tied, "
        f"{len(groups) - compared} with fewer than two scores; "
        f"of {len(answers)} answers {finished} finished, {scores.total()} scored"
    )
