"""judge.py: what cannot be read is no score, only the judge's own words count, and a tie is no preference."""
from collections import Counter

import pytest

import judge
from conftest import ROOT, flat_gpt
from data import Candidate, UserError
from judge import (RUBRIC, attach, choose_pair, choose_pairs, judge_examples, judge_text, pairwise_accuracy, parse_score,
                   rank_answers, read_rubric, score, score_line_done)
from sample import Completion, Sampling

READABLE = [
    ("Score: 4", 4), ("Good and short.\nScore: 0", 0), ("score: 3", 3), ("SCORE:5", 5), ("Score = 2", 2), ("Score: 4.5", 4.5),
    ("Score: 4/5", 4), ("Score: 4 / 5", 4), ("Score: 3.5/5.", 3.5), ("I give it a Score: 4/5. Well done.", 4), ("Score: 4.", 4),
    ("Score: **3**", 3), ("**Score:** 4", 4), ("**Score**: 4", 4), ("**Score: 4**", 4), ("Score: `4`", 4), ('Score: "4"', 4),
    ("Score:\n4", 4), ("Score: (4)", 4), ("Total score: 3", 3), ("Score: 2. No, better: Score: 4", 4), ("Score: 7\nScore: 3", 3),
    ("Score: 2 at first, **Score**: 4 in the end", 4), ("Score: 5.0", 5), ("Score: 4 out of 5", 4), ("Score: 4\nScored by me", 4),
]
UNREADABLE = [
    "", "   ", "A fine answer.", "4", "4/5", "score 3", "Score", "Score:", "Score: five", "Score: n", "Score: 7", "Score: 5.5",
    "Score: -1", "Score: - 1", "Score: 45", "Score: 8/10", "Score: 4/10", "Score: 4 / 10", "Score: 4/50",
    "Score: 4 out of 10", "Score: 3-4", "Score: 3 - 4", "Score: 3\u20134", "Score: 4%", "Score: 90%", "Score: 1.2.3", "Score: 3,5",
    "Score: 4 then Score:", "Score: 4. Score: nine", "Score: 3\nScore: 9", "Score: " + "9" * 400, "Score: nan",
    "Score: inf", "Scores are fun: 4",
]


@pytest.mark.parametrize("text, value", READABLE)
def test_readable_verdict(text, value):
    """Guards against: `.groups(1).isnumeric()` (lucidrains: an error on every score), a parser that demands one layout,
    and the first match where the judge corrected itself (Oxen)."""
    assert parse_score(text) == value


@pytest.mark.parametrize("text", UNREADABLE)
def test_unreadable_verdict(text):
    """Guards against: the rubric's example copied as a score (insight-bench #17), clipping, other scales read as ours."""
    assert parse_score(text) is None


LINES = [("Fine.\nScore: 4\n", True), ("Score: 4\n\n", True), ("Score: 4", False), ("Score: 4\nand", True), ("Score:\n", False),
         ("Fine.\n", False), ("Score: 9\n", False), ("\n", False), ("", False)]


@pytest.mark.parametrize("text, done", LINES)
def test_score_line_done(text, done):
    """Guards against: a verdict that is cut inside its number, or runs on to the limit after it."""
    assert score_line_done(text) is done


# ---- rubrics ----

def test_texts_are_put_in_as_they_are():
    """Guards against: str.format tripping over braces, and an answer that smuggles in a placeholder."""
    text = judge_text("A {prompt} B {response} C", "x {response} {0} %s \\1", "y {prompt} {}")
    assert text == "A x {response} {0} %s \\1 B y {prompt} {} C"


def test_rubric_file(tmp_path):
    """Guards against: a judge that never sees the answer."""
    path = tmp_path / "rubric.txt"
    path.write_text("Rate {response} to {prompt}.")
    assert read_rubric(path) == "Rate {response} to {prompt}." and read_rubric(None) == RUBRIC
    for text in ("Rate {response}.", "{prompt}{response}{response}", ""):
        path.write_text(text)
        with pytest.raises(UserError, match="rubric.txt"):
            read_rubric(path)
    with pytest.raises(UserError, match="nowhere"):
        read_rubric(tmp_path / "nowhere")


