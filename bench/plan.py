"""bench/plan.py: how much memory each stage takes on a device, how long it takes, and what fits.

    python bench/plan.py --model DIR_OR_CONFIG --devices 8 --memory 80
    python bench/plan.py --model DIR --memory 4 --dtype fp32 --lora 16 --json plan.json
    python bench/plan.py --table                 # the table of docs/scale.md

In: the sizes in a config.json; no weights are read.  Out: a table, from formulas that
tests/test_plan.py holds against measured peaks on this machine. They add up tensors: a process on a
CPU keeps what is freed, and then takes more (docs/scale.md). Times are those of a device with the
rates of --flops and --bandwidth, at shares of them that are assumed.

Letters: P parameters, L layers, D hidden, I intermediate, H query heads, G key/value heads, K width
of a head, V vocabulary, R rank, b bytes of a number in the arithmetic.
"""

import argparse
import json
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE)]

from core.cli import run_command  # noqa: E402
from core.device import entry_of  # noqa: E402
from core.errors import UserError  # noqa: E402
from core.kernels import LOGITS_AT_ONCE  # noqa: E402
from core.model_config import GPTConfig, read_config  # noqa: E402
from sample import READ_AT_ONCE  # noqa: E402

GB = 2**30
FP32 = 4
CUDA_CONTEXT = 0.6 * GB  # of a process on a GPU; on a CPU the process itself is measured
CPU_WARM = 64e6  # of libraries that a process on a CPU touches in its first step


@dataclass(frozen=True)
class Sizes:
    """What a run works with."""

    prompt: int = 128  # tokens of a prompt
    answer: int = 192  # tokens of an answer, at most
    slots: int = 128
    tokens: int = 1024  # of one pass in training
    recompute: bool = False
    lora: int | None = None
    bytes: int = 2  # b
    devices: int = 1
    split: int = 1  # processes that write with one copy together
    cpu: bool = False


# ---- parameters ----


def block_parameters(c: GPTConfig) -> int:
    """Of one block, without its norms, which are small."""
    attention = c.hidden_size * c.head_dim * (2 * c.num_attention_heads + 2 * c.num_key_value_heads)
    return attention + 3 * c.hidden_size * c.intermediate_size


def embedding_parameters(c: GPTConfig) -> int:
    return c.vocab_size * c.hidden_size


def parameters(c: GPTConfig) -> int:
    """P."""
    heads = 1 if c.tie_word_embeddings else 2
    return c.num_hidden_layers * block_parameters(c) + heads * embedding_parameters(c)


def adapter_parameters(c: GPTConfig, rank: int) -> int:
    """A and B of the seven linear layers of each block."""
    q = c.num_attention_heads * c.head_dim
    kv = c.num_key_value_heads * c.head_dim
    sizes = [
        (c.hidden_size, q),
        (c.hidden_size, kv),
        (c.hidden_size, kv),
        (q, c.hidden_size),
        (c.hidden_size, c.intermediate_size),
        (c.hidden_size, c.intermediate_size),
        (c.intermediate_size, c.hidden_size),
    ]
    return c.num_hidden_layers * rank * sum(i + o for i, o in sizes)


# ---- memory of a stage, in bytes on one device ----


def writing(c: GPTConfig, s: Sizes) -> float:
    """Weights of one copy, the cache, and the logits of a step."""
    blocks = c.num_hidden_layers * block_parameters(c)
    outside_blocks = parameters(c) - blocks
    weights = (blocks / s.split + outside_blocks) * s.bytes
    if s.cpu and c.tie_word_embeddings:
        weights += embedding_parameters(c) * s.bytes  # the head is packed beside the embeddings
    cache = s.slots * (s.prompt + s.answer) * cached_token(c, s) / s.split
    # growing by a step, k (or v) is there twice
    growing = cache / 2
    # probabilities in fp32, twice while they are drawn from
    logits = s.slots * c.vocab_size * 2 * FP32
    reading = READ_AT_ONCE * (4 * c.hidden_size + 3 * c.intermediate_size) * s.bytes
    return weights + cache + max(growing, logits, reading)


def cached_token(c: GPTConfig, s: Sizes) -> int:
    """Bytes of a token in the cache: k and v of every block."""
    return 2 * c.num_hidden_layers * c.num_key_value_heads * c.head_dim * s.bytes


