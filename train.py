"""train.py: the loop.

     new prompts      M_t answers         M_t judges           select           DPO
       {x_i}  -->  {y_i^1 .. y_i^N}  -->  {r_i^1 .. r_i^N}  -->  {x, y_w, y_l}  -->  M_{t+1}

In: a base model M_0 and a little seed data.  Out: runs/NAME with M1 .. M_{T+1}, every text, score
and pair, and a table. SFT on the seed data makes M_1 from M_0; iteration t makes M_{t+1} from M_t,
for t = 1 .. T (--iters). The seed data are IFT (instruction fine-tuning: prompts with answers) and
EFT (evaluation fine-tuning: answers with verdicts).
Without --model this is the toy: the base model in seed/, in a world whose truth is known.
Left out on purpose: variants of the method (experiments/variants.py).

    python train.py --iters 3
    python train.py --model DIR --ift ift.jsonl --ranked ranked.jsonl --iters 1
"""

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

from core.batches import drop_long
from core.chat import Chat
from core.cli import printable, run_command
from core.config import SEED, CommandLine, Config, parse
from core.device import pick_device, pick_dtype, prepare_machine
from core.draw import Sampling
from core.errors import UserError
from core.files import read_existing, write_jsonl
from core.kernels import pack
from core.likeness import KnownPrompts
from core.lora import prepare_training, save_adapters, start_adapters
from core.ranks import join, leave, rank
from core.recipe import PAPER_DPO_LR, PAPER_SFT_LR, default_rate
from core.records import Candidate, Example, Pair, by_prompt, most_certain
from core.run import Run, Say, check_record, other_arithmetic, unnamed, write_record
from core.shards import split
from core.start import check_start
from core.verdicts import label_of
from dpo import Objective, PreferencePair, Recipe, dpo, sft
from judge import Judging, choose_pair, judge_answers, judge_examples, read_rubric, with_rewards
from measure.alarms import alarm_lines
from measure.duel import duel_rows, first_loss, mark_best, wins_and_losses
from measure.exam import Student, examine
from measure.notes import (
    answers_note,
    dpo_note,
    pairs_note,
    prompts_note,
    sft_note,
    verdicts_note,
    why_no_pairs,
)
from measure.page import write_report
from measure.table import one_line, text_table, worked_example
from model import GPT, load, save
from prompts import new_prompts
from sample import Writer, respond
from worlds.judge_data import Teacher, make_judge_data
from worlds.open_world import open_world
from worlds.world import World


def self_reward(loop: "Loop") -> None:
    """The picture at the top of this file."""
    if not loop.run.model_folder(1).exists():
        loop.make_first_model()  # M_0 -> M_1
    t = loop.run.next_iteration()  # 1, or where a stopped run goes on
    loop.hold_exam(t)  # of M_1, or the one that a stop cut off; exams are for people
    while not loop.is_over(t):
        writer = loop.load_to_write(t)  # M_t, always from its files
        prompts = loop.ask(writer, t)  # {x_i}
        answers = loop.answer(writer, prompts, t)  # {y_i^1 .. y_i^N}
        scored = loop.judge(writer, answers, t)  # {r_i^1 .. r_i^N}
        del writer  # one copy of M_t at a time
        selection = loop.select(scored, t)  # {x_i, y_w, y_l}
        loop.improve(selection)  # M_{t+1}; the reference is the frozen M_t
        t += 1
        loop.hold_exam(t)


class Selection(NamedTuple):
    """What M_t learns from."""

    t: int
    pairs: list[Pair]
    scored: list[Candidate]  # all answers; only variants of the method look at them


def as_answers(rows: Sequence[dict], prompts: Sequence[str]) -> list[Candidate]:
    """Rows of responses.jsonl, which lack the prompts, as records."""
    return [Candidate(prompt=prompts[row["id"]], **row) for row in rows]


