"""Bad input of every kind: one sentence, exit code 2, nothing written, and soon.

In: tables of flags, files, checkpoints and command lines, each row with words of its message. The
commands are the real ones, inside this process. Readers and parsers have finer tables of their own
beside their other tests.
"""

import gzip
import json
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from conftest import assert_refused, command, tiny_gpt, write_tokenizer
from safetensors.torch import load_file, save_file

from core.files import write_jsonl
from model import save

SECONDS = 10  # a hang, even on a slow machine
SMALL = ("--iters", 1, "--n-prompts", 4, "--exam", 2, "--max-new-tokens", 8)
NAN, INFINITE = "nan", "inf"


class Hang(BaseException):
    """Not an Exception: no command may take it for a mistake of the user."""


@contextmanager
def limited() -> Iterator[None]:
    """Raises Hang where something takes too long."""

    def ring(*_) -> None:
        raise Hang(f"more than {SECONDS} s")

    # not SIGALRM: the time limit of templates rings with it
    before = signal.signal(signal.SIGUSR1, ring)
    clock = threading.Timer(SECONDS, os.kill, (os.getpid(), signal.SIGUSR1))
    clock.start()
    try:
        yield
    finally:
        clock.cancel()
        signal.signal(signal.SIGUSR1, before)


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    """A folder with a checkpoint and files that nothing is wrong with."""
    folder = tmp_path_factory.mktemp("good")
    save(
        tiny_gpt(model_type="llama", max_position_embeddings=2048),
        write_tokenizer(folder / "llama"),
    )
    write_jsonl(
        folder / "ift.jsonl", [{"prompt": f"Why {i}?", "response": "So."} for i in range(9)]
    )
    ranks = {"responses": ["good", "bad"], "ranks": [0, 1]}
    write_jsonl(folder / "ranked.jsonl", [{"prompt": f"How {i}?", **ranks} for i in range(9)])
    verdict = {"response": "So.", "verdict": "Score: 4"}
    write_jsonl(folder / "eft.jsonl", [{"prompt": f"Who {i}?", **verdict} for i in range(9)])
    (folder / "prompts.txt").write_text("".join(f"Where is {i}?\n" for i in range(9)))
    return folder


@pytest.fixture
def here(good, cwd) -> Path:
    """A copy of it, in which the test stands."""
    shutil.copytree(good, cwd, dirs_exist_ok=True)
    return cwd


def assert_bad(*words, says: str) -> None:
    """The command is refused, in time, and leaves nothing behind."""
    with limited():
        done = command(*words)
    assert_refused(done, *says.split(" & "))
    assert not Path("runs").exists(), "a start that is refused spoils no name"


def assert_bad_start(*words, says: str) -> None:
    """train.py refuses these words."""
    assert_bad("train.py", "--model", "llama", *SMALL, *words, says=says)


def change_json(path: str, change: dict) -> None:
    """Other values in a JSON file; None takes a key away."""
    raw = json.loads(Path(path).read_text()) | change
    kept = {key: value for key, value in raw.items() if value is not None}
    Path(path).write_text(json.dumps(kept))


def test_the_good_start_is_good(here):
    """Guards against: a table in which every row is refused for one reason."""
    files = ("--ift", "ift.jsonl", "--ranked", "ranked.jsonl", "--eft", "eft.jsonl")
    done = command("train.py", "--model", "llama", *SMALL, *files, "--iters", 0)
    assert done.code == 0, done.err


# ---- flags ----

