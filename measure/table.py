"""measure/table.py: the figures of a run as plain text, for the terminal.

In: rows of metrics.jsonl, scored answers.  Out: text. A figure that is missing is "-", or left out.
"""

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


def figure_text(value: float | None, form: str = ".2f", missing: str = "none") -> str:
    return missing if value is None else format(value, form)


def text_table(models: Sequence[dict]) -> str:
    """One line for each model, a row of metrics.jsonl, under a line of headings.

    A star marks the best one, where --keep-best has found it.
    """
    lines = ["model " + "".join(f"{heading:>10}" for _, heading, _ in COLUMNS)]
    for figures in models:
        name = figures["model"] + ("*" if figures.get("best") else "")
        line = f"{name:<6}"
        for key, _, form in COLUMNS:
            line += f"{figure_text(figures.get(key), form, missing='-'):>10}"
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
        score = figure_text(answer.reward)
        truth = true_score(exam, answer)
        if truth is not None:
            score += f" (true {truth})"
        text = " ".join(answer.response.split())
        lines.append(f"     {mark:<9} | score {score}  {text[:100]}")
    return "\n".join(lines)
