"""model.py: weights -> hidden states -> logits, for one compact GPT of the Llama family.

In: token ids (and, when sampling, a KVCache).  Out: hidden states; logits only where a caller asks for them.
`load(dir)` and `save(model, dir)` read and write Hugging Face directories: config.json and safetensors.
The modules carry the names of that layout, so a state dict is a checkpoint and no renaming table is needed.

Covered: RMSNorm, RoPE (default, linear and llama3 scaling), grouped-query attention, SwiGLU,
QK-norm (qwen3), q/k/v bias (qwen2), a tied or a separate head.
Left out on purpose: sliding windows (the context is cut to the window), mixture of experts, quantised weights, pickles.

Shapes: B rows, T new tokens, S tokens a row can see, R tokens all rows share, D hidden, H query heads, G key/value heads,
K head width, V vocabulary.
"""

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from data import UserError, read_json, read_tensors, write_checkpoint

SUPPORTED = ("llama", "mistral", "qwen2", "qwen3")
STEP = 32  # a cache grows by so many tokens
SPELT = 768  # up to here attention without a cache is spelt out on CPUs; its weights are T x T


@dataclass
class GPTConfig:
    """The sizes and switches of a GPT; `raw` is the config.json they came from, kept so that saving loses nothing."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int = 2048
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    rope_scaling: dict | None = None
    tie_word_embeddings: bool = True
    model_type: str = "qwen3"
    raw: dict = field(default_factory=dict, repr=False)

    @property
    def qk_norm(self) -> bool:
        return self.model_type == "qwen3"

    @property
    def qkv_bias(self) -> bool:
        return self.model_type == "qwen2"

    @classmethod
    def from_hf(cls, raw: dict) -> "GPTConfig":
        """Reads a Hugging Face config.json, of transformers 4 (rope_theta) or 5 (rope_parameters). Raises UserError."""
        kind = raw.get("model_type")
        if kind not in SUPPORTED:
            raise UserError(
                f"model_type {kind!r} is not supported; supported are {', '.join(SUPPORTED)}."
            )
        for key, wanted in (
            ("hidden_act", "silu"),
            ("mlp_bias", False),
            ("attention_bias", kind == "qwen2"),
        ):
            if raw.get(key, wanted) != wanted:
                raise UserError(
                    f"config.json has {key}={raw[key]!r}; for {kind} only {wanted!r} is supported."
                )
        sizes = (
            "vocab_size",
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
        )
        if missing := [k for k in sizes if k not in raw]:
            raise UserError(
                f"config.json lacks {', '.join(missing)}; it does not describe a {kind} model."
            )
        rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
        window = (
            raw.get("sliding_window") if raw.get("use_sliding_window", kind == "mistral") else None
        )
        context, heads = raw.get("max_position_embeddings", 2048), raw["num_attention_heads"]
        return cls(
            **{k: raw[k] for k in sizes},
            num_key_value_heads=raw.get("num_key_value_heads") or heads,
            head_dim=raw.get("head_dim") or raw["hidden_size"] // heads,
            max_position_embeddings=min(context, window) if window else context,
            rms_norm_eps=raw.get("rms_norm_eps", 1e-6),
            rope_theta=rope.get("rope_theta") or raw.get("rope_theta", 10000.0),
            rope_scaling=rope or None,
            tie_word_embeddings=raw.get("tie_word_embeddings", False),
            model_type=kind,
            raw=raw,
        )

    def to_hf(self, dtype: torch.dtype) -> dict:
        """The config.json to write: the one that was read or, for a model made here, one in transformers' own keys."""
        own = {k: v for k, v in asdict(self).items() if k != "raw" and v is not None}
        own |= {
            "hidden_act": "silu",
            "attention_bias": self.qkv_bias,
            "architectures": [self.model_type.capitalize() + "ForCausalLM"],
        }
        kept = {
            k: v
            for k, v in (self.raw or own).items()
            if k not in ("dtype", "torch_dtype", "quantization_config")
        }
        return {**kept, "torch_dtype": str(dtype).removeprefix("torch.")}


