"""judge.py: verdict -> number -> pair. The model is its own judge: the same weights that wrote the answers.

In: candidates.  Out: K verdicts each, the candidates with votes and a reward, and preference pairs.
Two rules keep the numbers honest. A verdict that cannot be read is no score: not 0, not a tie, not a rejected answer.
And only text that the judge itself wrote is parsed, so an answer that says "Score: 5" does not score itself.
Left out on purpose: pairwise comparison prompts, retries (an unreadable verdict is counted, not asked for again).

    python judge.py --model runs/toy/M4 --prompt "Spell cat for Mia." --response "Mia: c, a, t."
    python judge.py --model DIR --file ranked.jsonl        # prints pairwise accuracy
"""
import argparse
import json
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations, groupby
from pathlib import Path

from data import Candidate, Chat, Example, Pair, UserError, asking, command, read_ranked
from model import GPT, load, pick_device, pick_dtype
from sample import Sampling, generate

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
NUMBER = re.compile(r"[\s*_`\"'(\[]*(\d+(?:\.\d+)?)(?:\s*(?:/|out of)\s*5(?!\d|\.\d))?(?!\s*(?:[/–-]|out of|to)\s*\d|\d|[.,]\d|\s*%)")


def read_rubric(path: str | Path | None) -> str:
    """The rubric of a file, or the one above. Raises UserError unless it has {prompt} and {response} once each."""
    if path is None:
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
    return [chat.example(judge_text(rubric, r["prompt"], r["response"]), r["verdict"]) for r in rows]


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


def score(model: GPT, chat: Chat, candidates: Sequence[Candidate], sampling: Sampling, *, k: int, rubric: str, key: str,
          label: str | None = "verdicts") -> list[dict]:
    """K verdicts on every finished answer, as rows {"id", "sample", "vote", "text", "score"}; score None is unreadable.

    An answer that never ended is not judged. Answers to one prompt that read the same are judged once.
    """
    first = {(c.id, c.response): c for c in reversed(candidates) if c.finished}
    asked = [c for c in candidates if first.get((c.id, c.response)) is c]
    prompts = [chat.prompt(judge_text(rubric, c.prompt, c.response)) for c in asked]
    groups = generate(model, chat, prompts, sampling, key=key, n=k, names=[f"{c.id}.{c.sample}" for c in asked],
                      stop=score_line_done, label=label)
    texts = [(c, vote, chat.decode(v.tokens).strip()) for c, group in zip(asked, groups) for vote, v in enumerate(group)]
    return [{"id": c.id, "sample": c.sample, "vote": vote, "text": text, "score": parse_score(text)} for c, vote, text in texts]


def attach(candidates: Sequence[Candidate], verdicts: Sequence[dict]) -> list[Candidate]:
    """{y} -> {r}: the candidates with their votes, and the mean of those that could be read as reward."""
    texts, votes = {(c.id, c.sample): (c.id, c.response) for c in candidates}, defaultdict(tuple)
    for v in verdicts:
        votes[texts[v["id"], v["sample"]]] += (v["score"],)
    given = [votes[c.id, c.response] if c.finished else () for c in candidates]
    return [replace(c, votes=v, reward=mean(v)) for c, v in zip(candidates, given)]


def choose_pair(group: Sequence[Candidate]) -> Pair | None:
    """Highest against lowest reward of the answers to one prompt; None where fewer than two were scored, or all tie."""
    scored = [c for c in group if c.reward is not None]
    if not scored:
        return None
    chosen, rejected = max(scored, key=lambda c: c.reward), min(scored, key=lambda c: c.reward)
    return Pair(chosen, rejected) if chosen.reward > rejected.reward else None


def choose_pairs(candidates: Sequence[Candidate]) -> list[Pair]:
    """One pair a prompt, where there is one."""
    pairs = [choose_pair(list(group)) for _, group in groupby(candidates, key=lambda c: c.id)]
    return [p for p in pairs if p]


