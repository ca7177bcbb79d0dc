"""Everything that comes from outside, against thousands of texts and files that nobody would write.

Whatever it is, the program reads it or refuses it with a UserError, and nothing else comes out. The
cases are drawn from a fixed seed, so a failure comes back. More of them:

    FUZZ=20000 python -m pytest tests/test_fuzz.py -q
"""

import json
import os
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import tiny_gpt, write_tokenizer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core.chat import Chat
from core.errors import UserError
from core.files import read_json, read_jsonl, read_ranked, read_texts
from core.verdicts import ends_with_score, label_of, other_scale, parse_score
from measure.ifeval import read_ifeval
from measure.run_files import load_run
from model import load, save
from worlds.checked import checked_truth
from worlds.people import read_eft, read_ift, read_oasst, read_prompts

CASES = int(os.environ.get("FUZZ", "50"))
many = settings(
    max_examples=CASES,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)

ODD_NUMBERS = [0, -1, 10**30, 1e400, float("nan"), True]
leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_subnormal=False),  # the commands flush such numbers to 0
    st.text(max_size=12),
    st.sampled_from(["user", "assistant", "gpt", "llama", "linear", "fp8", "<|im_end|>", "\ud800"]),
    st.sampled_from(ODD_NUMBERS),
)
values = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)


def objects(*keys: str) -> st.SearchStrategy:
    """JSON objects with some of these keys and any values."""
    return st.dictionaries(st.sampled_from(keys), values, max_size=len(keys))


def allowed(read: Callable, *args, **more) -> object:
    """What `read` gives; None where it refuses. Every other exception fails the test."""
    try:
        return read(*args, **more)
    except UserError as error:
        assert str(error).strip()
        return None


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


# ---- verdicts ----

PIECES = ["Score", "score", ":", "=", " ", "\n", "4", "5", "10", "/", "**", "(", ")", "-", "~", "+"]
PIECES += ["out of", "of", "to", "max", "final", "Relevance", "Rating", "\\boxed{", "}", "<", ">"]
PIECES += [".", ",", "%", "\uff1a", "five", "\u0663", "_", '"', "maximum score", "0", "1.5", "\0"]
verdicts = st.lists(st.sampled_from(PIECES), max_size=14).map("".join) | st.text(max_size=60)


@many
@given(verdicts, st.sampled_from(["score", "rating", "overall quality", "(", "4"]))
def test_verdicts(text, label):
    """Guards against: a crash on what a judge wrote, and a number outside the scale."""
    score = parse_score(text, label)
    assert score is None or 0 <= score <= 5
    # nothing behind a line break of its own changes what was read, but for another score
    if score is not None:
        assert parse_score(text + "\n\nDone", label) == score
    assert ends_with_score(text, label) in (True, False)
    assert isinstance(other_scale(text), str | None)


@many
@given(st.lists(verdicts, max_size=4))
def test_labels(texts):
    """Guards against: judge examples that nobody can read, and a label that finds none of them."""
    label = label_of(texts)
    assert label and isinstance(label, str)
    for text in texts:
        parse_score(text, label)


# ---- files of people ----

turns = st.lists(objects("role", "from", "content", "value") | values, max_size=3)
rows = st.one_of(
    values,
    objects("prompt", "response", "verdict", "instruction", "input", "output", "system", "history"),
    st.fixed_dictionaries({"messages": turns | values}),
    st.fixed_dictionaries({"conversations": turns | values}),
    st.fixed_dictionaries(
        {
            "prompt": st.text(max_size=5),
            "responses": st.lists(st.text(max_size=3), max_size=3) | values,
            "ranks": st.lists(leaves, max_size=3) | values,
        }
    ),
    st.fixed_dictionaries({"prompt": objects("text", "replies", "lang", "rank", "deleted")}),
    st.fixed_dictionaries(
        {
            "prompt": st.text(max_size=5) | values,
            "instruction_id_list": st.lists(st.text(max_size=5) | values, max_size=2) | values,
            "kwargs": st.lists(objects("num_words", "relation", "keywords"), max_size=2) | values,
        }
    ),
)
READERS: dict[str, Callable] = {
    "jsonl": read_jsonl,
    "json": read_json,
    "texts": lambda path: read_texts(path, "prompt"),
    "ranked": read_ranked,
    "ift": read_ift,
    "oasst": lambda path: read_oasst(path, lang="en"),
    "prompts": read_prompts,
    "eft": lambda path: read_eft(path, how="sampled"),
    "ifeval": read_ifeval,
}


def dumped(lines: list, form: str) -> bytes:
    """Rows as one of the forms that files have."""
    if form == "array":
        return json.dumps(lines).encode()
    texts = [json.dumps(line) for line in lines]
    return ("\ufeff" if form == "mark" else "").encode() + "\n".join(texts).encode()


files = st.one_of(
    st.binary(max_size=40),
    st.text(max_size=40).map(lambda text: text.encode("utf-8", "surrogatepass")),
    st.builds(dumped, st.lists(rows, max_size=3), st.sampled_from(["lines", "array", "mark"])),
)


@pytest.mark.parametrize("name", READERS)
def test_files(place, name):
    """Guards against: a traceback for a file of somebody else, whatever is in it."""
    path = place / f"rows-{name}"

    @many
    @given(files)
    def check(content):
        path.write_bytes(content)
        allowed(READERS[name], path)

    check()


