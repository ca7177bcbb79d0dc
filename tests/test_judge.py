"""judge.py and worlds/judge_data.py: what cannot be read is no score.

Only the judge's own words count, and a tie is no preference.
"""

import json
import time
from collections import Counter

import pytest
import torch
from conftest import (
    ROOT,
    assert_refused,
    command,
    flat_gpt,
    leaning_gpt,
    mute_writer,
    tiny_gpt,
    write_tokenizer,
)

import judge
from core.chat import Chat
from core.draw import Sampling
from core.errors import UserError
from core.files import write_jsonl
from core.rankings import judge_figures
from core.records import Candidate, by_prompt
from core.verdicts import label_of
from judge import (
    RUBRIC,
    Judging,
    choose_pair,
    ends_with_score,
    judge_answers,
    judge_examples,
    judge_ranked,
    judge_text,
    parse_score,
    read_rubric,
    with_rewards,
)
from model import save
from sample import Completion, Writer
from worlds.judge_data import agreeing_verdicts, score_lines

READABLE = [
    ("Score: 4", 4),
    ("Good and short.\nScore: 0", 0),
    ("score: 3", 3),
    ("SCORE:5", 5),
    ("Score = 2", 2),
    ("Score: 4.5", 4.5),
    ("Score: 4/5", 4),
    ("Score: 4 / 5", 4),
    ("Score: 3.5/5.", 3.5),
    ("I give it a Score: 4/5. Well done.", 4),
    ("Score: 4.", 4),
    ("Score: **3**", 3),
    ("**Score:** 4", 4),
    ("**Score**: 4", 4),
    ("**Score: 4**", 4),
    ("Score: `4`", 4),
    ('Score: "4"', 4),
    ("Score:\n4", 4),
    ("Score: (4)", 4),
    ("Total score: 3", 3),
    ("Score: 2. No, better: Score: 4", 4),
    ("Score: 7\nScore: 3", 3),
    ("Score: 2 at first, **Score**: 4 in the end", 4),
    ("Score: 5.0", 5),
    ("Score: 4 out of 5", 4),
    ("Score: 4\nScored by me", 4),
    ("Score: 1 + 1 + 1 + 0 + 1 = 4", 4),
    ("Score: 1+1+0.5 = **2.5**/5", 2.5),
    ("Score: 4/5.0", 4),
    ("Score: <4>", 4),
    ("Score: [3]", 3),
    ("Score\uff1a4", 4),
    ("Score: \\boxed{4}", 4),
    ("Score: $\\boxed{4}$", 4),
    ("Score: 3 (maximum score: 5)", 3),
    ("Score: 4 (out of 5)", 4),
    ("Score: 4 (four)", 4),
    ("Score (out of 5): 4", 4),
    ("Score: 4 of 5 points", 4),
    ("Score: 4\n- 3 facts are wrong", 4),
    ("Final score: 2", 2),
    ('{"final_score": 4}', 4),
    ("Relevance score: 1\nClarity score: 0\nScore: 3", 3),
    ("Score: 3\nRelevance score: 1", 3),
]
UNREADABLE = [
    "",
    "   ",
    "A fine answer.",
    "4",
    "4/5",
    "score 3",
    "Score",
    "Score:",
    "Score: five",
    "Score: n",
    "Score: 7",
    "Score: 5.5",
    "Score: -1",
    "Score: - 1",
    "Score: 45",
    "Score: 8/10",
    "Score: 4/10",
    "Score: 4 / 10",
    "Score: 4/50",
    "Score: 4 out of 10",
    "Score: 3-4",
    "Score: 3 - 4",
    "Score: 3\u20134",
    "Score: 4%",
    "Score: 90%",
    "Score: 1.2.3",
    "Score: 3,5",
    "Score: 4 then Score:",
    "Score: 4. Score: nine",
    "Score: 3\nScore: 9",
    "Score: " + "9" * 400,
    "Score: nan",
    "Score: inf",
    "Scores are fun: 4",
    "Score: 1 + 1 + 1",
    "Score: 1 + 1 + 1 = 4",
    "Score: **4**/10",
    "Score: 4 (out of 10)",
    "Score: 4 (8/10)",
    "Score: 3 (maximum score: 10)",
    "Score: 3~4",
    "Score: 3 or 4",
    "Score: 4/5.5",
    "Score: 4th",
    "Relevance score: 1",
    "underscore: 3",
    "maximum score: 5",
]


