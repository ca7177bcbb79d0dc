"""experiments/checked.py: pieces of work, tables and files, from made-up exams."""

import argparse
import gzip
import json
import sys
from pathlib import Path

import pytest
import torch
from conftest import leaning_gpt
from test_checked import examples_of

from core.chat import Chat
from core.config import FEW_KINDS, parse
from core.files import read_jsonl, write_jsonl
from experiments import checked, judge_curve
from model import save
from sample import load_writer
from worlds.checked import check_answer, checked_truth
from worlds.world import Exam

PROMPTS = [
    "Say something.\n\nRequirements:\n- Use no commas.",
    "Say more.\n\nRequirements:\n- Use no commas.\n- End with a hashtag such as #topic.",
]
EXAM = Exam(PROMPTS, [], checked_truth, check_answer, unseen=["hashtag"])
ROWS = ["loop", "random pairs"]


def answer(number: int, response: str, finished: bool = True) -> dict:
    truth = checked_truth(PROMPTS[number], response) if finished else 0
    tokens = [1] * len(response.split())
    return {
        "id": number,
        "prompt": PROMPTS[number],
        "response": response,
        "finished": finished,
        "tokens": tokens,
        "true_score": truth,
    }


def write_exam(row: str, seed: int, t: int, first: list[dict], more: list[dict]) -> None:
    folder = checked.run_of("ck", row, seed) / "exam"
    write_jsonl(folder / f"M{t}.jsonl", first)
    if more:
        write_jsonl(folder / f"more-M{t}.jsonl", more)


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """The loop goes from 1 of 4 to 4 of 4 answers in two seeds; random pairs stay at 2 of 4."""
    monkeypatch.chdir(tmp_path)
    for seed in (0, 1):
        bad = [answer(0, "a, b"), answer(0, "a b c d")]
        write_exam("loop", seed, 1, bad, [answer(1, "a #b", finished=False), answer(1, "a, b")])
        good = [answer(0, "a b"), answer(0, "c d")]
        write_exam("loop", seed, 2, good, [answer(1, "a #b"), answer(1, "c #d")])
        half = [answer(1, "a #b"), answer(1, "a, b")]
        write_exam("random pairs", seed, 2, [answer(0, "a b"), answer(0, "a, b")], half)
        write_exam("random pairs", seed, 3, good, [])  # a part of the exam is missing
    return argparse.Namespace(name="ck", rows=ROWS, seeds=2, minutes=60)


