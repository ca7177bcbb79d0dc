"""worlds/judge_data.py: answers that people ranked -> judge examples (EFT; the paper, section 3.1).

In: groups {"prompt", "responses", "ranks"} (rank 0 is the best), and a model's verdicts on them.
Out: judge examples {"prompt", "response", "verdict"}.
Two ways. The paper's: keep the verdicts of a model that agree with people. And bare score lines
that follow from the ranks, for a model too small to write a verdict.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

import torch

from core.chat import Chat
from core.config import Config
from core.records import Candidate, Example, by_prompt
from core.run import Run
from core.statistics import mean
from dpo import Recipe, sft
from judge import Judging, as_candidates, judge_answers, with_rewards
from model import GPT
from sample import writing_copy
from worlds.world import World


@dataclass(frozen=True)
class Teacher:
    """M_0, and what it needs to judge the answers that people ranked.

    It is loaded for each use, as a model that was trained is no longer M_0.
    """

    fresh: Callable[[], GPT]  # M_0, ready to be trained
    chat: Chat
    dtype: torch.dtype  # of the arithmetic
    judging: Judging  # by written verdicts
    answers: list[Example]  # it learns to answer from these before it judges
    recipe: Recipe

    def judge(self, model: GPT, groups: Sequence[dict], key: str) -> list[dict]:
        writer = writing_copy(model, self.chat, self.dtype)
        return judge_answers(writer, as_candidates(groups), self.judging, key=key)

    def learn_and_judge(self, run: Run, groups: Sequence[dict], key: str) -> list[dict]:
        """The paper's way: M_0 after SFT on answers judges what people ranked."""
        model = self.fresh()
        if self.answers:
            sft(model, self.answers, self.recipe, name="sft on answers")
        run.note(f"by M0 after SFT on answers, on {len(groups)} groups that people ranked")
        return self.judge(model, groups, key)


def make_judge_data(run: Run, world: World, config: Config, teacher: Teacher) -> list[dict]:
    """Ready judge examples, and those made from ranked answers; at most `config.most_eft()`."""
    limit = config.most_eft()
    if not world.groups or config.judge in ("checklist", "contrast"):
        # ranks say nothing about requirements, and the contrast learns from no verdict
        run.note(f"{len(world.eft[:limit])} judge examples")
        return world.eft[:limit]
    style, reason = judge_data_style(world.groups, config, teacher)
    if style == "verdict":
        groups = world.groups[:limit]
        key = f"{config.seed} verdicts 0"
        verdicts = run.keep(0, "verdicts", teacher.learn_and_judge, run, groups, key)
        made, counts = agreeing_verdicts(groups, verdicts)
        funnel = ", ".join(f"{count} {name}" for name, count in counts.items())
    else:
        made = score_lines(world.groups)
        funnel = f"{len(world.groups)} groups"
    Random(f"judge data {config.seed}").shuffle(made)
    examples = (world.eft + made)[:limit]
    run.note(f"{len(examples)} judge examples ({reason}; {funnel})")
    return examples


def judge_data_style(groups: Sequence[dict], config: Config, teacher: Teacher) -> tuple[str, str]:
    """--eft-style, or what "auto" comes to; and why.

    "auto" asks M_0 for a few verdicts, and takes "verdict" where half of them can be read.
    """
    if config.eft_style != "auto":
        return config.eft_style, f"--eft-style {config.eft_style}"
    if config.judge == "expected":
        return "score", "score lines, as --judge expected reads nothing else"
    verdicts = teacher.judge(teacher.fresh(), groups[:2], f"{config.seed} readable")
    share = mean(verdict["score"] is not None for verdict in verdicts)
    reason = f"as {share:.0%} of {len(verdicts)} verdicts by M0 can be read"
    if share >= 0.5:
        return "verdict", f"M0's own verdicts, {reason}"
    return "score", f"score lines, {reason}"


def score_lines(groups: Sequence[dict]) -> list[dict]:
    """A bare score line for each ranked answer: the best gets 5, the worst 1, the others between.

    Not the paper's way. It is what a model too small to write a readable verdict can still learn.
    """
    examples = []
    for group in groups:
        ranks = sorted(set(group["ranks"]))
        steps = max(1, len(ranks) - 1)
        for response, rank in zip(group["responses"], group["ranks"], strict=True):
            place = ranks.index(rank) / steps  # 0 best ... 1 worst
            verdict = f"Score: {round(5 - 4 * place)}"
            examples.append({"prompt": group["prompt"], "response": response, "verdict": verdict})
    return examples


def agreeing_verdicts(
    groups: Sequence[dict], verdicts: Sequence[dict]
) -> tuple[list[dict], dict[str, int]]:
    """The verdicts that agree with people, as judge examples; and how many were left at each step.

    Of the commonest score only as many are kept as of the second commonest.
    """
    scored = by_prompt(with_rewards(as_candidates(groups), verdicts))
    readable = [verdict for verdict in verdicts if verdict["score"] is not None]
    agreeing = [v for v in readable if agrees(v, groups[v["id"]]["ranks"], scored[v["id"]])]
    by_score = defaultdict(list)
    for verdict in agreeing:
        answer = scored[verdict["id"]][verdict["sample"]]
        example = {"prompt": answer.prompt, "response": answer.response, "verdict": verdict["text"]}
        by_score[verdict["score"]].append(example)
    sizes = sorted(map(len, by_score.values()))
    most = sizes[-2] if len(sizes) > 1 else len(agreeing)
    kept = [example for examples in by_score.values() for example in examples[:most]]
    funnel = {"written": len(verdicts), "readable": len(readable)}
    return kept, funnel | {"agreeing": len(agreeing), "kept": len(kept)}


def agrees(verdict: dict, ranks: Sequence[float], scored: Sequence[Candidate]) -> bool:
    """Whether a score stands among the mean scores of the other answers as its rank among theirs.

    No answer that people ranked better may have a lower mean, and none that they ranked worse a
    higher one. Where all means equal the score, the verdict says nothing and does not agree.
    """
    rank_of_answer = ranks[verdict["sample"]]
    tells_apart = False
    for other, rank in zip(scored, ranks, strict=True):
        if rank == rank_of_answer or other.reward is None:
            continue
        better, worse = other.reward, verdict["score"]
        if rank > rank_of_answer:
            better, worse = worse, better
        if better < worse:
            return False
        tells_apart = tells_apart or better > worse
    return tells_apart