@pytest.mark.parametrize("text, value", READABLE)
def test_readable_verdict(text, value):
    """Guards against: `.groups(1).isnumeric()` (lucidrains: an error on every score).

    Also against: a parser that demands one layout, and the first match where the judge corrected
    itself (Oxen).
    """
    assert parse_score(text) == value


@pytest.mark.parametrize("text", UNREADABLE)
def test_unreadable_verdict(text):
    """Guards against: the rubric's example copied as a score (insight-bench #17).

    Also against: clipping, other scales read as ours.
    """
    assert parse_score(text) is None


LINES = [
    ("Fine.\nScore: 4\n", True),
    ("Score: 4\n\n", True),
    ("Score: 4", False),
    ("Score: 4\nand", True),
    ("Score:\n", False),
    ("Fine.\n", False),
    ("Score: 9\n", False),
    ("\n", False),
    ("", False),
    ("Relevance score: 1\n", False),
    ("Relevance score: 1\nScore: 4\n", True),
]


@pytest.mark.parametrize("text, done", LINES)
def test_ends_with_score(text, done):
    """Guards against: a verdict that is cut inside its number, or runs on to the limit after it."""
    assert ends_with_score(text) is done


LABELS = [  # verdicts of judge examples, their label
    (["Fine.\nScore: 3", "Score: 4"], "score"),
    (["Final score: 3", "**Total Score:** 4"], "score"),
    (["relevant score: 1\nScore: 2", "relevant score: 0\nScore: 0"], "score"),
    (["Fine.\nRating: 3", "**Rating**: 1"], "rating"),
    (["So. Overall quality = 3", "Overall quality: 1"], "overall quality"),
    (["Rating: 3", "Rating: 1", "4"], "rating"),
    (["Rating: 3", "Grade: 1", "Score: 4"], "score"),
    (["Fine: yes", "Fine: no"], "score"),
    ([], "score"),
]


@pytest.mark.parametrize("verdicts, label", LABELS, ids=str)
def test_the_label_of_judge_examples(verdicts, label):
    """Guards against: judge examples with a label of their own, whose verdicts nobody can read."""
    assert label_of(verdicts) == label


def test_another_label():
    """Guards against: a number that is read behind the label of something else."""
    assert parse_score("Rating: 3", "rating") == 3
    assert parse_score("Rating: 3") is None and parse_score("Score: 3", "rating") is None
    assert parse_score("Score: 1\n**Overall  quality** = 4/5", "overall quality") == 4
    assert ends_with_score("Rating: 3\n", "rating") and not ends_with_score("Rating: 3\n")


LONG = ["score " * 20_000, "Score: " * 20_000, "Score: " + "(" * 10**5, "Score: " + "1+" * 10**5]


@pytest.mark.parametrize("text", ["a" * 10**5, "score" + " " * 10**5, "*" * 10**5 + "x", *LONG])
def test_a_long_verdict_takes_no_time(text):
    """Guards against: a pattern that tries every start against every end."""
    started = time.time()
    assert parse_score(text) is None and not ends_with_score(text + "\n")
    assert time.time() - started < 5


# ---- rubrics ----


