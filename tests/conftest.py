"""What the tests share: tiny models with lively weights and a tiny byte-level chat, so that only few tests need seed/."""
import json
import os
import sys
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")           # models this small only wait for a second thread
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from tokenizers import Tokenizer, decoders, models, pre_tokenizers  # noqa: E402

from data import Chat  # noqa: E402
from model import GPT, GPTConfig  # noqa: E402

SPECIALS = ["<|im_start|>", "<|im_end|>", "<|begin|>", "<|unused|>"]
CHATML = ("{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
          "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")


def write_tokenizer(folder: Path, **settings) -> Path:
    """A byte-level tokenizer of 260 ids in `folder`, with ChatML unless `settings` name another template."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate(SPECIALS + alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(SPECIALS)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    own = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>", "chat_template": CHATML, **settings}
    (folder / "tokenizer_config.json").write_text(json.dumps({k: v for k, v in own.items() if v is not None}))
    return folder


def tiny_gpt(cls=GPT, *, seed: int = 0, vocab: int = 260, **sizes) -> GPT:
    """Two layers, four heads over two key/value heads; weights large enough that every token read matters."""
    config = GPTConfig(**{"vocab_size": vocab, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
                          "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
                          "max_position_embeddings": 512, **sizes})
    torch.manual_seed(seed)
    model = cls(config)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(1 + 0.3 * torch.randn_like(p) if p.ndim == 1 else 0.3 * torch.randn_like(p))
    return model.eval()


class Flat(GPT):
    """A GPT whose next-token distribution is given, whatever it has read."""

    given: torch.Tensor

    def logits(self, hidden):
        return self.given.expand(*hidden.shape[:-1], -1)


def flat_gpt(weights: dict[int, float], *, vocab: int = 260) -> Flat:
    """Draws token i with probability weights[i], and no other token ever."""
    model = tiny_gpt(Flat, vocab=vocab)
    model.given = torch.full((vocab,), -torch.inf)
    for token, weight in weights.items():
        model.given[token] = torch.tensor(float(weight)).log()
    return model


@pytest.fixture
def chat(tmp_path) -> Chat:
    return Chat(write_tokenizer(tmp_path / "chat"))


@pytest.fixture
def model() -> GPT:
    return tiny_gpt()
