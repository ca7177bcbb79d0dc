"""core/verdicts.py: the score in a written verdict.

In: what a judge wrote.  Out: the number after its last "Score:", or None. A verdict that cannot be
read is no score: not 0, and not a guess.
"""

import re

SCORE = re.compile(r"score[\s*_]*[:=]", re.IGNORECASE)
# What follows "Score:". Only a number on the scale from 0 to 5 is accepted.
NUMBER = re.compile(
    r"""
    [\s*_`"'(\[]*                              # marks, as in **4** or (4)
    (\d+(?:\.\d+)?)                            # 4, 4.5
    (?:\s*(?:/|out\ of)\s*5(?!\d|\.\d))?       # 4/5, 4 out of 5; not 4/50, which is refused below
    (?!\s*(?:[/–-]|out\ of|to)\s*\d            # refused: 4/10, 4 out of 10, 3-4, 3 to 4
      |\d|[.,]\d                               # refused: a part of a number, 1.2.3, 3,5
      |\s*%)                                   # refused: 90%
    """,
    re.VERBOSE,
)


def parse_score(verdict: str) -> float | None:
    """The number after the last "Score:" of a verdict. None where it is missing or outside 0 to 5.

    Example:
        parse_score("Good. Score: 4")       -> 4.0
        parse_score("**Score:** 3.5/5")     -> 3.5
        parse_score("Score: 7")             -> None
        parse_score("Score: 8/10")          -> None
        parse_score("Score: 3-4")           -> None
    """
    labels = list(SCORE.finditer(verdict))
    if not labels:
        return None
    number = NUMBER.match(verdict, labels[-1].end())
    if number is None or float(number[1]) > 5:
        return None
    return float(number[1])


def ends_with_score_line(text: str) -> bool:
    """The stop rule of a verdict: its last complete line is a score line."""
    lines = [line for line in text.split("\n")[:-1] if line.strip()]
    return bool(lines) and parse_score(lines[-1]) is not None