@many
@given(st.text(max_size=40), st.text(max_size=40), st.text(max_size=20))
def test_requirements(instruction, requirement, answer):
    """Guards against: a list of requirements that a model wrote, read as one of the world's."""
    prompt = f"{instruction}\n\nRequirements:\n- {requirement}\n- Use no commas."
    truth = checked_truth(prompt, answer)
    assert truth is None or 0 <= truth <= 5


# ---- checkpoints ----


@pytest.fixture(scope="module")
def checkpoint(place) -> Path:
    folder = write_tokenizer(place / "model")
    save(tiny_gpt(), folder)
    return folder


def restored(folder: Path, name: str) -> Iterator[Path]:
    kept = folder / f"{name}.kept"
    shutil.copy(folder / name, kept)
    yield folder / name
    kept.replace(folder / name)


@pytest.fixture
def config_file(checkpoint) -> Iterator[Path]:
    yield from restored(checkpoint, "config.json")


@pytest.fixture
def weights_file(checkpoint) -> Iterator[Path]:
    yield from restored(checkpoint, "model.safetensors")


@pytest.fixture
def settings_file(checkpoint) -> Iterator[Path]:
    yield from restored(checkpoint, "tokenizer_config.json")


CONFIG_KEYS = ["vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "head_dim"]
CONFIG_KEYS += ["num_attention_heads", "num_key_value_heads", "max_position_embeddings"]
CONFIG_KEYS += ["rms_norm_eps", "rope_theta", "rope_scaling", "rope_parameters", "model_type"]
CONFIG_KEYS += ["tie_word_embeddings", "sliding_window", "use_sliding_window", "hidden_act"]
CONFIG_KEYS += ["mlp_bias", "attention_bias", "quantization_config", "eos_token_id", "torch_dtype"]
ROPE_KEYS = ("rope_type", "type", "factor", "low_freq_factor", "high_freq_factor", "rope_theta")


def test_configs(checkpoint, config_file):
    """Guards against: sizes and switches of a stranger that crash, hang or allocate."""
    good = json.loads(config_file.read_text())

    @many
    @given(objects(*CONFIG_KEYS), st.none() | objects(*ROPE_KEYS))
    def check(change, rope):
        change = change if rope is None else change | {"rope_scaling": rope}
        config_file.write_text(json.dumps(good | change))
        allowed(load, checkpoint)

    check()


def test_headers(checkpoint, weights_file):
    """Guards against: headers that lie about lengths, shapes, types and places."""
    data = weights_file.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + size])
    names = [*header, "model.layers.9.x", "lm_head.weight"]
    entry = objects("dtype", "shape", "data_offsets") | values

    @many
    @given(
        st.sampled_from(names),
        entry,
        st.sampled_from([0, 1, -1, 2**63, 100]),
        st.integers(0, len(data)),
    )
    def check(name, change, longer, cut):
        old = header.get(name, {})
        new = old | change if isinstance(change, dict) and isinstance(old, dict) else change
        text = json.dumps(header | {name: new}).encode()
        length = struct.pack("<Q", max(0, min(2**64 - 1, len(text) + longer)))
        weights_file.write_bytes((length + text + data[8 + size :])[: len(data) - cut % 97])
        allowed(load, checkpoint)

    check()


TEMPLATE_PIECES = ["{% for m in messages %}", "{% endfor %}", "{{ m.content }}", "{{ m['role'] }}"]
TEMPLATE_PIECES += ["{% if m %}", "{% else %}", "{% endif %}", "{{ bos_token }}", "{{ x.y.z }}"]
TEMPLATE_PIECES += ["{{ messages * 2 }}", "{{ 'a' * 10**9 }}", "{{ 1/0 }}", "<|im_end|>", "\n"]
TEMPLATE_PIECES += [
    "{% set a = namespace(b=1) %}",
    "{% generation %}",
    "{{ tools | tojson }}",
    "{{",
]
templates = st.lists(st.sampled_from(TEMPLATE_PIECES), max_size=8).map("".join) | values
TOKEN_KEYS = ("chat_template", "eos_token", "bos_token", "added_tokens_decoder", "pad_token")


def test_chats(checkpoint, settings_file):
    """Guards against: templates, names of tokens and messages that crash or forge a turn."""
    good = json.loads(settings_file.read_text())

    @many
    @given(
        st.none() | templates,
        objects(*TOKEN_KEYS),
        st.text(max_size=30) | st.sampled_from(["<|im_end|>", "\ue0000\ue001", "a\x00b"]),
    )
    def check(template, change, message):
        if template is not None:
            change = change | {"chat_template": template}
        settings_file.write_text(json.dumps(good | change))
        chat = allowed(Chat, checkpoint)
        if chat is not None:
            allowed(chat.prompt, message)
            markers = {0, 1, 2, 3} & {*chat.response(message)}
            assert not markers, "what a text spells is no marker"

    check()


# ---- runs ----


def test_runs(place):
    """Guards against: the report of a damaged run that is a traceback."""
    folder = place / "run"
    folder.mkdir()
    names = ("t", "model", "true_score", "stage", "seconds", "told", "id")

    @many
    @given(values, st.lists(objects(*names) | values, max_size=3))
    def check(record, lines):
        (folder / "config.json").write_text(json.dumps({"settings": record}))
        (folder / "metrics.jsonl").write_bytes(dumped(lines, "lines"))
        allowed(load_run, folder)

    check()