def rope_frequencies(config: GPTConfig) -> Tensor:
    """The K/2 rotation frequencies, after the checkpoint's scaling (llama3: long waves are slowed, Llama 3.1 report)."""
    freqs = config.rope_theta ** -(
        torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
    )
    scaling = config.rope_scaling or {}
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    factors = {
        "linear": ["factor"],
        "llama3": [
            "factor",
            "low_freq_factor",
            "high_freq_factor",
            "original_max_position_embeddings",
        ],
    }
    if missing := [k for k in factors.get(kind, []) if k not in scaling]:
        raise UserError(f"config.json has rope type {kind!r} but lacks {', '.join(missing)}.")
    if kind == "default":
        return freqs
    if kind == "linear":
        return freqs / scaling["factor"]
    if kind == "llama3":
        low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
        turns = scaling["original_max_position_embeddings"] * freqs / (2 * math.pi)
        keep = ((turns - low) / (high - low)).clamp(
            0, 1
        )  # 1: short waves, untouched; 0: long waves, slowed
        return freqs * (keep + (1 - keep) / scaling["factor"])
    raise UserError(
        f"rope type {kind!r} is not supported; supported are default, linear and llama3."
    )


class KVCache:
    """Keys and values of B rows; row b holds `lengths[b]` tokens behind `shared`, a cache of one row that all rows stand behind.

    An argument of the forward pass, never model state. Memory and attention reach to the longest row, rounded up to STEP.
    """

    def __init__(
        self,
        config: GPTConfig,
        rows: int,
        *,
        device: torch.device,
        dtype: torch.dtype,
        shared: "KVCache | None" = None,
    ):
        shape = (config.num_hidden_layers, rows, config.num_key_value_heads, 0, config.head_dim)
        self.k = torch.zeros(shape, device=device, dtype=dtype)  # (layers, B, G, S, K)
        self.v = torch.zeros(shape, device=device, dtype=dtype)
        self.lengths = torch.zeros(rows, dtype=torch.long, device=device)
        self.shared = shared
        self.start = (
            int(shared.lengths[0]) if shared else 0
        )  # the position of a row's own first token

    def fit(self, more: int) -> None:
        """Makes room for `more` tokens a row and gives back what is no longer needed, so that k and v stay contiguous."""
        size = -(-(int(self.lengths.max()) + more) // STEP) * STEP
        if size != (held := self.k.shape[3]):
            self.k, self.v = (
                torch.cat(
                    (
                        x[:, :, :, :size],
                        x.new_zeros((*x.shape[:3], max(0, size - held), x.shape[4])),
                    ),
                    3,
                )
                for x in (self.k, self.v)
            )

    def put(self, rows: Tensor, other: "KVCache", sources: Tensor) -> None:
        """Copies the rows `sources` of `other` into the rows `rows`: one prefilled prompt can fill many slots."""
        self.lengths[rows] = other.lengths[sources]
        self.fit(1)
        reach = min(other.k.shape[3], self.k.shape[3])
        self.k[:, rows, :, :reach] = other.k[:, sources, :, :reach]
        self.v[:, rows, :, :reach] = other.v[:, sources, :, :reach]

    def keep(self, rows: Tensor) -> None:
        """Forgets every row that is not listed."""
        self.k, self.v, self.lengths = self.k[:, rows], self.v[:, rows], self.lengths[rows]

    def write(self, layer: int, k: Tensor, v: Tensor, at: Tensor) -> tuple:
        """Stores k, v (B,T,G,K) of one layer at the places `at` (B,T) of each row; returns what `attend` calls memory."""
        rows = torch.arange(len(at), device=k.device)[:, None]
        self.k[layer][rows, :, at], self.v[layer][rows, :, at] = k, v
        return (
            self.k[layer],
            self.v[layer],
            self.shared and (self.shared.k[layer, 0], self.shared.v[layer, 0]),
        )


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """RoPE in the half-split layout of Llama checkpoints. x (B,T,H,K), cos and sin (B,T,1,K)."""
    a, b = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-b, a), dim=-1) * sin


def attend(q: Tensor, memory: tuple, bias: Tensor | None) -> Tensor:
    """Softmax attention, q (B,H,T,K) -> (B,H,T,K); bias (B|1,1,T,S) is 0 or -inf, None is causal.

    `memory` is k and v (B,G,S,K) of each row, and None or the pair k and v (G,R,K) that all rows share.
    Spelt out where that is two to three times as fast: one new token a row, and a few hundred on CPUs. The H/G query heads
    of a group are folded into the query length, so keys and values are never repeated. What all rows share is read once
    for all of them, as one matrix (Juravsky et al. 2024, "Hydragen").
    """
    k, v, shared = memory
    B, H, T, K = q.shape
    G, S = k.shape[1:3]
    if bias is None or not shared and T > (SPELT if q.device.type == "cpu" else 1):
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=bias, is_causal=bias is None, enable_gqa=H != G
        )
    q = (q * K**-0.5).reshape(B, G, -1, K)  # (B,H,T,K) -> (B,G,H/G*T,K)
    scores = (q @ k.mT).view(B, H, T, S).add_(bias).view(B, G, -1, S)  # (B,G,H/G*T,S)
    if not shared:
        return (scores.softmax(-1) @ v).view(B, H, T, K)
    flat, R = q.transpose(0, 1).reshape(G, -1, K), shared[0].shape[1]  # (G,B*H/G*T,K)
    first = (flat @ shared[0].mT).view(G, B, -1, R).transpose(0, 1)  # (B,G,H/G*T,R)
    weights = torch.cat((first, scores), -1).softmax(-1)
    common = weights[..., :R].transpose(0, 1).reshape(G, -1, R) @ shared[1]  # (G,B*H/G*T,K)
    return (weights[..., R:] @ v + common.view(G, B, -1, K).transpose(0, 1)).reshape(B, H, T, K)


