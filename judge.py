"""judge.py: verdict -> number -> pair. The judge is the model that wrote the answers.

In: candidates.  Out: verdicts, the candidates with votes and a reward, and preference pairs. A
score from 0 to 5 is read in one of four ways. "sampled" is the paper's: the mean of K written
verdicts (core/verdicts.py reads them). The other three write nothing and hardly ever tie:
- "expected": the probabilities of the digits 0 to 5 right after "Score:".
- "checklist": p(yes) to each requirement of the prompt (core/checklist.py), asked by itself.
- "contrast": how much likelier the requirements make the answer, by the model's own log-probs.

Two rules keep the numbers honest:
1. A verdict that cannot be read is no score: not 0, not a tie, not a rejected answer.
2. Only what the judge itself wrote is parsed. An answer that says "Score: 5" does not score itself.
Left out on purpose: prompts that compare two answers, and second tries for an unreadable verdict.

Shapes: P judge prompts, Q questions, B rows, T tokens, D hidden, V vocabulary, E answers.

    python judge.py --model runs/toy/M4 --prompt "Spell cat for Mia." --response "Mia: c, a, t."
    python judge.py --model DIR --file ranked.jsonl        # the paper's five figures
"""

import argparse
import json
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby, permutations
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from core.batches import branch_view, collate, shared_prefix
from core.chat import Chat
from core.checklist import instruction_of, requirements_of
from core.cli import common_arguments, printable, run_command
from core.config import READINGS
from core.device import pick_device, prepare_machine
from core.draw import Sampling
from core.errors import UserError
from core.files import read_ranked, read_whole
from core.kernels import picked_probs
from core.rankings import figures_text, ranked_figures, text_lengths
from core.records import Candidate, Example, Pair, rewards_by_prompt, votes_by_text
from core.statistics import mean
from core.verdicts import LABEL, ends_with_score, other_scale, parse_score
from dpo import sequence_logps
from sample import Groups, Writer, generate, load_writer, next_probs, read_groups

# For real models. The toy has its own in seed/rubric.txt.
RUBRIC = """Review how well an answer serves the person who asked. Start from 0 and add one point for each that holds:
- It is relevant and says something about the request.
- It covers a large part of what was asked.
- It is useful: the basic need behind the request is met.
- It is clear, well organised, and sounds like a helpful assistant.
- It is excellent: expert, tailored to the request, with nothing to remove.
Give a short justification, then end with the line "Score: n", where n is the number of points from 0 to 5.

Request:
{prompt}

Answer:
{response}

Review:"""  # noqa: E501
SOFTNESS = 10.0  # of --judge contrast: without it nearly all scores would be 0 or 5
# For --judge checklist. {prompt} is one requirement. The text comes first: its questions share it.
QUESTION = """{response}

Requirement: {prompt}
Is it kept? Answer yes or no."""


@dataclass(frozen=True)
class Judging:
    """How a judge is asked. `sampling.n` is K, the verdicts on each answer."""

    rubric: str  # for the checklist: QUESTION
    sampling: Sampling
    how: str = "sampled"  # one of config.READINGS
    label: str = LABEL  # what stands before the final score of a verdict


# ---- the judge prompt ----


def read_rubric(
    path: str | Path | None, folder: str | Path | None = None, *, how: str = "sampled"
) -> str:
    """The rubric in a file, else the model's own in `folder`, else RUBRIC, or QUESTION.

    Raises UserError where {prompt} or {response} is missing.
    """
    if not path and how == "checklist":
        return QUESTION
    if not path and folder is not None and (Path(folder) / "rubric.txt").exists():
        path = Path(folder) / "rubric.txt"
    if not path:
        return RUBRIC
    text = read_whole(path)
    if text.count("{prompt}") != 1 or text.count("{response}") != 1:
        raise UserError(f"rubric {path} must hold {{prompt}} and {{response}}, once each.")
    if scale := other_scale(text):
        raise UserError(
            f"rubric {path} asks for another scale ({scale!r}); scores are 0 to 5 here."
        )
    return text