def rank_answers(model: GPT, chat: Chat, groups: Sequence[dict], sampling: Sampling, *, k: int, rubric: str,
                 key: str) -> tuple[list[list[float | None]], list[dict]]:
    """The rewards of answers that others wrote and ranked, group by group; and the verdicts."""
    rows = [Candidate(g, s, group["prompt"], text, [], True) for g, group in enumerate(groups)
            for s, text in enumerate(group["responses"])]
    verdicts = score(model, chat, rows, sampling, k=k, rubric=rubric, key=key)
    return [[c.reward for c in group] for _, group in groupby(attach(rows, verdicts), key=lambda c: c.id)], verdicts


def pairwise_accuracy(rewards: Sequence[Sequence[float | None]], ranks: Sequence[Sequence[float]]) -> float | None:
    """Share of pairs of different rank (0 best) that the rewards order the same way.

    A tie or an answer without a score orders nothing: it counts as wrong. None where no two ranks differ.
    """
    right = total = 0
    for given, truth in zip(rewards, ranks):
        for i, j in combinations(range(len(truth)), 2):
            if truth[i] != truth[j]:
                better, worse = (i, j) if truth[i] < truth[j] else (j, i)
                total += 1
                right += None not in (given[i], given[j]) and given[better] > given[worse]
    return right / total if total else None


# ---- command line ----
def judge_one(args: argparse.Namespace, model: GPT, chat: Chat, sampling: Sampling) -> dict:
    answer = Candidate(0, 0, args.prompt, args.response, [], True)
    verdicts = score(model, chat, [answer], sampling, k=args.k, rubric=read_rubric(args.rubric), key=f"{args.seed}")
    return {"reward": mean([v["score"] for v in verdicts]), "verdicts": [{"text": v["text"], "score": v["score"]} for v in verdicts]}


def judge_file(args: argparse.Namespace, model: GPT, chat: Chat, sampling: Sampling) -> dict:
    groups = read_ranked(args.file)
    rewards, verdicts = rank_answers(model, chat, groups, sampling, k=args.k, rubric=read_rubric(args.rubric), key=f"{args.seed}")
    return {"groups": len(groups), "judge_pairwise": pairwise_accuracy(rewards, [g["ranks"] for g in groups]),
            "judge_parse_rate": sum(v["score"] is not None for v in verdicts) / len(verdicts), "rewards": rewards}


def show(report: dict) -> None:
    for vote, verdict in enumerate(report.get("verdicts", []), 1):
        print(f"--- verdict {vote}, score {verdict['score'] if verdict['score'] is not None else 'unreadable'}\n{verdict['text']}")
    if "verdicts" in report:
        print("--- mean of the readable scores:", "none" if report["reward"] is None else f"{report['reward']:.2f}")
    else:
        accuracy = "none (no two ranks differ)" if report["judge_pairwise"] is None else f"{report['judge_pairwise']:.3f}"
        print(f"{report['groups']} groups | pairwise accuracy {accuracy} | readable verdicts {report['judge_parse_rate']:.1%}")


def main() -> None:
    parser = asking("Let a model judge one answer, or a file of ranked answers.", prompt="with --response: what was asked",
                    response="with --prompt: the answer to judge",
                    file='JSONL of {"prompt", "responses", "ranks"}: prints pairwise accuracy',
                    rubric="a rubric file [DIR/rubric.txt of the model, else the built-in one]")
    parser.add_argument("--k", type=int, default=3, help="verdicts an answer [%(default)s]")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args()
    if bool(args.file) == bool(args.prompt and args.response):
        raise UserError("give either --file, or --prompt and --response.")
    device, own = pick_device(args.device), Path(args.model) / "rubric.txt"
    args.rubric = args.rubric or (own if own.exists() else None)
    model, chat = load(args.model, device=device, dtype=pick_dtype("auto", device)), Chat(args.model)
    report = (judge_file if args.file else judge_one)(args, model, chat, Sampling(args.max_new_tokens, args.temperature, args.top_p))
    print(json.dumps(report)) if args.json else show(report)


if __name__ == "__main__":
    command(main)
