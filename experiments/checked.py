"""experiments/checked.py: the loop and its controls on a real model, in the checked world.

    python experiments/checked.py --model DIR --ift FILE --ranked FILE --seeds 3 --minutes 120

In: a checkpoint and the files of people.  Out: runs/ck-ROW-sSEED; a table and a figure in
docs/checked.md, .json and .svg; and every prompt and answer of the exam in
runs/checked-answers.jsonl.gz. --name and --page give other names, for other settings.
All rows of a seed share M_1, and the prompts and answers of the first round. Every run, and every
exam of a model, is a piece: what is there is not made again, and no piece starts after --minutes.
So hours of work can be done in parts, and the table always holds what there is.
"""

import argparse
import gzip
import json
import re
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from operator import itemgetter
from pathlib import Path
from typing import TextIO

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from core.checklist import instruction_of
from core.cli import run_command
from core.config import parse
from core.device import pick_device, pick_dtype, prepare_machine
from core.draw import Sampling
from core.files import read_existing, read_json, read_jsonl, write_jsonl
from core.statistics import crossed_interval, mean
from experiments.ablations import DOCS, inherit, svg_page
from experiments.seeds import ROOT, markdown_table
from measure.truth import share_by_kind, true_score
from sample import load_writer, respond
from worlds.open_world import open_world
from worlds.world import Exam

PROMPTS = 256  # of the exam; the runs themselves hold it on the first 64
# row -> command, most rounds, and the last stage that it shares with the loop. {M1} is its M_1.
LOOPS = {
    "loop": ("train.py", 3, None),
    # M_1 judges the first round anyway, so its M_2 is the loop's
    "judge stays M_1": ("experiments/variants.py fixed-judge={M1}", 3, "verdicts"),
    "truth as judge": ("experiments/variants.py oracle-judge", 3, "answers"),
}
CONTROLS = {
    "random pairs": ("experiments/variants.py random-judge", 3, "answers"),
    "shortest": ("experiments/variants.py shortest", 3, "answers"),
    "longest": ("experiments/variants.py longest", 1, "answers"),
    "SFT on the chosen": ("experiments/variants.py positive-only", 3, "verdicts"),
    "SFT on own answers": ("experiments/variants.py own-answers", 1, "answers"),
    "pairs by prompt": ("experiments/variants.py by-prompt", 3, "answers"),
}
PAPERS = {
    "DICE": ("experiments/variants.py dice", 1, "answers"),
    # M_1 has no past, so its M_2 is the loop's
    "rejected from M_1": ("experiments/variants.py temporal", 3, "verdicts"),
}
ROWS = LOOPS | CONTROLS | PAPERS
# They come last in a command, so that they win. The truth is certain of every pair.
OWN_SETTINGS = {"truth as judge": ["--confident", "1"]}
MODELS = range(1, 5)
COLOURS = {"loop": "#2f7fd6", "truth as judge": "#d6822f"}
Groups = list[list[dict]]  # prompt -> answers
Models = dict[int, Groups]  # t -> prompt -> answers
Answers = dict[str, dict[int, Models]]  # row -> seed -> models
Label = tuple[int, float, str]  # x and y (downwards) in pixels, text
LINE_HEIGHT = 13  # pixels


def run_of(name: str, row: str, seed: int) -> Path:
    """The run directory of a row."""
    words = row.replace(" ", "-").replace("_", "")
    return Path(f"runs/{name}-{words}-s{seed}")


# ---- pieces of work ----


def settings_words(args: argparse.Namespace) -> list[str]:
    """The part of a command that all runs have in common."""
    words = ["--world", "checked", "--model", args.model, "--ift", args.ift]
    if args.ranked:
        words += ["--ranked", args.ranked]
    return [*words, *args.extra]


def make_run(args: argparse.Namespace, row: str, seed: int, rounds: int) -> None:
    """One row on one seed, up to M_{rounds+1}. Raises SystemExit where it fails."""
    command, _, last = ROWS[row]
    run = run_of(args.name, row, seed)
    # 1) what the row shares with the loop of its seed
    inherit(run, run_of(args.name, "loop", seed), last)
    # 2) the command, as a person would type it
    settings = ["--run", run.name, "--seed", str(seed), "--iters", str(rounds)]
    first_model = run_of(args.name, "loop", seed) / "M1"
    command = command.replace("{M1}", str(first_model))
    words = [*command.split(), *settings, *settings_words(args)]
    words += OWN_SETTINGS.get(row, [])
    print("$ python", *words, flush=True)
    # 3) a process of its own
    done = subprocess.run([sys.executable, ROOT / words[0], *words[1:]])
    if done.returncode:
        sys.exit(f"{run} failed with code {done.returncode}")