def kept_for_backward(c: GPTConfig, s: Sizes) -> float:
    """Bytes that one token leaves in one block for the backward pass.

    Both norms keep what they read and what they give (4 D); attention q and o (H K each), k and v
    (G K each), and on a CPU its weights (H T); the MLP gate, silu(gate), up and their product.
    """
    heads = 2 * c.head_dim * (c.num_attention_heads + c.num_key_value_heads)
    numbers = 4 * c.hidden_size + heads + 4 * c.intermediate_size
    if s.cpu:
        numbers += c.num_attention_heads * row_of(s)
    if s.lora:
        numbers += 7 * s.lora
    return numbers * s.bytes


def row_of(s: Sizes) -> int:
    """Tokens of a row: a prompt with both of its answers."""
    return s.prompt + 2 * s.answer


def activations(c: GPTConfig, s: Sizes) -> float:
    """What a pass takes, beyond weights, gradients and moments.

    All blocks stand when the head is on its way. With --recompute it is the input of each, and
    later one block, with half as much for its gradients.
    """
    tokens = max(s.tokens, row_of(s))
    block = tokens * kept_for_backward(c, s)
    head = head_in_training(c, s)
    if s.recompute:
        inputs = tokens * c.num_hidden_layers * c.hidden_size * s.bytes
        return inputs + max(head, 1.5 * block)
    return c.num_hidden_layers * block + head


def head_in_training(c: GPTConfig, s: Sizes) -> float:
    """A chunk of logits, and what becomes their sum, or the gradient of the head."""
    responses = max(s.tokens, row_of(s)) * 2 * s.answer / row_of(s)
    chunk = min(LOGITS_AT_ONCE, responses * c.vocab_size) * FP32
    gradient = 0 if s.lora else embedding_parameters(c) * FP32
    return chunk + max(chunk, gradient)


def training(c: GPTConfig, s: Sizes) -> float:
    """DPO: weights, gradients and both moments, over the devices; then what a pass takes."""
    if s.lora:
        frozen = parameters(c) * s.bytes
        learning = 4 * FP32 * adapter_parameters(c, s.lora)
        held = (frozen + learning) / s.devices
    else:
        held = 4 * FP32 * parameters(c) / s.devices
        if s.bytes < FP32 and s.devices == 1:
            held += parameters(c) * s.bytes  # autocast keeps the weights of a pass in bf16
    if s.devices > 1:
        # the block that works, the one that comes next, and what is outside the blocks
        unit = 2 * block_parameters(c) + embedding_parameters(c) * (2 - c.tie_word_embeddings)
        held += unit * (s.bytes + (0 if s.lora else FP32))
    return held + activations(c, s)


STAGES = {"write and judge": writing, "train": training}


def process(s: Sizes) -> float:
    """The program itself."""
    if not s.cpu:
        return CUDA_CONTEXT
    return CPU_WARM + (entry_of("/proc/self/status", "VmRSS") or 0.3 * GB)


def peaks(c: GPTConfig, s: Sizes) -> dict[str, float]:
    """Stage -> bytes on one device."""
    return {stage: process(s) + formula(c, s) for stage, formula in STAGES.items()}


# ---- what fits ----


def that_fit(c: GPTConfig, s: Sizes, memory: float) -> Sizes | None:
    """The largest slots and tokens that fit, and --recompute if needed; None where nothing does.

    Each is lowered by halves, down to 16 slots and one row of tokens.
    """
    for recompute in (True,) if s.recompute else (False, True):
        tried = replace(s, recompute=recompute)
        tokens = s.tokens
        while tokens >= min(s.tokens, row_of(s)):
            tried = replace(tried, tokens=tokens)
            if peaks(c, tried)["train"] <= memory:
                return fit_slots(c, tried, memory)
            tokens //= 2
    return None


def fit_slots(c: GPTConfig, s: Sizes, memory: float) -> Sizes | None:
    slots = s.slots
    while slots >= 16:
        tried = replace(s, slots=slots)
        found = peaks(c, tried)
        if found["write and judge"] <= memory:
            return tried
        slots //= 2
    return None


# ---- time ----