def test_texts_are_put_in_as_they_are():
    """Guards against: str.format tripping over braces.

    Also against: an answer that smuggles in a placeholder.
    """
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
    for scale in ("from 1 to 10", "0-100", "out of 7", "n/10"):
        path.write_text("Rate {response} to {prompt}, " + scale)
        with pytest.raises(UserError, match="rubric.txt asks for"):
            read_rubric(path)
    for scale in ("from 0 to 5", "out of 5", "one point for each of 10 things, 0 to 5 in all"):
        path.write_text("Rate {response} to {prompt}, " + scale)
        assert scale in read_rubric(path)


@pytest.mark.parametrize(
    "rubric", [RUBRIC, (ROOT / "seed" / "rubric.txt").read_text()], ids=["own", "seed"]
)
def test_rubrics_give_no_score_away(rubric):
    """Guards against: a judge that scores by repeating its instructions.

    Also against: texts or placeholders lost.
    """
    assert parse_score(rubric) is None
    text = judge_text(rubric, "THE PROMPT", "THE ANSWER")
    assert text.count("THE PROMPT") == text.count("THE ANSWER") == 1


def test_judge_example_is_what_the_judge_is_asked(chat):
    """Guards against: EFT that trains another format than judging uses."""
    row = {"prompt": "x", "response": "y", "verdict": "Good.\nScore: 4"}
    (example,) = judge_examples(chat, RUBRIC, [row])
    assert example.prompt == chat.prompt(judge_text(RUBRIC, "x", "y"))
    assert chat.decode(example.response) == "Good.\nScore: 4" and example.response[-1] == chat.eos


# ---- K votes ----


def candidate(
    number: int, sample: int, response: str, *, finished: bool = True, reward: float | None = None
) -> Candidate:
    prompt = f"prompt {number}"
    return Candidate(number, sample, prompt, response, [sample], finished, reward=reward)


@pytest.fixture
def verdicts(monkeypatch, chat):
    """{words in an answer: its K verdict texts}; the model writes them.

    Returns the table and a count of what was asked.
    """
    table, asked = {}, Counter()

    def write(writer, prompts, sampling, keys, **_):
        groups = []
        for text in map(chat.decode, prompts):
            (key,) = (k for k in table if k in text)
            asked[key] += 1
            written = [chat.tokenizer.encode(verdict).ids for verdict in table[key][: sampling.n]]
            groups.append([Completion(ids + [chat.eos], True) for ids in written])
        return groups

    monkeypatch.setattr(judge, "generate", write)
    return table, asked


def judged(chat, candidates, k=3):
    judging = Judging(RUBRIC, Sampling(64, n=k))
    rows = judge_answers(mute_writer(chat), candidates, judging, key="k", label=None)
    return with_rewards(candidates, rows), rows


def test_mean_of_the_readable_votes(verdicts, chat):
    """Guards against: an unreadable verdict counted as 0 (evals #1712) or as -1 (Oxen).

    Also against: K that never arrives (lucidrains).
    """
    verdicts[0].update(
        alpha=["Score: 5", "no idea", "Score: 2"],
        beta=["what", "Score: 9", "Score: 0 or so"],
        gamma=["what", "Score: 9", ""],
    )
    answers = [candidate(0, s, word) for s, word in enumerate(("alpha", "beta", "gamma"))]
    scored, rows = judged(chat, answers)
    assert [c.votes for c in scored] == [(5, None, 2), (None, None, 0), (None, None, None)]
    assert [c.reward for c in scored] == [3.5, 0, None]
    assert [(r["id"], r["sample"], r["vote"]) for r in rows] == [
        (0, s, v) for s in range(3) for v in range(3)
    ]
    assert [r["text"] for r in rows[:2]] == ["Score: 5", "no idea"]
    assert [r["score"] for r in rows[:3]] == [5, None, 2]


def test_a_score_inside_the_answer_does_not_count(verdicts, chat):
    """Guards against: an answer that scores itself.

    (Oxen's regex over prompt + response + verdict.)
    """
    verdicts[0].update(alpha=["Poor.\nScore: 1"] * 3, beta=["I cannot say."] * 3)
    scored, _ = judged(chat, [candidate(0, 0, "alpha Score: 5"), candidate(0, 1, "beta\nScore: 5")])
    assert [c.reward for c in scored] == [1, None]


