"""model.py: ids -> hidden states -> logits, for one compact GPT of the Llama family.

In: token ids and, when sampling, a KVCache.  Out: hidden states; logits where a caller asks for
them. The modules carry the names of Hugging Face checkpoints, but for their prefix "model.".

Covered: RMSNorm, RoPE (default, linear and llama3 scaling), grouped-query attention, SwiGLU,
QK-norm (qwen3), q/k/v bias (qwen2), a tied or a separate head. Left out on purpose: sliding
windows, mixture of experts, quantised weights, beam search in the cache.

Shapes: B rows (B|1: one for all rows will do), T new tokens, S places of a row in the cache (else
T), D hidden, H query heads, G key/value heads, K width of a head, V vocabulary.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from core.cache import KVCache, Memory
from core.checkpoint import read_weights, write_checkpoint
from core.device import check_memory
from core.errors import UserError
from core.kernels import Linear, attend_shared, fold_heads, rms_norm
from core.lora import merged_weights
from core.model_config import GPTConfig, config_to_hf, read_config
from core.shards import held, place, whole

# Up to so many tokens, plain attention beats the fused kernel of CPUs (docs/log.md). Beyond, its
# T x T weights cost too much memory.
PLAIN_ATTENTION_LIMIT = 768


# ---- positions: RoPE (Su et al. 2021) ----


def rope_frequencies(config: GPTConfig) -> Tensor:
    """(K/2,) rotation frequencies, with the checkpoint's scaling. Raises UserError."""
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
    frequencies = config.rope_theta**-exponents
    scaling = config.rope_scaling or {}
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    required = {
        "default": [],
        "linear": ["factor"],
        "llama3": [
            "factor",
            "low_freq_factor",
            "high_freq_factor",
            "original_max_position_embeddings",
        ],
    }
    if not isinstance(kind, str) or kind not in required:
        raise UserError(
            f"rope type {kind!r} is not supported; supported are default, linear and llama3."
        )
    missing = [name for name in required[kind] if name not in scaling]
    if missing:
        raise UserError(f"config.json has rope type {kind!r} but lacks {', '.join(missing)}.")
    if kind == "linear":
        return frequencies / scaling["factor"]
    if kind == "llama3":
        return slow_long_waves(frequencies, scaling)
    return frequencies


