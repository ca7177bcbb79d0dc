"""core/config.py: every setting of a run: the command line of train.py, its --help and its record.

In: the command line.  Out: a `Config`. Defaults follow the paper where a small checkpoint bears
them. `toy` is the default for a model of the toy world: its data are a hundred times smaller, and
its weights may move much further. `checked` is the default for --world checked, which has short
answers and a truth.
"""

import argparse
from collections.abc import Sequence
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from typing import NamedTuple, get_args

from core.errors import UserError
from core.files import read_json

SEED = Path(__file__).resolve().parent.parent / "seed"  # the toy's base model
STYLES = ("auto", "verdict", "score")
WEIGHTS = ("examples", "tokens")
READINGS = ("sampled", "expected", "checklist", "contrast")
WORLDS = ("people", "checked")
# of requirement: what a small model learns to judge from a thousand questions
FEW_KINDS = "few words,no commas,title,end phrase,postscript,question"
Bounds = tuple[float, float]  # the least and the largest value
COUNT = (1, 1_000_000)
AMOUNT = (0, 1_000_000)
TIMES = (1, 1000)
SHARE = (0.01, 1)
LORA_RATE = 10  # adapters learn at so many times the rate of weights (docs/scale.md)
WARMTH = (0, 100)  # of temperatures
RATE = (1e-12, 1)


def setting(
    default, text: str, *, toy=None, checked=None, within: Bounds | None = None, one_of=()
) -> Field:
    """A field with its help text, the defaults of worlds that differ, and what is allowed."""
    metadata = {"help": text, "toy": default if toy is None else toy}
    metadata["checked"] = default if checked is None else checked
    return field(default=default, metadata=metadata | {"within": within, "one_of": one_of})


@dataclass(frozen=True)
class Config:
    """Every setting. A name is a flag: `n_prompts` is --n-prompts."""

    # ---- the run ----
    model: str | None = setting(None, "base model M_0, a Hugging Face directory (default: seed/)")
    template_arg: str | None = setting(
        None, "variables of the chat template: NAME=VALUE, separated by commas"
    )
    run: str | None = setting(None, "the files go to runs/NAME (default: the model's name, or toy)")
    iters: int = setting(3, "iterations; 3 make M_2, M_3 and M_4", within=(0, 1000))
    keep_best: bool = setting(False, "end where M_t loses to the model before it, judged by M_1")
    seed: int = setting(0, "names all randomness; the same seed draws the same texts")

    # ---- what people wrote (docs/real-model.md) ----
    # The toy brings its own. Of the files a fifth is held out for the exam.
    world: str = setting("people", "checked: requirements that a program checks", one_of=WORLDS)
    kinds: str | None = setting(
        None, "of requirement, for --world checked: all, or names and commas", checked=FEW_KINDS
    )
    ift: str | None = setting(None, "instruction data: JSONL in one of four formats")
    oasst: str | None = setting(None, "Open Assistant trees: instruction data and ranked answers")
    lang: str = setting("en", "language taken from --oasst")
    eft: str | None = setting(None, 'judge data: JSONL of {"prompt", "response", "verdict"}')
    ranked: str | None = setting(None, "ranked answers: judge data; a fifth tests the judge")
    prompts: str | None = setting(None, "new prompts from this file; the model writes none")
    seed_limit: int = setting(200, "most IFT examples", toy=2000, checked=300, within=AMOUNT)
    eft_limit: int | None = setting(
        None, "most EFT examples (default: seed-limit)", checked=1000, within=AMOUNT
    )
    exam: int = setting(
        32, "held-out prompts, and groups of ranked answers", toy=400, checked=64, within=COUNT
    )
    exam_n: int = setting(1, "answers to each of these prompts", checked=4, within=COUNT)

    # ---- new prompts and answers ----
    # M_t writes both.
    n_prompts: int = setting(256, "new prompts an iteration", toy=1024, checked=128, within=COUNT)
    rouge: float = setting(
        0.7, "ROUGE-L that refuses a new prompt; 1: copies only", toy=1.0, within=SHARE
    )
    n: int = setting(4, "answers to each prompt", checked=6, within=(2, 1000))
    prompt_temperature: float = setting(0.6, "of new prompts", toy=1.0, checked=0.8, within=WARMTH)
    temperature: float = setting(0.7, "of answers", toy=1.0, within=WARMTH)
    top_p: float = setting(0.9, "nucleus of everything that is sampled", toy=0.95, within=SHARE)
    max_new_tokens: int = setting(
        192, "of an answer or a prompt", toy=40, checked=128, within=COUNT
    )

    # ---- the judge ----
    # It is M_t itself.
    rubric: str | None = setting(None, "judge prompt, a text with {prompt} and {response}")
    judge: str = setting(
        "sampled", "how a score is read (docs/real-model.md)", checked="checklist", one_of=READINGS
    )
    k: int = setting(3, "verdicts on each answer; their mean is its reward", within=TIMES)
    judge_temperature: float = setting(0.7, "of verdicts", within=WARMTH)
    max_verdict_tokens: int = setting(192, "limit of a verdict", toy=32, within=COUNT)
    eft_style: str = setting("auto", "judge data from ranked answers", one_of=STYLES)

    # ---- SFT ----
    sft_epochs: int = setting(1, "passes over the seed data", within=TIMES)
    sft_lr: float | None = setting(
        None, "default: 5.5e-6 x 8192 / width", toy=2e-3, checked=2e-4, within=RATE
    )
    sft_weight: str = setting("examples", "what weighs the same", toy="tokens", one_of=WEIGHTS)

    # ---- pairs and DPO ----
    near: float | None = setting(
        None,
        "pairs with this share of the widest gap: the nearest in length",
        checked=0.7,
        within=(0, 1),
    )
    confident: float = setting(
        1.0, "share of the pairs that is used: the widest gaps", checked=0.75, within=SHARE
    )
    beta: float = setting(0.1, "how strongly DPO holds on to M_t", toy=0.3, within=AMOUNT)
    nll: float = setting(
        0.0, "weight of the chosen answer's NLL", toy=1.0, checked=2.0, within=AMOUNT
    )
    dpo_epochs: int = setting(1, "passes over the pairs", toy=3, checked=2, within=TIMES)
    dpo_lr: float | None = setting(
        None, "default: 1e-6 x 8192 / width", toy=1e-3, checked=1e-4, within=RATE
    )
    batch_size: int = setting(16, "examples or pairs per step", toy=32, checked=8, within=COUNT)
    dropout: float = setting(
        0.0, "on the residual branches, in training (paper: 0.1)", within=(0, 0.9)
    )
    replay: int = setting(0, "seed judge examples in each DPO step", toy=24, within=AMOUNT)

    # ---- sizes of the machine ----
    # They change speed and memory. They do not change the method.
    slots: int = setting(128, "texts that are written side by side", toy=1024, within=COUNT)
    tokens: int = setting(1024, "tokens of one pass in training", toy=2048, within=COUNT)
    lora: int | None = setting(
        None, "rank of adapters; they learn, not the weights (docs/scale.md)", within=TIMES
    )
    split: int = setting(1, "processes that write with one copy of M_t together", within=(1, 64))
    recompute: bool = setting(False, "keep less in training; a quarter slower")
    device: str = setting("auto", "auto, cpu, cuda or mps")
    dtype: str = setting(
        "auto", "arithmetic: auto, fp32, bf16; weights that learn stay fp32", toy="fp32"
    )

    def __post_init__(self):
        for f in fields(self):
            check_setting(f, getattr(self, f.name))
        # the run's folder lies in runs/
        if self.run is not None and (not self.run.strip(" .") or set(self.run) & {*"/\\\0"}):
            raise UserError(f"--run takes the name of one folder in runs/, not {self.run!r}.")

    def most_eft(self) -> int:
        """The most judge examples."""
        return self.seed_limit if self.eft_limit is None else self.eft_limit


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def check_setting(f: Field, value: object) -> None:
    """Raises UserError where a value is not allowed."""
    one_of = f.metadata["one_of"]
    if one_of and value not in one_of:
        raise UserError(f"{flag(f.name)} must be one of {', '.join(one_of)}, not {value!r}.")
    if value is None or f.metadata["within"] is None:
        return
    least, most = f.metadata["within"]
    # what is not a number fails every comparison
    if not value >= least:
        raise UserError(f"{flag(f.name)} must be at least {least}, not {value}.")
    if not value <= most:
        raise UserError(f"{flag(f.name)} must be at most {most}, not {value}.")


