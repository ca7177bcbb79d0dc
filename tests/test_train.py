"""The commands as people run them: the whole loop on a tiny budget.

Resumed, refused, and without its truth.
"""

import json
import math
import shlex
import shutil
import subprocess
import sys
from collections import Counter
from itertools import combinations
from pathlib import Path

import pytest
import torch
from conftest import (
    ORDER,
    ROOT,
    TINY,
    assert_refused,
    command,
    forget,
    leaning_gpt,
    write_tokenizer,
)
from transformers import AutoModelForCausalLM, AutoTokenizer

import dpo
import judge
import sample
from core.chat import Chat
from core.checklist import instruction_of, requirements_of
from core.config import FEW_KINDS, Config
from core.device import keep_memory
from core.files import read_json, read_jsonl, write_jsonl
from core.rankings import judge_figures
from core.records import Candidate, by_prompt
from core.statistics import mean
from model import load, save
from worlds import toy
from worlds.open_world import open_world

QUICK = shlex.split("--iters 1 --n-prompts 4 --n 2 --k 1 --seed-limit 8 --exam 4 --batch-size 16")
TIMED = ("config.json", "log.jsonl", "metrics.jsonl", "report.html", "lock")
VARIANTS = "experiments/variants.py"
TEXTS = ["prompts", "responses", "verdicts", "pairs", "dpo"]


@pytest.fixture
def run(finished, cwd) -> Path:
    """A copy of the finished run, to be spoilt."""
    shutil.copytree(finished / "runs", cwd / "runs")
    return cwd / "runs" / "toy"


def results(run: Path) -> dict[str, object]:
    """Everything that a run found out, without what the clock had a hand in."""
    found: dict[str, object] = {}
    for path in run.rglob("*"):
        if path.is_file() and path.name not in TIMED:
            found[str(path.relative_to(run))] = path.read_bytes()
    metrics = read_jsonl(run / "metrics.jsonl")
    for row in metrics:
        row.pop("seconds", None)
    return found | {"metrics": metrics}


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


# ---- the run and its files ----


def test_it_ends_with_a_table(finished):
    """Guards against: code shipped unrun (lucidrains #12-#29), demo output that is garbage."""
    out = (finished / "stdout.txt").read_text()
    assert [line.split()[0] for line in out.splitlines()[-3:]] == ["model", "M1", "M2"]
    assert "chosen" in out and "rejected" in out, "one worked example an iteration"


def test_files_of_a_run(finished):
    """Guards against: files that other tools cannot rely on.

    The list and the keys are those of DESIGN.md.
    """
    run = finished / "runs" / "toy"
    configs = ("config", "tokenizer", "tokenizer_config", "generation_config")
    for name in ("M1", "M2"):
        for config in configs:
            json.loads((run / name / f"{config}.json").read_text())
    rows = {name: read_jsonl(run / "t1" / f"{name}.jsonl") for name in TEXTS}
    assert [r["id"] for r in rows["prompts"]] == list(range(24))
    assert all(set(r) == {"id", "prompt"} for r in rows["prompts"])
    places = [(r["id"], r["sample"]) for r in rows["responses"]]
    assert places == [(i, s) for i in range(24) for s in range(3)]
    response = {"id", "sample", "response", "finished", "tokens"}
    assert all(set(r) == response for r in rows["responses"])
    assert all(set(r) == {"id", "sample", "vote", "text", "score"} for r in rows["verdicts"])
    pair = {"prompt", "chosen", "rejected", "chosen_score", "rejected_score"}
    assert all(set(r) >= pair for r in rows["pairs"])
    steps = {"loss", "margin", "accuracy", "chosen_change", "rejected_change", "lr", "grad_norm"}
    assert all(set(r) >= steps for r in rows["dpo"])
    eft = read_jsonl(run / "t0" / "eft.jsonl")
    assert [set(r) for r in eft] == [{"prompt", "response", "verdict"}] * 200
    ranked = read_jsonl(run / "exam" / "ranked.jsonl")
    assert ranked == toy.held_out_ranked(4), "what judge.py --file takes"
    assert not list(run.rglob("*.tmp"))
    record = json.loads((run / "config.json").read_text())
    assert record["settings"]["n_prompts"] == 24 and record["torch"] == torch.__version__
    assert "commit" in record
    used = record["device"].startswith(("cpu", "cuda", "mps"))
    assert used, "the device that was used, not `auto`"


