"""train.py: the loop.

     new prompts      M_t answers         M_t judges           select           DPO
       {x_i}  -->  {y_i^1 .. y_i^N}  -->  {r_i^1 .. r_i^N}  -->  {x, y_w, y_l}  -->  M_{t+1}

In: a base model M_0 and a little seed data.  Out: runs/NAME with M1 .. M_{T+1}, every text, score
and pair, and a table. Start to read at `self_reward`: it is the picture, line by line.
Without --model this is the toy: the base model in seed/, in a world whose truth is known, a little
over a minute on two cores.
Left out on purpose: variants of the method. Each overrides one method of Loop, in
experiments/variants.py.

    python train.py --iters 3
    python train.py --model DIR --ift ift.jsonl --ranked ranked.jsonl --iters 1
"""

import json
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch

from core.batches import drop_long
from core.chat import Chat
from core.cli import run_command
from core.config import SEED, CommandLine, Config, parse
from core.device import pick_device, pick_dtype, prepare_machine
from core.draw import Sampling
from core.errors import UserError
from core.files import read_existing, write_jsonl
from core.likeness import KnownPrompts
from core.records import Candidate, Example, Pair
from core.run import Run, Say, check_record, write_record
from dpo import Objective, PreferencePair, Recipe, dpo, sft
from judge import Judging, attach, by_prompt, choose_pair, judge_examples, read_rubric, score
from measure.alarms import alarms
from measure.exam import Student, examine
from measure.notes import answers_note, dpo_note, pairs_note, prompts_note, verdicts_note
from measure.page import write_report
from measure.run_files import load_run
from measure.table import one_line, text_table, worked_example
from model import GPT, load, save
from prompts import new_prompts
from sample import Writer, respond, writing_copy
from worlds.judge_data import Teacher, make_judge_data
from worlds.open_world import open_world
from worlds.people import read_prompts
from worlds.world import World

PAPER_WIDTH = 8192  # hidden size of the paper's model; smaller models bear larger learning rates
PAPER_SFT_LR = 5.5e-6
PAPER_DPO_LR = 1e-6


class Trip(NamedTuple):
    """What DPO learns from on trip t."""

    t: int
    scored: list[Candidate]
    pairs: list[Pair]