def test_a_score_inside_the_answer_does_not_count_in_a_real_verdict(chat):
    """Guards against: the same, with the real `generate`.

    What is decoded is what the judge wrote.
    """
    letter = chat.tokenizer.token_to_id("z")
    model = flat_gpt({letter: 1, chat.eos: 1})
    answers = [candidate(0, 0, "Score: 5")]
    judging = Judging("{prompt}{response}", Sampling(8, n=3))
    rows = judge_answers(Writer(model, chat), answers, judging, key="k", label=None)
    assert with_rewards(answers, rows)[0].reward is None and len(rows) == 3
    assert all(set(r["text"]) <= {"z"} for r in rows)


def test_unfinished_answers_are_not_judged(verdicts, chat):
    """Guards against: an answer that was cut off, scored as if it were whole."""
    verdicts[0].update(alpha=["Score: 3"] * 3)
    cut_off = candidate(0, 0, "alpha", finished=False)
    scored, rows = judged(chat, [cut_off, candidate(0, 1, "alpha")])
    assert [(c.reward, c.votes) for c in scored] == [(None, ()), (3, (3, 3, 3))]
    assert {r["sample"] for r in rows} == {1} and verdicts[1] == {"alpha": 1}
    assert judged(chat, [cut_off])[1] == []


def test_equal_answers_share_their_votes(verdicts, chat):
    """Guards against: one text that beats itself by the luck of the draw.

    Also against: equal texts to other prompts thrown together.
    """
    verdicts[0].update(alpha=["Score: 3", "Score: 4"], beta=["Score: 1", "Score: 1"])
    answers = [
        candidate(0, 0, "alpha"),
        candidate(0, 1, "beta"),
        candidate(0, 2, "alpha"),
        candidate(1, 0, "alpha"),
    ]
    scored, rows = judged(chat, answers, k=2)
    assert [c.reward for c in scored] == [3.5, 1, 3.5, 3.5]
    assert verdicts[1] == {"alpha": 2, "beta": 1}
    places = [(r["id"], r["sample"]) for r in rows]
    assert places == [(0, 0), (0, 0), (0, 1), (0, 1), (1, 0), (1, 0)]
    assert choose_pair([scored[0], scored[2]]) is None


# ---- expected scores: read from probabilities ----


def expected(model, chat, candidates, *, slots: int = 64, key: str = "k") -> list[dict]:
    judging = Judging("{prompt}|{response}", Sampling(64, n=3, slots=slots), how="expected")
    return judge_answers(Writer(model, chat), candidates, judging, key=key, label=None)


