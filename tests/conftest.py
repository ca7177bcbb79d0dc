"""What the tests share: tiny models with lively weights and a tiny byte-level chat.

With them only few tests need seed/. `command` executes a script inside this process (same code, no
second import of torch); `finished` is the real thing.
"""

import contextlib
import io
import json
import os
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # models this small only wait for a second thread
ROOT = Path(__file__).resolve().parent.parent
# MORE=1 runs larger sizes and more processes, which takes minutes longer.
MORE = bool(os.environ.get("MORE"))
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from tokenizers import Tokenizer, decoders, models, pre_tokenizers  # noqa: E402

from core.chat import Chat  # noqa: E402
from core.files import read_jsonl, write_jsonl  # noqa: E402
from core.model_config import GPTConfig  # noqa: E402
from model import GPT, save  # noqa: E402
from sample import Writer  # noqa: E402

TINY = shlex.split(
    "--iters 1 --n-prompts 24 --n 3 --k 2 --seed-limit 200 --exam 16 --slots 64 --batch-size 16"
)
SPECIALS = ["<|im_start|>", "<|im_end|>", "<|begin|>", "<|unused|>"]
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write_tokenizer(
    folder: Path,
    *,
    specials: Sequence[str] = SPECIALS,
    merges: Sequence[str] = (),
    words: Sequence[str] = (),
    **settings,
) -> Path:
    """A byte-level tokenizer of 260 ids in `folder`.

    It has ChatML unless `settings` name another template. `merges` are two-character tokens beyond
    the bytes, such as "\u01205" for a 5 with its space. `words` are tokens that are not special.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*specials, *alphabet, *merges])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [tuple(m) for m in merges]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(specials))
    tokenizer.add_tokens(list(words))
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|im_end|>",
        "chat_template": CHATML,
        **settings,
    }
    config = {name: value for name, value in config.items() if value is not None}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def tiny_gpt(cls=GPT, *, seed: int = 0, vocab: int = 260, **sizes) -> GPT:
    """Two layers, four heads over two key/value heads.

    The weights are large enough that every token read matters.
    """
    defaults = {
        "vocab_size": vocab,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 512,
    }
    torch.manual_seed(seed)
    model = cls(GPTConfig(**defaults | sizes))
    with torch.no_grad():
        for p in model.parameters():
            noise = 0.3 * torch.randn_like(p)
            p.copy_(1 + noise if p.ndim == 1 else noise)
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


def leaning_gpt(logits: dict[int, float], *, seed: int = 0, **sizes) -> GPT:
    """A GPT that can be saved, and that adds these logits whatever it has read.

    One hidden number never changes.
    """
    model = tiny_gpt(seed=seed, tie_word_embeddings=False, **sizes)
    with torch.no_grad():
        model.embed_tokens.weight[:, 0] = 100
        model.norm.weight[0] = 1
        model.lm_head.weight[:, 0] = 0
        for token, logit in logits.items():
            model.lm_head.weight[token, 0] = logit / model.config.hidden_size**0.5
    return model


def mute_writer(chat: Chat) -> Writer:
    """A writer for tests that say themselves what it writes."""
    return Writer(tiny_gpt(max_position_embeddings=10_000), chat)


# ---- command lines ----


class Done(NamedTuple):
    code: int
    out: str
    err: str


def command(script: str, *args, stdin: str = "") -> Done:
    """`python SCRIPT ARGS` inside this process.

    An exception that the script does not catch fails the test.
    """
    code = 0
    out, err = io.StringIO(), io.StringIO()
    argv, keyboard = sys.argv, sys.stdin
    sys.argv = [script, *map(str, args)]
    sys.stdin = io.StringIO(stdin)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            runpy.run_path(str(ROOT / script), run_name="__main__")
    except SystemExit as end:
        code = end.code or 0
    finally:
        sys.argv, sys.stdin = argv, keyboard
    return Done(code, out.getvalue(), err.getvalue())


def assert_refused(done: Done, *says: str) -> None:
    """Exit code 2 and one sentence for people."""
    errors = [line for line in done.err.splitlines() if line.startswith("error: ")]
    assert done.code == 2 and len(errors) == 1, done.err
    assert all(s in errors[0] for s in says), errors[0]


# ---- runs ----


class Killed(BaseException):
    """The process ends here."""


ORDER = [  # the files of a run of one trip, behind those of M1
    "exam/M1.jsonl",
    "t1/prompts.jsonl",
    "t1/responses.jsonl",
    "t1/verdicts.jsonl",
    "t1/pairs.jsonl",
    "M2",
    "exam/M2.jsonl",
]


def forget(run: Path, first: str) -> None:
    """The run as if it had been killed while it made `first`."""
    for name in ORDER[ORDER.index(first) :]:
        if (run / name).is_dir():
            shutil.rmtree(run / name)
        else:
            (run / name).unlink()
    if not (run / "M2").exists():
        (run / "t1" / "dpo.jsonl").unlink()
    rows = read_jsonl(run / "metrics.jsonl")
    rows = [r for r in rows if (run / "exam" / f"{r['model']}.jsonl").exists()]
    if rows:
        write_jsonl(run / "metrics.jsonl", rows)
    else:
        (run / "metrics.jsonl").unlink()


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Path:
    """A directory in which the real command has made one tiny run."""
    folder = tmp_path_factory.mktemp("finished")
    done = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), *TINY], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    (folder / "stdout.txt").write_text(done.stdout)
    return folder


@pytest.fixture(autouse=True)
def every_machine_in_fp32(monkeypatch):
    """ "auto" is fp32, whatever this processor can do: tests see the same numbers everywhere.

    Those of bf16 ask for it.
    """
    for unit in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"):
        monkeypatch.setattr(torch.cpu, unit, lambda: False)


@pytest.fixture
def cwd(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def checkpoint(cwd) -> Path:
    """A random llama with ChatML, half of whose ids end an answer."""
    folder = write_tokenizer(cwd / "llama")
    save(tiny_gpt(model_type="llama", max_position_embeddings=2048), folder)
    ends = {"eos_token_id": [1, *range(132, 260)]}
    (folder / "generation_config.json").write_text(json.dumps(ends))
    return folder


@pytest.fixture
def chat(tmp_path) -> Chat:
    return Chat(write_tokenizer(tmp_path / "chat"))


@pytest.fixture
def model() -> GPT:
    return tiny_gpt()
