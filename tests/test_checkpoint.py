"""Runs on a checkpoint of the real layout (a tiny random llama).

The judge data of the paper, other writers, other judges, export.
"""

import json
import random
import shlex
import shutil
from collections import Counter
from pathlib import Path

import pytest
import torch
from conftest import ROOT, assert_refused, command, leaning_gpt, tiny_gpt, write_tokenizer
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

import core.checkpoint
import dpo
import judge
from core.chat import Chat
from core.checkpoint import COPIED
from core.config import Config
from core.files import read_jsonl, write_jsonl
from model import load, save
from sample import Completion
from worlds.open_world import open_world

VERDICTS = {
    "good": "Helps a lot.\nScore: 5",
    "fair": "Helps a bit.\nScore: 3",
    "poor": "I would rather not say.",
}
RUBRIC = "Rate {response}\nfor {prompt}\n"


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


@pytest.fixture
def people(cwd) -> list:
    """Instructions and ranked answers as files.

    Returns the arguments that name them, and that keep a run short.
    """
    questions = [{"prompt": f"Question {i}?", "response": f"Answer {i}."} for i in range(12)]
    write_jsonl(cwd / "ift.jsonl", questions)
    ranked = {"responses": ["fair", "good", "poor"], "ranks": [1, 0, 2]}
    write_jsonl(cwd / "ranked.jsonl", [{"prompt": f"Ask {i}?", **ranked} for i in range(20)])
    (cwd / "rubric.txt").write_text(RUBRIC)
    return shlex.split(
        "--ift ift.jsonl --ranked ranked.jsonl --rubric rubric.txt --exam 4 --max-new-tokens 12 "
        "--max-verdict-tokens 8"
    )


@pytest.fixture
def verdicts(monkeypatch):
    """The judge writes these verdicts on these answers, and scores every other by its length.

    Returns the table and a dict: key of the call -> (how many prompts, the model's first weights).
    """
    table, calls = dict(VERDICTS), {}

    def verdict(text: str) -> str:
        for word, written in table.items():
            if word in text:
                return written
        return f"Hm.\nScore: {len(text) % 6}"

    def write(writer, prompts, sampling, keys, **_):
        chat = writer.chat
        (key,) = {key.rsplit(" ", 1)[0] for key in keys}  # without the name of the answer
        calls[key] = len(prompts), writer.model.embed_tokens.weight[5].tolist()
        texts = [verdict(chat.decode(prompt)) for prompt in prompts]
        return [[Completion(chat.response(t) + [chat.eos], True)] * sampling.n for t in texts]

    monkeypatch.setattr(judge, "generate", write)
    return table, calls


@pytest.fixture
def learnt(monkeypatch):
    """What every SFT was given: (name, [(prompt, response)], the weights it began with)."""
    given, real = [], dpo.sft

    def sft(model, examples, recipe, *, name="sft", **more):
        given.append((name, examples, model.embed_tokens.weight[5].tolist()))
        return real(model, examples, recipe, name=name, **more)

    monkeypatch.setattr("worlds.judge_data.sft", sft)
    monkeypatch.setattr(dpo, "sft", sft)
    return given


def started(cwd: Path, checkpoint: Path, *args) -> Path:
    done = command("train.py", "--model", checkpoint, "--iters", 0, *args)
    assert done.code == 0, done.err
    return cwd / "runs" / "llama"


def told(run: Path, stage: str) -> str:
    return next(r["told"] for r in read_jsonl(run / "log.jsonl") if r["stage"] == stage)


def free(prompts) -> list[str]:
    """Those that are not held out for the exam, as the world says it."""
    world = open_world(Config(model="x", ranked="ranked.jsonl"), toy=False)
    held_out = {group["prompt"] for group in world.exam.groups}
    return [prompt for prompt in prompts if prompt not in held_out]


# ---- judge data from ranked answers ----