def normalise(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """x / rms(x) * weight (..., D), in fp32 on the way; and 1 / rms(x) (..., 1)."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    scale = (
        torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
        .square_()
        .div_(x.shape[-1])
        .add_(eps)
        .rsqrt_()
    )
    return (wide * scale).mul_(weight).to(x.dtype), scale


class Normalise(torch.autograd.Function):
    """normalise, with a backward pass that keeps x and a number a row, where autograd would keep three fp32 copies of x."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        y, scale = normalise(x, weight, eps)
        ctx.save_for_backward(x, weight, scale)
        return y

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight, scale = ctx.saved_tensors
        wide, grad = x.to(scale.dtype), grad.to(scale.dtype)
        inner = grad * weight
        pull = (inner * wide).mean(
            -1, keepdim=True
        ) * scale**3  # along x itself nothing may move: its length is divided out
        to_weight = (grad * wide).mul_(scale).flatten(0, -2).sum(0)
        return inner.mul_(scale).addcmul_(wide, pull, value=-1).to(x.dtype), to_weight, None


class RMSNorm(nn.RMSNorm):
    def forward(self, x: Tensor) -> Tensor:
        return (
            Normalise.apply(x, self.weight, self.eps)
            if torch.is_grad_enabled()
            else normalise(x, self.weight, self.eps)[0]
        )


class Linear(nn.Linear):
    packed: Tensor | None = None  # see pack

    def forward(self, x: Tensor) -> Tensor:
        if self.packed is None:
            return F.linear(x, self.weight, self.bias)
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")


class Attention(nn.Module):
    def __init__(self, config: GPTConfig):
        super().__init__()
        d, self.width, kv = (
            config.hidden_size,
            config.head_dim,
            config.num_key_value_heads * config.head_dim,
        )
        self.q_proj = Linear(d, config.num_attention_heads * self.width, bias=config.qkv_bias)
        self.k_proj = Linear(d, kv, bias=config.qkv_bias)
        self.v_proj = Linear(d, kv, bias=config.qkv_bias)
        self.o_proj = Linear(config.num_attention_heads * self.width, d, bias=False)
        if config.qk_norm:
            self.q_norm = RMSNorm(self.width, config.rms_norm_eps)
            self.k_norm = RMSNorm(self.width, config.rms_norm_eps)

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor], bias: Tensor | None, store) -> Tensor:
        q = self.q_proj(x).unflatten(-1, (-1, self.width))  # (B,T,D) -> (B,T,H,K)
        k = self.k_proj(x).unflatten(-1, (-1, self.width))  # (B,T,D) -> (B,T,G,K)
        v = self.v_proj(x).unflatten(-1, (-1, self.width))
        if hasattr(self, "q_norm"):
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = rotate(q, *rope).transpose(1, 2), rotate(k, *rope)  # q (B,H,T,K)
        memory = (
            store(k, v) if store else (k.transpose(1, 2), v.transpose(1, 2), None)
        )  # k, v (B,G,S,K)
        return self.o_proj(
            attend(q, memory, bias).transpose(1, 2).flatten(2)
        )  # (B,H,T,K) -> (B,T,D)


class MLP(nn.Module):
    def __init__(self, config: GPTConfig):
        super().__init__()
        self.gate_proj = Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))  # SwiGLU


class Block(nn.Module):
    def __init__(self, config: GPTConfig):
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, rope, bias: Tensor | None, store, dropout: float) -> Tensor:
        y = self.self_attn(self.input_layernorm(x), rope, bias, store)
        x = x + F.dropout(y, dropout, self.training)
        return x + F.dropout(self.mlp(self.post_attention_layernorm(x)), dropout, self.training)


