"""core/lora.py: low-rank adapters (Hu et al. 2021), so that a large model learns in little memory.

Every linear layer of the blocks keeps its weight W as it is, and learns two thin matrices:

    y = W x + s B A x,    s = ALPHA / R    (section 4.1, eq. 3)

B starts at zero, so training starts at M_t itself. In the end W + s B A is the new weight.
In: a GPT.  Out: the same GPT with adapters; its weights with all that they learnt; and files in the
layout of the peft library.
Left out on purpose: adapters on the embeddings, the head and the norms, and dropout of their own.

Shapes: M rows, R rank.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from core.files import writing
from core.kernels import Linear
from core.ranks import first_only
from core.shards import place, shard, whole

# A constant, whatever the rank: then one learning rate suits all ranks (docs/scale.md).
ALPHA = 32


class LoraLinear(Linear):
    """A linear layer with a frozen weight, and an adapter in fp32."""

    def __init__(self, frozen: Linear, rank: int):
        sizes = (frozen.in_features, frozen.out_features)
        super().__init__(*sizes, bias=False, device="meta")  # its weight is that of `frozen`
        self.weight = frozen.weight
        self.bias = frozen.bias
        device = frozen.weight.device
        self.lora_A = nn.Parameter(torch.zeros(rank, sizes[0], device=device))
        self.lora_B = nn.Parameter(torch.zeros(sizes[1], rank, device=device))
        self.scale = ALPHA / rank

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(0, -2)  # (..., in) -> (M,in)
        inner = F.linear(rows, self.lora_A)  # (M,R)
        # In place: neither B A x nor its gradient times s ever is a tensor of its own.
        y = super().forward(rows)  # (M,out)
        y.addmm_(inner, self.lora_B.T.to(y.dtype), alpha=self.scale)
        return y.unflatten(0, x.shape[:-1])  # (..., out)

    def merged(self) -> Tensor:
        """W + s B A: (out,in), in the dtype of W."""
        change = self.scale * (self.lora_B @ self.lora_A)  # in fp32
        return (self.weight + change).to(self.weight.dtype)


def prepare_training(
    model: nn.Module, *, lora: int | None, device: torch.device, dtype: torch.dtype
) -> None:
    """What a model gets before its weights: adapters of rank `lora`, if any, and shards."""
    if lora is not None:
        add_adapters(model, lora)
    shard(model, device, dtype)


def add_adapters(model: nn.Module, rank: int) -> nn.Module:
    """Freezes the model, and gives each linear layer of its blocks an adapter of zeros."""
    model.requires_grad_(False)
    for parent in list(model.layers.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, Linear):
                setattr(parent, name, LoraLinear(layer, rank))
    return model


def start_adapters(model: nn.Module, *, seed: int) -> nn.Module:
    """Draws A as peft does, and leaves B at zero: the adapters do nothing yet."""
    generator = torch.Generator().manual_seed(seed)  # on the CPU: the same on every device
    drawn = {}
    for name, weight in model.named_parameters():
        if is_adapter(name):
            start = torch.zeros(weight.shape)
            if name.endswith("lora_A"):
                bound = weight.shape[1] ** -0.5
                start.uniform_(-bound, bound, generator=generator)
            drawn[name] = place(start, weight, model.device, torch.float32)
    model.load_state_dict(drawn, strict=False, assign=True)
    return model


@torch.no_grad()
def merged_weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """(name, weight) of every weight of the plain model, with what adapters learnt in it."""
    for prefix, module in model.named_modules():
        for name, weight in module.named_parameters(prefix, recurse=False):
            if is_adapter(name):
                continue
            adapted = isinstance(module, LoraLinear) and name.endswith("weight")
            yield name, module.merged() if adapted else weight.detach()


def is_adapter(name: str) -> bool:
    """Whether a parameter of this name is A or B of an adapter."""
    return name.endswith(("lora_A", "lora_B"))


def save_adapters(model: nn.Module, folder: Path, *, base: str) -> None:
    """adapter_model.safetensors and adapter_config.json, for peft. `base` names the frozen model.

    Nothing is written without adapters.
    """
    tensors = {}
    for name, weight in model.named_parameters():
        if is_adapter(name):
            tensor = whole(weight.detach()).cpu().contiguous()
            tensors[f"base_model.model.model.{name}.weight"] = tensor
    if tensors:
        write_adapters(folder, tensors, adapter_config(model, base))


def adapter_config(model: nn.Module, base: str) -> dict:
    """As peft writes it."""
    layers = {}
    for name, layer in model.named_modules():
        if isinstance(layer, LoraLinear):
            layers[name.rsplit(".", 1)[-1]] = layer
    some = next(iter(layers.values()))
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": some.lora_A.shape[0],
        "lora_alpha": ALPHA,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": sorted(layers),
        "inference_mode": True,
    }


@first_only
def write_adapters(folder: Path, tensors: dict[str, Tensor], config: dict) -> None:
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
        (folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")