def test_judge_data_of_the_paper(cwd, checkpoint, people, verdicts, learnt):
    """Guards against: verdicts by the wrong model, or that contradict people, trained on.

    Also against: an M_1 that never sees them; an SFT on answers that is kept where only the
    verdicts should be.
    """
    base = load(checkpoint).embed_tokens.weight[5].tolist()
    run = started(cwd, checkpoint, *people, "--eft-style", "verdict", "--k", 2)
    _, calls = verdicts
    asked = free(f"Ask {i}?" for i in range(20))
    rows = read_jsonl(run / "t0" / "verdicts.jsonl")
    assert Counter(v["text"] for v in rows) == {text: 2 * len(asked) for text in VERDICTS.values()}
    assert 12 <= len(asked) < 20
    eft = read_jsonl(run / "t0" / "eft.jsonl")
    n = 2 * len(asked)
    verdicts_of = Counter((r["response"], r["verdict"]) for r in eft)
    assert verdicts_of == {(word, VERDICTS[word]): n for word in ("good", "fair")}
    assert {r["prompt"] for r in eft} == set(asked)
    assert f"{3 * n} written, {2 * n} readable, {2 * n} agreeing, {2 * n} kept" in told(run, "eft")
    (_, answers, first), (_, both, second) = learnt
    chat = Chat(run / "M1")

    def texts(examples) -> Counter:
        return Counter((chat.decode(e.prompt), chat.decode(e.response)) for e in examples)

    wanted = Counter()
    for row in eft:
        question = f"user\nRate {row['response']}\nfor {row['prompt']}\n\nassistant\n"
        wanted[question, row["verdict"]] += 1
    assert texts(both) - texts(answers) == wanted
    assert texts(answers) <= texts(both)
    assert len(answers) >= 6
    assert first == second == base, "M_1 starts from M_0, not from the writer of the verdicts"
    count, writer = calls["0 verdicts 0"]
    assert count == 3 * len(asked)
    assert writer != base, "the writer has learnt to answer"
    assert weights(run / "M1") != weights(checkpoint)


@pytest.mark.parametrize("good, style", [(VERDICTS["good"], "verdict"), ("Nice.", "score")])
def test_auto_picks_by_readability(cwd, checkpoint, people, verdicts, good, style):
    """Guards against: a model that cannot write a verdict trained on next to nothing.

    Also against: one that can, on bare digits.
    """
    table, calls = verdicts
    table["good"] = good
    base = load(checkpoint).embed_tokens.weight[5].tolist()
    run = started(cwd, checkpoint, *people, "--k", 1)
    share = "67%" if style == "verdict" else "33%"
    assert calls["0 readable"] == (6, base), "two groups, by M_0"
    assert f"as {share} of 6 verdicts by M0 can be read" in told(run, "eft")
    texts = {r["verdict"] for r in read_jsonl(run / "t0" / "eft.jsonl")}
    if style == "verdict":
        assert texts == {VERDICTS["good"], VERDICTS["fair"]}
    else:
        assert texts == {"Score: 5", "Score: 3", "Score: 1"}
    assert (run / "t0" / "verdicts.jsonl").exists() == (style == "verdict")


def test_score_lines_need_no_judge(cwd, checkpoint, people, verdicts, learnt):
    """Guards against: --eft-style score that still asks the model."""
    run = started(cwd, checkpoint, *people, "--eft-style", "score")
    scores = {(r["response"], r["verdict"]) for r in read_jsonl(run / "t0" / "eft.jsonl")}
    assert scores == {("good", "Score: 5"), ("fair", "Score: 3"), ("poor", "Score: 1")}
    assert not [key for key in verdicts[1] if "exam" not in key]
    assert [name for name, _, _ in learnt] == ["sft"]
    assert not (run / "t0" / "verdicts.jsonl").exists()


def test_no_verdict_agrees(cwd, checkpoint, people, verdicts):
    """Guards against: a crash where the judge of M_0 is no judge at all."""
    verdicts[0].update({w: "Hm.\nScore: 3" for w in VERDICTS})
    run = started(cwd, checkpoint, *people, "--eft-style", "verdict")
    assert (run / "t0" / "eft.jsonl").read_text() == "" and "0 agreeing, 0 kept" in told(run, "eft")


