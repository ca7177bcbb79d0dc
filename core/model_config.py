"""core/model_config.py: config.json: the sizes and switches of a GPT.

In: a folder's config.json, which a stranger may have written.  Out: a GPTConfig. Every number is
checked for its kind and its bounds before anything is allocated.
Left out on purpose: architectures that model.GPT does not compute, and quantised weights.
"""

from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from core.errors import UserError
from core.files import read_json

SUPPORTED = ("llama", "mistral", "qwen2", "qwen3")


# The least and the largest value of what every config.json must name, and of what it may name.
SIZES = {
    "vocab_size": (1, 2**24),
    "hidden_size": (1, 2**17),
    "intermediate_size": (1, 2**20),
    "num_hidden_layers": (1, 1000),
    "num_attention_heads": (1, 2**12),
}
OTHER_SIZES = {
    "num_key_value_heads": (1, 2**12),
    "head_dim": (2, 2**12),
    "max_position_embeddings": (1, 2**31),
    "sliding_window": (1, 2**31),
}
FRACTIONS = {"rms_norm_eps": (1e-12, 1), "rope_theta": (1, 1e15)}
# The same of rope_scaling, and of rope_parameters in newer files.
ROPE_SIZES = {"original_max_position_embeddings": (1, 2**31)}
ROPE_FRACTIONS = {
    "rope_theta": (1, 1e15),
    "factor": (1, 1e6),
    "low_freq_factor": (1e-6, 1e6),
    "high_freq_factor": (1e-6, 1e6),
}
SWITCHES = ("tie_word_embeddings", "use_sliding_window")


@dataclass
class GPTConfig:
    """The sizes and switches of a GPT, under the names of config.json."""

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
    raw: dict = field(default_factory=dict, repr=False)  # the config.json that was read

    @property
    def qk_norm(self) -> bool:
        return self.model_type == "qwen3"

    @property
    def qkv_bias(self) -> bool:
        return self.model_type == "qwen2"


def read_config(folder: Path) -> GPTConfig:
    """A folder's config.json. Raises UserError where model.GPT cannot compute it."""
    raw = read_json(folder / "config.json")
    if not raw:
        raise UserError(f"{folder} has no config.json; --model takes a Hugging Face directory.")
    # null is as good as absent
    given = {key: value for key, value in raw.items() if value is not None}
    check_architecture(given)
    place = f"config.json of {folder}"
    check_numbers(given, SIZES | OTHER_SIZES, place, whole=True)
    check_numbers(given, FRACTIONS, place, whole=False)
    # transformers 5 writes rope_parameters; transformers 4 writes rope_theta and rope_scaling
    rope = given.get("rope_parameters") or given.get("rope_scaling") or {}
    if not isinstance(rope, dict):
        raise UserError(f"{place}: the settings of RoPE must be an object.")
    check_numbers(rope, ROPE_SIZES, f"{place}, RoPE", whole=True)
    check_numbers(rope, ROPE_FRACTIONS, f"{place}, RoPE", whole=False)
    heads = given["num_attention_heads"]
    groups = given.get("num_key_value_heads", heads)
    if heads % groups:
        raise UserError(f"{place}: {heads} heads do not share {groups} keys.")
    head_dim = given.get("head_dim", given["hidden_size"] // heads)
    if head_dim < 2 or head_dim % 2:
        raise UserError(f"{place}: RoPE needs an even head_dim, not {head_dim}.")
    context = given.get("max_position_embeddings", 2048)
    if given.get("use_sliding_window", given["model_type"] == "mistral"):
        # sliding windows are not computed: the context ends where the window does
        context = min(context, given.get("sliding_window", context))
    sizes = {name: given[name] for name in SIZES}
    theta = rope.get("rope_theta") or given.get("rope_theta", 10000.0)
    return GPTConfig(
        **sizes,
        num_key_value_heads=groups,
        head_dim=head_dim,
        max_position_embeddings=context,
        rms_norm_eps=given.get("rms_norm_eps", 1e-6),
        rope_theta=theta,
        rope_scaling=rope or None,
        tie_word_embeddings=given.get("tie_word_embeddings", False),
        model_type=given["model_type"],
        raw=raw,
    )


def check_architecture(given: dict) -> None:
    """Raises UserError for a config.json that model.GPT would not compute as it is meant."""
    kind = given.get("model_type")
    if kind not in SUPPORTED:
        known = ", ".join(SUPPORTED)
        raise UserError(f"model_type {kind!r} is not supported; supported are {known}.")
    quantised = given.get("quantization_config")
    if quantised is not None:
        method = quantised.get("quant_method") if isinstance(quantised, dict) else quantised
        raise UserError(
            f"config.json says that the weights are quantised ({method}); take the model's "
            f"unquantised form (bf16, fp16 or fp32)."
        )
    required = {"hidden_act": "silu", "mlp_bias": False, "attention_bias": kind == "qwen2"}
    for key, value in required.items():
        if given.get(key, value) != value:
            fault = f"config.json has {key}={given[key]!r}"
            raise UserError(f"{fault}; for {kind} only {value!r} is supported.")
    for key in SWITCHES:
        if not isinstance(given.get(key, False), bool):
            raise UserError(f"config.json has {key}={given[key]!r}; it must be true or false.")
    missing = ", ".join(name for name in SIZES if name not in given)
    if missing:
        raise UserError(f"config.json lacks {missing}; it does not describe a {kind} model.")


def check_numbers(
    given: dict, bounds: dict[str, tuple[float, float]], place: str, *, whole: bool
) -> None:
    """Raises UserError where a number is of another kind or outside its bounds."""
    kind = "a whole number" if whole else "a number"
    for name, (least, most) in bounds.items():
        value = given.get(name)
        if value is None:
            continue
        is_number = isinstance(value, int if whole else int | float)
        # true is an int to Python; and what is not a number fails every comparison
        if isinstance(value, bool) or not is_number or not least <= value <= most:
            shown = repr(value)[:40]
            raise UserError(
                f"{place}: {name} must be {kind} from {least:g} to {most:g}, not {shown}."
            )


def config_to_hf(config: GPTConfig, dtype: torch.dtype) -> dict:
    """The config.json to write: the one that was read, or one with the keys of transformers."""
    raw = config.raw
    if not raw:
        raw = {key: value for key, value in asdict(config).items() if value is not None}
        del raw["raw"]
        raw["hidden_act"] = "silu"
        raw["attention_bias"] = config.qkv_bias
        raw["architectures"] = [config.model_type.capitalize() + "ForCausalLM"]
    outdated = ("dtype", "torch_dtype")
    kept = {key: value for key, value in raw.items() if key not in outdated}
    return kept | {"torch_dtype": str(dtype).removeprefix("torch.")}
