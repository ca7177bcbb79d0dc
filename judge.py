"""judge.py: verdict -> number -> pair. The judge is the model that wrote the answers.

In: candidates.  Out: verdicts, the candidates with votes and a reward, and preference pairs. A
score is read in one of two ways. "sampled" is the paper's: the mean of K written verdicts.
"expected" reads the probabilities of the digits 0 to 5 right after "Score:"; the judge writes no
justification. It needs one forward pass and no sampling, and hardly ever ties.

Two rules keep the numbers honest:
1. A verdict that cannot be read is no score: not 0, not a tie, not a rejected answer.
2. Only what the judge itself wrote is parsed. An answer that says "Score: 5" does not score itself.
Left out on purpose: prompts that compare two answers, and second tries for an unreadable verdict.

Shapes: P judge prompts.

    python judge.py --model runs/toy/M4 --prompt "Spell cat for Mia." --response "Mia: c, a, t."
    python judge.py --model DIR --file ranked.jsonl        # the paper's five figures
"""

import argparse
import json
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from core.batches import shared_prefix
from core.chat import Chat
from core.cli import common_arguments, run_command
from core.device import pick_device, prepare_machine
from core.draw import Sampling
from core.errors import UserError
from core.files import read_ranked
from core.rankings import judge_figures
from core.records import Candidate, Example, Pair, rewards_by_prompt, votes_by_text
from core.statistics import mean
from sample import Writer, generate, load_writer, next_probs

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


@dataclass(frozen=True)
class Judging:
    """How a judge is asked. `sampling.n` is K, the verdicts on each answer."""

    rubric: str
    sampling: Sampling
    how: str = "sampled"  # or "expected"


# ---- the judge prompt ----


def read_rubric(path: str | Path | None, folder: str | Path | None = None) -> str:
    """The rubric in a file, else the model's own in `folder`, else RUBRIC.

    Raises UserError where {prompt} or {response} is missing.
    """
    if not path and folder is not None and (Path(folder) / "rubric.txt").exists():
        path = Path(folder) / "rubric.txt"
    if not path:
        return RUBRIC
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"rubric {path} cannot be read ({error}).") from None
    if text.count("{prompt}") != 1 or text.count("{response}") != 1:
        raise UserError(f"rubric {path} must hold {{prompt}} and {{response}}, once each.")
    return text


def judge_text(rubric: str, prompt: str, response: str) -> str:
    """The rubric with both texts in their places. Braces in the texts stay as they are."""
    parts = re.split(r"(\{prompt\}|\{response\})", rubric)
    texts = {"{prompt}": prompt, "{response}": response}
    return "".join(texts.get(part, part) for part in parts)


def judge_examples(chat: Chat, rubric: str, eft: Sequence[dict]) -> list[Example]:
    """EFT data {"prompt", "response", "verdict"} -> what a judge is asked, and what it should
    write.
    """
    examples = []
    for row in eft:
        question = judge_text(rubric, row["prompt"], row["response"])
        examples.append(chat.example(question, row["verdict"]))
    return examples


# ---- verdict -> number ----


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


def judge_answers(
    writer: Writer,
    candidates: Sequence[Candidate],
    judging: Judging,
    *,
    key: str,
    label: str | None = "verdicts",
) -> list[dict]:
    """{y} -> verdicts, as rows {"id", "sample", "vote", "text", "score"}. Score None is unreadable.

    Where a judge is "expected", a row has its "digits" too.
    An answer that never ended is not judged. Of answers to one prompt that read the same, only the
    first is judged, for all of them: see with_rewards.
    """
    first: dict[tuple[int, str], Candidate] = {}
    for y in candidates:
        if y.finished:
            first.setdefault((y.id, y.response), y)
    judged = list(first.values())
    questions = [judge_text(judging.rubric, y.prompt, y.response) for y in judged]
    prompts = [writer.chat.prompt(question) for question in questions]
    if judging.how == "expected":
        rows = expected_scores(writer, prompts, judging.sampling.slots, label)
        return [verdict_row(y, 0, "") | row for y, row in zip(judged, rows, strict=True)]
    sampling = replace(judging.sampling, stop=ends_with_score_line)
    keys = [f"{key} {y.id}.{y.sample}" for y in judged]
    groups = generate(writer, prompts, sampling, keys, label=label)
    verdicts = []
    for y, group in zip(judged, groups, strict=True):
        for vote, completion in enumerate(group):
            text = writer.chat.decode(completion.tokens).strip()
            verdicts.append(verdict_row(y, vote, text) | {"score": parse_score(text)})
    return verdicts