@pytest.mark.parametrize("rubric", [RUBRIC, (ROOT / "seed" / "rubric.txt").read_text()], ids=["own", "seed"])
def test_rubrics_give_no_score_away(rubric):
    """Guards against: a judge that scores by repeating its instructions; texts or placeholders lost."""
    assert parse_score(rubric) is None
    text = judge_text(rubric, "THE PROMPT", "THE ANSWER")
    assert text.count("THE PROMPT") == text.count("THE ANSWER") == 1


def test_judge_example_is_what_the_judge_is_asked(chat):
    """Guards against: EFT that trains another format than judging uses."""
    example = judge_examples(chat, RUBRIC, [{"prompt": "x", "response": "y", "verdict": "Good.\nScore: 4"}])[0]
    assert example.prompt == chat.prompt(judge_text(RUBRIC, "x", "y"))
    assert chat.decode(example.response) == "Good.\nScore: 4" and example.response[-1] == chat.eos


# ---- K votes ----

def candidate(id: int, sample: int, response: str, *, finished: bool = True, reward: float | None = None) -> Candidate:
    return Candidate(id, sample, f"prompt {id}", response, [sample], finished, reward=reward)


@pytest.fixture
def verdicts(monkeypatch, chat):
    """{words in an answer: its K verdict texts}; the model writes them. Returns the table and a count of what was asked."""
    table, asked = {}, Counter()

    def write(model, chat, prompts, sampling, *, n, **_):
        found = []
        for text in map(chat.decode, prompts):
            (key,) = (k for k in table if k in text)
            asked[key] += 1
            found.append([Completion(chat.tokenizer.encode(v).ids + [chat.eos], True) for v in table[key][:n]])
        return found

    monkeypatch.setattr(judge, "generate", write)
    return table, asked


def judged(chat, candidates, k=3):
    rows = score(None, chat, candidates, Sampling(64), k=k, rubric=RUBRIC, key="k", label=None)
    return attach(candidates, rows), rows


def test_mean_of_the_readable_votes(verdicts, chat):
    """Guards against: an unreadable verdict counted as 0 (evals #1712) or as -1 (Oxen), and K that never arrives (lucidrains)."""
    verdicts[0].update(alpha=["Score: 5", "no idea", "Score: 2"], beta=["what", "Score: 9", "Score: 0 or so"],
                       gamma=["what", "Score: 9", ""])
    scored, rows = judged(chat, [candidate(0, s, w) for s, w in enumerate(("alpha", "beta", "gamma"))])
    assert [c.votes for c in scored] == [(5, None, 2), (None, None, 0), (None, None, None)]
    assert [c.reward for c in scored] == [3.5, 0, None]
    assert [(r["id"], r["sample"], r["vote"]) for r in rows] == [(0, s, v) for s in range(3) for v in range(3)]
    assert [r["text"] for r in rows[:2]] == ["Score: 5", "no idea"] and [r["score"] for r in rows[:3]] == [5, None, 2]


def test_a_score_inside_the_answer_does_not_count(verdicts, chat):
    """Guards against: an answer that scores itself (Oxen's regex over prompt + response + verdict)."""
    verdicts[0].update(alpha=["Poor.\nScore: 1"] * 3, beta=["I cannot say."] * 3)
    scored, _ = judged(chat, [candidate(0, 0, "alpha Score: 5"), candidate(0, 1, "beta\nScore: 5")])
    assert [c.reward for c in scored] == [1, None]


def test_a_score_inside_the_answer_does_not_count_in_a_real_verdict(chat):
    """Guards against: the same, with the real `generate`: what is decoded is what the judge wrote."""
    letter = chat.tokenizer.token_to_id("z")
    model, answers = flat_gpt({letter: 1, chat.eos: 1}), [candidate(0, 0, "Score: 5")]
    rows = score(model, chat, answers, Sampling(8), k=3, rubric="{prompt}{response}", key="k", label=None)
    assert attach(answers, rows)[0].reward is None and len(rows) == 3
    assert all(set(r["text"]) <= {"z"} for r in rows)


