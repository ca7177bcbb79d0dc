"""train.py: the loop.

     new prompts      M_t answers         M_t judges           select           DPO
       {x_i}  -->  {y_i^1 .. y_i^N}  -->  {r_i^1 .. r_i^N}  -->  {x, y_w, y_l}  -->  M_{t+1}

In: a base model M_0 and a little seed data.  Out: runs/NAME with M1 .. M_{T+1}, every text, score and pair, and a table.
Each stage reads the files of the stage before and writes its own, whole or not at all, so a run that stopped goes on
at the first stage whose file is missing. Without --model this is the toy: the base model in seed/, a world whose truth
is known, about a minute on two cores.

    python train.py --iters 3
    python train.py --model DIR --ift ift.jsonl --ranked ranked.jsonl --iters 1
"""
import argparse
import json
import platform
import random
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from zlib import crc32

import torch

import world
from data import (TRAVELS, Candidate, Chat, Example, Pair, drop_long, eft_from_ranked, read_json, read_jsonl, read_prompts,
                  read_ranked, read_texts, write_jsonl, write_whole)
from dpo import Recipe, dpo, sft
from evaluate import Exam, line, measure, table, true_score
from judge import attach, choose_pairs, judge_example, read_rubric, score
from model import GPT, UserError, load, pick_device, pick_dtype, save
from sample import Sampling, new_prompts, respond, sampling_copy

SEED = Path(__file__).parent / "seed"
# The toy needs other numbers than a 70B model: a hundred times smaller data, weights that may move much further.
TOY = dict(n_prompts=1024, temperature=1.0, prompt_temperature=1.0, top_p=0.9, max_new_tokens=40, max_verdict_tokens=32,
           sft_lr=2e-3, sft_epochs=1, dpo_lr=5e-4, dpo_epochs=2, batch_size=32, dropout=0.0, replay=16, rouge=1.0,
           tokens=4096, slots=512, exam=400, seed_limit=2000, dtype="fp32")


def setting(default, text: str):
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class Config:
    """Every setting: this is the command line, its --help, and the record in config.json. Defaults follow the paper."""

    model: str = setting(str(SEED), "base model M_0, a Hugging Face directory (default: the toy model in seed/)")
    run: str = setting("", "name of the run; its files go to runs/NAME (default: the model's name, toy for seed/)")
    iters: int = setting(3, "trips round the loop; 3 make M_2, M_3 and M_4")
    seed: int = setting(0, "names all randomness; the same seed draws the same texts")
    n_prompts: int = setting(256, "new prompts an iteration")
    n: int = setting(4, "answers to each prompt")
    k: int = setting(3, "verdicts on each answer; their mean is its reward")
    ift: str = setting("", 'instruction data for SFT, JSONL of {"prompt", "response"}')
    eft: str = setting("", 'judge data for SFT, JSONL of {"prompt", "response", "verdict"}')
    ranked: str = setting("", 'ranked answers, JSONL of {"prompt", "responses", "ranks"}: judge data, and a fifth held out to test it')
    prompts: str = setting("", "take new prompts from this file instead of letting the model write them")
    rubric: str = setting("", "judge prompt, a text with {prompt} and {response} (default: the model's rubric.txt, or the built-in)")
    temperature: float = setting(0.7, "of answers")
    top_p: float = setting(0.9, "of everything that is sampled")
    judge_temperature: float = setting(0.7, "of verdicts")
    prompt_temperature: float = setting(0.6, "of new prompts")
    rouge: float = setting(0.7, "refuse a new prompt whose ROUGE-L with an earlier one reaches this; 1 refuses copies only")
    max_new_tokens: int = setting(192, "limit of an answer or a prompt")
    max_verdict_tokens: int = setting(192, "limit of a verdict")
    seed_limit: int = setting(400, "at most this many IFT and this many EFT examples; 0 takes all")
    sft_epochs: int = setting(1, "passes over the seed data")
    sft_lr: float = setting(5.5e-6, "peak learning rate of SFT; it falls to a fifth")
    beta: float = setting(0.1, "of DPO: how dearly it pays to leave the reference M_t")
    dpo_epochs: int = setting(1, "passes over the pairs")
    dpo_lr: float = setting(1e-6, "peak learning rate of DPO; it falls to a tenth")
    batch_size: int = setting(16, "examples or pairs a step")
    dropout: float = setting(0.1, "on the residual branches, in training")
    replay: int = setting(0, "judge examples of the seed data mixed into each DPO step, so that judging is not forgotten")
    tokens: int = setting(2048, "tokens of one forward and backward pass; lower it when memory is short")
    slots: int = setting(64, "texts written side by side")
    exam: int = setting(32, "held-out prompts and held-out groups of ranked answers that each model is measured on")
    device: str = setting("auto", "auto, cpu, cuda or mps")
    dtype: str = setting("auto", "arithmetic: auto, fp32 or bf16; weights stay fp32")