def test_metrics_keys(finished):
    """Guards against: a table that silently loses a column."""
    rows = read_jsonl(finished / "runs" / "toy" / "metrics.jsonl")
    assert [r["model"] for r in rows] == ["M1", "M2"]
    keys = shlex.split(
        "true_score perfect self_score judge_pairwise judge_interval judge_ties judge_best5 "
        "judge_exact judge_spearman judge_kendall judge_parse_rate finished_rate mean_length pairs "
        "win_rate lose_rate seconds agreement verdict_variance distinct2 margin accuracy "
        "chosen_change rejected_change"
    )
    assert all(set(keys) <= set(r) for r in rows)
    later = ("win_rate", "agreement", "margin", "chosen_change", "pairs", "kl_prev", "kl_first")
    assert all(rows[0][key] is None for key in later)
    steps = read_jsonl(finished / "runs" / "toy" / "t1" / "dpo.jsonl")
    margin = steps[-1]["margin"]
    assert rows[1]["margin"] == margin, "fewer than twenty steps: the last tenth is the last"
    kl = rows[1]["kl_first"]
    assert rows[1]["kl_prev"] == kl > 0, "in the first round the model before is M1"
    pairs = read_jsonl(finished / "runs" / "toy" / "t1" / "pairs.jsonl")
    right = []
    for pair in pairs:
        chosen = toy.oracle(pair["prompt"], pair["chosen"])
        right.append(chosen > toy.oracle(pair["prompt"], pair["rejected"]))
    assert rows[0]["pairs_right"] is None and rows[1]["pairs_right"] == sum(right) / len(right)
    assert 0 < rows[1]["agreement"] <= 1
    assert 0 < rows[1]["distinct2"] <= 1
    assert rows[1]["verdict_variance"] >= 0
    assert rows[1]["pairs"] == len(pairs)
    for row in rows:
        assert 0 <= row["perfect"] <= 1
        assert 0 <= row["true_score"] <= 5
        assert row["seconds"] > 0


def test_each_file_follows_from_the_one_before(finished):
    """Guards against: scores or answers that change hands on the way to a pair.

    Also against: Oxen's answers without their stop token.
    """
    run = finished / "runs" / "toy"
    prompts, responses, verdicts, pairs, steps = (
        read_jsonl(run / "t1" / f"{name}.jsonl") for name in TEXTS
    )
    chat = Chat(run / "M1")
    answers = {(r["id"], r["response"]): r for r in responses if r["finished"]}
    texts = {(r["id"], r["sample"]): r["response"] for r in responses}
    votes: dict = {}
    for v in verdicts:
        text = texts[v["id"], v["sample"]]
        assert (v["id"], text) in answers and judge.parse_score(v["text"]) == v["score"]
        votes.setdefault((v["id"], text), []).append(v["score"])
    for r in responses:
        assert chat.decode(r["tokens"]).strip() == r["response"]
        assert r["finished"] == (r["tokens"][-1] == chat.eos) and chat.eos not in r["tokens"][:-1]
    means = {key: mean(scores) for key, scores in votes.items()}
    rewards = {key: reward for key, reward in means.items() if reward is not None}
    assert all(len(scores) == 2 for scores in votes.values()) and pairs
    for pair in pairs:
        (number,) = (p["id"] for p in prompts if p["prompt"] == pair["prompt"])
        own = [reward for (i, _), reward in rewards.items() if i == number]
        assert pair["chosen_score"] == rewards[number, pair["chosen"]] == max(own)
        assert pair["rejected_score"] == rewards[number, pair["rejected"]] == min(own) < max(own)
    assert steps[0]["dpo_loss"] == pytest.approx(math.log(2), abs=1e-5)


def test_new_prompts_of_a_run_are_new(finished):
    """Guards against: prompts copied from the seed data or, worse, from the held-out ones."""
    written = [r["prompt"] for r in read_jsonl(finished / "runs" / "toy" / "t1" / "prompts.jsonl")]
    assert len(set(written)) == len(written)
    assert not set(written) & set(toy.held_out_prompts(16))