def test_resume_takes_the_judge_data_as_they_are(cwd, checkpoint, people, verdicts):
    """Guards against: an M_1 made again from other judge data than the rest of the run."""
    args = [*people, "--eft-style", "verdict"]
    run = started(cwd, checkpoint, *args)
    before, eft = weights(run / "M1"), (run / "t0" / "eft.jsonl").read_bytes()

    def forget(*names: str) -> None:
        for name in (*names, "exam/M1.jsonl", "metrics.jsonl"):
            (run / name).unlink()
        shutil.rmtree(run / "M1")
        verdicts[1].clear()

    forget()
    started(cwd, checkpoint, *args)
    assert weights(run / "M1") == before
    assert set(verdicts[1]) == {"0 exam verdicts", "0 exam ranked"}
    forget("t0/eft.jsonl")
    started(cwd, checkpoint, *args)
    assert weights(run / "M1") == before and (run / "t0" / "eft.jsonl").read_bytes() == eft
    assert "0 verdicts 0" not in verdicts[1], "the verdicts were there"
    forget("t0/eft.jsonl", "t0/verdicts.jsonl")
    started(cwd, checkpoint, *args)
    assert weights(run / "M1") == before and "0 verdicts 0" in verdicts[1]


# ---- what is learnt and what is measured ----


def test_exam_and_judge_data_share_no_prompt(cwd):
    """Guards against: a judge measured on what it was trained on.

    Whichever files the prompts came from, and however often.
    """
    rng = random.Random(0)
    prompts = [f"Prompt number {i}?" for i in range(300)]

    def some() -> list[str]:
        return [rng.choice(prompts) for _ in range(150)]

    def message(text: str, *replies: dict, **more) -> dict:
        return {"text": text, "lang": "en", "replies": list(replies), **more}

    write_jsonl(cwd / "ift.jsonl", [{"instruction": p, "output": "So."} for p in some()])
    verdict = {"response": "So.", "verdict": "Score: 4"}
    write_jsonl(cwd / "eft.jsonl", [{"prompt": p, **verdict} for p in some()])
    ranked = {"responses": ["a", "b"], "ranks": [0, 1]}
    write_jsonl(cwd / "ranked.jsonl", [{"prompt": p, **ranked} for p in some()])
    replies = message("a", rank=0), message("b", rank=1)
    write_jsonl(cwd / "trees.jsonl", [{"prompt": message(p, *replies)} for p in some()])
    files = dict(ift="ift.jsonl", eft="eft.jsonl", ranked="ranked.jsonl", oasst="trees.jsonl")
    sizes = dict(exam=1000, seed_limit=1000)
    world = open_world(Config(model="x", **files, **sizes), toy=False)
    groups = {g["prompt"] for g in world.exam.groups}
    exam_prompts = {*world.exam.prompts}
    learnt = {r["prompt"] for r in [*world.ift, *world.eft, *world.groups]} | {*world.prompts}
    assert len(groups) > 20 and len(exam_prompts) > 20 and len(learnt) > 100
    assert not learnt & (groups | exam_prompts)
    assert len(world.groups) + len(world.exam.groups) == 300, "nothing is lost"
    assert len(world.ift) + len(world.exam.prompts) == 300, "nothing is lost"
    other = open_world(Config(model="x", **files, **sizes, seed=1), toy=False)
    assert other.exam == world.exam, "the exam is the same for every seed"
    assert other.eft != world.eft


def test_open_assistant_trees(cwd, checkpoint, people, verdicts):
    """Guards against: --oasst and --lang that are read and not used."""

    def tree(text: str, lang: str) -> dict:
        fair = {"text": "fair", "lang": lang, "rank": 1}
        good = {"text": "good", "lang": lang, "rank": 0}
        return {"prompt": {"text": text, "lang": lang, "replies": [fair, good]}}

    trees = []
    for i in range(12):
        trees += [tree(f"Why {i}?", "en"), tree(f"Warum {i}?", "de")]
    write_jsonl(cwd / "trees.jsonl", trees)
    german = ("--oasst", "trees.jsonl", "--lang", "de")
    run = started(cwd, checkpoint, *german, "--eft-style", "score", *people[4:])
    eft = read_jsonl(run / "t0" / "eft.jsonl")
    exam = read_jsonl(run / "exam" / "ranked.jsonl")
    judged, held_out = {r["prompt"] for r in eft}, {r["prompt"] for r in exam}
    assert judged | held_out == {f"Warum {i}?" for i in range(12)}
    assert not judged & held_out
    assert all(g["responses"] == ["good", "fair"] for g in exam)
    assert {r["verdict"] for r in eft} == {"Score: 5", "Score: 1"}
    assert {r["prompt"] for r in read_jsonl(run / "exam" / "M1.jsonl")} == held_out
    assert f"{len(eft) // 2} answers and {len(eft)} verdicts" in told(run, "sft")
    french = ("--oasst", "trees.jsonl", "--lang", "fr")
    done = command("train.py", "--model", checkpoint, "--run", "b", *french)
    assert_refused(done, "trees.jsonl", "'fr'", "--lang")


