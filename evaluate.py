"""evaluate.py: truth and comparison, read-only. What is measured here is shown to people; only CREAM learns from one of it, `agreement`.

In: a model, an `Exam` of prompts and ranked answers that training never saw, and what the models before it wrote there.
Out: one dict of figures a model.
Missing is None: a real run has no oracle, so it has no true score.

    python evaluate.py runs/NAME/M4 runs/NAME/M1 --judge runs/NAME/M1 --prompts runs/NAME/exam/M1.jsonl     # head to head
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import pvariance

from config import asking, command, pick_device
from data import Candidate, Chat, Example, Pair, UserError, read_own, read_prompts
from dpo import Recipe, reference_logps
from judge import (
    alternatives,
    attach,
    interval,
    judge_figures,
    kendall,
    mean,
    rank_answers,
    read_rubric,
    score,
)
from model import GPT, load
from sample import Sampling, next_probs, respond, writer

COMPARE = """Two answers to one request follow. Which one serves the person who asked better? Reply with one letter, A or B.

Request:
{}

Answer A:
{}

Answer B:
{}"""

# key in metrics.jsonl, heading, how it is shown
COLUMNS = [
    ("perfect", "perfect", "{:.1%}".format),
    ("true_score", "true", "{:.2f}".format),
    ("self_score", "self", "{:.2f}".format),
    ("judge_pairwise", "judge", "{:.3f}".format),
    ("judge_parse_rate", "readable", "{:.1%}".format),
    ("finished_rate", "finished", "{:.1%}".format),
    ("mean_length", "tokens", "{:.1f}".format),
    ("win_rate", "win", "{:.1%}".format),
    ("lose_rate", "lose", "{:.1%}".format),
    ("pairs", "pairs", "{:d}".format),
    ("seconds", "seconds", "{:.1f}".format),
]


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


def distinct(texts: Sequence[str], n: int = 2) -> float | None:
    """Distinct n-grams of words over all n-grams: low when the answers repeat themselves (Li et al. 2016)."""
    grams = [
        gram
        for text in texts
        for words in [text.split()]
        for gram in zip(*(words[i:] for i in range(n)))
    ]
    return len(set(grams)) / len(grams) if grams else None


def versus(now: Sequence[int | None], before: Sequence[int | None]) -> dict:
    """Share of held-out prompts whose answer is truly better, or worse, than the previous model's; the rest tie."""
    both = [(a, b) for a, b in zip(now, before) if None not in (a, b)]
    return {
        "win_rate": mean([float(a > b) for a, b in both]),
        "lose_rate": mean([float(a < b) for a, b in both]),
    }


def measure(
    model: GPT,
    chat: Chat,
    exam: Exam,
    answering: Sampling,
    judging: Sampling,
    *,
    k: int,
    rubric: str,
    key: str,
    how: str = "sampled",
) -> tuple[dict, list[dict], list[list[float | None]]]:
    """Figures of one model on the exam, its answers as rows, and its rewards of the ranked answers, group by group.

    `verdict_variance` is the mean over its own answers of the variance of their K votes; None where there is one vote.
    """
    answers = respond(
        model, chat, exam.prompts, answering, key=f"{key} answers", n=1, label="exam answers"
    )
    verdicts = score(
        model,
        chat,
        answers,
        judging,
        k=k,
        rubric=rubric,
        key=f"{key} verdicts",
        how=how,
        label="exam verdicts",
    )
    scored = attach(answers, verdicts)
    rewards, judged = rank_answers(
        model, chat, exam.groups, judging, k=k, rubric=rubric, key=f"{key} ranked", how=how
    )
    truth, repeated = (
        [true_score(exam, c) for c in scored],
        [[v for v in c.votes if v is not None] for c in scored],
    )
    figures = {
        "true_score": mean(truth),
        "perfect": mean([None if s is None else float(s == 5) for s in truth]),
        "self_score": mean([c.reward for c in scored]),
        "verdict_variance": mean([pvariance(votes) for votes in repeated if len(votes) > 1]),
        **(judge_figures(rewards, [g["ranks"] for g in exam.groups]) if exam.groups else {}),
        "judge_parse_rate": mean([float(v["score"] is not None) for v in verdicts + judged]),
        "finished_rate": mean([float(c.finished) for c in scored]),
        "mean_length": mean([len(c.tokens) for c in scored]),
        "distinct2": distinct([c.response for c in scored]),
    }
    rows = [
        {
            "id": c.id,
            "prompt": c.prompt,
            "response": c.response,
            "finished": c.finished,
            "tokens": c.tokens,
            "self_score": c.reward,
            "true_score": s,
        }
        for c, s in zip(scored, truth)
    ]
    return figures, rows, rewards


def agreement(
    now: Sequence[Sequence[float | None]], before: Sequence[Sequence[float | None]]
) -> float | None:
    """How alike two judges order the same groups of answers: 1 the same order, 0.5 unrelated, 0 the reverse; None where nobody orders any.

    The mean of (1 + Kendall's tau-b) / 2 over groups; one in which both judges give all answers the same says nothing and is left out.
    """
    groups = [[both for both in zip(*group) if None not in both] for group in zip(now, before)]
    tau = mean([kendall(*zip(*g)) for g in groups if len({*g}) > 1])
    return None if tau is None else (1 + tau) / 2