@dataclass(frozen=True)
class Rates:
    """What a device does, and the shares of it that the program reaches."""

    flops: float = 400e12  # a second, dense, in the dtype of the arithmetic
    bandwidth: float = 3e12  # bytes a second
    reads: float = 0.5  # share of the FLOP/s while prompts are read
    trains: float = 0.4
    decodes: float = 0.6  # share of the bandwidth


@dataclass(frozen=True)
class Amounts:
    """Of one iteration."""

    prompts: int = 256
    n: int = 4
    k: int = 3
    verdict: int = 96  # tokens of a verdict
    few_shot: int = 700  # tokens read for a new prompt
    rubric: int = 450


def iteration(c: GPTConfig, s: Sizes, amounts: Amounts, rates: Rates) -> dict[str, float]:
    """Stage -> seconds, with the work dealt over the devices."""
    a = amounts
    groups = s.devices / s.split
    answers = a.prompts * a.n
    judged = a.rubric + s.prompt + s.answer
    pairs = a.prompts * 0.8
    step_passes = 2 if s.lora else 3  # forward, and backward by inputs and (not frozen) weights
    tokens = pairs * row_of(s) * (step_passes + 1)  # and once for the reference
    return {
        "prompts": writing_time(c, s, rates, 1.4 * a.prompts / groups, a.few_shot, s.answer / 4),
        "answers": writing_time(c, s, rates, answers / groups, s.prompt / a.n, s.answer),
        "verdicts": writing_time(c, s, rates, answers * a.k / groups, judged / a.k, a.verdict),
        "DPO": tokens * 2 * parameters(c) / (rates.flops * rates.trains) / s.devices,
    }


def writing_time(
    c: GPTConfig, s: Sizes, rates: Rates, texts: float, read: float, written: float
) -> float:
    """Seconds for so many texts, each with so many tokens read and written.

    A decode step reads the weights and half of a full cache, or is bound by its arithmetic.
    """
    flops_a_token = 2 * parameters(c) / s.split
    reading = texts * read * flops_a_token / (rates.flops * rates.reads)
    slots = min(s.slots, max(1.0, texts))
    cache = slots * (s.prompt + s.answer) / 2 * cached_token(c, s)
    weights = parameters(c) * s.bytes
    by_memory = (weights + cache) / s.split / (rates.bandwidth * rates.decodes)
    by_arithmetic = slots * flops_a_token / (rates.flops * rates.reads)
    steps = texts * written / slots
    return reading + steps * max(by_memory, by_arithmetic)


# ---- command ----

# vocabulary, D, I, L, H, G, K, tied
SHAPES = {
    "0.1B": (49152, 576, 1536, 30, 9, 3, 64, True),
    "1B": (128256, 2048, 8192, 16, 32, 8, 64, True),
    "8B": (128256, 4096, 14336, 32, 32, 8, 128, False),
    "70B": (128256, 8192, 28672, 80, 64, 8, 128, False),
}
SETTINGS = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")
SETTINGS += ("num_attention_heads", "num_key_value_heads", "head_dim", "tie_word_embeddings")


def shape_of(name: str) -> GPTConfig:
    """One of SHAPES."""
    return GPTConfig(**dict(zip(SETTINGS, SHAPES[name], strict=True)))


def flags_of(s: Sizes) -> str:
    """The sizes as flags of train.py."""
    flags = [f"--slots {s.slots}", f"--tokens {s.tokens}"]
    flags += ["--recompute"] if s.recompute else []
    flags += [f"--lora {s.lora}"] if s.lora else []
    flags += [f"--split {s.split}"] if s.split > 1 else []
    return " ".join(flags)


def print_table(memory: float, rates: Rates) -> None:
    """Four sizes on 1, 8 and 64 devices, with all weights and with adapters of rank 16."""
    print("| model | devices | trained | write, GB | train, GB | settings | minutes an iteration |")
    print("|---|---|---|---|---|---|---|")
    for name in SHAPES:
        c = shape_of(name)
        for devices in (1, 8, 64):
            for lora in (None, 16):
                print_row(name, c, Sizes(devices=devices, lora=lora), memory, rates)


