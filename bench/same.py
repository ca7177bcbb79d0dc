"""bench/same.py: does speed change what is written? Greedy texts, with and without everything that makes sampling fast.

    python bench/same.py --model DIR --ift instructions.jsonl

The yardstick is the plain model in fp32: one text at a time, no cache, no batch, every token a fresh pass over all before
it. Against it: `generate` in fp32 and in bf16, all texts side by side, packed weights, shared prefix. In fp32 the texts should
be equal; bf16 rounds logits to some three digits, so now and then another of two nearly equal tokens comes first.
"""

import argparse
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from data import Chat, read_ift  # noqa: E402
from model import GPT, load  # noqa: E402
from sample import Sampling, generate, sampling_copy  # noqa: E402


@torch.inference_mode()
def plain(
    model: GPT, prompt: list[int], ends: list[int], limit: int
) -> tuple[list[int], list[float]]:
    """The greedy text, and by how much each of its tokens beat the second."""
    tokens, leads = [], []
    while len(tokens) < limit and not (tokens and tokens[-1] in ends):
        best, ids = model.logits(model(torch.tensor([prompt + tokens]))[:, -1])[0].topk(2)
        tokens.append(int(ids[0]))
        leads.append(float(best[0] - best[1]))
    return tokens, leads


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Greedy texts, fast and plain.", allow_abbrev=False
    )
    parser.add_argument("--model", required=True, help="a Hugging Face directory")
    parser.add_argument("--ift", required=True, help="instructions to answer")
    parser.add_argument("--count", type=int, default=16, help="how many of them [%(default)s]")
    parser.add_argument(
        "--limit", type=int, default=48, help="tokens of an answer, at most [%(default)s]"
    )
    args = parser.parse_args()
    model, chat = load(args.model), Chat(args.model)
    prompts = [chat.prompt(r["prompt"]) for r in read_ift(args.ift)[: args.count]]
    wanted = [plain(model, p, chat.eos_ids, args.limit) for p in prompts]
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        found = [
            c.tokens
            for (c,) in generate(
                sampling_copy(model, dtype),
                chat,
                prompts,
                Sampling(args.limit, temperature=0),
                key="same",
            )
        ]
        apart = [
            next((i, lead) for i, (a, b, lead) in enumerate(zip(f, w, leads)) if a != b)
            for f, (w, leads) in zip(found, wanted)
            if f != w
        ]
        told = (
            f", the others part at token {sorted(i for i, _ in apart)}, where the first led the second by at most "
            f"{max(lead for _, lead in apart):.3f} logits"
            if apart
            else ""
        )
        print(
            f"{name}: {len(prompts) - len(apart)} of {len(prompts)} texts equal ({sum(len(w) for w, _ in wanted)} tokens in all){told}"
        )


if __name__ == "__main__":
    main()
