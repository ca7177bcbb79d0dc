"""The commands as people run them: the whole loop on a tiny budget, resumed, refused, and without its truth."""

import json
import math
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import dpo
import judge
import sample
import train
import world
from config import Config, keep_memory
from conftest import ROOT, TINY, assert_refused, command
from data import Chat, read_json, read_jsonl, write_jsonl
from model import load

QUICK = "--iters 1 --n-prompts 4 --n 2 --k 1 --seed-limit 8 --exam 4 --batch-size 16".split()
TEXTS = ["prompts", "responses", "verdicts", "pairs", "dpo"]


@pytest.fixture
def run(finished, cwd) -> Path:
    """A copy of the finished run, to be spoilt."""
    shutil.copytree(finished / "runs", cwd / "runs")
    return cwd / "runs" / "toy"


def results(run: Path) -> dict[str, object]:
    """Everything that a run found out, without what the clock had a hand in."""
    found: dict[str, object] = {
        str(p.relative_to(run)): p.read_bytes()
        for p in run.rglob("*")
        if p.is_file()
        and p.name not in ("config.json", "log.jsonl", "metrics.jsonl", "report.html")
    }
    return found | {
        "metrics": [
            {k: v for k, v in row.items() if k != "seconds"}
            for row in read_jsonl(run / "metrics.jsonl")
        ]
    }


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


# ---- the run and its files ----


def test_it_ends_with_a_table(finished):
    """Guards against: code shipped unrun (lucidrains #12-#29), demo output that is garbage."""
    out = (finished / "stdout.txt").read_text()
    assert [line.split()[0] for line in out.splitlines()[-3:]] == ["model", "M1", "M2"]
    assert "chosen" in out and "rejected" in out, "one worked example an iteration"


def test_files_of_a_run(finished):
    """Guards against: files that other tools cannot rely on. The list and the keys are those of DESIGN.md."""
    run = finished / "runs" / "toy"
    for name in ("M1", "M2"):
        for file in (
            "config.json",
            "tokenizer.json",
            "tokenizer_config.json",
            "generation_config.json",
        ):
            json.loads((run / name / file).read_text())
    rows = {name: read_jsonl(run / "t1" / f"{name}.jsonl") for name in TEXTS}
    assert [r["id"] for r in rows["prompts"]] == list(range(24)) and all(
        set(r) == {"id", "prompt"} for r in rows["prompts"]
    )
    assert [(r["id"], r["sample"]) for r in rows["responses"]] == [
        (i, s) for i in range(24) for s in range(3)
    ]
    assert all(
        set(r) == {"id", "sample", "response", "finished", "tokens"} for r in rows["responses"]
    )
    assert all(set(r) == {"id", "sample", "vote", "text", "score"} for r in rows["verdicts"])
    assert all(
        set(r) >= {"prompt", "chosen", "rejected", "chosen_score", "rejected_score"}
        for r in rows["pairs"]
    )
    steps = {"loss", "margin", "accuracy", "chosen_change", "rejected_change", "lr", "grad_norm"}
    assert all(set(r) >= steps for r in rows["dpo"])
    assert [set(r) for r in read_jsonl(run / "t0" / "eft.jsonl")] == [
        {"prompt", "response", "verdict"}
    ] * 200
    assert read_jsonl(run / "exam" / "ranked.jsonl") == world.held_out_ranked(4), (
        "what judge.py --file takes"
    )
    assert not list(run.rglob("*.tmp"))
    record = json.loads((run / "config.json").read_text())
    assert record["settings"]["n_prompts"] == 24 and record["torch"] == torch.__version__
    assert "commit" in record and record["device"].startswith(("cpu", "cuda", "mps")), (
        "the device that was used, not `auto`"
    )