@dataclass
class Loop:
    """The stages of the picture. Each is a function of the settings and of what came before it.

    A stage is two methods: one that keeps its file, and one that makes what is in it.
    """

    config: Config
    world: World
    run: Run
    chat: Chat
    rubric: str
    device: torch.device
    dtype: torch.dtype  # of the arithmetic

    # ---- how things are drawn, judged and trained ----

    def answering(self) -> Sampling:
        """N answers to each prompt."""
        c = self.config
        return Sampling(c.max_new_tokens, c.temperature, c.top_p, n=c.n, slots=c.slots)

    def judging(self) -> Judging:
        """K verdicts on each answer."""
        c = self.config
        sampling = Sampling(
            c.max_verdict_tokens, c.judge_temperature, c.top_p, n=c.k, slots=c.slots
        )
        return Judging(self.rubric, sampling, c.judge)

    def recipe(self) -> Recipe:
        """What SFT and DPO have in common."""
        c = self.config
        return Recipe(
            batch_size=c.batch_size,
            dropout=c.dropout,
            recompute=c.recompute,
            tokens=c.tokens,
            dtype=self.dtype,
            even=c.sft_weight == "examples",
        )

    def sft_recipe(self, model: GPT) -> Recipe:
        c = self.config
        lr = c.sft_lr or PAPER_SFT_LR * PAPER_WIDTH / model.config.hidden_size
        return replace(self.recipe(), epochs=c.sft_epochs, lr=lr, lr_end=lr / 5, seed=c.seed)

    def dpo_recipe(self, model: GPT, t: int) -> Recipe:
        c = self.config
        lr = c.dpo_lr or PAPER_DPO_LR * PAPER_WIDTH / model.config.hidden_size
        seed = 1000 * t + c.seed
        return replace(self.recipe(), epochs=c.dpo_epochs, lr=lr, lr_end=lr / 10, seed=seed)

    # ---- M_0 -> M_1 ----

    def judge_data(self, base: GPT, answers: list[Example]) -> list[dict]:
        """EFT: ready judge examples, and those made from answers that people ranked."""
        written = replace(self.judging(), how="sampled")
        teacher = Teacher(base, self.chat, self.dtype, written, answers, self.sft_recipe(base))
        run = self.run
        return run.keep(0, "eft", make_judge_data, run, self.world, self.config, teacher)

    def first_model(self, base: GPT) -> None:
        """M_0 -> M_1: SFT on answers and verdicts. Without seed data M_1 is M_0.

        Examples that are longer than the model's context are left out, aloud.
        """
        context = base.config.max_position_embeddings
        answers = [self.chat.example(row["prompt"], row["response"]) for row in self.world.ift]
        answers = drop_long(answers, context, self.run.say)
        eft = self.judge_data(base, answers)
        started = time.time()
        verdicts = drop_long(judge_examples(self.chat, self.rubric, eft), context, self.run.say)
        if answers + verdicts:
            log = sft(base, answers + verdicts, self.sft_recipe(base))
            write_jsonl(self.run.folder / "sft.jsonl", log)
            self.run.note(
                f"{len(answers)} answers and {len(verdicts)} verdicts, {len(log)} steps, "
                f"loss {log[0]['loss']:.3f} > {log[-1]['loss']:.3f}"
            )
        else:
            self.run.note("no seed data, so M1 is the base model")
        save(base, self.run.model(1), source=self.config.model or SEED)
        self.run.log(0, "sft", started)

    # ---- once round the loop ----

    def load(self, t: int) -> tuple[GPT, Writer]:
        """M_t in its two forms: fp32 weights to train, and a packed copy of them to write with."""
        model = load(self.run.model(t), device=self.device)
        return model, writing_copy(model, self.chat, self.dtype)

    def prompts(self, writer: Writer, t: int) -> list[str]:
        """{x_i}: written by M_t itself, or taken from --prompts."""
        rows = self.run.keep(t, "prompts", self.make_prompts, writer, t)
        return [row["prompt"] for row in rows]

    def make_prompts(self, writer: Writer, t: int) -> list[dict]:
        c = self.config
        if c.prompts:
            prompts = read_prompts(c.prompts, c.n_prompts, trip=t)
            self.run.note(f"{len(prompts)} kept, from {c.prompts}")
        else:
            prompts = self.write_prompts(writer, t)
        return [{"id": i, "prompt": prompt} for i, prompt in enumerate(prompts)]

    def write_prompts(self, writer: Writer, t: int) -> list[str]:
        c = self.config
        exam = self.world.exam
        # No new prompt may be like one that people wrote, or like one of the exam.
        held_out = [*exam.prompts, *(group["prompt"] for group in exam.groups)]
        seeds = self.world.prompts
        known = KnownPrompts([*seeds, *held_out], c.rouge)
        sampling = replace(self.answering(), temperature=c.prompt_temperature, n=1)
        key = f"{c.seed} prompts {t}"
        work = writer.new_meter()
        prompts, refused = new_prompts(
            writer, seeds, c.n_prompts, sampling=sampling, key=key, known=known
        )
        self.run.note(prompts_note(prompts, refused))
        self.run.note(work.summary())
        return prompts

    def answers(self, writer: Writer, prompts: list[str], t: int) -> list[Candidate]:
        """{y_i^1..N}: N answers to each prompt."""
        rows = self.run.keep(t, "responses", self.make_answers, writer, prompts, t)
        return [Candidate(prompt=prompts[row["id"]], **row) for row in rows]

    def make_answers(self, writer: Writer, prompts: list[str], t: int) -> list[dict]:
        work = writer.new_meter()
        key = f"{self.config.seed} answers {t}"
        answers = respond(writer, prompts, self.answering(), key=key)
        self.run.note(answers_note(answers))
        self.run.note(work.summary())
        return [y.row() for y in answers]

    def scores(
        self, writer: Writer, answers: list[Candidate], t: int, *, stage: str = "verdicts"
    ) -> list[Candidate]:
        """{r_i^1..N}: K verdicts of M_t on each of its own answers, and their mean."""
        verdicts = self.run.keep(t, stage, self.make_verdicts, writer, answers, f"{stage} {t}")
        return attach(answers, verdicts)

    def make_verdicts(self, writer: Writer, answers: list[Candidate], key: str) -> list[dict]:
        work = writer.new_meter()
        key = f"{self.config.seed} {key}"
        verdicts = score(writer, answers, self.judging(), key=key)
        self.run.note(verdicts_note(verdicts, self.config.judge))
        self.run.note(work.summary())
        return verdicts

    def choose(self, group: list[Candidate]) -> Pair | None:
        """The pair of one prompt, where its answers give one."""
        return choose_pair(group)

    def pairs(self, scored: list[Candidate], t: int) -> list[Pair]:
        """{x_i, y_w, y_l}: the best against the worst. Raises UserError where there is none."""
        groups = by_prompt(scored)
        pairs = [pair for pair in map(self.choose, groups) if pair is not None]
        funnel = pairs_note(groups, pairs)
        if not pairs:
            raise UserError(
                f"M{t} gave no preference pair ({funnel}), so there is nothing to learn from; "
                f"{self.run.model(t)} is the last model. Give it judge examples (--eft, --ranked), "
                f"more prompts or more answers."
            )
        self.run.keep(t, "pairs", self.make_pair_rows, pairs, funnel)
        return pairs

    def make_pair_rows(self, pairs: list[Pair], funnel: str) -> list[dict]:
        self.run.note(funnel)
        return [pair.row() for pair in pairs]

    def improve(self, model: GPT, trip: Trip) -> None:
        """M_t -> M_{t+1}. The reference is the frozen M_t."""
        self.run.keep_step(trip.t, self.make_next_model, model, trip)

    def make_next_model(self, model: GPT, trip: Trip) -> list[dict]:
        log = self.learn(model, trip)
        save(model, self.run.model(trip.t + 1), source=self.run.model(trip.t))
        return log

    def learn(self, model: GPT, trip: Trip) -> list[dict]:
        examples = self.pair_examples(trip)
        log = dpo(model, examples, self.dpo_recipe(model, trip.t), self.objective(trip))
        self.run.note(dpo_note(log, len(examples)))
        return log

    def pair_examples(self, trip: Trip) -> list[PreferencePair]:
        """The pairs as token ids: those that the model drew."""
        examples = []
        for pair in trip.pairs:
            prompt = self.chat.prompt(pair.chosen.prompt)
            chosen = Example(prompt, pair.chosen.tokens)
            examples.append((chosen, Example(prompt, pair.rejected.tokens)))
        return examples

    def objective(self, trip: Trip) -> Objective:
        c = self.config
        replay = ()
        if c.replay:
            eft = read_existing(self.run.folder / "t0/eft.jsonl")
            replay = judge_examples(self.chat, self.rubric, eft)
        return Objective(beta=c.beta, nll=c.nll, replay=replay, replay_size=c.replay)

    # ---- for people ----

    def examine(self, model: GPT, writer: Writer, t: int) -> None:
        """The exam of M_t: its line, its alarms, and the report. No stage reads it."""
        started = time.time()
        one_answer = replace(self.answering(), n=1)
        key = f"{self.config.seed} exam"
        student = Student(model, writer, one_answer, self.judging(), self.recipe(), key)
        figures = examine(self.run, self.world, student, t)
        if figures is None:  # it was examined before the run was stopped
            return
        self.run.note(one_line(figures))
        self.run.log(t, "exam", started)
        for alarm in alarms(load_run(self.run.folder)):
            if alarm.model == f"M{t}":
                self.run.say(f"M{t} | alarm     | {alarm.what}. {alarm.advice}")
        write_report([self.run.folder])

    def show(self, scored: list[Candidate], pairs: list[Pair]) -> None:
        """One prompt with its answers, scores and pair; and the report."""
        self.run.say(worked_example(self.world.exam, scored, pairs[0]))
        write_report([self.run.folder])


