"""Numbers that go wrong: each is provoked here, and ends in a sentence that helps."""

import json
import shutil

import pytest
import torch
from conftest import TINY, assert_refused, command, forget

from core.chat import Chat
from core.config import READINGS
from core.files import read_json, write_jsonl
from core.records import Candidate
from core.verdicts import parse_score
from judge import with_rewards
from measure.notes import why_no_pairs
from model import load, save
from sample import Writer, next_probs

# ---- numbers that are no longer finite ----


@pytest.fixture
def hot(checkpoint):
    """A checkpoint of finite weights whose activations overflow."""
    model = load(checkpoint, device=torch.device("cpu"))
    with torch.no_grad():
        model.layers[1].mlp.up_proj.weight.fill_(1e38)
    save(model, checkpoint.parent / "hot", source=checkpoint)
    return checkpoint.parent / "hot"


def test_an_overflow_while_writing(hot):
    """Guards against: an answer of id 0, again and again, from a model that is broken."""
    done = command("sample.py", "--model", hot, "--max-new-tokens", 8, "Why?")
    assert_refused(done, "infinite or NaN", "its weights are broken")


@pytest.mark.parametrize("how", READINGS)
def test_an_overflow_while_judging(hot, how):
    """Guards against: a NaN score, which is the best and the worst of its prompt."""
    words = ("--prompt", "Why?", "--response", "So.", "--judge", how, "--max-new-tokens", 8)
    assert_refused(command("judge.py", "--model", hot, *words), "infinite or NaN")


def test_an_overflow_while_reading(hot):
    """Guards against: NaN probabilities, whose score is None instead of an error."""
    writer = Writer(load(hot, device=torch.device("cpu")), Chat(hot))
    with pytest.raises(Exception, match="infinite or NaN"):
        next_probs(writer, [[5, 6, 7]], [8], slots=1)


def test_an_overflow_in_training(hot, cwd):
    """Guards against: an M_1 of NaN, saved and examined."""
    rows = [{"prompt": f"Why {i}?", "response": "So."} for i in range(12)]
    write_jsonl(cwd / "ift.jsonl", rows)
    done = command("train.py", "--model", hot, "--ift", "ift.jsonl", "--exam", 2)
    assert_refused(done, "sft, step 0", "the loss became nan", "Lower the learning rate")
    assert not (cwd / "runs/hot/M1").exists()


def test_a_rate_that_is_far_too_large(finished, cwd):
    """Guards against: a DPO that ruins the model without a word, or takes the one before along."""
    run = cwd / "runs/toy"
    shutil.copytree(finished / "runs/toy", run)
    forget(run, "M2")
    record = read_json(run / "config.json")
    record["settings"] |= {"dpo_lr": 1.0, "nll": 0.0}
    (run / "config.json").write_text(json.dumps(record))
    done = command("train.py", *TINY, "--dpo-lr", 1, "--nll", 0)
    alarms = "".join(line for line in done.out.splitlines() if line.startswith("M2 | alarm"))
    assert "log-prob of the chosen answers -" in alarms and "raise --nll" in alarms, done
    assert command("sample.py", "--model", run / "M1", "Count up from two to four.").code == 0


# ---- rounds that give nothing ----


def answers(*texts: str | None) -> list[Candidate]:
    """Two answers to each prompt; None is one that never ended."""
    made = []
    for i, text in enumerate(texts):
        made.append(Candidate(i // 2, i % 2, "x", text or "", [1], finished=text is not None))
    return made


REASONS = [
    ([], [], ["leaves room for an answer", "--max-new-tokens"]),
    ([None, None, None, "a"], ["Score: 3"], ["cut by the limit", "raise --max-new-tokens"]),
    (["a", "b"], ["Score: 3", "Score: 3"], ["gives every answer 3", "--eft", "--rubric"]),
    (["a", "b", "c", "d"], ["Score: 3", "Score: 3", "Score: 4", "Score: 4"], ["tie", "--n", "--k"]),
    (["a", "b"], ["Score: 8/10", "Score: 9/10"], ["another scale (8/10", "--rubric"]),
    (["a", "b"], ["Fine.\nRating: 4", "Rating: 2"], ["end with 'rating'", "--rubric", "--eft"]),
    (["a", "b"], ["I like it.", "Well."], ["end like 'I like it.'", "--eft"]),
    (["a", "b"], ["", ""], ["too long for the judge", "other words than a score", "--eft"]),
    (["a", "a", "b", "b"], ["Score: 3", "Score: 3", "Score: 4", "Score: 4"], ["--temperature"]),
    (["a", None, "b", None], ["Score: 3", "Score: 4"], ["No prompt has two different answers"]),
    (["a", "b"], ["Score: ", "\x1b[2J"], ["end like 'Score: '"]),
]


@pytest.mark.parametrize("texts, written, says", REASONS, ids=[r[2][0] for r in REASONS])
def test_why_a_round_gives_nothing(texts, written, says):
    """Guards against: one piece of advice for every cause, so that people raise the wrong thing."""
    groups = answers(*texts)
    judged = [y for y in groups if y.finished]
    verdicts = []
    for y, text in zip(judged, written, strict=True):
        row = {"id": y.id, "sample": y.sample, "vote": 0, "text": text}
        verdicts.append(row | {"score": parse_score(text)})
    scored = with_rewards(groups, verdicts)
    by_two = [scored[i : i + 2] for i in range(0, len(scored), 2)]
    reason = why_no_pairs(by_two, verdicts)
    assert all(word in reason for word in says), reason
