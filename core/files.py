"""core/files.py: text files, JSON and JSON Lines, read and written.

In: paths.  Out: Python objects. Whoever reads gets good data, or a UserError with file and line.
What is written is complete, or it is not there.
Left out on purpose: streaming (every file here fits in memory), the formats of other people
(worlds/people.py), and torch, so that commands that only read files start at once.
"""

import gzip
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from core.errors import UserError


def is_text(value: object) -> bool:
    """Whether this is a text that is not empty."""
    return isinstance(value, str) and value.strip() != ""


def read_lines(path: str | Path) -> list[tuple[int, str]]:
    """The lines of a text file (or .gz) that are not blank, as (line number, text)."""
    opener = gzip.open if str(path).endswith(".gz") else open
    try:
        with opener(path, "rt", encoding="utf-8") as file:
            lines = [(number, line.strip()) for number, line in enumerate(file, 1) if line.strip()]
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({error}).") from None
    if not lines:
        raise UserError(f"{path} is empty; one JSON object a line is expected.")
    return lines


def read_objects(path: str | Path, *keys: str) -> Iterator[tuple[str, dict]]:
    """JSON objects, one a line, each with its place: "file, line 3". Each must have all `keys`."""
    for number, line in read_lines(path):
        place = f"{path}, line {number}"
        try:
            record = json.loads(line)
        except ValueError as error:
            raise UserError(f"{place}: not valid JSON ({error}).") from None
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
        are_texts = all(isinstance(text, str) for text in [group["prompt"], *texts])
        if not are_texts or not all(isinstance(rank, int | float) for rank in ranks):
            raise UserError(f"{place}: 'prompt' and 'responses' must be texts and 'ranks' numbers.")
        kinds = group.get("kinds")
        if kinds is not None and len(kinds) != len(texts):
            raise UserError(f"{place}: 'kinds' must be a list as long as 'responses'.")
        groups.append(group)
    return groups


def read_existing(path: Path) -> list[dict]:
    """The objects of a JSON Lines file; [] where the file is not there yet, or is empty."""
    return read_jsonl(path) if path.exists() and path.stat().st_size else []


def read_json(path: Path) -> dict:
    """A JSON object; {} where the file is absent. Raises UserError where it is there and broken."""
    if not path.exists():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not valid JSON ({error}).") from None


def write_whole(path: Path, text: str) -> None:
    """Writes under a temporary name and renames: a file that is there is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def write_jsonl(path: Path, records: Iterable[dict]) -> None:
    """One JSON object a line; the file is written whole."""
    lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in records]
    write_whole(path, "".join(lines))