def judge_text(rubric: str, prompt: str, response: str) -> str:
    """The rubric with both texts in their places. Braces in the texts stay as they are.

    A place behind "> " is a quotation: each line of its text begins so. No text can end it.
    """
    texts = {"{prompt}": prompt, "{response}": response}
    filled = ""
    for part in re.split(r"(\{prompt\}|\{response\})", rubric):
        text = texts.get(part, part)
        if part in texts and f"\n{filled}".endswith("\n> "):
            text = "\n> ".join(text.splitlines())
        filled += text
    return filled


def judge_examples(chat: Chat, rubric: str, eft: Sequence[dict]) -> list[Example]:
    """EFT data {"prompt", "response", "verdict"} -> what a judge is asked, and what it should
    write.
    """
    examples = []
    for row in eft:
        question = judge_text(rubric, row["prompt"], row["response"])
        examples.append(chat.example(question, row["verdict"]))
    return examples


# ---- verdicts, and numbers that need none ----


def judge_answers(
    writer: Writer,
    candidates: Sequence[Candidate],
    judging: Judging,
    *,
    key: str,
    label: str | None = "verdicts",
) -> list[dict]:
    """{y} -> verdicts, as rows {"id", "sample", "vote", "text", "score"}. Score None is unreadable.

    A judge that writes nothing adds what it read: "digits", or "yes" for each requirement.
    An answer that never ended is not judged, and one that is too long for the judge cannot be read.
    Of answers to one prompt that read the same, only the
    first is judged, for all of them: see with_rewards.
    """
    first: dict[tuple[int, str], Candidate] = {}
    for y in candidates:
        if y.finished:
            first.setdefault((y.id, y.response), y)
    # 1) what is too long for the judge cannot be read
    asked = [what_is_read(writer.chat, y, judging) for y in first.values()]
    new_tokens = judging.sampling.max_new_tokens if judging.how == "sampled" else 0
    fitting = writer.that_fit(asked, new_tokens)
    answers = list(first.values())
    judged = [answers[i] for i in fitting]
    too_long = [answers[i] for i in sorted({*range(len(answers))} - {*fitting})]
    unread = [verdict_row(y, 0, "") | {"score": None} for y in too_long]
    # 2) numbers that need no words
    if judging.how != "sampled":
        read_scores = {
            "expected": expected_scores,
            "checklist": checklist_scores,
            "contrast": contrast_scores,
        }
        rows = read_scores[judging.how](writer, judged, judging, label)
        return [verdict_row(y, 0, "") | row for y, row in zip(judged, rows, strict=True)] + unread
    # 3) written verdicts
    sampling = replace(judging.sampling, stop=partial(ends_with_score, label=judging.label))
    keys = [f"{key} {y.id}.{y.sample}" for y in judged]
    groups = generate(writer, [asked[i] for i in fitting], sampling, keys, label=label)
    verdicts = []
    for y, group in zip(judged, groups, strict=True):
        for vote, completion in enumerate(group):
            text = writer.chat.decode(completion.tokens).strip()
            score = parse_score(text, judging.label)
            verdicts.append(verdict_row(y, vote, text) | {"score": score})
    return verdicts + unread


def what_is_read(chat: Chat, y: Candidate, judging: Judging) -> list[int]:
    """The longest text that a judge reads to score an answer."""
    if judging.how == "contrast":
        return chat.prompt(y.prompt) + answer_ids(chat, y)
    if judging.how == "checklist":
        return max((chat.prompt(question) for question in questions(y, judging)), key=len)
    return chat.prompt(judge_text(judging.rubric, y.prompt, y.response))


def questions(y: Candidate, judging: Judging) -> list[str]:
    """What the checklist asks: each requirement of the prompt, or the prompt itself."""
    requirements = requirements_of(y.prompt) or [y.prompt]
    return [judge_text(judging.rubric, one, y.response) for one in requirements]


