"""judge.py: verdict -> number -> pair. The model is its own judge: the same weights that wrote the answers.

In: candidates.  Out: verdicts, the candidates with votes and a reward, and preference pairs.
A score is read in one of two ways: "sampled", the mean of K written verdicts (the paper), or "expected", the mean of the
digits under their probabilities right after "Score:", in one forward pass: no sampling, cheap, hardly ever tied.
Two rules keep the numbers honest. A verdict that cannot be read is no score: not 0, not a tie, not a rejected answer.
And only text that the judge itself wrote is parsed, so an answer that says "Score: 5" does not score itself.
Left out on purpose: pairwise comparison prompts, retries (an unreadable verdict is counted, not asked for again).

    python judge.py --model runs/toy/M4 --prompt "Spell cat for Mia." --response "Mia: c, a, t."
    python judge.py --model DIR --file ranked.jsonl        # the paper's five figures
"""

import argparse
import json
import re
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby, permutations
from pathlib import Path

import numpy as np
import torch

from config import asking, command, pick_device
from data import Candidate, Chat, Example, Pair, UserError, read_ranked, shared_prefix
from model import GPT
from sample import Sampling, generate, next_probs, writer

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

Review:"""
SCORE = re.compile(r"score[\s*_]*[:=]", re.IGNORECASE)
NUMBER = re.compile(
    r"[\s*_`\"'(\[]*(\d+(?:\.\d+)?)(?:\s*(?:/|out of)\s*5(?!\d|\.\d))?(?!\s*(?:[/–-]|out of|to)\s*\d|\d|[.,]\d|\s*%)"
)


def read_rubric(path: str | Path | None, folder: str | Path | None = None) -> str:
    """The rubric of a file, else the model's own in `folder`, else the one above. Raises UserError without {prompt}, {response}."""
    if not path and folder is not None and (own := Path(folder) / "rubric.txt").exists():
        path = own
    if not path:
        return RUBRIC
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise UserError(f"rubric {path} cannot be read ({e}).") from None
    if text.count("{prompt}") != 1 or text.count("{response}") != 1:
        raise UserError(f"rubric {path} must hold {{prompt}} and {{response}}, once each.")
    return text


def judge_text(rubric: str, prompt: str, response: str) -> str:
    """The rubric with both texts put in; their own braces stay as they are."""
    parts = re.split(r"(\{prompt\}|\{response\})", rubric)
    return "".join({"{prompt}": prompt, "{response}": response}.get(p, p) for p in parts)


def judge_examples(chat: Chat, rubric: str, rows: Sequence[dict]) -> list[Example]:
    """EFT rows {"prompt", "response", "verdict"}: what the judge is asked, and what it should write."""
    return [
        chat.example(judge_text(rubric, r["prompt"], r["response"]), r["verdict"]) for r in rows
    ]


def parse_score(verdict: str) -> float | None:
    """The number after the last "Score:" of a verdict; None where it is missing, unclear or outside 0-5.

    Example:
        parse_score("Good. Score: 4")       -> 4.0
        parse_score("**Score:** 3.5/5")     -> 3.5
        parse_score("Score: 7")             -> None
        parse_score("Score: 8/10")          -> None
    """
    found = list(SCORE.finditer(verdict))
    number = found and NUMBER.match(verdict, found[-1].end())
    return float(number[1]) if number and 0 <= float(number[1]) <= 5 else None


def score_line_done(text: str) -> bool:
    """The stop rule of a verdict: its last complete line is a score line."""
    lines = [line for line in text.split("\n")[:-1] if line.strip()]
    return bool(lines) and parse_score(lines[-1]) is not None


def mean(votes: Sequence[float | None]) -> float | None:
    """The mean of those that are there; None where none is."""
    readable = [v for v in votes if v is not None]
    return sum(readable) / len(readable) if readable else None


