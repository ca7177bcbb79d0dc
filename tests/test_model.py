"""model.py and core/cache.py: the same numbers as the transformers library, and clear errors.

With and without a cache.
"""

import json
import math
import shutil
import time

import pytest
import torch
import torch.nn.functional as F
from conftest import tiny_gpt, write_tokenizer
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from core.cache import CACHE_STEP
from core.device import check_disk, free_memory, pick_device, pick_dtype
from core.draw import Sampling
from core.errors import UserError
from model import load, save
from sample import Writer, generate

SIZES = dict(
    vocab_size=120,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=256,
    tie_word_embeddings=False,
    bos_token_id=1,
    eos_token_id=2,
)
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
CHECKPOINTS = {
    "llama": {},
    "llama tied": {"tie_word_embeddings": True},
    "llama no GQA": {"num_key_value_heads": 4},
    "llama llama3-rope": {"rope_parameters": LLAMA3},
    "llama linear-rope": {
        "rope_parameters": {"rope_type": "linear", "rope_theta": 500.0, "factor": 4.0}
    },
    "mistral": {"head_dim": 16},
    "qwen2": {},
    "qwen2 tied": {"tie_word_embeddings": True},
    "qwen3": {"head_dim": 16},
    "qwen3 tied": {"head_dim": 16, "tie_word_embeddings": True},
}


def hf_model(name: str):
    """A random checkpoint as transformers makes it.

    Norms and biases are moved off their neutral start.
    """
    torch.manual_seed(0)
    config = AutoConfig.for_model(name.split()[0], **SIZES | CHECKPOINTS[name])
    hf = AutoModelForCausalLM.from_config(config).float().eval()
    with torch.no_grad():
        for p in hf.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return hf


