"""config.py: every setting of a run, in one dataclass: the command line, its --help, and the record in config.json.

In: the command line.  Out: a `Config`.  Defaults follow the paper where a small checkpoint bears them; for a model of
the toy world, what was not given comes from TOY.
"""

import argparse
import contextlib
import ctypes
import json
import platform
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import get_args

import torch

from data import Chat, UserError, read_json, write_whole

SEED = Path(__file__).parent / "seed"
# The toy needs other numbers than a 70B model: a hundred times smaller data, weights that may move much further.
TOY = dict(
    n_prompts=1024,
    temperature=1.0,
    prompt_temperature=1.0,
    top_p=0.95,
    max_new_tokens=40,
    max_verdict_tokens=32,
    sft_lr=2e-3,
    dpo_lr=1e-3,
    dpo_epochs=3,
    beta=0.3,
    nll=1.0,
    batch_size=32,
    dropout=0.0,
    replay=24,
    rouge=1.0,
    tokens=2048,
    sft_weight="tokens",
    slots=1024,
    exam=400,
    seed_limit=2000,
    dtype="fp32",
)


def setting(default, text: str, least: float | None = None, one_of: tuple[str, ...] | None = None):
    return field(default=default, metadata={"help": text, "least": least, "one_of": one_of})


@dataclass(frozen=True)
class Config:
    """Every setting: this is the command line, its --help, and the record in config.json. Defaults follow the paper."""

    model: str | None = setting(
        None, "base model M_0, a Hugging Face directory (default: the toy model in seed/)"
    )
    run: str | None = setting(
        None,
        "name of the run; its files go to runs/NAME (default: the model's name, toy for seed/)",
    )
    iters: int = setting(3, "trips round the loop; 3 make M_2, M_3 and M_4", 0)
    seed: int = setting(0, "names all randomness; the same seed draws the same texts")
    n_prompts: int = setting(256, "new prompts an iteration", 1)
    n: int = setting(4, "answers to each prompt", 2)
    k: int = setting(3, "verdicts on each answer; their mean is its reward", 1)
    ift: str | None = setting(
        None, "instruction data for SFT, JSONL of prompt/response, Alpaca, messages or ShareGPT"
    )
    oasst: str | None = setting(
        None, "Open Assistant trees, JSONL or .gz: instruction data and ranked answers"
    )
    lang: str = setting("en", "language taken from --oasst")
    eft: str | None = setting(
        None, 'judge data for SFT, JSONL of {"prompt", "response", "verdict"}'
    )
    ranked: str | None = setting(
        None,
        'ranked answers, JSONL of {"prompt", "responses", "ranks"}: judge data, and a fifth held out to test it',
    )
    eft_style: str = setting(
        "auto",
        "judge data from ranked answers: verdict (the model's own, where they agree with people), score (a "
        "bare score line from the rank), auto (verdict where M_0 can write one)",
        one_of=("auto", "verdict", "score"),
    )
    prompts: str | None = setting(
        None, "take new prompts from this file instead of letting the model write them"
    )
    prompt_writer: str | None = setting(
        None, "let this fixed model write the new prompts instead of M_t, a Hugging Face directory"
    )
    rubric: str | None = setting(
        None,
        "judge prompt, a text with {prompt} and {response} (default: the model's rubric.txt, or the built-in)",
    )
    judge: str = setting(
        "sampled",
        "how a score is read: sampled (the mean of K written verdicts) or expected (from the probabilities "
        "of the digits after 'Score:', without a verdict)",
        one_of=("sampled", "expected"),
    )
    judge_model: str | None = setting(
        None,
        "let this fixed model judge instead of M_t, a Hugging Face directory; oracle in the toy world",
    )
    temperature: float = setting(0.7, "of answers", 0)
    top_p: float = setting(0.9, "of everything that is sampled", 0.01)
    judge_temperature: float = setting(0.7, "of verdicts", 0)
    prompt_temperature: float = setting(0.6, "of new prompts", 0)
    rouge: float = setting(
        0.7,
        "refuse a new prompt whose ROUGE-L with an earlier one reaches this; 1 refuses copies only",
    )
    max_new_tokens: int = setting(192, "limit of an answer or a prompt", 1)
    max_verdict_tokens: int = setting(192, "limit of a verdict", 1)
    seed_limit: int = setting(200, "at most this many IFT and this many EFT examples", 0)
    no_eft: bool = setting(
        False, "leave out all judge examples; the paper's judge then cannot keep the format"
    )
    sft_epochs: int = setting(1, "passes over the seed data", 1)
    sft_lr: float | None = setting(
        None,
        "peak learning rate of SFT, falls to a fifth [the paper's 5.5e-6 x 8192 / hidden size]",
    )
    sft_weight: str = setting(
        "examples",
        "what weighs the same in the SFT loss: tokens, or examples (else the few digits of a short "
        "verdict drown among the words of the answers)",
        one_of=("examples", "tokens"),
    )
    beta: float = setting(0.1, "of DPO: how dearly it pays to leave the reference M_t", 0)
    loss: str = setting(
        "dpo", "of the pairs: dpo, or ipo, which stops widening the margin", one_of=("dpo", "ipo")
    )
    ref: str = setting(
        "prev", "reference model of DPO: prev is M_t, seed keeps M_1", one_of=("prev", "seed")
    )
    label_smoothing: float = setting(
        0.0, "believed share of pairs that are the wrong way round (cDPO)", 0
    )
    cream: bool = setting(
        False, "smooth labels by how far the rankings of M_t and M_t-1 disagree (CREAM)"
    )
    length_control: float = setting(
        0.0,
        "shortest of the best against longest of the worst; rewards within this share of their range "
        "count as equal (Meta-Rewarding)",
        0,
    )
    positive_only: bool = setting(
        False, "no DPO: SFT on the best answers (the variant that failed in the paper)"
    )
    meta: bool = setting(
        False, "also train the judge on its own verdicts: nearest to the mean over farthest from it"
    )
    nll: float = setting(
        0.0,
        "weight of the chosen answer's negative log-prob in DPO (Iterative RPO); 0 is plain DPO",
        0,
    )
    dpo_epochs: int = setting(1, "passes over the pairs", 1)
    dpo_lr: float | None = setting(
        None, "peak learning rate of DPO, falls to a tenth [the paper's 1e-6 x 8192 / hidden size]"
    )
    batch_size: int = setting(16, "examples or pairs a step", 1)
    dropout: float = setting(0.0, "on the residual branches, in training (paper: 0.1)", 0)
    replay: int = setting(
        0,
        "judge examples of the seed data mixed into each DPO step, so that judging is not forgotten",
        0,
    )
    tokens: int = setting(
        1024, "tokens of one forward and backward pass; lower it when memory is short", 1
    )
    recompute: bool = setting(
        False,
        "keep less in training and compute it again in the backward pass: a quarter slower, for longer texts "
        "or larger models",
    )
    slots: int = setting(128, "texts written side by side", 1)
    exam: int = setting(
        32,
        "held-out prompts and held-out groups of ranked answers that each model is measured on",
        1,
    )
    device: str = setting("auto", "auto, cpu, cuda or mps")
    dtype: str = setting("auto", "arithmetic: auto, fp32 or bf16; weights stay fp32")

    def __post_init__(self):
        for f in fields(self):
            value, flag, least, one_of = (
                getattr(self, f.name),
                f"--{f.name.replace('_', '-')}",
                f.metadata["least"],
                f.metadata["one_of"],
            )
            if least is not None and value < least:
                raise UserError(f"{flag} must be at least {least}, not {value}.")
            if one_of and value not in one_of:
                raise UserError(f"{flag} must be one of {', '.join(one_of)}, not {value!r}.")