def test_m2_is_a_hugging_face_model(finished):
    """Guards against: a checkpoint that only we can read; DPO that saves what it was given."""
    m1, m2 = (finished / "runs" / "toy" / name for name in ("M1", "M2"))
    assert weights(m1) != weights(m2)
    theirs = AutoModelForCausalLM.from_pretrained(m2, dtype=torch.float32).eval()
    ids = torch.arange(1, 60)[None]
    with torch.no_grad():
        ours = load(m2)
        torch.testing.assert_close(ours.logits(ours(ids)), theirs(ids).logits, atol=1e-4, rtol=0)
    talk = [{"role": "user", "content": "Count up from two to four for Mia."}]
    tokenizer = AutoTokenizer.from_pretrained(m2)
    prompt = tokenizer.apply_chat_template(talk, add_generation_prompt=True, return_dict=False)
    assert prompt == Chat(m2).render(talk)


# ---- resume ----


# M2 stands below; M1 in test_checkpoint.py.
@pytest.mark.parametrize("first", [name for name in ORDER if name != "M2"])
def test_resumed_equals_uninterrupted(finished, run, first):
    """Guards against: a run that starts over (Oxen) or goes on differently (transformers #11323).

    Bit by bit.
    """
    forget(run, first)
    done = command("train.py", *TINY, "--json")
    assert done.code == 0, done.err
    assert results(run) == results(finished / "runs" / "toy")
    models = [row["model"] for row in json.loads(done.out)["models"]]
    assert models == ["M1", "M2"], "stdout is one JSON object"


def test_stopped_between_model_and_log(finished, run):
    """Guards against: a file that a kill at the wrong moment leaves out for ever."""
    forget(run, "exam/M2.jsonl")
    (run / "t1" / "dpo.jsonl").unlink()
    assert command("train.py", *TINY).code == 0
    assert results(run) == results(finished / "runs" / "toy")


def test_half_written_files_are_not_taken_for_whole(finished, run):
    """Guards against: a killed writer's leftovers."""
    forget(run, "M2")
    (run / "M2.tmp").mkdir()
    (run / "M2.tmp" / "model.safetensors").write_bytes(b"half")
    (run / "t1" / "dpo.jsonl.tmp").write_text('{"st')
    (run / "t1" / "dpo.jsonl.new").write_text('{"step": 0}\n')
    (run / "M2.new.tmp").mkdir()
    (run / "M2.new").mkdir()
    (run / "M2.new" / "model.safetensors").write_bytes(b"half")
    assert command("train.py", *TINY).code == 0
    assert results(run) == results(finished / "runs" / "toy")


def test_finished_run_prints_its_table(finished, run, monkeypatch):
    """Guards against: a run that is overwritten by running it again."""

    def never(*_, **__):
        raise AssertionError("a finished run trains and writes nothing")

    monkeypatch.setattr(dpo, "fit", never)
    monkeypatch.setattr(sample, "generate", never)
    done = command("train.py", *TINY)
    assert done.code == 0 and "finished" in done.out
    assert done.out.splitlines()[-3:] == (finished / "stdout.txt").read_text().splitlines()[-3:]
    assert results(run) == results(finished / "runs" / "toy")


def test_one_more_iteration(finished, run):
    """Guards against: --iters that cannot grow, or that makes the earlier models again."""
    done = command("train.py", *TINY, "--iters", 2)
    assert done.code == 0, done.err
    assert [line.split()[0] for line in done.out.splitlines()[-3:]] == ["M1", "M2", "M3"]
    before, after = results(finished / "runs" / "toy"), results(run)
    assert before.pop("metrics") == after["metrics"][:2] and before.items() <= after.items()
    assert weights(run / "M3") != weights(run / "M2")


def test_other_settings_are_refused(finished, run):
    """Guards against: two runs mixed in one directory."""
    before = results(run)
    done = command("train.py", *TINY, "--beta", 0.2, "--k", 3)
    assert_refused(done, "other settings", "beta", "k")
    assert results(run) == before


