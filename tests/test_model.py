"""model.py: the same numbers as the transformers library, and clear errors.

With and without a cache.
"""

import json

import pytest
import torch
import torch.nn.functional as F
from conftest import tiny_gpt
from transformers import AutoConfig, AutoModelForCausalLM

from config import pick_device, pick_dtype
from data import UserError
from model import STEP, KVCache, Normalise, attend, load, save
from sample import Sampling, generate, pack

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
    ((ours,),) = generate(load(folder), chat, prompt.tolist(), Sampling(24, temperature=0), key="k")
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
    cache = KVCache(model.config, 3, device=model.device, dtype=dtype)
    model(tokens[:, :9] * (torch.arange(9) < read[:, None]), cache)  # right-padded with 0
    cache.lengths += read
    for width in (1, 3, 1, 1, 2):
        at = cache.lengths[:, None] + torch.arange(width)
        hidden = model(tokens.gather(1, at), cache)
        cache.lengths += width
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
    read = KVCache(model.config, 3, device=model.device, dtype=torch.float32)
    slots = KVCache(model.config, 4, device=model.device, dtype=torch.float32)
    model(tokens, read)
    read.lengths += 8
    slots.put(torch.tensor([3, 0, 1]), read, torch.tensor([2, 0, 2]))
    slots.keep(torch.tensor([0, 3]))
    hidden = model(torch.tensor([[11], [12]]), slots)[:, 0]
    for row, (source, token) in enumerate(((0, 11), (2, 12))):
        alone = model(torch.cat((tokens[source], torch.tensor([token])))[None])[0, -1]
        torch.testing.assert_close(hidden[row], alone, atol=2e-5, rtol=0)


# ---- the parts that are spelt out for speed, against what they stand for ----


def attention(shared: int = 0, *, own: int = 21, new: int = 5, rows: int = 3):
    """Random q (B,6,T,8), k and v (B,2,S,8), and what may be seen.

    In doubles. They stand behind `shared` more that all rows have.
    """
    torch.manual_seed(shared + new)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, dtype=torch.float64, requires_grad=True)

    q = draw(rows, 6, new, 8)
    k, v = draw(rows, 2, own, 8), draw(rows, 2, own, 8)
    first = draw(2, shared, 8), draw(2, shared, 8)
    starts = torch.randint(0, own - new, (rows, 1, 1, 1))
    seen = torch.arange(own) <= starts + torch.arange(new)[:, None]
    return q, k, v, first, seen


@pytest.mark.parametrize("new", [1, 5])
@pytest.mark.parametrize("shared", [0, 1, 30])
def test_attention_spelt_out(shared, new):
    """Guards against: groups of heads mixed up.

    Also against: a shared prefix weighed by a softmax of its own, a lost gradient.
    """
    q, k, v, first, seen = attention(shared, new=new)
    bias = torch.zeros((), dtype=q.dtype).where(seen, -torch.inf)
    found = attend(q, (k, v, first if shared else None), bias)
    whole = [torch.cat((a.expand(3, -1, -1, -1), b), 2) for a, b in zip(first, (k, v))]
    mask = torch.cat((torch.ones(3, 1, new, shared, dtype=torch.bool), seen), -1)
    expected = F.scaled_dot_product_attention(q, *whole, attn_mask=mask, enable_gqa=True)
    torch.testing.assert_close(found, expected)
    leaves = [q, k, v, *(first if shared else ())]
    gradients = torch.autograd.grad(found.square().sum(), leaves)
    wanted = torch.autograd.grad(expected.square().sum(), leaves)
    for a, b in zip(gradients, wanted):
        torch.testing.assert_close(a, b)


def test_long_texts_are_attended_to_by_the_fused_kernel(monkeypatch, model):
    """Guards against: T x T weights kept for every layer of a long text.

    Also against: another result beyond the limit.
    """
    expected, calls, fused = model(ids(2, 40)), [], F.scaled_dot_product_attention

    def noting(*args, **more):
        calls.append(1)
        return fused(*args, **more)

    monkeypatch.setattr("model.SPELT", 39)
    monkeypatch.setattr(F, "scaled_dot_product_attention", noting)
    torch.testing.assert_close(model(ids(2, 40)), expected, atol=2e-5, rtol=0)
    assert len(calls) == 2