def hf_load(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.fixture(params=CHECKPOINTS)
def pair(request, tmp_path):
    """(transformers' model, its directory)."""
    hf = hf_model(request.param)
    hf.save_pretrained(tmp_path / "hf")
    return hf, tmp_path / "hf"


def ids(rows: int = 2, width: int = 100) -> torch.Tensor:
    return torch.randint(3, 120, (rows, width), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def assert_same_logits(ours, hf) -> None:
    torch.testing.assert_close(ours.logits(ours(ids())), hf(ids()).logits, atol=1e-4, rtol=0)


def test_same_logits_and_saved_directory(pair, tmp_path):
    """Guards against: a lost q/k/v bias, a QK-norm in the wrong place.

    Also against: mixed-up GQA groups, an unscaled RoPE, and a saved checkpoint that nobody else can
    load (lucidrains #10, the most wanted).
    """
    hf, folder = pair
    ours = load(folder)
    assert_same_logits(ours, hf)
    save(ours, tmp_path / "ours")
    assert_same_logits(ours, hf_load(tmp_path / "ours"))
    assert_same_logits(load(tmp_path / "ours"), hf)


def test_same_greedy_text(pair, chat):
    """Guards against: reading the logits at the wrong slot (lucidrains: token 1 instead of 8)."""
    hf, folder = pair
    chat.eos_ids, prompt = [2], ids(1, 17)
    theirs = hf.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        do_sample=False,
        max_new_tokens=24,
        pad_token_id=0,
    )
    greedy = Sampling(24, temperature=0)
    ((ours,),) = generate(Writer(load(folder), chat), prompt.tolist(), greedy, ["k"])
    assert ours.tokens == theirs[0, 17:].tolist()


def test_sharded_checkpoint(tmp_path):
    """Guards against: reading the first shard only."""
    hf = hf_model("qwen2")
    hf.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert not (tmp_path / "model.safetensors").exists()
    assert_same_logits(load(tmp_path), hf)


@pytest.mark.parametrize(
    "sizes",
    [
        {},
        {"model_type": "llama"},
        {"model_type": "qwen2"},
        {"tie_word_embeddings": False},
        {"rope_theta": 500.0},
        {"rope_scaling": {**LLAMA3, "factor": 2.0}},
    ],
    ids=lambda s: str(s)[:20],
)
def test_a_model_made_here_is_saved_whole(sizes, tmp_path):
    """Guards against: a config.json that forgets a setting.

    Then the same weights compute something else.
    """
    ours = tiny_gpt(vocab=120, **sizes)
    save(ours, tmp_path)
    assert_same_logits(ours, hf_load(tmp_path))
    with torch.no_grad():
        assert torch.equal(load(tmp_path)(ids()), ours(ids()))


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_cached_equals_uncached(dtype):
    """Guards against: positions that restart at 0 (mlx-lm #93).

    Also against: pads seen by shorter rows (unsloth #3699, SkyRL #747).
    """
    model = tiny_gpt().to(dtype)
    tokens, read = ids(3, 20), torch.tensor([5, 9, 7])
    cache = model.new_cache(3)
    model(tokens[:, :9] * (torch.arange(9) < read[:, None]), cache)  # right-padded with 0
    cache.advance(read, 9)
    for width in (1, 3, 1, 1, 2):
        at = cache.lengths[:, None] + torch.arange(width)
        hidden = model(tokens.gather(1, at), cache)
        cache.advance(torch.full((3,), width), width)
        for row in range(3):
            alone = model(tokens[row : row + 1, : int(cache.lengths[row])])[0, -width:]
            torch.testing.assert_close(hidden[row], alone, atol=2e-5, rtol=0)


@torch.no_grad()
def test_the_future_cannot_be_seen(model):
    """Guards against: a mask that lets a token read its own target."""
    one, other = ids(1, 20), ids(1, 20)
    other[0, 12:] = 7
    assert torch.equal(model(one)[:, :12], model(other)[:, :12])
    assert not torch.equal(model(one)[:, 12:], model(other)[:, 12:])


@torch.no_grad()
def test_cache_rows_are_copied_and_dropped_by_number(model):
    """Guards against: the slots of a batch mixed up when a prompt is shared or a row leaves."""
    tokens = ids(3, 8)
    read = model.new_cache(3)
    slots = model.new_cache(4)
    model(tokens, read)
    read.advance(torch.full((3,), 8), 8)
    slots.copy_rows(torch.tensor([3, 0, 1]), read, torch.tensor([2, 0, 2]))
    slots.keep_rows(torch.tensor([0, 3]))
    hidden = model(torch.tensor([[11], [12]]), slots)[:, 0]
    for row, (source, token) in enumerate(((0, 11), (2, 12))):
        alone = model(torch.cat((tokens[source], torch.tensor([token])))[None])[0, -1]
        torch.testing.assert_close(hidden[row], alone, atol=2e-5, rtol=0)


# ---- memory ----


def test_long_texts_are_attended_to_by_the_fused_kernel(monkeypatch, model):
    """Guards against: T x T weights kept for every layer of a long text.

    Also against: another result beyond the limit.
    """
    expected, calls, fused = model(ids(2, 40)), [], F.scaled_dot_product_attention

    def noting(*args, **more):
        calls.append(1)
        return fused(*args, **more)

    monkeypatch.setattr("model.PLAIN_ATTENTION_LIMIT", 39)
    monkeypatch.setattr(F, "scaled_dot_product_attention", noting)
    torch.testing.assert_close(model(ids(2, 40)), expected, atol=2e-5, rtol=0)
    assert len(calls) == 2


@torch.no_grad()
def test_a_cache_is_no_longer_than_its_longest_row(model):
    """Guards against: attention over room that nobody uses.

    Also against: slices that are copied at every step, memory that only grows.
    """
    cache, step = model.new_cache(2), CACHE_STEP
    for length, size in ((step - 1, step), (step, 2 * step), (3 * step, 4 * step), (5, step)):
        cache.empty_rows([0, 1])
        cache.advance(torch.tensor([length, 2]), length)
        model(ids(2, 1), cache)
        assert cache.k.shape[3] == cache.v.shape[3] == size
        assert cache.k.is_contiguous()
        assert cache.v.is_contiguous()


# ---- what is refused ----


@pytest.fixture
def folder(tmp_path):
    save(tiny_gpt(vocab=120), tmp_path)
    return tmp_path


BAD_CONFIGS = [
    ({"model_type": "gpt2"}, "llama, mistral, qwen2, qwen3"),
    ({"model_type": None}, "llama, mistral, qwen2, qwen3"),
    ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "default, linear and llama3"),
    ({"rope_parameters": {"rope_type": "dynamic", "factor": 4.0}}, "default, linear and llama3"),
    ({"rope_scaling": {"rope_type": "llama3"}}, "llama3"),
    ({"hidden_act": "gelu"}, "silu"),
    ({"mlp_bias": True}, "mlp_bias"),
    ({"attention_bias": True}, "attention_bias"),
    ({"hidden_size": None}, "hidden_size"),
    ({"num_hidden_layers": 3}, "disagree"),
    ({"intermediate_size": 40}, "disagree"),
    ({"vocab_size": 121}, "disagree"),
]


