"""evaluate.py: two models head to head, or one against IFEval, from the command line.

In: two models, a file of prompts, and a judge: a third model, or the truth of the toy world.
Out: shares of wins, ties and losses, as text or JSON. Three things cannot win: the order (the judge
sees both), the length (`length_controlled`), and a missing score (it ties).
With --ifeval one model answers prompts whose demands a program checks (measure/ifeval.py).

    python evaluate.py runs/toy/M4 runs/toy/M1 --judge runs/toy/M1 --prompts runs/toy/exam/M1.jsonl
    python evaluate.py runs/full/M1 --ifeval ifeval.jsonl --temperature 0
"""

import argparse
import json
import sys
from collections.abc import Sequence

import torch

from core.cli import common_arguments, run_command
from core.device import pick_device, prepare_machine
from core.draw import Sampling
from core.errors import UserError
from core.records import Candidate
from core.statistics import bootstrap_interval, mean
from judge import Judging, alternatives, judge_answers, read_rubric, with_rewards
from measure.ifeval import checkable_prompts, ifeval_figures, ifeval_text, read_ifeval
from measure.table import figure_text
from measure.truth import true_score
from sample import Writer, load_writer, next_probs, respond
from worlds.people import read_prompts
from worlds.toy import oracle
from worlds.world import Exam

COMPARE = """Two answers to one request follow. Which one serves the person who asked better? \
Reply with one letter, A or B.

Request:
{}

Answer A:
{}

Answer B:
{}"""
Answers = Sequence[Candidate]  # one to each prompt
RESULTS = {"win": 1, "tie": 0.5, "lose": 0}  # points of a prompt


def preferred(judge: Writer, ours: Answers, theirs: Answers, *, slots: int) -> list[float]:
    """Points for each prompt: half a point for each order in which the judge prefers ours.

    The more likely of the letters A and B decides. A judge that always likes the first answer ends
    in ties, not in wins. Raises UserError where the tokenizer does not tell the letters apart.
    """
    start, letters = alternatives(judge.chat, ["A", "B"])
    questions = []
    for our, their in zip(ours, theirs, strict=True):
        for first, second in ((our, their), (their, our)):
            text = COMPARE.format(first.prompt, first.response, second.response)
            questions.append(judge.chat.prompt(text) + start)
    probs = next_probs(judge, questions, letters, slots=slots, label="comparisons")
    likes_first = [a > b for a, b in probs]
    points = []
    for ours_first, theirs_first in zip(likes_first[::2], likes_first[1::2], strict=True):
        points.append((ours_first + (not theirs_first)) / 2)
    return points


def by_score(ours: Sequence[float | None], theirs: Sequence[float | None]) -> list[float]:
    """Points for each prompt from two scores; a tie where one is missing."""
    points = []
    for our, their in zip(ours, theirs, strict=True):
        tie = None in (our, their) or our == their
        points.append(0.5 if tie else float(our > their))
    return points


def head_to_head(points: Sequence[float], ours: Answers, theirs: Answers) -> dict:
    """Points -> shares with 95 % bootstrap intervals over prompts, and the part of length.

    `length_controlled` is the mean of two means: of our points where our answer is the longer one,
    and where it is not. None where one of the two never happens.
    """
    one_each = [1] * len(points)
    report = {"prompts": len(points)}
    for name, result in RESULTS.items():
        report[f"{name}_rate"] = mean(point == result for point in points)
    for name, result in RESULTS.items():
        hits = [point == result for point in points]
        report[f"{name}_interval"] = bootstrap_interval(hits, one_each)
    our_lengths = [len(answer.tokens) for answer in ours]
    their_lengths = [len(answer.tokens) for answer in theirs]
    lengths = list(zip(points, our_lengths, their_lengths, strict=True))
    halves = [
        mean(point for point, our, their in lengths if our > their),
        mean(point for point, our, their in lengths if our <= their),
    ]
    return report | {
        "points": mean(points),
        "points_interval": bootstrap_interval(points, one_each),
        "length_controlled": None if None in halves else mean(halves),
        "mean_length": [mean(our_lengths), mean(their_lengths)],
    }


def compare_models(args: argparse.Namespace, device: torch.device) -> dict:
    """Both models answer the prompts; the truth scores the answers, or a model compares them."""
    prompts = read_prompts(args.prompts)[: args.count]
    if args.judge == "oracle":
        check_tasks(prompts, args.prompts)
    sampling = Sampling(args.max_new_tokens, args.temperature, args.top_p)
    ours = respond(load_writer(args.ours, device), prompts, sampling, key=f"{args.seed}")
    theirs = respond(load_writer(args.theirs, device), prompts, sampling, key=f"{args.seed}")
    ours, theirs = answered_by_both(ours, theirs, len(prompts))
    if args.judge == "oracle":
        exam = Exam(prompts=(), groups=(), truth=oracle)
        our_scores = [true_score(exam, answer) for answer in ours]
        their_scores = [true_score(exam, answer) for answer in theirs]
        report = head_to_head(by_score(our_scores, their_scores), ours, theirs)
    else:
        judge = load_writer(args.judge, device)
        judging = Judging(read_rubric(None, args.judge), sampling, how="expected")
        our_scores = model_scores(judge, ours, judging)
        their_scores = model_scores(judge, theirs, judging)
        points = preferred(judge, ours, theirs, slots=sampling.slots)
        report = head_to_head(points, ours, theirs)
        report["by_score"] = head_to_head(by_score(our_scores, their_scores), ours, theirs)
    return {"judge": args.judge, **report, "scores": [mean(our_scores), mean(their_scores)]}


