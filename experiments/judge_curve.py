"""experiments/judge_curve.py: what it takes to teach a real model the checklist.

    python experiments/judge_curve.py --model DIR --ift FILE --ranked FILE --minutes 120

M_0 learns to say whether a text keeps a requirement ("yes" or "no"), from questions about edited
answers of people (worlds/checked.py). Then it is asked about held-out texts. Rows change one thing
at a time: the number of questions, epochs, the rate, how many kinds of requirement.
In: a checkpoint and the files of people.  Out: p(yes) of every question, in
runs/judge-curve.jsonl, a table in docs/judge-curve.md and a curve in docs/judge-curve.svg. A row
that is there is not made again, and none starts after --minutes. No model is kept.
"""

import argparse
import random
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from core.chat import Chat
from core.cli import run_command
from core.config import FEW_KINDS, Config, settings_of
from core.device import pick_device, prepare_machine
from core.draw import Sampling
from core.files import read_existing, write_jsonl
from core.recipe import Recipe
from core.records import Candidate
from core.statistics import mean
from dpo import sft
from experiments.ablations import DOCS, svg_page
from experiments.harm import answers_of_people
from experiments.seeds import markdown_table
from judge import QUESTION, Judging, judge_answers, judge_examples
from model import load
from sample import writing_copy
from worlds.checked import is_short, kinds_of, read_demand, seed_verdicts
from worlds.kinds import SEEN, Kind
from worlds.people import split_off_exam

HELD_OUT = 600  # questions of the test, four to a text
RECORD = Path("runs/judge-curve.jsonl")


@dataclass(frozen=True)
class Row:
    """One training of the judge."""

    questions: int
    epochs: int = 1
    rate: float = 2e-4
    kinds: Sequence[Kind] = tuple(SEEN)

    def name(self) -> str:
        return f"{self.questions} x {self.epochs}, rate {self.rate:g}, {len(self.kinds)} kinds"


FEW = tuple(kinds_of(FEW_KINDS)[0])
ROWS = [
    Row(0),
    Row(0, kinds=FEW),
    Row(500),
    Row(1000),
    Row(1000, kinds=FEW),
    Row(1000, rate=5e-4),
    Row(1000, epochs=2),
    Row(2000),
    Row(2000, kinds=FEW),
    Row(4000),
]


def texts_of_people(ift: str, ranked: str | None) -> tuple[list[dict], list[dict]]:
    """Short answers of people, for training and held out, as the checked world takes them."""
    return split_off_exam(list(filter(is_short, answers_of_people(ift, ranked))))


def teach(args: argparse.Namespace, row: Row, examples: list[dict]) -> dict:
    """One row of the record: the judge learns, and is tested on `args.held_out`."""
    started = time.time()
    # 1) M_0 learns from questions about texts of training
    model = load(args.model, device=pick_device("auto"))
    chat = Chat(args.model)
    rows = seed_verdicts(examples, row.questions, random.Random("judge curve"), row.kinds)
    settings = Config(**settings_of("checked"))
    recipe = Recipe(
        epochs=row.epochs,
        batch_size=settings.batch_size,
        lr=row.rate,
        lr_end=row.rate / 5,
        tokens=settings.tokens,
        block=4,
    )
    if rows:
        sft(model, judge_examples(chat, QUESTION, rows), recipe, name="judge")
    # 2) it answers questions about texts that were held out
    test = seed_verdicts(args.held_out, HELD_OUT, random.Random("judge test"), row.kinds)
    asked = []
    for i, one in enumerate(test):
        asked.append(Candidate(i, 0, one["prompt"], one["response"], [], finished=True))
    judging = Judging(QUESTION, Sampling(1), "checklist")
    writer = writing_copy(model, chat, torch.float32)
    verdicts = judge_answers(writer, asked, judging, key="judge curve", label="test")
    # 3) p(yes) of each question beside the truth
    answers = []
    for question, verdict in zip(test, verdicts, strict=True):
        kind = read_demand(question["prompt"])[0].name
        kept = question["verdict"] == "yes"
        answers.append({"kind": kind, "kept": kept, "yes": verdict["yes"][0]})
    return {"row": row.name(), "seconds": time.time() - started, "answers": answers}


# ---- figures ----


def in_order(answers: Sequence[dict]) -> float | None:
    """AUC: how often a kept requirement has a higher p(yes) than a broken one of its kind.

    Ties count half. None where no kind has both.
    """
    wins = [share for of_kind in by_kind(answers).values() for share in pair_order(of_kind)]
    return mean(wins)


def by_kind(answers: Sequence[dict]) -> dict[str, list[dict]]:
    kinds: dict[str, list[dict]] = defaultdict(list)
    for answer in answers:
        kinds[answer["kind"]].append(answer)
    return kinds


def pair_order(answers: Sequence[dict]) -> list[float]:
    """1, 1/2 or 0 for each pair of a kept and a broken requirement."""
    kept = [answer["yes"] for answer in answers if answer["kept"]]
    broken = [answer["yes"] for answer in answers if not answer["kept"]]
    return [(a > b) + (a == b) / 2 for a in kept for b in broken]


