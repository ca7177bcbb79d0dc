"""bench/same.py: does speed change what is written? Greedy texts, with and without what is fast.

    python bench/same.py --model DIR --ift instructions.jsonl

The yardstick is the plain model in fp32: one text at a time, no cache, no batch, every token a
fresh pass over all before it. Against it: `generate` in fp32 and in bf16, all texts side by side,
packed weights, shared prefix. In fp32 the texts should be equal; bf16 rounds logits to some three
digits, so now and then another of two nearly equal tokens comes first.
"""

import argparse
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from core.chat import Chat  # noqa: E402
from core.draw import Sampling  # noqa: E402
from model import GPT, load  # noqa: E402
from sample import generate, writing_copy  # noqa: E402
from worlds.people import read_ift  # noqa: E402


@torch.inference_mode()
def plain(
    model: GPT, prompt: list[int], ends: list[int], limit: int
) -> tuple[list[int], list[float]]:
    """The greedy text, and by how much each of its tokens beat the second."""
    tokens, leads = [], []
    while len(tokens) < limit and not (tokens and tokens[-1] in ends):
        hidden = model(torch.tensor([prompt + tokens]))  # (1, T, D)
        best, ids = model.logits(hidden[:, -1])[0].topk(2)
        tokens.append(int(ids[0]))
        leads.append(float(best[0] - best[1]))
    return tokens, leads


def first_difference(
    tokens: list[int], plain_tokens: list[int], leads: list[float]
) -> tuple[int, float]:
    """Where two texts part, and by how much the plain model preferred its own token there."""
    for i, (token, plain_token, lead) in enumerate(zip(tokens, plain_tokens, leads, strict=False)):
        if token != plain_token:
            return i, lead
    raise ValueError("one text is the beginning of the other")


def compared(name: str, texts: list[list[int]], wanted: list[tuple]) -> str:
    """One line for people: how many texts equal the plain ones, and where the others part."""
    parts = []
    for tokens, (plain_tokens, leads) in zip(texts, wanted, strict=True):
        if tokens != plain_tokens:
            parts.append(first_difference(tokens, plain_tokens, leads))
    total = sum(len(plain_tokens) for plain_tokens, _ in wanted)
    equal = len(wanted) - len(parts)
    line = f"{name}: {equal} of {len(wanted)} texts equal ({total} tokens in all)"
    if parts:
        places = sorted(i for i, _ in parts)
        lead = max(lead for _, lead in parts)
        line += f", the others part at token {places}, "
        line += f"where the first led the second by at most {lead:.3f} logits"
    return line


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
    model = load(args.model)
    chat = Chat(args.model)
    prompts = [chat.prompt(r["prompt"]) for r in read_ift(args.ift)[: args.count]]
    wanted = [plain(model, p, chat.eos_ids, args.limit) for p in prompts]
    greedy = Sampling(args.limit, temperature=0)
    keys = ["greedy"] * len(prompts)  # nothing is drawn
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        groups = generate(writing_copy(model, chat, dtype), prompts, greedy, keys)
        texts = [completion.tokens for (completion,) in groups]
        print(compared(name, texts, wanted))


if __name__ == "__main__":
    main()