def test_metrics_keys(finished):
    """Guards against: a table that silently loses a column."""
    rows = read_jsonl(finished / "runs" / "toy" / "metrics.jsonl")
    assert [r["model"] for r in rows] == ["M1", "M2"]
    keys = {
        "true_score",
        "perfect",
        "self_score",
        "judge_pairwise",
        "judge_interval",
        "judge_ties",
        "judge_best5",
        "judge_exact",
        "judge_spearman",
        "judge_kendall",
        "judge_parse_rate",
        "finished_rate",
        "mean_length",
        "pairs",
        "win_rate",
        "lose_rate",
        "seconds",
        "agreement",
        "verdict_variance",
        "distinct2",
        "margin",
        "accuracy",
        "chosen_change",
        "rejected_change",
    }
    assert all(keys <= set(r) for r in rows)
    assert all(
        rows[0][k] is None
        for k in (
            "win_rate",
            "agreement",
            "margin",
            "chosen_change",
            "pairs",
            "kl_prev",
            "kl_first",
        )
    )
    steps = read_jsonl(finished / "runs" / "toy" / "t1" / "dpo.jsonl")
    assert rows[1]["margin"] == steps[-1]["margin"], (
        "fewer than twenty steps: the last tenth is the last"
    )
    assert rows[1]["kl_prev"] == rows[1]["kl_first"] > 0, (
        "in the first round the model before is M1"
    )
    pairs = read_jsonl(finished / "runs" / "toy" / "t1" / "pairs.jsonl")
    right = [
        world.oracle(p["prompt"], p["chosen"]) > world.oracle(p["prompt"], p["rejected"])
        for p in pairs
    ]
    assert rows[0]["pairs_right"] is None and rows[1]["pairs_right"] == sum(right) / len(right)
    assert (
        0 < rows[1]["agreement"] <= 1
        and 0 < rows[1]["distinct2"] <= 1
        and rows[1]["verdict_variance"] >= 0
    )
    assert rows[1]["pairs"] == len(read_jsonl(finished / "runs" / "toy" / "t1" / "pairs.jsonl"))
    assert all(
        0 <= r["perfect"] <= 1 and 0 <= r["true_score"] <= 5 and r["seconds"] > 0 for r in rows
    )


def test_each_file_follows_from_the_one_before(finished):
    """Guards against: scores or answers that change hands on the way to a pair; Oxen's answers without their stop token."""
    run = finished / "runs" / "toy"
    prompts, responses, verdicts, pairs, steps = (
        read_jsonl(run / "t1" / f"{name}.jsonl") for name in TEXTS
    )
    chat = Chat(run / "M1")
    answers = {(r["id"], r["response"]): r for r in responses if r["finished"]}
    votes: dict = {}
    for v in verdicts:
        text = next(
            r["response"] for r in responses if (r["id"], r["sample"]) == (v["id"], v["sample"])
        )
        assert (v["id"], text) in answers and judge.parse_score(v["text"]) == v["score"]
        votes.setdefault((v["id"], text), []).append(v["score"])
    for r in responses:
        assert chat.decode(r["tokens"]).strip() == r["response"]
        assert r["finished"] == (r["tokens"][-1] == chat.eos) and chat.eos not in r["tokens"][:-1]
    rewards = {
        key: judge.mean(given) for key, given in votes.items() if judge.mean(given) is not None
    }
    assert all(len(given) == 2 for given in votes.values()) and pairs
    for pair in pairs:
        (id,) = (p["id"] for p in prompts if p["prompt"] == pair["prompt"])
        own = [reward for (i, _), reward in rewards.items() if i == id]
        assert pair["chosen_score"] == rewards[id, pair["chosen"]] == max(own)
        assert pair["rejected_score"] == rewards[id, pair["rejected"]] == min(own) < max(own)
    assert steps[0]["dpo_loss"] == pytest.approx(math.log(2), abs=1e-5)


def test_new_prompts_of_a_run_are_new(finished):
    """Guards against: prompts copied from the seed data or, worse, from the held-out ones."""
    written = [r["prompt"] for r in read_jsonl(finished / "runs" / "toy" / "t1" / "prompts.jsonl")]
    assert len(set(written)) == len(written)
    assert not set(written) & set(world.held_out_prompts(16))