@dataclass
class Loop:
    """The stages of the picture.

    `run.keep(t, stage, make, *inputs)` returns the rows of a stage's file. If the file is missing,
    `make(*inputs)` makes it, and `run.finish` prints the stage's line, with what `make` told
    `run.note`. A variant of the method is a subclass that overrides one step.
    """

    config: Config
    world: World
    run: Run
    chat: Chat
    rubric: str
    device: torch.device
    dtype: torch.dtype  # of the arithmetic

    # ---- M_0 -> M_1 ----

    def make_first_model(self) -> None:
        """SFT on answers and verdicts. Without seed data M_1 is M_0."""
        source = self.config.model or SEED
        base = self.load_to_train(source, 0)
        answers = [self.chat.example(row["prompt"], row["response"]) for row in self.world.ift]
        answers = self.short_enough(base, answers)
        verdicts = self.verdict_examples(base, self.judge_data(base, answers))
        started = time.time()
        note = "no seed data, so M1 is the base model"
        if answers + verdicts:
            recipe = self.sft_recipe(base)
            progress = self.run.training(0)
            log = sft(base, answers + verdicts, recipe, progress=progress)  # changes the weights
            write_jsonl(unnamed(self.run.folder / "sft.jsonl"), log)
            note = sft_note(log, len(answers), len(verdicts))
        self.run.note(note)
        folder = unnamed(self.run.model_folder(1))
        self.save_trained(base, folder, source)
        if self.config.template_arg:
            self.chat.save_template(folder)  # so that all models of the run have it
        files = ["sft.jsonl", "M1"] if answers + verdicts else ["M1"]
        self.run.finish(0, "sft", started, *files)

    def judge_data(self, base: GPT, answers: list[Example]) -> list[dict]:
        """EFT: the judge examples of the world, and those made from answers that people ranked.

        The toy has ready examples. For real models a copy of M_0 learns to answer and judges, and
        verdicts that agree with people are kept; or ranks become scores (worlds/judge_data.py).
        """
        judging = replace(self.judging(), how="sampled")  # a teacher writes, whatever --judge says
        fresh = partial(self.load_to_train, self.config.model or SEED, 0)
        teacher = Teacher(fresh, self.chat, self.dtype, judging, answers, self.sft_recipe(base))
        run = self.run  # passed on: make_judge_data calls run.keep itself, for "verdicts"
        return run.keep(0, "eft", make_judge_data, run, self.world, self.config, teacher)

    def verdict_examples(self, model: GPT, eft: list[dict]) -> list[Example]:
        return self.short_enough(model, judge_examples(self.chat, self.rubric, eft))

    def short_enough(self, model: GPT, examples: list[Example]) -> list[Example]:
        """Those that fit into the model's context. How many do not is printed."""
        return drop_long(examples, model.config.max_position_embeddings, self.run.say)

    # ---- M_t, and its prompts, answers and scores ----

    def load_to_write(self, t: int) -> Writer:
        """M_t, laid out for speed."""
        size = self.config.split
        prepare = partial(split, device=self.device, size=size)
        folder = self.run.model_folder(t)
        model = load(folder, device=self.device, dtype=self.dtype, prepare=prepare)
        return Writer(pack(model), self.chat, group_size=size)

    def key(self, stage: str, t: int) -> str:
        """Names the randomness of a stage. Prompt and sample numbers are added to it later."""
        return f"{self.config.seed} {stage} {t}"

    def ask(self, writer: Writer, t: int) -> list[str]:
        """{x_i}: written by M_t itself, or taken from --prompts."""
        rows = self.run.keep(t, "prompts", self.prompt_rows, writer, t)
        return [row["prompt"] for row in rows]

    def prompt_rows(self, writer: Writer, t: int) -> list[dict]:
        c = self.config
        if self.world.given is not None:
            prompts = self.world.given[(t - 1) * c.n_prompts : t * c.n_prompts]
            self.run.note(f"{len(prompts)} kept, from {c.prompts}")
        else:
            prompts = self.write_prompts(writer, t)
        finish = self.world.finish_prompt
        if finish is not None:
            key = self.key("finish", t)
            prompts = [finish(prompt, f"{key} {i}") for i, prompt in enumerate(prompts)]
        return [{"id": i, "prompt": prompt} for i, prompt in enumerate(prompts)]

    def write_prompts(self, writer: Writer, t: int) -> list[str]:
        """Prompts of M_t, unlike those of people, of the exam, and of this iteration so far."""
        c = self.config
        seeds = self.world.prompts
        known = KnownPrompts([*seeds, *self.world.exam.instructions()], c.rouge)
        sampling = replace(self.answering(), temperature=c.prompt_temperature)
        key = self.key("prompts", t)
        prompts, refused = new_prompts(
            writer, seeds, c.n_prompts, sampling=sampling, key=key, known=known
        )
        self.run.note(prompts_note(prompts, refused))
        self.run.note(writer.take_meter())
        return prompts

    def answer(self, writer: Writer, prompts: list[str], t: int) -> list[Candidate]:
        """{y_i^1..N}: N answers to each prompt."""
        rows = self.run.keep(t, "responses", self.write_answers, writer, prompts, t)
        return as_answers(rows, prompts)

    def write_answers(self, writer: Writer, prompts: list[str], t: int) -> list[dict]:
        """The rows of responses.jsonl. What was written before a kill is not written again."""
        key = self.key("answers", t)

        def write(part: Sequence[str], first: int) -> list[dict]:
            answers = respond(writer, part, self.answering(), key=key, first=first)
            return [y.row() for y in answers]

        tokens = self.config.n * self.config.max_new_tokens  # at most, for a prompt
        rows = self.run.in_parts(key, prompts, tokens, write, writer)
        self.run.note(answers_note(as_answers(rows, prompts)))
        self.run.note(writer.take_meter())
        return rows

    def judge(
        self, writer: Writer, answers: list[Candidate], t: int, *, stage: str = "verdicts"
    ) -> list[Candidate]:
        """{r_i^1..N}: K verdicts of M_t on each of its own answers; their mean is the reward.

        `stage` names the file and the randomness. Only a variant that judges twice gives another.
        """
        key = self.key(stage, t)
        verdicts = self.run.keep(t, stage, self.write_verdicts, writer, answers, key)
        return with_rewards(answers, verdicts)

    def write_verdicts(self, writer: Writer, answers: list[Candidate], key: str) -> list[dict]:
        """The rows of verdicts.jsonl, in parts like the answers."""
        c = self.config
        judging = self.judging()

        def judge(part: Sequence[list[Candidate]], _: int) -> list[dict]:
            of_part = [y for group in part for y in group]
            return judge_answers(writer, of_part, judging, key=key)

        # answers to one prompt stay together: equal ones are judged once
        limit = c.k * c.max_verdict_tokens if c.judge == "sampled" else c.max_new_tokens
        groups = by_prompt(answers)
        verdicts = self.run.in_parts(key, groups, c.n * limit, judge, writer)
        self.run.note(verdicts_note(verdicts, self.config.judge))
        self.run.note(writer.take_meter())
        return verdicts

    # ---- pairs, and M_{t+1} ----

    def load_to_train(self, folder: str | Path, t: int) -> GPT:
        """M_t in fp32; with --lora frozen, in the dtype of the arithmetic, under new adapters."""
        # without weights yet, the model gets its adapters, and is cut over the processes
        lora = self.config.lora
        dtype = torch.float32 if lora is None else self.dtype
        prepare = partial(prepare_training, lora=lora, device=self.device, dtype=self.dtype)
        model = load(folder, device=self.device, dtype=dtype, prepare=prepare)
        return start_adapters(model, seed=1000 * t + self.config.seed)

    def save_trained(self, model: GPT, folder: Path, source: str | Path) -> None:
        """M_{t+1} as a folder like that of M_t, its `source`; and its adapters by themselves."""
        dtype = torch.float32 if self.config.lora is None else self.dtype
        save(model, folder, source=source, dtype=dtype)
        save_adapters(model, folder / "adapter", base=str(source))

    def select(self, scored: list[Candidate], t: int) -> Selection:
        """{x_i, y_w, y_l}: the best against the worst. Raises UserError where there is none."""
        groups = by_prompt(scored)
        pairs = [pair for pair in map(self.choose, groups) if pair is not None]
        used = most_certain(pairs, self.config.confident)
        note = pairs_note(groups, pairs, used)
        if not pairs:
            verdicts = read_existing(self.run.folder / f"t{t}/verdicts.jsonl")
            reason = why_no_pairs(groups, verdicts)
            last = self.run.model_folder(t)
            raise UserError(f"M{t} gave no preference pair ({note}). {reason}. {last} is kept.")
        # The file, the example and the report are for people: a resumed run selects again.
        self.run.keep(t, "pairs", self.pair_rows, used, note)
        self.run.say(worked_example(self.world.exam, scored, used[0]))
        write_report([self.run.folder])
        return Selection(t, used, scored)

    def choose(self, group: list[Candidate]) -> Pair | None:
        """One prompt's answers -> its pair. None where they tie."""
        return choose_pair(group, self.config.near)

    def pair_rows(self, pairs: list[Pair], note: str) -> list[dict]:
        self.run.note(note)
        return [pair.row() for pair in pairs]

    def improve(self, selection: Selection) -> None:
        """M_t -> M_{t+1}."""
        t = selection.t
        source = self.run.model_folder(t)
        started = time.time()
        model = self.load_to_train(source, t)
        log = self.train_on(model, selection)
        self.save_trained(model, unnamed(self.run.model_folder(t + 1)), source)
        write_jsonl(unnamed(self.run.folder / f"t{t}/dpo.jsonl"), log)
        self.run.finish(t, "dpo", started, f"M{t + 1}", f"t{t}/dpo.jsonl")

    def train_on(self, model: GPT, selection: Selection) -> list[dict]:
        """DPO on the pairs; returns the log."""
        examples = self.pair_examples(selection)
        recipe = self.dpo_recipe(model, selection.t)
        objective = self.objective(model, selection)
        progress = self.run.training(selection.t)
        log = dpo(model, examples, recipe, objective, progress=progress)
        self.run.note(dpo_note(log, len(examples)))
        return log

    def pair_examples(self, selection: Selection) -> list[PreferencePair]:
        """The pairs as token ids. The responses are as they were drawn, not tokenised again."""
        examples = []
        for pair in selection.pairs:
            prompt = self.chat.prompt(pair.chosen.prompt)
            chosen = Example(prompt, pair.chosen.tokens)
            examples.append((chosen, Example(prompt, pair.rejected.tokens)))
        return examples

    def objective(self, model: GPT, selection: Selection) -> Objective:
        """Loss and replay of DPO. Only variants look at the selection."""
        c = self.config
        replay = []
        if c.replay:
            eft = self.run.keep(0, "eft", list)  # of judge_data: the file is there
            replay = self.verdict_examples(model, eft)
        return Objective(beta=c.beta, nll=c.nll, replay=replay, replay_size=c.replay)

    # ---- how to draw, judge and train ----

    def answering(self) -> Sampling:
        """N answers to each prompt."""
        c = self.config
        return Sampling(c.max_new_tokens, c.temperature, c.top_p, n=c.n, slots=c.slots)

    def judging(self) -> Judging:
        """K verdicts on each answer."""
        c = self.config
        limit = c.max_verdict_tokens
        sampling = Sampling(limit, c.judge_temperature, c.top_p, n=c.k, slots=c.slots)
        label = label_of(row["verdict"] for row in self.world.eft)
        return Judging(self.rubric, sampling, c.judge, label)

    def recipe(self) -> Recipe:
        """What SFT and DPO have in common. DPO needs `per_example` for its replay."""
        c = self.config
        return Recipe(
            batch_size=c.batch_size,
            dropout=c.dropout,
            recompute=c.recompute,
            tokens=c.tokens,
            dtype=self.dtype,
            per_example=c.sft_weight == "examples",
            block=4 if c.judge == "checklist" else 1,
        )

    def sft_recipe(self, model: GPT) -> Recipe:
        c = self.config
        lr = c.sft_lr or default_rate(PAPER_SFT_LR, model.config.hidden_size, c.lora)
        return replace(self.recipe(), epochs=c.sft_epochs, lr=lr, lr_end=lr / 5, seed=c.seed)

    def dpo_recipe(self, model: GPT, t: int) -> Recipe:
        c = self.config
        lr = c.dpo_lr or default_rate(PAPER_DPO_LR, model.config.hidden_size, c.lora)
        seed = 1000 * t + c.seed  # another order of the pairs in each iteration, and for each seed
        return replace(self.recipe(), epochs=c.dpo_epochs, lr=lr, lr_end=lr / 10, seed=seed)

    def hold_exam(self, t: int) -> None:
        """The exam of M_t: its line, its alarms, and the report. No stage learns from it."""
        if t in self.run.examined():
            return
        started = time.time()
        writer = self.load_to_write(t)
        answering = replace(self.answering(), n=self.config.exam_n)
        key = f"{self.config.seed} exam"  # without t: every model draws the same numbers
        student = Student(writer, answering, self.judging(), key, self.load_to_write)
        figures = examine(self.run, self.world, student, t)
        self.run.note(one_line(figures))
        if writer.work.too_long:
            self.run.note(writer.take_meter())
        self.run.finish(t, "exam", started, "metrics.jsonl")
        for line in alarm_lines(self.run.folder, t):
            self.run.say(line)
        write_report([self.run.folder])

    def is_over(self, t: int) -> bool:
        """Whether M_t is the last model: one has lost (--keep-best), or all iterations are done."""
        if self.config.keep_best:
            for later in range(2, t + 1):  # a run may have gone on without the flag
                self.run.keep(later - 1, "duel", self.duel, later)
            write_report([self.run.folder])
            loss = first_loss(self.run.folder, t)
            if loss is not None:
                told = f"{loss.reason}; the best model is M{loss.t - 1}"
                self.run.say(f"M{loss.t} | keep-best | {told}")
                return True
        return t > self.config.iters

    def duel(self, t: int) -> list[dict]:
        """M_1 compares the answers of M_t and M_{t-1} to the exam, which nothing learns from."""
        judge = self.load_to_write(1)
        key = f"{self.config.seed} duel"  # without t: equal answers get equal verdicts, and tie
        rows = duel_rows(self.run.folder, t, judge, self.judging(), key)
        wins, losses = wins_and_losses(rows)
        self.run.note(f"M{t} wins {wins}, loses {losses} of {len(rows)} prompts, judged by M1")
        return rows


