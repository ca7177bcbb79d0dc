"""core/files.py: text files, JSON and JSON Lines, read and written.

In: paths.  Out: Python objects. Whoever reads gets good data, or a sentence with file and line.
What is written is complete, or it is not there.
Left out on purpose: streaming (every file here fits in memory), the formats of other people
(worlds/people.py), and torch, so that commands that only read files start at once.
"""

import gzip
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path

from core.errors import UserError

FindFault = Callable[[dict], str | None]  # a record -> what is wrong with it; None where it is good


# ---- reading ----
def read_lines(path: str | Path) -> list[tuple[int, str]]:
    """The lines of a text file (or .gz) that are not blank, as (line number, text).

    Raises UserError.
    """
    opener = gzip.open if str(path).endswith(".gz") else open
    try:
        with opener(path, "rt", encoding="utf-8") as file:
            numbered = [(number, line.strip()) for number, line in enumerate(file, 1)]
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({error}).") from None
    lines = [(number, line) for number, line in numbered if line]
    if not lines:
        raise UserError(f"{path} is empty; one JSON object a line is expected.")
    return lines


def read_jsonl(path: str | Path, *keys: str, find_fault: FindFault | None = None) -> list[dict]:
    """JSON objects, one a line. Raises UserError with file and line.

    Each object must have all `keys`, and `find_fault` must find nothing wrong with it.
    """
    records = []
    for number, line in read_lines(path):
        try:
            record = json.loads(line)
        except ValueError as error:
            raise UserError(f"{path}, line {number}: not valid JSON ({error}).") from None
        if not isinstance(record, dict) or any(key not in record for key in keys):
            wanted = ", ".join(keys)
            raise UserError(f"{path}, line {number}: expected an object with the keys {wanted}.")
        fault = find_fault(record) if find_fault else None
        if fault:
            raise UserError(f"{path}, line {number}: {fault}.")
        records.append(record)
    return records


def read_texts(path: str | Path, *keys: str) -> list[dict]:
    """Like read_jsonl, for objects whose `keys` must all hold text. Raises UserError."""

    def find_fault(record: dict) -> str | None:
        for key in keys:
            if not isinstance(record[key], str) or not record[key].strip():
                return f"{key!r} must be a text that is not empty"
        return None

    return read_jsonl(path, *keys, find_fault=find_fault)


def read_ranked(path: str | Path) -> list[dict]:
    """Groups of answers with the ranks that people gave, 0 for the best. Raises UserError.

    A group is {"prompt": text, "responses": [text, ...], "ranks": [number, ...]}.
    """

    def find_fault(group: dict) -> str | None:
        texts, ranks = group["responses"], group["ranks"]
        lists = isinstance(texts, list) and isinstance(ranks, list)
        if not lists or len(texts) < 2 or len(texts) != len(ranks):
            return "'responses' and 'ranks' must be lists of one length, two at least"
        are_texts = all(isinstance(text, str) for text in [group["prompt"], *texts])
        if not are_texts or not all(isinstance(rank, int | float) for rank in ranks):
            return "'prompt' and 'responses' must be texts and 'ranks' numbers"
        return None

    return read_jsonl(path, "prompt", "responses", "ranks", find_fault=find_fault)


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


# ---- writing ----
def write_whole(path: Path, text: str) -> None:
    """Writes under a temporary name and renames: a file that is there is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def write_jsonl(path: Path, records: Iterable[dict]) -> None:
    """One JSON object a line; the file is written whole."""
    lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in records]
    write_whole(path, "".join(lines))