@pytest.mark.parametrize(
    "args, says",
    [
        ([], ["nothing to start from", "--oasst"]),
        (["--oasst", "nowhere.jsonl.gz"], ["nowhere.jsonl.gz"]),
        (["--judge", "guessed"], ["--judge must be one of sampled, expected"]),
    ],
    ids=str,
)
def test_starts_that_are_refused(cwd, checkpoint, args, says):
    """Guards against: a run on nothing, and settings that do not exist."""
    assert_refused(command("train.py", "--model", checkpoint, *args), *says)
    assert not (cwd / "runs").exists()


# ---- other writers, other readers ----


def test_prompts_by_a_fixed_writer(cwd, checkpoint, people):
    """Guards against: a prompt writer that is loaded and not asked, or asked in M_t's tokens.

    Also against: answers by it as well.
    """
    specials = ["<|begin|>", "<|im_end|>"]
    folder = write_tokenizer(cwd / "writer", specials=specials, bos_token="<|begin|>")
    chat = Chat(folder)
    ids = {c: chat.tokenizer.token_to_id(c) for c in "xyĠĊ"}
    save(leaning_gpt({ids["x"]: 30, ids["y"]: 30, ids["Ġ"]: 31, ids["Ċ"]: 30}, vocab=258), folder)
    sizes = shlex.split("--iters 1 --n-prompts 6 --max-new-tokens 40 --rouge 1")
    model = ("--model", checkpoint, *people, "--eft-style", "score")
    done = command("experiments/variants.py", f"fixed-prompt-writer={folder}", *model, *sizes)
    assert_refused(done, "no preference pair")  # a random judge: nothing more is wanted here
    stage = cwd / "runs" / "llama" / "t1"
    prompts = [r["prompt"] for r in read_jsonl(stage / "prompts.jsonl")]
    assert 0 < len(prompts) <= 6
    assert all(set(p) <= set("xy ") and len(p.split()) > 2 for p in prompts)
    answers = [r["response"] for r in read_jsonl(stage / "responses.jsonl")]
    assert any(set(a) - set("xy ") for a in answers)


def test_a_whole_run_with_expected_scores(cwd, checkpoint, people):
    """Guards against: --judge expected that ends in sampled verdicts, K of them, or in ties.

    Also against: a run that only its toy survives.
    """
    (cwd / "prompts.txt").write_text("".join(f"Question {i} of many?\n" for i in range(8)))
    settings = shlex.split(
        "--eft-style score --judge expected --prompts prompts.txt --n-prompts 8 --sft-epochs 6 "
        "--sft-lr 1e-2 --temperature 1 --iters 1 --json"
    )
    done = command("train.py", "--model", checkpoint, *people, *settings)
    assert done.code == 0, done.err
    run = cwd / "runs" / "llama"
    responses, rows, pairs = (
        read_jsonl(run / "t1" / f"{name}.jsonl") for name in ("responses", "verdicts", "pairs")
    )
    judged = {(r["id"], r["response"]) for r in responses if r["finished"]}
    assert len(rows) == len(judged)
    assert all(set(r) == {"id", "sample", "vote", "text", "score", "digits"} for r in rows)
    assert all((r["vote"], r["text"], len(r["digits"])) == (0, "", 6) for r in rows)
    for row in rows:
        if row["score"] is not None:
            mean = sum(n * p for n, p in enumerate(row["digits"])) / sum(row["digits"])
            assert row["score"] == pytest.approx(mean, abs=2e-3)
    assert pairs
    assert any(p["chosen_score"] % 1 for p in pairs)
    assert all(p["chosen_score"] > p["rejected_score"] for p in pairs)
    metrics = read_jsonl(run / "metrics.jsonl")
    assert [m["model"] for m in metrics] == ["M1", "M2"]
    assert metrics == json.loads(done.out)["models"]
    for row in metrics:
        assert row["judge_parse_rate"] > 0.5
        assert 0 <= row["self_score"] <= 5
        assert row["true_score"] is None
    assert weights(run / "M2") != weights(run / "M1")


# ---- export ----