# ---- the command ----


def train(
    command: CommandLine, loop_class: type[Loop], variant: str | None, say: Say
) -> list[dict]:
    """The whole run, or what is left of it; returns the rows of the table."""
    started = time.time()
    config = command.config
    # 1) is there something left to do?
    run = Run(Path("runs") / config.run, say)
    source = Path(config.model or SEED)
    check_record(run.folder, config, variant)
    # one row per model, M_1 .. M_{iters+1}; which of them is best, --keep-best says again
    if len(run.metrics()) > config.iters and not config.keep_best:
        say(f"{run.folder} is finished; this is its table. Give --run another name to run again.\n")
        return run.metrics()[: config.iters + 1]
    # 2) everything that a mistake in the settings could spoil
    device = pick_device(config.device)
    rubric = read_rubric(config.rubric, source, how=config.judge)
    loop = loop_class(
        config=config,
        run=run,
        chat=Chat(source, config.template_arg).check_template(),
        rubric=rubric,
        world=open_world(config, toy=command.toy),
        device=device,
        dtype=pick_dtype(config.dtype, device),
    )
    if not run.model_folder(1).exists():
        # It is loaded to be tried: broken weights, memory, disk and context are told now.
        base = loop.load_to_train(source, 0)
        check_start(run.folder, config, base, rubric=len(loop.chat.prompt(rubric)))
        del base  # whoever needs it loads it again: it is large
    # 3) Only now are files written: a mistake in the settings leaves nothing behind.
    run.lock()
    for note in [*loop.world.notes, *other_arithmetic(run.folder, device)]:
        say(note)
    write_record(run.folder, config, variant, device)
    # 4) the loop
    self_reward(loop)
    seconds = time.time() - started
    report = run.folder / "report.html"
    say(f"finished in {seconds:.1f} s; files in {run.folder}, the report is {report}\n")
    models = run.metrics()[: config.iters + 1]
    if config.keep_best:
        models = mark_best(run.folder, models)
    return models


def main(loop_class: type[Loop] = Loop, variant: str | None = None) -> None:
    """The command. experiments/variants.py calls it with a Loop of its own."""
    prepare_machine()
    join()  # the other processes, under torchrun
    about = "Self-Rewarding Language Models: answer, judge, choose, DPO, and round again."
    command = parse(sys.argv[1:], about)

    def say(text: str) -> None:
        if rank() == 0:
            print(printable(text), file=sys.stderr if command.json else sys.stdout, flush=True)

    models = train(command, loop_class, variant, say)
    if not command.json:
        say(text_table(models))
    elif rank() == 0:
        print(json.dumps({"run": command.config.run, "models": models}))
    leave()


if __name__ == "__main__":
    run_command(main)