def test_m2_is_a_hugging_face_model(finished):
    """Guards against: a checkpoint that only we can read; DPO that saves what it was given."""
    m1, m2 = (finished / "runs" / "toy" / name for name in ("M1", "M2"))
    assert weights(m1) != weights(m2)
    theirs, ids = (
        AutoModelForCausalLM.from_pretrained(m2, dtype=torch.float32).eval(),
        torch.arange(1, 60)[None],
    )
    with torch.no_grad():
        ours = load(m2)
        torch.testing.assert_close(ours.logits(ours(ids)), theirs(ids).logits, atol=1e-4, rtol=0)
    talk = [{"role": "user", "content": "Count up from two to four for Mia."}]
    tokenizer = AutoTokenizer.from_pretrained(m2)
    assert tokenizer.apply_chat_template(
        talk, add_generation_prompt=True, return_dict=False
    ) == Chat(m2).render(talk)


# ---- resume ----

ORDER = [
    "exam/M1.jsonl",
    "t1/prompts.jsonl",
    "t1/responses.jsonl",
    "t1/verdicts.jsonl",
    "t1/pairs.jsonl",
    "M2",
    "exam/M2.jsonl",
]


def forget(run: Path, first: str) -> None:
    """The run as if it had been killed while it made `first`."""
    for name in ORDER[ORDER.index(first) :]:
        shutil.rmtree(run / name) if (run / name).is_dir() else (run / name).unlink()
    if not (run / "M2").exists():
        (run / "t1" / "dpo.jsonl").unlink()
    rows = [
        r
        for r in read_jsonl(run / "metrics.jsonl")
        if (run / "exam" / f"{r['model']}.jsonl").exists()
    ]
    write_jsonl(run / "metrics.jsonl", rows) if rows else (run / "metrics.jsonl").unlink()


@pytest.mark.parametrize(
    "first", [name for name in ORDER if name != "M2"]
)  # that one stands below; M1 in test_checkpoint.py
def test_resumed_equals_uninterrupted(finished, run, first):
    """Guards against: a run that starts over (Oxen) or goes on differently (transformers #11323). Bit by bit."""
    forget(run, first)
    done = command("train.py", *TINY, "--json")
    assert done.code == 0, done.err
    assert results(run) == results(finished / "runs" / "toy")
    assert [row["model"] for row in json.loads(done.out)["models"]] == ["M1", "M2"], (
        "stdout is one JSON object"
    )


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
    assert_refused(
        command("train.py", *TINY, "--beta", 0.2, "--k", 3), "other settings", "beta", "k"
    )
    assert results(run) == before


# ---- iterations that give nothing ----


@pytest.mark.parametrize("value", [3.0, None], ids=["all tied", "all unreadable"])
def test_iteration_without_pairs(run, monkeypatch, value):
    """Guards against: lucidrains' dataset loop, which never ends; unreadable verdicts dressed up as ties or zeros."""
    forget(run, "t1/verdicts.jsonl")
    monkeypatch.setattr(judge, "parse_score", lambda text: value)
    finished = Counter(r["id"] for r in read_jsonl(run / "t1" / "responses.jsonl") if r["finished"])
    tied = sum(n > 1 for n in finished.values()) if value else 0
    assert_refused(
        command("train.py", *TINY),
        "no preference pair",
        f"0 from 24 prompts: {tied} tied, {24 - tied} with fewer than two "
        f"scores; of 72 answers {finished.total()} finished, {finished.total() if value else 0} scored",
    )
    assert not (run / "M2").exists() and weights(run / "M1")


def test_iteration_without_a_finished_answer(cwd):
    """Guards against: a message about an empty file where no answer ended within the limit."""
    assert_refused(
        command("train.py", *QUICK, "--max-new-tokens", 1, "--prompts", prompt_file(cwd)), "pair"
    )


