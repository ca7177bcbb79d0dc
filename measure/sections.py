"""measure/sections.py: the sections of the report that show figures.

In: the files of a run.  Out: one piece of HTML for each section; "" where there is nothing to show.
The sections that show texts are in measure/examples.py.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from html import escape

from core.statistics import mean, normal_interval
from measure.alarms import alarms
from measure.charts import Point, html_table, line_chart
from measure.run_files import IterationFiles, RunFiles, answer_rewards
from measure.truth import versus

ARROW = " &rarr; "
HEADLINE = (  # key in metrics.jsonl, what it is, format
    ("perfect", "perfect answers (truth)", ".1%"),
    ("true_score", "true score, 0 to 5", ".2f"),
    ("self_score", "self-given score", ".2f"),
    ("judge_pairwise", "judge accuracy", ".3f"),
    ("mean_length", "tokens an answer", ".1f"),
)
# title of a chart -> the key of each line in metrics.jsonl -> its name; "" where it is the only one
EXAM_CURVES = {
    "Score of its own answers: truth and self-given": {"true_score": "true", "self_score": "self"},
    "Perfect answers (truth)": {"perfect": ""},
    "Judge: pairwise accuracy": {"judge_pairwise": ""},
    "Judge: same order as the model before (1 alike, 0.5 unrelated)": {"agreement": ""},
    "Judge: variance of the votes on one answer": {"verdict_variance": ""},
    "Readable verdicts": {"judge_parse_rate": ""},
    "Answer length, tokens": {"mean_length": ""},
    "Finished answers": {"finished_rate": ""},
    "Distinct pairs of words": {"distinct2": ""},
}
TRAINING_CURVES = {
    "KL, nats an answer": {"kl_prev": "to the model before", "kl_first": "to M1"},
    "Log-prob of the pairs' answers, change by DPO": {
        "chosen_change": "chosen",
        "rejected_change": "rejected",
    },
    "Pairs": {"pairs": ""},
    "Pairs whose chosen answer is truly better": {"pairs_right": ""},
}
DPO_CURVES = {  # key in dpo.jsonl -> title
    "dpo_loss": "DPO loss",
    "margin": "DPO margin",
    "chosen_change": "Log-prob of chosen, change",
    "rejected_change": "Log-prob of rejected, change",
    "grad_norm": "Gradient norm",
}
# fmt: off
TABLE_KEYS = (
    "perfect", "true_score", "self_score", "win_rate", "lose_rate",
    "judge_pairwise", "judge_ties", "judge_best5", "judge_exact", "judge_spearman",
    "judge_kendall", "agreement", "verdict_variance", "judge_parse_rate",
    "finished_rate", "mean_length", "distinct2", "kl_prev", "kl_first",
    "margin", "accuracy", "chosen_change", "rejected_change", "pairs", "pairs_right", "seconds",
)
# fmt: on


def grid(charts: Sequence[str]) -> str:
    return f'<div class="grid">{"".join(charts)}</div>'


# ---- the whole run ----


def headline_section(run: RunFiles) -> str:
    """The main figures of the first model and of the last."""
    first = run.models[0]
    last = run.models[-1]
    boxes = []
    for key, what, form in HEADLINE:
        if first.get(key) is not None and last.get(key) is not None:
            change = f"{first[key]:{form}}{ARROW}{last[key]:{form}}"
            boxes.append(f"<div><b>{change}</b>{what}</div>")
    if len(run.models) > 1:
        boxes.append(wins_box(run))
    title = f"{first['model']}{ARROW}{last['model']}"
    return f'<h2>{title}</h2><div class="big">{"".join(boxes)}</div>'


def wins_box(run: RunFiles) -> str:
    """How often the last model beats M1; "" where the truth about an answer is missing."""
    first = run.models[0]
    last = run.models[-1]
    first_scores = [answer["true_score"] for answer in run.exam.get(first["t"], [])]
    last_scores = [answer["true_score"] for answer in run.exam.get(last["t"], [])]
    if not first_scores or not last_scores or None in first_scores + last_scores:
        return ""
    shares = versus(last_scores, first_scores)
    return (
        f"<div><b>{shares['win_rate']:.1%} / {shares['lose_rate']:.1%}</b>"
        f"{last['model']} wins / loses against {first['model']} (truth)</div>"
    )


def loop_section(run: RunFiles) -> str:
    """The picture of the method, with the numbers of this run."""
    if not run.iterations:
        return ""
    every = run.iterations.values()
    prompts = [f"{len(files.prompts):,}" for files in every]
    answers = [f"{len(files.responses):,}" for files in every]
    verdicts = [f"{len(files.verdicts):,}" for files in every]
    pairs = [f"{len(files.pairs):,}" for files in every]
    steps = [f"{len(files.dpo)} steps" for files in every]
    boxes = [
        loop_box("new prompts {x}", prompts),
        loop_box("M_t answers {y}", answers),
        loop_box("M_t judges {r}", verdicts),
        loop_box("pairs (x, y_w, y_l)", pairs),
        loop_box(f"DPO{ARROW}M_t+1", steps),
    ]
    picture = '<span class="arrow">&rarr;</span>'.join(boxes)
    return (
        f'<h2>The loop</h2><div class="loop">{picture}</div>'
        "<p>One number a trip round the loop.</p>"
    )


def loop_box(title: str, numbers: Sequence[str]) -> str:
    return f'<div class="step"><b>{title}</b>{ARROW.join(numbers)}</div>'


def alarm_section(run: RunFiles) -> str:
    items = [
        f'<li><b class="alarm">{model}: {escape(what)}</b><br>{escape(advice)}</li>'
        for model, what, advice in alarms(run)
    ]
    if not items:
        return "<h2>Alarms</h2><p>None: no threshold was crossed.</p>"
    return f"<h2>Alarms</h2><ul>{''.join(items)}</ul>"


# ---- curves and table, of several runs ----


def curve_section(runs: Sequence[RunFiles]) -> str:
    """The figures of metrics.jsonl over the models."""
    longest = max((run.models for run in runs), key=len)
    names = [figures["model"] for figures in longest]
    charts = []
    for title, lines in (EXAM_CURVES | TRAINING_CURVES).items():
        series = {}
        for run in runs:
            for key, name in lines.items():
                series[f"{run.name} {name}" if len(runs) > 1 else name] = curve(run, key)
        charts.append(line_chart(title, series, x_names=names))
    return (
        "<h2>Curves</h2><p>One point a model; bars are 95 % intervals over the held-out answers "
        "or groups, where a figure is a mean of such.</p>" + grid(charts)
    )


def curve(run: RunFiles, key: str) -> list[Point]:
    """One figure over the models, with its interval where there is one."""
    points = []
    for figures in run.models:
        if figures.get(key) is None:
            continue
        if key == "judge_pairwise" and figures.get("judge_interval"):
            low, high = figures["judge_interval"]  # bootstrap over groups
        else:
            low, high = normal_interval(values_behind(key, run.exam.get(figures["t"], [])))
        points.append(Point(figures["t"], figures[key], low, high))
    return points


def values_behind(key: str, answers: Sequence[dict]) -> list[float]:
    """The values whose mean is the figure `key`, one an answer; [] for a figure of another kind."""
    if key in ("perfect", "true_score"):
        scores = [answer.get("true_score") for answer in answers]
        known = [score for score in scores if score is not None]
        return [float(score == 5 if key == "perfect" else score) for score in known]
    if key == "self_score":
        scores = [answer.get("self_score") for answer in answers]
        return [float(score) for score in scores if score is not None]
    if key == "finished_rate":
        return [float(answer["finished"]) for answer in answers]
    if key == "mean_length":
        return [float(len(answer["tokens"])) for answer in answers]
    return []


def table_section(runs: Sequence[RunFiles]) -> str:
    """The figures of all models, one column a model."""
    names = []
    models = []
    for run in runs:
        for figures in run.models:
            names.append(f"{run.name} {figures['model']}" if len(runs) > 1 else figures["model"])
            models.append(figures)
    lines = []
    for key in TABLE_KEYS:
        values = [figures.get(key) for figures in models]
        if any(value is not None for value in values):
            lines.append([key, *values])
    return "<h2>Table</h2>" + html_table(["", *names], lines)


# ---- judge and pairs ----


def judge_section(run: RunFiles) -> str:
    """What the judge gave: against the truth in the exam, and to the answers of each iteration."""
    series = {f"M{t}": calibration_curve(answers) for t, answers in run.exam.items()}
    chart = line_chart("True score (up) against given score (right)", series)
    lines = []
    for t, files in run.iterations.items():
        counts = Counter(round(reward) for reward in answer_rewards(files).values())
        lines.append([f"M{t}", *(counts[score] for score in range(6))])
    histogram = html_table(["answers given", "0", "1", "2", "3", "4", "5"], lines)
    return f"<h2>The judge</h2>{grid([chart])}<h3>Scores of its own answers</h3>{histogram}"


def calibration_curve(answers: Sequence[dict]) -> list[Point]:
    """The mean true score of the answers to which the model gave 0, 1 ... 5."""
    true_scores = defaultdict(list)
    for answer in answers:
        if answer.get("self_score") is not None and answer.get("true_score") is not None:
            true_scores[round(answer["self_score"])].append(answer["true_score"])
    return [Point(score, mean(truths)) for score, truths in sorted(true_scores.items())]


def funnel_section(run: RunFiles) -> str:
    parts = []
    for t, files in run.iterations.items():
        lines = funnel(files, run.settings["n_prompts"])
        parts.append(f"<h3>From M{t}</h3>{html_table(['stage', 'left', 'what was lost'], lines)}")
    return "<h2>From prompts to pairs</h2>" + "".join(parts) if parts else ""


def funnel(files: IterationFiles, n_prompts: int) -> list[tuple[str, int, str]]:
    """(stage, how many are left, what was lost), from the prompts asked for to the pairs.

    It ends at the last stage that has begun: what is not made yet is not lost.
    """
    prompts = len(files.prompts)
    too_few = n_prompts - prompts
    stages = [
        ("prompts asked for", n_prompts, ""),
        ("prompts kept", prompts, f"{too_few} too few; the log tells what was refused"),
    ]
    if not files.responses:
        return stages
    answers = len(files.responses)
    finished = sum(answer["finished"] for answer in files.responses)
    stages += [
        ("answers", answers, ""),
        ("finished answers", finished, f"{answers - finished} did not end within the limit"),
    ]
    if not files.verdicts:
        return stages
    rewards = answer_rewards(files)
    unreadable = finished - len(rewards)
    scores_of_prompt = Counter(prompt for prompt, _ in rewards)
    comparable = sum(scores > 1 for scores in scores_of_prompt.values())
    stages += [
        ("answers with a score", len(rewards), f"{unreadable} without a readable verdict"),
        ("prompts with two scores", comparable, f"{prompts - comparable} with fewer"),
    ]
    if files.pairs:
        pairs = len(files.pairs)
        stages.append(("pairs", pairs, f"{comparable - pairs} with all scores equal"))
    return stages


# ---- training, time and settings ----


def training_section(run: RunFiles) -> str:
    """Losses and what else was logged at each step of SFT and of DPO."""
    sft = [Point(step["step"], step["loss"]) for step in run.sft]
    charts = [line_chart("SFT loss", {"loss": sft})]
    for key, title in DPO_CURVES.items():
        series = {}
        for t, files in run.iterations.items():
            steps = [step for step in files.dpo if key in step]
            series[f"M{t + 1}"] = [Point(step["step"], step[key]) for step in steps]
        charts.append(line_chart(title, series))
    return "<h2>Training</h2>" + grid(charts)


def log_section(run: RunFiles) -> str:
    lines = [
        (f"M{entry['t']} {entry['stage']}", f"{entry['seconds']:.1f}", entry["told"])
        for entry in run.log
    ]
    return "<h2>Every stage</h2>" + html_table(["stage", "seconds", "what it said"], lines)


def settings_section(run: RunFiles) -> str:
    lines = [(name, value) for name, value in run.settings.items() if value is not None]
    table = html_table(["setting", "value"], lines)
    return f"<h2>Settings</h2><details><summary>all</summary>{table}</details>"