@pytest.mark.parametrize("change, says", BAD_CONFIGS, ids=str)
def test_unsupported_checkpoint(folder, change, says):
    """Guards against: running an architecture as if it were another.

    Also against: tracebacks where one sentence would do.
    """
    raw = json.loads((folder / "config.json").read_text()) | change
    (folder / "config.json").write_text(json.dumps({k: v for k, v in raw.items() if v is not None}))
    with pytest.raises(UserError, match=says) as error:
        load(folder)
    assert "\n" not in str(error.value)


def cut(path):
    path.write_bytes(path.read_bytes()[:-200])


def test_broken_checkpoint(folder):
    """Guards against: a traceback from deep inside a library for a download that broke off."""
    cut(folder / "model.safetensors")
    with pytest.raises(UserError, match="not a readable safetensors"):
        load(folder)
    (folder / "model.safetensors").write_bytes(b"not at all")
    with pytest.raises(UserError, match="not a readable safetensors"):
        load(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match="no model.safetensors"):
        load(folder)
    for text in ("{", "[]"):
        (folder / "config.json").write_text(text)
        with pytest.raises(UserError, match="config.json"):
            load(folder)
    (folder / "config.json").unlink()
    with pytest.raises(UserError, match="config.json"):
        load(folder)
    with pytest.raises(UserError, match="nowhere"):
        load(folder / "nowhere")


def test_missing_tensor(tmp_path):
    """Guards against: random weights in the place of what a checkpoint lacks."""
    model = tiny_gpt(vocab=120)
    del model.layers[1].mlp
    save(model, tmp_path)
    with pytest.raises(UserError, match="layers.1.mlp"):
        load(tmp_path)


@pytest.mark.parametrize(
    "pick, name",
    [
        (pick_device, "tpu"),
        (pick_device, ""),
        (lambda n: pick_dtype(n, torch.device("cpu")), "fp16"),
    ],
)
def test_unknown_device_or_dtype(pick, name):
    """Guards against: silent fallbacks (GRPO-Zero: any unknown dtype is bfloat16)."""
    with pytest.raises(UserError):
        pick(name)


# ---- what a stranger's checkpoint may hold ----

ODD_NUMBERS = [-1, 0, "12", [4], {}, True, float("nan"), float("inf"), 10**30, 1e400, 2.5]
WHOLE = ["vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"]
WHOLE += ["num_attention_heads", "num_key_value_heads", "head_dim", "max_position_embeddings"]


@pytest.mark.parametrize("value", ODD_NUMBERS, ids=repr)
@pytest.mark.parametrize("name", WHOLE)
def test_sizes_that_are_none(folder, name, value):
    """Guards against: tracebacks, hangs and gigabytes for a size that nobody can mean."""
    change_config(folder, {name: value})
    started = time.time()
    with pytest.raises(UserError, match=f"config.json of .*{name} must be a whole number"):
        load(folder)
    assert time.time() - started < 5


def change_config(folder, change: dict) -> None:
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(raw | change))