def prompt_file(cwd: Path, count: int = 8) -> Path:
    (cwd / "prompts.txt").write_text("".join(f"{p}\n" for p in world.held_out_prompts(count)))
    return cwd / "prompts.txt"


# ---- the truth stays outside ----


def test_without_the_oracle_the_weights_are_the_same(finished, cwd, monkeypatch):
    """Guards against: a truth that leaks into training. The seed data, labelled beforehand, come from files."""
    settings = read_json(finished / "runs" / "toy" / "config.json")["settings"]
    seeds = train.gather(Config(**settings), True)
    write_jsonl(cwd / "ift.jsonl", seeds.ift)
    write_jsonl(cwd / "eft.jsonl", seeds.eft)
    monkeypatch.setattr(world, "oracle", lambda prompt, answer: None)
    monkeypatch.setattr(world, "points", lambda task, answer: (False,) * 5)
    assert (
        command("train.py", *TINY, "--ift", cwd / "ift.jsonl", "--eft", cwd / "eft.jsonl").code == 0
    )
    known, unknown = (folder / "runs" / "toy" for folder in (finished, cwd))
    for row, blind in zip(
        read_jsonl(known / "metrics.jsonl"), read_jsonl(unknown / "metrics.jsonl")
    ):
        assert row["true_score"] is not None and blind["true_score"] is None
    for name in ("M1", "M2"):
        assert weights(known / name) == weights(unknown / name)


# ---- a checkpoint of the real layout ----


def test_real_layout(cwd, checkpoint, monkeypatch):
    """Guards against: a loop that only knows its toy (lucidrains #10: how to use an HF model); a truth where nobody knows it."""
    write_jsonl(
        cwd / "ift.jsonl",
        [{"prompt": f"Question {i}?", "response": f"Answer {i}."} for i in range(16)],
    )
    ranked = {"responses": ["good", "bad", "ugly"], "ranks": [0, 1, 2]}
    write_jsonl(cwd / "ranked.jsonl", [{"prompt": f"Ask {i}?", **ranked} for i in range(16)])
    monkeypatch.setattr(judge, "parse_score", lambda text: float(len(text) % 6))
    done = command(
        "train.py",
        "--model",
        checkpoint,
        "--ift",
        cwd / "ift.jsonl",
        "--ranked",
        cwd / "ranked.jsonl",
        "--prompts",
        prompt_file(cwd),
        "--iters",
        1,
        "--n-prompts",
        8,
        "--max-new-tokens",
        12,
        "--max-verdict-tokens",
        8,
    )
    assert done.code == 0, done.err
    run = cwd / "runs" / "llama"
    rows = read_jsonl(run / "metrics.jsonl")
    assert [r["true_score"] for r in rows] == [None, None] and all(
        0 <= r["judge_pairwise"] <= 1 for r in rows
    )
    ids = torch.arange(50)[None]
    with torch.no_grad():
        ours = load(run / "M2")
        theirs = AutoModelForCausalLM.from_pretrained(run / "M2", dtype=torch.float32).eval()
        torch.testing.assert_close(ours.logits(ours(ids)), theirs(ids).logits, atol=1e-4, rtol=0)
    chatted = command("sample.py", "--model", run / "M2", "--max-new-tokens", 8, "Hello?")
    assert chatted.code == 0 and chatted.out


def test_without_held_out_prompts(cwd, checkpoint, monkeypatch):
    """Guards against: a run that trains M_2 and then trips over its own empty exam (--prompts and --eft, nothing held out)."""
    write_jsonl(
        cwd / "eft.jsonl",
        [{"prompt": f"Ask {i}?", "response": "good", "verdict": "Score: 4"} for i in range(8)],
    )
    monkeypatch.setattr(judge, "parse_score", lambda text: float(len(text) % 6))
    done = command(
        "train.py",
        "--model",
        checkpoint,
        "--eft",
        cwd / "eft.jsonl",
        "--prompts",
        prompt_file(cwd),
        "--iters",
        1,
        "--n-prompts",
        8,
        "--max-new-tokens",
        12,
        "--max-verdict-tokens",
        8,
    )
    assert done.code == 0, done.err
    assert [row["model"] for row in read_jsonl(cwd / "runs" / "llama" / "metrics.jsonl")] == [
        "M1",
        "M2",
    ]


