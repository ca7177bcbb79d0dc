"""core/kernels.py: what is written by hand because the plain form is slow or large on the way back.

In: tensors and modules.  Out: the same numbers as the plain form beside each, which says what is
computed.
- rms_norm: a backward pass that keeps one number a row.
- picked_logps: log-probs of the targets, without a tensor of all logits.
- picked_probs: p of a few tokens, whose logits are not rounded to bf16. It has no twin.
- pack: weights laid out once for a processor's matrix product. Tests hold that each
  agrees with its plain twin. A first reading may skip this file and believe the twins.

Shapes: M rows, C rows of one chunk, D hidden, V vocabulary; for attention those of model.py.
"""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from core.cache import Memory

LOGITS_AT_ONCE = 1 << 24  # elements of one chunk of logits; 67 MB in fp32


# ---- RMSNorm (Zhang and Sennrich 2019) ----


def plain_rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / rms(x) * weight: (..., D) -> (..., D)."""
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """plain_rms_norm, in fp32 on the way, with a backward pass of its own."""
    if torch.is_grad_enabled():
        return RMSNormKernel.apply(x, weight, eps)
    return rms_norm_forward(x, weight, eps)[0]


def rms_norm_forward(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The norm (..., D), and the scale 1 / rms(x) (..., 1)."""
    # The sum of squares would overflow or round in half precision.
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    # In place: these are the largest tensors after the logits,
    # and every block makes two of them.
    norm = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
    scale = norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
    return (wide * scale).mul_(weight).to(x.dtype), scale


