"""experiments/variants.py: other papers and controls, each as one change to the loop.

Every class overrides one step of train.Loop. What came after Self-Rewarding LMs is named after its
paper. A control replaces the judge: a gain that it gives too is not the judge's. docs/variants.md
tells what each of them gave.

    python experiments/variants.py cream --iters 3                  # settings are those of train.py
    python experiments/variants.py length-control=0.3 --run short   # a variant with its value
"""

import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import Field, dataclass, fields, replace
from functools import partial
from pathlib import Path
from random import Random
from typing import ClassVar

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch.nn.functional as F
from torch import Tensor

from core.chat import Chat
from core.checklist import instruction_of
from core.cli import run_command
from core.config import SEED
from core.errors import UserError
from core.files import read_existing
from core.rankings import agreement
from core.records import Candidate, Example, Pair, rewards_by_prompt
from core.statistics import mean
from dpo import Objective, PreferencePair, margins, sft
from experiments.attacks import attacked, quoting
from judge import choose_pair, judge_text, response_logps, verdict_row
from measure.exam import ending
from measure.truth import true_score
from model import GPT, load
from sample import Writer, load_writer, respond
from train import Loop, Selection
from train import main as train_main

# ---- other losses ----


def ipo_loss(
    chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, *, beta: float
) -> Tensor:
    """(h - 1 / (2 beta))^2, a loss a pair (Azar et al. 2023, eq. 17)."""
    h = margins(chosen, rejected, ref_chosen, ref_rejected)
    return (h - 1 / (2 * beta)) ** 2


def smoothed_loss(share: float) -> Callable[..., Tensor]:
    """DPO that takes this share of the pairs for wrong ones (cDPO, Mitchell 2023)."""

    def loss(
        chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, *, beta: float
    ) -> Tensor:
        h = margins(chosen, rejected, ref_chosen, ref_rejected)
        return -(1 - share) * F.logsigmoid(beta * h) - share * F.logsigmoid(-beta * h)

    return loss


@dataclass
class Ipo(Loop):
    """IPO: the margin has a goal and stops there (Azar et al. 2023)."""

    def __post_init__(self):
        if self.config.beta == 0:
            raise UserError("ipo divides by --beta, so it must be above 0.")

    def objective(self, model: GPT, selection: Selection) -> Objective:
        return replace(super().objective(model, selection), loss=ipo_loss)


@dataclass
class LabelSmoothing(Loop):
    """cDPO: a share of the pairs may be the wrong way round (Mitchell 2023)."""

    share: float = 0.1
    most: ClassVar[float] = 0.5  # beyond, the labels are turned round

    def objective(self, model: GPT, selection: Selection) -> Objective:
        return replace(super().objective(model, selection), loss=smoothed_loss(self.share))


@dataclass
class Cream(Loop):
    """CREAM: smooths labels by how far M_t and M_{t-1} disagree about them (Wang et al. 2024)."""

    def objective(self, model: GPT, selection: Selection) -> Objective:
        return replace(
            super().objective(model, selection), loss=smoothed_loss(self.disagreement(selection))
        )

    def disagreement(self, selection: Selection) -> float:
        """1 - agreement of the two rankings, on the prompts that gave pairs; 0 for M_1."""
        if selection.t == 1:
            return 0.0
        paired = {pair.chosen.id for pair in selection.pairs}
        answers = [y for y in selection.scored if y.id in paired]
        previous = load_writer(self.run.model_folder(selection.t - 1), self.device, self.dtype)
        judged_again = self.judge(previous, answers, selection.t, stage="verdicts_before")
        alike = agreement(rewards_by_prompt(answers), rewards_by_prompt(judged_again))
        return 0.5 if alike is None else 1 - alike


@dataclass
class SeedReference(Loop):
    """The reference of DPO stays M_1 in every round."""

    def objective(self, model: GPT, selection: Selection) -> Objective:
        seed_model = load(self.run.model_folder(1), device=self.device)
        return replace(super().objective(model, selection), reference=seed_model)


# ---- other pairs ----


@dataclass
class LengthControl(Loop):
    """The shortest of the best against the longest of the worst (Meta-Rewarding, Wu et al. 2024).

    Rewards within `rho` of the whole range count as the best or the worst.
    """

    rho: float = 0.2
    most: ClassVar[float] = 1.0

    def choose(self, group: list[Candidate]) -> Pair | None:
        scored = [y for y in group if y.reward is not None]
        if not scored:
            return None
        high = max(y.reward for y in scored)
        low = min(y.reward for y in scored)
        slack = self.rho * (high - low)
        best = [y for y in scored if y.reward >= high - slack]
        worst = [y for y in scored if y.reward <= low + slack]
        chosen = min(best, key=lambda y: len(y.tokens))
        rejected = max(worst, key=lambda y: len(y.tokens))
        return Pair(chosen, rejected) if chosen.reward > rejected.reward else None