def score(
    model: GPT,
    chat: Chat,
    candidates: Sequence[Candidate],
    sampling: Sampling,
    *,
    k: int,
    rubric: str,
    key: str,
    how: str = "sampled",
    label: str | None = "verdicts",
) -> list[dict]:
    """Verdicts on every finished answer, as rows {"id", "sample", "vote", "text", "score"}; score None is unreadable.

    `how` is "sampled" (K verdicts) or "expected" (one row, without text and with the digits' probabilities).
    An answer that never ended is not judged. Answers to one prompt that read the same are judged once.
    """
    first = {(c.id, c.response): c for c in reversed(candidates) if c.finished}
    asked = [c for c in candidates if first.get((c.id, c.response)) is c]
    prompts = [chat.prompt(judge_text(rubric, c.prompt, c.response)) for c in asked]
    if how == "expected":
        return [
            {"id": c.id, "sample": c.sample, "vote": 0, "text": "", **row}
            for c, row in zip(asked, expected_scores(model, chat, prompts, sampling, label=label))
        ]
    groups = generate(
        model,
        chat,
        prompts,
        sampling,
        key=key,
        n=k,
        names=[f"{c.id}.{c.sample}" for c in asked],
        stop=score_line_done,
        label=label,
    )
    texts = [
        (c, vote, chat.decode(v.tokens).strip())
        for c, group in zip(asked, groups)
        for vote, v in enumerate(group)
    ]
    return [
        {"id": c.id, "sample": c.sample, "vote": vote, "text": text, "score": parse_score(text)}
        for c, vote, text in texts
    ]


def alternatives(chat: Chat, texts: Sequence[str]) -> tuple[list[int], list[int]]:
    """What the responses `texts` share as ids, and for each the token that then tells it apart. Raises UserError."""
    lines = [chat.response(text) for text in texts]
    start = shared_prefix(lines)
    found = [line[start] for line in lines]
    if len(set(found)) < len(texts):
        raise UserError(
            f"this tokenizer does not tell {texts[0]!r} to {texts[-1]!r} apart by one token; use --judge sampled."
        )
    return lines[0][:start], found


def expected_scores(
    model: GPT, chat: Chat, prompts: Sequence[list[int]], sampling: Sampling, *, label: str | None
) -> list[dict]:
    """One {"score", "digits"} a judge prompt; score None where the six digits together are less likely than the rest."""
    start, digits = alternatives(chat, [f"Score: {n}" for n in range(6)])
    probs = next_probs(
        model,
        [p + start for p in prompts],
        digits,
        slots=sampling.slots,
        work=sampling.work,
        label=label,
    )  # (P,6)
    means = (probs * torch.arange(6)).sum(-1) / probs.sum(-1)
    return [
        {"score": m if sum(p) >= 0.5 else None, "digits": [round(x, 4) for x in p]}
        for m, p in zip(means.tolist(), probs.tolist())
    ]


def attach(candidates: Sequence[Candidate], verdicts: Sequence[dict]) -> list[Candidate]:
    """{y} -> {r}: the candidates with their votes, and the mean of those that could be read as reward."""
    texts, votes = {(c.id, c.sample): (c.id, c.response) for c in candidates}, defaultdict(tuple)
    for v in verdicts:
        votes[texts[v["id"], v["sample"]]] += (v["score"],)
    given = [votes[c.id, c.response] if c.finished else () for c in candidates]
    return [replace(c, votes=v, reward=mean(v)) for c, v in zip(candidates, given)]


def choose_pair(group: Sequence[Candidate], length_control: float = 0.0) -> Pair | None:
    """Highest against lowest reward of the answers to one prompt; None where fewer than two were scored, or all tie.

    With `length_control` rho, rewards within rho of the whole range count as equal to the best or the worst, and of
    these the shortest is chosen, the longest rejected (Meta-Rewarding, Wu et al. 2024, section 2.2).
    """
    scored = [c for c in group if c.reward is not None]
    if not scored:
        return None
    high, low = max(c.reward for c in scored), min(c.reward for c in scored)
    slack = length_control * (high - low)
    top, bottom = (
        [c for c in scored if c.reward >= high - slack],
        [c for c in scored if c.reward <= low + slack],
    )
    chosen = min(top, key=lambda c: len(c.tokens)) if slack else top[0]
    rejected = max(bottom, key=lambda c: len(c.tokens)) if slack else bottom[0]
    return Pair(chosen, rejected) if chosen.reward > rejected.reward else None