def answered_by_both(ours: Answers, theirs: Answers, count: int) -> tuple[Answers, Answers]:
    """Without the prompts that are too long for one of the models. How many those are is told.

    Raises UserError where none is left.
    """
    both = {y.id for y in ours} & {y.id for y in theirs}
    if not both:
        raise UserError(
            "no prompt leaves room for an answer in the context of both models; lower "
            "--max-new-tokens or shorten the prompts."
        )
    if len(both) < count:
        print(f"{count - len(both)} prompts are too long and left out", file=sys.stderr)
    return [y for y in ours if y.id in both], [y for y in theirs if y.id in both]


def check_tasks(prompts: Sequence[str], path: str) -> None:
    """Raises UserError for prompts that are no tasks of the toy: nobody knows their truth."""
    for prompt in prompts:
        if oracle(prompt, "") is None:
            raise UserError(
                f"{path}: oracle knows the truth of the toy's tasks only, and {prompt[:60]!r} is "
                f"none; give a model as --judge."
            )


def model_scores(judge: Writer, answers: Answers, judging: Judging) -> list[float | None]:
    scored = with_rewards(answers, judge_answers(judge, answers, judging, key=""))
    return [answer.reward for answer in scored]


def comparison_line(report: dict, heading: str) -> str:
    """One result of head_to_head as a line of text."""
    shares = []
    for name in RESULTS:
        low, high = report[f"{name}_interval"]
        shares.append(f"{name} {report[f'{name}_rate']:.1%} ({low:.1%} to {high:.1%})")
    points = f"points {report['points']:.1%}"
    controlled = figure_text(report["length_controlled"], ".1%")
    return f"{heading}: {', '.join(shares)} | {points}, length-controlled {controlled}"


def comparison_text(report: dict) -> str:
    by_truth = report["judge"] == "oracle"
    lines = [comparison_line(report, "by truth" if by_truth else "pairwise, both orders")]
    if "by_score" in report:
        lines.append(comparison_line(report["by_score"], "by score"))
    ours, theirs = map(figure_text, report["scores"])
    our_length, their_length = report["mean_length"]
    lengths = f"mean length {our_length:.1f} against {their_length:.1f} tokens"
    lines.append(f"mean score {ours} against {theirs}, {lengths}")
    return "\n".join(lines)


def check_demands(args: argparse.Namespace, device: torch.device) -> dict:
    """One model answers the prompts of a file in IFEval's format; a program checks the answers."""
    demanding = read_ifeval(args.ifeval)[: args.count]
    prompts = [row.prompt for row in checkable_prompts(demanding)]
    sampling = Sampling(args.max_new_tokens, args.temperature, args.top_p)
    answers = respond(load_writer(args.ours, device), prompts, sampling, key=f"{args.seed}")
    if len(answers) < len(prompts):
        raise UserError(
            f"{len(prompts) - len(answers)} of the prompts leave no room for an answer; lower "
            f"--max-new-tokens."
        )
    return ifeval_figures(demanding, answers)


def refuse_what_is_missing(args: argparse.Namespace) -> None:
    """Raises UserError where the arguments of one of the two uses are not complete."""
    if args.ifeval and (args.theirs or args.prompts or args.judge):
        raise UserError(
            "--ifeval checks one model by itself; leave out the second model, --prompts and "
            "--judge."
        )
    if not args.ifeval and not (args.prompts and args.judge):
        raise UserError(
            "give --prompts FILE and --judge DIR (a judge that did not train on these pairs; "
            "oracle in the toy world)."
        )
    if not args.ifeval and not args.theirs:
        raise UserError("give a second model to compare with.")
    if args.count < 1:
        raise UserError(f"--count must be at least 1, not {args.count}.")


def main() -> None:
    prepare_machine()
    parser = common_arguments(
        "Head to head: two models answer the same prompts, a judge compares.",
        prompts='prompts, plain lines or JSONL with "prompt"',
        judge='a Hugging Face directory, or "oracle" in the toy world',
        ifeval="prompts with demands that a program checks, in IFEval's format; for one model",
    )
    parser.add_argument("ours", help="a Hugging Face directory")
    parser.add_argument("theirs", nargs="?", help="the one to compare with")
    parser.add_argument(
        "--count", type=int, default=100, help="at most this many prompts [%(default)s]"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args()
    refuse_what_is_missing(args)
    device = pick_device(args.device)
    report = check_demands(args, device) if args.ifeval else compare_models(args, device)
    as_text = ifeval_text if args.ifeval else comparison_text
    print(json.dumps(report) if args.json else as_text(report))


if __name__ == "__main__":
    run_command(main)
