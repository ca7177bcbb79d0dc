"""model.py: weights -> hidden states -> logits, for one compact GPT of the Llama family.

In: token ids (and, when sampling, a KVCache).  Out: hidden states; logits only where a caller asks for them.
`load(dir)` and `save(model, dir)` read and write Hugging Face directories: config.json and safetensors.
The modules carry the names of that layout, so a state dict is a checkpoint and no renaming table is needed.

Covered: RMSNorm, RoPE (default, linear and llama3 scaling), grouped-query attention, SwiGLU,
QK-norm (qwen3), q/k/v bias (qwen2), a tied or a separate head.
Left out on purpose: sliding windows (the context is cut to the window), mixture of experts, quantised weights, pickles.

Shapes: B rows, T new tokens, S tokens in the cache, D hidden, H query heads, G key/value heads, K head width, V vocabulary.
"""
import json
import math
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from data import UserError, read_json

SUPPORTED = ("llama", "mistral", "qwen2", "qwen3")
TRAVELS = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "tokenizer.model", "vocab.json",
           "merges.txt", "generation_config.json", "chat_template.jinja", "rubric.txt", "LICENSE")


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
            raise UserError(f"model_type {kind!r} is not supported; supported are {', '.join(SUPPORTED)}.")
        for key, wanted in (("hidden_act", "silu"), ("mlp_bias", False), ("attention_bias", kind == "qwen2")):
            if raw.get(key, wanted) != wanted:
                raise UserError(f"config.json has {key}={raw[key]!r}; for {kind} only {wanted!r} is supported.")
        sizes = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
        if missing := [k for k in sizes if k not in raw]:
            raise UserError(f"config.json lacks {', '.join(missing)}; it does not describe a {kind} model.")
        rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
        window = raw.get("sliding_window") if raw.get("use_sliding_window", kind == "mistral") else None
        context, heads = raw.get("max_position_embeddings", 2048), raw["num_attention_heads"]
        return cls(
            **{k: raw[k] for k in sizes}, num_key_value_heads=raw.get("num_key_value_heads") or heads,
            head_dim=raw.get("head_dim") or raw["hidden_size"] // heads,
            max_position_embeddings=min(context, window) if window else context,
            rms_norm_eps=raw.get("rms_norm_eps", 1e-6),
            rope_theta=rope.get("rope_theta") or raw.get("rope_theta", 10000.0),
            rope_scaling=rope or None, tie_word_embeddings=raw.get("tie_word_embeddings", False), model_type=kind, raw=raw)

    def to_hf(self, dtype: torch.dtype) -> dict:
        """The config.json to write: the one that was read or, for a model made here, one in transformers' own keys."""
        own = {k: v for k, v in asdict(self).items() if k != "raw" and v is not None}
        own |= {"hidden_act": "silu", "attention_bias": self.qkv_bias,
                "architectures": [self.model_type.capitalize() + "ForCausalLM"]}
        kept = {k: v for k, v in (self.raw or own).items() if k not in ("dtype", "torch_dtype", "quantization_config")}
        return {**kept, "torch_dtype": str(dtype).removeprefix("torch.")}


def rope_frequencies(config: GPTConfig) -> Tensor:
    """The K/2 rotation frequencies, after the checkpoint's scaling (llama3: long waves are slowed, Llama 3.1 report)."""
    freqs = config.rope_theta ** -(torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim)
    scaling = config.rope_scaling or {}
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    factors = {"linear": ["factor"], "llama3": ["factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"]}
    if missing := [k for k in factors.get(kind, []) if k not in scaling]:
        raise UserError(f"config.json has rope type {kind!r} but lacks {', '.join(missing)}.")
    if kind == "default":
        return freqs
    if kind == "linear":
        return freqs / scaling["factor"]
    if kind == "llama3":
        low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
        turns = scaling["original_max_position_embeddings"] * freqs / (2 * math.pi)
        keep = ((turns - low) / (high - low)).clamp(0, 1)           # 1: short waves, untouched; 0: long waves, slowed
        return freqs * (keep + (1 - keep) / scaling["factor"])
    raise UserError(f"rope type {kind!r} is not supported; supported are default, linear and llama3.")