def cells(table: str, row: str) -> list[str]:
    (line,) = [line for line in table.splitlines() if line.startswith(f"| {row} |")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_tables(runs):
    """Guards against: a gain over another model, a control without its M_1, a wrong interval."""
    answers = checked.collect(runs)
    assert {row: sorted(seeds[0]) for row, seeds in answers.items()} == {
        "loop": [1, 2],
        "random pairs": [1, 2],
    }
    table = checked.result_table(answers)
    assert cells(table, "loop")[1:5] == ["2", "25.0 (0.0 to 50.0)", "100.0 (100.0 to 100.0)", "-"]
    assert cells(table, "loop")[6] == "M2: 75.0 (50.0 to 100.0)"
    assert cells(table, "random pairs")[6].startswith("M2: 25.0 (")
    assert cells(table, "loop")[-2:] == ["2 > 2", "0 > 0"]
    against = checked.against_loop(answers)
    assert cells(against, "random pairs") == ["random pairs", "M2", "2", "50.0 (50.0 to 50.0)"]


def test_answers_on_topic():
    """Guards against: words of the requirements, and short ones, taken for the subject."""
    prompt = "Tell me about Winter rain.\n\nRequirements:\n- Use no commas."
    texts = ["winter is cold", "commas: none", "rain, about now", "Tell me", ""]
    groups = [[{"prompt": prompt, "response": text} for text in texts]]
    assert checked.on_topic(groups) == 2 / 5  # the first, and "about"
    assert checked.on_topic([[{"prompt": "Say it.", "response": "it"}]]) == 0.0  # nothing to hold


def test_a_model_that_one_seed_lacks(runs):
    """Guards against: a gain of which one seed is that of a later model."""
    write_exam("loop", 0, 3, [answer(0, "a b")] * 2, [answer(1, "a #b")] * 2)
    table = checked.result_table(checked.collect(runs))
    assert cells(table, "loop")[4].endswith("[1 of 2 seeds]")
    assert cells(table, "loop")[6] == "M2: 75.0 (50.0 to 100.0)"
    figure = checked.result_figure(checked.collect(runs))
    assert f'points="{checked.place_of(1)},195.0 {checked.place_of(2)},30.0"' in figure  # no M_3


def test_the_loop_against_rows_with_other_seeds(runs):
    """Guards against: a seed of the loop alone that moves every comparison to an earlier model.

    Also against: a model that is missing in between.
    """
    both = [answer(0, "a b")] * 2, [answer(1, "a #b")] * 2
    for seed in (0, 1):
        write_exam("loop", seed, 4, *both)
        write_exam("random pairs", seed, 4, [answer(0, "a, b")] * 2, both[1])
    write_exam("loop", 2, 1, *both)
    write_exam("loop", 2, 2, *both)
    runs.seeds = 3
    answers = checked.collect(runs)
    line = cells(checked.against_loop(answers), "random pairs")
    assert line == ["random pairs", "M4", "2", "50.0 (0.0 to 100.0)"]
    assert checked.result_figure(answers).count("<polyline") == 2
    del answers["loop"]
    assert "random pairs" not in checked.against_loop(answers)


def test_kinds(runs):
    """Guards against: an answer that never ended and keeps a requirement all the same."""
    table = checked.kinds_table(checked.collect(runs), EXAM)
    assert table.splitlines()[0] == "| kept, % | loop M1 | loop M2 | random pairs M2 |"
    assert cells(table, "no commas") == ["no commas", "25", "100", "50"]
    assert cells(table, "hashtag (never trained on)")[1:] == ["0", "100", "50"]


def test_files(runs, tmp_path, monkeypatch):
    """Guards against: a table without the answers behind it."""
    monkeypatch.setattr(checked, "DOCS", tmp_path)
    checked.write_results(checked.collect(runs), EXAM, "checked")
    record = json.loads((tmp_path / "checked.json").read_text())
    assert record["loop"]["seed 1"] == {"M1": 0.25, "M2": 1.0}
    with gzip.open("runs/checked-answers.jsonl.gz", "rt") as file:
        lines = [json.loads(line) for line in file]
    assert len(lines) == 2 * 4 * 4  # seeds, models of both rows, answers
    assert lines[0]["row"] == "loop" and lines[0]["model"] == "M1" and lines[0]["response"]
    assert (tmp_path / "checked.svg").read_text().count("<polyline") == 2
    assert "25.0 (0.0 to 50.0)" in (tmp_path / "checked.md").read_text()


def test_pieces_in_order(runs):
    """Guards against: the third round of one row before the first of another."""
    runs.rows = ["loop", "longest"]  # three rounds, and one
    assert checked.pieces_of_work(runs) == [
        ("loop", 0, 1),
        ("longest", 0, 1),
        ("loop", 1, 1),
        ("longest", 1, 1),
        ("loop", 0, 2),
        ("loop", 1, 2),
        ("loop", 0, 3),
        ("loop", 1, 3),
    ]


def test_what_is_there_is_not_made_again(runs, monkeypatch, capsys):
    """Guards against: hours of work done twice, and a piece that starts after the time is over."""
    made = []
    monkeypatch.setattr(checked, "make_run", lambda args, *piece: made.append(piece))
    monkeypatch.setattr(checked, "examine_more", lambda args, exam, *piece: None)
    checked.work(runs, EXAM)
    assert ("loop", 0, 1) not in made and ("loop", 0, 2) in made and ("random pairs", 1, 3) in made
    made.clear()
    runs.minutes = -1
    checked.work(runs, EXAM)
    assert made == [] and "the same command goes on" in capsys.readouterr().out


def test_a_row_keeps_its_own_settings(runs, monkeypatch):
    """Guards against: a ceiling with half of the pairs, since settings after -- came last."""
    commands = []

    def run(words: list) -> argparse.Namespace:
        commands.append(words)
        return argparse.Namespace(returncode=0)

    monkeypatch.setattr(checked.subprocess, "run", run)
    for name, value in {"model": "m", "ift": "i", "ranked": None}.items():
        setattr(runs, name, value)
    runs.extra = ["--confident", "0.75"]
    monkeypatch.setattr(checked, "inherit", lambda *words: None)
    checked.make_run(runs, "truth as judge", 1, 3)
    checked.make_run(runs, "loop", 1, 3)
    (_, program, variant, *ceiling), (_, _, *loop) = commands
    assert program == checked.ROOT / "experiments/variants.py" and variant == "oracle-judge"
    assert parse([*ceiling], "").config.confident == 1
    assert parse([*loop], "").config.confident == 0.75
    assert parse([*loop], "").config.run == "ck-loop-s1"


def test_every_row_has_a_command():
    """Guards against: a row that fails after hours because its variant was renamed."""
    from experiments.variants import VARIANTS

    for command, rounds, _ in checked.ROWS.values():
        program, *words = command.split()
        assert 1 <= rounds <= 3 and (checked.ROOT / program).exists()
        if program.endswith("variants.py"):
            assert words[0].partition("=")[0] in VARIANTS


def test_a_whole_experiment(checkpoint, monkeypatch, capsys):
    """Guards against: rows that do not share M_1 and its answers, a second run that works again."""
    chat = Chat(checkpoint)
    likely = dict.fromkeys([chat.tokenizer.token_to_id("y"), chat.tokenizer.token_to_id("n")], 8)
    sizes = {"model_type": "llama", "max_position_embeddings": 2048}
    save(leaning_gpt(likely | {chat.eos: 7}, **sizes), checkpoint)
    write_jsonl(Path("ift.jsonl"), examples_of(60))
    Path("prompts.txt").write_text("".join(f"Speak of thing {i}.\n" for i in range(18)))
    settings = "--prompts prompts.txt --n-prompts 6 --n 3 --seed-limit 4 --exam 4 --exam-n 2"
    settings += " --max-new-tokens 8 --temperature 1 --judge contrast --eft-limit 0 --dtype bf16"
    words = ["--model", str(checkpoint), "--ift", "ift.jsonl", "--seeds", "1"]
    words += ["--only", "loop;random pairs", "--", *settings.split()]
    monkeypatch.setattr(checked, "PROMPTS", 10)
    dtypes = []

    def load_and_note(folder: str, device: torch.device, dtype: torch.dtype | None = None):
        dtypes.append(dtype)
        return load_writer(folder, device, dtype)

    monkeypatch.setattr(checked, "load_writer", load_and_note)
    one_round = {row: (checked.ROWS[row][0], 1, checked.ROWS[row][2]) for row in ROWS}
    monkeypatch.setattr(checked, "ROWS", one_round)
    monkeypatch.setattr(checked, "DOCS", Path())
    monkeypatch.setattr(sys, "argv", ["checked.py", *words])
    checked.main()
    loop, control = checked.run_of("ck", "loop", 0), checked.run_of("ck", "random pairs", 0)
    for name in ("sft.jsonl", "t1/responses.jsonl", "M1/model.safetensors"):
        assert (loop / name).read_bytes() == (control / name).read_bytes()
    assert read_jsonl(loop / "t1/verdicts.jsonl") != read_jsonl(control / "t1/verdicts.jsonl")
    rows = read_jsonl(loop / "exam/M2.jsonl") + read_jsonl(loop / "exam/more-M2.jsonl")
    assert [row["id"] for row in rows] == [i for i in range(10) for _ in range(2)]
    assert len({row["prompt"] for row in rows}) == 10
    assert dtypes == [torch.bfloat16] * 3  # as the run; M_1 is shared
    table = capsys.readouterr().out.rpartition("| the loop minus")[0]
    assert cells(table, "random pairs")[1] == "1"
    monkeypatch.setattr(checked, "make_run", None)  # the second time nothing is made
    checked.main()


def test_labels_do_not_cover_each_other():
    """Guards against: two names on one spot, and a name moved without need."""
    labels = [(180, 60.0, "b"), (180, 50.0, "a"), (420, 55.0, "c"), (180, 90.0, "d")]
    placed = checked.apart(labels)
    heights = {text: y for _, y, text in placed}
    assert heights == {"a": 50.0, "b": 63.0, "c": 55.0, "d": 90.0}
    assert sorted(text for _, _, text in placed) == ["a", "b", "c", "d"]


# ---- experiments/judge_curve.py ----


def test_order_within_a_kind():
    """Guards against: pairs of different kinds, ties counted as right, a rate of the wrong sign."""
    answers = [
        {"kind": "a", "kept": True, "yes": 0.3},
        {"kind": "a", "kept": False, "yes": 0.2},
        {"kind": "b", "kept": True, "yes": 0.9},
        {"kind": "b", "kept": False, "yes": 0.9},
        {"kind": "b", "kept": False, "yes": 0.95},
        {"kind": "c", "kept": True, "yes": 0.1},
    ]
    assert judge_curve.in_order(answers) == (1 + 0.5 + 0) / 3
    assert judge_curve.in_order(answers[-1:]) is None
    low, high = judge_curve.interval_of_order(answers * 10)
    assert 0.3 < low < 0.5 < high < 0.7


def test_the_curve():
    """Guards against: a row on the line of other kinds, in the order in which it was made, or with
    another rate; a point outside the picture; a row of long ago that ends the command.
    """
    right = [{"kind": "a", "kept": True, "yes": 0.9}, {"kind": "a", "kept": False, "yes": 0.1}]
    wrong = [answer | {"kept": not answer["kept"]} for answer in right]
    rows = {"2000 x 1, rate 0.0002": (21, right), "0 x 1, rate 0.0002": (21, right + wrong)}
    rows |= {"1000 x 1, rate 0.0005": (21, right), "1000 x 1, rate 0.0002": (6, right)}
    rows |= {"1234 x 1, rate 0.0002": (21, right)}
    record = []
    for name, (kinds, answers) in rows.items():
        record.append({"row": f"{name}, {kinds} kinds", "answers": answers})
    figure = judge_curve.curve_figure(record)
    half, top = judge_curve.curve_height(0.5), judge_curve.curve_height(1.0)
    assert 285 > half > top > 0
    assert f'points="50.0,{half} 250.0,{top}"' in figure  # 21 kinds
    assert figure.count(f'points="150.0,{top}"') == 2  # 6 kinds; another rate
    assert ">1000 x 1, rate 0.0005, 21 kinds<" in figure


def test_a_judge_is_taught_and_tested(checkpoint, monkeypatch, capsys):
    """The whole command on a tiny model, which it changes, and which goes on where it stopped."""
    chat = Chat(checkpoint)
    ids = {i: 5.0 for word in ("yes", "no") for i in chat.response(word)}
    save(leaning_gpt(ids, model_type="llama", max_position_embeddings=2048), checkpoint)
    write_jsonl(Path("ift.jsonl"), examples_of(60))
    few = judge_curve.FEW
    rows = [judge_curve.Row(0, kinds=few), judge_curve.Row(40, rate=3e-3, kinds=few)]
    monkeypatch.setattr(judge_curve, "DOCS", Path())
    monkeypatch.setattr(judge_curve, "HELD_OUT", 80)
    words = ["judge_curve.py", "--model", str(checkpoint), "--ift", "ift.jsonl"]
    for known in (1, 2):
        monkeypatch.setattr(judge_curve, "ROWS", rows[:known])
        monkeypatch.setattr(sys, "argv", words)
        judge_curve.main()
    record = read_jsonl(judge_curve.RECORD)
    assert [row["row"] for row in record] == [row.name() for row in rows]
    assert all(len(row["answers"]) == 80 for row in record)
    untaught, taught = (row["answers"] for row in record)
    for one, other in zip(untaught, taught, strict=True):
        assert (one["kind"], one["kept"]) == (other["kind"], other["kept"])
        assert one["kind"] in FEW_KINDS.split(",") and abs(one["yes"] - other["yes"]) > 1e-3
    assert sum(answer["kept"] for answer in taught) == 40
    assert Path("judge-curve.md").read_text().count("\n| ") == 3
    figure = Path("judge-curve.svg").read_text()
    assert figure.count("<circle") == 2 and ">40 x 1, rate 0.003, 6 kinds<" in figure
    assert capsys.readouterr().out.count("\n40 x 1, rate 0.003, 6 kinds\n") == 1
