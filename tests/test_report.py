"""The report: one page from a run's files, at any moment of the run, and alarms that ring when
they should."""

import json
import re
import shutil
import statistics
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from conftest import ROOT

from measure.alarms import alarms
from measure.charts import Point, curve, line_chart
from measure.page import funnel, page, write_report
from measure.run_files import RunFiles, answer_rewards, load_run

CHROMIUM = shutil.which("chromium")
VOID = {"meta", "input", "br", "line", "circle", "polyline"}


class Balanced(HTMLParser):
    """Fails where a tag is closed that is not open, and remembers what the page would fetch."""

    def __init__(self):
        super().__init__()
        self.open = []
        self.fetched = []

    def handle_starttag(self, tag, attrs):
        if tag not in VOID:
            self.open.append(tag)
        self.fetched += [v for k, v in attrs if k in ("src", "href", "action")]

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag, (tag, self.open[-3:])


@pytest.fixture
def folder(finished, tmp_path) -> Path:
    return Path(shutil.copytree(finished / "runs/toy", tmp_path / "toy"))


def test_a_finished_run(folder):
    """Guards against: broken markup, a page that needs the network, a page too heavy to send."""
    html = write_report([folder]).read_text()
    parser = Balanced()
    parser.feed(html)
    assert parser.open == []
    assert parser.fetched == [] and "http" not in html
    assert len(html) < 1_000_000
    for heading in (
        "The loop",
        "Alarms",
        "Curves",
        "Table",
        "The judge",
        "From prompts to pairs",
        "Training",
        "Examples",
        "Every stage",
        "Settings",
    ):
        assert f"<h2>{heading}" in html, heading
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert f"{metrics[0]['perfect']:.1%} &rarr; {metrics[-1]['perfect']:.1%}" in html


def test_the_run_writes_it_itself(finished):
    """Guards against: a report that one has to ask for, or that is one stage behind."""
    html = (finished / "runs/toy/report.html").read_text()
    assert "<td>M2 exam</td>" in html


@pytest.mark.parametrize(
    "gone",
    [
        "metrics.jsonl",
        "t1/dpo.jsonl",
        "t1/pairs.jsonl",
        "t1/verdicts.jsonl",
        "t1/responses.jsonl",
        "exam/M2.jsonl",
        "sft.jsonl",
    ],
)
def test_in_the_middle_of_a_run(folder, gone):
    """Guards against: a page that can only be made at the end."""
    later = {
        "t1/responses.jsonl": ["t1/verdicts.jsonl", "t1/pairs.jsonl"],
        "t1/verdicts.jsonl": ["t1/pairs.jsonl"],
    }
    for name in [gone, *later.get(gone, [])]:
        (folder / name).unlink()
    parser = Balanced()
    parser.feed(write_report([folder]).read_text())
    assert parser.open == []


def test_hostile_texts(folder):
    """Guards against: an answer that becomes part of the page."""
    evil = "</pre><script>alert(1)</script><img src=x onerror=alert(1)>\"'&"
    for name, key in (
        ("t1/responses.jsonl", "response"),
        ("t1/pairs.jsonl", "prompt"),
        ("t1/verdicts.jsonl", "text"),
        ("exam/M1.jsonl", "prompt"),
    ):
        rows = [json.loads(line) | {key: evil} for line in (folder / name).read_text().splitlines()]
        (folder / name).write_text("".join(json.dumps(r) + "\n" for r in rows))
    html = write_report([folder]).read_text()
    assert "<script>alert" not in html and "<img" not in html and html.count("<script>") == 1


def test_several_runs(folder, tmp_path):
    other = Path(shutil.copytree(folder, tmp_path / "other"))
    html = page([load_run(folder), load_run(other)])
    assert "toy M1" in html and "other M1" in html


def test_funnel(folder):
    """Guards against: losses that do not add up."""
    run = load_run(folder)
    stages = funnel(run.iterations[1], run.record["settings"]["n_prompts"])
    left = {stage: count for stage, count, _ in stages}
    lost = {stage: sentence for stage, _, sentence in stages}
    assert lost["pairs"].startswith(f"{left['prompts with two scores'] - left['pairs']} ")
    assert left["prompts asked for"] >= left["prompts kept"] >= left["prompts with two scores"]
    assert left["prompts with two scores"] >= left["pairs"] == len(run.iterations[1].pairs)
    assert left["answers"] == left["prompts kept"] * run.record["settings"]["n"]
    assert left["answers"] >= left["finished answers"] >= left["answers with a score"] > 0


@pytest.mark.parametrize(
    "gone, last",
    [
        (("pairs",), "prompts with two scores"),
        (("pairs", "verdicts"), "finished answers"),
        (("pairs", "verdicts", "responses"), "prompts kept"),
    ],
)
def test_funnel_in_the_middle_of_a_trip(folder, gone, last):
    """Guards against: what is not made yet told as lost."""
    files = load_run(folder).iterations[1]
    unfinished = files._replace(**{stage: [] for stage in gone})
    assert funnel(unfinished, 24)[-1][0] == last


def test_more_lines_than_colours():
    """Guards against: a chart that drops what it has no colour for, with four runs side by side or
    eight rounds."""
    series = {f"M{i}": [Point(1, i), Point(2, i)] for i in range(9)}
    assert line_chart("x", series).count("<polyline") == 9