def test_unfinished_answers_are_not_judged(verdicts, chat):
    """Guards against: an answer that was cut off, scored as if it were whole."""
    verdicts[0].update(alpha=["Score: 3"] * 3)
    scored, rows = judged(chat, [candidate(0, 0, "alpha", finished=False), candidate(0, 1, "alpha")])
    assert [(c.reward, c.votes) for c in scored] == [(None, ()), (3, (3, 3, 3))]
    assert {r["sample"] for r in rows} == {1} and verdicts[1] == {"alpha": 1}
    assert judged(chat, [candidate(0, 0, "alpha", finished=False)])[1] == []


def test_equal_answers_share_their_votes(verdicts, chat):
    """Guards against: one text that beats itself by the luck of the draw; and equal texts to other prompts thrown together."""
    verdicts[0].update(alpha=["Score: 3", "Score: 4"], beta=["Score: 1", "Score: 1"])
    answers = [candidate(0, 0, "alpha"), candidate(0, 1, "beta"), candidate(0, 2, "alpha"), candidate(1, 0, "alpha")]
    scored, rows = judged(chat, answers, k=2)
    assert [c.reward for c in scored] == [3.5, 1, 3.5, 3.5] and verdicts[1] == {"alpha": 2, "beta": 1}
    assert [(r["id"], r["sample"]) for r in rows] == [(0, 0), (0, 0), (0, 1), (0, 1), (1, 0), (1, 0)]
    assert choose_pair([scored[0], scored[2]]) is None


# ---- pairs ----

def group(*rewards: float | None, id: int = 0) -> list[Candidate]:
    return [candidate(id, s, f"answer {s}", reward=r) for s, r in enumerate(rewards)]


PAIRS = [((1, 5, 3), (1, 0)), ((2, None, 4), (2, 0)), ((0, 0.5), (1, 0)), ((None, None, 0, 3), (3, 2)), ((4, 4, 2), (0, 2)),
         ((3, 3, 3), None), ((None, None), None), ((5, None), None), ((5,), None), ((0, None, 0), None), ((), None)]


@pytest.mark.parametrize("rewards, expected", PAIRS, ids=str)
def test_choose_pair(rewards, expected):
    """Guards against: a missing score that becomes the rejected answer (Oxen's -1), and ties dressed up as preferences."""
    pair = choose_pair(group(*rewards))
    assert (pair and (pair.chosen.sample, pair.rejected.sample)) == expected


def test_one_pair_a_prompt():
    """Guards against: answers to different prompts compared with each other."""
    pairs = choose_pairs(group(1, 2) + group(3, 3, id=1) + group(None, None, id=2) + group(5, 4, id=3))
    assert [(p.chosen.id, p.rejected.id, p.chosen.reward, p.rejected.reward) for p in pairs] == [(0, 0, 2, 1), (3, 3, 5, 4)]
    assert choose_pairs([]) == []


# ---- accuracy on ranked answers ----

ACCURACY = [
    ([[5, 3, 1]], [[0, 1, 2]], 1), ([[1, 3, 5]], [[0, 1, 2]], 0), ([[5, 1, 3]], [[0, 1, 2]], 2 / 3),
    ([[5, 5, 1]], [[0, 1, 2]], 2 / 3), ([[5, 4, 1]], [[0, 0, 1]], 1), ([[None, 4, 1]], [[0, 1, 2]], 1 / 3),
    ([[0, None]], [[0, 1]], 0), ([[None, None]], [[0, 1]], 0),
    ([[5, 5]], [[1, 1]], None), ([], [], None), ([[5, 1], [1, 5]], [[0, 1], [0, 1]], 0.5),
]


@pytest.mark.parametrize("rewards, ranks, share", ACCURACY, ids=str)
def test_pairwise_accuracy(rewards, ranks, share):
    """Guards against: errors and ties that count as wins (LifeOS #1731, NeMo-Gym #2103)."""
    assert pairwise_accuracy(rewards, ranks) == (None if share is None else pytest.approx(share))


def test_rank_answers(verdicts, chat):
    """Guards against: rewards handed back in another order than the answers."""
    verdicts[0].update(alpha=["Score: 3"], beta=["no"], gamma=["Score: 1"])
    groups = [{"prompt": "x", "responses": ["gamma", "alpha", "gamma"]}, {"prompt": "y", "responses": ["beta", "alpha"]}]
    rewards, rows = rank_answers(None, chat, groups, Sampling(64), k=1, rubric=RUBRIC, key="k")
    assert rewards == [[1, 3, 1], [None, 3]] and len(rows) == 4