def divergence(
    model: GPT, other: GPT, chat: Chat, answers: Sequence[dict], recipe: Recipe
) -> float | None:
    """KL(model || other) in nats an answer, estimated: the mean of log p(y) - log p_other(y) over its own `answers`, rows of `measure`.

    Unbiased for answers drawn at temperature 1 from the whole vocabulary; else it tells of the likely answers, and may fall below 0.
    """
    if not (rows := [[Example(chat.prompt(a["prompt"]), a["tokens"])] for a in answers]):
        return None
    own, others = (reference_logps(m, rows, recipe) for m in (model, other))  # (answers, 1)
    return float((own - others).mean())


def ending(log: Sequence[dict]) -> dict:
    """The figures of a training log, as means over the last tenth of its steps."""
    last = log[-max(1, len(log) // 10) :]
    return {key: mean([row[key] for row in last]) for key in last[0]} if log else {}


def pairs_right(
    pairs: Sequence[dict], truth: Callable[[str, str], int | None] | None
) -> float | None:
    """Share of the pairs whose chosen answer is truly better than the rejected one; None where nobody knows."""
    told = (
        [[truth(p["prompt"], p[side]) for side in ("chosen", "rejected")] for p in pairs]
        if truth
        else []
    )
    return mean([float(w > l) for w, l in told if None not in (w, l)])


def progress(
    run: Path,
    t: int,
    model: GPT,
    chat: Chat,
    exam: Exam,
    answers: Sequence[dict],
    rewards: list,
    recipe: Recipe,
) -> dict:
    """What became of M_{t-1}, and of M_1, by the files of the run: `answers` and `rewards` are those of M_t (see measure).

    `agreement` is that of the judges M_t and M_{t-1} on the held-out ranked answers; how DPO ended is told as in dpo.jsonl.
    """
    pairs, before = read_own(run / f"t{t - 1}/pairs.jsonl"), read_own(run / f"exam/M{t - 1}.jsonl")
    log = ending(read_own(run / f"t{t - 1}/dpo.jsonl"))
    kl = {
        s: divergence(model, load(run / f"M{s}", device=model.device), chat, answers, recipe)
        for s in {t - 1, 1}
        if t > 1
    }
    seconds = [
        row["seconds"]
        for row in read_own(run / "log.jsonl")
        if row["t"] == t - 1 and row["stage"] != "exam"
    ]
    return {
        "pairs": len(pairs) or None,
        "pairs_right": pairs_right(pairs, exam.truth),
        "seconds": sum(seconds),
        **versus([a["true_score"] for a in answers], [a["true_score"] for a in before]),
        "agreement": agreement(
            rewards, [row["rewards"] for row in read_own(run / f"exam/rewards-M{t - 1}.jsonl")]
        ),
        "kl_prev": kl.get(t - 1),
        "kl_first": kl.get(1),
        **{key: log.get(key) for key in ("margin", "accuracy", "chosen_change", "rejected_change")},
    }


# ---- head to head ----
def preferred(
    judge: GPT, chat: Chat, ours: Sequence[Candidate], theirs: Sequence[Candidate], *, slots: int
) -> list[float]:
    """1, 0.5 or 0 a prompt: our answer is preferred in both orders, in one, in none. The letters' probabilities decide.

    A judge that always likes the first answer so ends in ties, not in wins.
    """
    start, letters = alternatives(chat, ["A", "B"])
    shown = [(x, y) for a, b in zip(ours, theirs) for x, y in ((a, b), (b, a))]
    asked = [
        chat.prompt(COMPARE.format(x.prompt, x.response, y.response)) + start for x, y in shown
    ]
    first = next_probs(judge, asked, letters, slots=slots, label="comparisons")  # (2P,2)
    likes = (first[:, 0] > first[:, 1]).view(-1, 2)
    return [(float(one) + float(not two)) / 2 for one, two in likes.tolist()]


def head_to_head(
    points: Sequence[float], ours: Sequence[Candidate], theirs: Sequence[Candidate]
) -> dict:
    """Points (1 win, 0.5 tie, 0 loss) -> shares with 95 % bootstrap intervals over prompts, and what length has to do with it.

    `length_controlled` is the mean of our points where our answer is the longer one and where it is not, each counted
    half, however many there are; None where one of the two never happens.
    """
    one = [1.0] * len(points)
    longer = [len(a.tokens) > len(b.tokens) for a, b in zip(ours, theirs)]
    halves = [mean([p for p, l in zip(points, longer) if l == which]) for which in (True, False)]
    shares = {
        name: [float(p == value) for p in points]
        for name, value in (("win", 1), ("tie", 0.5), ("lose", 0))
    }
    return {
        "prompts": len(points),
        **{f"{name}_rate": mean(hits) for name, hits in shares.items()},
        **{f"{name}_interval": interval(hits, one) for name, hits in shares.items()},
        "points": mean(points),
        "points_interval": interval(points, one),
        "length_controlled": None if None in halves else mean(halves),
        "mean_length": [mean([len(c.tokens) for c in side]) for side in (ours, theirs)],
    }


def compare(args, device) -> dict:
    """Both models answer the prompts of a file; a third, or the oracle of the toy, judges."""
    prompts, sampling = (
        read_prompts(args.prompts)[: args.count],
        Sampling(args.max_new_tokens, args.temperature, args.top_p),
    )
    sides = [
        respond(*writer(d, device), prompts, sampling, key=f"{args.seed}", n=1)
        for d in (args.ours, args.theirs)
    ]
    if args.judge == "oracle":
        from world import oracle  # the truth of the toy; nothing else here needs it

        given = [
            [oracle(c.prompt, c.response) if c.finished else 0 for c in side] for side in sides
        ]
        return {
            "judge": "oracle",
            **head_to_head(by_score(*given), *sides),
            "scores": [mean(side) for side in given],
        }
    (judge, chat), rubric = writer(args.judge, device), read_rubric(None, args.judge)
    scored = [
        attach(side, score(judge, chat, side, sampling, k=1, rubric=rubric, key="", how="expected"))
        for side in sides
    ]
    given = [[c.reward for c in side] for side in scored]
    return {
        "judge": args.judge,
        **head_to_head(preferred(judge, chat, *sides, slots=sampling.slots), *sides),
        "by_score": head_to_head(by_score(*given), *sides),
        "scores": [mean(side) for side in given],
    }


def by_score(ours: Sequence[float | None], theirs: Sequence[float | None]) -> list[float]:
    """Points from two scores; a tie where one is missing."""
    return [0.5 if None in (a, b) else (1 + (a > b) - (a < b)) / 2 for a, b in zip(ours, theirs)]


# ---- for people ----
def table(rows: Sequence[dict]) -> str:
    """The rows of metrics.jsonl as people read them; "-" where a figure is missing."""
    lines = ["model " + "".join(f"{name:>10}" for _, name, _ in COLUMNS)]
    for row in rows:
        cells = ("-" if row.get(key) is None else shape(row[key]) for key, _, shape in COLUMNS)
        lines.append(f"{row['model']:<6}" + "".join(f"{cell:>10}" for cell in cells))
    return "\n".join(lines)


def line(figures: dict) -> str:
    """The figures of one model in one line, without those that are missing."""
    return ", ".join(
        f"{name} {shape(figures[key])}"
        for key, name, shape in COLUMNS
        if figures.get(key) is not None
    )


def worked_example(exam: Exam, scored: Sequence[Candidate], pair: Pair) -> str:
    """One prompt with its N answers, their scores, and which won and lost."""
    lines = [f"     example   | {pair.chosen.prompt}"]
    for y in (y for y in scored if y.id == pair.chosen.id):
        mark = "chosen" if y is pair.chosen else "rejected" if y is pair.rejected else ""
        truth = true_score(exam, y)
        lines.append(
            f"     {mark:<9} | score {'none' if y.reward is None else f'{y.reward:.2f}'}"
            f"{'' if truth is None else f' (true {truth})'}  {' '.join(y.response.split())[:100]}"
        )
    return "\n".join(lines)


def show(report: dict, heading: str) -> None:
    share = lambda name: (
        f"{name} {report[f'{name}_rate']:.1%} ({report[f'{name}_interval'][0]:.1%} to {report[f'{name}_interval'][1]:.1%})"
    )
    control = (
        "none" if report["length_controlled"] is None else f"{report['length_controlled']:.1%}"
    )
    print(
        f"{heading}: {share('win')}, {share('tie')}, {share('lose')} | points {report['points']:.1%}, length-controlled {control}"
    )


def main() -> None:
    parser = asking(
        "Head to head: two models answer the same prompts, a judge compares.",
        prompts='prompts, plain lines or JSONL with "prompt"',
        judge='a Hugging Face directory, or "oracle" in the toy world',
    )
    parser.add_argument("ours", help="a Hugging Face directory")
    parser.add_argument("theirs", help="the one to compare with")
    parser.add_argument(
        "--count", type=int, default=100, help="at most this many prompts [%(default)s]"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args()
    if not args.prompts or not args.judge:
        raise UserError(
            "give --prompts FILE and --judge DIR (a judge that did not train on these pairs; oracle in the toy world)."
        )
    if args.count < 1:
        raise UserError(f"--count must be at least 1, not {args.count}.")
    report = compare(args, pick_device(args.device))
    if args.json:
        print(json.dumps(report))
        return
    show(report, "by truth" if args.judge == "oracle" else "pairwise, both orders")
    if "by_score" in report:
        show(report["by_score"], "by score")
    print(
        "mean score {} against {}, mean length {:.1f} against {:.1f} tokens".format(
            *("none" if s is None else f"{s:.2f}" for s in report["scores"]), *report["mean_length"]
        )
    )


if __name__ == "__main__":
    command(main)
