"""measure/page.py: a run's files -> one self-contained page, RUN/report.html.

In: the directories of one run or of several.  Out: HTML with inline CSS and SVG. It needs no
network, and only the filter of the examples needs JavaScript. It works in the middle of a run.
Every text of a model is escaped: no answer can become part of the page. No torch.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from html import escape
from pathlib import Path

from core.files import write_whole
from measure.alarms import alarms
from measure.charts import calibration_chart, curve_section, kind_section, training_section
from measure.run_files import IterationFiles, RunFiles, answer_rewards, load_run
from measure.table import figure_text
from measure.truth import versus

STYLE = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
FILTER = Path(__file__).with_name("page.js").read_text(encoding="utf-8").strip()
MOST_EXAMPLES = 16  # prompts of each iteration
ARROW = " &rarr; "
HEADLINE = (  # key in metrics.jsonl, what it is, format
    ("perfect", "perfect answers (truth)", ".1%"),
    ("true_score", "true score, 0 to 5", ".2f"),
    ("self_score", "self-given score", ".2f"),
    ("judge_pairwise", "judge accuracy", ".3f"),
    ("mean_length", "tokens an answer", ".1f"),
)
LOOP = (  # box of the picture, file of the stage, format of its size
    ("new prompts {x}", "prompts", "{:,}"),
    ("M_t answers {y}", "responses", "{:,}"),
    ("M_t judges {r}", "verdicts", "{:,}"),
    ("pairs (x, y_w, y_l)", "pairs", "{:,}"),
    (f"DPO{ARROW}M_t+1", "dpo", "{} steps"),
)
TABLE_KEYS = (
    "perfect true_score self_score win_rate lose_rate "
    "judge_pairwise judge_ties judge_best5 judge_exact judge_spearman judge_kendall "
    "agreement verdict_variance judge_parse_rate finished_rate mean_length distinct2 "
    "kl_prev kl_first margin accuracy chosen_change rejected_change "
    "pairs pairs_right pairs_wrong pairs_equal pairs_truth_gap pairs_length_gap seconds"
)


def write_report(folders: Sequence[Path], controls: Sequence[Path] = ()) -> Path:
    """Writes the report of the first run, with the others beside it; returns its path."""
    paths = [*folders, *controls]
    names = Counter(path.name for path in paths)
    runs = []
    for i, path in enumerate(paths):
        run = load_run(path)._replace(control=i >= len(folders))
        # Two runs of one name would be one line in a chart.
        if names[run.name] > 1:
            run = run._replace(name=str(path))
        runs.append(run)
    report = folders[0] / "report.html"
    write_whole(report, page(runs))
    return report


def page(runs: Sequence[RunFiles]) -> str:
    """All of the first run; the others join its curves and, without the controls, its table."""
    run = runs[0]
    subjects = [run for run in runs if not run.control]
    sections = [damage_section(runs)]
    if run.models:
        for section in (headline_section, loop_section, alarm_section):
            sections.append(as_far_as_it_goes(section, run))
        for section in (curve_section, kind_section):
            sections.append(as_far_as_it_goes(section, runs))
        sections.append(as_far_as_it_goes(table_section, subjects))
        for section in (judge_section, funnel_section, training_section, example_section):
            sections.append(as_far_as_it_goes(section, run))
        for section in (before_after_section, record_section):
            sections.append(as_far_as_it_goes(section, run))
    else:
        sections.append("<p>No model has been measured yet.</p>")
    title = escape("Self-rewarding run " + ", ".join(run.name for run in subjects))
    seed = run.record["settings"].get("seed")
    machine = f"{run.record.get('device')}, torch {run.record.get('torch')}, seed {seed}"
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{title}</title><style>\n{STYLE}</style><h1>{title}</h1>"
        f"<p>{escape(machine)}</p>{''.join(sections)}</html>\n"
    )


def as_far_as_it_goes(section: Callable[..., str], subject: RunFiles | Sequence[RunFiles]) -> str:
    """A section; where a file holds something else than train.py writes, a sentence instead."""
    try:
        return section(subject)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        name = section.__name__.removesuffix("_section").replace("_", " ")
        fault = escape(f"{type(error).__name__}: {error}"[:200])
        return (
            f"<h2>{name}</h2><p>The files of this run do not hold what is shown here ({fault}).</p>"
        )


def damage_section(runs: Sequence[RunFiles]) -> str:
    """What could not be read."""
    faults = [escape(fault) for run in runs for fault in run.damaged]
    return f"<p>Left out: {'<br>'.join(faults)}</p>" if faults else ""


def headline_section(run: RunFiles) -> str:
    """The main figures of the first model and of the last, and how often the last one wins."""
    first, last = run.models[0], run.models[-1]
    boxes = []
    for key, what, form in HEADLINE:
        values = [first.get(key), last.get(key)]
        if None not in values:
            change = ARROW.join(format(value, form) for value in values)
            boxes.append(f"<div><b>{change}</b>{what}</div>")
    shares = versus(run.exam[last["t"]], run.exam[first["t"]])
    if len(run.models) > 1 and shares["win_rate"] is not None:
        boxes.append(
            f"<div><b>{shares['win_rate']:.1%} / {shares['lose_rate']:.1%}</b>"
            f"{last['model']} wins / loses against {first['model']} (truth)</div>"
        )
    title = f"{first['model']}{ARROW}{last['model']}"
    return f'<h2>{title}</h2><div class="big">{"".join(boxes)}</div>'


def loop_section(run: RunFiles) -> str:
    """The picture of the method, with the numbers of this run."""
    if not run.iterations:
        return ""
    boxes = []
    for title, stage, form in LOOP:
        sizes = [form.format(len(getattr(files, stage))) for files in run.iterations.values()]
        boxes.append(f'<div class="step"><b>{title}</b>{ARROW.join(sizes)}</div>')
    picture = '<span class="arrow">&rarr;</span>'.join(boxes)
    return (
        f'<h2>The loop</h2><div class="loop">{picture}</div>'
        "<p>One number a trip round the loop.</p>"
    )


def alarm_section(run: RunFiles) -> str:
    items = [
        f'<li><b class="alarm">{model}: {escape(what)}</b><br>{escape(advice)}</li>'
        for model, what, advice in alarms(run)
    ]
    body = f"<ul>{''.join(items)}</ul>" if items else "<p>None: no threshold was crossed.</p>"
    return f"<h2>Alarms</h2>{body}"


# ---- figures ----
def table_section(runs: Sequence[RunFiles]) -> str:
    """The figures of all models, one column a model."""
    names = [""]
    models = []
    for run in runs:
        prefix = f"{run.name} " if len(runs) > 1 else ""
        names += [prefix + figures["model"] for figures in run.models]
        models += run.models
    lines = []
    for key in TABLE_KEYS.split():
        values = [figures.get(key) for figures in models]
        if any(value is not None for value in values):
            lines.append([key, *values])
    return "<h2>Table</h2>" + html_table(names, lines)


def judge_section(run: RunFiles) -> str:
    """What the judge gave: against the truth in the exam, and to the answers of each iteration."""
    lines = []
    for t, files in run.iterations.items():
        counts = Counter(round(reward) for reward in answer_rewards(files).values())
        lines.append([f"M{t}", *(counts[score] for score in range(6))])
    histogram = html_table(["answers given", *"012345"], lines)
    return (
        f'<h2>The judge</h2><div class="grid">{calibration_chart(run)}</div>'
        f"<h3>Scores of its own answers</h3>{histogram}"
    )


def funnel_section(run: RunFiles) -> str:
    parts = ""
    for t, files in run.iterations.items():
        lines = funnel(files, run.record["settings"]["n_prompts"])
        parts += f"<h3>From M{t}</h3>" + html_table(["stage", "left", "what was lost"], lines)
    return f"<h2>From prompts to pairs</h2>{parts}" if parts else ""


def funnel(files: IterationFiles, n_prompts: int) -> list[tuple[str, int, str]]:
    """(stage, how many are left, what was lost), from the prompts asked for to the pairs.

    It ends at the last stage that has begun: what is not made yet is not lost.
    """
    prompts = len(files.prompts)
    stages = [
        ("prompts asked for", n_prompts, ""),
        ("prompts kept", prompts, f"{n_prompts - prompts} too few; the log tells what was refused"),
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
        tied = comparable - len(files.pairs)
        stages.append(("pairs", len(files.pairs), f"{tied} with all scores equal"))
    return stages


def record_section(run: RunFiles) -> str:
    """Every stage with its time, and the settings."""
    lines = [
        [f"M{entry['t']} {entry['stage']}", f"{entry['seconds']:.1f}", entry["told"]]
        for entry in run.log
    ]
    stages = html_table(["stage", "seconds", "what it said"], lines)
    settings = [item for item in run.record["settings"].items() if item[1] is not None]
    table = html_table(["setting", "value"], settings)
    return (
        f"<h2>Every stage</h2>{stages}"
        f"<h2>Settings</h2><details><summary>all</summary>{table}</details>"
    )


def html_table(headings: Sequence[str], lines: Iterable[Sequence[object]]) -> str:
    """A table that scrolls sideways on a phone. None is "-"; floats have three decimals."""
    cells = [f"<th>{escape(heading)}</th>" for heading in headings]
    table = f"<tr>{''.join(cells)}</tr>"
    for line in lines:
        cells = [f"<td>{html_cell(value)}</td>" for value in line]
        table += f"<tr>{''.join(cells)}</tr>"
    return f'<div class="scroll"><table>{table}</table></div>'


def html_cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else escape(str(value))


# ---- texts ----
def example_section(run: RunFiles) -> str:
    """Pairs of each iteration, spread evenly, with all that was written on the way to them."""
    examples = []
    for t, files in run.iterations.items():
        rewards = answer_rewards(files)
        every = max(1, len(files.pairs) // MOST_EXAMPLES)
        for pair in files.pairs[::every][:MOST_EXAMPLES]:
            texts = pair_answers(pair, files, rewards)
            examples.append(example(f"M{t}: ", pair["prompt"], texts))
    if not examples:
        return ""
    script = f"<script>{FILTER}</script>"
    search_box = '<input id="q" placeholder="show only examples with ..." hidden>'
    return f"<h2>Examples: prompts, answers, verdicts</h2>{search_box}{''.join(examples)}{script}"


def pair_answers(pair: dict, files: IterationFiles, rewards: dict) -> str:
    """The N answers to the prompt of a pair, with scores and verdicts, and what became of them."""
    roles = {pair["chosen_sample"]: "chosen", pair["rejected_sample"]: "rejected"}
    verdicts = [verdict for verdict in files.verdicts if verdict["id"] == pair["id"]]
    parts = []
    for answer in files.responses:
        if answer["id"] != pair["id"]:
            continue
        role = roles.get(answer["sample"], "")
        reward = figure_text(rewards.get((answer["id"], answer["sample"])))
        ending = "" if answer["finished"] else " &middot; unfinished"
        # A judge that writes no text says what it read: digits, p(yes), or a ratio.
        texts = [
            preformatted(verdict["text"] or what_was_read(verdict), 1500)
            for verdict in verdicts
            if verdict["sample"] == answer["sample"]
        ]
        body = "".join(texts) or "<p>judged with an answer that reads the same</p>"
        parts += [
            f'<h3 class="{role}">{role or "answer"} &middot; score {reward}{ending}</h3>',
            preformatted(answer["response"], 3000),
            f"<details><summary>{len(texts)} verdicts</summary>{body}</details>",
        ]
    return "".join(parts)


def before_after_section(run: RunFiles) -> str:
    """The same held-out prompts, answered by the first model and by the last."""
    if len(run.models) < 2:
        return ""
    first, last = run.models[0], run.models[-1]
    earlier = first_samples(run.exam[first["t"]])
    later = first_samples(run.exam[last["t"]])
    examples = []
    # The exam of the last model may not be written yet.
    for early, late in list(zip(earlier, later, strict=False))[:MOST_EXAMPLES]:
        texts = exam_answer(first["model"], early) + exam_answer(last["model"], late)
        examples.append(example("", early["prompt"], texts))
    title = f"The same held-out prompts at {first['model']} and {last['model']}"
    return f"<h2>{title}</h2>{''.join(examples)}"


def first_samples(answers: Sequence[dict]) -> list[dict]:
    """One answer to each prompt; in older runs there is only one, and it has no number."""
    return [answer for answer in answers if answer.get("sample", 0) == 0]


def exam_answer(model: str, answer: dict) -> str:
    scores = f"given {figure_text(answer['self_score'])}"
    if answer["true_score"] is not None:
        scores += f", true {escape(str(answer['true_score']))}"
    return f"<h3>{model} &middot; {scores}</h3>{preformatted(answer['response'], 3000)}"


def example(label: str, prompt: str, body: str) -> str:
    """A block that opens on a click, and that the filter finds."""
    summary = f"<summary>{label}{escape(prompt[:300])}</summary>"
    return f'<details class="example">{summary}{body}</details>'


def what_was_read(verdict: dict) -> str:
    for key in ("digits", "yes", "ratio"):
        if key in verdict:
            return f"{key}: {verdict[key]}"
    return ""


def preformatted(text: str, limit: int) -> str:
    return f"<pre>{escape(text[:limit])}</pre>"
