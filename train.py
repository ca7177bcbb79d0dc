"""train.py: the loop.

     new prompts      M_t answers         M_t judges           select           DPO
       {x_i}  -->  {y_i^1 .. y_i^N}  -->  {r_i^1 .. r_i^N}  -->  {x, y_w, y_l}  -->  M_{t+1}

In: a base model M_0 and a little seed data.  Out: runs/NAME with M1 .. M_{T+1}, every text, score and pair, and a table.
Each stage writes its file whole or not at all, so a run that stopped goes on at the first stage whose file is missing.
Without --model this is the toy: the base model in seed/, in a world whose truth is known, about a minute on two cores.

    python train.py --iters 3
    python train.py --model DIR --ift ift.jsonl --ranked ranked.jsonl --iters 1
"""
import argparse
import json
import platform
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import NamedTuple, get_args
from zlib import crc32

import torch

import world
from data import (Candidate, Chat, Example, Pair, UserError, command, drop_long, eft_from_ranked, read_json, read_own,
                  read_prompts, read_ranked, read_texts, write_jsonl, write_whole)
from dpo import Recipe, dpo, sft
from evaluate import Exam, line, measure, table, worked_example
from judge import attach, choose_pairs, judge_examples, mean, read_rubric, score
from model import GPT, load, pick_device, pick_dtype, save
from sample import Sampling, new_prompts, respond, sampling_copy

SEED = Path(__file__).parent / "seed"
# The toy needs other numbers than a 70B model: a hundred times smaller data, weights that may move much further.
TOY = dict(n_prompts=1024, temperature=1.0, prompt_temperature=1.0, top_p=0.95, max_new_tokens=40, max_verdict_tokens=32,
           sft_lr=2e-3, dpo_lr=1e-3, dpo_epochs=3, beta=0.3, nll=1.0, batch_size=32, dropout=0.0, replay=24, rouge=1.0,
           tokens=4096, slots=512, exam=400, seed_limit=2000, dtype="fp32")


def setting(default, text: str, least: float | None = None):
    return field(default=default, metadata={"help": text, "least": least})


@dataclass(frozen=True)
class Config:
    """Every setting: this is the command line, its --help, and the record in config.json. Defaults follow the paper."""

    model: str | None = setting(None, "base model M_0, a Hugging Face directory (default: the toy model in seed/)")
    run: str | None = setting(None, "name of the run; its files go to runs/NAME (default: the model's name, toy for seed/)")
    iters: int = setting(3, "trips round the loop; 3 make M_2, M_3 and M_4", 0)
    seed: int = setting(0, "names all randomness; the same seed draws the same texts")
    n_prompts: int = setting(256, "new prompts an iteration", 1)
    n: int = setting(4, "answers to each prompt", 2)
    k: int = setting(3, "verdicts on each answer; their mean is its reward", 1)
    ift: str | None = setting(None, 'instruction data for SFT, JSONL of {"prompt", "response"}')
    eft: str | None = setting(None, 'judge data for SFT, JSONL of {"prompt", "response", "verdict"}')
    ranked: str | None = setting(None, 'ranked answers, JSONL of {"prompt", "responses", "ranks"}: judge data, and a fifth held out to test it')
    prompts: str | None = setting(None, "take new prompts from this file instead of letting the model write them")
    rubric: str | None = setting(None, "judge prompt, a text with {prompt} and {response} (default: the model's rubric.txt, or the built-in)")
    temperature: float = setting(0.7, "of answers", 0)
    top_p: float = setting(0.9, "of everything that is sampled", 0.01)
    judge_temperature: float = setting(0.7, "of verdicts", 0)
    prompt_temperature: float = setting(0.6, "of new prompts", 0)
    rouge: float = setting(0.7, "refuse a new prompt whose ROUGE-L with an earlier one reaches this; 1 refuses copies only")
    max_new_tokens: int = setting(192, "limit of an answer or a prompt", 1)
    max_verdict_tokens: int = setting(192, "limit of a verdict", 1)
    seed_limit: int = setting(200, "at most this many IFT and this many EFT examples", 0)
    sft_epochs: int = setting(1, "passes over the seed data", 1)
    sft_lr: float | None = setting(None, "peak learning rate of SFT, falls to a fifth [the paper's 5.5e-6 x 8192 / hidden size]")
    beta: float = setting(0.1, "of DPO: how dearly it pays to leave the reference M_t", 0)
    nll: float = setting(0.0, "weight of the chosen answer's negative log-prob in DPO (Iterative RPO); 0 is plain DPO", 0)
    dpo_epochs: int = setting(1, "passes over the pairs", 1)
    dpo_lr: float | None = setting(None, "peak learning rate of DPO, falls to a tenth [the paper's 1e-6 x 8192 / hidden size]")
    batch_size: int = setting(16, "examples or pairs a step", 1)
    dropout: float = setting(0.0, "on the residual branches, in training (paper: 0.1)", 0)
    replay: int = setting(0, "judge examples of the seed data mixed into each DPO step, so that judging is not forgotten", 0)
    tokens: int = setting(2048, "tokens of one forward and backward pass; lower it when memory is short", 1)
    slots: int = setting(64, "texts written side by side", 1)
    exam: int = setting(32, "held-out prompts and held-out groups of ranked answers that each model is measured on", 1)
    device: str = setting("auto", "auto, cpu, cuda or mps")
    dtype: str = setting("auto", "arithmetic: auto, fp32 or bf16; weights stay fp32")

    def __post_init__(self):
        for f in fields(self):
            value, least = getattr(self, f.name), f.metadata["least"]
            if least is not None and value < least:
                raise UserError(f"--{f.name.replace('_', '-')} must be at least {least}, not {value}.")


