"""worlds/people.py: the formats that people have. An error names the file and the line."""

import gzip
import json
from collections import Counter
from pathlib import Path

import pytest
from conftest import ROOT

from core.config import Config
from core.errors import UserError
from core.files import write_jsonl
from worlds.open_world import open_world
from worlds.people import read_eft, read_ift, read_oasst
from worlds.world import World

OASST_SAMPLE = ROOT.parent / "shared" / "data" / "oasst_trees_sample.jsonl"


def said(*turns: str, system: str | None = None) -> list[dict]:
    """user, assistant, user ... as `messages` have them."""
    first = [] if system is None else [{"role": "system", "content": system}]
    return first + [
        {"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(turns)
    ]


def shared(*turns: str, system: str | None = None) -> list[dict]:
    """The same as ShareGPT has it."""
    names = {"system": "system", "user": "human", "assistant": "gpt"}
    return [{"from": names[m["role"]], "value": m["content"]} for m in said(*turns, system=system)]


# ---- instruction data ----

ROWS = {
    "prompt/response": ({"prompt": "Why?", "response": "So.", "source": "me"}, "Why?", "So."),
    "Alpaca with input": (
        {"instruction": "Add.", "input": "1 and 2", "output": "3"},
        "Add.\n\n1 and 2",
        "3",
    ),
    "Alpaca, empty input": ({"instruction": "Add.", "input": "", "output": "3"}, "Add.", "3"),
    "Alpaca without input": ({"instruction": "Add.", "output": "3"}, "Add.", "3"),
    "Alpaca, system": (
        {"instruction": "Add.", "input": "1 and 2", "output": "3", "system": "Be kind."},
        "Be kind.\n\nAdd.\n\n1 and 2",
        "3",
    ),
    "Alpaca, history": (
        {"instruction": "And 3?", "output": "6", "history": [["Add 1 and 2.", "3"], ["So?", "3"]]},
        "Add 1 and 2.",
        "3",
    ),
    "Alpaca, system and history": (
        {"instruction": "And?", "output": "6", "history": [["Add.", "3"]], "system": "Be kind."},
        "Be kind.\n\nAdd.",
        "3",
    ),
    "Alpaca, empty history": (
        {"instruction": "Add.", "output": "3", "history": [], "system": ""},
        "Add.",
        "3",
    ),
    "messages": ({"messages": said("Why?", "So.")}, "Why?", "So."),
    "messages, system": (
        {"messages": said("Why?", "So.", system="Be kind.")},
        "Be kind.\n\nWhy?",
        "So.",
    ),
    "messages, several turns": (
        {"messages": said("Why?", "So.", "And then?", "No.")},
        "Why?",
        "So.",
    ),
    "ShareGPT": ({"conversations": shared("Why?", "So.")}, "Why?", "So."),
    "ShareGPT, system and several turns": (
        {"id": 7, "conversations": shared("Why?", "So.", "And?", "No.", system="Be kind.")},
        "Be kind.\n\nWhy?",
        "So.",
    ),
}


@pytest.mark.parametrize("name", ROWS)
def test_instruction_formats(tmp_path, name):
    """Guards against: a field left out, a later turn taken for the answer, a prompt that loses its
    input or system message."""
    row, prompt, response = ROWS[name]
    write_jsonl(tmp_path / "rows.jsonl", [row])
    assert read_ift(tmp_path / "rows.jsonl") == [{"prompt": prompt, "response": response}]


def test_formats_may_be_mixed(tmp_path):
    """Guards against: the first row deciding for the whole file; rows lost or out of order."""
    write_jsonl(tmp_path / "rows.jsonl", [row for row, _, _ in ROWS.values()])
    assert read_ift(tmp_path / "rows.jsonl") == [
        {"prompt": p, "response": r} for _, p, r in ROWS.values()
    ]


BAD_ROWS = {
    "no answer": {"prompt": "a"},
    "empty answer": {"prompt": "a", "response": " "},
    "empty prompt": {"prompt": "", "response": "b"},
    "answer is a number": {"prompt": "a", "response": 5},
    "prompt is missing a text": {"prompt": None, "response": "b"},
    "Alpaca, no output": {"instruction": "a", "input": "b"},
    "Alpaca, empty output": {"instruction": "a", "output": ""},
    "Alpaca, empty instruction": {"instruction": "", "input": "", "output": "b"},
    "messages, nobody answers": {"messages": said("a")},
    "messages, nobody asks": {"messages": said("a", "b")[1:]},
    "messages, empty answer": {"messages": said("a", "")},
    "messages, empty question": {"messages": said("", "b")},
    "messages, no text": {
        "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": None}]
    },
    "messages, none": {"messages": []},
    "messages, turns of text": {"messages": ["a", "b"]},
    "messages, a text": {"messages": "a"},
    "ShareGPT, nobody answers": {"conversations": shared("a")},
    "ShareGPT, empty answer": {"conversations": shared("a", "\n")},
    "ShareGPT, nobody asks": {"conversations": shared("a", "b")[1:]},
    "ShareGPT, turns of numbers": {"conversations": [1, 2]},
    "unknown keys": {"question": "a", "answer": "b"},
    "nothing": {},
    "a list": ["a", "b"],
    "a text": "a",
}