ANSWERS = [candidate(i // 4, i % 4, "word " * (i % 5) + chr(97 + i)) for i in range(16)]
MERGES = {
    "bytes": (),
    "digits with their space": [f"\u0120{n}" for n in range(6)],
    "score with its colon": ["e:", ":\u0120"],
}


@pytest.mark.parametrize("merges", MERGES)
def test_expected_scores_by_brute_force(tmp_path, merges):
    """Guards against: a digit read at the wrong place.

    Also against: a mean over what is not a digit, rows in another order than the answers.
    """
    chat = Chat(write_tokenizer(tmp_path, merges=MERGES[merges]))
    line = chat.tokenizer.encode("Score: 4").ids
    digits = [chat.tokenizer.encode(f"Score: {n}").ids[-1] for n in range(6)]
    model = tiny_gpt(seed=2, vocab=260 + len(MERGES[merges]), tie_word_embeddings=False)
    with torch.no_grad():
        model.lm_head.weight[digits] *= 6  # now likely, now unlikely
    rows = expected(model, chat, ANSWERS)
    assert [(r["id"], r["sample"], r["vote"], r["text"]) for r in rows] == [
        (c.id, c.sample, 0, "") for c in ANSWERS
    ]
    for row, c in zip(rows, ANSWERS):
        with torch.no_grad():
            read = torch.tensor([chat.prompt(f"{c.prompt}|{c.response}") + line[:-1]])
            probs = model.logits(model(read))[0, -1].softmax(-1)[digits].tolist()
        assert row["digits"] == pytest.approx(probs, abs=1e-4)
        mean = sum(n * p for n, p in enumerate(probs)) / sum(probs)
        assert row["score"] == (pytest.approx(mean, abs=1e-4) if sum(probs) >= 0.5 else None)
    unreadable = sum(r["score"] is None for r in rows)
    assert 0 < unreadable < len(rows), "the test wants readable and unreadable ones"


def test_expected_scores_need_no_luck(chat):
    """Guards against: an expected score that depends on the key or the batch.

    Also against: one that depends on how often it is asked for.
    """
    model = leaning_gpt({chat.tokenizer.token_to_id(d): 8 for d in "012345"})
    rows = expected(model, chat, ANSWERS)
    assert expected(model, chat, ANSWERS, key="other") == rows
    for again in (expected(model, chat, ANSWERS, slots=1), expected(model, chat, ANSWERS[:3])):
        wanted = [r["score"] for r in rows[: len(again)]]
        assert [r["score"] for r in again] == pytest.approx(wanted, abs=1e-4)
    assert len({r["score"] for r in rows}) == len(rows), "hardly ever tied"


def test_expected_scores_follow_the_digits(chat):
    """Guards against: the order of the digits turned round.

    Also against: a judge that says nothing read as a middling score.
    """
    digit = [chat.tokenizer.token_to_id(d) for d in "0123456789"]
    cases = [
        ({digit[4]: 1}, 4),
        ({digit[0]: 1}, 0),
        ({digit[5]: 0.4, digit[2]: 0.2, 40: 0.4}, 4),
        ({digit[5]: 0.3, 40: 0.7}, None),
        ({digit[7]: 1}, None),
    ]
    for given, wanted in cases:
        (row,) = expected(flat_gpt(given), chat, ANSWERS[:1])
        assert row["score"] == (None if wanted is None else pytest.approx(wanted, abs=1e-4))
        assert row["digits"] == pytest.approx([given.get(d, 0) for d in digit[:6]], abs=1e-4)


def test_expected_scores_one_row_an_answer(chat):
    """Guards against: K equal votes, an unfinished answer judged.

    Also against: one text judged twice, an unreadable one taken for 0.
    """
    digit = chat.tokenizer.token_to_id("3")
    answers = [
        candidate(0, 0, "alpha"),
        candidate(0, 1, "beta", finished=False),
        candidate(0, 2, "alpha"),
        candidate(1, 0, "alpha"),
    ]
    rows = expected(flat_gpt({digit: 1}), chat, answers)
    assert [(r["id"], r["sample"]) for r in rows] == [(0, 0), (1, 0)]
    scored = [(c.votes, c.reward) for c in with_rewards(answers, rows)]
    assert scored == [((3,), 3), ((), None), ((3,), 3), ((3,), 3)]
    mute = expected(flat_gpt({40: 1}), chat, answers)
    scored = [(c.votes, c.reward) for c in with_rewards(answers, mute)]
    assert scored == [((None,), None), ((), None), ((None,), None), ((None,), None)]
    assert expected(flat_gpt({digit: 1}), chat, answers[1:2]) == []


@pytest.mark.parametrize("merges", [["\u01205"], ["\u01200", "\u01201"]], ids=str)
def test_tokenizers_that_do_not_tell_digits_apart(tmp_path, merges):
    """Guards against: a number read off a token that several digits share."""
    chat = Chat(write_tokenizer(tmp_path, merges=merges))
    with pytest.raises(UserError, match="--judge sampled"):
        expected(tiny_gpt(vocab=270), chat, ANSWERS[:2])


# ---- pairs ----


def group(*rewards: float | None, number: int = 0) -> list[Candidate]:
    return [candidate(number, s, f"answer {s}", reward=r) for s, r in enumerate(rewards)]


PAIRS = [
    ((1, 5, 3), (1, 0)),
    ((2, None, 4), (2, 0)),
    ((0, 0.5), (1, 0)),
    ((None, None, 0, 3), (3, 2)),
    ((4, 4, 2), (0, 2)),
    ((3, 3, 3), None),
    ((None, None), None),
    ((5, None), None),
    ((5,), None),
    ((0, None, 0), None),
    ((), None),
]


@pytest.mark.parametrize("rewards, expected", PAIRS, ids=str)
def test_choose_pair(rewards, expected):
    """Guards against: a missing score that becomes the rejected answer (Oxen's -1).

    Also against: ties dressed up as preferences.
    """
    pair = choose_pair(group(*rewards))
    assert (pair and (pair.chosen.sample, pair.rejected.sample)) == expected


def test_one_pair_a_prompt():
    """Guards against: answers to different prompts compared with each other."""
    tied, unreadable = group(3, 3, number=1), group(None, None, number=2)
    answers = group(1, 2) + tied + unreadable + group(5, 4, number=3)
    pairs = [pair for pair in map(choose_pair, by_prompt(answers)) if pair is not None]
    assert [(p.chosen.id, p.rejected.id) for p in pairs] == [(0, 0), (3, 3)]
    assert [(p.chosen.reward, p.rejected.reward) for p in pairs] == [(2, 1), (5, 4)]
    assert by_prompt([]) == []


# ---- judge examples from ranked answers ----


def test_score_lines():
    """Guards against: ranks read upside down. Rank 0 is the best and gets 5, the last gets 1."""
    answers = ["best", "worst", "middle", "worst too"]
    groups = [
        {"prompt": "p", "responses": answers, "ranks": [0, 2, 1, 2]},
        {"prompt": "q", "responses": ["a", "b"], "ranks": [7, 3]},
        {"prompt": "r", "responses": ["c", "d"], "ranks": [1, 1]},
    ]
    rows = score_lines(groups)
    assert [(r["prompt"], r["response"], r["verdict"]) for r in rows] == [
        ("p", "best", "Score: 5"),
        ("p", "worst", "Score: 1"),
        ("p", "middle", "Score: 3"),
        ("p", "worst too", "Score: 1"),
        ("q", "a", "Score: 1"),
        ("q", "b", "Score: 5"),
        ("r", "c", "Score: 5"),
        ("r", "d", "Score: 5"),
    ]
    assert all(parse_score(r["verdict"]) is not None for r in rows)


def people(*ranks: list[int]) -> list[dict]:
    """Ranked groups: one list of ranks for each."""
    groups = []
    for g, group_ranks in enumerate(ranks):
        answers = [f"answer {g} {s}" for s in range(len(group_ranks))]
        groups.append({"prompt": f"p{g}", "responses": answers, "ranks": group_ranks})
    return groups


def votes(*groups: list) -> list[dict]:
    """Verdict rows.

    A group is a list of answers, an answer a list of votes (or one vote), None unreadable.
    """
    rows = []
    for g, answers in enumerate(groups):
        for s, answer_votes in enumerate(answers):
            scores = answer_votes if isinstance(answer_votes, list) else [answer_votes]
            for v, n in enumerate(scores):
                text = f"Vote {v}. Score: {'?' if n is None else n}"
                rows.append({"id": g, "sample": s, "vote": v, "text": text, "score": n})
    return rows


AGREE = [  # ranks of one group, votes, the answers whose verdicts agree
    ([0, 1, 2], [5, 3, 1], [0, 1, 2]),
    ([0, 1, 2], [1, 3, 5], []),
    ([2, 0, 1], [1, 5, 3], [0, 1, 2]),
    ([0, 1, 2], [5, 5, 1], [0, 1, 2]),  # a tie does not contradict
    ([0, 1, 2], [3, 3, 3], []),
    ([0, 1], [4, 4], []),  # but saying nothing is no agreement
    ([0, 1, 2], [3, 5, 1], [2]),  # only the last is where people put it
    ([0, 0, 1], [1, 5, 3], [1]),
    ([0, 0, 1], [4, 5, 3], [0, 1, 2]),  # answers of one rank are not compared
    ([0, 1, 2], [5, None, 1], [0, 2]),
    ([0, 1], [5, None], []),
    ([0, 1], [None, None], []),
    ([0, 0], [5, 1], []),
    ([0, 1], [[5, 1], None], []),  # nor with itself
    ([0, 1], [[5, 1], 2], [0, 1]),  # means of 3 and 2: the vote of 5 agrees, that of 1 does not
    ([0, 1, 2], [[5, None], 3, [None, 1]], [0, 1, 2]),
]


@pytest.mark.parametrize("ranks, given, agree", AGREE, ids=str)
def test_which_verdicts_agree_with_people(ranks, given, agree):
    """Guards against: verdicts kept that contradict people.

    Also against: ranks upside down, an unreadable verdict trained on.
    """
    rows, funnel = agreeing_verdicts(people(ranks), votes(given))
    texts = {(v["id"], v["sample"], v["text"]) for v in votes(given)}
    assert funnel["agreeing"] == len(agree) and {int(r["response"][-1]) for r in rows} <= set(agree)
    for r in rows:
        assert (0, int(r["response"][-1]), r["verdict"]) in texts
        assert r["prompt"] == "p0"
        assert parse_score(r["verdict"]) is not None
    if given == [[5, 1], 2]:
        assert [r["verdict"] for r in rows] == ["Vote 0. Score: 5", "Vote 0. Score: 2"]


def test_the_commonest_score_is_thinned():
    """Guards against: judge data that is nearly all one score (paper, 3.1).

    Also against: a funnel whose numbers do not follow.
    """
    ranks = [[0, 1], [0, 1], [0, 1], [0, 1], [0, 1], [0, 1]]
    given = [[5, 3], [5, 3], [5, 1], [5, 4], [2, 4], [None, 3]]
    rows, funnel = agreeing_verdicts(people(*ranks), votes(*given))
    # Eight agree: four fives, two threes, a one, a four.
    assert funnel == {"written": 12, "readable": 11, "agreeing": 8, "kept": 6}
    assert Counter(parse_score(r["verdict"]) for r in rows) == {5: 2, 3: 2, 1: 1, 4: 1}
    assert len({(r["prompt"], r["response"]) for r in rows}) == 6


def test_one_score_only_is_kept():
    """Guards against: nothing left where every verdict that agrees gives the same score."""
    given = votes([[5, 5, 2], 4.5], [[5, None], None])  # a mean of 4 against 4.5
    rows, funnel = agreeing_verdicts(people([0, 1], [0, 1]), given)
    assert [r["verdict"] for r in rows] == ["Vote 0. Score: 5", "Vote 1. Score: 5"]
    assert funnel == {"written": 7, "readable": 5, "agreeing": 2, "kept": 2}
    rows, funnel = agreeing_verdicts(people([0, 1, 2]), votes([[5, 5], [5, None], [5, None]]))
    assert rows == [] and funnel == {"written": 6, "readable": 4, "agreeing": 0, "kept": 0}
    assert agreeing_verdicts([], []) == (
        [],
        {"written": 0, "readable": 0, "agreeing": 0, "kept": 0},
    )


# ---- accuracy on ranked answers ----


def test_judge_ranked(verdicts, chat):
    """Guards against: rewards handed back in another order than the answers."""
    verdicts[0].update(alpha=["Score: 3"], beta=["no"], gamma=["Score: 1"])
    groups = [
        {"prompt": "x", "responses": ["gamma", "alpha", "gamma"]},
        {"prompt": "y", "responses": ["beta", "alpha"]},
    ]
    judging = Judging(RUBRIC, Sampling(64, n=1))
    rewards, rows = judge_ranked(mute_writer(chat), groups, judging, key="k")
    assert rewards == [[1, 3, 1], [None, 3]] and len(rows) == 4


NAMES = ("pairwise", "ties", "best5", "exact", "spearman", "kendall")


# ---- the command, with expected scores ----


@pytest.fixture
def digits(cwd):
    """A directory with a small judge that likes digits, 4 most."""
    folder = write_tokenizer(cwd / "digits")
    chat = Chat(folder)
    logits = {chat.tokenizer.token_to_id(d): 9 for d in "012345"}
    logits[chat.tokenizer.token_to_id("4")] = 10
    save(leaning_gpt(logits, max_position_embeddings=2048), folder)
    return folder


QUESTION = ("--prompt", "Why?", "--response", "So.")


def test_judge_one_answer_by_expected_score(digits):
    """Guards against: --judge expected that still samples, or shows an empty verdict."""
    args = ("judge.py", "--model", digits, "--judge", "expected", *QUESTION)
    shown, report = command(*args), json.loads(command(*args, "--json").out)
    (verdict,) = report["verdicts"]
    probs = verdict["digits"]
    assert len(probs) == 6 and 0.9 < sum(probs) <= 1.001
    mean = sum(n * p for n, p in enumerate(probs)) / sum(probs)
    assert report["reward"] == verdict["score"] == pytest.approx(mean, abs=1e-3)
    assert shown.code == 0
    assert "probabilities of 0 to 5" in shown.out
    assert f"{report['reward']:.2f}" in shown.out
    assert json.loads(command(*args, "--json", "--seed", 5, "--k", 9).out) == report


def test_judge_one_answer_that_cannot_be_read(digits):
    """Guards against: a made-up number where the judge would rather write something else."""
    save(tiny_gpt(max_position_embeddings=2048), digits)
    args = ("judge.py", "--model", digits, "--judge", "expected", *QUESTION)
    shown, report = command(*args), json.loads(command(*args, "--json").out)
    assert report["reward"] is report["verdicts"][0]["score"] is None
    assert shown.code == 0 and "unreadable" in shown.out and "none" in shown.out


def test_judge_a_file_by_expected_score(digits, cwd):
    """Guards against: figures of other rewards than those shown.

    Also against: a figure that gets lost on the way.
    """
    groups = people([0, 1, 2], [1, 0], [0, 0, 1])
    write_jsonl(cwd / "ranked.jsonl", groups)
    args = ("judge.py", "--model", digits, "--judge", "expected", "--file", cwd / "ranked.jsonl")
    shown, report = command(*args), json.loads(command(*args, "--json").out)
    assert [len(r) for r in report["rewards"]] == [3, 2, 3]
    assert len({x for r in report["rewards"] for x in r}) > 1
    figures = judge_figures(report["rewards"], [g["ranks"] for g in groups])
    assert set(figures) == {"judge_interval", *(f"judge_{n}" for n in NAMES)}
    assert {k: report[k] for k in figures} == figures
    assert (report["groups"], report["judge_parse_rate"]) == (3, 1) and report["seconds"] >= 0
    assert shown.code == 0
    for word in ("3 groups", "ties", "5-best", "exact", "Spearman", "Kendall"):
        assert word in shown.out


def test_judging_that_is_not_known(digits, cwd):
    """Guards against: a typo obeyed as the default.

    Also against: a tokenizer without digits shown as a traceback.
    """
    args = ("judge.py", "--model", digits, *QUESTION, "--judge")
    assert command(*args, "expect").code == 2
    write_tokenizer(digits, merges=["\u01205"])
    save(tiny_gpt(vocab=261), digits)
    assert_refused(command(*args, "expected"), "--judge sampled")
