"""train.py: the loop.

     new prompts      M_t answers         M_t judges           select           DPO
       {x_i}  -->  {y_i^1 .. y_i^N}  -->  {r_i^1 .. r_i^N}  -->  {x, y_w, y_l}  -->  M_{t+1}

In: a base model M_0 and a little seed data.  Out: runs/NAME with M1 .. M_{T+1}, every text, score and pair, and a table.
Each stage writes its file whole or not at all, so a run that stopped goes on at the first stage whose file is missing.
Without --model this is the toy: the base model in seed/, in a world whose truth is known, a little over a minute on two cores.

    python train.py --iters 3
    python train.py --model DIR --ift ift.jsonl --ranked ranked.jsonl --iters 1
"""

import copy
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import NamedTuple
from zlib import crc32

import torch

import world
from config import SEED, Config, check_run, command, parse, pick_device, pick_dtype, record_run
from data import (
    Candidate,
    Chat,
    Example,
    Pair,
    UserError,
    read_ift,
    read_oasst,
    read_own,
    read_prompts,
    read_ranked,
    read_texts,
    write_jsonl,
)
from dpo import Recipe, dpo, drop_long, sft
from evaluate import (
    Exam,
    agreement,
    ending,
    line,
    measure,
    progress,
    table,
    true_score,
    worked_example,
)
from judge import (
    agreeing,
    as_candidates,
    attach,
    choose_pairs,
    judge_examples,
    mean,
    read_rubric,
    score,
    score_lines,
    verdict_pairs,
)
from model import GPT, load, save
from prompts import new_prompts
from report import alarms, load_run, write_report
from sample import Sampling, cost, respond, sampling_copy, writer


class Seeds(NamedTuple):
    """What people wrote, without what is held out for the exam."""

    ift: list[dict]  # {"prompt", "response"}
    eft: list[dict]  # {"prompt", "response", "verdict"}
    groups: list[dict]  # ranked answers, to make more of the second kind
    prompts: list[str]  # what new prompts are modelled on
    exam: Exam