# ---- the main flow ----


def self_reward(loop: Loop, base: GPT | None) -> None:
    """The picture at the top of this file, once round for each t. Without `base`, M_1 exists."""
    if base is not None:
        loop.first_model(base)  # M_0 -> M_1
    last = loop.config.iters + 1
    for t in range(loop.run.next_trip(), last):
        model, writer = loop.load(t)  # M_t
        loop.examine(model, writer, t)
        prompts = loop.prompts(writer, t)  # {x_i}
        answers = loop.answers(writer, prompts, t)  # {y_i^1 .. y_i^N}
        scored = loop.scores(writer, answers, t)  # {r_i^1 .. r_i^N}
        pairs = loop.pairs(scored, t)  # {x_i, y_w, y_l}
        loop.show(scored, pairs)
        loop.improve(model, Trip(t, scored, pairs))  # M_{t+1}; the reference is the frozen M_t
    model, writer = loop.load(last)
    loop.examine(model, writer, last)


def train(line: CommandLine, loop_class: type[Loop], variant: str | None, say: Say) -> list[dict]:
    """The whole run, or what is left of it; returns the rows of the table."""
    started = time.time()
    config = line.config
    run = Run(Path("runs") / config.run, say)
    source = Path(config.model or SEED)
    check_record(run.folder, config, variant)
    if len(run.metrics()) > config.iters:
        say(f"{run.folder} is finished; this is its table. Give --run another name to run again.\n")
        return run.metrics()[: config.iters + 1]
    device = pick_device(config.device)
    loop = loop_class(
        config=config,
        world=open_world(config, toy=line.toy),
        run=run,
        chat=Chat(source),
        rubric=read_rubric(config.rubric, source),
        device=device,
        dtype=pick_dtype(config.dtype, device),
    )
    base = None if run.model(1).exists() else load(source, device=device)
    # Only now: a mistake in the settings leaves nothing behind.
    write_record(run.folder, config, variant, device)
    self_reward(loop, base)
    seconds = time.time() - started
    report = run.folder / "report.html"
    say(f"finished in {seconds:.1f} s; files in {run.folder}, the report is {report}\n")
    return run.metrics()[: config.iters + 1]


def main(loop_class: type[Loop] = Loop, variant: str | None = None) -> None:
    """The command. experiments/variants.py calls it with a Loop of its own."""
    prepare_machine()
    line = parse(sys.argv[1:], "Self-Rewarding Language Models: answer, judge, choose, DPO, again.")

    def say(text: str) -> None:
        print(text, file=sys.stderr if line.json else sys.stdout, flush=True)

    models = train(line, loop_class, variant, say)
    if line.json:
        print(json.dumps({"run": line.config.run, "models": models}))
    else:
        print(text_table(models))


if __name__ == "__main__":
    run_command(main)
