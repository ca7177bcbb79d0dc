"""bench/lora.py: DPO with all weights and with adapters: memory, speed, and what it reaches.

    python bench/lora.py --model DIR --ranked FILE --pairs 32 --json docs/lora.json

In: answers that people ranked; the best and the worst of a group are a pair.  Out: for both ways
the peak of the process, pairs a second, and the margin and accuracy of the last steps. Each way is
a process of its own, after one pair to warm up.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE)]

from core.cli import run_command  # noqa: E402
from core.files import read_ranked  # noqa: E402


def pairs_of(chat, path: str, count: int, longest: int) -> list:
    """The first pairs of a file that are not longer than so many tokens."""
    found = []
    for group in read_ranked(path):
        ranks, responses = group["ranks"], group["responses"]
        if min(ranks) == max(ranks):
            continue
        chosen = chat.example(group["prompt"], responses[ranks.index(min(ranks))])
        rejected = chat.example(group["prompt"], responses[ranks.index(max(ranks))])
        tokens = len(chosen.prompt) + len(chosen.response) + len(rejected.response)
        if tokens <= longest and len(found) < count:
            found.append((chosen, rejected))
    return found


def measure(job: dict) -> dict:
    """One way, in this process."""
    import torch

    from core.chat import Chat
    from core.device import pick_device, pick_dtype, prepare_machine, take_peak
    from core.lora import add_adapters, start_adapters
    from core.recipe import PAPER_DPO_LR, default_rate
    from dpo import Objective, Recipe, dpo
    from measure.exam import ending
    from model import load

    prepare_machine()
    device = pick_device("auto")
    dtype = pick_dtype(job["dtype"], device)
    lora = job["lora"]
    take_peak()
    if lora is None:
        model = load(job["model"], device=device)
    else:
        model = add_adapters(load(job["model"], device=device, dtype=dtype), lora)
        start_adapters(model, seed=0)
    pairs = pairs_of(Chat(job["model"]), job["ranked"], job["pairs"], job["longest"])
    settings = {"tokens": job["tokens"], "recompute": job["recompute"], "dtype": dtype}
    lr = default_rate(PAPER_DPO_LR, model.config.hidden_size, lora)
    dpo(model, pairs[:1], Recipe(lr=1e-12, lr_end=1e-12, **settings), Objective())
    recipe = Recipe(epochs=job["epochs"], batch_size=8, lr=lr, lr_end=lr / 10, **settings)
    started = time.perf_counter()
    log = dpo(model, pairs, recipe, Objective())
    seconds = time.perf_counter() - started
    end = ending(log)
    return {
        "lora": lora,
        "pairs": len(pairs),
        "longest": max(len(a.prompt) + len(a.response) + len(b.response) for a, b in pairs),
        "pairs_a_second": job["epochs"] * len(pairs) / seconds,
        "peak_gb": take_peak() / 2**30,
        "threads": torch.get_num_threads(),
        "margin": end["margin"],
        "accuracy": end["accuracy"],
        "loss": end["loss"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--model", required=True, help="a Hugging Face directory")
    parser.add_argument("--ranked", required=True, help="answers that people ranked")
    parser.add_argument("--pairs", type=int, default=32, help="[%(default)s]")
    parser.add_argument("--longest", type=int, default=512, help="tokens of a pair [%(default)s]")
    parser.add_argument("--epochs", type=int, default=1, help="[%(default)s]")
    parser.add_argument("--tokens", type=int, default=1024, help="of one pass [%(default)s]")
    parser.add_argument("--recompute", action="store_true", help="keep less")
    parser.add_argument("--dtype", default="auto", help="arithmetic [%(default)s]")
    parser.add_argument("--rank", type=int, default=16, help="of the adapters [%(default)s]")
    parser.add_argument("--json", help="write the figures there too")
    parser.add_argument("--one", help=argparse.SUPPRESS)  # a job of this program itself
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(json.loads(args.one))))
        return
    found = {}
    for name, lora in (("all weights", None), (f"adapters of rank {args.rank}", args.rank)):
        job = vars(args) | {"lora": lora}
        words = [sys.executable, __file__, "--model", args.model, "--ranked", args.ranked]
        done = subprocess.run([*words, "--one", json.dumps(job)], capture_output=True, text=True)
        if done.returncode:
            sys.exit(done.stderr)
        found[name] = json.loads(done.stdout)
        print(name, json.dumps(found[name]), flush=True)
    full, adapted = found.values()
    memory = adapted["peak_gb"] / full["peak_gb"]
    speed = adapted["pairs_a_second"] / full["pairs_a_second"]
    print(f"adapters take {memory:.2f} of the memory, at {speed:.2f} times the pairs a second")
    if args.json:
        Path(args.json).write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    run_command(main)