def gather(config: Config, toy: bool) -> Seeds:
    """The seed data: files, and for the toy what its people wrote. Of real prompts a fixed fifth is held out for the exam."""
    c, limit, rng = config, config.seed_limit, random.Random(f"people {config.seed}")
    ift = read_ift(c.ift) if c.ift else world.ift_examples(limit, rng) if toy else []
    eft = (
        read_texts(c.eft, "prompt", "response", "verdict")
        if c.eft
        else world.eft_examples(limit, rng)
        if toy
        else []
    )
    if toy:
        exam = Exam(
            world.held_out_prompts(c.exam), world.held_out_ranked(c.exam // 4), world.oracle
        )
        return Seeds(ift[:limit], eft[:limit], [], [r["prompt"] for r in ift], exam)
    more, groups = read_oasst(c.oasst, lang=c.lang) if c.oasst else ([], [])
    ift, groups = ift + more, (read_ranked(c.ranked) if c.ranked else []) + groups
    if not (ift or groups or c.prompts):
        raise UserError(
            "there is nothing to start from: give --ift, --oasst, --ranked or --prompts."
        )
    held = lambda row: crc32(row["prompt"].encode()) % 5 == 0
    exam = Exam(
        [r["prompt"] for r in ift or groups if held(r)][: c.exam],
        [g for g in groups if held(g)][: c.exam],
    )
    free = [[r for r in rows if not held(r)] for rows in (ift, eft, groups)]
    for rows in free[1:]:
        rng.shuffle(rows)
    return Seeds(
        free[0][:limit], free[1][:limit], free[2], [r["prompt"] for r in free[0] or free[2]], exam
    )


# ---- the stages: each is a function of the settings and the files so far ----
@dataclass(frozen=True)
class Context:
    """What every stage needs to know."""

    config: Config
    run: Path
    chat: Chat
    rubric: str  # the judge prompt
    seeds: Seeds
    device: torch.device
    dtype: torch.dtype
    say: Callable[[str], None]

    def sampling(self, kind: str) -> Sampling:
        c = self.config
        temperature = {
            "prompt": c.prompt_temperature,
            "answer": c.temperature,
            "verdict": c.judge_temperature,
        }[kind]
        return Sampling(
            c.max_verdict_tokens if kind == "verdict" else c.max_new_tokens,
            temperature,
            c.top_p,
            slots=c.slots,
        )

    def writer(self, folder: str | None, model: GPT) -> tuple[GPT, Chat]:
        """The fixed model of `folder`, ready to write; M_t where there is none."""
        return writer(folder, self.device, self.dtype) if folder else (model, self.chat)

    def recipe(self, model: GPT, lr: float | None, *, paper: float, fall: float, **own) -> Recipe:
        """How to step; a learning rate that was not given is the paper's, which was for a hidden size of 8192."""
        c, lr = self.config, lr or paper * 8192 / model.config.hidden_size
        return Recipe(
            batch_size=c.batch_size,
            dropout=c.dropout,
            recompute=c.recompute,
            tokens=c.tokens,
            dtype=self.dtype,
            lr=lr,
            lr_end=lr / fall,
            even=c.sft_weight == "examples",
            **own,
        )

    def tell(self, t: int, stage: str, told: str, started: float) -> None:
        """One line for people, and one in log.jsonl."""
        seconds = time.time() - started
        self.say(f"M{t} | {stage:<9} | {told} | {seconds:.1f} s")
        log = self.run / "log.jsonl"
        write_jsonl(
            log,
            read_own(log) + [{"t": t, "stage": stage, "seconds": round(seconds, 3), "told": told}],
        )
        if stage == "exam" or seconds > 5:  # the page of a whole toy run takes 0.4 s
            write_report([self.run])


def stage(
    ctx: Context, t: int, name: str, make: Callable[[], tuple[list[dict], str]]
) -> list[dict]:
    """The rows of one stage: from its file where there is one, else made, written and told in one line.

    Every stage goes on from these rows, so a run that was stopped cannot differ from one that was not.
    """
    path, started = ctx.run / f"t{t}/{name}.jsonl", time.time()
    if not path.exists():
        rows, told = make()
        write_jsonl(path, rows)
        ctx.tell(t, name, told, started)
    return read_own(path)


def own_verdicts(ctx: Context, model: GPT) -> tuple[list[dict], str]:
    """Judge data as in the paper (3.1): M_0 after SFT on answers judges ranked answers; what agrees with people is kept."""
    c, groups = ctx.config, ctx.seeds.groups[: ctx.config.seed_limit]

    def make() -> tuple[list[dict], str]:
        answering, examples = copy.deepcopy(model), answer_examples(ctx, model)
        if examples:
            sft(
                answering,
                examples,
                ctx.recipe(model, c.sft_lr, paper=5.5e-6, fall=5, epochs=c.sft_epochs, seed=c.seed),
                name="sft on answers",
            )
        return score(
            sampling_copy(answering, ctx.dtype),
            ctx.chat,
            as_candidates(groups),
            ctx.sampling("verdict"),
            k=c.k,
            rubric=ctx.rubric,
            key=f"{c.seed} verdicts 0",
        ), f"by M0 after SFT on answers, on {len(groups)} groups that people ranked"

    rows, funnel = agreeing(groups, stage(ctx, 0, "verdicts", make))
    return rows, ", ".join(f"{count} {name}" for name, count in funnel.items())


def style_of_judge_data(ctx: Context, model: GPT) -> tuple[str, str]:
    """--eft-style, or what "auto" comes to; and why."""
    c = ctx.config
    if c.eft_style != "auto":
        return c.eft_style, f"--eft-style {c.eft_style}"
    if c.judge == "expected":
        return "score", "score lines, as --judge expected reads nothing else"
    tried = score(
        sampling_copy(model, ctx.dtype),
        ctx.chat,
        as_candidates(ctx.seeds.groups[:2]),
        ctx.sampling("verdict"),
        k=c.k,
        rubric=ctx.rubric,
        key=f"{c.seed} readable",
    )
    share = mean([float(v["score"] is not None) for v in tried])
    style, name = ("verdict", "M0's own verdicts") if share >= 0.5 else ("score", "score lines")
    return style, f"{name}, as {share:.0%} of {len(tried)} verdicts by M0 can be read"


def judge_data(ctx: Context, model: GPT) -> list[dict]:
    """EFT: ready judge examples, and those made from ranked answers; `model` is M_0."""
    c, groups = ctx.config, ctx.seeds.groups

    def make() -> tuple[list[dict], str]:
        if c.no_eft:
            return [], "no judge examples, as --no-eft says"
        rows, told = [], ""
        if groups:
            style, why = style_of_judge_data(ctx, model)
            rows, funnel = (
                own_verdicts(ctx, model)
                if style == "verdict"
                else (score_lines(groups), f"{len(groups)} groups")
            )
            told = f" ({why}; {funnel})"
            random.Random(f"judge data {c.seed}").shuffle(rows)
        found = (ctx.seeds.eft + rows)[: c.seed_limit]
        return found, f"{len(found)} judge examples{told}"

    return stage(ctx, 0, "eft", make)


def answer_examples(ctx: Context, model: GPT) -> list[Example]:
    examples = [ctx.chat.example(r["prompt"], r["response"]) for r in ctx.seeds.ift]
    return drop_long(examples, model.config.max_position_embeddings, ctx.say)


def first_model(ctx: Context, model: GPT, eft: list[dict]) -> None:
    """M_0 -> M_1: SFT on instruction and judge examples; without seed data M_1 is M_0."""
    c, started, told = ctx.config, time.time(), "no seed data, so M1 is the base model"
    judging = drop_long(
        judge_examples(ctx.chat, ctx.rubric, eft), model.config.max_position_embeddings, ctx.say
    )
    examples = answer_examples(ctx, model) + judging
    if examples:
        log = sft(
            model,
            examples,
            ctx.recipe(model, c.sft_lr, paper=5.5e-6, fall=5, epochs=c.sft_epochs, seed=c.seed),
        )
        write_jsonl(ctx.run / "sft.jsonl", log)
        told = f"{len(examples) - len(judging)} answers and {len(judging)} verdicts, {len(log)} steps, loss {log[0]['loss']:.3f} > {log[-1]['loss']:.3f}"
    save(model, ctx.run / "M1", source=c.model or SEED)
    ctx.tell(0, "sft", told, started)


def ask(ctx: Context, model: GPT, t: int) -> list[str]:
    """{x_i}: prompts written by M_t itself or by --prompt-writer, or taken from --prompts."""
    c = ctx.config

    def make() -> tuple[list[dict], str]:
        if c.prompts:
            found, told = read_prompts(c.prompts, c.n_prompts, trip=t), f"from {c.prompts}"
        else:
            held_out = [*ctx.seeds.exam.prompts, *(g["prompt"] for g in ctx.seeds.exam.groups)]
            found, refused = new_prompts(
                *ctx.writer(c.prompt_writer, model),
                ctx.seeds.prompts,
                c.n_prompts,
                sampling := ctx.sampling("prompt"),
                key=f"{c.seed} prompts {t}",
                rouge=c.rouge,
                exclude=held_out,
            )
            told = f"refused: {', '.join(f'{n} {why}' for why, n in refused.most_common()) or 'none'} | {cost(sampling.work)}"
        return [{"id": i, "prompt": p} for i, p in enumerate(found)], f"{len(found)} kept, {told}"

    return [row["prompt"] for row in stage(ctx, t, "prompts", make)]


def answer(ctx: Context, model: GPT, prompts: list[str], t: int) -> list[Candidate]:
    """{y_i^1..N}: N answers to each prompt."""

    def make() -> tuple[list[dict], str]:
        found = respond(
            model,
            ctx.chat,
            prompts,
            sampling := ctx.sampling("answer"),
            key=f"{ctx.config.seed} answers {t}",
            n=ctx.config.n,
        )
        ended, drawn = sum(y.finished for y in found), sum(len(y.tokens) for y in found)
        return (
            [
                {
                    "id": y.id,
                    "sample": y.sample,
                    "response": y.response,
                    "finished": y.finished,
                    "tokens": y.tokens,
                }
                for y in found
            ],
            f"{len(found)}, finished {ended / len(found):.1%}, {drawn / len(found):.1f} tokens each | {cost(sampling.work)}",
        )

    return [
        Candidate(r["id"], r["sample"], prompts[r["id"]], r["response"], r["tokens"], r["finished"])
        for r in stage(ctx, t, "responses", make)
    ]


def judge(
    ctx: Context, model: GPT, candidates: list[Candidate], t: int, *, name: str = "verdicts"
) -> list[Candidate]:
    """{r_i^1..N}: K verdicts of M_t (or of --judge-model) on each of its own answers, averaged."""
    c, sampling = ctx.config, ctx.sampling("verdict")

    def make() -> tuple[list[dict], str]:
        if c.judge_model == "oracle":
            rows = [
                {
                    "id": y.id,
                    "sample": y.sample,
                    "vote": 0,
                    "text": "",
                    "score": true_score(ctx.seeds.exam, y),
                }
                for y in candidates
            ]
        else:
            rows = score(
                *ctx.writer(c.judge_model, model),
                candidates,
                sampling,
                k=c.k,
                rubric=ctx.rubric,
                key=f"{c.seed} {name} {t}",
                how=c.judge,
            )
        share, middle = (
            mean([float(r["score"] is not None) for r in rows]),
            mean([r["score"] for r in rows]),
        )
        told = f"readable {share or 0:.1%}, mean score {'none' if middle is None else f'{middle:.2f}'} | {cost(sampling.work)}"
        return rows, f"{len(rows)}, {c.judge}, {told}"

    return attach(candidates, stage(ctx, t, name, make))


def choose(ctx: Context, scored: list[Candidate], t: int) -> list[Pair]:
    """{x_i, y_w, y_l}: best against worst. Raises UserError where no prompt gave a pair."""
    pairs, asked = choose_pairs(scored, ctx.config.length_control), {y.id for y in scored}
    readable = Counter(y.id for y in scored if y.reward is not None)
    compared = sum(n > 1 for n in readable.values())
    told = (
        f"{len(pairs)} from {len(asked)} prompts: {compared - len(pairs)} tied, {len(asked) - compared} with fewer than two scores; of "
        f"{len(scored)} answers {sum(y.finished for y in scored)} finished, {readable.total()} scored"
    )
    if not pairs:
        raise UserError(
            f"M{t} gave no preference pair ({told}), so there is nothing to learn from; {ctx.run}/M{t} is the last "
            f"model. Give it judge examples (--eft, --ranked), more prompts or more answers."
        )
    stage(ctx, t, "pairs", lambda: ([p.row() for p in pairs], told))
    return pairs


def doubt(ctx: Context, scored: list[Candidate], pairs: list[Pair], t: int) -> float:
    """Label smoothing of CREAM (Wang et al. 2024): how far M_t and M_{t-1} rank the answers of the pairs' prompts differently; 0 for M_1."""
    if t == 1:
        return 0.0
    before, _ = ctx.writer(ctx.run / f"M{t - 1}", None)
    asked = {p.chosen.id for p in pairs}
    scored = [y for y in scored if y.id in asked]
    again = judge(
        ctx, before, [replace(y, votes=(), reward=None) for y in scored], t, name="verdicts_before"
    )
    alike = agreement(
        *(
            [[y.reward for y in group] for _, group in groupby(ys, key=lambda y: y.id)]
            for ys in (scored, again)
        )
    )
    return 0.5 if alike is None else 1 - alike


def improve(ctx: Context, model: GPT, scored: list[Candidate], pairs: list[Pair], t: int) -> None:
    """M_t -> M_{t+1}: DPO, with M_t as its own reference."""
    c, folder = ctx.config, ctx.run / f"M{t + 1}"

    def make() -> tuple[list[dict], str]:
        rows = [
            (
                Example(x := ctx.chat.prompt(p.chosen.prompt), p.chosen.tokens),
                Example(x, p.rejected.tokens),
            )
            for p in pairs
        ]
        recipe = ctx.recipe(
            model, c.dpo_lr, paper=1e-6, fall=10, epochs=c.dpo_epochs, seed=1000 * t + c.seed
        )
        if c.positive_only:
            log = sft(model, [chosen for chosen, _ in rows], recipe, name="sft on the best answers")
        else:
            rows += (
                verdict_pairs(
                    ctx.chat, ctx.rubric, scored, read_own(ctx.run / f"t{t}/verdicts.jsonl")
                )
                if c.meta
                else []
            )
            replay = (
                judge_examples(ctx.chat, ctx.rubric, read_own(ctx.run / "t0/eft.jsonl"))
                if c.replay
                else ()
            )
            log = dpo(
                model,
                rows,
                recipe,
                beta=c.beta,
                kind=c.loss,
                nll=c.nll,
                replay=replay,
                replay_size=c.replay,
                smoothing=doubt(ctx, scored, pairs, t) if c.cream else c.label_smoothing,
                ref=load(ctx.run / "M1", device=ctx.device) if c.ref == "seed" else None,
            )
        save(model, folder, source=ctx.run / f"M{t}")
        last, key = ending(log), "loss" if c.positive_only else "dpo_loss"
        told = f"{len(log)} steps on {len(rows)} pairs, loss {log[0][key]:.3f} > {last[key]:.3f}"
        return log, told if c.positive_only else told + (
            f", accuracy {last['accuracy']:.2f}, log-prob of chosen {last['chosen_change']:+.1f}, "
            f"of rejected {last['rejected_change']:+.1f}"
        )

    if not folder.exists():
        (ctx.run / f"t{t}/dpo.jsonl").unlink(
            missing_ok=True
        )  # a log without its model says nothing
    stage(ctx, t, "dpo", make)


def examine(ctx: Context, master: GPT, model: GPT, t: int) -> None:
    """One line of metrics.jsonl for M_t, measured on held-out material; nothing reads it but people. `master`: its fp32 weights."""
    path, started, rows = (
        ctx.run / "metrics.jsonl",
        time.time(),
        read_own(ctx.run / "metrics.jsonl"),
    )
    if any(row["t"] == t for row in rows):
        return
    figures, answers, rewards = measure(
        model,
        ctx.chat,
        ctx.seeds.exam,
        ctx.sampling("answer"),
        ctx.sampling("verdict"),
        k=ctx.config.k,
        rubric=ctx.rubric,
        key=f"{ctx.config.seed} exam",
        how=ctx.config.judge,
    )
    figures |= progress(
        ctx.run,
        t,
        master,
        ctx.chat,
        ctx.seeds.exam,
        answers,
        rewards,
        ctx.recipe(master, None, paper=1e-6, fall=1),
    )
    write_jsonl(ctx.run / f"exam/M{t}.jsonl", answers)
    write_jsonl(ctx.run / f"exam/rewards-M{t}.jsonl", [{"rewards": group} for group in rewards])
    write_jsonl(ctx.run / "exam/ranked.jsonl", ctx.seeds.exam.groups)  # for judge.py --file
    write_jsonl(path, rows + [{"model": f"M{t}", "t": t, **figures}])
    ctx.tell(t, "exam", line(figures), started)
    for _, what, advice in (alarm for alarm in alarms(load_run(ctx.run)) if alarm[0] == f"M{t}"):
        ctx.say(f"M{t} | alarm     | {what}. {advice}")


# ---- the main flow ----
def self_reward(ctx: Context, base: GPT | None) -> None:
    """The picture at the top of this file, once round for each t."""
    c, run = ctx.config, ctx.run
    if base:
        first_model(ctx, base, judge_data(ctx, base))  # M_0 -> M_1
    for t in range(1, c.iters + 2):
        if (
            (run / f"M{t + 1}").exists()
            and (run / f"t{t}/dpo.jsonl").exists()
            and any(row["t"] == t for row in read_own(run / "metrics.jsonl"))
        ):
            continue  # this trip was made by an earlier, stopped run
        master = load(run / f"M{t}", device=ctx.device)
        model = sampling_copy(master, ctx.dtype)  # M_t
        examine(ctx, master, model, t)
        if t <= c.iters:
            prompts = ask(ctx, model, t)  # {x_i}
            candidates = answer(ctx, model, prompts, t)  # {y_i^1..N}
            scored = judge(ctx, model, candidates, t)  # {r_i^1..N}
            pairs = choose(ctx, scored, t)  # (x_i, y_w, y_l)
            improve(ctx, master, scored, pairs, t)  # M_{t+1}; the reference is the frozen M_t
            ctx.say(worked_example(ctx.seeds.exam, scored, pairs[0]))


def run(config: Config, toy: bool, say: Callable[[str], None]) -> list[dict]:
    """The whole run, or what is left of it; returns the rows of the table."""
    started, folder, source = time.time(), Path("runs") / config.run, Path(config.model or SEED)
    check_run(config, folder)
    if len(read_own(folder / "metrics.jsonl")) > config.iters:
        say(f"{folder} is finished; this is its table. Give --run another name to run again.\n")
    else:
        device = pick_device(config.device)
        ctx = Context(
            config,
            folder,
            Chat(source),
            read_rubric(config.rubric, source),
            gather(config, toy),
            device,
            pick_dtype(config.dtype, device),
            say,
        )
        base = None if (folder / "M1").exists() else load(source, device=device)
        record_run(
            config, folder, device
        )  # only now: a mistake in the settings leaves nothing behind
        self_reward(ctx, base)
        say(
            f"finished in {time.time() - started:.1f} s; files in {folder}, the report is {folder}/report.html\n"
        )
    return read_own(folder / "metrics.jsonl")[: config.iters + 1]


def main() -> None:
    config, extra = parse()
    say = lambda text: print(text, file=sys.stderr if extra.json else sys.stdout, flush=True)
    if extra.make_seed:
        from experiments.make_seed import make_seed  # not part of the method, so not read with it

        return make_seed(Path(config.model or SEED), say)
    rows = run(config, extra.toy, say)
    print(json.dumps({"run": config.run, "models": rows}) if extra.json else table(rows))


if __name__ == "__main__":
    command(main)
