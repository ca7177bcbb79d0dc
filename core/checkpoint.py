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
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from core.errors import UserError
from core.files import read_json, writing
from core.ranks import first_only, rank

FILE_BYTES = 5_000_000_000  # of one file of weights, at most
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


def read_weights(folder: Path, shapes: dict[str, torch.Size]) -> Iterator[tuple[str, Tensor]]:
    """(name in model.GPT, tensor) for all of `shapes`. Raises UserError where one is amiss.

    They come one by one, so that nobody need hold more than one beside the model.
    """
    stored = read_headers(folder)
    check_stored(folder, stored, shapes)
    # A head that is tied to the embeddings may be stored all the same. Then it must be the same.
    if "lm_head.weight" in stored.keys() - shapes.keys():
        embeddings = read_tensor(stored["embed_tokens.weight"])
        if not torch.equal(read_tensor(stored["lm_head.weight"]), embeddings):
            raise UserError(
                f"{folder}: lm_head.weight differs from the embeddings, but config.json says that "
                f"they are one (tie_word_embeddings)."
            )
    for name in shapes:
        tensor = read_tensor(stored[name])
        if not bool(torch.isfinite(tensor).all()):
            raise UserError(f"{folder}: {name} holds numbers that are not finite.")
        yield name, tensor


def read_tensor(tensor: Stored) -> Tensor:
    """One tensor. The file is closed again, so that what was read of it takes no memory."""
    with safe_open(tensor.file, "pt") as file:
        return file.get_tensor(tensor.name)


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
    folder: Path, config: dict, tensors: Iterable[tuple[str, Tensor]], source: str | Path | None
) -> None:
    """Writes a Hugging Face directory, whole or not at all.

    `tensors` are named as in model.GPT. They come one by one, and no more than a file of them is
    held. With several processes, all make the tensors, and the first one writes.
    """
    temporary = Path(f"{folder}.tmp")
    with writing(folder):
        clear_folder(temporary)
        write_weights(temporary, tensors)
        complete_folder(folder, temporary, config, source)


@first_only
def clear_folder(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def write_weights(folder: Path, tensors: Iterable[tuple[str, Tensor]]) -> None:
    """model.safetensors; or, of a large model, several files and their index."""
    sizes: list[int] = []  # bytes of each file
    places = {}  # name of a tensor -> number of its file
    held: dict[str, Tensor] = {}
    for name, tensor in tensors:
        if held and sizes[-1] + tensor.nbytes > FILE_BYTES:
            write_file(folder, held, len(sizes))
            held = {}
        if not held:
            sizes.append(0)
        sizes[-1] += tensor.nbytes
        stored_name = name if name.startswith("lm_head") else f"model.{name}"
        places[stored_name] = len(sizes)
        held[stored_name] = tensor if rank() == 0 else tensor.new_empty(0)
    write_file(folder, held, len(sizes))
    name_files(folder, places, sizes)


def file_name(number: int, files: int) -> str:
    """As Hugging Face names it."""
    return f"model-{number:05}-of-{files:05}.safetensors" if files > 1 else "model.safetensors"


@first_only
def write_file(folder: Path, tensors: dict[str, Tensor], number: int) -> None:
    """One file, under a name that does not say yet how many there will be."""
    save_file(tensors, folder / file_name(number, 99_999), metadata={"format": "pt"})


@first_only
def name_files(folder: Path, places: dict[str, int], sizes: list[int]) -> None:
    """Gives the files their names, and writes the index where there are several."""
    files = len(sizes)
    for number in range(1, files + 1):
        unnamed = folder / file_name(number, 99_999)
        unnamed.rename(folder / file_name(number, files))
    if files > 1:
        weight_map = {name: file_name(number, files) for name, number in places.items()}
        index = {"metadata": {"total_size": sum(sizes)}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


@first_only
def complete_folder(folder: Path, temporary: Path, config: dict, source: str | Path | None) -> None:
    """Whatever is not weights; then the folder gets its name."""
    (temporary / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    for name in COPIED if source else ():
        if (Path(source) / name).exists():
            shutil.copy(inside(Path(source), name), temporary / name)
    if not folder.exists():
        temporary.rename(folder)
        return
    # Of an existing folder only the weights are replaced. Whatever else is there is not ours.
    for old in folder.glob("model*.safetensors*"):
        old.unlink()
    for file in temporary.iterdir():
        file.replace(folder / file.name)
    temporary.rmdir()
