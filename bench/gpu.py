"""bench/gpu.py: how much of a GPU the two inner loops reach, with random weights of a size that people use.

    python bench/gpu.py --json docs/gpu.json            # Qwen3-0.6B's sizes
    python bench/gpu.py --size toy --device cpu         # to see the script work

Decoding one row is bound by reading the weights, so it is given as a share of the probed copy bandwidth; many rows and
training by arithmetic, as a share of the probed bf16 peak. Medians of --runs. The weights do not matter for any of it.
"""

import argparse
import json
import statistics
import sys
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE)]
from config import keep_memory, pick_device  # noqa: E402
from data import Example  # noqa: E402
from dpo import Recipe, dpo  # noqa: E402
from engines import decode, probe, seconds, sizes  # noqa: E402
from model import GPT, GPTConfig  # noqa: E402
from sample import sampling_copy  # noqa: E402

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


def random_text(model: GPT, size: int) -> list[int]:
    return torch.randint(0, model.config.vocab_size, (size,)).tolist()


def train(model: GPT, count: int, length: int, tokens: int, wait) -> float:
    """FLOP a second of DPO, the reference pass included: 8 for each weight and token, 6 of training and 2 of the reference."""
    prompt = random_text(model, length)
    pairs = [
        (Example(prompt, random_text(model, length)), Example(prompt, random_text(model, length)))
        for _ in range(count)
    ]
    recipe = Recipe(batch_size=count, lr=1e-9, lr_end=1e-10, tokens=tokens, dtype=torch.bfloat16)
    took, (body, head) = seconds(lambda: dpo(model, pairs, recipe, beta=0.1), wait, 1), sizes(model)
    return 8 * count * length * (3 * body + 2 * head) / took


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
    keep_memory()
    device = pick_device(args.device)
    torch.manual_seed(0)
    model = GPT(GPTConfig(**SIZES[args.size])).to(device).eval()
    for p in model.parameters():
        torch.nn.init.normal_(p, 1.0 if p.ndim == 1 else 0.0, 0.02)
    found = probe(device)
    pairs, length, tokens = (64, 256, 16384) if device.type == "cuda" else (4, 64, 1024)
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    weights, runs = 2 * sum(p.numel() for p in model.parameters()), []
    for _ in range(args.runs):
        copy = sampling_copy(model, torch.bfloat16)
        with torch.inference_mode():
            one, many = (
                rows / decode(copy, [random_text(model, 128) for _ in range(rows)], 64, wait)
                for rows in (1, args.rows)
            )
        del copy
        runs.append({"one": one, "many": many, "train": train(model, pairs, length, tokens, wait)})
    found |= {name: statistics.median(r[name] for r in runs) for name in runs[0]}
    found |= {
        "size": args.size,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else str(device),
        "rows": args.rows,
        "runs": runs,
        "one_share": found["one"] * weights / found["bandwidth"],
        "train_share": found["train"] / found["bf16_peak"],
    }
    if args.json:
        Path(args.json).write_text(json.dumps(found, indent=1) + "\n")
    print(
        f"{found['device']}, {args.size}: bf16 peak {found['bf16_peak'] / 1e12:.2f} TFLOP/s, copy {found['bandwidth'] / 1e9:.0f} GB/s\n"
        f"decode one row {found['one']:.0f} tok/s ({found['one_share']:.0%} of the bandwidth), {args.rows} rows {found['many']:.0f} tok/s; "
        f"DPO {found['train'] / 1e12:.2f} TFLOP/s ({found['train_share']:.0%} of the peak)"
    )


if __name__ == "__main__":
    main()
