"""experiments/harm.py: what a loop costs elsewhere: are the answers of people still likely?

    python experiments/harm.py --ift FILE --ranked FILE runs/NAME/M1 runs/NAME/M4

In: models, and what people wrote; of it only the fifth that every run holds out.  Out: a table: the
log-probability of a token of these answers under each model, and what changed since the first.
Left out on purpose: the models' own answers. The exam has their length, their diversity
(distinct2) and how many end.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from core.chat import Chat
from core.cli import run_command
from core.device import pick_device, prepare_machine
from core.errors import UserError
from core.files import read_ranked
from core.recipe import Recipe
from core.records import Example
from core.start import check_room
from core.statistics import bootstrap_interval
from dpo import reference_logps
from experiments.seeds import markdown_table
from model import load
from worlds.people import best_answers, read_ift, split_off_exam


def answers_of_people(ift: str, ranked: str | None) -> list[dict]:
    """{"prompt", "response"} of people; of ranked answers the best."""
    rows = read_ift(ift)
    if ranked:
        rows += best_answers(read_ranked(ranked))
    return rows


def held_out_answers(ift: str, ranked: str | None) -> list[dict]:
    """Those that runs hold out."""
    _, for_exam = split_off_exam(answers_of_people(ift, ranked))
    return for_exam


def answer_logps(
    folder: str, rows: list[dict], device: torch.device
) -> tuple[list[float], list[int]]:
    """log p of each answer under the model of a folder, and its tokens. Raises UserError."""
    chat = Chat(folder)
    model = load(folder, device=device)
    examples = [chat.example(row["prompt"], row["response"]) for row in rows]
    longest = max(len(example.prompt) + len(example.response) for example in examples)
    check_room(model.config.max_position_embeddings, longest, 0)
    groups: list[list[Example]] = [[example] for example in examples]
    logps = reference_logps(model, groups, Recipe())[:, 0]  # (E,)
    return logps.tolist(), [len(example.response) for example in examples]


def cell(part: list[float], whole: list[int]) -> str:
    """The sum of the first over that of the second, with its interval over answers."""
    low, high = bootstrap_interval(part, whole)
    return f"{sum(part) / sum(whole):+.3f} ({low:+.3f} to {high:+.3f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("models", nargs="+", help="model directories; the first is the baseline")
    parser.add_argument("--ift", required=True, help="instruction data of people")
    parser.add_argument("--ranked", help="ranked answers; the best of each group counts")
    args = parser.parse_args()
    prepare_machine()
    rows = held_out_answers(args.ift, args.ranked)
    if not rows:
        raise UserError(f"{args.ift} has no answer that runs hold out; give more rows.")
    device = pick_device("auto")
    first = None
    lines = []
    for folder in args.models:
        logps, sizes = answer_logps(folder, rows, device)
        first = first or logps
        changes = [now - before for now, before in zip(logps, first, strict=True)]
        lines.append([folder, str(len(logps)), cell(logps, sizes), cell(changes, sizes)])
    print(markdown_table(["model", "answers", "log p a token", "change"], lines))


if __name__ == "__main__":
    run_command(main)