def parse() -> tuple[Config, argparse.Namespace]:
    """The command line. What was not given comes from TOY for a model of the toy world, else from Config."""
    parser = argparse.ArgumentParser(
        description="Self-Rewarding Language Models: answer, judge, choose, DPO, and round again.",
        allow_abbrev=False,
    )
    for f in fields(Config):
        default = ("" if f.default is None else f" [{f.default}]") + (
            f" [toy: {TOY[f.name]}]" if f.name in TOY else ""
        )
        kind = (
            {"action": "store_true"}
            if f.type is bool
            else {"type": (get_args(f.type) or (f.type,))[0]}
        )
        parser.add_argument(
            "--" + f.name.replace("_", "-"),
            default=argparse.SUPPRESS,
            help=f.metadata["help"] + default,
            **kind,
        )
    parser.add_argument(
        "--json",
        action="store_true",
        help="print the table as one JSON object, and everything else to stderr",
    )
    parser.add_argument(
        "--make-seed",
        action="store_true",
        help="train the toy's base model from scratch into --model, and stop",
    )
    given = vars(parser.parse_args())
    folder = Path(given.get("model", SEED))
    toy = read_json(folder / "config.json").get("world") == "toy"
    extra = argparse.Namespace(json=given.pop("json"), make_seed=given.pop("make_seed"), toy=toy)
    given.setdefault("run", "toy" if folder == SEED else folder.resolve().name)
    config = Config(**{**(TOY if toy else {}), **given})
    if toy and (config.ranked or config.oasst):
        raise UserError(
            "the toy world brings its own ranked answers; --ranked and --oasst are for real models (--model DIR)."
        )
    if not toy and config.judge_model == "oracle":
        raise UserError(
            "the oracle knows only the toy world; --judge-model takes a Hugging Face directory."
        )
    if config.cream and config.judge_model:
        raise UserError(
            "--cream compares the rankings of M_t and of M_t-1, so the model must judge itself; leave out --judge-model."
        )
    for other in {config.prompt_writer, config.judge_model} - {None, "oracle"}:
        Chat(other)  # a wrong directory should not be found out after an hour
    return config, extra