def test_a_variant_is_another_setting(finished, run):
    """Guards against: a run that two methods made, under the name of one.

    Both ways: a variant goes on with no plain run, and no plain run with a variant's.
    """
    before = results(run)
    assert_refused(command(VARIANTS, "ipo", *TINY), "other settings (variant was ")
    assert results(run) == before
    started = ("--run", "x", "--iters", 0)
    assert command(VARIANTS, "length-control", *QUICK, *started).code == 0
    before = results(run.parent / "x")
    for script in (["train.py"], [VARIANTS, "ipo"], [VARIANTS, "length-control=0.3"]):
        assert_refused(command(*script, *QUICK, *started), "other settings (variant was ")
    assert results(run.parent / "x") == before
    done = command(VARIANTS, "length-control=0.2", *QUICK, *started)
    assert done.code == 0 and "finished" in done.out, "0.2 is the value that is left out above"


# ---- iterations that give nothing ----


ADVICE = {3.0: "The judge gives every answer 3: show it", None: "Most verdicts cannot be read"}


@pytest.mark.parametrize("value", ADVICE, ids=["all tied", "all unreadable"])
def test_iteration_without_pairs(run, monkeypatch, value):
    """Guards against: lucidrains' dataset loop, which never ends.

    Also against: unreadable verdicts dressed up as ties or zeros.
    """
    forget(run, "t1/verdicts.jsonl")
    monkeypatch.setattr(judge, "parse_score", lambda text, label: value)
    finished = Counter(r["id"] for r in read_jsonl(run / "t1" / "responses.jsonl") if r["finished"])
    tied = sum(n > 1 for n in finished.values()) if value else 0
    scored = finished.total() if value else 0
    prompts = f"0 from 24 prompts: {tied} tied, {24 - tied} with fewer than two scores"
    answers = f"of 72 answers {finished.total()} finished, {scored} scored"
    done = command("train.py", *TINY)
    assert_refused(done, "no preference pair", f"{prompts}; {answers}", ADVICE[value])
    assert not (run / "M2").exists() and weights(run / "M1")


def test_iteration_without_a_finished_answer(cwd):
    """Guards against: a message about an empty file where no answer ended within the limit."""
    done = command("train.py", *QUICK, "--max-new-tokens", 1, "--prompts", prompt_file(cwd))
    assert_refused(done, "pair", "raise --max-new-tokens")


def prompt_file(cwd: Path, count: int = 8) -> Path:
    prompts = toy.held_out_prompts(100)[-count:]  # the exams of these runs are shorter
    (cwd / "prompts.txt").write_text("".join(f"{prompt}\n" for prompt in prompts))
    return cwd / "prompts.txt"


# ---- the truth stays outside ----


def test_without_the_oracle_the_weights_are_the_same(finished, cwd, monkeypatch):
    """Guards against: a truth that leaks into training.

    The seed data, labelled beforehand, come from files.
    """
    settings = read_json(finished / "runs" / "toy" / "config.json")["settings"]
    world = open_world(Config(**settings), toy=True)
    write_jsonl(cwd / "ift.jsonl", world.ift)
    write_jsonl(cwd / "eft.jsonl", world.eft)
    monkeypatch.setattr(toy, "oracle", lambda prompt, answer: None)
    monkeypatch.setattr(toy, "points", lambda task, answer: (False,) * 5)
    done = command("train.py", *TINY, "--ift", cwd / "ift.jsonl", "--eft", cwd / "eft.jsonl")
    assert done.code == 0
    known, unknown = (folder / "runs" / "toy" for folder in (finished, cwd))
    metrics, blind_metrics = (read_jsonl(run / "metrics.jsonl") for run in (known, unknown))
    for row, blind in zip(metrics, blind_metrics):
        assert row["true_score"] is not None and blind["true_score"] is None
    for name in ("M1", "M2"):
        assert weights(known / name) == weights(unknown / name)


# ---- a checkpoint of the real layout ----


FEW = shlex.split("--iters 1 --n-prompts 8 --max-new-tokens 12 --max-verdict-tokens 8")