def answer_ids(chat: Chat, y: Candidate) -> list[int]:
    """As they were drawn; the answers of a file were not."""
    return y.tokens or chat.response(y.response) + [chat.eos]


def verdict_row(y: Candidate, vote: int, text: str) -> dict:
    return {"id": y.id, "sample": y.sample, "vote": vote, "text": text}


# ---- judges that write nothing ----


def expected_scores(
    writer: Writer, judged: Sequence[Candidate], judging: Judging, label: str | None
) -> list[dict]:
    """One {"score", "digits"} per answer: the mean digit, and the probabilities of 0 to 5.

    The judge writes no justification here. "Score:" is put into its mouth, and the next token is
    read. The score is None where the six digits together are less likely than everything else.
    """
    score_start, digit_ids = alternatives(writer.chat, [f"Score: {n}" for n in range(6)])
    prompts = [what_is_read(writer.chat, y, judging) + score_start for y in judged]
    slots = judging.sampling.slots
    rows = []
    for row in next_probs(writer, prompts, digit_ids, slots=slots, label=label):
        readable = sum(row) >= 0.5
        average = sum(digit * p for digit, p in enumerate(row)) / sum(row) if readable else None
        digits_of_row = [round(p, 4) for p in row]
        rows.append({"score": average, "digits": digits_of_row})
    return rows


def checklist_scores(
    writer: Writer, judged: Sequence[Candidate], judging: Judging, label: str | None
) -> list[dict]:
    """One {"score", "yes"} per answer: 5 x the mean p(yes), and p(yes) of each requirement.

    A prompt without a list is one requirement itself. The score is None where yes and no together
    are less likely than everything else. Questions about one text share its reading.
    """
    _, answer_ids = alternatives(writer.chat, ["yes", "no"])
    groups = []
    for y in judged:
        group = [Example(writer.chat.prompt(one), []) for one in questions(y, judging)]
        groups.append(group)
    rows = []
    for probs in group_probs(writer, groups, answer_ids, label):  # (Q,2) each
        both = probs.sum(-1)
        yes = probs[:, 0] / both
        score = 5 * float(yes.mean()) if bool((both >= 0.5).all()) else None
        rows.append({"score": score, "yes": [round(p, 4) for p in yes.tolist()]})
    return rows


def group_probs(
    writer: Writer, groups: Groups, wanted: Sequence[int], label: str | None
) -> list[Tensor]:
    """p(the next token is w) after each prompt of each group: (Q,wanted) for every group."""

    def read(rows: Groups) -> Tensor:
        ids, _, branch, position = collate(rows, writer.model.device)
        hidden = writer.model(ids, **branch_view(branch, position))  # (B,T,D)
        next_branch = F.pad(branch[:, 1:], (0, 1))
        is_last = (branch > 0) & (branch != next_branch)  # (B,T) the last token of each prompt
        return picked_probs(writer.model, hidden[is_last], wanted)

    writer.work.prompts += sum(map(len, groups))
    return read_groups(writer, groups, read, label)


def contrast_scores(
    writer: Writer, judged: Sequence[Candidate], judging: Judging, label: str | None
) -> list[dict]:
    """One {"score", "ratio"} per answer: how much likelier the requirements make it, in nats:
    ratio = log p(y | instruction and requirements) - log p(y | instruction).

    The score is 5 x sigmoid(ratio / SOFTNESS). A prompt without a list stands against no prompt.
    """
    with_list = []
    without = []
    for y in judged:
        tokens = answer_ids(writer.chat, y)
        bare = instruction_of(y.prompt) if requirements_of(y.prompt) else ""
        with_list.append(Example(writer.chat.prompt(y.prompt), tokens))
        without.append(Example(writer.chat.prompt(bare), tokens))
    ratios = response_logps(writer, with_list, label) - response_logps(writer, without, label)
    scores = 5 * torch.sigmoid(ratios / SOFTNESS)  # (E,)
    rows = []
    for score, ratio in zip(scores.tolist(), ratios.tolist(), strict=True):
        rows.append({"score": score, "ratio": round(ratio, 4)})
    return rows


