"""experiments/variants.py: what flips a design decision: losses, references, pairs, judges.

Each by hand where it is a formula, and in a tiny run.
"""

import inspect
import math
import shutil
from collections import defaultdict
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from conftest import ROOT, TINY, assert_refused, command, forget, tiny_gpt

import dpo as dpo_module
import train
from core.chat import Chat
from core.checklist import with_requirements
from core.draw import Sampling
from core.files import read_json, read_jsonl, write_jsonl
from core.records import Candidate, Example, Pair, by_prompt, votes_by_text
from dpo import Objective, Recipe, dpo, dpo_loss
from experiments.variants import VARIANTS, LengthControl, ipo_loss, smoothed_loss, verdict_pairs
from judge import choose_pair, with_rewards
from measure import exam
from model import GPT, load
from sample import load_writer, respond
from train import Loop
from worlds import toy

SCRIPT = "experiments/variants.py"


def answer(sample: int, reward: float | None, length: int, *, number: int = 0) -> Candidate:
    text, tokens = f"answer {sample}", list(range(length))
    return Candidate(number, sample, "Why?", text, tokens, True, (reward,), reward)


def losses(loss=dpo_loss) -> torch.Tensor:
    logps = ([-3.0, -1.0], [-5.0, -2.0], [-4.0, -1.5], [-4.5, -3.5])
    given = [torch.tensor(values, dtype=torch.float64) for values in logps]
    return loss(*given, beta=0.2)


# ---- losses ----
H = (1.5, -1.0)  # (chosen - ref) - (rejected - ref) of the two pairs above


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x))


def ipo_by_hand() -> list[float]:
    return [(h - 1 / 0.4) ** 2 for h in H]


def smoothed_by_hand(share: float) -> list[float]:
    return [-(1 - share) * log_sigmoid(0.2 * h) - share * log_sigmoid(-0.2 * h) for h in H]


def test_ipo_by_hand():
    """Guards against: the square of beta * h, or of h - beta."""
    assert losses(ipo_loss).tolist() == pytest.approx(ipo_by_hand())


def test_label_smoothing_by_hand():
    """Guards against: smoothing that scales the loss and does not turn pairs round."""
    plain = [-log_sigmoid(0.2 * h) for h in H]
    assert losses().tolist() == pytest.approx(plain)
    assert losses(smoothed_loss(0.0)).tolist() == pytest.approx(plain)
    assert losses(smoothed_loss(0.25)).tolist() == pytest.approx(smoothed_by_hand(0.25))
    assert losses(smoothed_loss(0.5))[0] > losses()[0]
    turned = [-log_sigmoid(-0.2 * h) for h in H]
    assert losses(smoothed_loss(1.0)).tolist() == pytest.approx(turned)