ODD_CONFIGS = [
    ({"num_key_value_heads": 3}, "do not share"),
    ({"head_dim": 7}, "even head_dim"),
    ({"num_hidden_layers": 10**12}, "from 1 to 1000"),
    ({"rms_norm_eps": 0}, "rms_norm_eps"),
    ({"rms_norm_eps": "x"}, "rms_norm_eps"),
    ({"rope_theta": 0}, "rope_theta"),
    ({"rope_theta": -1e4}, "rope_theta"),
    ({"tie_word_embeddings": "yes"}, "tie_word_embeddings"),
    ({"use_sliding_window": 1}, "use_sliding_window"),
    ({"rope_scaling": "linear"}, "RoPE"),
    ({"rope_scaling": {"rope_type": "linear", "factor": 0}}, "factor"),
    ({"rope_scaling": {"rope_type": "linear", "factor": -1}}, "factor"),
    ({"rope_scaling": {"rope_type": "linear", "factor": float("nan")}}, "factor"),
    ({"rope_scaling": {"rope_type": "linear", "factor": True}}, "factor"),
    ({"rope_scaling": {"rope_type": ["linear"]}}, "rope type"),
    ({"model_type": ["llama"]}, "model_type"),
    ({"hidden_act": ["silu"]}, "hidden_act"),
    ({"quantization_config": {"quant_method": "fp8"}}, "quantised .fp8."),
    ({"quantization_config": {"quant_method": "bitsandbytes"}}, "quantised .bitsandbytes."),
    ({"quantization_config": {"quant_method": "gptq"}}, "quantised .gptq."),
    ({"quantization_config": "awq"}, "quantised .awq."),
]


@pytest.mark.parametrize("change, says", ODD_CONFIGS, ids=str)
def test_odd_configs(folder, change, says):
    """Guards against: numbers that compute nonsense without a word."""
    change_config(folder, change)
    with pytest.raises(UserError, match=says) as error:
        load(folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["3", '"x"', "[" * 100_000, "null", "[]", "{", "\0", "NaN"])
def test_a_config_that_is_none(folder, text):
    """Guards against: a traceback for a file that is not one JSON object."""
    (folder / "config.json").write_text(text)
    with pytest.raises(UserError, match="config.json"):
        load(folder)


def rewrite(folder, change) -> None:
    """The weights with what `change` makes of them, {name: tensor} -> {name: tensor}."""
    path = folder / "model.safetensors"
    tensors = change(load_file(path))
    save_file(tensors, path, metadata={"format": "pt"})


def put(name: str, value):
    return lambda tensors: tensors | {name: value(tensors) if callable(value) else value}


def scaled_to_fp8(tensors: dict) -> dict:
    """As published FP8 checkpoints are laid out: fp8 weights, with a scale beside each."""
    found = {}
    for name, x in tensors.items():
        if name.endswith("_proj.weight"):
            found[name] = (x / x.abs().max()).to(torch.float8_e4m3fn)
            found[name + "_scale_inv"] = x.abs().max().reshape(1, 1)
        else:
            found[name] = x
    return found


LAYER = "model.layers.0.self_attn.q_proj.weight"
ODD_WEIGHTS = {
    "fp8 with scales": (scaled_to_fp8, "scale_inv|F8_E4M3"),
    "fp8": (put(LAYER, lambda t: t[LAYER].to(torch.float8_e4m3fn)), "F8_E4M3"),
    "int8": (put(LAYER, lambda t: t[LAYER].to(torch.int8)), "I8"),
    "int64": (put(LAYER, lambda t: t[LAYER].to(torch.int64)), "I64"),
    "booleans": (put(LAYER, lambda t: t[LAYER] > 0), "BOOL"),
    "not a number": (put(LAYER, lambda t: t[LAYER] * math.nan), "not finite"),
    "infinite": (put(LAYER, lambda t: t[LAYER] + math.inf), "not finite"),
    "an extra layer": (put("model.layers.2.mlp.up_proj.weight", torch.ones(48, 32)), "layers.2"),
    "a bias": (put("model.layers.0.self_attn.q_proj.bias", torch.ones(32)), "q_proj.bias"),
    "another head": (put("lm_head.weight", torch.ones(120, 32)), "tie_word_embeddings"),
    "a head of another shape": (put("lm_head.weight", torch.ones(1, 1)), "tie_word_embeddings"),
    "nothing": (lambda tensors: {}, "disagree"),
}