class GPT(nn.Module):
    """`forward` ends at the hidden states; `logits` is a separate call, so nobody is forced to make (B,T,V)."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.config = config
        self.dropout = 0.0  # on the residual branches, in training mode only; set by dpo.fit
        self.recompute = False  # in training: keep a block's input only, and compute the rest again
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.lm_head = (
            None
            if config.tie_word_embeddings
            else Linear(config.hidden_size, config.vocab_size, bias=False)
        )
        self.frequencies = rope_frequencies(
            config
        )  # no buffer: in bf16 weights it would be rounded, and late tokens misplaced

    @property
    def device(self) -> torch.device:
        return self.norm.weight.device

    def rope(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        angles = (positions[..., None, None] * self.frequencies.to(positions.device)).repeat(
            1, 1, 1, 2
        )  # (B,T,1,K)
        return angles.cos().to(dtype), angles.sin().to(dtype)

    def forward(
        self,
        ids: Tensor,
        cache: KVCache | None = None,
        *,
        positions: Tensor | None = None,
        seen: Tensor | None = None,
    ) -> Tensor:
        """ids (B,T) -> hidden states (B,T,D).

        Without a cache: plain causal attention over T; rows are right-padded, so pads cannot be seen. Where a row is
        not one text, `positions` (B,T) tells where its tokens stand, and `seen` (B,T,T) what each of them may look at.
        With one: row b continues at `cache.start + cache.lengths[b]`. The caller moves `lengths` on afterwards, because
        only the caller knows which of the T were real.
        """
        x = self.embed_tokens(ids)  # (B,T,D)
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(
                torch.get_autocast_dtype(x.device.type)
            )  # or every block would cast an fp32 stream
        at = torch.arange(ids.shape[1], device=ids.device)[None]  # (1,T)
        if cache is not None:
            cache.fit(ids.shape[1])
            at = cache.lengths[:, None] + at  # (B,T)
            seen = torch.arange(cache.k.shape[3], device=ids.device) <= at[..., None]  # (B,T,S)
        elif seen is None and x.device.type == "cpu":
            seen = at <= at[..., None]  # (1,T,T)
        bias = (
            None if seen is None else x.new_zeros(()).where(seen, -math.inf)[:, None]
        )  # (B|1,1,T,S)
        rope = self.rope(
            at + (cache.start if cache else 0) if positions is None else positions, x.dtype
        )
        for i, layer in enumerate(self.layers):
            store = (lambda k, v, i=i: cache.write(i, k, v, at)) if cache else None
            if self.recompute and self.training:
                x = checkpoint(layer, x, rope, bias, store, self.dropout, use_reentrant=False)
            else:
                x = layer(x, rope, bias, store, self.dropout)
        return self.norm(x)

    @property
    def head(self) -> Tensor:
        """(V,D): the weight that turns hidden states into logits."""
        return (self.lm_head or self.embed_tokens).weight

    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden states (..., D) -> logits (..., V), of whichever positions the caller picked."""
        return self.lm_head(hidden) if self.lm_head else F.linear(hidden, self.embed_tokens.weight)


def load(
    folder: str | Path, *, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> GPT:
    """Reads a Hugging Face directory into a GPT in eval mode. Raises UserError for anything that is not one."""
    folder = Path(folder)
    raw = read_json(folder / "config.json")
    if not raw:
        raise UserError(f"{folder} has no config.json; --model takes a Hugging Face directory.")
    with torch.device("meta"):  # shapes first: a broken checkpoint is named before memory is taken
        model = GPT(GPTConfig.from_hf(raw))
    tensors = {name.removeprefix("model."): t for name, t in read_tensors(folder).items()}
    if model.lm_head is None:
        tensors.pop("lm_head.weight", None)  # some tied checkpoints store the head a second time
    wanted = {name: p.shape for name, p in model.named_parameters()}
    wrong = [n for n, shape in wanted.items() if n not in tensors or tensors[n].shape != shape]
    if wrong:
        raise UserError(
            f"{folder}: config.json and weights disagree, first at {wrong[0]}; the checkpoint is incomplete."
        )
    model.load_state_dict({n: tensors[n].to(device, dtype) for n in wanted}, assign=True)
    model.frequencies = rope_frequencies(model.config).to(device)
    return model.eval()


def save(
    model: GPT,
    folder: str | Path,
    *,
    source: str | Path | None = None,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Writes a Hugging Face directory, whole or not at all; tokenizer and the like are copied from `source`."""
    named = {n if n.startswith("lm_head") else "model." + n: p for n, p in model.named_parameters()}
    weights = {n: p.detach().to("cpu", dtype).contiguous() for n, p in named.items()}
    write_checkpoint(Path(folder), model.config.to_hf(dtype), weights, source)