@pytest.mark.parametrize(
    "dtype, near", [(torch.float64, 1e-9), (torch.float32, 1e-5), (torch.bfloat16, 2e-2)], ids=str
)
def test_normalise_is_rms_norm(dtype, near):
    """Guards against: a wrong backward pass, which training hides; squares summed in bf16."""

    def draw(seed: int, *shape: int) -> torch.Tensor:
        rng = torch.Generator().manual_seed(seed)
        return torch.randn(shape, generator=rng, dtype=torch.float64).to(dtype)

    def rms_norm(x, weight, epsilon):
        return F.rms_norm(x, (48,), weight, epsilon)

    x, weight, gradient = draw(0, 4, 7, 48), draw(1, 48), draw(2, 4, 7, 48)

    def results(norm, kind: torch.dtype) -> list[torch.Tensor]:
        """The output, and the gradients of x and of the weight."""
        leaves = [t.to(kind).requires_grad_() for t in (x, weight)]
        y = norm(*leaves, 1e-5)
        return [y, *torch.autograd.grad(y, leaves, gradient.to(kind))]

    found, expected = results(Normalise.apply, dtype), results(rms_norm, torch.float64)
    assert found[0].dtype == dtype
    for a, b in zip(found, expected):
        largest = float(b.detach().abs().max())
        torch.testing.assert_close(a.double(), b, atol=near * largest, rtol=near)


@torch.no_grad()
def test_a_cache_is_no_longer_than_its_longest_row(model):
    """Guards against: attention over room that nobody uses.

    Also against: slices that are copied at every step, memory that only grows.
    """
    cache = KVCache(model.config, 2, device=model.device, dtype=torch.float32)
    for length, size in ((STEP - 1, STEP), (STEP, 2 * STEP), (3 * STEP, 4 * STEP), (5, STEP)):
        cache.lengths[:] = torch.tensor([length, 2])
        model(ids(2, 1), cache)
        assert cache.k.shape[3] == cache.v.shape[3] == size
        assert cache.k.is_contiguous()
        assert cache.v.is_contiguous()


@torch.no_grad()
@pytest.mark.parametrize("dtype, near", [(torch.float32, 1e-4), (torch.bfloat16, 0.3)], ids=str)
@pytest.mark.parametrize(
    "sizes", [{}, {"model_type": "qwen2", "tie_word_embeddings": False}], ids=str
)
def test_packed_weights_compute_the_same(sizes, dtype, near):
    """Guards against: a layout of the weights that is read wrongly.

    Also against: a bias or a tied head that is lost.
    """
    plain, packed = tiny_gpt(**sizes).to(dtype), pack(tiny_gpt(**sizes).to(dtype))
    for width in (1, 40):
        expected, found = (m.logits(m(ids(3, width))) for m in (plain, packed))
        torch.testing.assert_close(found, expected, atol=near, rtol=1e-2)


@torch.no_grad()
@pytest.mark.parametrize("broken", ["wrong", "absent"])
def test_what_cannot_be_packed_stays_plain(monkeypatch, broken):
    """Guards against: a private operator of torch that changes or goes.

    Every answer would go with it.
    """

    class Operators:
        _reorder_linear_weight = staticmethod(lambda w, rows: w.detach())
        if broken != "absent":
            _linear_pointwise = staticmethod(
                lambda x, w, *_: torch.zeros(*x.shape[:-1], len(w), dtype=x.dtype)
            )

    expected = tiny_gpt()(ids())
    monkeypatch.setattr(torch.ops, "mkldnn", Operators())
    model = pack(tiny_gpt())
    assert all(getattr(m, "packed", None) is None for m in model.modules())
    assert torch.equal(model(ids()), expected)


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
