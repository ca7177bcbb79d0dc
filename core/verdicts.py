"""core/verdicts.py: the score in a written verdict.

In: what a judge wrote, and the label of its final score: "score", unless judge examples have
another. Out: the number from 0 to 5 after the last such label, or None. A verdict that cannot be
read is no score: not 0, and not a guess. docs/real-model.md has a table of what is read as what.

A label stands by itself ("Score:", "**Final score** =") and not behind a word that makes it the
score of something else ("Relevance score: 1", "underscore: 3", "maximum score: 5").
"""

import re
from collections import Counter
from collections.abc import Iterable

LABEL = "score"
# Words that may stand before the label of a final score.
FINAL = {
    "final",
    "total",
    "overall",
    "the",
    "my",
    "a",
    "its",
    "as",
    "is",
    "so",
    "then",
    "therefore",
}
SEPARATOR = "[:=\uff1a\uff1d]"  # the last two are those of East Asian texts
OUT_OF_5 = r"\((?:out\s+of|0\s*(?:to|-)|/)\s*5\)"
# What may stand around the number: **4**, <4>, "4", \boxed{4}
BEFORE = re.compile(r"""(?:[\s*_`"'(\[<{$]|\\boxed)*""")
BEHIND = re.compile(r"""[*_`"')\]>}$]*""")
NUMBER = re.compile(r"\d+(?:\.\d+)?")
SUM = re.compile(r"(\d+(?:\.\d+)?(?:\s*\+\s*\d+(?:\.\d+)?)+)\s*=")  # 1 + 1 + 0 =
# Our own scale behind the number: 4/5, 4 out of 5, 4 (maximum score: 5)
SCALE = re.compile(
    r"\s*\(?\s*(?:/|(?:out\s+)?of\b|max(?:imum)?(?:\s+score)?\s*[:=]?)\s*5(?:\.0+)?(?!\d|\.\d)\)?",
    re.IGNORECASE,
)
SCALE_IN_WORDS = re.compile(
    r"(?:\b[01]\s*(?:to|through|[-\u2013\u2014~])|\bout\s+of|[\dnx]\s*/)\s*(?P<most>\d+)\b",
    re.IGNORECASE,
)
# What makes the number a part of something else, all on its line
CHANGES = re.compile(
    r"""
    # 4/10, 3-4, 3 to 4, 1 + 1
    [ \t]*(?:[-/\u2013\u2014~+=]|to\b|or\b|(?:out\ )?of\b)[ \t]*[*_`(]*\d
    # 4 (8/10), 4 (out of 10)
    |[ \t]*\((?:out\ of|max\D{0,20})?\s*\d
    # 90%, 4th, 3,5
    |[ \t]*%|\w|[.,]\d
    """,
    re.VERBOSE | re.IGNORECASE,
)


def parse_score(verdict: str, label: str = LABEL) -> float | None:
    """The number after the last label of a verdict. None where it is missing or outside 0 to 5.

    Example:
        parse_score("Good. Score: 4")              -> 4.0
        parse_score("**Score:** 3.5/5")            -> 3.5
        parse_score("Score: 1 + 1 + 1 = 3")        -> 3.0
        parse_score("Score: 8/10")                 -> None
        parse_score("Score: 3-4")                  -> None
        parse_score("Relevance score: 1")          -> None
        parse_score("Fine.\\nRating: 2", "rating")  -> 2.0
    """
    ends = ends_of_labels(verdict, label)
    if not ends:
        return None
    # 1) a sum that leads to the number, where there is one
    start = BEFORE.match(verdict, ends[-1]).end()
    parts = SUM.match(verdict, start)
    if parts:
        start = BEFORE.match(verdict, parts.end()).end()
    # 2) the number
    number = NUMBER.match(verdict, start)
    if number is None or float(number[0]) > 5:
        return None
    if parts and sum(map(float, NUMBER.findall(parts[1]))) != float(number[0]):
        return None
    # 3) what stands behind it must not change its meaning
    end = BEHIND.match(verdict, number.end()).end()
    scale = SCALE.match(verdict, end)
    if scale:
        end = scale.end()
    return None if CHANGES.match(verdict, end) else float(number[0])


def ends_of_labels(verdict: str, label: str) -> list[int]:
    """Where the texts behind the labels of final scores begin."""
    words = r"\s+".join(map(re.escape, label.split()))
    marks = r"[\s*_`\"']*"
    pattern = rf"(?<![^\W\d_]){words}{marks}(?:{OUT_OF_5}{marks})?{SEPARATOR}"
    ends = []
    for found in re.finditer(pattern, verdict, re.IGNORECASE):
        line = verdict[max(0, found.start() - 40) : found.start()].rpartition("\n")[2]
        word = re.search(r"([^\W\d_]*)[ \t*_`\"'-]*$", line)[1]  # the one before the label
        if not word or word.lower() in FINAL:
            ends.append(found.end())
    return ends


def ends_with_score(text: str, label: str = LABEL) -> bool:
    """The stop rule of a verdict: its last complete line has a final score."""
    lines = [line for line in text.split("\n")[:-1] if line.strip()]
    return bool(lines) and parse_score(lines[-1], label) is not None


# ---- what rubrics and judge examples look like ----


def other_scale(rubric: str) -> str | None:
    """The words of a rubric that ask for another scale than 0 to 5, such as "from 1 to 10"."""
    scales = list(SCALE_IN_WORDS.finditer(rubric))
    if not scales or any(scale["most"] == "5" for scale in scales):
        return None
    return scales[0][0]


def label_of(verdicts: Iterable[str]) -> str:
    """The label in the last line of most verdicts: "rating" of "Rating: 3". Else LABEL."""
    labels = [label_in_last_line(verdict) for verdict in verdicts]
    if not labels:
        return LABEL
    label, count = Counter(labels).most_common(1)[0]
    return label if label and 2 * count > len(labels) else LABEL


def label_in_last_line(verdict: str) -> str:
    """In small letters; "score" for "Final score: 3", and "" where no number has a label."""
    line = verdict.strip().rpartition("\n")[2]
    before, *behind = re.split(SEPARATOR, line, maxsplit=1)
    if not (behind and NUMBER.search(behind[0])):
        return ""
    words = re.findall(r"[^\W\d_]+", re.split("[.!?]", before)[-1].lower())
    if words[-1:] == [LABEL] and set(words[:-1]) <= FINAL:
        return LABEL
    return " ".join(words)