def response_logps(writer: Writer, examples: Sequence[Example], label: str | None) -> Tensor:
    """log p(response | prompt) of each example: (E,). Neighbours with one prompt share a row."""
    groups = [list(group) for _, group in groupby(examples, key=lambda one: one.prompt)]
    writer.work.prompts += len(groups)
    found = read_groups(writer, groups, partial(sequence_logps, writer.model), label)
    return torch.cat([*found, torch.empty(0)])  # also where there is no example


def alternatives(chat: Chat, texts: Sequence[str]) -> tuple[list[int], list[int]]:
    """The ids that all `texts` begin with, and the next id of each; UserError if two agree."""
    tokenised = [chat.response(text) for text in texts]
    size = shared_prefix(tokenised)  # it never counts a last token, so tokens[size] exists
    ids = [tokens[size] for tokens in tokenised]
    if len(set(ids)) < len(texts):
        raise UserError(
            f"this tokenizer does not tell {texts[0]!r} to {texts[-1]!r} apart by one token; use "
            f"--judge sampled."
        )
    return tokenised[0][:size], ids


def with_rewards(candidates: Sequence[Candidate], verdicts: Sequence[dict]) -> list[Candidate]:
    """{y} -> {r}: the candidates with their votes, and the mean of the readable votes as reward.

    A verdict counts for every answer to its prompt that has the same text.
    """
    votes = votes_by_text({(y.id, y.sample): y.response for y in candidates}, verdicts)
    scored = []
    for y in candidates:
        own_votes = votes[y.id, y.response] if y.finished else []
        scored.append(replace(y, votes=tuple(own_votes), reward=mean(own_votes)))  # skips None
    return scored


# ---- number -> pair ----


def choose_pair(group: Sequence[Candidate], near: float | None = None) -> Pair | None:
    """The best against the worst answer to one prompt; of equal rewards, the first answer.

    With `near`: of all pairs that have at least this share of the widest gap in rewards, the one
    nearest in length, so that DPO learns less about length. None where fewer than two were scored,
    or all rewards are equal (the paper, section 2.3).
    """
    scored = [y for y in group if y.reward is not None]
    if len(scored) < 2:
        return None
    chosen = max(scored, key=lambda y: y.reward)
    rejected = min(scored, key=lambda y: y.reward)
    widest = chosen.reward - rejected.reward
    if widest == 0:
        return None
    if near is None:
        return Pair(chosen, rejected)
    pairs = [Pair(*two) for two in permutations(scored, 2)]
    wide = [pair for pair in pairs if pair.gap() >= near * widest and pair.gap() > 0]
    return min(wide, key=lambda pair: (abs(pair.extra_length()), -pair.gap()))


# ---- answers that people ranked ----


def as_candidates(groups: Sequence[dict]) -> list[Candidate]:
    """Ranked answers {"prompt", "responses"} as if a model had written them."""
    candidates = []
    for i, group in enumerate(groups):
        for sample, response in enumerate(group["responses"]):
            candidates.append(Candidate(i, sample, group["prompt"], response, [], finished=True))
    return candidates


def judge_ranked(
    writer: Writer, groups: Sequence[dict], judging: Judging, *, key: str
) -> tuple[list[list[float | None]], list[dict]]:
    """Judges answers that people ranked: their rewards, group by group, and the verdicts."""
    answers = as_candidates(groups)
    verdicts = judge_answers(writer, answers, judging, key=key)
    return rewards_by_prompt(with_rewards(answers, verdicts)), verdicts


# ---- command line ----


