"""evaluate.py: truth and comparison, read-only. What is measured here is shown to people and feeds nothing back.

In: a model and an `Exam` of prompts and ranked answers that training never saw.  Out: one dict of figures a model.
Missing is None: a real run has no oracle, so it has no true score.
"""
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from data import Candidate, Chat, Pair
from judge import attach, mean, pairwise_accuracy, rank_answers, score
from model import GPT
from sample import Sampling, respond


# key in metrics.jsonl, heading, how it is shown
COLUMNS = [("perfect", "perfect", "{:.1%}".format), ("true_score", "true", "{:.2f}".format), ("self_score", "self", "{:.2f}".format),
           ("judge_pairwise", "judge", "{:.3f}".format), ("judge_parse_rate", "readable", "{:.1%}".format),
           ("finished_rate", "finished", "{:.1%}".format), ("mean_length", "tokens", "{:.1f}".format),
           ("win_rate", "win", "{:.1%}".format), ("lose_rate", "lose", "{:.1%}".format), ("pairs", "pairs", "{:d}".format),
           ("seconds", "seconds", "{:.1f}".format)]


@dataclass(frozen=True)
class Exam:
    """Held-out material. `truth` scores (prompt, answer) 0-5; None where nobody knows."""

    prompts: Sequence[str]
    groups: Sequence[dict]
    truth: Callable[[str, str], int | None] | None = None


def true_score(exam: Exam, candidate: Candidate) -> int | None:
    """The truth about one answer; an answer that never ended has done nothing right."""
    if exam.truth is None:
        return None
    return exam.truth(candidate.prompt, candidate.response) if candidate.finished else 0


def versus(now: Sequence[int | None], before: Sequence[int | None]) -> dict:
    """Share of held-out prompts whose answer is truly better, or worse, than the previous model's; the rest tie."""
    both = [(a, b) for a, b in zip(now, before) if None not in (a, b)]
    return {"win_rate": mean([float(a > b) for a, b in both]), "lose_rate": mean([float(a < b) for a, b in both])}


def measure(model: GPT, chat: Chat, exam: Exam, answering: Sampling, judging: Sampling, *, k: int, rubric: str, key: str,
            before: Sequence[int | None]) -> tuple[dict, list[dict]]:
    """Figures of one model on the exam, and its answers as rows; `before` holds the previous model's true scores."""
    answers = respond(model, chat, exam.prompts, answering, key=f"{key} answers", n=1, label="exam answers")
    verdicts = score(model, chat, answers, judging, k=k, rubric=rubric, key=f"{key} verdicts", label="exam verdicts")
    scored = attach(answers, verdicts)
    rewards, judged = rank_answers(model, chat, exam.groups, judging, k=k, rubric=rubric, key=f"{key} ranked")
    truth = [true_score(exam, c) for c in scored]
    figures = {
        "true_score": mean(truth), "perfect": mean([None if s is None else float(s == 5) for s in truth]),
        "self_score": mean([c.reward for c in scored]),
        "judge_pairwise": pairwise_accuracy(rewards, [g["ranks"] for g in exam.groups]),
        "judge_parse_rate": mean([float(v["score"] is not None) for v in verdicts + judged]),
        "finished_rate": mean([float(c.finished) for c in scored]), "mean_length": mean([len(c.tokens) for c in scored]),
        **versus(truth, before)}
    rows = [{"id": c.id, "prompt": c.prompt, "response": c.response, "finished": c.finished, "self_score": c.reward,
             "true_score": s} for c, s in zip(scored, truth)]
    return figures, rows


def table(rows: Sequence[dict]) -> str:
    """The rows of metrics.jsonl as people read them; "-" where a figure is missing."""
    lines = ["model " + "".join(f"{name:>10}" for _, name, _ in COLUMNS)]
    for row in rows:
        cells = ("-" if row.get(key) is None else shape(row[key]) for key, _, shape in COLUMNS)
        lines.append(f"{row['model']:<6}" + "".join(f"{cell:>10}" for cell in cells))
    return "\n".join(lines)


def line(figures: dict) -> str:
    """The figures of one model in one line, without those that are missing."""
    return ", ".join(f"{name} {shape(figures[key])}" for key, name, shape in COLUMNS if figures.get(key) is not None)


def worked_example(exam: Exam, scored: Sequence[Candidate], pair: Pair) -> str:
    """One prompt with its N answers, their scores, and which won and lost."""
    lines = [f"     example   | {pair.chosen.prompt}"]
    for y in (y for y in scored if y.id == pair.chosen.id):
        mark = "chosen" if y is pair.chosen else "rejected" if y is pair.rejected else ""
        truth = true_score(exam, y)
        lines.append(f"     {mark:<9} | score {'none' if y.reward is None else f'{y.reward:.2f}'}"
                     f"{'' if truth is None else f' (true {truth})'}  {' '.join(y.response.split())[:100]}")
    return "\n".join(lines)