def test_real_layout(cwd, checkpoint, monkeypatch):
    """Guards against: a loop that only knows its toy (lucidrains #10: how to use an HF model).

    Also against: a truth where nobody knows it.
    """
    questions = [{"prompt": f"Question {i}?", "response": f"Answer {i}."} for i in range(16)]
    write_jsonl(cwd / "ift.jsonl", questions)
    ranked = {"responses": ["good", "bad", "ugly"], "ranks": [0, 1, 2]}
    write_jsonl(cwd / "ranked.jsonl", [{"prompt": f"Ask {i}?", **ranked} for i in range(16)])
    monkeypatch.setattr(judge, "parse_score", lambda text, label: float(len(text) % 6))
    people = ("--ift", cwd / "ift.jsonl", "--ranked", cwd / "ranked.jsonl")
    done = command("train.py", "--model", checkpoint, *people, "--prompts", prompt_file(cwd), *FEW)
    assert done.code == 0, done.err
    run = cwd / "runs" / "llama"
    rows = read_jsonl(run / "metrics.jsonl")
    assert [r["true_score"] for r in rows] == [None, None]
    assert all(0 <= r["judge_pairwise"] <= 1 for r in rows)
    ids = torch.arange(50)[None]
    with torch.no_grad():
        ours = load(run / "M2")
        theirs = AutoModelForCausalLM.from_pretrained(run / "M2", dtype=torch.float32).eval()
        torch.testing.assert_close(ours.logits(ours(ids)), theirs(ids).logits, atol=1e-4, rtol=0)
    chatted = command("sample.py", "--model", run / "M2", "--max-new-tokens", 8, "Hello?")
    assert chatted.code == 0 and chatted.out


def test_without_held_out_prompts(cwd, checkpoint, monkeypatch):
    """Guards against: a run that trains M_2 and then trips over its own empty exam.

    (--prompts and --eft, nothing held out.)
    """
    verdict = {"response": "good", "verdict": "Score: 4"}
    write_jsonl(cwd / "eft.jsonl", [{"prompt": f"Ask {i}?", **verdict} for i in range(8)])
    monkeypatch.setattr(judge, "parse_score", lambda text, label: float(len(text) % 6))
    files = ("--eft", cwd / "eft.jsonl", "--prompts", prompt_file(cwd))
    done = command("train.py", "--model", checkpoint, *files, *FEW)
    assert done.code == 0, done.err
    rows = read_jsonl(cwd / "runs" / "llama" / "metrics.jsonl")
    assert [row["model"] for row in rows] == ["M1", "M2"]


# ---- settings that came with the checked world ----


def restarted(run: Path, first: str) -> Path:
    """The run as if it had stopped before `first`. It has no record, so any settings go on."""
    forget(run, first)
    (run / "config.json").unlink()
    return run


def record(run: Path) -> dict:
    return read_json(run / "config.json")["settings"]


def test_near_reaches_the_pairs(finished, run):
    """Guards against: a setting that is recorded and never used.

    --near 0 takes every pair of unequal rewards for wide enough, so no pair is nearer in length.
    """
    restarted(run, "t1/pairs.jsonl")
    assert record(finished / "runs/toy")["near"] is None
    assert command("train.py", *TINY, "--near", 0).code == 0
    assert record(run)["near"] == 0
    rows = {name: read_jsonl(run / f"t1/{name}.jsonl") for name in ("responses", "verdicts")}
    answers = [Candidate(prompt="", **row) for row in rows["responses"]]
    groups = by_prompt(judge.with_rewards(answers, rows["verdicts"]))
    pairs = [pair for pair in (judge.choose_pair(group, 0.0) for group in groups) if pair]
    after = read_jsonl(run / "t1/pairs.jsonl")
    assert [pair.row() | {"prompt": ""} for pair in pairs] == [
        row | {"prompt": ""} for row in after
    ]
    before = read_jsonl(finished / "runs/toy/t1/pairs.jsonl")
    assert [row["id"] for row in before] == [row["id"] for row in after]
    gaps = [sum(abs(row["extra_length"]) for row in rows) for rows in (before, after)]
    assert gaps[1] < gaps[0]
    last = read_jsonl(run / "metrics.jsonl")[-1]
    assert last["pairs_length_gap"] == mean(row["extra_length"] for row in after)
    truths = ("pairs_right", "pairs_wrong", "pairs_equal")
    assert sum(last[name] for name in truths) == pytest.approx(1)
    longer = f"chosen are {last['pairs_length_gap']:+.1f} tokens longer"
    log = read_jsonl(run / "log.jsonl")
    assert [longer in row["told"] for row in log if row["stage"] == "pairs"][-1]