def examine_more(args: argparse.Namespace, exam: Exam, row: str, seed: int, t: int) -> None:
    """The answers of M_t to the prompts of the exam that its own run left out."""
    run = run_of(args.name, row, seed)
    path = run / f"exam/more-M{t}.jsonl"
    if path.exists() or not (run / f"exam/M{t}.jsonl").exists():
        return
    # 1) as the run itself held its exam
    settings = read_json(run / "config.json")["settings"]
    first = settings["exam"]
    prompts = exam.prompts[first:]
    sampling = Sampling(
        settings["max_new_tokens"],
        settings["temperature"],
        settings["top_p"],
        n=settings["exam_n"],
        slots=settings["slots"],
    )
    device = pick_device(settings["device"])
    dtype = pick_dtype(settings["dtype"], device)
    writer = load_writer(str(run / f"M{t}"), device, dtype)
    answers = respond(writer, prompts, sampling, key=f"{seed} exam more")
    # 2) rows like those of the run's exam, numbered on from them
    rows = []
    for y in answers:
        row_of_answer = y.row()
        row_of_answer["id"] = y.id + first
        row_of_answer["prompt"] = y.prompt
        row_of_answer["true_score"] = true_score(exam, y)
        rows.append(row_of_answer)
    write_jsonl(path, rows)


def work(args: argparse.Namespace, exam: Exam) -> None:
    """Every piece that is missing, in the order in which a reader would want them."""
    stop = time.time() + 60 * args.minutes
    for row, seed, rounds in pieces_of_work(args):
        if time.time() > stop:
            print(f"{args.minutes} minutes are over; the same command goes on.")
            return
        # 1) the run, up to its own exam of the last model
        if not (run_of(args.name, row, seed) / f"exam/M{rounds + 1}.jsonl").exists():
            make_run(args, row, seed, rounds)
        # 2) the rest of the exam
        for t in (rounds, rounds + 1):
            if row == "loop" or t > 1:  # M_1 is the loop's
                examine_more(args, exam, row, seed, t)


def pieces_of_work(args: argparse.Namespace) -> list[tuple[str, int, int]]:
    """(row, seed, rounds): first one round of everything, then the second and the third."""
    pieces = []
    for rounds in (1, 2, 3):
        for seed in range(args.seeds):
            for row in args.rows:
                _, most, _ = ROWS[row]
                if rounds <= most:
                    pieces.append((row, seed, rounds))
    return pieces


# ---- figures ----


def collect(args: argparse.Namespace) -> Answers:
    """All answers of the exam; models whose exam is not complete are left out."""
    answers: Answers = {}
    for row in args.rows:
        for seed in range(args.seeds):
            models = {}
            for t in MODELS:
                owner = "loop" if t == 1 else row  # M_1 is the loop's
                source = run_of(args.name, owner, seed)
                more = read_existing(source / f"exam/more-M{t}.jsonl")
                if more:
                    first = read_jsonl(source / f"exam/M{t}.jsonl")
                    models[t] = grouped(first + more)
            if len(models) > 1:
                answers.setdefault(row, {})[seed] = models
    return answers


def grouped(rows: Sequence[dict]) -> Groups:
    """The answers to each prompt, together."""
    groups: dict[int, list[dict]] = defaultdict(list)
    for row in rows:
        groups[row["id"]].append(row)
    return list(groups.values())


def share_kept(groups: Sequence[Sequence[dict]]) -> list[float]:
    """For each prompt the share of its answers that keep every requirement."""
    shares = []
    for group in groups:
        shares.append(mean(answer["true_score"] == 5 for answer in group))
    return shares


def shares_of(seeds: dict[int, Models], t: int) -> list[list[float]]:
    """`share_kept` of M_t, for each seed that has it."""
    return [share_kept(models[t]) for models in seeds.values() if t in models]


def gain_by_prompt(later: Groups, earlier: Groups) -> list[float]:
    """How much larger the share of each prompt is in the first of two models."""
    gains = []
    for after, before in zip(share_kept(later), share_kept(earlier), strict=True):
        gains.append(after - before)
    return gains


def mean_length(groups: Sequence[Sequence[dict]]) -> float:
    """Tokens an answer."""
    return mean(len(answer["tokens"]) for group in groups for answer in group)


def on_topic(groups: Sequence[Sequence[dict]]) -> float:
    """The share of answers that hold a word of their instruction, of five letters at least.

    The truth asks for requirements only. This is a rough sign that an answer still says something.
    """
    found = []
    for group in groups:
        words = long_words(instruction_of(group[0]["prompt"]))
        if words:
            found += [bool(words & long_words(answer["response"])) for answer in group]
    return mean(found) or 0.0