def print_row(name: str, c: GPTConfig, s: Sizes, memory: float, rates: Rates) -> None:
    """One row; of what does not fit, with two, four or eight devices to a copy."""
    fitting = None
    for split in (1, 2, 4, 8):
        if fitting is None and split <= s.devices:
            fitting = that_fit(c, replace(s, split=split), memory)
    used = fitting or replace(s, recompute=True, split=min(8, s.devices))
    found = [f"{size / GB:.0f}" for size in peaks(c, used).values()]
    trained = f"adapters of {s.lora}" if s.lora else "all weights"
    settings = "does not fit"
    minutes = "-"
    if fitting is not None:
        settings = flags_of(replace(used, lora=None))  # it has a column of its own
        minutes = f"{sum(iteration(c, used, Amounts(), rates).values()) / 60:.1f}"
    cells = [name, str(s.devices), trained, *found, settings, minutes]
    print("| " + " | ".join(cells) + " |")


def show(c: GPTConfig, s: Sizes, memory: float, rates: Rates) -> dict:
    """Everything about one model on so many devices, printed and returned."""
    print(f"{parameters(c) / 1e9:.2f}B parameters, {s.devices} devices of {memory / GB:.0f} GB")
    fitting = that_fit(c, s, memory)
    used = fitting or replace(s, recompute=True)
    found = peaks(c, used)
    for stage, size in found.items():
        print(f"  {stage:<16} {size / GB:8.2f} GB" + ("" if size <= memory else "  too much"))
    if fitting is None:
        print("  does not fit: take --lora, more devices, or a smaller model")
        return {"fits": False, "peaks": found}
    launch = f"torchrun --nproc-per-node {min(8, s.devices)} --" if s.devices > 1 else "python"
    print(f"  {launch} train.py --model DIR {flags_of(used)}")
    times = iteration(c, used, Amounts(), rates)
    told = ", ".join(f"{stage} {seconds / 60:.1f}" for stage, seconds in times.items())
    print(f"  minutes of an iteration (256 prompts, N 4, K 3): {told}")
    return {"fits": True, "peaks": found, "settings": asdict(used), "seconds": times}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--model", help="a checkpoint, or its config.json")
    parser.add_argument("--table", action="store_true", help="four sizes on 1, 8 and 64 devices")
    parser.add_argument("--devices", type=int, default=1, help="[%(default)s]")
    parser.add_argument("--memory", type=float, default=80, help="GB of one device [%(default)s]")
    parser.add_argument("--dtype", choices=("bf16", "fp32"), default="bf16", help="[%(default)s]")
    parser.add_argument("--lora", type=int, help="rank of adapters")
    parser.add_argument("--split", type=int, default=1, help="as of train.py [%(default)s]")
    parser.add_argument("--cpu", action="store_true", help="the device is this machine")
    parser.add_argument("--prompt", type=int, default=128, help="tokens [%(default)s]")
    parser.add_argument("--answer", type=int, default=192, help="tokens [%(default)s]")
    parser.add_argument("--slots", type=int, default=128, help="at most [%(default)s]")
    parser.add_argument("--tokens", type=int, default=1024, help="at most [%(default)s]")
    parser.add_argument("--flops", type=float, default=4e14, help="a second [%(default)s]")
    parser.add_argument("--bandwidth", type=float, default=3e12, help="bytes/s [%(default)s]")
    parser.add_argument("--json", help="write everything there too")
    args = parser.parse_args()
    if min(args.devices, args.memory, args.slots, args.tokens, args.prompt, args.answer) <= 0:
        raise UserError("--devices, --memory and all sizes must be above 0.")
    rates = Rates(flops=args.flops, bandwidth=args.bandwidth)
    if args.table:
        print_table(args.memory * GB, rates)
        return
    if args.model is None:
        raise UserError("--model or --table is missing.")
    folder = Path(args.model)
    config = read_config(folder.parent if folder.is_file() else folder)
    sizes = Sizes(
        prompt=args.prompt,
        answer=args.answer,
        slots=args.slots,
        tokens=args.tokens,
        lora=args.lora,
        split=args.split,
        bytes=FP32 if args.dtype == "fp32" else 2,
        devices=args.devices,
        cpu=args.cpu,
    )
    result = show(config, sizes, args.memory * GB, rates)
    if args.json:
        Path(args.json).write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    run_command(main)
