"""experiments/harm.py: what a loop costs elsewhere.

    python experiments/harm.py --ift FILE --ranked FILE runs/NAME/M1 runs/NAME/M4

Are the answers of people still likely? Does the model still keep requirements of the kinds that a
run of --world checked never trains on?
In: models, and what people wrote; of it only the fifth that every run holds out.  Out: two tables:
the log-probability of a token of these answers, and the share of the requirements of other kinds
that answers keep. Each has what changed since the first model.
Left out on purpose: what the exam has: length, diversity (distinct2), how many answers end.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from core.chat import Chat
from core.cli import run_command
from core.config import FEW_KINDS, Config, settings_of
from core.device import pick_device, prepare_machine
from core.draw import Sampling
from core.errors import UserError
from core.files import read_ranked
from core.recipe import Recipe
from core.records import Example, by_prompt
from core.start import check_room
from core.statistics import bootstrap_interval
from dpo import reference_logps
from experiments.seeds import markdown_table
from model import load
from sample import load_writer, respond
from worlds.checked import MAX_WORDS, MIN_WORDS, check_answer, exam_prompts, is_short, kinds_of
from worlds.kinds import KINDS
from worlds.people import best_answers, prompts_of, read_ift, split_off_exam

PROMPTS = 256  # with requirements of other kinds
Figures = tuple[list[float], list[int]]  # a sum for each text or prompt, and over how many


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


def answer_logps(folder: str, rows: list[dict], device: torch.device) -> Figures:
    """log p of each answer under the model of a folder, and its tokens. Raises UserError."""
    chat = Chat(folder)
    model = load(folder, device=device)
    examples = [chat.example(row["prompt"], row["response"]) for row in rows]
    longest = max(len(example.prompt) + len(example.response) for example in examples)
    check_room(model.config.max_position_embeddings, longest, 0)
    groups: list[list[Example]] = [[example] for example in examples]
    logps = reference_logps(model, groups, Recipe())[:, 0]  # (E,)
    return logps.tolist(), [len(example.response) for example in examples]


def prompts_of_other_kinds(rows: list[dict], kinds: str) -> list[str]:
    """Held-out instructions with requirements that a run with these --kinds never trains on.

    As in the checked world they are those with a short answer; [] where there is none.
    """
    seen, _ = kinds_of(kinds)
    others = [kind for kind in KINDS if kind not in seen]
    short = list(filter(is_short, rows))
    return exam_prompts(prompts_of(short), PROMPTS, others) if short else []


def requirements_kept(folder: str, prompts: list[str], device: torch.device) -> Figures:
    """For each prompt the requirements that its answers keep, and how many they could keep.

    An answer that never ended keeps none.
    """
    settings = Config(**settings_of("checked"))
    sampling = Sampling(
        settings.max_new_tokens, settings.temperature, settings.top_p, n=settings.exam_n
    )
    answers = respond(load_writer(folder, device), prompts, sampling, key="other kinds")
    kept = []
    asked = []
    for group in by_prompt(answers):
        checks = []
        for y in group:
            found = check_answer(y.prompt, y.response)
            checks += [y.finished and is_kept for is_kept in found.values()]
        kept.append(float(sum(checks)))
        asked.append(len(checks))
    return kept, asked


def cell(part: list[float], whole: list[int]) -> str:
    """The sum of the first over that of the second, with its interval over answers."""
    low, high = bootstrap_interval(part, whole)
    return f"{sum(part) / sum(whole):+.3f} ({low:+.3f} to {high:+.3f})"


def comparison(models: list[str], figures: list[Figures], title: str) -> str:
    """A table: each model's figure, and how much larger it is than that of the first."""
    first, _ = figures[0]
    lines = []
    for folder, (values, sizes) in zip(models, figures, strict=True):
        changes = [now - before for now, before in zip(values, first, strict=True)]
        lines.append([folder, str(len(values)), cell(values, sizes), cell(changes, sizes)])
    return markdown_table(["model", "texts", title, "change"], lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("models", nargs="+", help="model directories; the first is the baseline")
    parser.add_argument("--ift", required=True, help="instruction data of people")
    parser.add_argument("--ranked", help="ranked answers; the best of each group counts")
    parser.add_argument("--kinds", default=FEW_KINDS, help="that training saw, as for train.py")
    args = parser.parse_args()
    prepare_machine()
    rows = held_out_answers(args.ift, args.ranked)
    if not rows:
        raise UserError(f"{args.ift} has no answer that runs hold out; give more rows.")
    device = pick_device("auto")
    prompts = prompts_of_other_kinds(rows, args.kinds)
    people = [answer_logps(folder, rows, device) for folder in args.models]
    print(comparison(args.models, people, "log p a token"), "\n")
    if not prompts:
        print(
            f"No held-out answer has {MIN_WORDS} to {MAX_WORDS} words: other kinds were not asked."
        )
        return
    others = [requirements_kept(folder, prompts, device) for folder in args.models]
    print(comparison(args.models, others, "kept of other kinds"))


if __name__ == "__main__":
    run_command(main)