FLAGS = [
    ("--n 0", "--n must be at least 2, not 0"),
    ("--n 1", "--n must be at least 2, not 1"),
    ("--n 10000", "--n must be at most 1000"),
    ("--k 0", "--k must be at least 1"),
    ("--k -3", "--k must be at least 1, not -3"),
    ("--iters -1", "--iters must be at least 0"),
    ("--iters 1000000000", "--iters must be at most 1000"),
    ("--n-prompts 0", "--n-prompts must be at least 1"),
    ("--n-prompts 1000000000", "--n-prompts must be at most"),
    ("--seed-limit -1", "--seed-limit must be at least 0"),
    ("--seed-limit 1000000000", "--seed-limit must be at most"),
    ("--eft-limit -1", "--eft-limit must be at least 0"),
    ("--exam 0", "--exam must be at least 1"),
    ("--exam 1000000000", "--exam must be at most"),
    ("--exam-n 0", "--exam-n must be at least 1"),
    ("--rouge 0", "--rouge must be at least 0.01"),
    ("--rouge 1.5", "--rouge must be at most 1"),
    ("--rouge nan", "--rouge must be"),
    ("--temperature -1", "--temperature must be at least 0"),
    ("--temperature nan", "--temperature must be at least 0, not nan"),
    ("--temperature inf", "--temperature must be at most 100, not inf"),
    ("--prompt-temperature -0.1", "--prompt-temperature must be at least 0"),
    ("--judge-temperature inf", "--judge-temperature must be at most 100"),
    ("--top-p 0", "--top-p must be at least 0.01"),
    ("--top-p -1", "--top-p must be at least 0.01, not -1"),
    ("--top-p 5", "--top-p must be at most 1, not 5"),
    ("--top-p inf", "--top-p must be at most 1, not inf"),
    ("--max-new-tokens 0", "--max-new-tokens must be at least 1"),
    ("--max-verdict-tokens 0", "--max-verdict-tokens must be at least 1"),
    ("--sft-epochs 0", "--sft-epochs must be at least 1"),
    ("--sft-lr 0", "--sft-lr must be at least"),
    ("--sft-lr -1", "--sft-lr must be at least"),
    ("--sft-lr nan", "--sft-lr must be at least"),
    ("--dpo-epochs 0", "--dpo-epochs must be at least 1"),
    ("--dpo-epochs 1000000000", "--dpo-epochs must be at most 1000"),
    ("--dpo-lr 0", "--dpo-lr must be at least"),
    ("--dpo-lr 100", "--dpo-lr must be at most 1"),
    ("--beta -0.1", "--beta must be at least 0"),
    ("--beta nan", "--beta must be at least 0, not nan"),
    ("--nll -1", "--nll must be at least 0"),
    ("--near 1.1", "--near must be at most 1"),
    ("--confident 0", "--confident must be at least 0.01"),
    ("--confident 2", "--confident must be at most 1"),
    ("--batch-size 0", "--batch-size must be at least 1"),
    ("--dropout 1.5", "--dropout must be at most 0.9"),
    ("--dropout -0.1", "--dropout must be at least 0"),
    ("--replay -1", "--replay must be at least 0"),
    ("--slots 0", "--slots must be at least 1"),
    ("--tokens 0", "--tokens must be at least 1"),
    ("--judge expect", "--judge must be one of sampled, expected & 'expect'"),
    ("--eft-style both", "--eft-style must be one of auto, verdict, score"),
    ("--sft-weight rows", "--sft-weight must be one of examples, tokens"),
    ("--world flat", "--world must be one of people, checked & 'flat'"),
    ("--device tpu", "'tpu' & cpu"),
    ("--device cuda:99", "cuda"),
    ("--dtype fp16", "'fp16' & fp32"),
    ("--template-arg enable_thinking", "--template-arg takes NAME=VALUE & 'enable_thinking'"),
    ("--template-arg =1", "--template-arg takes NAME=VALUE"),
    ("--template-arg a-b=1", "--template-arg takes NAME=VALUE"),
    ("--max-new-tokens 4000", "--max-new-tokens 4000 leaves no room & 2048"),
    ("--max-verdict-tokens 2048", "the rubric has & --max-verdict-tokens 2048"),
    ("--model nowhere", "model directory nowhere does not exist"),
    ("--model ift.jsonl", "ift.jsonl"),
    ("--run ../escape", "--run"),
    ("--run /tmp/escape", "--run"),
    ("--run a/b", "--run"),
    ("--run .", "--run"),
    ("--run  ", "--run"),
]


@pytest.mark.parametrize("words, says", FLAGS, ids=[row[0] for row in FLAGS])
def test_flags(here, words, says):
    """Guards against: numbers that nobody can mean, taken for what they are not."""
    name, _, value = words.partition(" ")
    assert_bad_start("--ift", "ift.jsonl", name, value, says=says)


# ---- files ----