def long_words(text: str) -> set[str]:
    return set(re.findall(r"\w{5,}", text.lower()))


def figure_cell(of_seeds: Sequence[list[float]]) -> str:
    """Mean, in per cent, with its 95 % interval over seeds and prompts; "-" for no seed."""
    if not of_seeds:
        return "-"
    average = mean(mean(values) for values in of_seeds)
    low, high = crossed_interval(of_seeds)
    return f"{100 * average:.1f} ({100 * low:.1f} to {100 * high:.1f})"


# ---- tables ----


def result_table(answers: Answers) -> str:
    """Each row: perfect answers of M_1 .. M_4, the gain since M_1, length, and answers on topic.

    Gain and the other two are those of the last model that all of its seeds have.
    """
    lines = []
    for row, seeds in answers.items():
        cells = [row, str(len(seeds))]
        for t in MODELS:
            of_seeds = shares_of(seeds, t)
            cells.append(figure_cell(of_seeds))
            if 0 < len(of_seeds) < len(seeds):
                cells[-1] += f" [{len(of_seeds)} of {len(seeds)} seeds]"
        last = models_of_all(seeds)[-1]
        gains = [gain_by_prompt(models[last], models[1]) for models in seeds.values()]
        cells.append(f"M{last}: {figure_cell(gains)}")
        # length and topic, of the first and of the last model
        cells.append(first_and_last(mean_length, seeds, last))
        cells.append(first_and_last(on_topic, seeds, last, scale=100))
        lines.append(cells)
    head = ["", "seeds", "M1, %", "M2", "M3", "M4", "gain", "tokens", "on topic, %"]
    return markdown_table(head, lines)


def first_and_last(
    measure: Callable[[Groups], float], seeds: dict[int, Models], last: int, scale: int = 1
) -> str:
    """A figure of M_1 and of the last model, each the mean over seeds."""
    first = mean(measure(models[1]) for models in seeds.values())
    final = mean(measure(models[last]) for models in seeds.values())
    return f"{scale * first:.0f} > {scale * final:.0f}"


def models_of_all(seeds: Mapping[int, Iterable[int]]) -> list[int]:
    """The models that every seed has, in order."""
    return sorted(set.intersection(*(set(models) for models in seeds.values())))


def against_loop(answers: Answers) -> str:
    """The loop minus each control, on the seeds that both have, in their last common model."""
    lines = []
    loop = answers.get("loop", {})
    for row, seeds in answers.items():
        shared = seeds.keys() & loop.keys()
        if row == "loop" or not shared:
            continue  # it is not its own control
        common = {seed: seeds[seed].keys() & loop[seed].keys() for seed in shared}
        t = models_of_all(common)[-1]
        differences = []
        for seed in sorted(shared):
            differences.append(gain_by_prompt(loop[seed][t], seeds[seed][t]))
        lines.append([row, f"M{t}", str(len(differences)), figure_cell(differences)])
    return markdown_table(["the loop minus", "model", "seeds", "points"], lines)


def kinds_table(answers: Answers, exam: Exam) -> str:
    """Share of the answers that keep a kind of requirement, in the first and the last model."""
    columns = {}
    for row, seeds in answers.items():
        last = models_of_all(seeds)[-1]
        for t in [1, last] if row == "loop" else [last]:
            groups = [group for models in seeds.values() for group in models[t]]
            of_seeds = [answer for group in groups for answer in group]
            columns[f"{row} M{t}"] = share_by_kind(exam, of_seeds)
    kinds = set()
    for column in columns.values():
        kinds |= column.keys()
    lines = []
    # those that training never sees come last
    for kind in sorted(kinds, key=lambda name: (name in exam.unseen, name)):
        title = kind
        if kind in exam.unseen:
            title += " (never trained on)"
        cells = [f"{100 * column[kind]:.0f}" for column in columns.values()]
        lines.append([title, *cells])
    return markdown_table(["kept, %", *columns], lines)


# ---- files ----


