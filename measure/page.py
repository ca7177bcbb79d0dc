"""measure/page.py: a run's files -> one self-contained page, RUN/report.html.

In: the directories of one run or of several.  Out: HTML with inline CSS and SVG. It needs no
network, and only the filter of the examples needs JavaScript. It works in the middle of a run.
Left out on purpose: torch, and every figure that is not in the files.
"""

from collections.abc import Sequence
from html import escape
from pathlib import Path

from core.files import write_whole
from measure.examples import before_after_section, example_section
from measure.run_files import RunFiles, load_run
from measure.sections import (
    alarm_section,
    curve_section,
    funnel_section,
    headline_section,
    judge_section,
    log_section,
    loop_section,
    settings_section,
    table_section,
    training_section,
)

STYLE = Path(__file__).with_name("page.css").read_text(encoding="utf-8")


def write_report(folders: Sequence[Path]) -> Path:
    """Writes the report of the first run, with the others beside it; returns its path."""
    path = folders[0] / "report.html"
    write_whole(path, page([load_run(folder) for folder in folders]))
    return path


def page(runs: Sequence[RunFiles]) -> str:
    """All of the first run; the others join its curves and its table."""
    run = runs[0]
    title = escape(f"Self-rewarding run {', '.join(run.name for run in runs)}")
    machine = f"{run.record['device']}, torch {run.record['torch']}"
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{title}</title><style>\n{STYLE}</style><h1>{title}</h1>"
        f"<p>{machine}, seed {run.settings['seed']}</p>{page_body(runs)}</html>\n"
    )


def page_body(runs: Sequence[RunFiles]) -> str:
    run = runs[0]
    if not run.models:
        return "<p>No model has been measured yet.</p>"
    overview = [headline_section(run), loop_section(run), alarm_section(run)]
    figures = [curve_section(runs), table_section(runs), judge_section(run), funnel_section(run)]
    texts = [example_section(run), before_after_section(run)]
    record = [log_section(run), settings_section(run)]
    return "".join([*overview, *figures, training_section(run), *texts, *record])