class RMSNormKernel(torch.autograd.Function):
    """Keeps x and one number a row, where autograd would keep three fp32 copies of x."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        y, scale = rms_norm_forward(x, weight, eps)
        ctx.save_for_backward(x, weight, scale)
        return y

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor | None, None]:
        x, weight, scale = ctx.saved_tensors
        wide = x.to(scale.dtype)
        grad = grad.to(scale.dtype)
        to_weight = None
        if ctx.needs_input_grad[1]:
            to_weight = (grad * wide).mul_(scale).flatten(0, -2).sum(0)
        # The norm divides the length of x out.
        # So a change along x itself changes nothing, and is taken out of the gradient.
        inner = grad * weight
        along_x = (inner * wide).mean(-1, keepdim=True) * scale**3
        to_x = inner.mul_(scale).addcmul_(wide, along_x, value=-1)
        return to_x.to(x.dtype), to_weight, None


# ---- log-probs of the targets ----


def plain_picked_logps(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """log softmax(hidden W^T) at the targets (M,): hidden (M,D), W (V,D) -> (M,) in fp32."""
    logits = (hidden @ weight.T).float()  # (M,V)
    return logits.log_softmax(-1).gather(-1, targets[:, None])[:, 0]


def picked_logps(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """plain_picked_logps in chunks: of the (M,V) logits, memory never holds more than one chunk.

    The backward pass computes the logits of each chunk again.
    """
    return PickedLogps.apply(hidden, weight, targets)


class PickedLogps(torch.autograd.Function):
    """Keeps a number a row, and no logits."""

    @staticmethod
    def forward(ctx, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        norms = []
        picked = []
        for h, target in chunks(weight, hidden, targets):
            logits = (h @ weight.T).float()  # (C,V)
            norms.append(logits.logsumexp(-1))
            at_target = logits.gather(-1, target[:, None])[:, 0]  # (C,)
            picked.append(at_target - norms[-1])
        ctx.save_for_backward(hidden, weight, targets, torch.cat(norms))
        return torch.cat(picked)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor | None, None]:
        hidden, weight, targets, norms = ctx.saved_tensors
        to_hidden = torch.empty_like(hidden)
        to_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        for h, target, norm, g, out in chunks(weight, hidden, targets, norms, grad, to_hidden):
            # 1) softmax of the chunk, once more
            logits = (h @ weight.T).float()  # (C,V)
            softmax = logits.sub_(norm[:, None]).exp_()
            # 2) the gradient of log p(target) by the logits: 1 at the target, minus softmax
            d = softmax.mul_(-g[:, None])
            d = d.scatter_add_(-1, target[:, None], g[:, None])
            d = d.to(h.dtype)
            # 3) through the product
            torch.mm(d, weight, out=out)
            if to_weight is not None:
                to_weight.addmm_(d.T, h)
        return to_hidden, to_weight, None


def chunks(weight: Tensor, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The tensors, cut alike into so many rows that their logits stay within LOGITS_AT_ONCE."""
    size = max(1, LOGITS_AT_ONCE // len(weight))
    return zip(*(tensor.split(size) for tensor in tensors), strict=True)


def picked_probs(model: nn.Module, hidden: Tensor, wanted: Sequence[int]) -> Tensor:
    """p(w) of the next token for each id w of `wanted`: hidden (M,D) -> (M,wanted), in fp32.

    A bf16 logit has three digits, so many texts would tie. The logits of `wanted` are computed
    again in fp32, from the same hidden states. The others stay rounded, and p with them, but the
    ratio of two p of a row does not.
    """
    ids = list(wanted)
    logits = model.logits(hidden).float()  # (M,V)
    if hidden.dtype == torch.bfloat16:
        rows = model.head[ids]  # (wanted,D)
        logits[:, ids] = hidden.float() @ rows.float().T
    return logits.softmax(-1)[:, ids]


# ---- packed weights ----


class Linear(nn.Linear):
    """nn.Linear. `packed` is the weight in the layout of oneDNN, and then `weight` is None."""

    packed: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.packed is None:
            return F.linear(x, self.weight, self.bias)
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")


@torch.no_grad()
def pack(model: nn.Module) -> nn.Module:
    """Lays the weights of every Linear out for oneDNN, once. The model can no longer be trained.

    F.linear does this at every call, which is half of a decode step. The operators are private to
    torch. So each packed layer is tried against the plain product, and a layer whose product
    differs, or a torch without these operators, stays plain. Nothing happens on other devices.
    """
    if model.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return model
    if model.lm_head is None:
        # A tied head is packed too, beside the embeddings.
        sizes = (model.config.hidden_size, model.config.vocab_size)
        model.lm_head = Linear(*sizes, bias=False, device="meta")
        model.lm_head.weight = model.embed_tokens.weight
    head = model.lm_head.weight
    for layer in model.modules():
        # a layer that is split over processes stays as it is
        if isinstance(layer, Linear) and not isinstance(layer.weight, DTensor):
            try_to_pack(layer)
    model.lm_head.weight = head  # kept for GPT.head; the others are not needed twice
    return model


def try_to_pack(layer: Linear) -> None:
    """Packs one layer, unless the packed product differs from the plain one."""
    probe = layer.weight[:2]  # (2,in)
    plain = layer(probe)
    try:
        layer.packed = torch.ops.mkldnn._reorder_linear_weight(layer.weight, 64)
        packed = layer(probe)
    except (AttributeError, RuntimeError):
        layer.packed = None  # this torch has no such operators
        return
    # bf16 has three digits
    tolerance = 1e-2 * float(plain.abs().max())
    if torch.allclose(packed.float(), plain.float(), rtol=2e-2, atol=tolerance):
        layer.weight = None
    else:
        layer.packed = None


# ---- attention behind a beginning that all rows share ----


def fold_heads(q: Tensor, groups: int) -> Tensor:
    """Queries (B,H,T,K) -> (B,G,H/G*T,K).

    The H/G heads of a group join the query length, so keys and values are never repeated.
    """
    B, _, _, K = q.shape
    return q.reshape(B, groups, -1, K)


def attend_shared(q: Tensor, memory: Memory, bias: Tensor) -> Tensor:
    """Attention behind a beginning that all rows share, which is read once for all rows.

    Source: Juravsky et al. 2024, "Hydragen".
    """
    B, H, T, K = q.shape
    G, S = memory.k.shape[1:3]
    R = memory.shared_k.shape[1]
    q = fold_heads(q * K**-0.5, G)
    # 1) scores of each row's own tokens
    scores = q @ memory.k.mT
    scores = scores.view(B, H, T, S).add_(bias)
    scores = scores.view(B, G, -1, S)  # (B,G,H/G*T,S)
    # 2) scores of what all share: the rows of the batch are one long query
    flat = q.transpose(0, 1).reshape(G, -1, K)  # (G,B*H/G*T,K)
    shared_scores = (flat @ memory.shared_k.mT).view(G, B, -1, R)
    shared_scores = shared_scores.transpose(0, 1)  # (B,G,H/G*T,R)
    # 3) one softmax over both, then the values of each part
    weights = torch.cat((shared_scores, scores), -1).softmax(-1)  # (B,G,H/G*T,R+S)
    shared_weights = weights[..., :R].transpose(0, 1).reshape(G, -1, R)
    shared = (shared_weights @ memory.shared_v).view(G, B, -1, K)
    shared = shared.transpose(0, 1)  # (B,G,H/G*T,K)
    own = weights[..., R:] @ memory.v  # (B,G,H/G*T,K)
    return (own + shared).reshape(B, H, T, K)