# ---- bad input: one sentence, exit code 2 ----


def seed_copy(cwd: Path, **changes) -> Path:
    folder = cwd / "copy"
    shutil.copytree(ROOT / "seed", folder)
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def broken_copy(cwd: Path) -> Path:
    folder = seed_copy(cwd)
    (folder / "model.safetensors").write_bytes(weights(folder)[:5000])
    return folder


def file(cwd: Path, text: str) -> Path:
    (cwd / "rows.jsonl").write_text(text)
    return cwd / "rows.jsonl"


BAD = {
    "missing model": lambda d: (["--model", d / "nowhere"], ["nowhere"]),
    "unknown architecture": lambda d: (
        ["--model", seed_copy(d, model_type="gpt2")],
        ["gpt2", "llama, mistral, qwen2, qwen3"],
    ),
    "broken safetensors": lambda d: (["--model", broken_copy(d)], ["model.safetensors"]),
    "empty ift": lambda d: (["--ift", file(d, "")], ["rows.jsonl", "empty"]),
    "malformed ift": lambda d: (
        ["--ift", file(d, '{"prompt": "a", "response": "b"}\n{"prompt"\n')],
        ["rows.jsonl, line 2"],
    ),
    "ift without response": lambda d: (
        ["--ift", file(d, '{"prompt": "a"}\n')],
        ["rows.jsonl, line 1", "response"],
    ),
    "malformed eft": lambda d: (
        ["--eft", file(d, '{"prompt": "a", "response": "b", "verdict": 4}')],
        ["rows.jsonl, line 1"],
    ),
    "missing ift": lambda d: (["--ift", d / "nowhere.jsonl"], ["nowhere.jsonl"]),
    "long prompt": lambda d: (["--prompts", file(d, "word " * 2000 + "\nb\nc\nd\n")], ["context"]),
    "too few prompts": lambda d: (
        ["--prompts", file(d, "Just one.\n")],
        ["rows.jsonl", "--n-prompts"],
    ),
    "rubric": lambda d: (["--rubric", file(d, "Rate it.")], ["{prompt}"]),
    "device": lambda d: (["--device", "tpu"], ["tpu", "cpu"]),
    "dtype": lambda d: (["--dtype", "fp16"], ["fp16", "fp32"]),
    "no answers": lambda d: (["--n", 0], []),
    "no verdicts": lambda d: (["--k", 0], []),
    "empty batches": lambda d: (["--batch-size", 0], []),
    "cold": lambda d: (["--temperature", -1], ["temperature"]),
    "judge": lambda d: (
        ["--judge", "expect"],
        ["--judge must be one of sampled, expected", "'expect'"],
    ),
    "judge data": lambda d: (
        ["--eft-style", "both"],
        ["--eft-style must be one of auto, verdict, score"],
    ),
    "loss": lambda d: (["--sft-weight", "rows"], ["--sft-weight must be one of examples, tokens"]),
    "ift that nobody answers": lambda d: (
        ["--ift", file(d, json.dumps({"messages": [{"role": "user", "content": "a"}]}))],
        ["rows.jsonl, line 1", "messages"],
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(cwd, case):
    """Guards against: a traceback where one sentence would do; a message that does not say what to mend."""
    args, says = BAD[case](cwd)
    assert_refused(command("train.py", *QUICK, *args), *says)


@pytest.mark.parametrize(
    "args", [["--no-such-flag"], ["--n", "four"], ["--iter", "1"], ["word"]], ids=str
)
def test_unknown_arguments(cwd, args):
    """Guards against: typos obeyed as the default (nano-vllm), abbreviations that change meaning."""
    done = command("train.py", *args)
    assert done.code == 2 and "usage" in done.err and not (cwd / "runs").exists()


def test_real_exit_code(cwd):
    """Guards against: all of the above being true only inside this test."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), "--model", "nowhere"],
        cwd=cwd,
        capture_output=True,
        text=True,
    )
    assert (
        done.returncode == 2
        and done.stderr.startswith("error: ")
        and "Traceback" not in done.stderr
    )


def test_a_refused_start_does_not_spoil_the_name(cwd):
    """Guards against: a typo recorded as the run's settings, so that the corrected command is refused too."""
    assert command("train.py", *QUICK, "--dtype", "fp16").code == 2
    assert_refused(
        command("train.py", *QUICK, "--dtype", "fp32", "--ift", "nowhere.jsonl"), "nowhere.jsonl"
    )


def test_help_names_every_flag():
    """Guards against: settings that cannot be found."""
    done = command("train.py", "--help")
    flags = (
        "--model --run --iters --seed --n-prompts --n --k --ift --oasst --lang --eft --ranked --eft-style --prompts --prompt-writer "
        "--rubric --judge --temperature --top-p --sft-weight --beta --tokens --recompute --slots --device --dtype --json --make-seed"
    ).split()
    assert done.code == 0 and all(f in done.out for f in flags)


def test_a_libc_without_mallopt(monkeypatch):
    """Guards against: a command that needs glibc; musl, macOS and Windows have no mallopt."""
    for broken in (lambda name: object(), lambda name: (_ for _ in ()).throw(OSError("no libc"))):
        monkeypatch.setattr("ctypes.CDLL", broken)
        keep_memory()


# ---- the other commands ----


def test_ask(finished):
    """Guards against: a question that cannot be asked; an answer that changes from call to call or shows its control tokens."""
    ask = (
        "sample.py",
        "--model",
        finished / "runs" / "toy" / "M2",
        "Count up from two to four for Mia.",
    )
    one, other = command(*ask), command(*ask)
    assert one.code == 0 and one.out.strip() and one.out == other.out
    assert "<|" not in one.out and "Count up" not in one.out
    greedy = [command(*ask, "--temperature", 0, "--seed", s).out for s in (1, 2)]
    assert greedy[0] == greedy[1]


def test_chat():
    """Guards against: an interactive chat that ends in a traceback."""
    done = command(
        "sample.py",
        "--model",
        ROOT / "seed",
        stdin="Count up from two to four for Mia.\n\nSpell cat for Bob.\n",
    )
    assert done.code == 0 and done.out.count(">") >= 3


def test_judge_one(finished):
    """Guards against: votes that are averaged but never shown."""
    args = (
        "judge.py",
        "--model",
        finished / "runs" / "toy" / "M1",
        "--prompt",
        "Spell cat for Mia.",
        "--response",
        "Mia: c, a, t.",
        "--k",
        4,
    )
    shown, done = command(*args), command(*args, "--json")
    assert shown.code == 0 and shown.out.count("verdict") == 4 and "mean" in shown.out
    report = json.loads(done.out)
    scores = [v["score"] for v in report["verdicts"]]
    assert len(scores) == 4 and report["reward"] == judge.mean(scores)
    assert scores == [judge.parse_score(v["text"]) for v in report["verdicts"]]
    assert all(v["text"] in shown.out for v in report["verdicts"])


def test_judge_file(finished, cwd):
    """Guards against: an accuracy that nobody can recompute."""
    groups = world.held_out_ranked(6)
    write_jsonl(cwd / "ranked.jsonl", groups)
    args = ("judge.py", "--model", finished / "runs" / "toy" / "M1", "--file", cwd / "ranked.jsonl")
    shown, report = command(*args), json.loads(command(*args, "--json").out)
    assert shown.code == 0 and "pairwise accuracy" in shown.out
    assert report["judge_pairwise"] == judge.pairwise_accuracy(
        report["rewards"], [g["ranks"] for g in groups]
    )
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