ROW = '{"prompt": "Why?", "response": "So."}\n'
RANKED = '{"prompt": "a", "responses": ["b", "c"], "ranks": %s}\n'
VERDICT = '{"prompt": "a", "response": "b", "verdict": %s}\n'
FILES = [
    ("--ift", "", "is empty"),
    ("--ift", "\n \n", "is empty"),
    ("--ift", ROW + '{"prompt"\n', "line 2"),
    ("--ift", ROW + '{"prompt": "a"}\n', "line 2"),
    ("--ift", ROW + '{"prompt": "a", "response": 5}\n', "line 2"),
    ("--ift", ROW + '{"prompt": "a", "response": null}\n', "line 2"),
    ("--ift", ROW + '{"prompt": "", "response": "b"}\n', "line 2"),
    ("--ift", ROW + '{"question": "a", "answer": "b"}\n', "line 2"),
    ("--ift", ROW + "[1, 2]\n", "line 2"),
    ("--ift", ROW + "null\n", "line 2"),
    ("--ift", ROW + '"text"\n', "line 2"),
    ("--ift", ROW + '{"messages": 5}\n', "line 2 & messages"),
    ("--ift", ROW + '{"messages": [{"role": "user", "content": "a"}]}\n', "line 2 & messages"),
    ("--ift", ROW + '{"conversations": [1]}\n', "line 2"),
    ("--ift", ROW + '{"instruction": "a", "output": ""}\n', "line 2"),
    ("--ift", '{"prompt": "\\ud83d", "response": "b"}\n', "line 1 & surrogate"),
    ("--ift", "[" * 100_000, "not valid JSON"),
    ("--ift", '[{"prompt": "a", "response": "b"}, 3]', "entry 2"),
    ("--ift", '{"a": ' * 5000, "not valid JSON"),
    ("--ift", "id,prompt\n1,Why?\n", "line 1 & not valid JSON"),
    ("--ift", "Wie heißt das?\n".encode("latin-1"), "not UTF-8"),
    ("--ift", "Why?\n".encode("utf-16"), "not UTF-8"),
    ("--ift", b"\x00" * 1000, "line 1"),
    ("--ift", b"\xff" * 1000, "not UTF-8"),
    ("--ift", b"\x1f\x8b\x08 cut", "not UTF-8"),
    ("--ranked", RANKED % "[0, 1, 2]", "line 1"),
    ("--ranked", RANKED % "[0]", "line 1"),
    ("--ranked", RANKED % "[0, NaN]", "line 1"),
    ("--ranked", RANKED % "[0, Infinity]", "line 1"),
    ("--ranked", RANKED % "[0, true]", "line 1"),
    ("--ranked", RANKED % '[0, "1"]', "line 1"),
    ("--ranked", RANKED % "[0, null]", "line 1"),
    ("--ranked", RANKED % "5", "line 1"),
    ("--ranked", RANKED % "[1, 1]", "ranks nothing"),
    ("--ranked", '{"prompt": "a", "responses": ["b"], "ranks": [0]}\n', "line 1"),
    ("--ranked", '{"prompt": "a", "responses": [], "ranks": []}\n', "line 1"),
    ("--ranked", '{"prompt": "a", "responses": ["b", ""], "ranks": [0, 1]}\n', "line 1"),
    ("--ranked", '{"prompt": "a", "responses": ["b", 4], "ranks": [0, 1]}\n', "line 1"),
    ("--ranked", '{"prompt": 1, "responses": ["b", "c"], "ranks": [0, 1]}\n', "line 1"),
    ("--ranked", '{"responses": ["b", "c"], "ranks": [0, 1]}\n', "line 1 & prompt"),
    ("--ranked", ROW, "line 1 & responses"),
    ("--eft", VERDICT % "4", "line 1"),
    ("--eft", VERDICT % '"Good."', "line 1 & score"),
    ("--eft", VERDICT % '"Score: 8/10"', "line 1 & score"),
    ("--eft", VERDICT % '"Score: 7"', "line 1 & score"),
    ("--eft", VERDICT % '""', "line 1"),
    ("--eft", ROW, "line 1 & verdict"),
    ("--oasst", ROW, "prompt"),
    ("--oasst", '{"prompt": 5}\n', "line 1"),
    ("--oasst", '{"prompt": {"text": "a", "lang": "de", "replies": []}}\n', "'en' & --lang"),
    ("--oasst", '{"prompt": {"text": "a", "lang": "en", "replies": 3}}\n', "line 1"),
    ("--prompts", "", "is empty"),
    ("--prompts", "Just one.\n", "--n-prompts"),
    ("--prompts", "id,prompt\n1,Why?\n", "line 1: 'id,prompt'"),
    ("--prompts", '{"prompt": "a"}\n{"text": "b"}\n', "line 2"),
    ("--prompts", '["a", 3]', "entry 2"),
    ("--prompts", '["a",\n', "not valid JSON"),
    ("--prompts", "ß\n".encode("latin-1"), "not UTF-8"),
    ("--rubric", "", "{prompt} and {response}"),
    ("--rubric", "Rate it.", "{prompt} and {response}"),
    ("--rubric", "Rate {prompt}.", "{prompt} and {response}"),
    ("--rubric", "{prompt} {response} {response} Score: 0 to 5", "once each"),
    ("--rubric", "{prompt} {response} Rate from 1 to 10.", "another scale & 1 to 10"),
    ("--rubric", "{prompt} {response} Write Score: n/10.", "/10"),
    ("--rubric", "{prompt} {response} out of 100", "100"),
    ("--rubric", b"\xff\xfe{prompt}{response}", "not UTF-8"),
]