def judge_one(args: argparse.Namespace, writer: Writer, judging: Judging) -> dict:
    """Every verdict on one answer, and their mean."""
    answer = Candidate(0, 0, args.prompt, args.response, tokens=[], finished=True)
    verdicts = judge_answers(writer, [answer], judging, key=f"{args.seed}")
    for verdict in verdicts:
        for key in ("id", "sample", "vote"):
            del verdict[key]
    reward = mean(verdict["score"] for verdict in verdicts)
    return {"judge": judging.how, "reward": reward, "verdicts": verdicts}


def judge_file(
    args: argparse.Namespace, writer: Writer, groups: list[dict], judging: Judging
) -> dict:
    """How well the judge orders ranked answers (the paper, section 3.1)."""
    started = time.time()
    rewards, verdicts = judge_ranked(writer, groups, judging, key=f"{args.seed}")
    readable = sum(row["score"] is not None for row in verdicts)
    return {
        "judge": judging.how,
        **ranked_figures(rewards, groups),
        "judge_parse_rate": readable / len(verdicts),
        "seconds": round(time.time() - started, 2),
        "rewards": rewards,
    }


def judge_all(args: argparse.Namespace, writer: Writer, judgings: list[Judging]) -> list[dict]:
    """Every judge on the same answers; of several, also "the longer answer is better"."""
    groups = read_ranked(args.file)
    reports = [judge_file(args, writer, groups, judging) for judging in judgings]
    if len(reports) > 1:
        figures = ranked_figures(text_lengths(groups), groups)
        figures["judge_best5"] = None  # a length is no score
        reports.append({"judge": "longer", "judge_parse_rate": 1.0, "seconds": 0.0} | figures)
    return reports


def print_verdicts(report: dict) -> None:
    for vote, verdict in enumerate(report["verdicts"], 1):
        number = "unreadable" if verdict["score"] is None else verdict["score"]
        print(f"--- {report['judge']}, verdict {vote}, score {number}")
        if "digits" in verdict:
            print("probabilities of 0 to 5:", *verdict["digits"])
        elif "yes" in verdict:
            print("p(yes) of each requirement:", *verdict["yes"])
        elif "ratio" in verdict:
            print("log-likelihood ratio, nats:", verdict["ratio"])
        else:
            print(printable(verdict["text"]))
    reward = "none" if report["reward"] is None else f"{report['reward']:.2f}"
    print("--- mean of the readable scores:", reward)


def main() -> None:
    prepare_machine()
    parser = common_arguments(
        "Let a model judge one answer, or a file of ranked answers.",
        model="a Hugging Face directory, for example runs/toy/M4",
        prompt="with --response: what was asked",
        response="with --prompt: the answer to judge",
        file='JSONL of {"prompt", "responses", "ranks"}: prints the five figures of the paper',
        rubric="a rubric file [DIR/rubric.txt of the model, else the built-in one]",
    )
    parser.add_argument("--k", type=int, default=3, help="verdicts an answer [%(default)s]")
    parser.add_argument(
        "--judge",
        choices=(*READINGS, "all"),
        default="sampled",
        help="how to read a score; all: with --file, each of them [%(default)s]",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args()
    if bool(args.file) == bool(args.prompt and args.response):
        raise UserError("give either --file, or --prompt and --response.")
    writer = load_writer(args.model, pick_device(args.device))
    sampling = Sampling(args.max_new_tokens, args.temperature, args.top_p, n=args.k)
    judgings = []
    for how in READINGS if args.judge == "all" else [args.judge]:
        rubric = read_rubric(args.rubric, args.model, how=how)
        judgings.append(Judging(rubric, sampling, how))
    if args.file:
        reports = judge_all(args, writer, judgings)
    else:
        reports = [judge_one(args, writer, judging) for judging in judgings]
    if args.json:
        print(json.dumps(reports if len(reports) > 1 else reports[0]))
        return
    for report in reports:
        if args.file:
            print(figures_text(report))
        else:
            print_verdicts(report)


if __name__ == "__main__":
    run_command(main)