def interval_of_order(answers: Sequence[dict]) -> tuple[float, float]:
    """The 95 % bootstrap interval of `in_order`, over questions of each kind."""
    rng = random.Random(0)
    kinds = by_kind(answers).values()
    found = []
    for _ in range(500):
        drawn = [answer for of_kind in kinds for answer in rng.choices(of_kind, k=len(of_kind))]
        found.append(in_order(drawn))
    found.sort()
    return found[12], found[487]


def result_line(row: dict) -> list[str]:
    answers = row["answers"]
    low, high = interval_of_order(answers)
    # the kinds that are told best
    of_kinds = {}
    for name, of_kind in by_kind(answers).items():
        of_kinds[name] = in_order(of_kind) or 0.0
    best = sorted(of_kinds, key=of_kinds.get, reverse=True)[:4]
    names = ", ".join(f"{name} {of_kinds[name]:.2f}" for name in best)
    said = mean((answer["yes"] > 0.5) == answer["kept"] for answer in answers)
    order = f"{in_order(answers):.3f} ({low:.3f} to {high:.3f})"
    return [row["row"], order, f"{100 * said:.0f} %", names, f"{row['seconds']:.0f}"]


def curve_figure(record: Sequence[dict]) -> str:
    """An SVG: the share in the right order over the number of questions.

    A line for each number of kinds. A row with another rate, or more epochs, stands by itself. Rows
    that are no longer in ROWS are in the table only.
    """
    # 1) the grid
    parts = []
    for tick in (0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0):
        y = curve_height(tick)
        parts.append(f'<path d="M40 {y}H460" stroke="#8884"/><text x="8" y="{y + 4}">{tick}</text>')
    for questions in range(0, 4001, 1000):
        parts.append(f'<text x="{curve_place(questions) - 12}" y="275">{questions}</text>')
    # 2) the points of each line
    lines: dict[str, list[tuple[float, float]]] = defaultdict(list)
    shares = {one["row"]: in_order(one["answers"]) for one in record}
    for row in sorted(ROWS, key=attrgetter("questions")):
        share = shares.get(row.name())
        if share is None:
            continue
        label = f"{len(row.kinds)} kinds"
        if row.epochs > 1 or row.rate != Row.rate:
            label = row.name()
        lines[label].append((curve_place(row.questions), curve_height(share)))
    # 3) lines and names
    for label, points in lines.items():
        path = " ".join(f"{x},{y}" for x, y in points)
        x, y = points[-1]
        parts.append(f'<polyline points="{path}" fill="none" stroke="#2f7fd6" stroke-width="2"/>')
        parts.append(f'<circle cx="{x}" cy="{y}" r="3" fill="#2f7fd6"/>')
        parts.append(f'<text x="{x + 8}" y="{y + 4}">{label}</text>')
    return svg_page(parts, 540, 285)


def curve_place(questions: int) -> float:
    """x of a number of questions, in pixels."""
    return 50 + questions / 10


def curve_height(share: float) -> float:
    """y of a share from 0.4 to 1, in pixels downwards."""
    return round(255 - 400 * (share - 0.4), 1)


def write_table(record: list[dict]) -> str:
    """docs/judge-curve.md and its curve, with every row that there is; returns the table."""
    head = ["questions x epochs", "in the right order", "yes or no right", "best kinds", "seconds"]
    table = markdown_table(head, [result_line(row) for row in record])
    introduction = (
        "# What it takes to teach the checklist\n\n"
        "[real-model.md](real-model.md) says what follows from it. `python "
        "experiments/judge_curve.py --model DIR --ift FILE --ranked FILE`; SmolLM2-135M, fp32. "
        f'{HELD_OUT} questions about held-out texts, four to a text. "In the right order": how '
        "often p(yes) is higher for a requirement that is kept than for one of its kind that is "
        "broken; 95 % intervals over questions (bootstrap).\n\n"
    )
    picture = "![the share in the right order over the number of questions](judge-curve.svg)"
    (DOCS / "judge-curve.md").write_text(f"{introduction}{picture}\n\n{table}\n")
    (DOCS / "judge-curve.svg").write_text(curve_figure(record))
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--model", required=True, help="a Hugging Face directory")
    parser.add_argument("--ift", required=True, help="instructions of people, with answers")
    parser.add_argument("--ranked", help="ranked answers; the best of each group counts")
    parser.add_argument("--minutes", type=float, default=1e9, help="start no row after these")
    args = parser.parse_args()
    prepare_machine()
    stop = time.time() + 60 * args.minutes
    examples, args.held_out = texts_of_people(args.ift, args.ranked)
    record = read_existing(RECORD)
    done = {row["row"] for row in record}
    for row in ROWS:
        if row.name() in done or time.time() > stop:
            continue
        print(row.name(), flush=True)
        record.append(teach(args, row, examples))
        RECORD.parent.mkdir(exist_ok=True)
        write_jsonl(RECORD, record)
        print(write_table(record), flush=True)
    if record:
        print(write_table(record))


if __name__ == "__main__":
    run_command(main)