def parse() -> tuple[Config, argparse.Namespace]:
    """The command line. What was not given comes from TOY for a model of the toy world, else from Config."""
    parser = argparse.ArgumentParser(description="Self-Rewarding Language Models: answer, judge, choose, DPO, and round again.",
                                     allow_abbrev=False)
    for f in fields(Config):
        toy = f" (toy: {TOY[f.name]})" if f.name in TOY else ""
        parser.add_argument("--" + f.name.replace("_", "-"), type=type(f.default), default=argparse.SUPPRESS,
                            help=f"{f.metadata['help']} [{Path(f.default).name if f.name == 'model' else f.default}]{toy}")
    parser.add_argument("--json", action="store_true", help="print the table as one JSON object, and everything else to stderr")
    parser.add_argument("--make-seed", action="store_true", help="train the toy base model from scratch into --model, and stop")
    given = vars(parser.parse_args())
    extra = argparse.Namespace(json=given.pop("json"), make_seed=given.pop("make_seed"))
    folder = Path(given.get("model", SEED))
    is_toy = read_json(folder / "config.json").get("world") == "toy"
    given.setdefault("run", "toy" if folder == SEED else folder.resolve().name)
    return Config(**{**(TOY if is_toy else {}), **given}), extra


# ---- the run directory ----

def open_run(config: Config) -> Path:
    """runs/NAME with its config.json. Raises UserError where it was made with other settings."""
    run = Path("runs") / config.run
    settings = {k: v for k, v in asdict(config).items() if k not in ("iters", "device")}
    before = read_json(run / "config.json").get("settings", settings)
    changed = sorted(k for k in {*before, *settings} if before.get(k) != settings.get(k) and k not in ("iters", "device"))
    if changed:
        raise UserError(f"{run} was made with other settings ({', '.join(changed)}); give --run another name or delete it.")
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=SEED.parent, capture_output=True, text=True).stdout.strip()
    record = {"settings": asdict(config), "python": platform.python_version(), "torch": torch.__version__,
              "threads": torch.get_num_threads(), "machine": platform.machine(), "commit": commit or None}
    write_whole(run / "config.json", json.dumps(record, indent=2) + "\n")
    return run