@dataclass
class PositiveOnly(Loop):
    """No DPO: SFT on the best answers. It failed in the paper."""

    def train_on(self, model: GPT, selection: Selection) -> list[dict]:
        best = [chosen for chosen, _ in self.pair_examples(selection)]
        recipe = self.dpo_recipe(model, selection.t)
        log = sft(model, best, recipe, name="sft on the best answers")
        steps = f"{len(log)} steps on {len(best)} pairs"
        self.run.note(f"{steps}, loss {log[0]['loss']:.3f} > {ending(log)['loss']:.3f}")
        return log


@dataclass
class Meta(Loop):
    """Also trains the judge on its own verdicts. A simple form of Meta-Rewarding (Wu et al. 2024).

    Their meta-judge compares verdicts according to a prompt of its own. Here the verdict nearest to
    the mean of the votes on an answer is preferred to the one farthest from it.
    """

    def pair_examples(self, selection: Selection) -> list[PreferencePair]:
        verdicts = read_existing(self.run.folder / f"t{selection.t}/verdicts.jsonl")
        pairs = super().pair_examples(selection)
        return pairs + verdict_pairs(self.chat, self.rubric, selection.scored, verdicts)


def verdict_pairs(
    chat: Chat, rubric: str, answers: Sequence[Candidate], verdicts: Sequence[dict]
) -> list[PreferencePair]:
    """One pair a prompt, from the answer whose votes differ most."""
    votes: dict[tuple[int, int], list[dict]] = defaultdict(list)
    for verdict in verdicts:
        if verdict["score"] is not None:
            votes[verdict["id"], verdict["sample"]].append(verdict)
    spreads: dict[int, float] = {}
    pairs: dict[int, PreferencePair] = {}
    for y in answers:
        if not votes[y.id, y.sample]:
            continue
        spread, nearest, farthest = spread_of(votes[y.id, y.sample])
        if spread > spreads.get(y.id, 0.0):
            question = judge_text(rubric, y.prompt, y.response)
            chosen = chat.example(question, nearest["text"])
            spreads[y.id] = spread
            pairs[y.id] = (chosen, chat.example(question, farthest["text"]))
    return list(pairs.values())


def spread_of(votes: Sequence[dict]) -> tuple[float, dict, dict]:
    """How far votes lie apart; the vote nearest to their mean, and the one farthest from it."""
    average = mean(vote["score"] for vote in votes)

    def distance(vote: dict) -> float:
        return abs(vote["score"] - average)

    ordered = sorted(votes, key=distance)
    return distance(ordered[-1]) - distance(ordered[0]), ordered[0], ordered[-1]


@dataclass
class Separated(Loop):
    """Only pairs whose votes do not overlap: every vote on chosen is above all those on rejected.

    Where votes overlap, the difference of two means is mostly noise. With one vote nothing changes.
    """

    def choose(self, group: list[Candidate]) -> Pair | None:
        pair = super().choose(group)
        if pair is None:
            return None
        lowest = min(readable_votes(pair.chosen))
        highest = max(readable_votes(pair.rejected))
        return pair if lowest > highest else None


def readable_votes(answer: Candidate) -> list[float]:
    """The K scores of an answer, without verdicts that could not be read."""
    return [vote for vote in answer.votes if vote is not None]


# ---- other judges and writers ----


@dataclass
class FixedJudge(Loop):
    """Another model judges, and stays as it is: a frozen judge."""

    folder: str | None = None

    def __post_init__(self):
        self.other_judge = load_writer(self.folder, self.device, self.dtype)

    def write_verdicts(self, writer: Writer, answers: list[Candidate], key: str) -> list[dict]:
        return super().write_verdicts(self.other_judge, answers, key)


@dataclass
class OracleJudge(Loop):
    """The truth judges: the ceiling of what a judge could give."""

    def __post_init__(self):
        if self.world.exam.truth is None:
            raise UserError(
                "the truth is known only in the toy (leave out --model) and in --world checked."
            )

    def write_verdicts(self, writer: Writer, answers: list[Candidate], key: str) -> list[dict]:
        rows = []
        for y in answers:
            rows.append(verdict_row(y, 0, "") | {"score": true_score(self.world.exam, y)})
        self.run.note(f"{len(rows)}, by the truth")
        return rows


