"""core/files.py, and files of prompts (worlds/people.py).

Files come back whole, or a sentence says file and line.
"""

import json

import pytest

from core.errors import UserError
from core.files import read_jsonl, read_ranked, read_texts, write_jsonl
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
    """Guards against: a JSONL of prompts asked as if it were text; U+2028 inside a prompt taken
    for a line end; the same prompts on every trip."""
    path = tmp_path / "prompts"
    path.write_text("First one.\n\n  Second\u2028one. \n")
    assert read_prompts(path, 2, iteration=1) == ["First one.", "Second\u2028one."]
    path.write_text(
        "".join(json.dumps({"id": i, "prompt": f"Prompt\n{i}"}) + "\n" for i in range(5))
    )
    assert [read_prompts(path, 2, iteration=t) for t in (1, 2)] == [
        ["Prompt\n0", "Prompt\n1"],
        ["Prompt\n2", "Prompt\n3"],
    ]
    with pytest.raises(UserError, match="prompts.*--n-prompts"):
        read_prompts(path, 2, iteration=3)


def test_written_rows_come_back(tmp_path):
    """Guards against: half-written files left behind, and texts that are not ASCII lost on the
    way."""
    rows = [{"text": 'ünï\u2028\n"{}'}, {"score": None}]
    write_jsonl(tmp_path / "new" / "rows.jsonl", rows)
    assert read_jsonl(tmp_path / "new" / "rows.jsonl") == rows
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["rows.jsonl"]