def test_a_saved_model_is_whole(finished):
    """Guards against: a directory that nobody can use by itself (lucidrains #10).

    Neither transformers, nor a server built on it.
    """
    for name in ("M1", "M2"):
        folder = finished / "runs" / "toy" / name
        config = AutoConfig.from_pretrained(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        rules = GenerationConfig.from_pretrained(folder)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        assert config.architectures == [type(model).__name__]
        assert config.vocab_size == len(Chat(folder).newline) == len(tokenizer)
        assert rules.eos_token_id == tokenizer.eos_token_id == Chat(folder).eos
        assert tokenizer.chat_template
        for file in COPIED:
            if (ROOT / "seed" / file).exists():
                assert (folder / file).read_bytes() == (ROOT / "seed" / file).read_bytes()
        ids = torch.tensor([Chat(folder).prompt("Spell cat for Mia.")])
        written = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=5, do_sample=False
        )
        assert tokenizer.decode(written[0, len(ids[0]) :]) != ""


def test_what_travels_with_a_model(cwd):
    """Guards against: a tokenizer file left behind, so that the copy splits text in another way.

    Also against: old weights carried along.
    """
    for name in (*COPIED, "optimizer.pt", "model-00001-of-00002.safetensors", "README.md"):
        (cwd / "from" / name).parent.mkdir(exist_ok=True)
        (cwd / "from" / name).write_text(f"this is {name}")
    save(tiny_gpt(), cwd / "to", source=cwd / "from")
    made = {p.name for p in (cwd / "to").iterdir()}
    assert made == {*COPIED, "config.json", "model.safetensors"}
    assert all((cwd / "to" / name).read_text() == f"this is {name}" for name in COPIED)
    needed = {
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "tokenizer.model",
        "vocab.json",
        "merges.txt",
        "generation_config.json",
        "chat_template.jinja",
    }
    assert needed <= set(COPIED)


def test_pairs_are_what_trl_reads(finished):
    """Guards against: a pairs.jsonl that TRL's DPOTrainer refuses.

    It wants prompt, chosen and rejected, each a text in every row, and columns of one kind
    throughout.
    """
    pairs = read_jsonl(finished / "runs" / "toy" / "t1" / "pairs.jsonl")
    assert pairs
    assert all(isinstance(p[k], str) for p in pairs for k in ("prompt", "chosen", "rejected"))
    assert all(p["prompt"] and p["chosen"] != p["rejected"] for p in pairs)
    assert len({tuple(p) for p in pairs}) == 1 and "messages" not in pairs[0]
    assert len({tuple(isinstance(v, (int, float)) for v in p.values()) for p in pairs}) == 1


# ---- several files of weights ----


@pytest.mark.parametrize("tied", [True, False])
def test_a_large_model_is_written_in_several_files(tmp_path, monkeypatch, tied):
    """Guards against: an index that other programs cannot follow."""
    model = tiny_gpt(model_type="llama", tie_word_embeddings=tied)
    save(model, tmp_path / "one")
    monkeypatch.setattr(core.checkpoint, "FILE_BYTES", 20_000)
    save(model, tmp_path / "many")
    files = sorted((tmp_path / "many").glob("*.safetensors"))
    assert len(files) > 3 and not (tmp_path / "many/model.safetensors").exists()
    assert files[0].name == f"model-00001-of-{len(files):05}.safetensors"
    index = json.loads((tmp_path / "many/model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(w.nbytes for w in model.parameters())
    back = load(tmp_path / "many").state_dict()
    assert all(torch.equal(weight, back[name]) for name, weight in model.state_dict().items())
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "many", dtype=torch.float32)
    ids = torch.arange(2, 30)[None]
    with torch.no_grad():
        expected = model.logits(model(ids))
        assert torch.allclose(theirs(ids).logits, expected, atol=1e-4)


def test_old_files_of_weights_do_not_stay(tmp_path, monkeypatch):
    """Guards against: an index that still names what a smaller model replaced."""
    monkeypatch.setattr(core.checkpoint, "FILE_BYTES", 20_000)
    save(tiny_gpt(), tmp_path / "model")
    (tmp_path / "model/notes.txt").write_text("mine")
    monkeypatch.undo()
    other = tiny_gpt(seed=1)
    save(other, tmp_path / "model")
    assert torch.equal(load(tmp_path / "model").head, other.head)
    assert (tmp_path / "model/notes.txt").exists()
    assert len(list((tmp_path / "model").glob("*.safetensors*"))) == 1
