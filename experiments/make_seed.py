"""experiments/make_seed.py: pre-trains the toy's base model M_0 from scratch, within half an hour on two cores.

    python train.py --make-seed                 # writes seed/
    python train.py --make-seed --model DIR     # writes DIR

In: the toy world.  Out: a Hugging Face directory with weights (fp16), tokenizer, chat template and rubric.
M_0 reads raw text: tasks with answers of mixed quality and with reviews of them, and lists of tasks. It never sees the
chat format or the judge prompt; those are learnt in the run itself, by SFT. Measured on the way: AdamW alone learns far
slower than Muon for the matrices, and loss on all tokens gives a better judge than loss on the reviews alone.
"""

import json
import random
from collections.abc import Callable
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn

from data import Example, write_whole
from dpo import Recipe, sft
from model import GPT, GPTConfig, save
from world import (
    COLOUR,
    DAYS,
    KINDS,
    NAMES,
    NUMBERS,
    OPPOSITE,
    POINTS,
    RUBRIC,
    SOUND,
    THINGS,
    demonstration,
    draw_task,
    verdict,
)

SPECIAL = ("<|end|>", "<|user|>", "<|assistant|>")
VOCABULARY = 768


def corpus(count: int, rng: random.Random) -> list[str]:
    """The raw text that M_0 reads: tasks with answers and reviews, and lists of tasks. No chat format, no rubric."""
    texts = []
    for _ in range(count):
        if rng.random() < 0.04:
            texts.append("".join(f"Task: {draw_task(rng).prompt}\n" for _ in range(9)))
            continue
        task = draw_task(rng)
        answer = demonstration(task, rng)
        texts.append(f"{task.prompt}\n{answer}\n{verdict(task, answer)}\n")
    return texts


def train_tokenizer() -> Tokenizer:
    """Byte-level BPE over the corpus and every text the judge must read or write (a missing digit would make it mute)."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    words = [
        *NAMES,
        *map(str.lower, NAMES),
        *THINGS,
        *OPPOSITE,
        *COLOUR,
        *SOUND.values(),
        *NUMBERS,
        *DAYS,
        *POINTS,
        *KINDS,
    ]
    text = (
        corpus(4000, random.Random("tokenizer"))
        + [" ".join(words), RUBRIC, "Score: 0 1 2 3 4 5"] * 20
    )
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL),
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(text, trainer)
    return tokenizer


def fresh(config: GPTConfig, *, seed: int) -> GPT:
    """A new model with small random weights; what writes into the residual stream starts at zero."""
    torch.manual_seed(seed)
    model = GPT(config)
    for name, p in model.named_parameters():
        if p.ndim == 2:
            nn.init.zeros_(p) if "o_proj" in name or "down_proj" in name else nn.init.normal_(
                p, std=0.02
            )
    return model


class Muon(torch.optim.Optimizer):
    """Momentum, made nearly orthogonal, for matrices (Jordan 2024). torch.optim.Muon does this in bf16, one matrix at a
    time; on processors without bf16 units that took 44 % of a step. Here: fp32, all matrices of one shape at once.
    """

    def __init__(self, params, lr: float, momentum: float = 0.95):
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure=None) -> None:
        for group in self.param_groups:
            for shape in {p.shape for p in group["params"]}:
                params = [p for p in group["params"] if p.shape == shape]
                for p in params:
                    self.state[p].setdefault("mean", torch.zeros_like(p)).lerp_(
                        p.grad, 1 - group["momentum"]
                    )
                grads = [
                    p.grad.lerp(self.state[p]["mean"], group["momentum"]) for p in params
                ]  # Nesterov
                size = max(1, shape[0] / shape[1]) ** 0.5
                for p, update in zip(params, orthogonal(torch.stack(grads))):
                    p.sub_(update, alpha=group["lr"] * size)


def orthogonal(x: Tensor) -> Tensor:
    """Five Newton-Schulz steps: matrices (N,R,C) -> the nearest with singular values near 1."""
    wide = x.mT if x.shape[1] > x.shape[2] else x
    wide = wide / wide.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(5):
        square = wide @ wide.mT
        wide = 3.4445 * wide + (-4.7750 * square + 2.0315 * square @ square) @ wide
    return wide.mT if x.shape[1] > x.shape[2] else wide


def muon(model: GPT, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon at 5 x lr for the matrices of the blocks, AdamW for embeddings and norms."""
    matrices = [p for p in model.layers.parameters() if p.ndim == 2]
    ids = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in ids]
    return [
        torch.optim.AdamW(rest, lr=recipe.lr, betas=(0.9, 0.95), weight_decay=0.0, fused=True),
        Muon(matrices, 5 * recipe.lr),
    ]


def joined(texts: list[list[int]], rng: random.Random) -> list[Example]:
    """Rows of two to four texts each, so that a task is known in the middle of a context and not only at its beginning."""
    texts, rows = list(texts), []
    while texts:
        rows.append(
            Example([], sum((texts.pop() for _ in range(min(len(texts), rng.randrange(2, 5)))), []))
        )
    return rows


def make_seed(folder: Path, say: Callable[[str], None], documents: int = 480_000) -> None:
    """Trains the toy base model M_0 from scratch on raw text of the toy world, and writes it as a HF directory.

    Two phases: single texts, then a fifth as many in rows of two to four (a document's own start is otherwise the only
    place where the model finds a task, and half of the judge is lost when SFT puts a rubric in front).
    """
    tokenizer = train_tokenizer()

    def read(count: int, name: str) -> list[list[int]]:
        return [e.ids + [0] for e in tokenizer.encode_batch(corpus(count, random.Random(name)))]

    texts = read(documents, "corpus")
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
    config.raw = {**config.to_hf(torch.float16), "world": "toy", "eos_token_id": 0}
    model = fresh(config, seed=0)
    say(
        f"{sum(p.numel() for p in model.parameters()):,} parameters, {sum(map(len, texts)):,} tokens"
    )
    sft(
        model,
        [Example([], text) for text in texts],
        name="M0, texts",
        recipe=Recipe(batch_size=128, lr=0.01, lr_end=2e-4, warmup=0.02, tokens=3072),
        optimizers=muon,
    )
    rng = random.Random("corpus 2")
    sft(
        model,
        joined(read(documents // 5, "corpus 2"), rng),
        name="M0, rows of texts",
        recipe=Recipe(batch_size=48, lr=4e-3, lr_end=1e-4, warmup=0.05, tokens=3072),
        optimizers=muon,
    )
    save(model, folder, dtype=torch.float16)
    chat = (
        "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{{ '<|end|>' if m.role == 'assistant' else '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
    )
    write_whole(folder / "tokenizer.json", tokenizer.to_str())
    write_whole(
        folder / "tokenizer_config.json",
        json.dumps(
            {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "eos_token": "<|end|>",
                "pad_token": "<|end|>",
                "model_max_length": 512,
                "chat_template": chat,
            },
            indent=2,
        )
        + "\n",
    )
    write_whole(
        folder / "generation_config.json", json.dumps({"eos_token_id": 0, "pad_token_id": 0}) + "\n"
    )
    write_whole(folder / "rubric.txt", RUBRIC)