@pytest.mark.parametrize("name", BAD_ROWS)
def test_bad_instruction_data(tmp_path, name):
    """Guards against: a traceback, an empty text trained on, or a message that does not say which
    line."""
    write_jsonl(tmp_path / "rows.jsonl", [ROWS["messages"][0], BAD_ROWS[name]])
    with pytest.raises(UserError, match=r"rows\.jsonl, line 2"):
        read_ift(tmp_path / "rows.jsonl")


@pytest.mark.parametrize(
    "row, expected",
    [
        pytest.param(
            {"prompt": "Why?", "prompt_id": "x", "messages": said("Why?", "So.")},
            ("Why?", "So."),
            id="ultrachat, no_robots",
        ),
        pytest.param({"messages": 5}, None, id="messages, a number"),
        pytest.param(
            {
                "messages": [
                    {"role": "user", "content": [{"type": "text", "text": "Why?"}]},
                    said("Why?", "So.")[1],
                ]
            },
            None,
            id="messages in parts",
        ),
        pytest.param(
            {"messages": said("", "So.", system="Be kind.")},
            None,
            id="a system message and an empty question",
        ),
    ],
)
def test_harder_instruction_data(tmp_path, row, expected):
    """Guards against: real sets refused (`prompt` beside `messages`), a traceback, and Python's own
    spelling of a list as a prompt."""
    write_jsonl(tmp_path / "rows.jsonl", [row])
    if expected:
        assert read_ift(tmp_path / "rows.jsonl") == [dict(zip(("prompt", "response"), expected))]
    else:
        with pytest.raises(UserError, match=r"rows\.jsonl, line 1"):
            read_ift(tmp_path / "rows.jsonl")


# ---- Open Assistant trees ----


def message(text: str, *replies: dict, lang: str = "en", **own) -> dict:
    return {"text": text, "lang": lang, "deleted": False, "replies": list(replies), **own}


def trees(path: Path, *roots) -> Path:
    write_jsonl(
        path,
        [
            {"message_tree_id": str(i), "tree_state": "ready_for_export", "prompt": root}
            for i, root in enumerate(roots)
        ],
    )
    return path


FULL = message(
    "Why?",
    message("worst", rank=2),
    message("best", message("And then?", message("Later.", rank=0)), rank=0),
    message("middle", rank=1),
)
GROUP = {"prompt": "Why?", "responses": ["best", "middle", "worst"], "ranks": [0, 1, 2]}


def test_trees_give_answers_and_groups(tmp_path):
    """Guards against: ranks read in file order, later turns of a talk taken for first answers, the
    worst reply as demonstration."""
    ift, ranked = read_oasst(
        trees(tmp_path / "trees.jsonl", FULL, message("How?", message("So.", rank=0))), lang="en"
    )
    assert ift == [{"prompt": "Why?", "response": "best"}, {"prompt": "How?", "response": "So."}]
    assert ranked == [GROUP], "one reply is no group"


def test_zipped_trees(tmp_path):
    """Guards against: the export's own .gz read as text."""
    plain = trees(tmp_path / "trees.jsonl", FULL)
    (tmp_path / "trees.jsonl.gz").write_bytes(gzip.compress(plain.read_bytes()))
    assert read_oasst(tmp_path / "trees.jsonl.gz", lang="en") == read_oasst(plain, lang="en")
    (tmp_path / "cut.gz").write_bytes(gzip.compress(plain.read_bytes())[:-20])
    (tmp_path / "text.gz").write_bytes(plain.read_bytes())
    for name in ("cut.gz", "text.gz"):
        with pytest.raises(UserError, match=name):
            read_oasst(tmp_path / name, lang="en")