def verdict_row(y: Candidate, vote: int, text: str) -> dict:
    return {"id": y.id, "sample": y.sample, "vote": vote, "text": text}


def expected_scores(
    writer: Writer, prompts: Sequence[list[int]], slots: int, label: str | None
) -> list[dict]:
    """One {"score", "digits"} per judge prompt: the mean digit, and the probabilities of 0 to 5.

    The judge writes no justification here. "Score:" is put into its mouth, and the next token is
    read. The score is None where the six digits together are less likely than everything else.
    """
    score_start, digit_ids = alternatives(writer.chat, [f"Score: {n}" for n in range(6)])
    prompts = [prompt + score_start for prompt in prompts]
    probs = next_probs(writer, prompts, digit_ids, slots=slots, label=label)  # (P,6)
    means = (probs * torch.arange(6)).sum(-1) / probs.sum(-1)  # (P,)
    rows = []
    for average, row in zip(means.tolist(), probs.tolist(), strict=True):
        readable = sum(row) >= 0.5
        digits_of_row = [round(p, 4) for p in row]
        rows.append({"score": average if readable else None, "digits": digits_of_row})
    return rows


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


def choose_pair(group: Sequence[Candidate]) -> Pair | None:
    """The best against the worst answer to one prompt; of equal rewards, the first answer.

    None where fewer than two were scored, or all rewards are equal (the paper, section 2.3).
    """
    scored = [y for y in group if y.reward is not None]
    if len(scored) < 2:
        return None
    chosen = max(scored, key=lambda y: y.reward)
    rejected = min(scored, key=lambda y: y.reward)
    return Pair(chosen, rejected) if chosen.reward > rejected.reward else None


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
    return {"reward": mean(verdict["score"] for verdict in verdicts), "verdicts": verdicts}


def judge_file(args: argparse.Namespace, writer: Writer, judging: Judging) -> dict:
    """How well the judge orders answers that people ranked (the paper, section 3.1)."""
    started = time.time()
    groups = read_ranked(args.file)
    rewards, verdicts = judge_ranked(writer, groups, judging, key=f"{args.seed}")
    readable = sum(row["score"] is not None for row in verdicts)
    return {
        "groups": len(groups),
        **judge_figures(rewards, [group["ranks"] for group in groups]),
        "judge_parse_rate": readable / len(verdicts),
        "seconds": round(time.time() - started, 2),
        "rewards": rewards,
    }


def print_verdicts(report: dict) -> None:
    for vote, verdict in enumerate(report["verdicts"], 1):
        number = "unreadable" if verdict["score"] is None else verdict["score"]
        print(f"--- verdict {vote}, score {number}")
        if verdict["text"]:
            print(verdict["text"])
        else:
            print("probabilities of 0 to 5:", *verdict["digits"])
    reward = "none" if report["reward"] is None else f"{report['reward']:.2f}"
    print("--- mean of the readable scores:", reward)


def print_figures(report: dict) -> None:
    def show(key: str) -> str:
        return "none" if report[key] is None else f"{report[key]:.3f}"

    low, high = report["judge_interval"]
    print(
        f"{report['groups']} groups | pairwise accuracy {show('judge_pairwise')} "
        f"({low:.3f} to {high:.3f}) | ties {show('judge_ties')} | "
        f"readable verdicts {report['judge_parse_rate']:.1%}"
    )
    print(
        f"5-best {show('judge_best5')} | exact match {show('judge_exact')} | "
        f"Spearman {show('judge_spearman')} | Kendall tau {show('judge_kendall')} | "
        f"{report['seconds']:.1f} s"
    )


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
        choices=("sampled", "expected"),
        default="sampled",
        help="how to read a score [%(default)s]",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args()
    if bool(args.file) == bool(args.prompt and args.response):
        raise UserError("give either --file, or --prompt and --response.")
    writer = load_writer(args.model, pick_device(args.device))
    sampling = Sampling(args.max_new_tokens, args.temperature, args.top_p, n=args.k)
    judging = Judging(read_rubric(args.rubric, args.model), sampling, args.judge)
    report = judge_file(args, writer, judging) if args.file else judge_one(args, writer, judging)
    if args.json:
        print(json.dumps(report))
    elif args.file:
        print_figures(report)
    else:
        print_verdicts(report)


if __name__ == "__main__":
    run_command(main)