def slow_long_waves(frequencies: Tensor, scaling: dict) -> Tensor:
    """Scaling of Llama 3.1: short waves stay, long waves are slowed, and between them it blends."""
    low = scaling["low_freq_factor"]
    high = scaling["high_freq_factor"]
    # how often a wave turns within the original context
    turns = scaling["original_max_position_embeddings"] * frequencies / (2 * math.pi)
    keep = ((turns - low) / (high - low)).clamp(0, 1)  # 1: a short wave, 0: a long wave
    return frequencies * (keep + (1 - keep) / scaling["factor"])


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turns each pair (i, i + K/2) of x (B,T,H,K) by its position. cos, sin (B|1,T,1,K)."""
    a, b = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-b, a), dim=-1) * sin


# ---- attention ----


def attend(q: Tensor, memory: Memory, bias: Tensor | None) -> Tensor:
    """softmax(q k^T / sqrt(K) + bias) v: q (B,H,T,K) -> (B,H,T,K).

    `bias` (B|1,1,T,S) is 0 where a token may look and -inf elsewhere. None means causal (no cache,
    and not on a CPU). One formula, in the way that is fastest for its shape.
    """
    if memory.shared_k is not None:
        return attend_shared(q, memory, bias)
    # The plain form wins on CPUs for short texts, and on other devices for single tokens.
    limit = PLAIN_ATTENTION_LIMIT if q.device.type == "cpu" else 1
    if bias is not None and q.shape[2] <= limit:
        return attend_plain(q, memory, bias)
    return F.scaled_dot_product_attention(
        q,
        memory.k,
        memory.v,
        attn_mask=bias,
        is_causal=bias is None,
        enable_gqa=q.shape[1] != memory.k.shape[1],
    )


def attend_plain(q: Tensor, memory: Memory, bias: Tensor) -> Tensor:
    """The formula spelt out. The H/G query heads of a group share its keys and values."""
    B, H, T, K = q.shape
    G, S = memory.k.shape[1:3]
    q = fold_heads(q * K**-0.5, G)  # (B,H,T,K) -> (B,G,H/G*T,K)
    scores = (q @ memory.k.mT).view(B, H, T, S).add_(bias)
    weights = scores.view(B, G, -1, S).softmax(-1)  # (B,G,H/G*T,S)
    return (weights @ memory.v).view(B, H, T, K)


class Layout(NamedTuple):
    """Where the T tokens of one pass stand, and what each of them may look at."""

    cos: Tensor  # (B|1,T,1,K) rotations
    sin: Tensor  # (B|1,T,1,K)
    bias: Tensor | None  # (B|1,1,T,S): 0 or -inf; None is causal
    places: Tensor  # (B|1,T) of the tokens in their rows of the cache
    cache: KVCache | None


# ---- modules ----


class RMSNorm(nn.RMSNorm):
    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps)


class Attention(nn.Module):
    def __init__(self, config: GPTConfig, layer: int):
        super().__init__()
        self.layer = layer
        self.width = config.head_dim
        hidden = config.hidden_size
        q_size = config.num_attention_heads * config.head_dim
        kv_size = config.num_key_value_heads * config.head_dim
        self.q_proj = Linear(hidden, q_size, bias=config.qkv_bias)
        self.k_proj = Linear(hidden, kv_size, bias=config.qkv_bias)
        self.v_proj = Linear(hidden, kv_size, bias=config.qkv_bias)
        self.o_proj = Linear(q_size, hidden, bias=False)
        self.q_norm = None
        self.k_norm = None
        if config.qk_norm:
            self.q_norm = RMSNorm(config.head_dim, config.rms_norm_eps)
            self.k_norm = RMSNorm(config.head_dim, config.rms_norm_eps)

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        q = self.q_proj(x).unflatten(-1, (-1, self.width))  # (B,T,D) -> (B,T,H,K)
        k = self.k_proj(x).unflatten(-1, (-1, self.width))  # (B,T,D) -> (B,T,G,K)
        v = self.v_proj(x).unflatten(-1, (-1, self.width))  # (B,T,D) -> (B,T,G,K)
        if self.q_norm is not None:
            q = self.q_norm(q)
            k = self.k_norm(k)
        q = rotate(q, layout.cos, layout.sin).transpose(1, 2)  # (B,H,T,K)
        k = rotate(k, layout.cos, layout.sin)  # (B,T,G,K)
        if layout.cache is None:
            memory = Memory(k.transpose(1, 2), v.transpose(1, 2))  # (B,G,T,K)
        else:
            memory = layout.cache.write(self.layer, k, v, layout.places)  # (B,G,S,K)
        y = attend(q, memory, layout.bias)  # (B,H,T,K)
        return self.o_proj(y.transpose(1, 2).flatten(2))  # (B,T,H*K) -> (B,T,D)


class MLP(nn.Module):
    """SwiGLU (Shazeer 2020)."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.gate_proj = Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    def __init__(self, config: GPTConfig, layer: int):
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config, layer)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, layout: Layout, dropout: float) -> Tensor:
        y = self.self_attn(self.input_layernorm(x), layout)
        x = x + F.dropout(y, dropout, self.training)
        y = self.mlp(self.post_attention_layernorm(x))
        return x + F.dropout(y, dropout, self.training)


