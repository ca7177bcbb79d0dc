"""bench/gpu.py: how much of a GPU the two inner loops reach.

    python bench/gpu.py --json docs/gpu.json            # Qwen3-0.6B's sizes
    python bench/gpu.py --size toy --device cpu         # to see the script work

The weights are random, of a size that people use: they do not matter for any of it. Decoding one
row is bound by reading the weights, so it is given as a share of the probed copy bandwidth; many
rows and training by arithmetic, as a share of the probed bf16 peak. Medians of --runs.
"""

import argparse
import json
import statistics
import sys
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE)]
from engines import decode, probe, seconds, sizes, wait_for  # noqa: E402

from core.device import multiplies_bf16, pick_device, prepare_machine  # noqa: E402
from core.model_config import GPTConfig  # noqa: E402
from core.records import Example  # noqa: E402
from dpo import Objective, Recipe, dpo  # noqa: E402
from model import GPT  # noqa: E402
from sample import Writer, writing_copy  # noqa: E402

SIZES = {
    "0.6b": dict(
        vocab_size=151936,
        hidden_size=1024,
        intermediate_size=3072,
        num_hidden_layers=28,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
        max_position_embeddings=4096,
    ),
    "135m": dict(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        head_dim=64,
        max_position_embeddings=4096,
    ),
    "toy": dict(
        vocab_size=768,
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=3,
        num_key_value_heads=3,
        head_dim=32,
        max_position_embeddings=1024,
    ),
}


class NoChat:
    """Stands for the prompt format: random weights have none, and no token ends a text."""

    eos_ids: list[int] = []


def random_text(model: GPT, size: int) -> list[int]:
    return torch.randint(0, model.config.vocab_size, (size,)).tolist()


def train(model: GPT, count: int, length: int, tokens: int, wait) -> float:
    """FLOP a second of DPO, the reference pass included.

    8 for each weight and token: 6 of training and 2 of the reference.
    """
    prompt = random_text(model, length)
    pairs = []
    for _ in range(count):
        chosen = Example(prompt, random_text(model, length))
        rejected = Example(prompt, random_text(model, length))
        pairs.append((chosen, rejected))
    recipe = Recipe(batch_size=count, lr=1e-9, lr_end=1e-10, tokens=tokens, dtype=torch.bfloat16)
    took = seconds(lambda: dpo(model, pairs, recipe, Objective(beta=0.1)), wait, 1)
    body, head = sizes(model)
    return 8 * count * length * (3 * body + 2 * head) / took


def decoding(writer: Writer, count: int, wait) -> float:
    """Tokens a second of `count` rows that are decoded side by side."""
    texts = [random_text(writer.model, 128) for _ in range(count)]
    return count / decode(writer, texts, 64, wait)


def one_run(model: GPT, many: int, work: dict, wait) -> dict[str, float]:
    """Tokens a second of one row and of `many`, and FLOP a second of training."""
    writer = writing_copy(model, NoChat(), torch.bfloat16)
    with torch.inference_mode():
        rates = {"one": decoding(writer, 1, wait), "many": decoding(writer, many, wait)}
    del writer  # its memory is wanted for training
    rates["train"] = train(model, **work, wait=wait)
    return rates


def measure(size: str, device: torch.device, many: int, count: int) -> dict:
    """Every figure of the report: the machine's peaks, the medians of `count` runs, and shares."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(**SIZES[size])).to(device).eval()
    for p in model.parameters():
        torch.nn.init.normal_(p, 1.0 if p.ndim == 1 else 0.0, 0.02)
    found = probe(device)
    if device.type == "cuda":
        name = torch.cuda.get_device_name()
        work = dict(count=64, length=256, tokens=16384)
    else:
        name = str(device)
        work = dict(count=4, length=64, tokens=1024)
    runs = [one_run(model, many, work, wait_for(device)) for _ in range(count)]
    weights = 2 * sum(p.numel() for p in model.parameters())  # bytes of the bf16 copy
    for key in runs[0]:
        found[key] = statistics.median(run[key] for run in runs)
    found |= {
        "size": size,
        "device": name,
        "rows": many,
        "runs": runs,
        "one_share": found["one"] * weights / found["bandwidth"],
        # A CPU without bf16 units emulates them, so its "peak" bounds nothing.
        "train_share": found["train"] / found["bf16_peak"] if multiplies_bf16(device) else None,
    }
    return found


def lines(found: dict) -> list[str]:
    """The figures for people."""
    peak = f"bf16 peak {found['bf16_peak'] / 1e12:.2f} TFLOP/s"
    bandwidth = f"copy {found['bandwidth'] / 1e9:.0f} GB/s"
    one = f"one row {found['one']:.0f} tok/s ({found['one_share']:.0%} of the bandwidth)"
    many = f"{found['rows']} rows {found['many']:.0f} tok/s"
    share = "no bf16 units"
    if found["train_share"] is not None:
        share = f"{found['train_share']:.0%} of the peak"
    training = f"{found['train'] / 1e12:.2f} TFLOP/s ({share})"
    return [
        f"{found['device']}, {found['size']}: {peak}, {bandwidth}",
        f"decode {one}, {many}; DPO {training}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description="The engine on a GPU.", allow_abbrev=False)
    parser.add_argument("--size", choices=SIZES, default="0.6b")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument(
        "--rows", type=int, default=512, help="rows of the large batch [%(default)s]"
    )
    parser.add_argument("--json", help="write every figure to this file")
    args = parser.parse_args()
    prepare_machine()
    found = measure(args.size, pick_device(args.device), args.rows, args.runs)
    if args.json:
        Path(args.json).write_text(json.dumps(found, indent=1) + "\n")
    print("\n".join(lines(found)))


if __name__ == "__main__":
    main()
