"""core/files.py: text files, JSON and JSON Lines, read and written.

In: paths.  Out: Python objects. Whoever reads gets good data, or a UserError with file and line.
What is written is complete, or it is not there.
Left out on purpose: streaming (every file here fits in memory), the formats of other people
(worlds/people.py), and torch, so that commands that only read files start at once.
"""

import contextlib
import gzip
import json
import math
import os
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from safetensors import SafetensorError

from core.errors import UserError
from core.ranks import first_only


def is_text(value: object) -> bool:
    """Whether this is a text that is not empty."""
    return isinstance(value, str) and value.strip() != ""


def read_whole(path: str | Path) -> str:
    """The text of a file (or .gz) in UTF-8, with or without a byte order mark. Raises UserError."""
    path = Path(path)
    if path.exists() and not path.is_file():
        raise UserError(f"{path} is not a plain file.")
    try:
        data = path.read_bytes()
        if path.name.endswith(".gz"):
            data = gzip.decompress(data)
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8 text (byte {error.start}); save it in that encoding."
        ) from None
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} cannot be read ({error}).") from None


def read_lines(path: str | Path) -> list[tuple[int, str]]:
    """The lines of a text file (or .gz) that are not blank, as (line number, text)."""
    return lines_of(read_whole(path), path)


def lines_of(text: str, path: str | Path) -> list[tuple[int, str]]:
    """Lines end as those of JSON Lines do, with \\n or \\r\\n: a text may hold other breaks."""
    lines = []
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            lines.append((number, line.strip()))
    if not lines:
        raise UserError(f"{path} is empty; one JSON object a line is expected.")
    return lines


def parse_json(text: str, place: str) -> object:
    """The value of a JSON text. Raises UserError, also for a text that cannot be written again."""
    try:
        value = json.loads(text)
        if "\\ud" in text.lower():  # half of a character is valid JSON, but no text
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        raise UserError(f"{place}: half of a character (a lone surrogate, \\ud...).") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{place}: not valid JSON ({error}).") from None
    return value


def read_values(path: str | Path) -> Iterator[tuple[str, object]]:
    """JSON values, one a line or all in one array, each with its place: "file, line 3"."""
    text = read_whole(path)
    if text.lstrip().startswith("["):
        values = parse_json(text, f"{path}")
        for number, value in enumerate(values, 1):
            yield f"{path}, entry {number}", value
        return
    for number, line in lines_of(text, path):
        place = f"{path}, line {number}"
        yield place, parse_json(line, place)


def read_objects(path: str | Path, *keys: str) -> Iterator[tuple[str, dict]]:
    """JSON objects, each with its place. Each must have all `keys`."""
    for place, record in read_values(path):
        if not isinstance(record, dict) or not set(keys) <= record.keys():
            raise UserError(f"{place}: expected an object with the keys {', '.join(keys)}.")
        yield place, record


def read_jsonl(path: str | Path, *keys: str) -> list[dict]:
    """JSON objects, one a line, that have all `keys`."""
    return [record for _, record in read_objects(path, *keys)]


def read_texts(path: str | Path, *keys: str) -> list[dict]:
    """Like read_jsonl, for objects whose `keys` must all hold text."""
    records = []
    for place, record in read_objects(path, *keys):
        for key in keys:
            if not is_text(record[key]):
                raise UserError(f"{place}: {key!r} must be a text that is not empty.")
        records.append(record)
    return records


def read_ranked(path: str | Path) -> list[dict]:
    """Groups of answers with the ranks that people gave, 0 for the best.

    A group is {"prompt": text, "responses": [text, ...], "ranks": [number, ...]}.
    """
    groups = []
    for place, group in read_objects(path, "prompt", "responses", "ranks"):
        texts, ranks = group["responses"], group["ranks"]
        are_lists = isinstance(texts, list) and isinstance(ranks, list)
        if not are_lists or len(texts) < 2 or len(texts) != len(ranks):
            raise UserError(
                f"{place}: 'responses' and 'ranks' must be lists of one length, two at least."
            )
        if not all(map(is_text, [group["prompt"], *texts])) or not all(map(is_rank, ranks)):
            raise UserError(
                f"{place}: 'prompt' and 'responses' must be texts that are not empty, and 'ranks' "
                f"finite numbers."
            )
        kinds = group.get("kinds")
        if kinds is not None and not (isinstance(kinds, list) and len(kinds) == len(texts)):
            raise UserError(f"{place}: 'kinds' must be a list as long as 'responses'.")
        groups.append(group)
    return groups


def is_rank(value: object) -> bool:
    """Whether this is a finite number. true is none, although Python counts with it."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and math.isfinite(value)


def read_existing(path: Path) -> list[dict]:
    """The objects of a JSON Lines file; [] where the file is not there yet, or is empty."""
    return read_jsonl(path) if path.exists() and path.stat().st_size else []


def read_json(path: Path) -> dict:
    """A JSON object; {} where the file is absent. Raises UserError where it is there and broken."""
    if not path.exists():
        return {}
    value = parse_json(read_whole(path), str(path))
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected one JSON object.")
    return value


@first_only
def write_whole(path: Path, text: str) -> None:
    """Writes under a temporary name and renames: a file that is there is complete.

    It is on the disk before it gets its name, so that it is complete after a power cut too.
    """
    temporary = path.with_name(path.name + ".tmp")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "w", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raises UserError, which names `path`, where the disk is full or closed to us."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"{path} cannot be written ({reason}); what is complete is kept.") from None


def write_jsonl(path: Path, records: Iterable[dict]) -> None:
    """One JSON object a line; the file is written whole."""
    lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in records]
    write_whole(path, "".join(lines))
