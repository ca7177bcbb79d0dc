"""measure/head_to_head.py: two models answered the same prompts. Whose answers are better?

In: both models' answers, prompt by prompt, and a judge or two lists of scores.
Out: points for each prompt (1 win, 0.5 tie, 0 loss), and shares of wins, ties and losses.
Three things cannot win: the order (the judge sees both), the length (see length_controlled), and a
missing score (it ties).
"""

from collections.abc import Sequence

from core.records import Candidate
from core.statistics import bootstrap_interval, mean
from judge import alternatives
from sample import Writer, next_probs

COMPARE = """Two answers to one request follow. Which one serves the person who asked better? \
Reply with one letter, A or B.

Request:
{}

Answer A:
{}

Answer B:
{}"""


def preferred(
    judge: Writer, ours: Sequence[Candidate], theirs: Sequence[Candidate], *, slots: int
) -> list[float]:
    """Points for each prompt: 1 where the judge prefers ours in both orders, 0.5 in one, else 0.

    The more likely of the letters A and B decides. A judge that always likes the first answer ends
    in ties, not in wins. Raises UserError where the tokenizer does not tell the letters apart.
    """
    start, letters = alternatives(judge.chat, ["A", "B"])
    questions = []
    for our, their in zip(ours, theirs, strict=True):
        for first, second in ((our, their), (their, our)):
            text = COMPARE.format(first.prompt, first.response, second.response)
            questions.append(judge.chat.prompt(text) + start)
    probs = next_probs(judge, questions, letters, slots=slots, label="comparisons")  # (2P,2)
    likes_first = (probs[:, 0] > probs[:, 1]).view(-1, 2).tolist()  # (P,2)
    return [(ours_first + (not theirs_first)) / 2 for ours_first, theirs_first in likes_first]


def by_score(ours: Sequence[float | None], theirs: Sequence[float | None]) -> list[float]:
    """Points for each prompt from two scores; a tie where one is missing."""
    points = []
    for our, their in zip(ours, theirs, strict=True):
        if None in (our, their) or our == their:
            points.append(0.5)
        else:
            points.append(float(our > their))
    return points


def head_to_head(
    points: Sequence[float], ours: Sequence[Candidate], theirs: Sequence[Candidate]
) -> dict:
    """Points -> shares with 95 % bootstrap intervals over prompts, and the part of length."""
    hits = {
        "win": [float(p == 1) for p in points],
        "tie": [float(p == 0.5) for p in points],
        "lose": [float(p == 0) for p in points],
    }
    one_each = [1.0] * len(points)
    report = {"prompts": len(points)}
    for name, values in hits.items():
        report[f"{name}_rate"] = mean(values)
    for name, values in hits.items():
        report[f"{name}_interval"] = bootstrap_interval(values, one_each)
    our_length = mean(len(answer.tokens) for answer in ours)
    their_length = mean(len(answer.tokens) for answer in theirs)
    return report | {
        "points": mean(points),
        "points_interval": bootstrap_interval(points, one_each),
        "length_controlled": length_controlled(points, ours, theirs),
        "mean_length": [our_length, their_length],
    }


def length_controlled(
    points: Sequence[float], ours: Sequence[Candidate], theirs: Sequence[Candidate]
) -> float | None:
    """The mean of two means: of our points where our answer is the longer one, and where it is not.

    Each counts half, however many prompts it has. None where one of the two never happens.
    """
    longer = []
    not_longer = []
    for point, our, their in zip(points, ours, theirs, strict=True):
        kind = longer if len(our.tokens) > len(their.tokens) else not_longer
        kind.append(point)
    return mean([mean(longer), mean(not_longer)]) if longer and not_longer else None