def test_exam_n_reaches_the_exam(run):
    """Guards against: several answers that are one answer several times, or in another order."""
    restarted(run, "exam/M1.jsonl")
    assert command("train.py", *TINY, "--iters", 0, "--exam-n", 3).code == 0
    assert record(run)["exam_n"] == 3
    answers = read_jsonl(run / "exam/M1.jsonl")
    assert [(row["id"], row["sample"]) for row in answers] == [
        (i, s) for i in range(16) for s in range(3)
    ]
    assert len({row["response"] for row in answers}) > 16
    assert [row["prompt"] for row in answers[::3]] == toy.held_out_prompts(16)
    [figures] = read_jsonl(run / "metrics.jsonl")
    assert figures["true_score"] == mean(row["true_score"] for row in answers)
    assert figures["mean_length"] == mean(len(row["tokens"]) for row in answers)
    low, high = figures["judge_own_interval"]
    assert 0 <= low <= figures["judge_own"] <= high <= 1
    signs = []  # of every two answers to a prompt: do reward and truth order them alike?
    for start in range(0, 48, 3):
        for one, other in combinations(answers[start : start + 3], 2):
            truth = one["true_score"] - other["true_score"]
            scores = (one["self_score"], other["self_score"])
            if truth:
                signs.append(None not in scores and truth * (scores[0] - scores[1]) > 0)
    assert figures["judge_own"] == pytest.approx(mean(signs)) and len(signs) > 5


def people_files(cwd: Path) -> tuple:
    """Instructions with answers of 5 to 60 words, and ranked answers."""
    questions = []
    for i in range(20):
        answer = f"The answer to question {i} is long enough. It has two sentences, and a comma."
        questions.append({"prompt": f"Tell me about thing {i}.", "response": answer})
    write_jsonl(cwd / "ift.jsonl", questions)
    ranked = {"responses": ["good", "bad", "ugly"], "ranks": [0, 1, 2]}
    write_jsonl(cwd / "ranked.jsonl", [{"prompt": f"Ask {i}?", **ranked} for i in range(20)])
    return ("--ift", cwd / "ift.jsonl", "--ranked", cwd / "ranked.jsonl")


def test_eft_limit_reaches_the_judge_data(cwd, checkpoint):
    """Guards against: judge data that the instruction data's limit cuts."""
    few = ("--iters", 0, "--exam", 2, "--max-new-tokens", 4, "--judge", "expected")
    people = ("--model", checkpoint, *people_files(cwd), *few)
    for name, limit, count in [("x", [], 6), ("y", ["--eft-limit", 20], 20)]:
        done = command("train.py", *people, "--seed-limit", 6, *limit, "--run", name)
        assert done.code == 0, done.err
        assert len(read_jsonl(cwd / f"runs/{name}/t0/eft.jsonl")) == count
        assert f"6 answers and {count} verdicts" in done.out
    assert record(cwd / "runs/x")["eft_limit"] is None
    assert record(cwd / "runs/y")["eft_limit"] == 20


@pytest.fixture
def yes_or_no(cwd) -> Path:
    """A random llama with ChatML that says yes or no, and ends half of its answers soon."""
    folder = write_tokenizer(cwd / "llama")
    chat = Chat(folder)
    likely = {chat.tokenizer.token_to_id(letter): 9 for letter in "yn"} | {1: 9}
    save(leaning_gpt(likely, model_type="llama", max_position_embeddings=2048), folder)
    return folder