def parse() -> tuple[Config, argparse.Namespace]:
    """The command line. What was not given comes from TOY for a model of the toy world, else from Config."""
    parser = argparse.ArgumentParser(description="Self-Rewarding Language Models: answer, judge, choose, DPO, and round again.",
                                     allow_abbrev=False)
    for f in fields(Config):
        default = ("" if f.default is None else f" [{f.default}]") + (f" [toy: {TOY[f.name]}]" if f.name in TOY else "")
        parser.add_argument("--" + f.name.replace("_", "-"), type=(get_args(f.type) or (f.type,))[0],
                            default=argparse.SUPPRESS, help=f.metadata["help"] + default)
    parser.add_argument("--json", action="store_true", help="print the table as one JSON object, and everything else to stderr")
    parser.add_argument("--make-seed", action="store_true", help="train the toy's base model from scratch into --model, and stop")
    given = vars(parser.parse_args())
    folder = Path(given.get("model", SEED))
    toy = read_json(folder / "config.json").get("world") == "toy"
    extra = argparse.Namespace(json=given.pop("json"), make_seed=given.pop("make_seed"), toy=toy)
    given.setdefault("run", "toy" if folder == SEED else folder.resolve().name)
    return Config(**{**(TOY if toy else {}), **given}), extra


# ---- files ----
def check_run(config: Config, run: Path) -> None:
    """Raises UserError where the run directory was made with other settings."""
    before = read_json(run / "config.json").get("settings", now := asdict(config))
    changed = sorted(k for k in {*before, *now} - {"iters", "device"} if before.get(k) != now.get(k))
    if changed:
        raise UserError(f"{run} was made with other settings ({', '.join(changed)}); give --run another name or delete it.")


def record_run(config: Config, run: Path, device: torch.device) -> None:
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=SEED.parent, capture_output=True, text=True).stdout.strip()
    record = {"settings": asdict(config), "python": platform.python_version(), "torch": torch.__version__,
              "device": str(device), "threads": torch.get_num_threads(), "machine": platform.machine(), "commit": commit or None}
    write_whole(run / "config.json", json.dumps(record, indent=2) + "\n")


Seeds = NamedTuple("Seeds", [("ift", list[dict]), ("eft", list[dict]), ("prompts", list[str]), ("exam", Exam)])


