"""measure/notes.py: what a stage says about its result, in one line for people.

In: what the stage made.  Out: text for the terminal and for log.jsonl.
Left out on purpose: what a stage cost (core/records.Work says it) and the figures of the exam
(measure/table.py).
"""

from collections import Counter
from collections.abc import Sequence

from core.records import Candidate, Pair
from core.statistics import mean
from core.verdicts import LABEL, label_in_last_line, other_scale
from measure.exam import ending


def prompts_note(prompts: Sequence[str], refused: Counter[str]) -> str:
    """How many new prompts there are, and why others were refused."""
    reasons = [f"{count} {reason}" for reason, count in refused.most_common()]
    return f"{len(prompts)} kept, refused: {', '.join(reasons) or 'none'}"


def answers_note(answers: Sequence[Candidate]) -> str:
    """How many answers ended by themselves, and how long they are."""
    finished = mean(y.finished for y in answers)
    tokens = mean(len(y.tokens) for y in answers)
    count = len(answers)
    note = f"{count}, finished {finished:.1%}, {tokens:.1f} tokens each"
    thinking = sum(is_thinking(y) for y in answers)
    if thinking:
        note += (
            f"; {thinking} were cut while the model was thinking: --template-arg "
            f"enable_thinking=false, or raise --max-new-tokens"
        )
    return note


def is_thinking(answer: Candidate) -> bool:
    """Whether an answer was cut inside its <think> block."""
    inside = "<think>" in answer.response and "</think>" not in answer.response
    return inside and not answer.finished


def verdicts_note(verdicts: Sequence[dict], how: str) -> str:
    """How many verdicts can be read, and their mean score."""
    scores = [verdict["score"] for verdict in verdicts]
    # None is a verdict that cannot be read.
    readable = mean(score is not None for score in scores) or 0.0
    average = "none"
    if readable > 0:
        average = f"{mean(scores):.2f}"
    share = f"{readable:.1%}"
    return f"{len(verdicts)}, {how}, readable {share}, mean score {average}"


def pairs_note(
    groups: Sequence[Sequence[Candidate]], pairs: Sequence[Pair], used: Sequence[Pair]
) -> str:
    """What became of every prompt and answer. A group holds the answers to one prompt.

    `used` are the pairs that DPO learns from.
    """
    answers = [y for group in groups for y in group]
    finished = sum(y.finished for y in answers)
    scores = Counter(y.id for y in answers if y.reward is not None)
    # A prompt needs two scores to give a pair. Where it has them and gives none, they tie.
    paired = {pair.chosen.id for pair in pairs}
    tied = 0
    for number, count in scores.items():
        if count > 1 and number not in paired:
            tied += 1
    too_few = len(groups) - len(pairs) - tied
    note = (
        f"{len(pairs)} from {len(groups)} prompts: "
        f"{tied} tied, {too_few} with fewer than two scores; "
        f"of {len(answers)} answers {finished} finished, {scores.total()} scored"
    )
    if len(used) < len(pairs):
        note += f"; the {len(used)} widest gaps are used"
    # What of a gain is length?
    if used:
        longer = mean(pair.extra_length() for pair in used)
        note += f"; chosen are {longer:+.1f} tokens longer"
    return note


def why_no_pairs(groups: Sequence[Sequence[Candidate]], verdicts: Sequence[dict]) -> str:
    """Why no prompt gave a pair, and what helps against that cause. `verdicts` are rows."""
    answers = [y for group in groups for y in group]
    finished = [y for y in answers if y.finished]
    scored = [y for y in finished if y.reward is not None]
    # the stage that lost most of what reached it
    if not answers:
        return "No prompt leaves room for an answer: lower --max-new-tokens, or shorten prompts"
    if 2 * len(finished) < len(answers):
        return "Most answers were cut by the limit: raise --max-new-tokens"
    if 2 * len(scored) < len(finished):
        texts = [row["text"] for row in verdicts if row["score"] is None]
        return f"Most verdicts cannot be read: {why_unreadable(texts)}"
    if len({y.reward for y in scored}) == 1:
        return (
            f"The judge gives every answer {scored[0].reward:g}: show it good and bad answers "
            f"(--eft, --ranked), or take a sharper --rubric"
        )
    different = {(y.id, y.response) for y in scored}
    if len(different) == len({y.id for y in scored}):
        return "No prompt has two different answers with a score: raise --temperature or --n"
    return "The answers to a prompt tie: more answers (--n), more verdicts (--k), more prompts"


def why_unreadable(texts: Sequence[str]) -> str:
    """What is wrong with verdicts that have no score, told by the first that says anything."""
    written = [text for text in texts if text]
    if not written:
        return (
            "they are empty, as the answers are too long for the judge (--max-new-tokens), or it "
            "expects other words than a score (--eft, --ranked)"
        )
    shown = repr(written[0][-80:])
    scale = other_scale(written[0])
    label = label_in_last_line(written[0])
    if scale:
        return f"they have another scale ({scale} in {shown}); ask for 0 to 5 in --rubric or --eft"
    if label not in ("", LABEL):
        return (
            f"they end with {label!r} ({shown}), as those of another rubric do; give that rubric "
            f"(--rubric) and examples (--eft), or ask for 'Score:'"
        )
    return f"they end like {shown}; show the judge its format (--eft, --ranked)"


def sft_note(log: Sequence[dict], answers: int, verdicts: int) -> str:
    """What M_1 learned from, and how the loss fell."""
    first = log[0]["loss"]
    last = log[-1]["loss"]
    steps = f"{answers} answers and {verdicts} verdicts, {len(log)} steps"
    return f"{steps}, loss {first:.3f} > {last:.3f}"


def dpo_note(log: Sequence[dict], pairs: int) -> str:
    """How the loss fell, and what became of the log-probs of the pairs, at the end of DPO."""
    start = log[0]["dpo_loss"]
    # One step is noisy, so the end is a mean over the last tenth of them.
    end = ending(log)
    return (
        f"{len(log)} steps on {pairs} pairs, "
        f"loss {start:.3f} > {end['dpo_loss']:.3f}, "
        f"accuracy {end['accuracy']:.2f}, "
        f"log-prob of chosen {end['chosen_change']:+.1f}, "
        f"of rejected {end['rejected_change']:+.1f}"
    )