def test_rewards_are_those_of_the_run(folder):
    """Guards against: another mean than the one that chose the pairs."""
    run = load_run(folder)
    rewards = answer_rewards(run.iterations[1])
    for pair in run.iterations[1].pairs:
        assert rewards[pair["id"], pair["chosen_sample"]] == pytest.approx(pair["chosen_score"])
        assert rewards[pair["id"], pair["rejected_sample"]] == pytest.approx(pair["rejected_score"])


# ---- alarms ----
def made(models: list[dict], scores: list[float] = (3.0, 4.0)) -> RunFiles:
    """A run of these figures, in which M2 gave its answers these scores."""
    return RunFiles(
        name="x",
        record={"settings": {"n_prompts": 2, "seed": 0}},
        models=[{"model": f"M{t}", "t": t, **figures} for t, figures in enumerate(models, 1)],
        log=[],
        sft=[],
        exam={2: [{"self_score": score} for score in (*scores, None)]},
        iterations={},
    )


CALM = {
    "judge_pairwise": 0.9,
    "mean_length": 10.0,
    "pairs": 100,
    "self_score": 4.0,
    "true_score": 3.9,
    "distinct2": 0.8,
    "judge_parse_rate": 1.0,
}


@pytest.mark.parametrize(
    "changed, more, says",
    [
        ({}, {"scores": [5.0, 5.0]}, "saturation"),
        ({"judge_pairwise": 0.8}, {}, "drift"),
        ({"mean_length": 16.0}, {}, "Length"),
        ({"judge_parse_rate": 0.7}, {}, "format"),
        ({"pairs_right": 0.4}, {}, "labels"),
        ({"chosen_change": -2.0}, {}, "pushes both"),
        ({"pairs": 40}, {}, "yield"),
        ({"self_score": 4.6}, {}, "flatters"),
        ({"self_score": 4.1, "true_score": 3.8}, {}, "hacking"),
        ({"distinct2": 0.5}, {}, "diversity"),
    ],
    ids=lambda v: str(v)[:20],
)
def test_alarms(changed, more, says):
    """Guards against: an alarm that never rings, and one that always does."""
    assert alarms(made([CALM, CALM])) == []
    [(model, what, advice)] = alarms(made([CALM, {**CALM, **changed}], **more))
    assert model == "M2" and says in advice and "threshold" in what


def test_intervals(folder):
    """Guards against: curves without their spread, and another spread than that of the answers
    behind a point."""
    run = load_run(folder)
    scores = [a["true_score"] for a in run.exam[2]]
    middle = statistics.mean(scores)
    half = 1.96 * statistics.stdev(scores) / len(scores) ** 0.5
    assert curve(run, "true_score")[1] == pytest.approx((2, middle, middle - half, middle + half))
    assert curve(run, "judge_pairwise")[0][2:] == tuple(run.models[0]["judge_interval"])
    for key in ("perfect", "self_score", "finished_rate", "mean_length"):
        for point in curve(run, key):
            assert point.low <= point.y <= point.high
    first = curve(run, "kl_prev")[0]
    assert first.x == 2, "M1 has no model before it"
    assert first.low is None and first.high is None


def test_headline_compares_the_last_with_the_first(folder):
    """Guards against: a win rate against the model before, where the headline speaks of M1."""
    run = load_run(folder)
    first, last = ([a["true_score"] for a in run.exam[t]] for t in (1, 2))
    wins = statistics.mean(b > a for a, b in zip(first, last))
    assert f"<b>{wins:.1%} / " in page([run])


def test_chart_of_one_point_and_of_none():
    assert line_chart("x", {"a": []}) == ""
    assert "<circle" in line_chart("x", {"a": [Point(1, 0.5)]})


# ---- command line and browser ----
def test_command_line(folder):
    done = subprocess.run(
        [sys.executable, str(ROOT / "report.py"), str(folder)], capture_output=True, text=True
    )
    assert done.returncode == 0 and done.stdout.strip() == str(folder / "report.html")
    refused = subprocess.run(
        [sys.executable, str(ROOT / "report.py"), "nowhere"], capture_output=True, text=True
    )
    assert refused.returncode == 2 and "nowhere" in refused.stderr


def test_no_torch():
    """Guards against: seconds of imports for a page of text."""
    done = subprocess.run(
        [sys.executable, "-c", "import sys, report; print('torch' in sys.modules)"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == "False"


@pytest.mark.skipif(not CHROMIUM, reason="Chromium is not installed")
@pytest.mark.parametrize("width", [1280, 390])
def test_in_a_browser(folder, tmp_path, width):
    """Guards against: a page that a browser cannot draw, or that is wider than a phone."""
    write_report([folder])
    probe = (
        (folder / "report.html")
        .read_text()
        .replace(
            "</html>", "<script>document.title=document.documentElement.scrollWidth</script></html>"
        )
    )
    (tmp_path / "probe.html").write_text(probe)
    done = subprocess.run(
        [
            CHROMIUM,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--no-first-run",
            "--disable-background-networking",
            f"--user-data-dir={tmp_path / 'profile'}",
            f"--window-size={width},900",
            "--dump-dom",
            f"file://{tmp_path / 'probe.html'}",
        ],
        capture_output=True,
        text=True,
        timeout=60,
    )
    title = re.search(r"<title>(\d+)</title>", done.stdout)
    assert title, done.stderr[-500:]
    assert int(title[1]) <= max(width, 500), "Chromium's own smallest window is 500 wide"
