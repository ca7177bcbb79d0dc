"""The report: one page from a run's files, at any moment of the run, and alarms that ring when
they should."""

import json
import random
import re
import shutil
import statistics
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from conftest import ROOT, assert_refused, command

from measure.alarms import alarms
from measure.charts import Point, curve, line_chart, round_ticks
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
    "finished_rate": 0.95,
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
        ({"finished_rate": 0.8}, {}, "Endless"),
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


# ---- made runs: kinds of requirement, controls, several answers to a prompt ----
EVIL = "<img src=x onerror=alert(1)>\"'&"
KINDS = [f"kind_{letter}" for letter in "abcdefghij"] + [
    "number_of_highlighted_parts",
    "two_answers",
]


def fake_run(folder: Path, *, kinds: list[str] = (), samples: int = 2, models: int = 4) -> Path:
    """A run directory of plausible figures, made without training."""
    rng = random.Random(folder.name)
    folder.mkdir(parents=True)
    record = {"device": "cpu", "torch": "2", "settings": {"seed": 0, "n_prompts": 2}}
    (folder / "config.json").write_text(json.dumps(record))
    (folder / "exam").mkdir()
    metrics = []
    for t in range(1, models + 1):
        right = 0.4 + 0.08 * t + 0.12 * rng.random()
        answers = []
        for i in range(40):
            for sample in range(samples):
                answer = {"id": i, "prompt": f"Prompt {i}", "response": f"M{t}, sample {sample}"}
                answer |= {"finished": True, "tokens": [1] * (20 + 5 * t + rng.randint(0, 30))}
                score = 5 if rng.random() < right else rng.randint(0, 4)
                answer |= {"self_score": (score + 5) / 2, "true_score": score}
                answers.append(answer | ({"sample": sample} if samples > 1 else {}))
        write_rows(folder / f"exam/M{t}.jsonl", answers)
        scores = [answer["true_score"] for answer in answers]
        figures = {"model": f"M{t}", "t": t, "seconds": 100.0 + t, "finished_rate": 1.0}
        figures |= {"true_score": statistics.mean(scores), "perfect": scores.count(5) / len(scores)}
        figures["self_score"] = statistics.mean(answer["self_score"] for answer in answers)
        figures["mean_length"] = statistics.mean(len(answer["tokens"]) for answer in answers)
        figures |= {"judge_pairwise": right, "judge_interval": [right - 0.04, right + 0.03]}
        if t > 1:
            figures |= {"pairs": 1100 + 130 * t, "agreement": right, "kl_prev": 2.1, "kl_first": t}
            figures |= {"pairs_right": right, "pairs_wrong": 0.9 - right, "pairs_equal": 0.1}
            figures |= {"pairs_truth_gap": right - 0.2, "pairs_length_gap": 7.25 - t}
        if kinds:
            figures["kinds"] = {kind: min(1, 0.2 * t + 0.3 * rng.random()) for kind in kinds}
            figures["kinds_unseen"] = kinds[-2:]
        metrics.append(figures)
    write_rows(folder / "metrics.jsonl", metrics)
    return folder