@pytest.mark.parametrize("name", ODD_WEIGHTS)
def test_odd_weights(folder, name):
    """Guards against: weights that are used for what they are not, such as FP8 without its scales.

    Also against: weights that are left over, and that the model was trained with.
    """
    change, says = ODD_WEIGHTS[name]
    rewrite(folder, change)
    with pytest.raises(UserError, match=says) as error:
        load(folder)
    assert "\n" not in str(error.value)


def test_weights_that_may_be_left_over(folder):
    """Guards against: old checkpoints refused for what follows from their config.json."""
    expected = load(folder).layers[0].self_attn.q_proj.weight
    rewrite(folder, put("model.layers.0.self_attn.rotary_emb.inv_freq", torch.ones(4)))
    rewrite(folder, put("lm_head.weight", lambda t: t["model.embed_tokens.weight"].clone()))
    assert torch.equal(load(folder).layers[0].self_attn.q_proj.weight, expected)


def test_links_out_of_the_folder(folder, tmp_path_factory):
    """Guards against: a checkpoint whose files are somebody else's; the hub's cache refused."""
    away = tmp_path_factory.mktemp("away")
    weights = folder / "model.safetensors"
    shutil.move(weights, away / "model.safetensors")
    weights.symlink_to(away / "model.safetensors")
    with pytest.raises(UserError, match="lies outside its folder"):
        load(folder)
    weights.unlink()
    for name in (str(away / "model.safetensors"), f"../{away.name}/model.safetensors"):
        index = {"weight_map": {"model.norm.weight": name}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        with pytest.raises(UserError, match="lies outside its folder"):
            load(folder)
    (folder / "model.safetensors.index.json").write_text('{"weight_map": [1]}')
    with pytest.raises(UserError, match="weight_map"):
        load(folder)
    # the cache of the hub: models--x/snapshots/abc/model.safetensors -> models--x/blobs/...
    snapshot = away / "models--x/snapshots/abc"
    shutil.copytree(folder, snapshot)
    (snapshot / "model.safetensors.index.json").unlink()
    (away / "models--x/blobs").mkdir()
    shutil.move(away / "model.safetensors", away / "models--x/blobs/123")
    (snapshot / "model.safetensors").symlink_to("../../blobs/123")
    assert load(snapshot).config.vocab_size == 120


def test_files_that_travel_are_not_links(tmp_path):
    """Guards against: a file of this machine, copied into every model, as LICENSE was a link."""
    source = write_tokenizer(tmp_path / "source")
    secret = tmp_path / "secret"
    secret.write_text("mine")
    (source / "LICENSE").symlink_to(secret)
    with pytest.raises(UserError, match="LICENSE lies outside its folder"):
        save(tiny_gpt(), tmp_path / "M1", source=source)


def test_not_enough_memory(folder, monkeypatch):
    """Guards against: a machine that is killed for a model that cannot fit."""
    monkeypatch.setattr("core.device.free_memory", lambda device: 1000)
    with pytest.raises(UserError, match="needs 0.0 GB, of which 0.0 are free on cpu"):
        load(folder)
    monkeypatch.setattr("core.device.free_memory", lambda device: None)
    load(folder)


def test_free_memory_and_disk(tmp_path):
    """Guards against: a number that is none."""
    free = free_memory(torch.device("cpu"))
    assert free is None or 2**20 < free < 2**50
    check_disk(tmp_path / "not" / "there", 1)
    with pytest.raises(UserError, match="free on the disk of .*lower --iters"):
        check_disk(tmp_path / "not" / "there", 2**60)
