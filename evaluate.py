"""evaluate.py: two models head to head, from the command line.

In: two models, a file of prompts, and a judge: a third model, or the truth of the toy world.
Out: shares of wins, ties and losses, as text or JSON. It only reads; nothing here feeds training.

    python evaluate.py runs/toy/M4 runs/toy/M1 --judge runs/toy/M1 --prompts runs/toy/exam/M1.jsonl
"""

import argparse
import json
from collections.abc import Sequence

import torch

from core.cli import common_arguments, run_command
from core.device import pick_device, prepare_machine
from core.draw import Sampling
from core.errors import UserError
from core.records import Candidate
from core.statistics import mean
from judge import Judging, attach, read_rubric, score
from measure.head_to_head import by_score, head_to_head, preferred
from measure.truth import true_score
from sample import load_writer, respond
from worlds.people import read_prompts
from worlds.toy import oracle
from worlds.world import Exam


def compare_models(args: argparse.Namespace, device: torch.device) -> dict:
    """Both models answer the prompts of a file; then the judge compares."""
    prompts = read_prompts(args.prompts)[: args.count]
    sampling = Sampling(args.max_new_tokens, args.temperature, args.top_p)
    sides = []
    for folder in (args.ours, args.theirs):
        writer = load_writer(folder, device)
        sides.append(respond(writer, prompts, sampling, key=f"{args.seed}"))
    if args.judge == "oracle":
        return compare_by_truth(*sides)
    return compare_by_model(args.judge, device, *sides, sampling=sampling)


def compare_by_truth(ours: Sequence[Candidate], theirs: Sequence[Candidate]) -> dict:
    """The truth of the toy world scores all answers. It is None for a prompt of another world."""
    exam = Exam(prompts=(), groups=(), truth=oracle)
    our_scores = [true_score(exam, answer) for answer in ours]
    their_scores = [true_score(exam, answer) for answer in theirs]
    return {
        "judge": "oracle",
        **head_to_head(by_score(our_scores, their_scores), ours, theirs),
        "scores": [mean(our_scores), mean(their_scores)],
    }


def compare_by_model(
    folder: str,
    device: torch.device,
    ours: Sequence[Candidate],
    theirs: Sequence[Candidate],
    *,
    sampling: Sampling,
) -> dict:
    """The model of `folder` compares the answers in both orders, and also scores each by itself."""
    judge = load_writer(folder, device)
    judging = Judging(read_rubric(None, folder), sampling, how="expected")
    scores = []
    for side in (ours, theirs):
        scored = attach(side, score(judge, side, judging, key=""))
        scores.append([answer.reward for answer in scored])
    points = preferred(judge, ours, theirs, slots=sampling.slots)
    return {
        "judge": folder,
        **head_to_head(points, ours, theirs),
        "by_score": head_to_head(by_score(*scores), ours, theirs),
        "scores": [mean(side) for side in scores],
    }


# ---- for people ----
def comparison_line(report: dict, heading: str) -> str:
    """One result of head_to_head as a line of text."""
    shares = []
    for name in ("win", "tie", "lose"):
        low, high = report[f"{name}_interval"]
        shares.append(f"{name} {report[f'{name}_rate']:.1%} ({low:.1%} to {high:.1%})")
    control = report["length_controlled"]
    controlled = "none" if control is None else f"{control:.1%}"
    points = f"points {report['points']:.1%}, length-controlled {controlled}"
    return f"{heading}: {', '.join(shares)} | {points}"


def show_comparison(report: dict) -> None:
    """Prints the whole report."""
    by_truth = report["judge"] == "oracle"
    print(comparison_line(report, "by truth" if by_truth else "pairwise, both orders"))
    if "by_score" in report:
        print(comparison_line(report["by_score"], "by score"))
    ours, theirs = ("none" if s is None else f"{s:.2f}" for s in report["scores"])
    our_length, their_length = report["mean_length"]
    print(
        f"mean score {ours} against {theirs}, "
        f"mean length {our_length:.1f} against {their_length:.1f} tokens"
    )


def main() -> None:
    prepare_machine()
    parser = common_arguments(
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
            "give --prompts FILE and --judge DIR (a judge that did not train on these pairs; "
            "oracle in the toy world)."
        )
    if args.count < 1:
        raise UserError(f"--count must be at least 1, not {args.count}.")
    report = compare_models(args, pick_device(args.device))
    if args.json:
        print(json.dumps(report))
    else:
        show_comparison(report)


if __name__ == "__main__":
    run_command(main)