def choose_pairs(candidates: Sequence[Candidate], length_control: float = 0.0) -> list[Pair]:
    """One pair a prompt, where there is one."""
    pairs = [
        choose_pair(list(group), length_control)
        for _, group in groupby(candidates, key=lambda c: c.id)
    ]
    return [p for p in pairs if p]


def verdict_pairs(
    chat: Chat, rubric: str, candidates: Sequence[Candidate], verdicts: Sequence[dict]
) -> list[tuple[Example, Example]]:
    """Preference pairs for the judge itself: the verdict nearest to the mean of its answer's votes over the farthest.

    One a prompt, from the answer whose votes differ most. A simple form of Meta-Rewarding (Wu et al. 2024), whose
    meta-judge compares verdicts by another prompt.
    """
    answers, best = {(c.id, c.sample): c for c in candidates}, {}
    for (id, sample), group in groupby(verdicts, key=lambda v: (v["id"], v["sample"])):
        votes = [v for v in group if v["score"] is not None]
        middle = mean([v["score"] for v in votes])
        votes.sort(key=lambda v: abs(v["score"] - middle))
        spread = (
            abs(votes[-1]["score"] - middle) - abs(votes[0]["score"] - middle) if votes else 0.0
        )
        if spread > best.get(id, (0.0,))[0]:
            asked = judge_text(rubric, answers[id, sample].prompt, answers[id, sample].response)
            best[id] = (
                spread,
                chat.example(asked, votes[0]["text"]),
                chat.example(asked, votes[-1]["text"]),
            )
    return [(chosen, rejected) for _, chosen, rejected in best.values()]


# ---- answers that people ranked ----
def as_candidates(groups: Sequence[dict]) -> list[Candidate]:
    return [
        Candidate(g, s, group["prompt"], text, [], True)
        for g, group in enumerate(groups)
        for s, text in enumerate(group["responses"])
    ]


def rank_answers(
    model: GPT,
    chat: Chat,
    groups: Sequence[dict],
    sampling: Sampling,
    *,
    k: int,
    rubric: str,
    key: str,
    how: str = "sampled",
) -> tuple[list[list[float | None]], list[dict]]:
    """The rewards of answers that others wrote and ranked, group by group; and the verdicts."""
    rows = as_candidates(groups)
    verdicts = score(model, chat, rows, sampling, k=k, rubric=rubric, key=key, how=how)
    return [
        [c.reward for c in group]
        for _, group in groupby(attach(rows, verdicts), key=lambda c: c.id)
    ], verdicts


def score_lines(groups: Sequence[dict]) -> list[dict]:
    """Ranked answers -> judge examples with a bare score line: the best gets 5, the worst 1, evenly between.

    Not the paper's way; it is what a model too small to write a readable verdict can still learn.
    """
    rows = []
    for group in groups:
        order = sorted(set(group["ranks"]))
        for response, rank in zip(group["responses"], group["ranks"]):
            place = order.index(rank) / max(1, len(order) - 1)  # 0 best ... 1 worst
            rows.append(
                {
                    "prompt": group["prompt"],
                    "response": response,
                    "verdict": f"Score: {round(5 - 4 * place)}",
                }
            )
    return rows


