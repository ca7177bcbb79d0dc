"""experiments/make_seed.py: pre-trains the toy's base model M_0 from scratch.

    python experiments/make_seed.py           # writes seed/, in half an hour on two cores
    python experiments/make_seed.py DIR       # writes DIR

In: the toy world.  Out: a Hugging Face directory: weights (fp16), tokenizer, chat template, rubric.
M_0 reads raw text: tasks with answers of mixed quality and with reviews of them, and lists of
tasks. It never sees the chat format or the judge prompt; SFT teaches those in the run itself.
Measured: AdamW alone learns far slower than Muon for the matrices, and loss on all tokens gives a
better judge than loss on the reviews alone.
"""

import argparse
import json
import random
import sys
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from core.checkpoint import config_to_hf  # noqa: E402
from core.cli import run_command  # noqa: E402
from core.device import prepare_machine  # noqa: E402
from core.files import write_whole  # noqa: E402
from core.records import Example  # noqa: E402
from dpo import Recipe, sft  # noqa: E402
from model import GPT, GPTConfig, save  # noqa: E402
from worlds import toy  # noqa: E402

VOCABULARY = 768
SPECIAL_TOKENS = ["<|end|>", "<|user|>", "<|assistant|>"]
END = 0  # the id of <|end|>
CHAT_TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>\n"
    "{{ m.content }}{{ '<|end|>' if m.role == 'assistant' else '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


# ---- text ----
def corpus(count: int, rng: random.Random) -> list[str]:
    """The raw text that M_0 reads: tasks with answers and reviews, and lists of tasks.

    No chat format, no rubric.
    """
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


def train_tokenizer() -> Tokenizer:
    """Byte-level BPE over the corpus and over every text that the judge must read or write.

    A digit that is missing would make the judge mute.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=SPECIAL_TOKENS,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    words = [*toy.NAMES, *map(str.lower, toy.NAMES), *toy.THINGS, *toy.OPPOSITE, *toy.COLOUR]
    words += [*toy.SOUND.values(), *toy.NUMBERS, *toy.DAYS, *toy.POINTS, *toy.KINDS]
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
    remaining = list(texts)
    rows = []
    while remaining:
        row = []
        for _ in range(min(len(remaining), rng.randrange(2, 5))):
            row += remaining.pop()
        rows.append(Example([], row))
    return rows


# ---- the model and its optimizers ----
def new_model() -> GPT:
    """M_0 before training: small random weights; what writes into the residual stream is zero."""
    config = GPTConfig(
        vocab_size=VOCABULARY,
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=3,
        num_key_value_heads=3,
        head_dim=32,
        max_position_embeddings=512,
    )
    # "world" tells train.py that this is a model of the toy
    raw = config_to_hf(config, torch.float16) | {"world": "toy", "eos_token_id": END}
    torch.manual_seed(0)
    model = GPT(replace(config, raw=raw))
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

    def __init__(self, params: Iterable[nn.Parameter], lr: float, momentum: float = 0.95):
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            by_shape = defaultdict(list)
            for matrix in group["params"]:
                by_shape[matrix.shape].append(matrix)
            for matrices in by_shape.values():
                self.step_one_shape(matrices, group["lr"], group["momentum"])

    def step_one_shape(self, matrices: list[nn.Parameter], lr: float, momentum: float) -> None:
        """One step of matrices (R,C) of the same shape."""
        directions = []
        for matrix in matrices:
            mean = self.state[matrix].setdefault("mean", torch.zeros_like(matrix))
            mean.lerp_(matrix.grad, 1 - momentum)
            directions.append(matrix.grad.lerp(mean, momentum))  # Nesterov
        height, width = matrices[0].shape
        size = max(1, height / width) ** 0.5
        updates = orthogonal(torch.stack(directions))  # (N,R,C)
        for matrix, update in zip(matrices, updates, strict=True):
            matrix.sub_(update, alpha=lr * size)


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
    return [
        torch.optim.AdamW(rest, lr=recipe.lr, betas=(0.9, 0.95), weight_decay=0.0, fused=True),
        Muon(matrices, 5 * recipe.lr),
    ]


# ---- the whole ----
def make_seed(folder: Path, documents: int = 480_000) -> None:
    """Trains the toy's base model M_0 on raw text of the toy world, and writes it to `folder`.

    Two phases: single texts, then a fifth as many in rows of two to four. After the first phase the
    model finds a task only at the start of a document, and half of the judge is lost when SFT puts
    a rubric in front.
    """
    tokenizer = train_tokenizer()
    model = new_model()
    texts = read_corpus(tokenizer, documents, "corpus")
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{parameters:,} parameters, {sum(map(len, texts)):,} tokens", flush=True)

    # 1) single texts
    examples = [Example([], text) for text in texts]
    recipe = Recipe(batch_size=128, lr=0.01, lr_end=2e-4, warmup=0.02, tokens=3072)
    sft(model, examples, recipe, name="M0, texts", optimizers=muon)

    # 2) rows of texts
    texts = read_corpus(tokenizer, documents // 5, "corpus 2")
    examples = rows_of_texts(texts, random.Random("corpus 2"))
    recipe = Recipe(batch_size=48, lr=4e-3, lr_end=1e-4, warmup=0.05, tokens=3072)
    sft(model, examples, recipe, name="M0, rows of texts", optimizers=muon)

    save(model, folder, dtype=torch.float16)
    write_texts(tokenizer, folder)


def write_texts(tokenizer: Tokenizer, folder: Path) -> None:
    """Everything of a Hugging Face directory but config and weights, and the rubric."""
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|end|>",
        "pad_token": "<|end|>",
        "model_max_length": 512,
        "chat_template": CHAT_TEMPLATE,
    }
    generation = {"eos_token_id": END, "pad_token_id": END}
    write_whole(folder / "tokenizer.json", tokenizer.to_str())
    write_whole(folder / "tokenizer_config.json", json.dumps(settings, indent=2) + "\n")
    write_whole(folder / "generation_config.json", json.dumps(generation) + "\n")
    write_whole(folder / "rubric.txt", toy.RUBRIC)


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Train the toy's base model from scratch.", allow_abbrev=False
    )
    parser.add_argument(
        "folder", nargs="?", type=Path, default=ROOT / "seed", help="where it goes [%(default)s]"
    )
    folder = parser.parse_args().folder
    prepare_machine()
    make_seed(folder)


if __name__ == "__main__":
    run_command(main)
