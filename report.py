"""report.py: a run's files -> one self-contained page, runs/NAME/report.html.

In: the files that train.py wrote, of one run or of several.  Out: HTML with inline CSS and SVG; no network, no framework,
and nothing but the filter of the examples needs JavaScript. It reads what is there, so it works in the middle of a run.
`alarms` names what usually goes wrong in self-rewarding, with the threshold and what people do about it.
Left out on purpose: torch, and every figure that is not in the files.

    python report.py runs/toy               # rebuilds runs/toy/report.html
    python report.py runs/a runs/b          # several side by side: runs/a/report.html
"""

import json
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from itertools import cycle
from pathlib import Path

EXAMPLES = 16  # prompts shown of each trip
CURVES = {  # title -> what each line is: a key of metrics.jsonl
    "Score of its own answers: truth and self-given": {"true": "true_score", "self": "self_score"},
    "Perfect answers (truth)": {"": "perfect"},
    "Judge: pairwise accuracy": {"": "judge_pairwise"},
    "Judge: same order as the model before (1 alike, 0.5 unrelated)": {"": "agreement"},
    "Judge: variance of the votes on one answer": {"": "verdict_variance"},
    "Readable verdicts": {"": "judge_parse_rate"},
    "Answer length, tokens": {"": "mean_length"},
    "Finished answers": {"": "finished_rate"},
    "Distinct pairs of words": {"": "distinct2"},
    "KL, nats an answer": {"to the model before": "kl_prev", "to M1": "kl_first"},
    "Log-prob of the pairs' answers, change by DPO": {
        "chosen": "chosen_change",
        "rejected": "rejected_change",
    },
    "Pairs": {"": "pairs"},
    "Pairs whose chosen answer is truly better": {"": "pairs_right"},
}
PER_ANSWER = {
    "perfect": "true_score",
    "true_score": "true_score",
    "self_score": "self_score",
    "finished_rate": "finished",
    "mean_length": "tokens",
}
COLOURS = ("var(--a)", "var(--b)", "var(--c)", "var(--d)", "var(--e)", "var(--f)")
STYLE = """
:root{color-scheme:light dark;--bg:#fff;--fg:#1b1f24;--soft:#5b6572;--line:#d8dee4;--card:#f6f8fa;--a:#0b62c4;--b:#c2410c;--c:#15803d;
--d:#7e22ce;--e:#a16207;--f:#be185d;--bad:#b42318;--good:#146c2e}
@media(prefers-color-scheme:dark){:root{--bg:#0f1419;--fg:#e6e9ec;--soft:#9aa5b1;--line:#2c353f;--card:#171e26;--a:#6cb0ff;--b:#ff9b66;
--c:#6fd08c;--d:#c792ff;--e:#e3c05c;--f:#ff8fc0;--bad:#ff8a80;--good:#7ee2a0}}
*{box-sizing:border-box}body{margin:0 auto;max-width:1100px;padding:1rem;background:var(--bg);color:var(--fg);font:16px/1.5 system-ui,sans-serif}
h1{font-size:1.5rem;margin:.4rem 0}h2{font-size:1.15rem;margin:2rem 0 .6rem;border-bottom:1px solid var(--line)}h3{font-size:1rem;margin:1rem 0 .3rem}
p,small{color:var(--soft)}.big{display:flex;flex-wrap:wrap;gap:.8rem}.big div,.step,figure,details{background:var(--card);border:1px solid var(--line);
border-radius:8px;padding:.6rem .8rem}.big b{display:block;font-size:1.35rem}.loop{display:flex;flex-wrap:wrap;align-items:stretch;gap:.4rem}
.step{flex:1 1 9rem}.step b{display:block}.arrow{align-self:center;color:var(--soft)}.grid{display:grid;gap:.8rem;
grid-template-columns:repeat(auto-fill,minmax(min(100%,300px),1fr))}figure{margin:0}figcaption{font-weight:600;font-size:.92rem}svg{width:100%;height:auto}
.scroll{overflow-x:auto}table{border-collapse:collapse;font-size:.88rem;font-variant-numeric:tabular-nums}th,td{padding:.25rem .6rem;text-align:right;
border-bottom:1px solid var(--line);white-space:nowrap}th:first-child,td:first-child{text-align:left}details{margin:.4rem 0}summary{cursor:pointer}
.chosen{color:var(--good)}.rejected,.alarm{color:var(--bad)}pre{white-space:pre-wrap;overflow-wrap:anywhere;margin:.2rem 0 .6rem;font-size:.85rem}
.key{font-size:.8rem;margin-right:.8rem;white-space:nowrap}input{font:inherit;padding:.3rem .5rem;width:100%;max-width:24rem;background:var(--bg);
color:var(--fg);border:1px solid var(--line);border-radius:6px}text{fill:var(--soft);font-size:11px}
"""
FILTER = """<script>const q=document.getElementById('q');q.hidden=false;q.oninput=()=>{const s=q.value.toLowerCase();
for(const d of document.querySelectorAll('details.example'))d.hidden=!d.textContent.toLowerCase().includes(s)}</script>"""