# ---- the record ----
def check_run(config: Config, run: Path) -> None:
    """Raises UserError where the run directory was made with other settings."""
    before = read_json(run / "config.json").get("settings", now := asdict(config))
    changed = sorted(
        k for k in {*before, *now} - {"iters", "device"} if before.get(k) != now.get(k)
    )
    if changed:
        raise UserError(
            f"{run} was made with other settings ({', '.join(changed)}); give --run another name or delete it."
        )


def record_run(config: Config, run: Path, device: torch.device) -> None:
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=SEED.parent, capture_output=True, text=True
    ).stdout.strip()
    record = {
        "settings": asdict(config),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": str(device),
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
        "commit": commit or None,
    }
    write_whole(run / "config.json", json.dumps(record, indent=2) + "\n")


# ---- shared by all command lines ----
def pick_device(name: str) -> torch.device:
    """ "auto" is CUDA, else MPS, else the CPU. Raises UserError where the named device is not there."""
    there = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if name == "auto":
        return torch.device(next(kind for kind, found in there.items() if found))
    if not there.get(name.split(":")[0]):
        raise UserError(
            f"device {name!r} is not available here; use one of auto, {', '.join(k for k, f in there.items() if f)}."
        )
    return torch.device(name)


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """ "auto" is bf16 where the hardware multiplies it (CUDA, AMX or AVX512-BF16 CPUs), else fp32. Raises UserError."""
    if name == "auto":
        cpu = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
        fast = (
            torch.cuda.is_bf16_supported()
            if device.type == "cuda"
            else device.type == "cpu" and cpu
        )
        return torch.bfloat16 if fast else torch.float32
    if name not in ("fp32", "bf16"):
        raise UserError(f"dtype {name!r} is not known; use auto, fp32 or bf16.")
    return torch.bfloat16 if name == "bf16" else torch.float32


def asking(description: str, **texts: str) -> argparse.ArgumentParser:
    """The arguments that the command lines of sample.py, judge.py and evaluate.py share; `texts` are others, with their help."""
    parser = argparse.ArgumentParser(description=description, allow_abbrev=False)
    for name, text in texts.items():
        parser.add_argument("--" + name, required=name == "model", help=text)
    parser.add_argument("--temperature", type=float, default=0.7, help="0 is greedy [%(default)s]")
    parser.add_argument("--top-p", type=float, default=0.9, help="nucleus [%(default)s]")
    parser.add_argument(
        "--max-new-tokens", type=int, default=256, help="limit of one text [%(default)s]"
    )
    parser.add_argument("--seed", type=int, default=0, help="same seed, same text [%(default)s]")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")
    return parser


def keep_memory() -> None:
    """Lets glibc keep what it freed. Else each large tensor is new memory, and touching it for the first time costs a third of a step."""
    with contextlib.suppress(AttributeError, OSError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD: smaller ones come from the heap
        mallopt(-1, (1 << 31) - 1)  # M_TRIM_THRESHOLD: which is not given back


def command(main: Callable[[], None]) -> None:
    """Runs a command line; a user's mistake ends in one sentence and exit code 2."""
    torch.set_flush_denormal(True)
    keep_memory()
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        sys.exit(130)
