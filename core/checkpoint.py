"""core/checkpoint.py: Hugging Face directories, read and written.

In: a folder with config.json and safetensors.  Out: a GPTConfig and tensors; and the way back.
model.py names its modules as this layout does, so no table of names stands between the two.
Left out on purpose: pickles (nothing is ever unpickled) and quantised weights.
"""

import json
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from core.errors import UserError
from core.files import read_json

SUPPORTED = ("llama", "mistral", "qwen2", "qwen3")
# Every config.json must name these sizes.
SIZES = ("vocab_size", "hidden_size", "intermediate_size")
SIZES += ("num_hidden_layers", "num_attention_heads")
# These files go from a model to the model that is trained from it.
COPIED = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
COPIED += ("tokenizer.model", "vocab.json", "merges.txt", "generation_config.json")
COPIED += ("chat_template.jinja", "rubric.txt", "LICENSE")


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
    check_architecture(raw)
    sizes = {name: raw[name] for name in SIZES}
    heads = raw["num_attention_heads"]
    sizes["num_key_value_heads"] = raw.get("num_key_value_heads") or heads
    sizes["head_dim"] = raw.get("head_dim") or raw["hidden_size"] // heads
    context = raw.get("max_position_embeddings", 2048)
    if raw.get("use_sliding_window", raw["model_type"] == "mistral"):
        # sliding windows are not computed: the context ends where the window does
        context = min(context, raw.get("sliding_window") or context)
    # transformers 5 writes rope_parameters; transformers 4 writes rope_theta and rope_scaling
    rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    return GPTConfig(
        **sizes,
        max_position_embeddings=context,
        rms_norm_eps=raw.get("rms_norm_eps", 1e-6),
        rope_theta=rope.get("rope_theta") or raw.get("rope_theta", 10000.0),
        rope_scaling=rope or None,
        tie_word_embeddings=raw.get("tie_word_embeddings", False),
        model_type=raw["model_type"],
        raw=raw,
    )


def check_architecture(raw: dict) -> None:
    """Raises UserError for a config.json that model.GPT would not compute as it is meant."""
    kind = raw.get("model_type")
    if kind not in SUPPORTED:
        known = ", ".join(SUPPORTED)
        raise UserError(f"model_type {kind!r} is not supported; supported are {known}.")
    required = {"hidden_act": "silu", "mlp_bias": False, "attention_bias": kind == "qwen2"}
    for key, value in required.items():
        if raw.get(key, value) != value:
            fault = f"config.json has {key}={raw[key]!r}"
            raise UserError(f"{fault}; for {kind} only {value!r} is supported.")
    missing = ", ".join(name for name in SIZES if name not in raw)
    if missing:
        raise UserError(f"config.json lacks {missing}; it does not describe a {kind} model.")


def config_to_hf(config: GPTConfig, dtype: torch.dtype) -> dict:
    """The config.json to write: the one that was read, or one with the keys of transformers."""
    raw = config.raw
    if not raw:
        raw = {key: value for key, value in asdict(config).items() if value is not None}
        del raw["raw"]
        raw["hidden_act"] = "silu"
        raw["attention_bias"] = config.qkv_bias
        raw["architectures"] = [config.model_type.capitalize() + "ForCausalLM"]
    outdated = ("dtype", "torch_dtype", "quantization_config")
    kept = {key: value for key, value in raw.items() if key not in outdated}
    return kept | {"torch_dtype": str(dtype).removeprefix("torch.")}


def read_weights(folder: Path, shapes: dict[str, torch.Size]) -> dict[str, Tensor]:
    """The tensors of `shapes`, by their names in model.GPT. Raises UserError where one is amiss."""
    tensors = {name.removeprefix("model."): x for name, x in read_tensors(folder).items()}
    for name, shape in shapes.items():
        if name not in tensors or tensors[name].shape != shape:
            fault = f"config.json and weights disagree, first at {name}"
            raise UserError(f"{folder}: {fault}; the checkpoint is incomplete.")
    # some checkpoints store a head although it is tied to the embeddings: it is left out
    return {name: tensors[name] for name in shapes}


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of one or several safetensors files, under the names that the files use."""
    index = read_json(folder / "model.safetensors.index.json")
    files = index.get("weight_map", {"": "model.safetensors"}).values()
    tensors = {}
    for name in sorted(set(files)):
        path = folder / name
        if not path.exists():
            weights = "weights are read from safetensors files only"
            raise UserError(f"{folder} has no {name}; {weights}.")
        try:
            tensors |= load_file(path)
        except (SafetensorError, OSError) as error:
            fault = f"is not a readable safetensors file ({error})"
            raise UserError(f"{path} {fault}; copy or download it again.") from None
    return tensors


def write_checkpoint(
    folder: Path, config: dict, tensors: dict[str, Tensor], source: str | Path | None
) -> None:
    """Writes a Hugging Face directory, whole or not at all. `tensors` are named as in model.GPT."""
    temporary = Path(f"{folder}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    named = {n if n.startswith("lm_head") else f"model.{n}": x for n, x in tensors.items()}
    save_file(named, temporary / "model.safetensors", metadata={"format": "pt"})
    (temporary / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    for name in COPIED if source else ():
        if (Path(source) / name).exists():
            shutil.copy(Path(source) / name, temporary / name)
    if not folder.exists():
        temporary.rename(folder)
        return
    # Whatever else lies in an existing folder is not ours to delete.
    for file in temporary.iterdir():
        file.replace(folder / file.name)
    temporary.rmdir()