def write_rows(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def charts_of(html: str) -> list[tuple[str, str]]:
    """(title, all the rest) of each chart of a page."""
    return re.findall(r"<figure><figcaption>(.*?)</figcaption>(.*?)</figure>", html)


def section(html: str, heading: str) -> str:
    return html.partition(f"<h2>{heading}")[2].partition("<h2>")[0]


def test_truth_by_kind(tmp_path):
    """Guards against: a kind left out, a kind that training saw marked as new, length far away."""
    html = write_report([fake_run(tmp_path / "a", kinds=KINDS)]).read_text()
    titles, charts = zip(*charts_of(section(html, "Truth by kind")))
    assert titles[0] == "Answer length, tokens"
    assert list(titles[1:-2]) == KINDS[:-2]
    assert list(titles[-2:]) == [f"{kind} (never trained on)" for kind in KINDS[-2:]]
    assert all(chart.count("<circle") == 4 and "M4</text>" in chart for chart in charts)
    shares = [figures["kinds"][KINDS[0]] for figures in load_run(tmp_path / "a").models]
    assert re.findall(r"<title>(.*?)<", charts[1]) == [f"{share:.4g}" for share in shares]
    assert all(
        tick_labels(chart) == ["0.00", "0.25", "0.50", "0.75", "1.00"] for chart in charts[1:]
    )


def test_kinds_never_seen_come_last(tmp_path):
    folder = fake_run(tmp_path / "a", kinds=["new", "newer", "old", "older"])
    rows = [row | {"kinds_unseen": ["new", "newer"]} for row in load_run(folder).models]
    rows[0] |= {"kinds": None, "kinds_unseen": None}
    write_rows(folder / "metrics.jsonl", rows)
    titles = [title for title, _ in charts_of(section(page([load_run(folder)]), "Truth by kind"))]
    mark = " (never trained on)"
    assert titles[1:] == ["old", "older", "new" + mark, "newer" + mark]


def test_no_kinds_no_section(tmp_path):
    assert "Truth by kind" not in write_report([fake_run(tmp_path / "a")]).read_text()


def test_length_stands_beside_the_truth(tmp_path):
    """Guards against: a rise of the truth that a reader does not see paid for with length."""
    html = write_report([fake_run(tmp_path / "a")]).read_text()
    titles = [title for title, _ in charts_of(section(html, "Curves"))]
    assert titles.index("Answer length, tokens") == titles.index("Perfect answers (truth)") + 1


def test_controls_are_grey(tmp_path):
    """Guards against: a control that looks like a run, hides it, or joins its table."""
    names = ("a", "plain", "oracle")
    folder, *controls = (fake_run(tmp_path / name, kinds=KINDS) for name in names)
    html = write_report([folder], controls).read_text()
    parser = Balanced()
    parser.feed(html)
    assert parser.open == []
    charts = charts_of(section(html, "Curves")) + charts_of(section(html, "Truth by kind"))
    assert len(charts) > 20
    firsts = []
    for _, chart in charts:
        lines = re.findall(r'<g style="(.*?)">(.*?)</g>', chart)
        grey = [(style, line) for style, line in lines if "--soft" in style]
        # Behind the line of the run, thinner, without an interval, each with a dash of its own
        assert len(grey) == 2 * (len(lines) - len(grey)) and lines[: len(grey)] == grey
        assert len({style for style, _ in grey}) == len(grey)
        assert all("stroke-width:1.2;stroke-dasharray" in style for style, _ in grey)
        assert not any('class="bar"' in line for _, line in grey)
        legend = re.findall(r'<span style="(.*?)">.*?</svg> (.*?)</span>', chart)
        by_name = {name: style for style, name in legend}
        assert {name.split()[0] for name in by_name} == set(names)
        for name, style in by_name.items():
            assert ("--soft" in style) == (name.split()[0] != "a")
        # The first line of a run looks the same in all charts.
        firsts.append({name.split()[0]: by_name[name] for name in reversed(by_name)})
    assert all(first == firsts[0] for first in firsts)
    assert 'class="bar"' in section(html, "Curves")
    table = section(html, "Table")
    assert "plain" not in table and table.count("<th>") == 5
    assert "<title>Self-rewarding run a</title>" in html


def test_a_control_alone_makes_no_chart():
    points = [Point(1, 1), Point(2, 2)]
    assert line_chart("x", {"a": [], "b": points}, controls={"b"}) == ""


def test_runs_of_one_name(tmp_path):
    """Guards against: the second of two runs/*/toy drawn over the first."""
    folders = [fake_run(tmp_path / place / "toy") for place in ("one", "two", "three")]
    html = write_report(folders[:2], folders[2:]).read_text()
    charts = dict(charts_of(html))
    assert charts["Perfect answers (truth)"].count("<polyline") == 3
    assert all(str(folder) in charts["Perfect answers (truth)"] for folder in folders)


def test_hostile_names(tmp_path):
    """Guards against: a kind, or the folder of a control, that becomes part of the page."""
    folder = fake_run(tmp_path / "a", kinds=[EVIL, "b", "c"])
    control = fake_run(tmp_path / EVIL.replace("/", ""), kinds=["b"])
    html = write_report([folder], [control]).read_text()
    parser = Balanced()
    parser.feed(html)
    assert parser.open == [] and parser.fetched == []
    assert "<img" not in html and html.count("&lt;img") > 10


def test_figures_of_the_pairs(tmp_path):
    """Guards against: labels that are wrong, or longer answers chosen, and no one who sees it."""
    folder = fake_run(tmp_path / "a")
    html = write_report([folder]).read_text()
    charts = dict(charts_of(html))
    by_truth = charts["Chosen answers of the pairs, by the truth"]
    assert by_truth.count("<polyline") == 3
    assert all(f" {name}</span>" in by_truth for name in ("better", "worse", "equally good"))
    for title in ("True score in the pairs", "Tokens in the pairs"):
        assert charts[f"{title}, chosen minus rejected"].count("<circle") == 3
    last = load_run(folder).models[-1]
    for key in ("pairs_wrong", "pairs_equal", "pairs_truth_gap", "pairs_length_gap"):
        assert re.search(rf"<td>{key}</td>.*?<td>{last[key]:.3f}</td></tr>", html)


@pytest.mark.parametrize("samples", [1, 3])
def test_before_and_after_show_one_answer_to_each_prompt(tmp_path, samples):
    """Guards against: sample 1 of M4 beside sample 0 of M1; older runs without numbers."""
    html = write_report([fake_run(tmp_path / "a", samples=samples)]).read_text()
    shown = section(html, "The same held-out prompts")
    assert re.findall("<summary>(.*?)</summary>", shown) == [f"Prompt {i}" for i in range(16)]
    assert re.findall("<pre>(.*?)</pre>", shown) == ["M1, sample 0", "M4, sample 0"] * 16


def test_interval_counts_a_prompt_once(tmp_path):
    """Guards against: a narrower interval because the same prompts were answered more often."""
    run = load_run(fake_run(tmp_path / "a", samples=1))
    more = run._replace(exam={t: [*rows, *rows, *rows] for t, rows in run.exam.items()})
    for once, thrice in zip(curve(run, "true_score"), curve(more, "true_score")):
        assert once == pytest.approx(thrice)


# ---- axes ----
def tick_labels(chart: str) -> list[str]:
    return re.findall(r'text-anchor="end">(.*?)<', chart)


@pytest.mark.parametrize(
    "low, high, labels",
    [
        (0.934, 0.951, "0.93 0.94 0.95 0.96"),
        (0.1, 0.94, "0.00 0.25 0.50 0.75 1.00"),
        (0.3, 0.7, "0.3 0.4 0.5 0.6 0.7"),
        (812, 1490, "800 1,000 1,200 1,400 1,600"),
        (11_010, 11_090, "11,000 11,025 11,050 11,075 11,100"),
        (33, 61, "30 40 50 60 70"),
        (-6.3, 1.2, "-7.5 -5.0 -2.5 0.0 2.5"),
        (0.00031, 0.00052, "0.0003 0.0004 0.0005 0.0006"),
        (1, 1, "0.90 0.95 1.00 1.05 1.10"),
        (0, 0, "-0.50 -0.25 0.00 0.25 0.50"),
    ],
)
def test_ticks_are_round(low, high, labels):
    """Guards against: an axis of 0.687, 0.934 and so on, which nobody can read."""
    assert tick_labels(line_chart("x", {"": [Point(1, low), Point(2, high)]})) == labels.split()


def test_ticks_of_any_range():
    """Guards against: two ticks, twenty ticks, a point outside the axis, a step of 3, noise."""
    rng = random.Random(0)
    for _ in range(3000):
        spread = 10 ** rng.uniform(-6, 6)
        low = rng.choice([-1, 1, 0]) * spread * 10 ** rng.uniform(-3, 3)
        high = low + spread
        ticks, decimals = round_ticks(low, high)
        step = ticks[1] - ticks[0]
        assert 3 <= len(ticks) <= 5
        assert ticks[0] <= low + 1e-6 * step and high - 1e-6 * step <= ticks[-1]
        assert spread >= 0.49 * (ticks[-1] - ticks[0]), "most of the height is used"
        assert f"{step:.6e}"[:4] in ("1.00", "2.00", "2.50", "5.00")
        assert ticks == [float(f"{tick:.{decimals}f}") for tick in ticks]
    assert len(round_ticks(0.3, 0.1 + 0.2)[0]) <= 5, "the same value, but for the last bit"


def test_names_of_many_models_do_not_touch():
    names = [f"M{t}" for t in range(1, 21)]
    points = [Point(t, t) for t in range(1, 21)]
    chart = line_chart("x", {"": points}, x_names=names)
    assert re.findall(r">(M\d+)<", chart) == ["M1", "M4", "M7", "M10", "M13", "M16", "M19"]


def test_a_figure_that_is_not_a_number(tmp_path):
    """Guards against: a run that ends because its report cannot draw NaN."""
    folder = fake_run(tmp_path / "a")
    rows = load_run(folder).models
    rows[1]["kl_prev"], rows[2]["kl_prev"] = float("nan"), float("inf")
    write_rows(folder / "metrics.jsonl", rows)
    assert dict(charts_of(write_report([folder]).read_text()))["KL, nats an answer"]


# ---- command line and browser ----
def test_command_line(folder):
    done = report_command(folder)
    assert done.returncode == 0 and done.stdout.strip() == str(folder / "report.html")


def report_command(*arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "report.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def test_command_line_with_controls(tmp_path):
    folders = [fake_run(tmp_path / name) for name in "abcd"]
    done = report_command(*folders[:2], "--controls", *folders[2:])
    assert done.returncode == 0 and done.stdout.strip() == str(folders[0] / "report.html")
    chart = dict(charts_of((folders[0] / "report.html").read_text()))["Perfect answers (truth)"]
    assert chart.count("<g ") == 4 and chart.count('<g style="color:var(--soft)') == 2


@pytest.mark.parametrize(
    "arguments, says",
    [
        ([], "no run given"),
        (["nowhere"], "no run in nowhere"),
        (["--controls", "A"], "no run given"),
        (["A", "--controls"], "no run after --controls"),
        (["A", "--controls", "nowhere"], "no run in nowhere"),
        (["A", "--control", "A"], "no run in --control"),
    ],
)
def test_command_line_refuses(tmp_path, arguments, says):
    folder = fake_run(tmp_path / "A")
    done = report_command(*(folder if word == "A" else word for word in arguments))
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"error: {says}; usage: ")
    assert not (folder / "report.html").exists()


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


# ---- damaged and foreign files ----

FILES = ["metrics.jsonl", "log.jsonl", "sft.jsonl", "exam/M1.jsonl", "exam/M2.jsonl"]
FILES += [f"t1/{stage}.jsonl" for stage in ("prompts", "responses", "verdicts", "pairs", "dpo")]
DAMAGE = {
    "cut off": lambda text: text[: len(text) // 2],
    "no JSON": lambda text: "these are no rows\n",
    "bytes": lambda text: "\ufffd\0" * 50,
    "numbers": lambda text: "1\n2\n",
    "other keys": lambda text: '{"a": 1}\n' * 3,
    "nulls": lambda text: text.replace(": ", ": null, "),
    "texts for numbers": lambda text: re.sub(r": -?\d[\d.e-]*", ': "x"', text),
    "lists for texts": lambda text: re.sub(r': "[^"]*"', ": []", text),
    "evil texts": lambda text: re.sub(r': "[^"]*"', f": {json.dumps(EVIL)}", text),
}


# a third of all pairs: each file and each damage comes three times or more
DAMAGED = [
    (name, d) for i, name in enumerate(FILES) for j, d in enumerate(DAMAGE) if (i + j) % 3 == 0
]


@pytest.mark.parametrize("name, damage", DAMAGED)
def test_damaged_files(folder, name, damage):
    """Guards against: a traceback instead of a page, and a page that hides what is missing.

    Whatever a file holds, nothing of it becomes part of the page.
    """
    path = folder / name
    text = DAMAGE[damage](path.read_text())
    path.write_text(text)
    html = write_report([folder]).read_text()
    parser = Balanced()
    parser.feed(html)
    assert parser.open == [] and parser.fetched == []
    assert "<img" not in html and "<h1>Self-rewarding run" in html
    if damage in ("no JSON", "bytes", "numbers"):
        assert f"Left out: {folder}/{name}" in html


def test_evil_record(tmp_path):
    """Guards against: a device, a seed or the name of a model that becomes part of the page."""
    folder = fake_run(tmp_path / "a")
    record = {"device": EVIL, "torch": EVIL, "settings": {"seed": EVIL, EVIL: EVIL}}
    (folder / "config.json").write_text(json.dumps(record))
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    rows = [row | {"model": EVIL} for row in rows]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    html = write_report([folder]).read_text()
    assert "<img" not in html and html.count("&lt;img") >= 4 and "<td>M4 exam" not in html


@pytest.mark.parametrize("record", ["[]", "{}", "{", '{"settings": 3}', '{"model_type": "llama"}'])
def test_a_folder_that_is_no_run(tmp_path, record):
    """Guards against: a traceback for the folder of a model, or of something else."""
    (tmp_path / "config.json").write_text(record)
    assert_refused(command("report.py", tmp_path), "config.json")