def test_another_reference():
    """Guards against: a reference that is given and still is M_t.

    Also against: changes that count from the reference and not from M_t.
    """
    pairs = [(Example([5, 6, 7], [8, 9, 1]), Example([5, 6, 7], [10, 1])) for _ in range(4)]
    recipe = Recipe(lr=1e-4, batch_size=4)
    own = dpo(tiny_gpt(), pairs, recipe, Objective(beta=0.1))[0]
    other = dpo(tiny_gpt(), pairs, recipe, Objective(beta=0.1, reference=tiny_gpt(seed=3)))[0]
    assert own["dpo_loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert abs(other["dpo_loss"] - math.log(2)) > 1e-3
    assert abs(other["chosen_change"]) < 1e-4 and abs(own["chosen_change"]) < 1e-4


# ---- pairs ----
def length_control(rho: float) -> LengthControl:
    """The variant without a run: its choice needs nothing else."""
    return LengthControl(**dict.fromkeys(f.name for f in fields(Loop)), rho=rho)


def test_length_control():
    """Guards against: the longest of the best.

    Also against: a rejected answer that is as good as the chosen one.
    """
    group = [
        answer(0, 5.0, 30),
        answer(1, 4.7, 10),
        answer(2, 1.0, 5),
        answer(3, 1.3, 20),
        answer(4, 3.0, 1),
        answer(5, None, 0),
    ]
    plain, controlled = choose_pair(group), length_control(0.1).choose(group)
    assert (plain.chosen.sample, plain.rejected.sample) == (0, 2)
    assert (controlled.chosen.sample, controlled.rejected.sample) == (1, 3)
    assert length_control(0.3).choose([answer(0, 3.0, 1), answer(1, 3.0, 9)]) is None
    assert length_control(0.3).choose([answer(0, None, 1)]) is None


def test_pairs_for_the_judge(chat):
    """Guards against: the outlier preferred.

    Also against: unreadable votes taken for outliers, several pairs a prompt.
    """
    answers = [answer(0, 4.0, 1), answer(1, 4.0, 1)]
    answers += [answer(0, 2.0, 1, number=1), answer(0, None, 1, number=2)]
    votes = [(4, 4, 3), (5, 1, 5), (2, 2, 2), (None, None, None)]
    rows = []
    for judged, scores in zip(answers, votes):
        for v, score in enumerate(scores):
            place = {"id": judged.id, "sample": judged.sample, "vote": v}
            rows.append({**place, "text": f"text {score}", "score": score})
    [(chosen, rejected)] = verdict_pairs(chat, "{prompt}|{response}", answers, rows)
    assert chosen.prompt == rejected.prompt == chat.prompt("Why?|answer 1")
    assert chat.decode(chosen.response) == "text 5" and chat.decode(rejected.response) == "text 1"


# ---- tiny runs ----
@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_overrides_a_step(name):
    """Guards against: a step that was renamed in the loop, so that its variant changes nothing."""
    ancestors = VARIANTS[name].__mro__
    methods = []
    for one in ancestors[: ancestors.index(Loop)]:
        methods += [key for key, value in vars(one).items() if inspect.isfunction(value)]
    assert [key for key in methods if key in vars(Loop) and not key.startswith("__")]


def stopped_run(finished: Path, first: str) -> Path:
    """runs/x: the finished run as if it had been stopped before `first`.

    It has no record, so that any variant may go on with it.
    """
    folder = Path("runs/x")
    shutil.copytree(finished / "runs/toy", folder)
    forget(folder, first)
    (folder / "config.json").unlink()
    return folder


def run(script: str, *args) -> dict:
    """What each stage of the first trip had to say, and the record in config.json."""
    words = script.split()
    done = command(*words, *TINY, "--run", "x", *args)
    assert done.code == 0, done.err
    log = [r for r in read_jsonl("runs/x/log.jsonl") if r["t"] == 1]
    record = read_json(Path("runs/x/config.json"))
    return {r["stage"]: r["told"] for r in log} | {"record": record}


@pytest.fixture
def spied(monkeypatch):
    """What every DPO was asked for: its pairs and its objective."""
    calls, real = [], dpo_module.dpo

    def noting(model, pairs, recipe, objective, **more):
        calls.append((pairs, objective))
        return real(model, pairs, recipe, objective, **more)

    for place in (dpo_module, train):  # train.py as a script, and as the module of the variants
        monkeypatch.setattr(place, "dpo", noting)
    return calls


@pytest.mark.parametrize(
    "variant, by_hand",
    [("ipo", ipo_by_hand()), ("label-smoothing=0.2", smoothed_by_hand(0.2))],
    ids=["ipo", "label-smoothing"],
)
def test_variants_reach_the_loss(cwd, finished, spied, variant, by_hand):
    """Guards against: a variant that is recorded and never used."""
    stopped_run(finished, "M2")
    record = run(f"{SCRIPT} {variant}", "--beta", 0.4)["record"]
    [(pairs, objective)] = spied
    assert losses(objective.loss).tolist() == pytest.approx(by_hand)
    assert objective.beta == 0.4
    assert (record["variant"], record["settings"]["beta"]) == (variant, 0.4)
    assert len(pairs) == len(read_jsonl("runs/x/t1/pairs.jsonl"))


def test_the_seed_stays_the_reference(cwd, finished, spied):
    """Guards against: a reference that moves on with M_t."""
    stopped_run(finished, "M2")
    record = run(f"{SCRIPT} seed-reference", "--iters", 2)["record"]
    assert record["variant"] == "seed-reference"
    first = load("runs/x/M1").norm.weight.tolist()
    references = [objective.reference.norm.weight.tolist() for _, objective in spied]
    assert references == [first, first] and first != load("runs/x/M2").norm.weight.tolist()


def test_meta(cwd, finished, spied):
    """Guards against: a judge that learns nothing from its verdicts.

    Three votes: of two votes, both are equally far from their mean.
    """
    stopped_run(finished, "t1/verdicts.jsonl")
    record = run(f"{SCRIPT} meta", "--k", 3)["record"]
    [(pairs, _)] = spied
    assert len(pairs) > len(read_jsonl("runs/x/t1/pairs.jsonl")), "pairs for the judge join in"
    assert record["variant"] == "meta"


def test_length_control_in_a_run(cwd, finished):
    """Guards against: a choice that is recorded and never made."""
    folder = stopped_run(finished, "t1/pairs.jsonl")
    run(f"{SCRIPT} length-control=0.4")
    rows = {name: read_jsonl(folder / f"t1/{name}.jsonl") for name in ("responses", "verdicts")}
    answers = [Candidate(prompt="", **row) for row in rows["responses"]]
    groups = by_prompt(with_rewards(answers, rows["verdicts"]))
    chosen = [length_control(0.4).choose(group) for group in groups]
    assert places(chosen) == pair_places(folder) != pair_places(finished / "runs/toy")


def places(pairs: list[Pair | None]) -> list[tuple[int, int, int]]:
    return [(p.chosen.id, p.chosen.sample, p.rejected.sample) for p in pairs if p is not None]


def pair_places(folder: Path) -> list[tuple[int, int, int]]:
    """What pairs.jsonl says: the prompt, the chosen sample and the rejected one."""
    rows = read_jsonl(folder / "t1/pairs.jsonl")
    return [(r["id"], r["chosen_sample"], r["rejected_sample"]) for r in rows]


def test_no_variant(cwd, finished, spied):
    """Guards against: a variant that is on by itself."""
    stopped_run(finished, "M2")
    record = run("train.py")["record"]
    [(pairs, objective)] = spied
    assert (objective.loss, objective.reference) == (dpo_loss, None)
    assert len(pairs) == len(read_jsonl("runs/x/t1/pairs.jsonl"))
    assert record["variant"] is None


def smoothing_of(loss) -> float:
    """The share s of loss = (1 - s) right + s wrong."""
    right, wrong = losses()[0], losses(smoothed_loss(1.0))[0]
    return float((losses(loss)[0] - right) / (wrong - right))


def test_cream(cwd, finished, spied):
    """Guards against: a ranking compared with itself.

    M_1 has no one before it; M_2 is compared with M_1 on M_2's answers.
    """
    stopped_run(finished, "M2")
    run(f"{SCRIPT} cream", "--iters", 2)
    first, second = [smoothing_of(objective.loss) for _, objective in spied]
    assert first == pytest.approx(0) and 0 < second < 1
    rows = read_jsonl("runs/x/t2/verdicts_before.jsonl")
    paired = {p["id"] for p in read_jsonl("runs/x/t2/pairs.jsonl")}
    verdicts = read_jsonl("runs/x/t2/verdicts.jsonl")
    judged = {(r["id"], r["sample"]) for r in verdicts if r["id"] in paired}
    assert {(r["id"], r["sample"]) for r in rows} == judged, (
        "prompts that gave no pair are not learnt from, so their ties count for nothing"
    )


def test_positive_only(cwd, finished, spied):
    """Guards against: DPO all the same."""
    stopped_run(finished, "M2")
    notes = run(f"{SCRIPT} positive-only")
    assert not spied
    assert "dpo_loss" not in read_jsonl("runs/x/t1/dpo.jsonl")[0]
    assert "pairs, loss" in notes["dpo"]


def test_no_judge_data(cwd):
    """Guards against: judge examples that come in all the same.

    Without them few verdicts can be read, so pairs may be none.
    """
    done = command(SCRIPT, "no-judge-data", *TINY, "--run", "x")
    assert (cwd / "runs/x/t0/eft.jsonl").read_text() == ""
    readable = [v["score"] is not None for v in read_jsonl("runs/x/t1/verdicts.jsonl")]
    assert sum(readable) < len(readable) / 2
    if done.code:
        assert_refused(done, "no preference pair", "--eft")


def test_the_oracle_as_judge(cwd, finished):
    """Guards against: an upper bound that is not the truth."""
    stopped_run(finished, "t1/verdicts.jsonl")
    run(f"{SCRIPT} oracle-judge")
    answers = {(r["id"], r["sample"]): r for r in read_jsonl("runs/x/t1/responses.jsonl")}
    prompts = [r["prompt"] for r in read_jsonl("runs/x/t1/prompts.jsonl")]
    for v in read_jsonl("runs/x/t1/verdicts.jsonl"):
        response = answers[v["id"], v["sample"]]
        if response["finished"]:
            assert v["score"] == toy.oracle(prompts[v["id"]], response["response"])
        else:
            assert v["score"] == 0


def test_another_judge(cwd, finished, monkeypatch):
    """Guards against: a judge that is read and not asked.

    Also against: one that is asked in the exam of M_t as a judge too.
    """
    other, asked, real = finished / "runs/toy/M2", defaultdict(list), train.judge_answers

    def judge_answers(writer, *args, key, **more):
        asked[key].append(writer.model.norm.weight.tolist())
        return real(writer, *args, key=key, **more)

    for place in (train, exam):
        monkeypatch.setattr(place, "judge_answers", judge_answers)
    stopped_run(finished, "exam/M1.jsonl")
    run(f"{SCRIPT} fixed-judge={other}")
    theirs = load(other).norm.weight.tolist()
    assert asked["0 verdicts 1"] == [theirs]
    assert len(asked["0 exam verdicts"]) == 2 and theirs not in asked["0 exam verdicts"]


def test_another_prompt_writer(cwd, finished, monkeypatch):
    """Guards against: a writer of prompts that is read and not asked."""
    other, asked, real = finished / "runs/toy/M2", [], train.new_prompts

    def new_prompts(writer, *args, **more):
        asked.append(writer.model.norm.weight.tolist())
        return real(writer, *args, **more)

    monkeypatch.setattr(train, "new_prompts", new_prompts)
    stopped_run(finished, "t1/prompts.jsonl")
    run(f"{SCRIPT} fixed-prompt-writer={other}")
    assert asked == [load(other).norm.weight.tolist()]


# ---- controls ----


def responses(t: int = 1) -> dict[tuple[int, int], dict]:
    """The rows of responses.jsonl of runs/x, by prompt and sample."""
    return {(r["id"], r["sample"]): r for r in read_jsonl(f"runs/x/t{t}/responses.jsonl")}


def finished_tokens(number: int, t: int = 1) -> list[list[int]]:
    """What answers to one prompt ended, as drawn."""
    rows = [r for (i, _), r in responses(t).items() if i == number and r["finished"]]
    return [row["tokens"] for row in rows]


@pytest.fixture
def mute(monkeypatch):
    """The loop that asks its own judge fails. The exam may ask it."""
    monkeypatch.setattr(train, "judge_answers", None)


def test_random_judge(cwd, finished, mute):
    """Guards against: a control that asks the judge after all, or is another one in each run."""
    stopped_run(finished, "t1/verdicts.jsonl")
    run(f"{SCRIPT} random-judge")
    rows = read_jsonl("runs/x/t1/verdicts.jsonl")
    scores = [row["score"] for row in rows]
    assert all(0 <= score <= 5 for score in scores) and len(set(scores)) == len(scores)
    assert 2 < sum(scores) / len(scores) < 3, "no answer is favoured"
    assert len(rows) >= sum(row["finished"] for row in responses().values())
    assert pair_places(Path("runs/x")) != pair_places(finished / "runs/toy")
    shutil.rmtree("runs/x")
    stopped_run(finished, "t1/verdicts.jsonl")
    run(f"{SCRIPT} random-judge")
    assert read_jsonl("runs/x/t1/verdicts.jsonl") == rows


@pytest.mark.parametrize("name, best", [("shortest", min), ("longest", max)])
def test_length_as_judge(cwd, finished, mute, name, best):
    """Guards against: the two controls turned round; --near, which would take their lengths away.

    Also against: an unfinished answer, which is always the longest.
    """
    stopped_run(finished, "t1/verdicts.jsonl")
    run(f"{SCRIPT} {name}", "--near", 0)
    worst = {min: max, max: min}[best]
    pairs = read_jsonl("runs/x/t1/pairs.jsonl")
    assert pairs
    for pair in pairs:
        chosen = responses()[pair["id"], pair["chosen_sample"]]
        rejected = responses()[pair["id"], pair["rejected_sample"]]
        lengths = [len(tokens) for tokens in finished_tokens(pair["id"])]
        assert len(chosen["tokens"]) == best(lengths) != worst(lengths) == len(rejected["tokens"])
        sign = 1 if name == "longest" else -1
        assert pair["extra_length"] * sign > 0
        assert pair["chosen_score"] > pair["rejected_score"]


def test_own_answers(cwd, finished, spied, mute, monkeypatch):
    """Guards against: DPO all the same, or more than one answer to a prompt."""
    learnt, real = [], dpo_module.sft

    def sft(model: GPT, examples: list[Example], *args, **more) -> list[dict]:
        learnt.append(examples)
        return real(model, examples, *args, **more)

    monkeypatch.setattr(dpo_module, "sft", sft)
    stopped_run(finished, "t1/verdicts.jsonl")
    notes = run(f"{SCRIPT} own-answers")
    assert not spied and "pairs, loss" in notes["dpo"]
    log = read_jsonl("runs/x/t1/dpo.jsonl")
    assert all("margin" not in step and "dpo_loss" not in step for step in log)
    [examples] = learnt
    pairs = read_jsonl("runs/x/t1/pairs.jsonl")
    assert len(examples) == len(pairs) == len({pair["id"] for pair in pairs})
    for example, pair in zip(examples, pairs, strict=True):
        assert example.response in finished_tokens(pair["id"])


def drawn_by(folder: Path | str, prompts: list[str], key: str, n: int) -> list[Candidate]:
    """What a model of the toy answers in a run with this key."""
    writer = load_writer(str(folder), torch.device("cpu"), torch.float32)
    return respond(writer, prompts, Sampling(40, 1.0, 0.95, n=n), key=key, label=None)


def test_by_prompt(cwd, finished, spied, mute):
    """Guards against: a rejected answer that was written to the whole prompt, or is learnt under
    the bare one."""
    folder = stopped_run(finished, "t1/responses.jsonl")
    bare = [row["prompt"] for row in read_jsonl(folder / "t1/prompts.jsonl")]
    prompts = [with_requirements(prompt, ["Use no commas."]) for prompt in bare]
    rows = [{"id": i, "prompt": prompt} for i, prompt in enumerate(prompts)]
    write_jsonl(folder / "t1/prompts.jsonl", rows)
    (folder / "log.jsonl").unlink()  # else the changed prompts are refused
    run(f"{SCRIPT} by-prompt")
    written = drawn_by(folder / "M1", bare, "0 bare answers 1", 1)
    assert [y.row() for y in written] == read_jsonl(folder / "t1/bare_responses.jsonl")
    [(pairs, _)] = spied
    chat = Chat(folder / "M1")
    rows = read_jsonl(folder / "t1/pairs.jsonl")
    assert len(rows) == len(pairs) > 3
    for row, (chosen, rejected) in zip(rows, pairs, strict=True):
        assert chosen.prompt == rejected.prompt == chat.prompt(prompts[row["id"]])
        assert chosen.response in finished_tokens(row["id"])
        assert rejected.response == written[row["id"]].tokens and written[row["id"]].finished
        assert (row["prompt"], row["rejected"]) == (prompts[row["id"]], written[row["id"]].response)


# ---- other rewards ----


def test_temporal(cwd, finished, spied):
    """Guards against: a past that is the present; rejected answers without a score of their own."""
    folder = stopped_run(finished, "t1/pairs.jsonl")
    run(f"{SCRIPT} temporal", "--iters", 2)
    assert pair_places(folder) == pair_places(finished / "runs/toy"), "M_1 has no past"
    prompts = [row["prompt"] for row in read_jsonl(folder / "t2/prompts.jsonl")]
    old = drawn_by(folder / "M1", prompts, "0 old answers 2", 3)
    assert [place for place in responses(2)] == [(i, s) for i in range(24) for s in range(6)]
    for y in old:
        row = responses(2)[y.id, y.sample + 3]
        assert (row["tokens"], row["finished"]) == (y.tokens, y.finished)
    judged = {(row["id"], row["sample"]) for row in read_jsonl(folder / "t2/verdicts.jsonl")}
    assert {sample >= 3 for _, sample in judged} == {True, False}
    rows = read_jsonl(folder / "t2/pairs.jsonl")
    (_, (pairs, _)) = spied
    assert len(rows) == len(pairs) > 3
    for row, (chosen, rejected) in zip(rows, pairs, strict=True):
        assert row["chosen_sample"] < 3 <= row["rejected_sample"]
        assert row["chosen_score"] > row["rejected_score"]
        assert rejected.response == responses(2)[row["id"], row["rejected_sample"]]["tokens"]
        assert chosen.response == responses(2)[row["id"], row["chosen_sample"]]["tokens"]


@torch.no_grad()
def mean_logp(model: GPT, prompt: list[int], tokens: list[int]) -> float:
    """The mean log-prob a token, by one plain forward pass."""
    table = model.logits(model(torch.tensor([prompt + tokens])))[0].log_softmax(-1)
    picked = [float(table[len(prompt) - 1 + i, token]) for i, token in enumerate(tokens)]
    return sum(picked) / len(picked)


def test_dice(cwd, finished, mute):
    """Guards against: a reward that a long answer gets for its length, or that counts from M_0 in
    every round."""
    folder = stopped_run(finished, "t1/verdicts.jsonl")
    run(f"{SCRIPT} dice", "--iters", 2)
    chat = Chat(folder / "M1")
    models = [load(path) for path in (ROOT / "seed", folder / "M1", folder / "M2")]
    for t in (1, 2):
        prompts = [row["prompt"] for row in read_jsonl(folder / f"t{t}/prompts.jsonl")]
        verdicts = read_jsonl(folder / f"t{t}/verdicts.jsonl")
        ended = {place for place, row in responses(t).items() if row["finished"]}
        assert {(row["id"], row["sample"]) for row in verdicts} == ended
        for row in verdicts[::7]:
            prompt = chat.prompt(prompts[row["id"]])
            tokens = responses(t)[row["id"], row["sample"]]["tokens"]
            gain = mean_logp(models[t], prompt, tokens) - mean_logp(models[t - 1], prompt, tokens)
            assert row["score"] == pytest.approx(gain, abs=1e-3)


def test_confident_half(cwd, finished, spied):
    """Guards against: the half that differs least."""
    folder = stopped_run(finished, "t1/pairs.jsonl")
    told = run("train.py --confident 0.5")
    rows = read_jsonl(finished / "runs/toy/t1/pairs.jsonl")
    gaps = {}
    for row in rows:
        chosen = responses()[row["id"], row["chosen_sample"]]["tokens"]
        rejected = responses()[row["id"], row["rejected_sample"]]["tokens"]
        prompt = Chat(folder / "M1").prompt(row["prompt"])
        gap = row["chosen_score"] - row["rejected_score"]
        gaps[tuple(prompt), tuple(chosen), tuple(rejected)] = gap
    [(pairs, _)] = spied
    assert len(pairs) == round(len(rows) / 2) > 0
    used = read_jsonl("runs/x/t1/pairs.jsonl")
    assert len(used) == len(pairs)
    note = told["pairs"]
    assert f"the {len(used)} widest gaps are used" in note
    longer = sum(row["extra_length"] for row in used) / len(used)
    assert f"chosen are {longer:+.1f} tokens longer" in note
    taken = []
    for chosen, rejected in pairs:
        key = (chosen.prompt, chosen.response, rejected.response)
        taken.append(gaps.pop(tuple(map(tuple, key))))
    assert min(taken) >= max(gaps.values()) and min(gaps.values()) < max(taken)


def test_separated(cwd, finished, spied):
    """Guards against: a pair whose votes overlap, and one that is lost although they do not."""
    folder = stopped_run(finished, "t1/pairs.jsonl")
    run(f"{SCRIPT} separated")
    texts = {key: row["response"] for key, row in responses().items()}
    votes = votes_by_text(texts, read_jsonl(folder / "t1/verdicts.jsonl"))

    def is_separated(row: dict) -> bool:
        chosen = [vote for vote in votes[row["id"], row["chosen"]] if vote is not None]
        rejected = [vote for vote in votes[row["id"], row["rejected"]] if vote is not None]
        return min(chosen) > max(rejected)

    before = read_jsonl(finished / "runs/toy/t1/pairs.jsonl")
    kept = [row for row in before if is_separated(row)]
    assert 0 < len(kept) < len(before)
    assert read_jsonl(folder / "t1/pairs.jsonl") == kept


# ---- the command line ----
REFUSED = [
    (("fixed-judge=nowhere",), ["nowhere"]),
    (("fixed-prompt-writer=nowhere",), ["nowhere"]),
    (("fixed-judge",), ["fixed-judge needs a folder"]),
    (("fixed-prompt-writer=",), ["fixed-prompt-writer needs a folder"]),
    (("hinge",), ["'hinge'", "ipo"]),
    (("IPO",), ["'IPO'"]),
    (("ipo=0.2",), ["ipo takes no value", "'=0.2'"]),
    (("cream=",), ["cream takes no value"]),
    (("label-smoothing=much",), ["label-smoothing takes a number", "'much'"]),
    (("label-smoothing=",), ["label-smoothing takes a number", "''"]),
    (("length-control=0,2",), ["length-control takes a number", "'0,2'"]),
    (("ipo", "--ranked", "x.jsonl"), ["--ranked"]),
    (("label-smoothing=-1",), ["label-smoothing", "-1"]),
    (("length-control=-0.2",), ["length-control", "-0.2"]),
]


@pytest.mark.parametrize("args, says", REFUSED, ids=str)
def test_refused_before_anything_is_made(cwd, args, says):
    """Guards against: a mistake that is found out after an hour of training."""
    variant, *settings = args
    assert_refused(command(SCRIPT, variant, *TINY, *settings), *says)
    assert not (cwd / "runs").exists()


def test_the_oracle_knows_only_the_toy(checkpoint, cwd):
    """Guards against: a truth made up for prompts that the toy world never wrote."""
    (cwd / "x").write_text("".join(f"Why {i}?\n" for i in range(4)))
    args = ("oracle-judge", "--model", checkpoint, "--prompts", "x", "--n-prompts", 1)
    assert_refused(command(SCRIPT, *args), "truth", "--world checked")
    assert not (cwd / "runs").exists()


def test_help_names_every_variant(cwd):
    """Guards against: variants that cannot be found.

    Also against: a run that starts although no variant was named.
    """
    asked = command(SCRIPT, "--help")
    assert asked.code == 0 and all(f"  {name}" in asked.out for name in VARIANTS)
    for args in ([], ["--iters", 3]):
        done = command(SCRIPT, *args)
        assert done.code == 2 and done.out == asked.out
    assert not (cwd / "runs").exists()
