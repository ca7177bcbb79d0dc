"""core/checkpoint.py: the files of a Hugging Face directory, read and written.

In: a folder with safetensors, and the shapes that its config.json asks for.  Out: tensors; and the
way back. Nothing is taken for what it is not: names, shapes and dtypes are checked in the headers,
before any weight is read. model.py names its modules as this layout does, so no table of names
stands between the two.
Left out on purpose: pickles (nothing is ever unpickled) and quantised weights.
"""

import json
import re
import shutil
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from core.errors import UserError
from core.files import read_json, writing

DTYPES = ("F32", "BF16", "F16", "F64")
COMPUTED = re.compile(r"rotary_emb\.inv_freq$")  # old files store what follows from config.json
# These files go from a model to the model that is trained from it.
COPIED = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
COPIED += ("tokenizer.model", "vocab.json", "merges.txt", "generation_config.json")
COPIED += ("chat_template.jinja", "rubric.txt", "LICENSE")


class Stored(NamedTuple):
    """A tensor in a file, as the file's header describes it."""

    file: Path
    name: str  # in the file
    shape: list[int]
    dtype: str


def read_weights(folder: Path, shapes: dict[str, torch.Size]) -> dict[str, Tensor]:
    """The tensors of `shapes`, by their names in model.GPT. Raises UserError where one is amiss."""
    stored = read_headers(folder)
    check_stored(folder, stored, shapes)
    tensors = {}
    for file in sorted({tensor.file for tensor in stored.values()}):
        tensors |= load_file(file)
    weights = {}
    for name in shapes:
        weights[name] = tensors[stored[name].name]
        if not bool(torch.isfinite(weights[name]).all()):
            raise UserError(f"{folder}: {name} holds numbers that are not finite.")
    # A head that is tied to the embeddings may be stored all the same. Then it must be the same.
    if "lm_head.weight" in stored.keys() - shapes.keys():
        head = tensors[stored["lm_head.weight"].name]
        if not torch.equal(head, weights["embed_tokens.weight"]):
            raise UserError(
                f"{folder}: lm_head.weight differs from the embeddings, but config.json says that "
                f"they are one (tie_word_embeddings)."
            )
    return weights


def check_stored(folder: Path, stored: dict[str, Stored], shapes: dict[str, torch.Size]) -> None:
    """Raises UserError where files and config.json disagree, before any weight is read."""
    for name, shape in shapes.items():
        if name not in stored or stored[name].shape != list(shape):
            fault = f"config.json and weights disagree, first at {name}"
            raise UserError(f"{folder}: {fault}; the checkpoint is incomplete.")
    for name, tensor in stored.items():
        if name not in shapes and name != "lm_head.weight" and not COMPUTED.search(name):
            raise UserError(
                f"{folder}: the weights hold {name}, which config.json does not ask for; the "
                f"checkpoint is of another kind, or quantised."
            )
        if tensor.dtype not in DTYPES:
            raise UserError(
                f"{folder}: {name} is stored as {tensor.dtype}; take a checkpoint in one of "
                f"{', '.join(DTYPES)}."
            )


def read_headers(folder: Path) -> dict[str, Stored]:
    """Every tensor of one or several safetensors files, under its name in model.GPT."""
    index = read_json(folder / "model.safetensors.index.json")
    files = index.get("weight_map", {"": "model.safetensors"})
    if not isinstance(files, dict) or not all(isinstance(name, str) for name in files.values()):
        raise UserError(f"{folder}/model.safetensors.index.json: 'weight_map' names no files.")
    stored = {}
    for name in sorted(set(files.values())):
        if not (folder / name).exists():
            weights = "weights are read from safetensors files only"
            raise UserError(f"{folder} has no {name}; {weights}.")
        path = inside(folder, name)
        try:
            with safe_open(path, "pt") as file:
                for key in file.keys():  # noqa: SIM118  (the file is no dict)
                    part = file.get_slice(key)
                    tensor = Stored(path, key, part.get_shape(), part.get_dtype())
                    stored[key.removeprefix("model.")] = tensor
        except (SafetensorError, OSError) as error:
            fault = f"is not a readable safetensors file ({error})"
            raise UserError(f"{path} {fault}; copy or download it again.") from None
    return stored


def inside(folder: Path, name: str) -> Path:
    """A file of a checkpoint. Raises UserError where its name or a link leads elsewhere.

    The cache of the Hugging Face hub links its files into the folder "blobs" beside it.
    """
    path = (folder / name).resolve()
    home = folder.resolve()
    allowed = (home, home.parent.parent / "blobs")
    if Path(name).is_absolute() or not any(path.is_relative_to(place) for place in allowed):
        raise UserError(f"{folder / name} lies outside its folder; copy the file into it.")
    if not path.is_file():
        raise UserError(f"{folder / name} is not a plain file.")
    return path


def write_checkpoint(
    folder: Path, config: dict, tensors: dict[str, Tensor], source: str | Path | None
) -> None:
    """Writes a Hugging Face directory, whole or not at all. `tensors` are named as in model.GPT."""
    with writing(folder):
        write_folder(folder, config, tensors, source)


def write_folder(
    folder: Path, config: dict, tensors: dict[str, Tensor], source: str | Path | None
) -> None:
    """The work of write_checkpoint. Errors of the disk pass through."""
    temporary = Path(f"{folder}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    named = {n if n.startswith("lm_head") else f"model.{n}": x for n, x in tensors.items()}
    save_file(named, temporary / "model.safetensors", metadata={"format": "pt"})
    (temporary / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    for name in COPIED if source else ():
        if (Path(source) / name).exists():
            shutil.copy(inside(Path(source), name), temporary / name)
    if not folder.exists():
        temporary.rename(folder)
        return
    # Whatever else lies in an existing folder is not ours to delete.
    for file in temporary.iterdir():
        file.replace(folder / file.name)
    temporary.rmdir()
