"""core/kernels.py: what is written by hand gives the numbers of its plain twin.

Forward and backward, in doubles where the kernel bears them.
"""

from collections.abc import Callable, Sequence

import pytest
import torch
import torch.nn.functional as F
from conftest import tiny_gpt
from torch import Tensor

from core.cache import Memory
from core.kernels import (
    Linear,
    attend_shared,
    pack,
    picked_logps,
    picked_probs,
    plain_picked_logps,
    plain_rms_norm,
    rms_norm,
    try_to_pack,
)
from model import attend, attend_plain


def draw(seed: int, *shape: int) -> Tensor:
    """Doubles from a normal distribution."""
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=rng, dtype=torch.float64)


def values_and_gradients(
    compute: Callable[..., Tensor], leaves: Sequence[Tensor], gradient: Tensor
) -> list[Tensor]:
    """The result of `compute`, and the gradient of each leaf for this gradient of the result."""
    leaves = [leaf.detach().clone().requires_grad_() for leaf in leaves]
    y = compute(*leaves)
    return [y.detach(), *torch.autograd.grad(y, leaves, gradient.to(y.dtype))]


# ---- RMSNorm ----


def torch_rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return F.rms_norm(x, weight.shape, weight, eps)


@pytest.mark.parametrize("twin", [plain_rms_norm, torch_rms_norm])
@pytest.mark.parametrize("shape", [(1, 48), (4, 7, 48)], ids=str)
@pytest.mark.parametrize(
    "dtype, near", [(torch.float64, 1e-9), (torch.float32, 1e-5), (torch.bfloat16, 2e-2)], ids=str
)
def test_rms_norm_is_its_plain_twin(dtype, near, shape, twin):
    """Guards against: a wrong backward pass, which training hides; squares summed in bf16."""
    x, weight, gradient = draw(0, *shape), draw(1, 48), draw(2, *shape)
    x, weight, gradient = x.to(dtype), weight.to(dtype), gradient.to(dtype)
    found = values_and_gradients(lambda *leaves: rms_norm(*leaves, 1e-5), [x, weight], gradient)
    wide = [x.double(), weight.double()]
    expected = values_and_gradients(lambda *leaves: twin(*leaves, 1e-5), wide, gradient)
    assert [a.dtype for a in found] == [dtype] * 3
    for a, b in zip(found, expected):
        largest = float(b.abs().max())
        torch.testing.assert_close(a.double(), b, atol=near * largest, rtol=near)


def test_rms_norm_in_bf16_is_rounded_once():
    """Guards against: squares summed, or a scale applied, in the three digits of bf16.

    One rounding is off by 2^-8 at most.
    """
    x, weight = draw(0, 4, 7, 48).bfloat16(), draw(1, 48).bfloat16()
    expected = plain_rms_norm(x.double(), weight.double(), 1e-5)
    found = rms_norm(x, weight, 1e-5).double()
    torch.testing.assert_close(found, expected, atol=0, rtol=2**-8 + 1e-5)


def test_rms_norm_is_the_same_without_gradients():
    """Guards against: a model that writes with another norm than it is trained with."""
    x, weight = draw(0, 4, 7, 48).requires_grad_(), draw(1, 48)
    with torch.no_grad():
        found = rms_norm(x, weight, 1e-5)
    assert torch.equal(found, rms_norm(x, weight, 1e-5))


# ---- log-probs of the targets ----