def test_what_trees_do_not_give(tmp_path):
    """Guards against: deleted texts, other languages and unranked replies trained on."""
    german = message(
        "Warum?",
        message("Darum.", lang="de", rank=0),
        message("Nur so.", lang="de", rank=1),
        lang="de",
    )
    holed = message(
        "Gone?",
        message("gone", rank=0, deleted=True),
        message("second", rank=1),
        message("no rank", rank=None),
        message("never ranked"),
        message("auf Deutsch", lang="de", rank=2),
        message("fourth", rank=3),
    )
    path = trees(
        tmp_path / "trees.jsonl",
        message("Deleted?", *FULL["replies"], deleted=True),
        german,
        holed,
        message("Alone?"),
        FULL,
    )
    ift, ranked = read_oasst(path, lang="en")
    assert ift == [{"prompt": "Why?", "response": "best"}], "the best reply of the other is deleted"
    assert ranked == [
        {"prompt": "Gone?", "responses": ["second", "fourth"], "ranks": [1, 3]},
        GROUP,
    ]
    assert read_oasst(path, lang="de") == (
        [{"prompt": "Warum?", "response": "Darum."}],
        [{"prompt": "Warum?", "responses": ["Darum.", "Nur so."], "ranks": [0, 1]}],
    )


@pytest.mark.parametrize(
    "root",
    [
        message("Why?", lang="de"),
        message("Why?", message("a"), message("b")),
        message("Why?", message("a", rank=0), message("b", rank=1), deleted=True),
        message("Why?"),
    ],
    ids=str,
)
def test_trees_without_ranked_replies(tmp_path, root):
    """Guards against: an empty set trained on in silence, because of a language that is not
    there."""
    with pytest.raises(UserError, match=r"trees\.jsonl.*'en'.*--lang"):
        read_oasst(trees(tmp_path / "trees.jsonl", root), lang="en")


@pytest.mark.parametrize(
    "root",
    [
        "Why?",
        None,
        {},
        {"text": 5},
        {"text": None, "replies": []},
        message("Why?", "So."),
        message("Why?", {}),
        message("Why?", {"text": ["So."]}),
        message("Why?", None),
        message("Why?") | {"replies": {"a": 1}},
    ],
    ids=str,
)
def test_malformed_trees(tmp_path, root):
    """Guards against: a traceback, or a message that does not name file and line."""
    with pytest.raises(UserError, match=r"trees\.jsonl, line 2"):
        read_oasst(trees(tmp_path / "trees.jsonl", FULL, root), lang="en")


@pytest.mark.parametrize(
    "root",
    [
        pytest.param(message("Why?") | {"replies": None}, id="replies null"),
        pytest.param(message("Why?") | {"replies": 5}, id="replies a number"),
        pytest.param(
            message("Why?", message("a", rank=0), message("b", rank="first")), id="rank a text"
        ),
    ],
)
def test_harder_malformed_trees(tmp_path, root):
    """Guards against: the same, where the message is whole and its replies are not."""
    with pytest.raises(UserError, match=r"trees\.jsonl, line 2"):
        read_oasst(trees(tmp_path / "trees.jsonl", FULL, root), lang="en")


def test_lines_that_are_no_trees(tmp_path):
    """Guards against: the same, for lines that hold something else."""
    for text in ('{"tree": 1}', "{", "[]"):
        (tmp_path / "trees.jsonl").write_text(json.dumps({"prompt": FULL}) + "\n\n" + text + "\n")
        with pytest.raises(UserError, match=r"trees\.jsonl, line 3"):
            read_oasst(tmp_path / "trees.jsonl", lang="en")


@pytest.mark.skipif(
    not OASST_SAMPLE.exists(),
    reason="the sample of real trees lies beside the repository, not in it",
)
def test_real_trees():
    """Guards against: a reader that fits its own tests only. The counts are taken once more,
    another way."""
    roots = [
        json.loads(line)["prompt"] for line in OASST_SAMPLE.read_text(encoding="utf-8").splitlines()
    ]
    languages = Counter(root["lang"] for root in roots)
    for lang, trees_in_it in languages.items():
        ranks = [
            sorted(
                r["rank"]
                for r in root["replies"]
                if r["lang"] == lang and not r["deleted"] and isinstance(r.get("rank"), int)
            )
            for root in roots
            if root["lang"] == lang and not root["deleted"]
        ]
        if not any(len(r) > 1 for r in ranks):
            continue
        ift, ranked = read_oasst(OASST_SAMPLE, lang=lang)
        assert len(ift) == sum(r[:1] == [0] for r in ranks) <= trees_in_it
        assert [g["ranks"] for g in ranked] == [r for r in ranks if len(r) > 1]
        demonstrations = dict((r["prompt"], r["response"]) for r in ift)
        assert all(
            demonstrations[g["prompt"]] == g["responses"][0] for g in ranked if g["ranks"][0] == 0
        )
    assert (
        sum(languages.values()) == len(roots) and len(read_oasst(OASST_SAMPLE, lang="en")[1]) > 10
    )


# ---- judge data ----


def judged(*verdicts: str) -> list[dict]:
    return [{"prompt": "Why?", "response": "So.", "verdict": verdict} for verdict in verdicts]