def agreeing(groups: Sequence[dict], verdicts: Sequence[dict]) -> tuple[list[dict], dict[str, int]]:
    """A model's verdicts on ranked answers -> those that agree with people, as judge examples; and the funnel (paper, 3.1).

    A verdict agrees when its score stands among the mean scores of the group's other answers as its rank stands among
    theirs: no better answer has a lower mean, no worse one a higher, and not all are equal. Of the commonest score only
    as many are kept as of the second commonest.
    """
    rewards = {(c.id, c.sample): c.reward for c in attach(as_candidates(groups), verdicts)}
    readable, rows = [v for v in verdicts if v["score"] is not None], []
    for v in readable:
        group, own = groups[v["id"]], groups[v["id"]]["ranks"][v["sample"]]
        steps = [
            ((rank - own), v["score"] - rewards[v["id"], s])
            for s, rank in enumerate(group["ranks"])
            if rank != own and rewards[v["id"], s] is not None
        ]
        if all(worse * higher >= 0 for worse, higher in steps) and any(
            higher for _, higher in steps
        ):
            rows.append(
                {
                    "prompt": group["prompt"],
                    "response": group["responses"][v["sample"]],
                    "verdict": v["text"],
                }
            )
    by_score = defaultdict(list)
    for row in rows:
        by_score[parse_score(row["verdict"])].append(row)
    second = sorted(map(len, by_score.values()))[-2] if len(by_score) > 1 else len(rows)
    kept = [row for same in by_score.values() for row in same[:second]]
    return kept, {
        "written": len(verdicts),
        "readable": len(readable),
        "agreeing": len(rows),
        "kept": len(kept),
    }


# ---- how good is the judge? ----
def pairwise(given: Sequence[float | None], truth: Sequence[float]) -> list[bool]:
    """Of every two answers of different rank (0 best): do the rewards order them so? A tie or a missing score does not."""
    pairs = [(i, j) for i, j in permutations(range(len(truth)), 2) if truth[i] < truth[j]]
    return [None not in (given[i], given[j]) and given[i] > given[j] for i, j in pairs]


def pairwise_accuracy(
    rewards: Sequence[Sequence[float | None]], ranks: Sequence[Sequence[float]]
) -> float | None:
    """Share of all pairs of different rank that the rewards order the same way. None where no two ranks differ."""
    return mean(
        [float(right) for given, truth in zip(rewards, ranks) for right in pairwise(given, truth)]
    )


def places(values: Sequence[float]) -> list[float]:
    """The place of each value in rising order; equal ones share the mean of their places."""
    return [sum(o < v for o in values) + (sum(o == v for o in values) - 1) / 2 for v in values]


def correlation(a: Sequence[float], b: Sequence[float]) -> float:
    """Pearson's; 0 where one of them does not vary."""
    a, b = [x - sum(a) / len(a) for x in a], [x - sum(b) / len(b) for x in b]
    spread = (sum(x * x for x in a) * sum(x * x for x in b)) ** 0.5
    return sum(x * y for x, y in zip(a, b)) / spread if spread else 0.0


def spearman(a: Sequence[float], b: Sequence[float]) -> float:
    return correlation(places(a), places(b)) if a else 0.0


def kendall(a: Sequence[float], b: Sequence[float]) -> float:
    """tau-b: the correlation of the signs of all differences."""
    signs = [
        ((x > y) - (x < y), (u > v) - (u < v)) for (x, u), (y, v) in permutations(zip(a, b), 2)
    ]
    return correlation([x for x, _ in signs], [u for _, u in signs]) if signs else 0.0


def interval(right: Sequence[float], total: Sequence[float], draws: int = 2000) -> list[float]:
    """A 95 % bootstrap interval of sum(right) / sum(total): whole groups are drawn, since answers to one prompt hang together."""
    rows = np.random.default_rng(0).integers(0, len(total), (draws, len(total)))
    shares = np.array(right, float)[rows].sum(1) / np.maximum(
        1, np.array(total, float)[rows].sum(1)
    )
    return [round(float(x), 4) for x in np.quantile(shares, (0.025, 0.975))]