def log_softmax_at(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """In doubles throughout, where plain_picked_logps comes down to fp32."""
    return (hidden @ weight.T).log_softmax(-1).gather(-1, targets[:, None])[:, 0]


@pytest.mark.parametrize("twin", [plain_picked_logps, log_softmax_at])
@pytest.mark.parametrize(
    "at_once", [1 << 24, 5 * 50, 3 * 50, 1], ids=["whole", "by 5", "by 3", "by 1"]
)
def test_picked_logps_is_its_plain_twin(monkeypatch, at_once, twin):
    """Guards against: a hand-written backward pass that is not the derivative.

    Also against: a chunk, or the last and shorter one, that is lost or counted twice.
    """
    monkeypatch.setattr("core.kernels.LOGITS_AT_ONCE", at_once)
    leaves, gradient = [draw(0, 10, 8), draw(1, 50, 8)], draw(2, 10)
    targets = torch.tensor([3, 49, 0, 3, 17, 17, 21, 8, 30, 49])
    found = values_and_gradients(lambda *h: picked_logps(*h, targets), leaves, gradient)
    expected = values_and_gradients(lambda *h: twin(*h, targets), leaves, gradient)
    assert found[0].dtype == torch.float32
    torch.testing.assert_close(found[0], expected[0].float())
    for a, b in zip(found[1:], expected[1:]):
        torch.testing.assert_close(a.float(), b.float(), atol=1e-5, rtol=1e-4)


# ---- p of a few tokens ----


@torch.no_grad()
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("packed", [False, True])
def test_picked_probs_in_bf16_do_not_tie(packed, tied):
    """Guards against: answers that a judge cannot tell apart, as bf16 logits have three digits.

    Also against: a p of the wanted tokens among themselves.
    """
    model = tiny_gpt(tie_word_embeddings=tied).to(torch.bfloat16)
    model.head.div_(model.head.std() / 0.5)
    model.head[[7, 3]] += 0.5  # likely ones, with large logits, as trained models have
    wide = model.head.double()
    hidden = draw(0, 200, model.config.hidden_size).to(torch.bfloat16)
    wanted = [7, 3]
    expected = (hidden.double() @ wide.T).softmax(-1)[:, wanted]
    if packed:
        pack(model)
    found = picked_probs(model, hidden, wanted)
    rounded = model.logits(hidden).float().softmax(-1)[:, wanted]
    assert found.dtype == torch.float32
    # up to the rounding of the other logits, which all p of a row share
    ratio = (expected[:, 0] / expected[:, 1]).float()
    torch.testing.assert_close(found[:, 0] / found[:, 1], ratio, rtol=1e-4, atol=0)
    torch.testing.assert_close(found, expected.float(), rtol=0.1, atol=1e-3)
    far = (rounded[:, 0] / rounded[:, 1] / ratio - 1).abs()
    assert far.mean() > 5e-3  # what it is for


# ---- attention ----


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
    found = attend(q, Memory(k, v, *(first if shared else ())), bias)
    whole = [torch.cat((a.expand(3, -1, -1, -1), b), 2) for a, b in zip(first, (k, v))]
    mask = torch.cat((torch.ones(3, 1, new, shared, dtype=torch.bool), seen), -1)
    expected = F.scaled_dot_product_attention(q, *whole, attn_mask=mask, enable_gqa=True)
    torch.testing.assert_close(found, expected)
    leaves = [q, k, v, *(first if shared else ())]
    gradients = torch.autograd.grad(found.square().sum(), leaves)
    wanted = torch.autograd.grad(expected.square().sum(), leaves)
    for a, b in zip(gradients, wanted):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("new", [1, 5])
@pytest.mark.parametrize("shared", [1, 30])
def test_attend_shared_is_its_plain_twin(shared, new):
    """Guards against: one row that attends to what another row holds.

    The twin reads the beginning once for each row, in front of the row's own keys and values.
    """
    q, k, v, first, seen = attention(shared, new=new)
    bias = torch.zeros((), dtype=q.dtype).where(seen, -torch.inf)  # (B,1,T,S)

    def by_hand(q, k, v, shared_k, shared_v) -> Tensor:
        return attend_shared(q, Memory(k, v, shared_k, shared_v), bias)

    def plain(q, k, v, shared_k, shared_v) -> Tensor:
        k = torch.cat((shared_k.expand(3, -1, -1, -1), k), 2)
        v = torch.cat((shared_v.expand(3, -1, -1, -1), v), 2)
        return attend_plain(q, Memory(k, v), F.pad(bias, (shared, 0)))

    leaves, gradient = [q, k, v, *first], draw(9, *q.shape)
    found = values_and_gradients(by_hand, leaves, gradient)
    expected = values_and_gradients(plain, leaves, gradient)
    for a, b in zip(found, expected):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-9)


# ---- packed weights ----


def can_be_packed(weight: Tensor) -> bool:
    """Whether this torch and this processor have a layout for such weights."""
    try:
        torch.ops.mkldnn._reorder_linear_weight(weight, 64)
    except (AttributeError, RuntimeError):
        return False
    return True


@torch.no_grad()
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype, near", [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)], ids=str)
def test_a_packed_layer_is_f_linear(dtype, near, bias):
    """Guards against: a layout that is read wrongly, with odd sizes and more than one row.

    Also against: a layer that could be packed and is not.
    """
    layer = Linear(33, 50, bias=bias).to(dtype)
    weight = layer.weight.clone()
    try_to_pack(layer)
    assert (layer.packed is not None) == (layer.weight is None) == can_be_packed(weight)
    for shape in ((1, 33), (70, 33), (3, 5, 33)):
        x = draw(len(shape), *shape).to(dtype)
        expected = F.linear(x, weight, layer.bias)
        largest = float(expected.abs().max())
        torch.testing.assert_close(layer(x), expected, atol=near * largest, rtol=near)


def ids(rows: int = 2, width: int = 100) -> Tensor:
    return torch.randint(3, 120, (rows, width), generator=torch.Generator().manual_seed(1))


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