def result_figure(answers: Answers) -> str:
    """An SVG: perfect answers over the models, the loop in colour and the controls in grey."""
    parts = []
    # 1) the grid
    for tick in range(0, 101, 20):
        y = height_of(tick / 100)
        parts.append(f'<path d="M40 {y}H440" stroke="#8884"/>')
        parts.append(f'<text x="8" y="{y + 4}">{tick}</text>')
    for t in MODELS:
        parts.append(f'<text x="{place_of(t) - 8}" y="270">M{t}</text>')
    # 2) a line for each row, through the models that all of its seeds have
    labels = []
    for row, seeds in answers.items():
        colour = COLOURS.get(row, "#999")
        points = []
        for t in models_of_all(seeds):
            share = mean(mean(values) for values in shares_of(seeds, t))
            points.append((place_of(t), height_of(share)))
        path = " ".join(f"{x},{y}" for x, y in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        labels.append((*points[-1], row))
    # 3) the names, where the lines end
    for x, y, row in apart(labels):
        colour = COLOURS.get(row, "#999")
        parts.append(f'<text x="{x + 6}" y="{y + 4}" style="fill:{colour}">{escape(row)}</text>')
    return svg_page(parts, 560, 280)


def apart(labels: Sequence[Label]) -> list[Label]:
    """Labels that end at the same model, moved down until none covers the one above it."""
    placed: list[Label] = []
    lowest: dict[int, float] = {}  # x -> y of the last label there
    for x, own, text in sorted(labels, key=itemgetter(1)):
        # at its own height, or just below the label above it
        y = own
        if x in lowest:
            y = max(own, lowest[x] + LINE_HEIGHT)
        lowest[x] = y
        placed.append((x, y, text))
    return placed


def place_of(t: int) -> int:
    """Where a model stands from left to right, in pixels."""
    return 60 + 120 * (t - 1)


def height_of(share: float) -> float:
    """Where a share from 0 to 1 stands from top to bottom, in pixels."""
    return round(250 - 220 * share, 1)


def write_results(answers: Answers, exam: Exam, page: str) -> None:
    """PAGE.md, .json and .svg in docs/, and every answer in runs/."""
    tables = [result_table(answers), against_loop(answers), kinds_table(answers, exam)]
    introduction = (
        "# The checked world: all figures\n\n"
        f"{PROMPTS} held-out prompts, 4 answers each: the share of the answers that keep every "
        "requirement, with 95 % intervals over seeds and prompts (bootstrap). On topic: answers "
        "that hold a word of their instruction, of five letters at least. "
        "[real-model.md](real-model.md#the-checked-world-measured) has the command and says what "
        "follows from it.\n\n"
    )
    place = DOCS / page
    place.with_suffix(".md").write_text(introduction + "\n\n".join(tables) + "\n")
    place.with_suffix(".svg").write_text(result_figure(answers))
    record: dict = defaultdict(dict)
    with gzip.open(f"runs/{page}-answers.jsonl.gz", "wt", encoding="utf-8") as file:
        for row, seeds in answers.items():
            for seed, models in seeds.items():
                shares = {}
                for t, groups in models.items():
                    shares[f"M{t}"] = mean(share_kept(groups))
                record[row][f"seed {seed}"] = shares
                write_answers_of(file, models, {"row": row, "seed": seed})
    place.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n")


def write_answers_of(file: TextIO, models: Models, place: dict) -> None:
    """One line an answer. `place` names its row and its seed."""
    for t, groups in models.items():
        for group in groups:
            for answer in group:
                line = place | {"model": f"M{t}"} | answer
                file.write(json.dumps(line) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--model", required=True, help="a Hugging Face directory")
    parser.add_argument("--ift", required=True, help="instructions of people, with answers")
    parser.add_argument("--ranked", help="ranked answers: more instructions, and a test of judges")
    parser.add_argument("--seeds", type=int, default=3, help="seeds 0 .. N-1 [%(default)s]")
    parser.add_argument("--minutes", type=float, default=1e9, help="start no piece after these")
    parser.add_argument("--only", help="rows, separated by ';' [all]")
    parser.add_argument("--name", default="ck", help="runs are runs/NAME-ROW-sSEED [%(default)s]")
    parser.add_argument("--page", default="checked", help="of figures: docs/PAGE.md [%(default)s]")
    parser.add_argument("extra", nargs="*", help="after --: more settings of train.py")
    args = parser.parse_args()
    args.rows = args.only.split(";") if args.only else list(ROWS)
    unknown = set(args.rows) - ROWS.keys()
    if unknown:
        parser.error(f"unknown rows {sorted(unknown)}; the rows are {', '.join(ROWS)}")
    prepare_machine()
    words = settings_words(args)
    words += ["--exam", str(PROMPTS)]
    config = parse(words, "the exam").config
    exam = open_world(config, toy=False).exam
    work(args, exam)
    answers = collect(args)
    if answers:
        write_results(answers, exam, args.page)
        print(result_table(answers), against_loop(answers), sep="\n\n")


if __name__ == "__main__":
    run_command(main)