def gather(config: Config, toy: bool) -> Seeds:
    """The seed data: files, and for the toy what its people wrote. Of real prompts a fixed fifth is held out for the exam."""
    limit, rng = config.seed_limit, random.Random(f"people {config.seed}")
    ift = read_texts(config.ift, "prompt", "response") if config.ift else world.ift_examples(limit, rng) if toy else []
    eft = read_texts(config.eft, "prompt", "response", "verdict") if config.eft else world.eft_examples(limit, rng) if toy else []
    if toy:
        exam = Exam(world.held_out_prompts(config.exam), world.held_out_ranked(config.exam // 4), world.oracle)
        return Seeds(ift[:limit], eft[:limit], [r["prompt"] for r in ift], exam)
    groups = read_ranked(config.ranked) if config.ranked else []
    held = {p for p in [r["prompt"] for r in ift + groups] if crc32(p.encode()) % 5 == 0}
    texts = [r["prompt"] for r in ift or groups]
    if not texts and not config.prompts:
        raise UserError("there is nothing to start from: give --ift, --ranked or --prompts.")
    eft = eft + eft_from_ranked([g for g in groups if g["prompt"] not in held])
    rng.shuffle(eft)
    exam = Exam([p for p in texts if p in held][:config.exam], [g for g in groups if g["prompt"] in held][:config.exam])
    return Seeds([r for r in ift if r["prompt"] not in held][:limit], eft[:limit], [p for p in texts if p not in held], exam)


# ---- the stages: each is a function of the settings and the files so far ----
@dataclass(frozen=True)
class Context:
    """What every stage needs to know."""

    config: Config
    run: Path
    chat: Chat
    rubric: str                 # the judge prompt
    seeds: Seeds
    device: torch.device
    dtype: torch.dtype
    say: Callable[[str], None]

    def sampling(self, kind: str) -> Sampling:
        c = self.config
        temperature = {"prompt": c.prompt_temperature, "answer": c.temperature, "verdict": c.judge_temperature}[kind]
        return Sampling(c.max_verdict_tokens if kind == "verdict" else c.max_new_tokens, temperature, c.top_p, slots=c.slots)

    def recipe(self, model: GPT, lr: float | None, *, paper: float, fall: float, **own) -> Recipe:
        """How to step; a learning rate that was not given is the paper's, which was for a hidden size of 8192."""
        c, lr = self.config, lr or paper * 8192 / model.config.hidden_size
        return Recipe(batch_size=c.batch_size, dropout=c.dropout, tokens=c.tokens, dtype=self.dtype, lr=lr, lr_end=lr / fall, **own)

    def tell(self, t: int, stage: str, told: str, started: float) -> None:
        """One line for people, and one in log.jsonl."""
        seconds = time.time() - started
        self.say(f"M{t} | {stage:<9} | {told} | {seconds:.1f} s")
        with open(self.run / "log.jsonl", "a", encoding="utf-8") as log:
            log.write(json.dumps({"t": t, "stage": stage, "seconds": round(seconds, 3), "told": told}) + "\n")


def stage(ctx: Context, t: int, name: str, make: Callable[[], tuple[list[dict], str]]) -> list[dict]:
    """The rows of one stage: from its file where there is one, else made, written and told in one line.

    Every stage goes on from these rows, so a run that was stopped cannot differ from one that was not.
    """
    path, started = ctx.run / f"t{t}/{name}.jsonl", time.time()
    if not path.exists():
        rows, told = make()
        write_jsonl(path, rows)
        ctx.tell(t, name, told, started)
    return read_own(path)


def first_model(ctx: Context, model: GPT) -> None:
    """M_0 -> M_1: SFT on instruction and judge examples; without seed data M_1 is M_0."""
    c, started, told = ctx.config, time.time(), "no seed data, so M1 is the base model"
    examples = [ctx.chat.example(r["prompt"], r["response"]) for r in ctx.seeds.ift] + judge_examples(ctx.chat, ctx.rubric, ctx.seeds.eft)
    examples = drop_long(examples, model.config.max_position_embeddings, ctx.say)
    if examples:
        log = sft(model, examples, ctx.recipe(model, c.sft_lr, paper=5.5e-6, fall=5, epochs=c.sft_epochs, seed=c.seed))
        write_jsonl(ctx.run / "sft.jsonl", log)
        told = (f"{len(ctx.seeds.ift)} answers and {len(ctx.seeds.eft)} verdicts, {len(log)} steps, "
                f"loss {log[0]['loss']:.3f} > {log[-1]['loss']:.3f}")
    save(model, ctx.run / "M1", source=c.model or SEED)
    ctx.tell(0, "sft", told, started)


def ask(ctx: Context, model: GPT, t: int) -> list[str]:
    """{x_i}: prompts written by M_t itself, or taken from --prompts."""
    c = ctx.config

    def make() -> tuple[list[dict], str]:
        found, refused = (read_prompts(c.prompts, c.n_prompts, trip=t), Counter()) if c.prompts else new_prompts(
            model, ctx.chat, ctx.seeds.prompts, c.n_prompts, ctx.sampling("prompt"), key=f"{c.seed} prompts {t}", rouge=c.rouge,
            exclude=ctx.seeds.exam.prompts)
        why = ", ".join(f"{n} {reason}" for reason, n in refused.most_common()) or "none"
        return [{"id": i, "prompt": p} for i, p in enumerate(found)], f"{len(found)} kept, refused: {why}"

    return [row["prompt"] for row in stage(ctx, t, "prompts", make)]


def answer(ctx: Context, model: GPT, prompts: list[str], t: int) -> list[Candidate]:
    """{y_i^1..N}: N answers to each prompt."""
    def make() -> tuple[list[dict], str]:
        found = respond(model, ctx.chat, prompts, ctx.sampling("answer"), key=f"{ctx.config.seed} answers {t}", n=ctx.config.n)
        ended, drawn = sum(y.finished for y in found), sum(len(y.tokens) for y in found)
        return ([{"id": y.id, "sample": y.sample, "response": y.response, "finished": y.finished, "tokens": y.tokens} for y in found],
                f"{len(found)}, finished {ended / len(found):.1%}, {drawn / len(found):.1f} tokens each")

    return [Candidate(r["id"], r["sample"], prompts[r["id"]], r["response"], r["tokens"], r["finished"])
            for r in stage(ctx, t, "responses", make)]


def judge(ctx: Context, model: GPT, candidates: list[Candidate], t: int) -> list[Candidate]:
    """{r_i^1..N}: K verdicts of M_t on each of its own answers, averaged."""
    def make() -> tuple[list[dict], str]:
        rows = score(model, ctx.chat, candidates, ctx.sampling("verdict"), k=ctx.config.k, rubric=ctx.rubric,
                     key=f"{ctx.config.seed} verdicts {t}")
        readable = [r["score"] for r in rows if r["score"] is not None]
        told = f"mean score {sum(readable) / len(readable):.2f}" if readable else "no score"
        return rows, f"{len(rows)}, {ctx.config.k} on each different answer, readable {len(readable) / max(1, len(rows)):.1%}, {told}"

    return attach(candidates, stage(ctx, t, "verdicts", make))


def choose(ctx: Context, scored: list[Candidate], t: int) -> list[Pair]:
    """{x_i, y_w, y_l}: best against worst. Raises UserError where no prompt gave a pair."""
    pairs, asked = choose_pairs(scored), {y.id for y in scored}
    unscored = len(asked - {y.id for y in scored if y.reward is not None})
    told = f"{len(pairs)} from {len(asked)} prompts: {len(asked) - len(pairs) - unscored} tied, {unscored} without a readable score"
    if not pairs:
        raise UserError(f"M{t} gave no preference pair ({told}), so there is nothing to learn from; {ctx.run}/M{t} is the last "
                        f"model. Give it judge examples (--eft, --ranked), more prompts or more answers.")
    stage(ctx, t, "pairs", lambda: ([
        {"prompt": p.chosen.prompt, "chosen": p.chosen.response, "rejected": p.rejected.response, "chosen_score": p.chosen.reward,
         "rejected_score": p.rejected.reward, "id": p.chosen.id, "chosen_sample": p.chosen.sample,
         "rejected_sample": p.rejected.sample} for p in pairs], told))
    return pairs


def improve(ctx: Context, model: GPT, pairs: list[Pair], t: int) -> None:
    """M_t -> M_{t+1}: DPO, with M_t as its own reference."""
    c, folder = ctx.config, ctx.run / f"M{t + 1}"

    def make() -> tuple[list[dict], str]:
        prompts = [ctx.chat.prompt(p.chosen.prompt) for p in pairs]
        rows = [(Example(x, p.chosen.tokens), Example(x, p.rejected.tokens)) for x, p in zip(prompts, pairs)]
        recipe = ctx.recipe(model, c.dpo_lr, paper=1e-6, fall=10, epochs=c.dpo_epochs, seed=1000 * t + c.seed)
        replay = judge_examples(ctx.chat, ctx.rubric, ctx.seeds.eft) if c.replay else ()
        log = dpo(model, rows, recipe, beta=c.beta, nll=c.nll, replay=replay, replay_size=c.replay)
        save(model, folder, source=ctx.run / f"M{t}")
        first, last = log[0], {k: mean([row[k] for row in log[-len(log) // 10:]]) for k in log[0]}      # of the last tenth
        return log, (f"{len(log)} steps, loss {first['dpo_loss']:.3f} > {last['dpo_loss']:.3f}, accuracy {last['accuracy']:.2f}, "
                     f"log-prob of chosen {last['chosen_change']:+.1f}, of rejected {last['rejected_change']:+.1f}")

    if not folder.exists():
        (ctx.run / f"t{t}/dpo.jsonl").unlink(missing_ok=True)       # a log without its model says nothing
    stage(ctx, t, "dpo", make)


def examine(ctx: Context, model: GPT, t: int) -> None:
    """One line of metrics.jsonl for M_t, measured on held-out material; nothing reads it but people."""
    path, started = ctx.run / "metrics.jsonl", time.time()
    rows = read_own(path)
    if any(row["t"] == t for row in rows):
        return
    before = [r["true_score"] for r in read_own(ctx.run / f"exam/M{t - 1}.jsonl")]
    figures, answers = measure(model, ctx.chat, ctx.seeds.exam, ctx.sampling("answer"), ctx.sampling("verdict"), k=ctx.config.k,
                               rubric=ctx.rubric, key=f"{ctx.config.seed} exam", before=before)
    write_jsonl(ctx.run / f"exam/M{t}.jsonl", answers)
    figures["pairs"] = len(read_own(ctx.run / f"t{t - 1}/pairs.jsonl")) or None
    figures["seconds"] = sum(r["seconds"] for r in read_own(ctx.run / "log.jsonl") if r["t"] == t - 1 and r["stage"] != "exam")
    write_jsonl(path, rows + [{"model": f"M{t}", "t": t, **figures}])
    ctx.tell(t, "exam", line(figures), started)


# ---- the main flow ----
def self_reward(ctx: Context, base: GPT | None) -> None:
    """The picture at the top of this file, once round for each t."""
    c, run = ctx.config, ctx.run
    if base:
        first_model(ctx, base)                                      # M_0 -> M_1
    for t in range(1, c.iters + 2):
        if (run / f"M{t + 1}").exists() and (run / f"t{t}/dpo.jsonl").exists() and any(row["t"] == t for row in read_own(run / "metrics.jsonl")):
            continue                                                # this trip was made by an earlier, stopped run
        master = load(run / f"M{t}", device=ctx.device)
        model = sampling_copy(master, ctx.dtype)                    # M_t
        examine(ctx, model, t)
        if t <= c.iters:
            prompts = ask(ctx, model, t)                            # {x_i}
            candidates = answer(ctx, model, prompts, t)             # {y_i^1..N}
            scored = judge(ctx, model, candidates, t)               # {r_i^1..N}
            pairs = choose(ctx, scored, t)                          # (x_i, y_w, y_l)
            improve(ctx, master, pairs, t)                          # M_{t+1}; the reference is the frozen M_t
            ctx.say(worked_example(ctx.seeds.exam, scored, pairs[0]))


def run(config: Config, toy: bool, say: Callable[[str], None]) -> list[dict]:
    """The whole run, or what is left of it; returns the rows of the table."""
    started, folder, source = time.time(), Path("runs") / config.run, Path(config.model or SEED)
    metrics = folder / "metrics.jsonl"
    check_run(config, folder)
    if len(read_own(metrics)) > config.iters:
        say(f"{folder} is finished; this is its table. Give --run another name to run again.\n")
    else:
        device, own = pick_device(config.device), source / "rubric.txt"
        ctx = Context(config, folder, Chat(source), read_rubric(config.rubric or (own if own.exists() else None)),
                      gather(config, toy), device, pick_dtype(config.dtype, device), say)
        base = None if (folder / "M1").exists() else load(source, device=device)
        record_run(config, folder, device)          # only now: a mistake in the settings leaves nothing behind
        self_reward(ctx, base)
        say(f"finished in {time.time() - started:.1f} s; files in {folder}\n")
    return read_own(metrics)[:config.iters + 1]


def main() -> None:
    config, extra = parse()
    say = lambda text: print(text, file=sys.stderr if extra.json else sys.stdout, flush=True)
    if extra.make_seed:
        from experiments.make_seed import make_seed                 # not part of the method, so not read with it
        return make_seed(Path(config.model or SEED), say)
    rows = run(config, extra.toy, say)
    print(json.dumps({"run": config.run, "models": rows}) if extra.json else table(rows))


if __name__ == "__main__":
    torch.set_flush_denormal(True)
    command(main)