def pick_device(name: str) -> torch.device:
    """"auto" is CUDA, else MPS, else the CPU. Raises UserError where the named device is not there."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(kind for kind, found in there.items() if found))
    if not there.get(name.split(":")[0]):
        raise UserError(f"device {name!r} is not available here; use one of auto, {', '.join(k for k, f in there.items() if f)}.")
    return torch.device(name)


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """"auto" is bf16 where the hardware multiplies it (CUDA, AMX or AVX512-BF16 CPUs), else fp32. Raises UserError."""
    if name == "auto":
        cpu = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
        fast = torch.cuda.is_bf16_supported() if device.type == "cuda" else device.type == "cpu" and cpu
        return torch.bfloat16 if fast else torch.float32
    if name not in ("fp32", "bf16"):
        raise UserError(f"dtype {name!r} is not known; use auto, fp32 or bf16.")
    return torch.bfloat16 if name == "bf16" else torch.float32


class KVCache:
    """Keys and values of B rows; row b holds `lengths[b]` tokens. An argument of the forward pass, never model state."""

    def __init__(self, config: GPTConfig, rows: int, capacity: int, *, device: torch.device, dtype: torch.dtype):
        shape = (config.num_hidden_layers, rows, config.num_key_value_heads, capacity, config.head_dim)
        self.k = torch.zeros(shape, device=device, dtype=dtype)     # (layers, B, G, S, K)
        self.v = torch.zeros(shape, device=device, dtype=dtype)
        self.lengths = torch.zeros(rows, dtype=torch.long, device=device)

    def put(self, rows: Tensor, other: "KVCache", sources: Tensor) -> None:
        """Copies the rows `sources` of `other` into the rows `rows`: one prefilled prompt can fill many slots."""
        reach = int(other.lengths.max())
        self.k[:, rows, :, :reach] = other.k[:, sources, :, :reach]
        self.v[:, rows, :, :reach] = other.v[:, sources, :, :reach]
        self.lengths[rows] = other.lengths[sources]

    def keep(self, rows: Tensor) -> None:
        """Forgets every row that is not listed."""
        self.k, self.v, self.lengths = self.k[:, rows], self.v[:, rows], self.lengths[rows]

    def write(self, layer: int, k: Tensor, v: Tensor, positions: Tensor, reach: int) -> tuple[Tensor, Tensor]:
        """Stores k, v (B,T,G,K) at `positions` (B,T); returns everything up to `reach` as (B,G,S,K)."""
        rows = torch.arange(len(positions), device=k.device)[:, None]
        self.k[layer, rows, :, positions] = k
        self.v[layer, rows, :, positions] = v
        return self.k[layer, :, :, :reach], self.v[layer, :, :, :reach]


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """RoPE in the half-split layout of Llama checkpoints. x (B,T,H,K), cos and sin (B,T,1,K)."""
    a, b = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-b, a), dim=-1) * sin


def attend_one(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """Attention of one new token a row, q (B,H,1,K), spelt out: on CPUs three times as fast as the fused kernel here.

    The H/G query heads of a group are folded into the query length, so keys and values are never repeated.
    """
    grouped = q.unflatten(1, (k.shape[1], -1)).flatten(2, 3)                        # (B,G,H/G,K)
    weights = (grouped @ k.transpose(-1, -2)).float() * q.shape[-1] ** -0.5         # (B,G,H/G,S)
    weights = weights.masked_fill_(~mask, -math.inf).softmax(-1).to(v.dtype)
    return (weights @ v).flatten(1, 2)[:, :, None]                                  # (B,H,1,K)


class Attention(nn.Module):
    def __init__(self, config: GPTConfig):
        super().__init__()
        d, self.width = config.hidden_size, config.head_dim
        kv = config.num_key_value_heads * self.width
        self.q_proj = nn.Linear(d, config.num_attention_heads * self.width, bias=config.qkv_bias)
        self.k_proj = nn.Linear(d, kv, bias=config.qkv_bias)
        self.v_proj = nn.Linear(d, kv, bias=config.qkv_bias)
        self.o_proj = nn.Linear(config.num_attention_heads * self.width, d, bias=False)
        if config.qk_norm:
            self.q_norm = nn.RMSNorm(self.width, config.rms_norm_eps)
            self.k_norm = nn.RMSNorm(self.width, config.rms_norm_eps)

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor], mask: Tensor | None, store) -> Tensor:
        q = self.q_proj(x).unflatten(-1, (-1, self.width))          # (B,T,D) -> (B,T,H,K)
        k = self.k_proj(x).unflatten(-1, (-1, self.width))          # (B,T,D) -> (B,T,G,K)
        v = self.v_proj(x).unflatten(-1, (-1, self.width))
        if hasattr(self, "q_norm"):
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = rotate(q, *rope).transpose(1, 2), rotate(k, *rope)   # q (B,H,T,K)
        k, v = store(k, v) if store else (k.transpose(1, 2), v.transpose(1, 2))     # (B,G,S,K)
        y = attend_one(q, k, v, mask) if mask is not None and q.shape[2] == 1 else F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=q.shape[1] != k.shape[1])
        return self.o_proj(y.transpose(1, 2).flatten(2))            # (B,H,T,K) -> (B,T,D)


class MLP(nn.Module):
    def __init__(self, config: GPTConfig):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))          # SwiGLU


class Block(nn.Module):
    def __init__(self, config: GPTConfig):
        super().__init__()
        self.input_layernorm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, rope, mask: Tensor | None, store, dropout: float) -> Tensor:
        y = self.self_attn(self.input_layernorm(x), rope, mask, store)
        x = x + F.dropout(y, dropout, self.training)
        return x + F.dropout(self.mlp(self.post_attention_layernorm(x)), dropout, self.training)


class GPT(nn.Module):
    """`forward` ends at the hidden states; `logits` is a separate call, so nobody is forced to make (B,T,V)."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.config = config
        self.dropout = 0.0                      # on the residual branches, in training mode only; set by dpo.fit
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))
        self.norm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.lm_head = None if config.tie_word_embeddings else nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.register_buffer("frequencies", rope_frequencies(config), persistent=False)

    @property
    def device(self) -> torch.device:
        return self.norm.weight.device

    def rope(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        angles = positions[..., None, None] * self.frequencies.float()              # (B,T,1,K/2)
        angles = torch.cat((angles, angles), dim=-1)
        return angles.cos().to(dtype), angles.sin().to(dtype)

    def forward(self, ids: Tensor, cache: KVCache | None = None) -> Tensor:
        """ids (B,T) -> hidden states (B,T,D).

        Without a cache: plain causal attention over T; rows are right-padded, so pads cannot be seen.
        With one: row b continues at position `cache.lengths[b]`. The caller moves `lengths` on afterwards,
        because only the caller knows which of the T were real.
        """
        x = self.embed_tokens(ids)
        steps = torch.arange(ids.shape[1], device=ids.device)
        if cache is None:
            positions, mask = steps[None], None
        else:
            positions = cache.lengths[:, None] + steps                              # (B,T)
            reach = int(cache.lengths.max()) + ids.shape[1]
            seen = torch.arange(reach, device=ids.device)
            mask = None if reach == ids.shape[1] else (seen <= positions[:, :, None])[:, None]      # (B,1,T,S)
        rope = self.rope(positions, x.dtype)
        for i, layer in enumerate(self.layers):
            store = (lambda k, v, i=i: cache.write(i, k, v, positions, reach)) if cache else None
            x = layer(x, rope, mask, store, self.dropout)
        return self.norm(x)

    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden states (..., D) -> logits (..., V), of whichever positions the caller picked."""
        return F.linear(hidden, self.embed_tokens.weight if self.lm_head is None else self.lm_head.weight)


def read_weights(folder: Path) -> dict[str, Tensor]:
    """All tensors of one or several safetensors files, in HF names. Raises UserError where a file is absent or broken."""
    index = read_json(folder / "model.safetensors.index.json").get("weight_map", {"": "model.safetensors"})
    tensors = {}
    for name in sorted(set(index.values())):
        if not (folder / name).exists():
            raise UserError(f"{folder} has no {name}; weights are read from safetensors files only.")
        try:
            tensors |= load_file(folder / name)
        except (SafetensorError, OSError) as e:
            raise UserError(f"{folder / name} is not a readable safetensors file ({e}); copy or download it again.") from None
    return tensors


def load(folder: str | Path, *, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32) -> GPT:
    """Reads a Hugging Face directory into a GPT in eval mode. Raises UserError for anything that is not one."""
    folder = Path(folder)
    raw = read_json(folder / "config.json")
    if not raw:
        raise UserError(f"{folder} has no config.json; --model takes a Hugging Face directory.")
    with torch.device("meta"):                  # shapes first: a broken checkpoint is named before memory is taken
        model = GPT(GPTConfig.from_hf(raw))
    tensors = {name.removeprefix("model."): t for name, t in read_weights(folder).items()}
    if model.lm_head is None:
        tensors.pop("lm_head.weight", None)     # some tied checkpoints store the head a second time
    wanted = {name: p.shape for name, p in model.named_parameters()}
    wrong = [n for n, shape in wanted.items() if n not in tensors or tensors[n].shape != shape]
    if wrong:
        raise UserError(f"{folder}: config.json and weights disagree, first at {wrong[0]}; the checkpoint is incomplete.")
    model.load_state_dict({n: tensors[n].to(device, dtype) for n in wanted}, assign=True)
    model.frequencies = rope_frequencies(model.config).to(device)
    return model.eval()


def save(model: GPT, folder: str | Path, *, source: str | Path | None = None, dtype: torch.dtype = torch.float32) -> None:
    """Writes a Hugging Face directory, whole or not at all; tokenizer and the like are copied from `source`."""
    folder, temporary = Path(folder), Path(f"{folder}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    named = {n if n.startswith("lm_head") else "model." + n: p for n, p in model.named_parameters()}
    weights = {n: p.detach().to("cpu", dtype).contiguous() for n, p in named.items()}
    save_file(weights, temporary / "model.safetensors", metadata={"format": "pt"})
    (temporary / "config.json").write_text(json.dumps(model.config.to_hf(dtype), indent=2) + "\n")
    for name in TRAVELS if source else ():
        if (Path(source) / name).exists():
            shutil.copy(Path(source) / name, temporary / name)
    if not folder.exists():
        temporary.rename(folder)
    else:                                       # what else lies in an existing folder is not ours to delete
        for file in temporary.iterdir():
            file.replace(folder / file.name)
        temporary.rmdir()