def save_model(model: GPT, source: Path, target: Path) -> None:
    """A whole HF directory, weights and what travels along, or nothing."""
    temporary = target.with_name(target.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    save(model, temporary)
    for name in TRAVELS:
        if (source / name).exists():
            shutil.copy(source / name, temporary / name)
    temporary.rename(target)


@dataclass(frozen=True)
class Seeds:
    """What people gave: examples to learn from, prompts to imitate, and an exam that training never sees."""

    ift: Sequence[dict]
    eft: Sequence[dict]
    prompts: Sequence[str]
    exam: Exam


def held_out(prompt: str) -> bool:
    """A fifth of all prompts, told by a checksum of the text, so that the split never moves."""
    return crc32(prompt.encode()) % 5 == 0


def gather(config: Config, toy: bool) -> Seeds:
    """The seed data: files, and for the toy what its people wrote."""
    limit = config.seed_limit or None
    rng = random.Random(f"people {config.seed}")
    ift = read_texts(config.ift, "prompt", "response") if config.ift else world.ift_examples(limit, rng) if toy else []
    eft = read_texts(config.eft, "prompt", "response", "verdict") if config.eft else world.eft_examples(limit, rng) if toy else []
    if toy:
        exam = Exam(world.held_out_prompts(config.exam), world.held_out_ranked(config.exam // 4), world.oracle)
        return Seeds(ift[:limit], eft[:limit], [r["prompt"] for r in ift], exam)
    groups = read_ranked(config.ranked) if config.ranked else []
    eft = eft + eft_from_ranked([g for g in groups if not held_out(g["prompt"])])
    texts = [r["prompt"] for r in ift] or [g["prompt"] for g in groups]
    if not texts and not config.prompts:
        raise UserError("there is nothing to start from: give --ift, --ranked or --prompts.")
    exam = Exam([p for p in texts if held_out(p)][:config.exam], [g for g in groups if held_out(g["prompt"])][:config.exam])
    rng.shuffle(eft)
    ift = [r for r in ift if not held_out(r["prompt"])]
    return Seeds(ift[:limit], eft[:limit], [p for p in texts if not held_out(p)], exam)


# ---- the stages: each is a function of the settings and the files so far ----

@dataclass(frozen=True)
class Context:
    """What every stage needs to know."""

    config: Config
    run: Path
    chat: Chat
    rubric: str
    seeds: Seeds
    device: torch.device
    dtype: torch.dtype
    say: Callable[[str], None]

    def sampling(self, kind: str) -> Sampling:
        c = self.config
        temperature = {"prompt": c.prompt_temperature, "answer": c.temperature, "verdict": c.judge_temperature}[kind]
        return Sampling(c.max_verdict_tokens if kind == "verdict" else c.max_new_tokens, temperature, c.top_p, slots=c.slots)

    def recipe(self, **own) -> Recipe:
        c = self.config
        return Recipe(batch_size=c.batch_size, dropout=c.dropout, tokens=c.tokens, dtype=self.dtype, **own)

    def tell(self, t: int, stage: str, told: str, started: float) -> None:
        """One line for people, and one in log.jsonl."""
        seconds = time.time() - started
        self.say(f"M{t} | {stage:<9} | {told} | {seconds:.1f} s")
        with open(self.run / "log.jsonl", "a", encoding="utf-8") as log:
            log.write(json.dumps({"t": t, "stage": stage, "seconds": round(seconds, 3), "told": told}) + "\n")

    def judge_examples(self) -> list[Example]:
        return [judge_example(self.chat, self.rubric, row) for row in self.seeds.eft]


def stage(ctx: Context, t: int, name: str, make: Callable[[], tuple[list[dict], str]]) -> list[dict]:
    """The rows of one stage: from its file where there is one, else made, written and told in one line.

    Every stage goes on from these rows, so a run that was stopped cannot differ from one that was not.
    """
    path, started = ctx.run / f"t{t}/{name}.jsonl", time.time()
    if not path.exists():
        rows, told = make()
        write_jsonl(path, rows)
        ctx.tell(t, name, told, started)
    return read_jsonl(path)


def first_model(ctx: Context) -> None:
    """M_0 -> M_1: SFT on instruction and judge examples; without seed data M_1 is M_0."""
    c, source, started = ctx.config, Path(ctx.config.model), time.time()
    model = load(source, device=ctx.device)
    examples = [ctx.chat.example(r["prompt"], r["response"]) for r in ctx.seeds.ift] + ctx.judge_examples()
    examples = drop_long(examples, model.config.max_position_embeddings, ctx.say)
    told = "no seed data, so M1 is the base model"
    if examples:
        log = sft(model, examples, ctx.recipe(epochs=c.sft_epochs, lr=c.sft_lr, lr_end=c.sft_lr / 5, seed=c.seed))
        write_jsonl(ctx.run / "sft.jsonl", log)
        told = (f"{len(ctx.seeds.ift)} answers and {len(ctx.seeds.eft)} verdicts, {len(log)} steps, "
                f"loss {log[0]['loss']:.3f} > {log[-1]['loss']:.3f}")
    save_model(model, source, ctx.run / "M1")
    ctx.tell(0, "sft", told, started)


def ask(ctx: Context, model: GPT, t: int) -> list[str]:
    """{x_i}: prompts written by M_t itself, or taken from --prompts."""
    c = ctx.config

    def make() -> tuple[list[dict], str]:
        refused: Counter = Counter()
        if c.prompts:
            found = read_prompts(c.prompts)[(t - 1) * c.n_prompts:t * c.n_prompts]
            if len(found) < c.n_prompts:
                raise UserError(f"{c.prompts} has too few prompts for iteration {t}: it needs {t * c.n_prompts}, or lower --n-prompts.")
        else:
            found, refused = new_prompts(model, ctx.chat, ctx.seeds.prompts, c.n_prompts, ctx.sampling("prompt"),
                                         key=f"{c.seed} prompts {t}", rouge=c.rouge, exclude=ctx.seeds.exam.prompts)
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
        raise UserError(f"M{t} gave no preference pair ({told}), so there is nothing to learn from; the last good model is "
                        f"{ctx.run}/M{t}. Give it judge examples (--eft, --ranked), more prompts or more answers.")
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
        log = dpo(model, rows, ctx.recipe(epochs=c.dpo_epochs, lr=c.dpo_lr, lr_end=c.dpo_lr / 10, seed=1000 * t + c.seed),
                  beta=c.beta, replay=ctx.judge_examples() if c.replay else (), replay_size=c.replay)
        save_model(model, ctx.run / f"M{t}", folder)
        first, last = log[0], log[-1]
        return log, (f"{len(log)} steps, loss {first['dpo_loss']:.3f} > {last['dpo_loss']:.3f}, accuracy {last['accuracy']:.2f}, "
                     f"log-prob of chosen {last['chosen_change']:+.1f}, of rejected {last['rejected_change']:+.1f}")

    if not folder.exists():
        (ctx.run / f"t{t}/dpo.jsonl").unlink(missing_ok=True)       # a log without its model says nothing
    stage(ctx, t, "dpo", make)


def examine(ctx: Context, model: GPT, t: int) -> None:
    """One line of metrics.jsonl for M_t, measured on held-out material; nothing reads it but people."""
    path = ctx.run / "metrics.jsonl"
    rows = read_jsonl(path) if path.exists() else []
    if any(row["t"] == t for row in rows):
        return
    started, earlier, made = time.time(), ctx.run / f"exam/M{t - 1}.jsonl", ctx.run / f"t{t - 1}/pairs.jsonl"
    before = [r["true_score"] for r in read_jsonl(earlier)] if earlier.exists() else None
    figures, answers = measure(model, ctx.chat, ctx.seeds.exam, ctx.sampling("answer"), ctx.sampling("verdict"), k=ctx.config.k,
                               rubric=ctx.rubric, key=f"{ctx.config.seed} exam", before=before)
    write_jsonl(ctx.run / f"exam/M{t}.jsonl", answers)
    figures["pairs"] = len(read_jsonl(made)) if made.exists() else None
    figures["seconds"] = sum(r["seconds"] for r in read_jsonl(ctx.run / "log.jsonl") if r["t"] == t - 1 and r["stage"] != "exam")
    write_jsonl(path, rows + [{"model": f"M{t}", "t": t, **figures}])
    ctx.tell(t, "exam", line(figures), started)


def example(ctx: Context, scored: list[Candidate], pairs: list[Pair]) -> str:
    """One prompt with its N answers, their scores, and which won and lost."""
    pair = pairs[0]
    lines = [f"     example  | {pair.chosen.prompt}"]
    for y in (y for y in scored if y.id == pair.chosen.id):
        mark = "chosen" if y is pair.chosen else "rejected" if y is pair.rejected else ""
        given = "none" if y.reward is None else f"{y.reward:.2f}"
        truth = true_score(ctx.seeds.exam, y)
        known = "" if truth is None else f" (true {truth})"
        lines.append(f"     {mark:>8} | score {given}{known}  {' '.join(y.response.split())[:100]}")
    return "\n".join(lines)


# ---- the main flow ----

def self_reward(ctx: Context) -> None:
    """The picture at the top of this file, once round for each t."""
    c, run = ctx.config, ctx.run
    if not (run / "M1").exists():
        first_model(ctx)                                            # M_0 -> M_1
    for t in range(1, c.iters + 2):
        if (run / f"M{t + 1}").exists() and (run / f"exam/M{t}.jsonl").exists():
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
            ctx.say(example(ctx, scored, pairs))


def run(config: Config, say: Callable[[str], None]) -> list[dict]:
    """The whole run, or what is left of it; returns the rows of the table."""
    started = time.time()
    folder, metrics = open_run(config), Path("runs") / config.run / "metrics.jsonl"
    rows = read_jsonl(metrics) if metrics.exists() else []
    if len(rows) <= config.iters:
        device, source = pick_device(config.device), Path(config.model)
        rubric = config.rubric or (source / "rubric.txt" if (source / "rubric.txt").exists() else None)
        toy = read_json(source / "config.json").get("world") == "toy"
        ctx = Context(config, folder, Chat(source), read_rubric(rubric), gather(config, toy), device, pick_dtype(config.dtype, device), say)
        self_reward(ctx)
        say(f"finished in {time.time() - started:.1f} s; files in {folder}\n")
    else:
        say(f"{folder} is finished; this is its table. Give --run another name to run again.\n")
    return read_jsonl(metrics)[:config.iters + 1]


def main() -> None:
    config, extra = parse()
    out = sys.stderr if extra.json else sys.stdout
    say = lambda text: print(text, file=out, flush=True)
    if extra.make_seed:
        return world.make_seed(Path(config.model), say)
    rows = run(config, say)
    print(json.dumps({"run": config.run, "models": rows}) if extra.json else table(rows))


if __name__ == "__main__":
    torch.set_flush_denormal(True)
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on where it left off.", file=sys.stderr)
        sys.exit(130)