@pytest.mark.parametrize(
    "flag, content, says", FILES, ids=[f"{row[0]} {row[1][:40]!r}" for row in FILES]
)
def test_files(here, flag, content, says):
    """Guards against: data that is dropped, guessed or trained on without a word."""
    data = content if isinstance(content, bytes) else content.encode()
    Path("given").write_bytes(data)
    assert_bad_start("--ift", "ift.jsonl", flag, "given", says=f"given & {says}")


def no_file(path: Path) -> None:
    pass


def folder_in_its_place(path: Path) -> None:
    path.mkdir()


def link_to_itself(path: Path) -> None:
    path.symlink_to(path)


def pipe_without_a_writer(path: Path) -> None:
    os.mkfifo(path)


def cut_archive(path: Path) -> None:
    path.write_bytes(gzip.compress(b"Why?\n" * 100)[:-9])


def no_archive(path: Path) -> None:
    path.write_text("Why?\n")


PLACES = (no_file, folder_in_its_place, link_to_itself, pipe_without_a_writer)
PLACES += (cut_archive, no_archive)
READS = ("--ift", "--ranked", "--eft", "--oasst", "--prompts", "--rubric")


@pytest.mark.parametrize("make", PLACES)
@pytest.mark.parametrize("flag", READS)
def test_what_is_no_file(here, flag, make):
    """Guards against: a pipe that nobody writes to, which hangs; a folder; an archive cut off."""
    make(Path("given.gz"))
    assert_bad_start("--ift", "ift.jsonl", flag, "given.gz", says="given.gz")


# ---- checkpoints: config.json ----