# ---- files ----
@dataclass(frozen=True)
class Run:
    """What the files of one run hold so far."""

    name: str
    settings: dict
    record: dict
    models: list[dict]  # metrics.jsonl
    log: list[dict]
    sft: list[dict]
    exam: dict[int, list[dict]]  # t -> held-out answers of M_t
    trips: dict[int, dict[str, list[dict]]]  # t -> prompts, responses, verdicts, pairs, dpo


def rows(path: Path) -> list[dict]:
    return (
        [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        if path.exists()
        else []
    )


def load_run(folder: Path) -> Run:
    record = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    models = rows(folder / "metrics.jsonl")
    stages = ("prompts", "responses", "verdicts", "pairs", "dpo")
    trips = {
        t: {s: rows(folder / f"t{t}/{s}.jsonl") for s in stages}
        for t in range(1, len(models) + 1)
        if (folder / f"t{t}").exists()
    }
    return Run(
        folder.name,
        record["settings"],
        record,
        models,
        rows(folder / "log.jsonl"),
        rows(folder / "sft.jsonl"),
        {m["t"]: rows(folder / f"exam/M{m['t']}.jsonl") for m in models},
        trips,
    )


# ---- figures that only the texts hold ----
def mean(values: Iterable[float]) -> float | None:
    values = list(values)
    return sum(values) / len(values) if values else None


def rewards(trip: dict) -> dict[tuple[int, int], float]:
    """(id, sample) -> mean readable score; answers that read the same share the votes of the first."""
    texts, votes = (
        {(r["id"], r["sample"]): (r["id"], r["response"]) for r in trip["responses"]},
        defaultdict(list),
    )
    for v in trip["verdicts"]:
        if v["score"] is not None:
            votes[texts[v["id"], v["sample"]]].append(v["score"])
    return {key: mean(votes[text]) for key, text in texts.items() if votes.get(text)}


def funnel(trip: dict, asked: int) -> list[tuple[str, int, str]]:
    """(stage, how many are left, what was lost) from prompts asked for to pairs, as far as the trip has come."""
    finished, scored = [r for r in trip["responses"] if r["finished"]], rewards(trip)
    several = sum(n > 1 for n in Counter(i for i, _ in scored).values())
    kept, answers, pairs = (len(trip[stage]) for stage in ("prompts", "responses", "pairs"))
    come = 2 + 2 * bool(trip["responses"]) + 2 * bool(trip["verdicts"]) + bool(pairs)
    return [
        ("prompts asked for", asked, ""),
        ("prompts kept", kept, f"{asked - kept} too few; the log tells what was refused"),
        ("answers", answers, ""),
        (
            "finished answers",
            len(finished),
            f"{answers - len(finished)} did not end within the limit",
        ),
        (
            "answers with a score",
            len(scored),
            f"{len(finished) - len(scored)} without a readable verdict",
        ),
        ("prompts with two scores", several, f"{kept - several} with fewer"),
        ("pairs", pairs, f"{several - pairs} with all scores equal"),
    ][:come]


def alarms(run: Run) -> list[tuple[str, str, str]]:
    """(model, what happened with value and threshold, what people do about it)."""
    found, first = [], run.models[0] if run.models else {}
    for before, now in zip(run.models, run.models[1:]):
        full = mean(
            float(a["self_score"] >= 4.9)
            for a in run.exam.get(now["t"], [])
            if a["self_score"] is not None
        )
        checks = [
            (
                full,
                lambda v: v > 0.8,
                "{:.0%} of its answers get 4.9 or more (threshold 80 %)",
                "Score saturation: the judge no longer tells answers apart. Use a sharper rubric, --judge expected (after score lines), or stop here.",
            ),
            (
                change(first, now, "judge_pairwise"),
                lambda v: v < -0.03,
                "judge accuracy {:+.3f} since M1 (threshold -0.03)",
                "Judge drift: mix judge examples into DPO (--replay), or lower --dpo-lr.",
            ),
            (
                now.get("judge_parse_rate"),
                lambda v: v < 0.8,
                "{:.0%} of its verdicts can be read (threshold 80 %)",
                "Lost format: what cannot be judged is neither learnt nor unlearnt. Mix judge examples into DPO (--replay), or look at the answers.",
            ),
            (
                ratio(first, now, "mean_length"),
                lambda v: v > 1.5,
                "answers are {:.2f} times as long as M1's (threshold 1.5)",
                "Length growth: the judge may reward length; compare at equal length (evaluate.py prints it).",
            ),
            (
                now.get("chosen_change"),
                lambda v: v < 0,
                "log-prob of the chosen answers {:+.1f} (threshold 0)",
                "DPO pushes both answers down: raise --nll or --beta.",
            ),
            (
                ratio(first, now, "distinct2"),
                lambda v: v < 0.7,
                "distinct pairs of words at {:.2f} of M1's (threshold 0.7)",
                "Collapsing diversity: raise --temperature, or take prompts from people (--prompts).",
            ),
            (
                ratio(before, now, "pairs"),
                lambda v: v < 0.5,
                "pairs at {:.2f} of the round before (threshold 0.5)",
                "Shrinking yield: more answers (--n), --judge expected, or stop: little is left to learn from.",
            ),
            (
                now.get("pairs_right"),
                lambda v: v < 0.5,
                "{:.0%} of its pairs have a chosen answer that is truly better (threshold 50 %)",
                "Wrong labels: the judge prefers what is no better. Stop, or mend the judge.",
            ),
            (
                gap(now),
                lambda v: v > 0.5,
                "self-score {:+.2f} above the truth (threshold 0.5)",
                "The model flatters itself: what rose is the score, not the answers.",
            ),
            (
                change(before, now, "true_score")
                if (change(before, now, "self_score") or 0) > 0
                else None,
                lambda v: v < -0.05,
                "true score {:+.2f} in this round (threshold -0.05) while the self-score rose",
                "Reward hacking: look at the best paid answers, close the hole in the rubric or the judge data, and go back a model.",
            ),
        ]
        found += [
            (now["model"], text.format(value), advice)
            for value, bad, text, advice in checks
            if value is not None and bad(value)
        ]
    return found


def change(before: dict, now: dict, key: str) -> float | None:
    return None if None in (before.get(key), now.get(key)) else now[key] - before[key]


def ratio(before: dict, now: dict, key: str) -> float | None:
    return now[key] / before[key] if before.get(key) and now.get(key) is not None else None


def gap(now: dict) -> float | None:
    return (
        None
        if None in (now.get("self_score"), now.get("true_score"))
        else now["self_score"] - now["true_score"]
    )


# ---- drawing ----
Point = tuple[float, float, float | None, float | None]  # x, y, lower and upper end of the interval


def chart(
    title: str, series: dict[str, list[Point]], *, x_names: Sequence[str] | None = None
) -> str:
    """A small line chart; an empty string where there is nothing to draw."""
    series = {name: points for name, points in series.items() if points}
    if not series:
        return ""
    every = [p for points in series.values() for p in points]
    lows, highs = (
        [p[1] if p[2] is None else p[2] for p in every],
        [p[1] if p[3] is None else p[3] for p in every],
    )
    low, high = min(lows), max(highs)
    low, high = (
        (low - 0.5, high + 0.5)
        if low == high
        else (low - 0.05 * (high - low), high + 0.05 * (high - low))
    )
    left, right = min(p[0] for p in every), max(p[0] for p in every)
    form = ",.0f" if high >= 100 else ".3g" if high >= 0.1 else ".2g"
    x = lambda v: 44 + 246 * (0.5 if left == right else (v - left) / (right - left))
    y = lambda v: 128 - 116 * (v - low) / (high - low)
    parts = [
        f'<line x1="44" x2="296" y1="{y(v):.1f}" y2="{y(v):.1f}" stroke="var(--line)"/><text x="40" y="{y(v) + 4:.1f}" text-anchor="end">'
        f"{format(v, form)}</text>"
        for v in (low + (high - low) * k / 3 for k in range(4))
    ]
    ticks = (
        list(enumerate(x_names, 1)) if x_names else [(left, f"{left:.0f}"), (right, f"{right:.0f}")]
    )
    parts += [
        f'<text x="{x(v):.1f}" y="146" text-anchor="middle">{name}</text>'
        for v, name in ticks
        if left <= v <= right
    ]
    for colour, points in zip(cycle(COLOURS), series.values()):
        parts += [
            f'<line x1="{x(a):.1f}" x2="{x(a):.1f}" y1="{y(c):.1f}" y2="{y(d):.1f}" stroke="{colour}" opacity=".5"/>'
            for a, _, c, d in points
            if c is not None and d is not None
        ]
        parts.append(
            f'<polyline fill="none" stroke="{colour}" stroke-width="2" points="{" ".join(f"{x(a):.1f},{y(b):.1f}" for a, b, _, _ in points)}"/>'
        )
        parts += [
            f'<circle cx="{x(a):.1f}" cy="{y(b):.1f}" r="3" fill="{colour}"><title>{b:.4g}</title></circle>'
            for a, b, _, _ in points
            if len(points) < 30
        ]
    keys = (
        " ".join(
            f'<span class="key" style="color:{c}">&#9679; {escape(name)}</span>'
            for c, name in zip(cycle(COLOURS), series)
        )
        if len(series) > 1
        else ""
    )
    return f'<figure><figcaption>{escape(title)}</figcaption><svg viewBox="0 0 300 152" role="img">{"".join(parts)}</svg>{keys}</figure>'


def table(head: Sequence[str], body: Iterable[Sequence[object]]) -> str:
    cell = lambda v: "-" if v is None else f"{v:.3f}" if isinstance(v, float) else escape(str(v))
    return (
        '<div class="scroll"><table><tr>'
        + "".join(f"<th>{escape(h)}</th>" for h in head)
        + "</tr>"
        + "".join("<tr>" + "".join(f"<td>{cell(v)}</td>" for v in row) + "</tr>" for row in body)
        + "</table></div>"
    )


# ---- the sections ----
def spread(values: Sequence[float]) -> tuple[float | None, float | None]:
    """The 95 % interval of a mean over held-out answers (normal)."""
    middle, n = mean(values), len(values)
    half = 1.96 * (sum((v - middle) ** 2 for v in values) / (n - 1) / n) ** 0.5 if n > 1 else None
    return (None, None) if half is None else (middle - half, middle + half)


def curve(run: Run, key: str) -> list[Point]:
    """One figure over the models, with its interval: the judge's own (bootstrap over groups), else that of the answers behind it."""
    points = []
    for m in (m for m in run.models if m.get(key) is not None):
        behind = (
            [
                a[PER_ANSWER[key]]
                for a in run.exam.get(m["t"], [])
                if a.get(PER_ANSWER[key]) is not None
            ]
            if key in PER_ANSWER
            else []
        )
        values = [
            float(v == 5)
            if key == "perfect"
            else float(len(v))
            if key == "mean_length"
            else float(v)
            for v in behind
        ]
        own = m.get("judge_interval") if key == "judge_pairwise" else None
        points.append((m["t"], m[key], *(own or spread(values))))
    return points


def curves(runs: Sequence[Run]) -> str:
    names, drawn = [m["model"] for m in max((r.models for r in runs), key=len)], []
    for title, keys in CURVES.items():
        series = {
            " ".join(([r.name] if len(runs) > 1 or not what else []) + [what]): curve(r, key)
            for r in runs
            for what, key in keys.items()
        }
        drawn.append(chart(title, series, x_names=names))
    return (
        '<h2>Curves</h2><p>One point a model; bars are 95 % intervals over the held-out answers or groups, where a figure is a mean of such.</p><div class="grid">'
        + "".join(drawn)
        + "</div>"
    )


def headline(run: Run) -> str:
    first, last = run.models[0], run.models[-1]
    shown = [
        ("perfect", "perfect answers (truth)", "{:.1%}"),
        ("true_score", "true score, 0 to 5", "{:.2f}"),
        ("self_score", "self-given score", "{:.2f}"),
        ("judge_pairwise", "judge accuracy", "{:.3f}"),
        ("mean_length", "tokens an answer", "{:.1f}"),
    ]
    boxes = [
        f"<div><b>{form.format(first[key])} &rarr; {form.format(last[key])}</b>{what}</div>"
        for key, what, form in shown
        if first.get(key) is not None and last.get(key) is not None
    ]
    both = [
        (b["true_score"], a["true_score"])
        for a, b in zip(run.exam.get(first["t"], []), run.exam.get(last["t"], []))
    ]
    if first is not last and both and None not in (score for pair in both for score in pair):
        win, lose = (
            mean(float(now > then) for now, then in both),
            mean(float(now < then) for now, then in both),
        )
        boxes.append(
            f"<div><b>{win:.1%} / {lose:.1%}</b>{last['model']} wins / loses against {first['model']} (truth)</div>"
        )
    return (
        f'<h2>{first["model"]} &rarr; {last["model"]}</h2><div class="big">'
        + "".join(boxes)
        + "</div>"
    )


def loop(run: Run) -> str:
    """The picture of the method, with this run's numbers."""
    if not run.trips:
        return ""
    per = lambda stage: " &rarr; ".join(f"{len(trip[stage]):,}" for trip in run.trips.values())
    steps = [
        ("new prompts {x}", per("prompts")),
        ("M_t answers {y}", per("responses")),
        ("M_t judges {r}", per("verdicts")),
        ("pairs (x, y_w, y_l)", per("pairs")),
        (
            "DPO &rarr; M_t+1",
            " &rarr; ".join(f"{len(trip['dpo'])} steps" for trip in run.trips.values()),
        ),
    ]
    return (
        '<h2>The loop</h2><div class="loop">'
        + '<span class="arrow">&rarr;</span>'.join(
            f'<div class="step"><b>{what}</b>{numbers}</div>' for what, numbers in steps
        )
        + "</div><p>One number a trip round the loop.</p>"
    )


def alarm_list(run: Run) -> str:
    found = alarms(run)
    body = "".join(
        f'<li><b class="alarm">{model}: {escape(what)}</b><br>{escape(advice)}</li>'
        for model, what, advice in found
    )
    return "<h2>Alarms</h2>" + (
        f"<ul>{body}</ul>" if found else "<p>None: no threshold was crossed.</p>"
    )


def calibration(run: Run) -> str:
    """For each model: the mean true score of the answers to which it gave 0, 1 ... 5."""
    series = {}
    for t, answers in run.exam.items():
        by = defaultdict(list)
        for a in answers:
            if None not in (a.get("self_score"), a.get("true_score")):
                by[round(a["self_score"])].append(a["true_score"])
        series[f"M{t}"] = [(given, mean(truth), None, None) for given, truth in sorted(by.items())]
    drawn = chart(
        "True score (up) against given score (right)", {k: v for k, v in series.items() if v}
    )
    histogram = table(
        ["answers given", *map(str, range(6))],
        [
            [f"M{t}", *(sum(1 for r in rewards(trip).values() if round(r) == n) for n in range(6))]
            for t, trip in run.trips.items()
        ],
    )
    return f'<h2>The judge</h2><div class="grid">{drawn}</div><h3>Scores of its own answers</h3>{histogram}'


def training(run: Run) -> str:
    drawn = [chart("SFT loss", {"loss": [(r["step"], r["loss"], None, None) for r in run.sft]})]
    for key, title in (
        ("dpo_loss", "DPO loss"),
        ("margin", "DPO margin"),
        ("chosen_change", "Log-prob of chosen, change"),
        ("rejected_change", "Log-prob of rejected, change"),
        ("grad_norm", "Gradient norm"),
    ):
        drawn.append(
            chart(
                title,
                {
                    f"M{t + 1}": [(r["step"], r[key], None, None) for r in trip["dpo"] if key in r]
                    for t, trip in run.trips.items()
                },
            )
        )
    return '<h2>Training</h2><div class="grid">' + "".join(drawn) + "</div>"


def funnels(run: Run) -> str:
    parts = []
    for t, trip in run.trips.items():
        parts.append(
            f"<h3>From M{t}</h3>"
            + table(["stage", "left", "what was lost"], funnel(trip, run.settings["n_prompts"]))
        )
    return "<h2>From prompts to pairs</h2>" + "".join(parts) if parts else ""


def example(t: int, pair: dict, trip: dict, scores: dict) -> str:
    """One prompt with its N answers, every verdict text, and which answer became chosen and rejected."""
    parts = []
    for y in (r for r in trip["responses"] if r["id"] == pair["id"]):
        role = (
            "chosen"
            if y["sample"] == pair["chosen_sample"]
            else "rejected"
            if y["sample"] == pair["rejected_sample"]
            else ""
        )
        given = scores.get((y["id"], y["sample"]))
        verdicts = [v for v in trip["verdicts"] if (v["id"], v["sample"]) == (y["id"], y["sample"])]
        texts = (
            "".join(
                f"<pre>{escape(v['text'][:1500] or str(v.get('digits', '')))}</pre>"
                for v in verdicts
            )
            or "<p>judged with an answer that reads the same</p>"
        )
        parts.append(
            f'<h3 class="{role}">{role or "answer"} &middot; score {"none" if given is None else f"{given:.2f}"}'
            f"{'' if y['finished'] else ' &middot; unfinished'}</h3><pre>{escape(y['response'][:3000])}</pre>"
            f"<details><summary>{len(verdicts)} verdicts</summary>{texts}</details>"
        )
    return f'<details class="example"><summary>M{t}: {escape(pair["prompt"][:300])}</summary>{"".join(parts)}</details>'


def examples(run: Run) -> str:
    parts = []
    for t, trip in run.trips.items():
        scores, shown = (
            rewards(trip),
            trip["pairs"][:: max(1, len(trip["pairs"]) // EXAMPLES)][:EXAMPLES],
        )
        ids = {pair["id"] for pair in shown}
        told = {
            stage: [r for r in trip[stage] if r["id"] in ids] for stage in ("responses", "verdicts")
        }
        parts += [example(t, pair, told, scores) for pair in shown]
    return (
        f'<h2>Examples: prompts, answers, verdicts</h2><input id="q" placeholder="show only examples with ..." hidden>{"".join(parts)}{FILTER}'
        if parts
        else ""
    )


def before_after(run: Run) -> str:
    """The same held-out prompts, answered by the first and by the last model."""
    if len(run.models) < 2:
        return ""
    first, last = run.exam[run.models[0]["t"]], run.exam[run.models[-1]["t"]]
    told = lambda a: (
        f"given {'none' if a['self_score'] is None else format(a['self_score'], '.2f')}"
        + ("" if a["true_score"] is None else f", true {a['true_score']}")
    )
    return (
        f"<h2>The same held-out prompts at {run.models[0]['model']} and {run.models[-1]['model']}</h2>"
        + "".join(
            f'<details class="example"><summary>{escape(a["prompt"][:300])}</summary><h3>{run.models[0]["model"]} &middot; {told(a)}</h3><pre>{escape(a["response"][:3000])}</pre>'
            f"<h3>{run.models[-1]['model']} &middot; {told(b)}</h3><pre>{escape(b['response'][:3000])}</pre></details>"
            for a, b in list(zip(first, last))[:EXAMPLES]
        )
    )


def timing(run: Run) -> str:
    return "<h2>Every stage</h2>" + table(
        ["stage", "seconds", "what it said"],
        [(f"M{r['t']} {r['stage']}", f"{r['seconds']:.1f}", r["told"]) for r in run.log],
    )


def page(runs: Sequence[Run]) -> str:
    """The whole report; the first run is told at length, the others join its curves and its table."""
    run = runs[0]
    keys = (
        "perfect",
        "true_score",
        "self_score",
        "win_rate",
        "lose_rate",
        "judge_pairwise",
        "judge_ties",
        "judge_best5",
        "judge_exact",
        "judge_spearman",
        "judge_kendall",
        "agreement",
        "verdict_variance",
        "judge_parse_rate",
        "finished_rate",
        "mean_length",
        "distinct2",
        "kl_prev",
        "kl_first",
        "margin",
        "accuracy",
        "chosen_change",
        "rejected_change",
        "pairs",
        "pairs_right",
        "seconds",
    )
    models = [
        (f"{r.name} {m['model']}" if len(runs) > 1 else m["model"], m)
        for r in runs
        for m in r.models
    ]
    figures = table(
        ["", *(name for name, _ in models)],
        [
            [k, *(m.get(k) for _, m in models)]
            for k in keys
            if any(m.get(k) is not None for _, m in models)
        ],
    )
    settings = table(
        ["setting", "value"], [(k, v) for k, v in run.settings.items() if v is not None]
    )
    body = (
        [
            headline(run),
            loop(run),
            alarm_list(run),
            curves(runs),
            "<h2>Table</h2>" + figures,
            calibration(run),
            funnels(run),
            training(run),
            examples(run),
            before_after(run),
            timing(run),
            f"<h2>Settings</h2><details><summary>all</summary>{settings}</details>",
        ]
        if run.models
        else ["<p>No model has been measured yet.</p>"]
    )
    title = f"Self-rewarding run {', '.join(r.name for r in runs)}"
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style><h1>{escape(title)}</h1><p>{run.record['device']}, torch {run.record['torch']}, "
        f"seed {run.settings['seed']}</p>{''.join(body)}</html>\n"
    )


def write_report(folders: Sequence[Path]) -> Path:
    """Writes the report of the first folder's run (the others beside it), whole or not at all; returns its path."""
    path = folders[0] / "report.html"
    temporary = path.with_name("report.html.tmp")
    temporary.write_text(page([load_run(f) for f in folders]), encoding="utf-8")
    temporary.replace(path)
    return path


if __name__ == "__main__":
    given = [Path(a) for a in sys.argv[1:]]
    missing = [str(f) for f in given if not (f / "config.json").exists()]
    if not given or missing:
        print(
            f"error: {'no run given' if not given else f'no run in {missing[0]}'}; usage: python report.py RUN [RUN ...]",
            file=sys.stderr,
        )
        sys.exit(2)
    print(write_report(given))
