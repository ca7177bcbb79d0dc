"""core/files.py, and files of prompts (worlds/people.py).

Files come back whole, or a sentence says file and line.
"""

import gzip
import json
import os
import re

import pytest

from core.errors import UserError
from core.files import read_json, read_jsonl, read_ranked, read_texts, write_jsonl
from worlds.people import read_prompts

BAD_LINES = [
    (read_jsonl, '{"prompt": "a"}\n\n{"prompt": }', "line 3"),
    (read_jsonl, '{"prompt": "a"}\n["prompt"]', "line 2"),
    (read_jsonl, '{"question": "a"}', "line 1.*prompt"),
    (read_texts, '{"prompt": "a"}\n{"prompt": 5}', "line 2.*prompt"),
    (read_texts, '{"prompt": "  "}', "line 1.*prompt"),
    (read_texts, '{"prompt": null}', "line 1.*prompt"),
]


@pytest.mark.parametrize("reader, text, says", BAD_LINES, ids=str)
def test_malformed_jsonl(tmp_path, reader, text, says):
    """Guards against: a traceback, or a message that does not name file and line."""
    path = tmp_path / "rows.jsonl"
    path.write_text(text)
    with pytest.raises(UserError, match=f"rows.jsonl.*{says}"):
        reader(path, "prompt")


@pytest.mark.parametrize("content", [b"", b"\n \n", b"\xff\xfe\x00", None])
def test_empty_or_unreadable_file(tmp_path, content):
    """Guards against: training on nothing without a word."""
    path = tmp_path / "rows.jsonl"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match="rows.jsonl"):
        read_jsonl(path)


RANKED = {
    "prompt": "p",
    "responses": ["best", "worst", "middle", "worst too"],
    "ranks": [0, 2, 1, 2],
}


def test_ranked_answers(tmp_path):
    """Guards against: groups changed on the way in."""
    path = tmp_path / "ranked.jsonl"
    write_jsonl(path, [RANKED])
    assert read_ranked(path) == [RANKED]


@pytest.mark.parametrize(
    "change",
    [
        {"ranks": [0, 1]},
        {"responses": ["one"], "ranks": [0]},
        {"responses": "text"},
        {"ranks": [0, 1, 2, None]},
        {"ranks": [0, 1, 2, True]},
        {"ranks": [0, 1, 2, float("nan")]},
        {"ranks": [0, 1, 2, float("inf")]},
        {"responses": ["a", "b", "c", " "]},
        {"kinds": 3},
        {"responses": ["a", "b", "c", 4]},
        {"prompt": None},
    ],
    ids=str,
)
def test_malformed_ranked_answers(tmp_path, change):
    """Guards against: the same, for ranked answers."""
    path = tmp_path / "ranked.jsonl"
    write_jsonl(path, [RANKED, RANKED | change])
    with pytest.raises(UserError, match="ranked.jsonl, line 2"):
        read_ranked(path)


def test_prompt_files(tmp_path):
    """Guards against: JSON, a byte order mark or a table asked as if it were text; U+2028 inside a
    prompt taken for a line end."""
    path = tmp_path / "prompts"
    path.write_text("First one.\n\n  Second\u2028one. \r\n")
    assert read_prompts(path) == ["First one.", "Second\u2028one."]
    texts = [f"Prompt\n{i}" for i in range(5)]
    objects = [{"id": i, "prompt": text} for i, text in enumerate(texts)]
    forms = {
        "objects": "".join(json.dumps(one) + "\n" for one in objects),
        "texts": "[" + ",\n".join(map(json.dumps, texts)) + "]",
        "array": json.dumps(objects, indent=1),
        "mark": "\ufeff" + "\r\n".join(map(json.dumps, objects)),
        "marked array": "\ufeff\n " + json.dumps(texts),
    }
    for form in forms.values():
        path.write_text(form, newline="")
        assert read_prompts(path) == texts
        with gzip.open(tmp_path / "prompts.gz", "wt", newline="") as file:
            file.write(form)
        assert read_prompts(tmp_path / "prompts.gz") == texts


BAD_PROMPTS = [
    ("id,prompt\n1,Why?\n", "line 1: 'id,prompt'"),
    ("prompt\nWhy?\n", "head of a table"),
    ('"prompt";"kind"\n', "head of a table"),
    ("instruction\tanswer\n", "head of a table"),
    ('{"prompt": "a"}\n{"text": "b"}\n', "line 2: expected a text"),
    ('["a", 3]', "entry 2: expected a text"),
    ('[{"prompt": "a"}, {"prompt": ""}]', "entry 2: expected a text"),
    ('["a",\n', "not valid JSON"),
    ("{prompt}\n", "line 1: not valid JSON"),
    ('"\\ud83d"\n["\\ud83d"]', None),  # plain text that begins with a quotation mark
    ('["\\ud83d"]', "surrogate"),
    ("[" * 100_000, "not valid JSON"),
    ("\n \n", "is empty"),
]


@pytest.mark.parametrize("text, says", BAD_PROMPTS, ids=lambda value: str(value)[:20])
def test_prompt_files_that_are_refused(tmp_path, text, says):
    """Guards against: what is not understood, taken for a prompt."""
    path = tmp_path / "prompts"
    path.write_text(text)
    if says is None:
        assert len(read_prompts(path)) == 2
        return
    with pytest.raises(UserError, match="prompts.*" + re.escape(says)):
        read_prompts(path)


def test_files_that_are_no_text(tmp_path):
    """Guards against: tracebacks, and a pipe that nobody writes to, which hangs for ever."""
    path = tmp_path / "latin"
    path.write_bytes("Wie heißt das?\n".encode("latin-1"))
    with pytest.raises(UserError, match="not UTF-8 text .byte 7"):
        read_prompts(path)
    with pytest.raises(UserError, match="not a plain file"):
        read_prompts(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="pipe is not a plain file"):
        read_prompts(tmp_path / "pipe")
    with pytest.raises(UserError, match="pipe is not a plain file"):
        read_json(tmp_path / "pipe")
    (tmp_path / "cut.gz").write_bytes(gzip.compress(b"Why?\n" * 100)[:-9])
    with pytest.raises(UserError, match="cut.gz cannot be read"):
        read_prompts(tmp_path / "cut.gz")
    (tmp_path / "plain.gz").write_text("Why?\n")
    with pytest.raises(UserError, match="plain.gz cannot be read"):
        read_prompts(tmp_path / "plain.gz")
    with pytest.raises(UserError, match="nowhere cannot be read"):
        read_prompts(tmp_path / "nowhere")


def test_written_rows_come_back(tmp_path):
    """Guards against: half-written files left behind, and texts that are not ASCII lost on the
    way."""
    rows = [{"text": 'ünï\u2028\n"{}'}, {"score": None}]
    write_jsonl(tmp_path / "new" / "rows.jsonl", rows)
    assert read_jsonl(tmp_path / "new" / "rows.jsonl") == rows
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["rows.jsonl"]