def test_judge_data_with_labels_of_their_own(tmp_path):
    """Guards against: examples that are refused, or read wrong, as their score has another name."""
    path = tmp_path / "eft.jsonl"
    for verdicts in (
        ["Fine.\nScore: 3", "Final score: 4"],
        ["Fine.\nRating: 3", "Rating: 1"],
        ["relevant score: 1\nclear score: 0\nScore: 1"] * 2,
    ):
        write_jsonl(path, judged(*verdicts))
        assert read_eft(path, how="sampled") == judged(*verdicts)


@pytest.mark.parametrize(
    "verdict, says", [("Score: 8/10", "8/10"), ("Rating: 3", "Rating"), ("Fine.", "Fine")]
)
def test_judge_data_without_a_score(tmp_path, verdict, says):
    """Guards against: a judge that learns verdicts which nobody can read, without a word."""
    path = tmp_path / "eft.jsonl"
    lines = [json.dumps(row) for row in judged("Score: 1", "Score: 2", verdict, "Score: 3", "no")]
    path.write_text("\n\n".join(lines))  # a blank line counts as a line
    with pytest.raises(UserError, match="eft.jsonl, line 5: .*2 of 5") as error:
        read_eft(path, how="sampled")
    assert says in str(error.value) and "0 to 5 behind 'score'" in str(error.value)
    # a checklist is answered with yes and no, and the contrast learns from no verdict
    assert len(read_eft(path, how="checklist")) == len(read_eft(path, how="contrast")) == 5


def test_expected_scores_know_one_label(tmp_path):
    """Guards against: digits that are read behind "Score:", which the judge was never taught."""
    write_jsonl(tmp_path / "eft.jsonl", judged("Rating: 3", "Rating: 4"))
    with pytest.raises(UserError, match="'rating'"):
        read_eft(tmp_path / "eft.jsonl", how="expected")


# ---- what is left out, and what is said of it ----


def opened(tmp_path, ift=40, **settings) -> World:
    """The world of `ift` instructions, and of the files in `settings`."""
    rows = [{"prompt": f"Ask {i}?", "response": f"Answer {i}."} for i in range(ift)]
    write_jsonl(tmp_path / "ift.jsonl", rows)
    return open_world(Config(model="x", ift=str(tmp_path / "ift.jsonl"), **settings), toy=False)


def test_a_limit_is_drawn_and_told(tmp_path):
    """Guards against: the first rows of a file for all of it, and a cut that nobody hears of."""
    everything = opened(tmp_path)
    assert not everything.notes
    rows = [row["prompt"] for row in everything.ift]
    some = [opened(tmp_path, seed_limit=10, seed=seed) for seed in (0, 0, 1)]
    first, again, other = ([row["prompt"] for row in world.ift] for world in some)
    assert first == again != other and first != rows[:10]
    assert len(set(first)) == 10 and set(first) | set(other) <= set(rows)
    assert some[0].notes == [
        f"10 of {len(rows)} instruction examples are used, drawn at random (--seed-limit)"
    ]


def test_groups_of_equal_ranks_are_left_out(tmp_path):
    """Guards against: judge data that call every answer the best, as nobody ranked them."""
    groups = []
    for i in range(20):
        ranks = [0, 0, 0] if i % 4 == 0 else [1, 0, 2]
        groups.append({"prompt": f"Rank {i}?", "responses": ["a", "b", "c"], "ranks": ranks})
    write_jsonl(tmp_path / "ranked.jsonl", groups)
    world = opened(tmp_path, ranked=str(tmp_path / "ranked.jsonl"))
    found = [*world.groups, *world.exam.groups]
    assert len(found) == 15 and all(len(set(group["ranks"])) == 3 for group in found)
    assert world.notes == ["5 groups of ranked answers are left out, as all their ranks are equal"]


def test_given_prompts_are_not_those_of_the_exam(tmp_path):
    """Guards against: an exam whose prompts were answered and trained on."""
    exam = opened(tmp_path).exam.prompts
    assert len(exam) > 3
    path = tmp_path / "prompts.txt"
    copies = [exam[0], f"  {exam[1].upper()} ", exam[2].replace(" ", "   ")]
    path.write_text("\n".join([*copies, *(f"New {i}?" for i in range(6))]))
    world = opened(tmp_path, prompts=str(path), n_prompts=2, iters=3)
    assert world.given == [f"New {i}?" for i in range(6)]
    assert world.notes == [f"{path}: 3 prompts are left out, as the exam holds them"]
    # the start knows what the last iteration will need
    with pytest.raises(UserError, match="has 6 prompts .* 8 are needed .4 iterations of 2."):
        opened(tmp_path, prompts=str(path), n_prompts=2, iters=4)
    assert opened(tmp_path).given is None