def judge_figures(
    rewards: Sequence[Sequence[float | None]], ranks: Sequence[Sequence[float]]
) -> dict:
    """The paper's five figures on answers that people ranked (section 4.1), with their tie rules.

    pairwise: see there; `ties` is the share of those pairs that no reward orders. best5: of the answers whose reward rounds to
    5, how many people ranked first. exact: groups whose whole order is the same. spearman, kendall (tau-b): means over
    groups, of the answers with a score; a group whose rewards do not vary counts 0.
    """
    hits = [pairwise(given, truth) for given, truth in zip(rewards, ranks)]
    mirror = [
        pairwise([None if r is None else -r for r in given], truth)
        for given, truth in zip(rewards, ranks)
    ]
    fives = [
        float(rank == min(truth))
        for given, truth in zip(rewards, ranks)
        for r, rank in zip(given, truth)
        if r is not None and r >= 4.5
    ]
    scored = [
        tuple(zip(*((r, -rank) for r, rank in zip(given, truth) if r is not None))) or ((), ())
        for given, truth in zip(rewards, ranks)
    ]
    exact = [
        float(len(a) == len(truth) and places(a) == places(b))
        for (a, b), truth in zip(scored, ranks)
    ]
    ties = mean(
        [
            float(not (right or wrong))
            for hit, miss in zip(hits, mirror)
            for right, wrong in zip(hit, miss)
        ]
    )
    return {
        "judge_pairwise": pairwise_accuracy(rewards, ranks),
        "judge_interval": interval([sum(h) for h in hits], [len(h) for h in hits]),
        "judge_ties": ties,
        "judge_best5": mean(fives),
        "judge_exact": mean(exact),
        "judge_spearman": mean([spearman(a, b) for a, b in scored]),
        "judge_kendall": mean([kendall(a, b) for a, b in scored]),
    }


# ---- command line ----
def judge_one(args: argparse.Namespace, model: GPT, chat: Chat, sampling: Sampling) -> dict:
    answer = Candidate(0, 0, args.prompt, args.response, [], True)
    verdicts = score(
        model,
        chat,
        [answer],
        sampling,
        k=args.k,
        rubric=read_rubric(args.rubric, args.model),
        key=f"{args.seed}",
        how=args.judge,
    )
    return {
        "reward": mean([v["score"] for v in verdicts]),
        "verdicts": [{k: v[k] for k in ("text", "score", "digits") if k in v} for v in verdicts],
    }


def judge_file(args: argparse.Namespace, model: GPT, chat: Chat, sampling: Sampling) -> dict:
    groups, started = read_ranked(args.file), time.time()
    rewards, verdicts = rank_answers(
        model,
        chat,
        groups,
        sampling,
        k=args.k,
        rubric=read_rubric(args.rubric, args.model),
        key=f"{args.seed}",
        how=args.judge,
    )
    return {
        "groups": len(groups),
        **judge_figures(rewards, [g["ranks"] for g in groups]),
        "judge_parse_rate": sum(v["score"] is not None for v in verdicts) / len(verdicts),
        "seconds": round(time.time() - started, 2),
        "rewards": rewards,
    }


def show(report: dict) -> None:
    for vote, verdict in enumerate(report.get("verdicts", []), 1):
        print(
            f"--- verdict {vote}, score {'unreadable' if verdict['score'] is None else verdict['score']}\n"
            f"{verdict['text'] or 'probabilities of 0 to 5: ' + ' '.join(map(str, verdict['digits']))}"
        )
    if "verdicts" in report:
        print(
            "--- mean of the readable scores:",
            "none" if report["reward"] is None else f"{report['reward']:.2f}",
        )
    else:
        known = lambda key: "none" if report[key] is None else f"{report[key]:.3f}"
        print(
            f"{report['groups']} groups | pairwise accuracy {known('judge_pairwise')} ({report['judge_interval'][0]:.3f} to "
            f"{report['judge_interval'][1]:.3f}) | ties {known('judge_ties')} | readable verdicts {report['judge_parse_rate']:.1%}\n"
            f"5-best {known('judge_best5')} | exact match {known('judge_exact')} | Spearman {known('judge_spearman')} | "
            f"Kendall tau {known('judge_kendall')} | {report['seconds']:.1f} s"
        )


def main() -> None:
    parser = asking(
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
    model, chat = writer(args.model, pick_device(args.device))
    report = (judge_file if args.file else judge_one)(
        args, model, chat, Sampling(args.max_new_tokens, args.temperature, args.top_p)
    )
    print(json.dumps(report)) if args.json else show(report)


if __name__ == "__main__":
    command(main)
