"""measure/exam.py: the exam of one model, on prompts and ranked answers that training never sees.

In: a model M_t with its settings, the exam of its world, and the files of the run so far.
Out: one row of metrics.jsonl, and in exam/ the answers and the rewards behind it. People read them,
training does not. A figure is None where a run knows no truth, and where M_1 has no model before.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import pvariance

from torch import Tensor

from core.draw import Sampling
from core.files import read_existing, write_jsonl
from core.rankings import agreement, alike_accuracy, judge_figures, text_lengths
from core.records import Example
from core.run import Run, unnamed
from core.statistics import mean
from judge import Judging, judge_answers, judge_ranked, response_logps, with_rewards
from measure.truth import judge_of_own, pair_truths, share_by_kind, true_score, versus
from sample import Writer, respond
from worlds.world import Exam, World

# of the rows of exam/M{t}.jsonl
ANSWER_KEYS = ("id", "sample", "prompt", "response", "finished", "tokens")
DPO_FIGURES = ("margin", "accuracy", "chosen_change", "rejected_change")  # see dpo.jsonl
Rewards = list[list[float | None]]  # of the ranked answers, group by group


@dataclass(frozen=True)
class Student:
    """A model in the exam: M_t as it writes in the stages, and how it works there."""

    writer: Writer
    answering: Sampling  # how often, and how, it answers each prompt
    judging: Judging
    key: str  # names the randomness, for example "0 exam"
    load: Callable[[int], Writer]  # t -> M_t as it writes


def examine(run: Run, world: World, student: Student, t: int) -> dict:
    """Examines M_t, which was not examined yet, and writes its files. Returns the figures.

    The row of metrics.jsonl comes last: it says that the exam is complete. `run.finish` gives the
    file its name.
    """
    figures, answers, rewards = measure(student, world.exam)
    figures |= progress(run.folder, t, student, world.exam, answers, rewards)
    write_jsonl(run.folder / f"exam/M{t}.jsonl", answers)
    write_jsonl(run.folder / f"exam/rewards-M{t}.jsonl", [{"rewards": group} for group in rewards])
    # for judge.py --file: what people ranked, and this model's own answers, ranked by the truth
    write_jsonl(run.folder / "exam/ranked.jsonl", world.exam.groups)
    write_jsonl(run.folder / f"exam/own-M{t}.jsonl", own_groups(world.exam, answers))
    row = {"model": f"M{t}", "t": t, **figures}
    write_jsonl(unnamed(run.folder / "metrics.jsonl"), [*run.metrics(), row])
    return figures


def own_groups(exam: Exam, answers: Sequence[dict]) -> list[dict]:
    """Answers to one prompt, ranked by the truth, with the kinds of requirement that each keeps.

    [] where the truth has no parts. An answer that never ended is left out, as no judge reads it,
    and so is one that says nothing, as no file of ranked answers holds it.
    """
    by_prompt = defaultdict(list)
    for answer in answers if exam.checks else []:
        if answer["finished"] and answer["response"]:
            by_prompt[answer["prompt"]].append(answer)
    groups = []
    for prompt, rows in by_prompt.items():
        if len(rows) > 1:
            responses = [row["response"] for row in rows]
            ranks = [5 - row["true_score"] for row in rows]
            kinds = [exam.checks(prompt, response) for response in responses]
            groups.append(
                {"prompt": prompt, "responses": responses, "ranks": ranks, "kinds": kinds}
            )
    return groups


# ---- the model alone ----
def measure(student: Student, exam: Exam) -> tuple[dict, list[dict], Rewards]:
    """The model answers the prompts, and judges its answers and those that people ranked.

    Returns the figures, the rows of exam/M{t}.jsonl, and the rewards of the ranked answers.
    """
    writer, judging, key = student.writer, student.judging, student.key
    written = respond(
        writer, exam.prompts, student.answering, key=f"{key} answers", label="exam answers"
    )
    verdicts = judge_answers(writer, written, judging, key=f"{key} verdicts", label="exam verdicts")
    rewards, ranked_verdicts = judge_ranked(writer, exam.groups, judging, key=f"{key} ranked")

    answers = []
    scored = with_rewards(written, verdicts)
    for answer in scored:
        row = {name: getattr(answer, name) for name in ANSWER_KEYS}
        answers.append(row | {"self_score": answer.reward, "true_score": true_score(exam, answer)})
    known = [row["true_score"] for row in answers if row["true_score"] is not None]
    figures = {
        "true_score": mean(known),
        "perfect": mean(value == 5 for value in known),
        "self_score": mean(answer.reward for answer in scored),
        "verdict_variance": mean(vote_variance(answer.votes) for answer in scored),
    }
    if exam.checks is not None:
        figures["kinds"] = share_by_kind(exam, answers)
        figures["kinds_unseen"] = list(exam.unseen)
    figures |= judge_of_own(scored, [row["true_score"] for row in answers])
    if exam.groups:
        ranks = [group["ranks"] for group in exam.groups]
        figures |= judge_figures(rewards, ranks)
        figures["judge_alike"] = alike_accuracy(rewards, ranks, text_lengths(exam.groups))
    readable = [verdict["score"] is not None for verdict in verdicts + ranked_verdicts]
    figures |= {
        "judge_parse_rate": mean(readable),
        "finished_rate": mean(answer.finished for answer in scored),
        "mean_length": mean(len(answer.tokens) for answer in scored),
        "distinct2": distinct([answer.response for answer in scored]),
    }
    return figures, answers, rewards


def vote_variance(votes: Sequence[float | None]) -> float | None:
    """The variance of the K votes on one answer; None where fewer than two can be read."""
    readable = [vote for vote in votes if vote is not None]
    return pvariance(readable) if len(readable) > 1 else None


def distinct(texts: Sequence[str]) -> float | None:
    """Distinct pairs of words over all: low when answers repeat themselves (Li et al. 2016)."""
    pairs = []
    for text in texts:
        pairs += pairwise(text.split())
    return len(set(pairs)) / len(pairs) if pairs else None


# ---- the model against those before it ----
def progress(
    folder: Path, t: int, student: Student, exam: Exam, answers: list[dict], rewards: Rewards
) -> dict:
    """What the step from M_{t-1} to M_t changed, read from the files of the run in `folder`."""
    # How M_t was made; the exam of M_{t-1} does not count in its seconds.
    pairs = read_existing(folder / f"t{t - 1}/pairs.jsonl")
    stages = [row for row in read_existing(folder / "log.jsonl") if row["t"] == t - 1]
    figures = {
        "pairs": len(pairs) or None,
        **pair_truths(pairs, exam.truth),
        "pairs_length_gap": mean(row["extra_length"] for row in pairs),
        "seconds": sum(row["seconds"] for row in stages if row["stage"] != "exam"),
    }
    # What M_{t-1} did in the same exam: its answers, and its rewards for the ranked answers
    figures |= versus(answers, read_existing(folder / f"exam/M{t - 1}.jsonl"))
    previous_rewards = read_existing(folder / f"exam/rewards-M{t - 1}.jsonl")
    figures["agreement"] = agreement(rewards, [row["rewards"] for row in previous_rewards])

    figures |= divergences(t, student, answers)
    dpo_end = ending(read_existing(folder / f"t{t - 1}/dpo.jsonl"))
    return figures | {name: dpo_end.get(name) for name in DPO_FIGURES}


def ending(log: Sequence[dict]) -> dict:
    """The figures at the end of a training log: means over the last tenth of its steps."""
    last_steps = log[-max(1, len(log) // 10) :]
    ends = {}
    for name in last_steps[0] if last_steps else []:
        ends[name] = mean(step[name] for step in last_steps)
    return ends


def divergences(t: int, student: Student, answers: Sequence[dict]) -> dict:
    """KL of M_t from the model before it and from M_1, estimated on the answers.

    None for M_1, and without answers. It is the last work of the student's model, which is let go:
    one copy is in memory at a time.
    """
    if t == 1 or not answers:
        return {"kl_prev": None, "kl_first": None}
    logps = first_answer_logps(student.writer, answers)
    del student.writer.model
    kl = {}
    for s in {t - 1, 1}:  # one model where M_t is M_2
        other = student.load(s)
        kl[s] = divergence(logps, first_answer_logps(other, answers))
        del other
    return {"kl_prev": kl[t - 1], "kl_first": kl[1]}


def first_answer_logps(writer: Writer, answers: Sequence[dict]) -> Tensor:
    """log p(y) of the first answer to each prompt: (prompts,). `answers` are rows of an exam."""
    first = [answer for answer in answers if answer["sample"] == 0]
    prompt = writer.chat.prompt
    examples = [Example(prompt(answer["prompt"]), answer["tokens"]) for answer in first]
    return response_logps(writer, examples, "log-probs")


def divergence(logps: Tensor, other_logps: Tensor) -> float:
    """KL(writer || other) in nats an answer: an estimate from answers that the writer wrote.

    The mean of log p(y) - log p_other(y), (answers,) each. The estimate is unbiased for answers
    drawn at temperature 1 from the whole vocabulary. Otherwise it speaks of the likely answers
    only, and may fall below 0.
    """
    return float((logps - other_logps).mean())