@dataclass
class NoJudgeData(Loop):
    """No judge examples: the paper's judge then cannot keep the format."""

    def __post_init__(self):
        if self.config.eft:
            raise UserError("no-judge-data and --eft exclude each other; leave out one of them.")

    def judge_data(self, base: GPT, answers: list[Example]) -> list[dict]:
        self.run.note("no judge examples, as this variant says")
        return self.run.keep(0, "eft", list)  # a stage that makes no rows


@dataclass
class WaryJudge(Loop):
    """Quotes the answer, and shows the judge answers that grade themselves.

    They are this share of the judge examples. The models carry the plain rubric: to judge with them
    elsewhere, give the quoted one (--rubric).
    """

    share: float = 0.25
    most: ClassVar[float] = 1.0

    def __post_init__(self):
        self.plain = self.rubric
        self.rubric = quoting(self.plain)

    def verdict_examples(self, model: GPT, eft: list[dict]) -> list[Example]:
        label = self.judging().label
        rows = attacked(eft, self.plain, self.share, label=label, key=f"{self.config.seed}")
        return super().verdict_examples(model, rows)


@dataclass
class FixedPromptWriter(Loop):
    """Another model writes all new prompts, as in the paper (a Llama 2-Chat 70B there)."""

    folder: str | None = None

    def __post_init__(self):
        if self.config.prompts:
            raise UserError("fixed-prompt-writer and --prompts exclude each other; leave out one.")
        self.other_writer = load_writer(self.folder, self.device, self.dtype)

    def write_prompts(self, writer: Writer, t: int) -> list[str]:
        return super().write_prompts(self.other_writer, t)


# ---- controls: what would have happened without the judge ----


@dataclass
class RandomJudge(Loop):
    """Control: a random number judges."""

    def write_verdicts(self, writer: Writer, answers: list[Candidate], key: str) -> list[dict]:
        rng = Random(key)
        finished = [y for y in answers if y.finished]
        self.run.note(f"{len(finished)}, by a rule instead of a judge")
        return [verdict_row(y, 0, "") | {"score": self.merit(y, rng)} for y in finished]

    def merit(self, answer: Candidate, rng: Random) -> float:
        return 5 * rng.random()


@dataclass
class Shortest(RandomJudge):
    """Control: the shortest answer is the best, the longest the worst."""

    def merit(self, answer: Candidate, rng: Random) -> float:
        return -float(len(answer.tokens))

    def choose(self, group: list[Candidate]) -> Pair | None:
        return choose_pair(group)  # whatever --near says: the lengths shall differ


@dataclass
class Longest(Shortest):
    """Control: the longest answer is the best, the shortest the worst."""

    def merit(self, answer: Candidate, rng: Random) -> float:
        return float(len(answer.tokens))


@dataclass
class OwnAnswers(RandomJudge):
    """Control: no judge and no DPO, only SFT on answers of its own, one to each prompt."""

    train_on = PositiveOnly.train_on


@dataclass
class ByPrompt(RandomJudge):
    """Control: chosen was written to the prompt, rejected to its instruction alone; no judge."""

    def answer(self, writer: Writer, prompts: list[str], t: int) -> list[Candidate]:
        bare = [instruction_of(prompt) for prompt in prompts]
        rows = self.run.keep(t, "bare_responses", self.write_bare, writer, bare, t)
        self.rejected = {}
        for row in rows:
            candidate = Candidate(prompt=prompts[row["id"]], **row)
            # a number that no other answer has, and a reward below every merit
            self.rejected[row["id"]] = replace(candidate, sample=self.config.n, reward=-1.0)
        return super().answer(writer, prompts, t)

    def write_bare(self, writer: Writer, prompts: list[str], t: int) -> list[dict]:
        sampling = replace(self.answering(), n=1)
        answers = respond(writer, prompts, sampling, key=self.key("bare answers", t))
        return [y.row() for y in answers]

    def choose(self, group: list[Candidate]) -> Pair | None:
        rejected = self.rejected[group[0].id]
        finished = [y for y in group if y.finished and y.response != rejected.response]
        if not (finished and rejected.finished):
            return None
        return Pair(max(finished, key=lambda y: y.reward), rejected)


# ---- other rewards, for real models ----


@dataclass
class Temporal(Loop):
    """Rejected answers are those of M_1 (Temporal Self-Rewarding, Wang et al. 2025)."""

    def write_answers(self, writer: Writer, prompts: list[str], t: int) -> list[dict]:
        rows = super().write_answers(writer, prompts, t)
        if t == 1:
            return rows
        first = load_writer(self.run.model_folder(1), self.device, self.dtype)
        old = respond(first, prompts, self.answering(), key=self.key("old answers", t))
        rows += [replace(y, sample=y.sample + self.config.n).row() for y in old]
        return sorted(rows, key=lambda row: (row["id"], row["sample"]))

    def choose(self, group: list[Candidate]) -> Pair | None:
        n = self.config.n
        current = [y for y in group if y.sample < n and y.reward is not None]
        old = [y for y in group if y.sample >= n and y.reward is not None]
        if all(y.sample < n for y in group):  # M_1 itself has no past
            return super().choose(group)
        if not (current and old):
            return None
        chosen = max(current, key=lambda y: y.reward)
        rejected = min(old, key=lambda y: y.reward)
        return Pair(chosen, rejected) if chosen.reward > rejected.reward else None