def test_a_checked_run(cwd, yes_or_no, monkeypatch):
    """Guards against: a checked world whose requirements, judge or truth a run does not use.

    Also against: other defaults than --help tells.
    """
    rubrics, real = [], judge.judge_text

    def judge_text(rubric: str, prompt: str, response: str) -> str:
        rubrics.append(rubric)
        return real(rubric, prompt, response)

    monkeypatch.setattr(judge, "judge_text", judge_text)
    (cwd / "prompts.txt").write_text("".join(f"Say something about {i}.\n" for i in range(12)))
    small = "--iters 1 --n-prompts 12 --n 4 --seed-limit 8 --eft-limit 16 --exam 6 --exam-n 2"
    sizes = ("--max-new-tokens", 12, "--replay", 4, "--sft-lr", 1e-6, "--dpo-lr", 1e-6)
    args = ("--model", yes_or_no, "--world", "checked", *people_files(cwd), *shlex.split(small))
    done = command("train.py", *args, *sizes, "--prompts", cwd / "prompts.txt")
    assert done.code == 0, done.err
    folder = cwd / "runs/llama"
    settings = record(folder)
    wanted = {"world": "checked", "judge": "checklist", "near": 0.7, "beta": 0.1, "nll": 2.0}
    wanted |= {"kinds": FEW_KINDS, "confident": 0.75, "n_prompts": 12}
    assert {name: settings[name] for name in wanted} == wanted
    # the world's requirements in seed data, judge data, new prompts and the exam
    eft = read_jsonl(folder / "t0/eft.jsonl")
    assert len(eft) == 16 and {row["verdict"] for row in eft} == {"yes", "no"}
    prompts = [row["prompt"] for row in read_jsonl(folder / "t1/prompts.jsonl")]
    instructions = [instruction_of(prompt) for prompt in prompts]
    assert instructions == [f"Say something about {i}." for i in range(12)]
    assert all(requirements_of(prompt) for prompt in prompts) and len(set(prompts)) == 12
    exam = read_jsonl(folder / "exam/M2.jsonl")
    assert len(exam) == 12 and all(requirements_of(row["prompt"]) for row in exam)
    # the judge asks for each of them, and the pairs follow from it
    assert set(rubrics) == {judge.QUESTION}, "what it learns is what it is asked"
    for verdict in read_jsonl(folder / "t1/verdicts.jsonl"):
        assert len(verdict["yes"]) == len(requirements_of(prompts[verdict["id"]]))
    pairs = read_jsonl(folder / "t1/pairs.jsonl")
    assert pairs and all(0 < pair["rejected_score"] < pair["chosen_score"] < 5 for pair in pairs)
    # the truth has parts
    first, last = read_jsonl(folder / "metrics.jsonl")
    assert first["kinds"].keys() == last["kinds"].keys() <= {*FEW_KINDS.split(",")}
    assert all(0 <= share <= 1 for share in last["kinds"].values())
    assert 0 <= last["true_score"] <= 5 and last["judge_parse_rate"] > 0.5
    for t in (1, 2):
        for group in read_jsonl(folder / f"exam/own-M{t}.jsonl"):
            assert len(group["responses"]) == len(group["ranks"]) == len(group["kinds"]) == 2
    by_own_judge = ("judge.py", "--model", folder / "M2", "--judge", "checklist", "--json")
    own = json.loads(command(*by_own_judge, "--file", folder / "exam/own-M2.jsonl").out)
    assert own["kinds"].keys() <= last["kinds"].keys()


def test_the_toy_is_no_checked_world(cwd):
    """Guards against: a setting that is obeyed by half."""
    assert_refused(command("train.py", "--world", "checked"), "--world checked", "--model DIR")
    assert_refused(command("train.py", "--near", -0.1), "--near must be at least 0")
    assert_refused(command("train.py", "--confident", 0), "--confident must be at least 0.01")
    assert_refused(command("train.py", "--confident", 1.5), "--confident must be at most 1")
    assert_refused(command("train.py", "--confident", "nan"), "--confident must be at least 0.01")
    assert not (cwd / "runs").exists()


# ---- bad input (tests/test_bad_inputs.py has the table) ----


@pytest.mark.parametrize(
    "args", [["--no-such-flag"], ["--n", "four"], ["--iter", "1"], ["word"]], ids=str
)
def test_unknown_arguments(cwd, args):
    """Guards against: typos obeyed as the default (nano-vllm).

    Also against: abbreviations that change meaning.
    """
    done = command("train.py", *args)
    assert done.code == 2 and "usage" in done.err and not (cwd / "runs").exists()