CONFIGS = [
    ({"model_type": "gpt2"}, "'gpt2' & llama, mistral, qwen2, qwen3"),
    ({"model_type": None}, "model_type"),
    ({"model_type": ["llama"]}, "model_type"),
    ({"hidden_act": "gelu"}, "hidden_act"),
    ({"mlp_bias": True}, "mlp_bias"),
    ({"attention_bias": True}, "attention_bias"),
    ({"tie_word_embeddings": "yes"}, "tie_word_embeddings & true or false"),
    ({"use_sliding_window": 1}, "use_sliding_window"),
    ({"quantization_config": {"quant_method": "gptq"}}, "quantised (gptq)"),
    ({"quantization_config": {"quant_method": "awq"}}, "quantised (awq)"),
    ({"quantization_config": {"quant_method": "bitsandbytes"}}, "quantised (bitsandbytes)"),
    ({"quantization_config": {"quant_method": "fp8"}}, "quantised (fp8)"),
    ({"quantization_config": "int8"}, "quantised (int8)"),
    ({"vocab_size": 0}, "vocab_size must be a whole number from 1"),
    ({"vocab_size": 261}, "disagree"),
    ({"vocab_size": 100}, "ids up to 259 & 100 embeddings"),
    ({"vocab_size": True}, "vocab_size"),
    ({"hidden_size": None}, "lacks hidden_size"),
    ({"hidden_size": "32"}, "hidden_size must be a whole number & '32'"),
    ({"hidden_size": -32}, "hidden_size"),
    ({"hidden_size": 10**30}, "hidden_size"),
    ({"hidden_size": [32]}, "hidden_size"),
    ({"hidden_size": float("nan")}, "hidden_size"),
    ({"intermediate_size": 2.5}, "intermediate_size"),
    ({"intermediate_size": {}}, "intermediate_size"),
    ({"num_hidden_layers": 0}, "num_hidden_layers must be a whole number from 1"),
    ({"num_hidden_layers": 3}, "disagree"),
    ({"num_hidden_layers": 1}, "layers.1"),
    ({"num_hidden_layers": 10**5}, "num_hidden_layers"),
    ({"num_hidden_layers": 10**12}, "num_hidden_layers"),
    ({"num_attention_heads": 0}, "num_attention_heads"),
    ({"num_attention_heads": 5}, "5 heads do not share 2 keys"),
    ({"num_key_value_heads": 0}, "num_key_value_heads"),
    ({"num_key_value_heads": 8}, "do not share"),
    ({"head_dim": 7}, "even head_dim"),
    ({"head_dim": 0}, "head_dim"),
    ({"max_position_embeddings": 0}, "max_position_embeddings"),
    ({"max_position_embeddings": -5}, "max_position_embeddings"),
    ({"rms_norm_eps": 0}, "rms_norm_eps"),
    ({"rms_norm_eps": "small"}, "rms_norm_eps"),
    ({"rope_theta": 0}, "rope_theta"),
    ({"rope_theta": float("inf")}, "rope_theta"),
    ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "yarn & default, linear and llama3"),
    ({"rope_scaling": {"rope_type": "linear", "factor": 0}}, "factor"),
    ({"rope_scaling": {"rope_type": "linear", "factor": -1}}, "factor"),
    ({"rope_scaling": {"rope_type": "linear", "factor": float("nan")}}, "factor"),
    ({"rope_scaling": {"rope_type": "linear"}}, "factor"),
    ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "llama3 & lacks"),
    ({"rope_scaling": {"rope_type": ["linear"]}}, "rope type"),
    ({"rope_scaling": "linear"}, "RoPE must be an object"),
    ({"rope_scaling": [1]}, "RoPE must be an object"),
]


@pytest.mark.parametrize("change, says", CONFIGS, ids=[str(row[0])[:60] for row in CONFIGS])
def test_config_json(here, change, says):
    """Guards against: an architecture run as if it were another, and sizes that hang."""
    change_json("llama/config.json", change)
    assert_bad_start("--ift", "ift.jsonl", says=says)


JSON_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json")
JSON_FILES += ("special_tokens_map.json", "model.safetensors.index.json")
BAD_JSON = ["{", "[]", "3", "null", '"text"', "[" * 100_000, "\xff".encode("latin-1"), b""]


@pytest.mark.parametrize("content", BAD_JSON, ids=lambda content: repr(content[:9]))
@pytest.mark.parametrize("name", JSON_FILES)
def test_json_of_a_checkpoint(here, name, content):
    """Guards against: a traceback from a file that broke off, or that is of another kind."""
    data = content if isinstance(content, bytes) else content.encode()
    Path("llama", name).write_bytes(data)
    assert_bad_start("--ift", "ift.jsonl", says="llama")


# ---- checkpoints: tokenizers, templates, weights ----