def settings_of(world: str) -> dict:
    """Every setting's default in the world "toy" or "checked"."""
    return {f.name: f.metadata[world] for f in fields(Config)}


# ---- the command line of train.py ----


class CommandLine(NamedTuple):
    config: Config
    toy: bool  # the model belongs to the toy world
    json: bool  # print one JSON object, and everything else to stderr


def parse(arguments: Sequence[str], description: str) -> CommandLine:
    """The settings of a command line. What it leaves out has its default, or the toy's.

    Raises UserError where settings do not go together.
    """
    parser = argparse.ArgumentParser(description=description, allow_abbrev=False)
    for f in fields(Config):
        add_flag(parser, f)
    parser.add_argument("--json", action="store_true", help="print the table as one JSON object")
    chosen = vars(parser.parse_args(arguments))
    as_json = chosen.pop("json")
    folder = Path(chosen.get("model", SEED))
    chosen.setdefault("run", "toy" if folder == SEED else folder.resolve().name)
    toy = read_json(folder / "config.json").get("world") == "toy"
    defaults = settings_of("toy") if toy else {}
    if chosen.get("world") == "checked":
        if toy:
            raise UserError("--world checked is for real models (--model DIR); the toy is a world.")
        defaults = settings_of("checked")
    if chosen.get("lora") is not None:
        for name in ("sft_lr", "dpo_lr"):
            rate = defaults.get(name)
            defaults[name] = None if rate is None else LORA_RATE * rate
    config = Config(**(defaults | chosen))
    if toy and (config.ranked or config.oasst):
        raise UserError(
            "the toy world brings its own ranked answers; --ranked and --oasst are for real models "
            "(--model DIR)."
        )
    return CommandLine(config, toy, as_json)


def add_flag(parser: argparse.ArgumentParser, f: Field) -> None:
    """One setting as a flag, with its defaults in the help. What is not given stays away."""
    text = f.metadata["help"]
    if f.metadata["one_of"]:
        text += f": {', '.join(f.metadata['one_of'])}"
    if f.default is not None:
        text += f" [{f.default}]"
    for world in ("toy", "checked"):
        if f.metadata[world] != f.default:
            text += f" [{world}: {f.metadata[world]}]"
    if f.type is bool:
        parser.add_argument(flag(f.name), action="store_true", default=argparse.SUPPRESS, help=text)
        return
    kinds = get_args(f.type) or (f.type,)  # (str, NoneType) of `str | None`
    parser.add_argument(flag(f.name), type=kinds[0], default=argparse.SUPPRESS, help=text)