@dataclass
class Dice(Loop):
    """The implicit reward of DPO judges: log p_t(y) - log p_(t-1)(y) a token (Chen et al. 2024)."""

    def judge(
        self, writer: Writer, answers: list[Candidate], t: int, *, stage: str = "verdicts"
    ) -> list[Candidate]:
        self.before = self.run.model_folder(t - 1) if t > 1 else self.config.model or SEED
        return super().judge(writer, answers, t, stage=stage)

    def write_verdicts(self, writer: Writer, answers: list[Candidate], key: str) -> list[dict]:
        before = load_writer(self.before, self.device, self.dtype)
        finished = [y for y in answers if y.finished]
        examples = [Example(self.chat.prompt(y.prompt), y.tokens) for y in finished]
        now = response_logps(writer, examples, "log-probs")
        gains = now - response_logps(before, examples, "log-probs before")
        rows = []
        for y, gain in zip(finished, gains.tolist(), strict=True):
            rows.append(verdict_row(y, 0, "") | {"score": gain / len(y.tokens)})
        return rows


PAPERS: dict[str, type[Loop]] = {
    "ipo": Ipo,
    "label-smoothing": LabelSmoothing,
    "cream": Cream,
    "seed-reference": SeedReference,
    "length-control": LengthControl,
    "positive-only": PositiveOnly,
    "meta": Meta,
    "temporal": Temporal,
    "dice": Dice,
    "separated": Separated,
}
CONTROLS: dict[str, type[Loop]] = {
    "fixed-judge": FixedJudge,
    "oracle-judge": OracleJudge,
    "no-judge-data": NoJudgeData,
    "wary-judge": WaryJudge,
    "fixed-prompt-writer": FixedPromptWriter,
    "random-judge": RandomJudge,
    "shortest": Shortest,
    "longest": Longest,
    "own-answers": OwnAnswers,
    "by-prompt": ByPrompt,
}
VARIANTS = PAPERS | CONTROLS


# ---- command line ----


def own_setting(variant: type[Loop]) -> Field | None:
    """The field that a variant adds to the loop; None where it adds none."""
    added = fields(variant)[len(fields(Loop)) :]
    return added[0] if added else None


def loop_of(text: str) -> tuple[str, partial]:
    """NAME[=VALUE] -> the name for the record, and what makes the loop. Raises UserError."""
    name, equals, value = text.partition("=")
    if name not in VARIANTS:
        raise UserError(f"variant {name!r} is not known; use one of {', '.join(VARIANTS)}.")
    variant = VARIANTS[name]
    setting = own_setting(variant)
    if setting is None:
        if equals:
            raise UserError(f"variant {name} takes no value, so leave out {equals + value!r}.")
        return name, partial(variant)
    if not value and setting.default is None:
        raise UserError(f"variant {name} needs a {setting.name}: {name}={setting.name.upper()}.")
    if setting.type is float:
        value = number(name, value, variant.most) if equals else setting.default
    return f"{name}={value}", partial(variant, **{setting.name: value})


def number(name: str, text: str, most: float) -> float:
    try:
        value = float(text)
    except ValueError:
        raise UserError(f"variant {name} takes a number, not {text!r}.") from None
    if not 0 <= value <= most:  # what is not a number is refused too
        raise UserError(f"variant {name} must be from 0 to {most}, not {value}.")
    return value


def list_variants() -> str:
    """The help: every name with the first line of its docstring."""
    lines = []
    for name, variant in VARIANTS.items():
        setting = own_setting(variant)
        value = f"={setting.default or setting.name.upper()}" if setting else ""
        lines.append(f"  {name + value:<26} {variant.__doc__.splitlines()[0]}")
    return "\n".join(lines)


def main() -> None:
    if len(sys.argv) < 2 or sys.argv[1].startswith("-"):
        print("usage: python experiments/variants.py NAME[=VALUE] [settings of train.py]\n")
        print(list_variants())
        sys.exit(0 if sys.argv[1:] in (["-h"], ["--help"]) else 2)
    name, loop = loop_of(sys.argv.pop(1))
    train_main(loop, name)


if __name__ == "__main__":
    run_command(main)