SETTINGS = [
    ({"chat_template": 5}, "chat_template must be a text"),
    ({"chat_template": [{"name": 3}]}, "a list of named texts with a 'default'"),
    ({"chat_template": [{"name": "default"}]}, "a list of named texts with a 'default'"),
    ({"chat_template": []}, "a list of named texts with a 'default'"),
    ({"chat_template": "{{ messages[0].role }}: "}, "leaves the user's message out"),
    ({"chat_template": "{% for m in"}, "chat template & cannot be read"),
    ({"chat_template": "{{ raise_exception('no') }}"}, "refuses these messages"),
    ({"chat_template": "{{ 1 / 0 }}"}, "chat template"),
    ({"chat_template": "{{ messages.nothing.more }}"}, "chat template"),
    ({"chat_template": "{{ messages + 5 }}"}, "chat template"),
    ({"chat_template": "{{ 'x' * 1000000000 }}"}, "chat template"),
    ({"chat_template": "{% for i in range(1000000000) %}{% endfor %}"}, "chat template"),
    ({"chat_template": "{{ ''.__class__.__mro__ }}"}, "chat template"),
    ({"chat_template": "{% include 'x' %}"}, "chat template"),
    ({"chat_template": "{{ lipsum.__globals__ }}"}, "leaves the user's message out"),
    ({"eos_token": None}, "llama"),
    ({"eos_token": 5}, "llama"),
    ({"eos_token": "<|nowhere|>"}, "names no EOS token"),
]


@pytest.mark.parametrize("change, says", SETTINGS, ids=[str(row[0])[:60] for row in SETTINGS])
def test_tokenizer_settings(here, change, says):
    """Guards against: templates that loop, blow up or reach for Python; answers without an end."""
    change_json("llama/tokenizer_config.json", change)
    assert_bad_start("--ift", "ift.jsonl", says=says)


def changed_weights(change: Callable[[dict], None]) -> None:
    path = Path("llama/model.safetensors")
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def put(name: str, tensor: torch.Tensor) -> Callable[[], None]:
    return lambda: changed_weights(lambda tensors: tensors.update({name: tensor}))


def header(data: bytes, size: int | None = None) -> Callable[[], None]:
    """A file with this header, whose length may lie."""
    length = (len(data) if size is None else size).to_bytes(8, "little")
    return lambda: Path("llama/model.safetensors").write_bytes(length + data)


def no_weights() -> None:
    Path("llama/model.safetensors").unlink()


def cut_weights() -> None:
    path = Path("llama/model.safetensors")
    path.write_bytes(path.read_bytes()[:-100])


def shards(*names: str) -> Callable[[], None]:
    def write() -> None:
        index = {"weight_map": {f"model.norm.weight{i}": name for i, name in enumerate(names)}}
        Path("llama/model.safetensors.index.json").write_text(json.dumps(index))

    return write


def lacking(name: str) -> Callable[[], None]:
    return lambda: changed_weights(lambda tensors: tensors.pop(name))


def a_link_outside() -> None:
    Path("llama/model.safetensors").rename("elsewhere.safetensors")
    Path("llama/model.safetensors").symlink_to(Path("elsewhere.safetensors").resolve())


NORM, GATE = "model.norm.weight", "model.layers.0.mlp.gate_proj.weight"
WEIGHTS = [
    ("none", no_weights, "model.safetensors & safetensors files only"),
    ("cut", cut_weights, "not a readable safetensors file"),
    ("no header", header(b""), "not a readable safetensors file"),
    ("header of a petabyte", header(b"{}", 2**50), "not a readable safetensors file"),
    ("header is no JSON", header(b"{{{{{{{{"), "not a readable safetensors file"),
    ("header is a list", header(b"[1, 2, 3]"), "not a readable safetensors file"),
    ("NaN", put(NORM, torch.full((32,), torch.nan)), "norm.weight & not finite"),
    ("infinite", put(GATE, torch.full((48, 32), torch.inf)), "gate_proj & not finite"),
    ("int8", put(GATE, torch.ones(48, 32, dtype=torch.int8)), "gate_proj & I8"),
    ("fp8", put(GATE, torch.ones(48, 32).to(torch.float8_e4m3fn)), "gate_proj & F8"),
    ("booleans", put(NORM, torch.ones(32, dtype=torch.bool)), "norm.weight & BOOL"),
    ("integers", put(NORM, torch.ones(32, dtype=torch.int64)), "norm.weight & I64"),
    ("another shape", put(GATE, torch.ones(48, 31)), "disagree & gate_proj"),
    ("a missing tensor", lacking(GATE), "disagree & gate_proj"),
    ("a third layer", put("model.layers.2.mlp.gate_proj.weight", torch.ones(48, 32)), "layers.2"),
    ("q_norm", put("model.layers.0.self_attn.q_norm.weight", torch.ones(8)), "q_norm"),
    ("a bias", put("model.layers.0.self_attn.q_proj.bias", torch.ones(32)), "q_proj.bias"),
    ("scales", put(GATE + "_scale_inv", torch.ones(1)), "weight_scale_inv"),
    ("an untied head", put("lm_head.weight", torch.ones(260, 32)), "lm_head.weight differs"),
    ("a shard that is absent", shards("part-1.safetensors"), "part-1.safetensors"),
    ("a shard outside", shards("../../etc/hosts"), "hosts"),
    ("an absolute shard", shards("/etc/hosts"), "lies outside its folder"),
    ("a shard that is the folder", shards("."), "not a plain file"),
    ("a shard without a name", shards(""), "not a plain file"),
    ("a link outside", a_link_outside, "lies outside its folder"),
]


