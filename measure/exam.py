"""measure/exam.py: the exam of one model, on prompts and ranked answers that training never sees.

In: a model M_t with its settings, the exam of its world, and the files of the run so far.
Out: one row of metrics.jsonl, and in exam/ the answers and the rewards behind it. People read these
files, training does not. A figure is None where it does not exist: a real run knows no truth, and
M_1 has no model before it.
Left out on purpose: how the figures are displayed (see table.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import pvariance

from core.chat import Chat
from core.draw import Sampling
from core.files import read_existing, write_jsonl
from core.rankings import agreement, judge_figures
from core.records import Candidate, Example
from core.run import Run
from core.statistics import mean
from dpo import Recipe, reference_logps
from judge import Judging, attach, rank_answers, score
from measure.truth import pairs_right, true_score, versus
from model import GPT, load
from sample import Writer, respond
from worlds.world import Exam, World

DPO_FIGURES = ("margin", "accuracy", "chosen_change", "rejected_change")  # see dpo.jsonl


@dataclass(frozen=True)
class Student:
    """A model in the exam: M_t twice, and how it works there."""

    model: GPT  # fp32 weights, for log-probabilities
    writer: Writer  # the same weights as the stages write with them
    answering: Sampling  # one answer to each prompt
    judging: Judging
    recipe: Recipe  # the arithmetic of log-probabilities; nothing is trained here
    key: str  # names the randomness, for example "0 exam"


@dataclass(frozen=True)
class ExamResult:
    """What one model did in the exam."""

    figures: dict  # one value for each name; None where it does not exist
    answers: list[dict]  # the rows of exam/M{t}.jsonl
    rewards: list[list[float | None]]  # of the ranked answers, group by group


def examine(run: Run, world: World, student: Student, t: int) -> dict | None:
    """Examines M_t and writes its files. Returns the figures; None where M_t was examined already.

    The row of metrics.jsonl comes last: it says that the exam is complete.
    """
    metrics = run.folder / "metrics.jsonl"
    finished_exams = read_existing(metrics)
    if any(row["t"] == t for row in finished_exams):
        return None
    result = measure(student, world.exam)
    figures = result.figures | progress(run.folder, t, student, world.exam, result)

    exam_folder = run.folder / "exam"
    write_jsonl(exam_folder / f"M{t}.jsonl", result.answers)
    reward_rows = [{"rewards": group} for group in result.rewards]
    write_jsonl(exam_folder / f"rewards-M{t}.jsonl", reward_rows)
    write_jsonl(exam_folder / "ranked.jsonl", world.exam.groups)  # for judge.py --file
    write_jsonl(metrics, [*finished_exams, {"model": f"M{t}", "t": t, **figures}])
    return figures


# ---- the model alone ----
def measure(student: Student, exam: Exam) -> ExamResult:
    """The model answers the prompts, and judges its answers and those that people ranked."""
    writer, judging, key = student.writer, student.judging, student.key
    answers = respond(
        writer, exam.prompts, student.answering, key=f"{key} answers", label="exam answers"
    )
    verdicts = score(writer, answers, judging, key=f"{key} verdicts", label="exam verdicts")
    rewards, ranked_verdicts = rank_answers(writer, exam.groups, judging, key=f"{key} ranked")

    scored = attach(answers, verdicts)
    true_scores = [true_score(exam, answer) for answer in scored]
    figures = score_figures(scored, true_scores)
    if exam.groups:
        figures |= judge_figures(rewards, [group["ranks"] for group in exam.groups])
    readable_verdicts = [v["score"] is not None for v in verdicts + ranked_verdicts]
    figures |= {"judge_parse_rate": mean(readable_verdicts), **text_figures(scored)}
    return ExamResult(figures, answer_rows(scored, true_scores), rewards)


def score_figures(scored: Sequence[Candidate], true_scores: Sequence[int | None]) -> dict:
    """What the truth and the model itself say about its answers."""
    return {
        "true_score": mean(true_scores),
        "perfect": mean(value == 5 for value in true_scores if value is not None),
        "self_score": mean(answer.reward for answer in scored),
        "verdict_variance": verdict_variance(scored),
    }


def verdict_variance(scored: Sequence[Candidate]) -> float | None:
    """The mean, over answers, of the variance of the K votes on one answer.

    None where no answer has two readable votes.
    """
    variances = []
    for answer in scored:
        votes = [vote for vote in answer.votes if vote is not None]
        if len(votes) > 1:
            variances.append(pvariance(votes))
    return mean(variances)


def text_figures(answers: Sequence[Candidate]) -> dict:
    """What the answers look like."""
    return {
        "finished_rate": mean(answer.finished for answer in answers),
        "mean_length": mean(len(answer.tokens) for answer in answers),
        "distinct2": distinct([answer.response for answer in answers]),
    }


def distinct(texts: Sequence[str], n: int = 2) -> float | None:
    """Distinct n-grams of words over all n-grams: low when the answers repeat themselves.

    Source: Li et al. 2016.
    """
    ngrams = []
    for text in texts:
        words = text.split()
        ngrams += [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    return len(set(ngrams)) / len(ngrams) if ngrams else None


def answer_rows(scored: Sequence[Candidate], true_scores: Sequence[int | None]) -> list[dict]:
    """The rows of exam/M{t}.jsonl."""
    return [
        {
            "id": answer.id,
            "prompt": answer.prompt,
            "response": answer.response,
            "finished": answer.finished,
            "tokens": answer.tokens,
            "self_score": answer.reward,
            "true_score": truth,
        }
        for answer, truth in zip(scored, true_scores, strict=True)
    ]


# ---- the model against those before it ----
def progress(folder: Path, t: int, student: Student, exam: Exam, result: ExamResult) -> dict:
    """What the step from M_{t-1} to M_t changed, read from the files of the run in `folder`.

    `agreement` compares the rewards that M_t and M_{t-1} give to the ranked answers of the exam.
    """
    # How DPO made M_t
    pairs = read_existing(folder / f"t{t - 1}/pairs.jsonl")
    dpo_end = ending(read_existing(folder / f"t{t - 1}/dpo.jsonl"))
    figures = {
        "pairs": len(pairs) or None,
        "pairs_right": pairs_right(pairs, exam.truth),
        "seconds": seconds_of_trip(folder, t - 1),
    }

    # What M_{t-1} did in the same exam
    true_scores = [answer["true_score"] for answer in result.answers]
    previous_answers = read_existing(folder / f"exam/M{t - 1}.jsonl")
    figures |= versus(true_scores, [answer["true_score"] for answer in previous_answers])
    previous_rewards = read_existing(folder / f"exam/rewards-M{t - 1}.jsonl")
    figures["agreement"] = agreement(result.rewards, [row["rewards"] for row in previous_rewards])

    figures |= divergences(folder, t, student, result.answers)
    return figures | {name: dpo_end.get(name) for name in DPO_FIGURES}


def seconds_of_trip(folder: Path, t: int) -> float:
    """Seconds of all stages from M_t to M_{t+1}, the exam of M_t left out."""
    log = read_existing(folder / "log.jsonl")
    return sum(row["seconds"] for row in log if row["t"] == t and row["stage"] != "exam")


def ending(log: Sequence[dict]) -> dict:
    """The figures at the end of a training log: means over the last tenth of its steps."""
    if not log:
        return {}
    last_steps = log[-max(1, len(log) // 10) :]
    figures = {}
    for name in last_steps[0]:
        figures[name] = mean(step[name] for step in last_steps)
    return figures


def divergences(folder: Path, t: int, student: Student, answers: Sequence[dict]) -> dict:
    """KL of M_t from the model before it and from M_1, estimated on the answers; None for M_1."""
    if t == 1:
        return {"kl_prev": None, "kl_first": None}
    model, chat, recipe = student.model, student.writer.chat, student.recipe
    kl = {}
    for s in {t - 1, 1}:  # one model where M_t is M_2
        other = load(folder / f"M{s}", device=model.device)
        kl[s] = divergence(model, other, chat, answers, recipe)
        del other  # only one of them is in memory at a time
    return {"kl_prev": kl[t - 1], "kl_first": kl[1]}


def divergence(
    model: GPT, other: GPT, chat: Chat, answers: Sequence[dict], recipe: Recipe
) -> float | None:
    """KL(model || other) in nats an answer: an estimate from answers that `model` wrote.

    The mean of log p(y) - log p_other(y) over `answers`, rows of exam/M{t}.jsonl; None where there
    are none. The estimate is unbiased for answers drawn at temperature 1 from the whole vocabulary.
    Otherwise it speaks of the likely answers only, and may fall below 0.
    """
    if not answers:
        return None
    rows = [[Example(chat.prompt(answer["prompt"]), answer["tokens"])] for answer in answers]
    logps = reference_logps(model, rows, recipe)  # (answers, 1)
    other_logps = reference_logps(other, rows, recipe)  # (answers, 1)
    return float((logps - other_logps).mean())
