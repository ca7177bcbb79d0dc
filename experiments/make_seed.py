"""experiments/make_seed.py: pre-trains the toy's base model M_0 from scratch.

    python experiments/make_seed.py DIR       # without DIR: seed/; half an hour on two cores

In: the toy world, and what is written by hand in seed/: the sizes of the model, the chat template.
Out: a Hugging Face directory. M_0 reads raw text; SFT teaches the chat format and the judge prompt.
Measured: AdamW alone learns far slower than Muon for the matrices, and loss on all tokens gives a
better judge than loss on the reviews alone.
"""

import argparse
import random
import sys
from collections import defaultdict
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from core.cli import run_command
from core.config import SEED
from core.device import prepare_machine
from core.files import write_whole
from core.model_config import read_config
from core.records import Example
from dpo import Recipe, sft
from model import GPT, save
from worlds import toy

SPECIAL_TOKENS = ["<|end|>", "<|user|>", "<|assistant|>"]
END = 0  # the id of <|end|>
MOMENTUM = 0.95  # of Muon


def corpus(count: int, rng: random.Random) -> list[str]:
    """What M_0 reads: tasks with answers of mixed quality and their reviews, and lists of tasks."""
    texts = []
    for _ in range(count):
        if rng.random() < 0.04:
            tasks = [toy.draw_task(rng) for _ in range(9)]
            texts.append("".join(f"Task: {task.prompt}\n" for task in tasks))
        else:
            task = toy.draw_task(rng)
            answer = toy.demonstration(task, rng)
            texts.append(f"{task.prompt}\n{answer}\n{toy.verdict(task, answer)}\n")
    return texts


def train_tokenizer(vocabulary: int) -> Tokenizer:
    """Byte-level BPE over the corpus and over every text that the judge must read or write."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=SPECIAL_TOKENS, initial_alphabet=alphabet
    )
    words = [*toy.NAMES, *map(str.lower, toy.NAMES), *toy.THINGS, *toy.OPPOSITE, *toy.COLOUR]
    words += [*toy.SOUND.values(), *toy.NUMBERS, *toy.DAYS, *toy.POINTS, *toy.KINDS]
    # a digit that is missing would make the judge mute
    must_know = [" ".join(words), toy.RUBRIC, "Score: 0 1 2 3 4 5"]
    texts = corpus(4000, random.Random("tokenizer")) + must_know * 20
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def read_corpus(tokenizer: Tokenizer, count: int, name: str) -> list[list[int]]:
    """Token ids of `count` texts, each with its end. `name` names the randomness."""
    texts = corpus(count, random.Random(name))
    return [encoding.ids + [END] for encoding in tokenizer.encode_batch(texts)]


def rows_of_texts(texts: list[list[int]], rng: random.Random) -> list[Example]:
    """Rows of two to four texts each, so that M_0 also meets tasks in the middle of a context."""
    rows = []
    while texts:
        row = []
        for _ in range(min(len(texts), rng.randrange(2, 5))):
            row += texts.pop()
        rows.append(Example([], row))
    return rows


def new_model() -> GPT:
    """M_0 before training: small random weights; what writes into the residual stream is zero."""
    torch.manual_seed(0)
    model = GPT(read_config(SEED))
    for name, parameter in model.named_parameters():
        if "o_proj" in name or "down_proj" in name:
            nn.init.zeros_(parameter)
        elif parameter.ndim == 2:
            nn.init.normal_(parameter, std=0.02)
    return model


class Muon(torch.optim.Optimizer):
    """Momentum, made nearly orthogonal, for matrices (Jordan 2024).

    torch.optim.Muon does this in bf16, one matrix at a time; on processors without bf16 units that
    took 44 % of a step. Here: fp32, all matrices of one shape at once.
    """

    def __init__(self, params: list[nn.Parameter], lr: float):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            directions = defaultdict(dict)  # shape -> matrix -> direction
            for matrix in group["params"]:
                mean = self.state[matrix].setdefault("mean", torch.zeros_like(matrix))
                mean.lerp_(matrix.grad, 1 - MOMENTUM)
                directions[matrix.shape][matrix] = matrix.grad.lerp(mean, MOMENTUM)  # Nesterov
            # one call for all matrices of one shape
            for (height, width), alike in directions.items():
                size = max(1, height / width) ** 0.5
                updates = orthogonal(torch.stack(list(alike.values())))  # (N,R,C)
                for matrix, update in zip(alike, updates, strict=True):
                    matrix.sub_(update, alpha=group["lr"] * size)


def orthogonal(matrices: Tensor) -> Tensor:
    """Five Newton-Schulz steps: matrices (N,R,C) -> the nearest with singular values near 1."""
    tall = matrices.shape[1] > matrices.shape[2]
    wide = matrices.mT if tall else matrices
    wide = wide / wide.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(5):
        square = wide @ wide.mT
        wide = 3.4445 * wide + (-4.7750 * square + 2.0315 * square @ square) @ wide
    return wide.mT if tall else wide


def muon(model: GPT, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon at 5 x lr for the matrices of the blocks, AdamW for embeddings and norms."""
    matrices = [p for p in model.layers.parameters() if p.ndim == 2]
    ids = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in ids]
    adamw = torch.optim.AdamW(rest, recipe.lr, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    return [adamw, Muon(matrices, 5 * recipe.lr)]


def make_seed(folder: Path, documents: int = 480_000) -> None:
    """Trains M_0 on single texts, then on a fifth as many in rows, and writes it to `folder`.

    After the first phase the model finds a task only at the start of a document, and half of the
    judge is lost when SFT puts a rubric in front.
    """
    model = new_model()
    tokenizer = train_tokenizer(model.config.vocab_size)
    # 1) single texts
    texts = [Example([], text) for text in read_corpus(tokenizer, documents, "corpus")]
    recipe = Recipe(batch_size=128, lr=0.01, lr_end=2e-4, warmup=0.02, tokens=3072)
    sft(model, texts, recipe, name="M0, texts", optimizers=muon)

    # 2) rows of texts
    texts = read_corpus(tokenizer, documents // 5, "corpus 2")
    rows = rows_of_texts(texts, random.Random("corpus 2"))
    recipe = Recipe(batch_size=48, lr=4e-3, lr_end=1e-4, warmup=0.05, tokens=3072)
    sft(model, rows, recipe, name="M0, rows of texts", optimizers=muon)

    save(model, folder, source=SEED, dtype=torch.float16)
    write_whole(folder / "tokenizer.json", tokenizer.to_str())
    write_whole(folder / "rubric.txt", toy.RUBRIC)


def main() -> None:
    parser = argparse.ArgumentParser(description="Trains the toy's base model from scratch.")
    parser.add_argument("folder", nargs="?", type=Path, default=SEED, help="[%(default)s]")
    args = parser.parse_args()
    prepare_machine()
    make_seed(args.folder)


if __name__ == "__main__":
    run_command(main)