@pytest.mark.parametrize("spoil, says", [row[1:] for row in WEIGHTS], ids=[r[0] for r in WEIGHTS])
def test_weights(here, spoil, says):
    """Guards against: weights that are taken for what they are not."""
    spoil()
    assert_bad_start("--ift", "ift.jsonl", says=says)


# ---- other command lines ----

COMMANDS = [
    ("sample.py --model nowhere Why?", "nowhere"),
    ("sample.py --model llama --temperature -1 Why?", "temperature"),
    ("sample.py --model llama --temperature nan Why?", "temperature"),
    ("sample.py --model llama --top-p 0 Why?", "top-p"),
    ("sample.py --model llama --max-new-tokens 0 Why?", "the number of tokens must be at least 1"),
    ("sample.py --model llama --max-new-tokens 100000 Why?", "context"),
    ("sample.py --model llama --device tpu Why?", "tpu"),
    ("judge.py --model llama", "--file, or --prompt and --response"),
    ("judge.py --model llama --prompt a", "--file, or --prompt and --response"),
    ("judge.py --model llama --prompt a --response b --file ranked.jsonl", "give either"),
    ("judge.py --model llama --file nowhere", "nowhere"),
    ("judge.py --model llama --file ift.jsonl", "ift.jsonl, line 1"),
    ("judge.py --model llama --file ranked.jsonl --k 0", "at least 1"),
    ("judge.py --model llama --file ranked.jsonl --judge all --rubric ift.jsonl", "{prompt}"),
    ("evaluate.py llama nowhere --judge llama --prompts prompts.txt", "nowhere"),
    ("evaluate.py llama llama --judge nowhere --prompts prompts.txt", "nowhere"),
    ("evaluate.py llama llama --judge llama --prompts nowhere", "nowhere"),
    ("evaluate.py llama llama --judge oracle --prompts prompts.txt", "prompts.txt"),
    ("evaluate.py llama --ifeval ift.jsonl", "ift.jsonl, line 1"),
    ("evaluate.py llama --ifeval nowhere", "nowhere"),
    ("evaluate.py llama", "give --prompts FILE and --judge DIR"),
    ("evaluate.py llama llama", "give --prompts FILE and --judge DIR"),
    ("report.py nowhere", "nowhere"),
    ("report.py llama", "no run of train.py"),
    ("report.py ift.jsonl", "ift.jsonl"),
    ("train.py --ranked ranked.jsonl", "the toy world brings its own"),
    ("train.py --world checked", "--world checked is for real models"),
    ("train.py --model llama", "nothing to start from"),
    ("experiments/variants.py hinge", "'hinge'"),
    ("experiments/variants.py ipo --beta 0", "--beta"),
    ("experiments/variants.py fixed-judge=nowhere", "nowhere"),
    ("experiments/variants.py no-judge-data --eft eft.jsonl", "exclude each other"),
]


@pytest.mark.parametrize("line, says", COMMANDS, ids=[row[0] for row in COMMANDS])
def test_commands(here, line, says):
    """Guards against: the same mistakes on the other command lines."""
    assert_bad(*line.split(), says=says)


def test_the_table_is_long_enough():
    """Guards against: rows that were lost; the issue asked for 150."""
    rows = len(FLAGS) + len(FILES) + len(PLACES) * len(READS) + len(CONFIGS) + len(COMMANDS)
    assert rows + len(JSON_FILES) * len(BAD_JSON) + len(SETTINGS) + len(WEIGHTS) >= 300