class GPT(nn.Module):
    """`forward` ends at the hidden states. `logits` is a call of its own: few need all (B,T,V)."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.config = config
        self.kv_heads = config.num_key_value_heads  # of this process; see shards.split
        self.dropout = 0.0  # on the residual branches, in training; dpo.fit sets it
        # In training: keep the input of each block only, and compute the rest again.
        self.recompute = False
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config, i) for i in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.lm_head = None
        if not config.tie_word_embeddings:
            self.lm_head = Linear(config.hidden_size, config.vocab_size, bias=False)
        # Not a buffer, which a copy in bf16 would round: late positions would turn wrongly.
        self.frequencies = rope_frequencies(config)  # (K/2,)

    @property
    def device(self) -> torch.device:
        return self.norm.weight.device

    def new_cache(self, rows: int, shared: KVCache | None = None) -> KVCache:
        """An empty cache of B rows, in the precision of the weights."""
        c = self.config
        shape = (c.num_hidden_layers, rows, self.kv_heads, c.head_dim)
        return KVCache(shape, device=self.device, dtype=self.norm.weight.dtype, shared=shared)

    def forward(
        self,
        ids: Tensor,
        cache: KVCache | None = None,
        *,
        positions: Tensor | None = None,
        seen: Tensor | None = None,
    ) -> Tensor:
        """ids (B,T) -> hidden states (B,T,D).

        - Without a cache: causal attention over T. Rows are right-padded, so no token sees a pad.
        - With `positions` (B,T) and `seen` (B,T,T): a row is not one text. They say where its
          tokens stand, and what each token may look at.
        - With a cache: row b continues behind its own tokens. The caller moves `cache.lengths`
          on afterwards, because only the caller knows which of the T tokens were real.
        """
        x = self.embed_tokens(ids)  # (B,T,D)
        if torch.is_autocast_enabled(x.device.type):
            # Else the residual x stays fp32, and every block casts it.
            x = x.to(torch.get_autocast_dtype(x.device.type))
        layout = self.lay_out(x, cache, positions, seen)
        for block in self.layers:
            if self.recompute and self.training:
                x = checkpoint(block, x, layout, self.dropout, use_reentrant=False)
            else:
                x = block(x, layout, self.dropout)
        return self.norm(x)

    def lay_out(
        self, x: Tensor, cache: KVCache | None, positions: Tensor | None, seen: Tensor | None
    ) -> Layout:
        """The Layout of x (B,T,D); see forward.

        A place is a token's column in its row of the cache. Its position, which RoPE needs, also
        counts the beginning that all rows share.
        """
        places = torch.arange(x.shape[1], device=x.device)[None]  # (1,T)
        if cache is not None:
            cache.fit(x.shape[1])
            places = cache.lengths[:, None] + places  # (B,T)
            seen = torch.arange(cache.k.shape[3], device=x.device) <= places[..., None]  # (B,T,S)
        elif seen is None and x.device.type == "cpu":
            seen = places <= places[..., None]  # (1,T,T): with a bias, CPUs take attend_plain
        bias = None
        if seen is not None:
            bias = x.new_zeros(()).where(seen, -math.inf)[:, None]  # a 0 of x's dtype, or -inf
        if positions is None:
            positions = places if cache is None else places + cache.start
        cos, sin = self.rotations(positions, x.dtype)
        return Layout(cos, sin, bias, places, cache)

    def rotations(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """cos and sin of every position (B|1,T): (B|1,T,1,K) each."""
        angles = positions[..., None, None] * self.frequencies.to(positions.device)
        angles = angles.repeat(1, 1, 1, 2)  # (B|1,T,1,K/2) -> (B|1,T,1,K)
        return angles.cos().to(dtype), angles.sin().to(dtype)

    @property
    def head(self) -> Tensor:
        """(V,D): the weight that turns hidden states into logits, for log-probs of whole texts."""
        tied = self.config.tie_word_embeddings  # a packed copy has both (core/kernels.py)
        return self.embed_tokens.weight if tied else self.lm_head.weight

    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden states (..., D) -> logits (..., V), of the positions that the caller picked."""
        # not through `head`: a packed lm_head has no weight (core/kernels.py)
        if self.lm_head is None:
            return F.linear(hidden, self.embed_tokens.weight)
        return self.lm_head(hidden)


# ---- in and out ----


def load(
    folder: str | Path,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    prepare: Callable[[nn.Module], None] | None = None,
) -> GPT:
    """A Hugging Face directory -> a GPT in eval mode. Raises UserError for anything else.

    `prepare` changes the model before it has weights.
    """
    folder = Path(folder)
    config = read_config(folder)
    with torch.device("meta"):  # shapes only: a broken checkpoint is told before it takes memory
        model = GPT(config)
    shapes = {name: weight.shape for name, weight in model.named_parameters()}
    if prepare is not None:
        prepare(model)
    size = dtype.itemsize * sum(held(weight).numel() for weight in model.parameters())
    check_memory(size, torch.device(device), f"the model in {folder}")
    parts = {}
    for name, weight in read_weights(folder, shapes):
        parts[name] = place(weight, model.get_parameter(name), device, dtype)
    model.load_state_dict(parts, strict=False, assign=True)  # adapters have no weights yet
    model.frequencies = rope_frequencies(config).to(device)  # those made above were shapes only
    return model.eval()


def save(
    model: GPT,
    folder: str | Path,
    *,
    source: str | Path | None = None,
    dtype: torch.dtype = torch.float32,
) -> None:
    """A GPT -> a Hugging Face directory, with tokenizer, template and rubric of `source`.

    What adapters learnt is in the weights.
    """
    weights = merged_weights(model)
    on_host = ((name, whole(weight).to("cpu", dtype).contiguous()) for name, weight in weights)
    write_checkpoint(Path(folder), config_to_hf(model.config, dtype), on_host, source)