def test_real_exit_code(cwd):
    """Guards against: all of the above being true only inside this test."""
    args = [sys.executable, str(ROOT / "train.py"), "--model", "nowhere"]
    done = subprocess.run(args, cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr


def test_a_refused_start_does_not_spoil_the_name(cwd):
    """Guards against: a typo recorded as the run's settings.

    Then the corrected command is refused too.
    """
    assert command("train.py", *QUICK, "--dtype", "fp16").code == 2
    done = command("train.py", *QUICK, "--dtype", "fp32", "--ift", "nowhere.jsonl")
    assert_refused(done, "nowhere.jsonl")


def test_help_names_every_flag():
    """Guards against: settings that cannot be found."""
    done = command("train.py", "--help")
    flags = shlex.split(
        "--model --run --iters --seed --n-prompts --n --k --ift --oasst --lang --eft --ranked "
        "--eft-style --prompts --rubric --judge --temperature --top-p --sft-weight --beta --tokens "
        "--recompute --slots --device --dtype --json"
    )
    assert done.code == 0 and all(f in done.out for f in flags)


def test_a_libc_without_mallopt(monkeypatch):
    """Guards against: a command that needs glibc; musl, macOS and Windows have no mallopt."""

    def no_libc(name):
        raise OSError("no libc")

    for broken in (lambda name: object(), no_libc):
        monkeypatch.setattr("ctypes.CDLL", broken)
        keep_memory()


def test_memory_that_is_given_back(monkeypatch):
    """Guards against: a setting of glibc's that the program undoes."""
    calls = []
    monkeypatch.setattr("core.device.glibc_call", lambda *call: calls.append(call))
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "1000000")
    keep_memory()
    assert not calls
    monkeypatch.delenv("MALLOC_MMAP_THRESHOLD_")
    keep_memory()
    assert len(calls) == 2


# ---- the other commands ----


def test_ask(finished):
    """Guards against: a question that cannot be asked.

    Also against: an answer that changes from call to call or shows its control tokens.
    """
    model = finished / "runs" / "toy" / "M2"
    ask = ("sample.py", "--model", model, "Count up from two to four for Mia.")
    one, other = command(*ask), command(*ask)
    assert one.code == 0 and one.out.strip() and one.out == other.out
    assert "<|" not in one.out and "Count up" not in one.out
    greedy = [command(*ask, "--temperature", 0, "--seed", s).out for s in (1, 2)]
    assert greedy[0] == greedy[1]


def test_chat():
    """Guards against: an interactive chat that ends in a traceback."""
    questions = "Count up from two to four for Mia.\n\nSpell cat for Bob.\n"
    done = command("sample.py", "--model", ROOT / "seed", stdin=questions)
    assert done.code == 0 and done.out.count(">") >= 3


def test_judge_one(finished):
    """Guards against: votes that are averaged but never shown."""
    answer = ("--prompt", "Spell cat for Mia.", "--response", "Mia: c, a, t.")
    args = ("judge.py", "--model", finished / "runs" / "toy" / "M1", *answer, "--k", 4)
    shown, done = command(*args), command(*args, "--json")
    assert shown.code == 0 and shown.out.count("verdict") == 4 and "mean" in shown.out
    report = json.loads(done.out)
    scores = [v["score"] for v in report["verdicts"]]
    assert len(scores) == 4 and report["reward"] == mean(scores)
    assert scores == [judge.parse_score(v["text"]) for v in report["verdicts"]]
    assert all(v["text"] in shown.out for v in report["verdicts"])


def test_judge_file(finished, cwd):
    """Guards against: an accuracy that nobody can recompute."""
    groups = toy.held_out_ranked(6)
    write_jsonl(cwd / "ranked.jsonl", groups)
    args = ("judge.py", "--model", finished / "runs" / "toy" / "M1", "--file", cwd / "ranked.jsonl")
    shown, report = command(*args), json.loads(command(*args, "--json").out)
    assert shown.code == 0 and "pairwise accuracy" in shown.out
    ranks = [group["ranks"] for group in groups]
    assert report["judge_pairwise"] == judge_figures(report["rewards"], ranks)["judge_pairwise"]
    assert 0 <= report["judge_parse_rate"] <= 1


@pytest.mark.parametrize(
    "script, args",
    [
        ("sample.py", ["--model", "nowhere", "Hello?"]),
        ("sample.py", ["--model", ROOT / "seed", "word " * 2000]),
        ("judge.py", ["--model", "nowhere", "--prompt", "a", "--response", "b"]),
        ("judge.py", ["--model", ROOT / "seed"]),
        ("judge.py", ["--model", ROOT / "seed", "--file", "nowhere.jsonl"]),
        ("judge.py", ["--model", ROOT / "seed", "--prompt", "a"]),
    ],
    ids=str,
)
def test_bad_input_elsewhere(cwd, script, args):
    """Guards against: the same, for the other commands."""
    assert_refused(command(script, *args))
