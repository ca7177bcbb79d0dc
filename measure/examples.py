"""measure/examples.py: the sections of the report that show texts.

In: the files of a run.  Out: HTML. Every text is escaped: no answer can become part of the page.
"""

from collections.abc import Sequence
from html import escape

from measure.run_files import IterationFiles, RunFiles, answer_rewards

MOST_EXAMPLES = 16  # prompts of each iteration
FILTER = (
    "<script>const q=document.getElementById('q');q.hidden=false;"
    "q.oninput=()=>{const s=q.value.toLowerCase();\n"
    "for(const d of document.querySelectorAll('details.example'))"
    "d.hidden=!d.textContent.toLowerCase().includes(s)}</script>"
)


def preformatted(text: str, limit: int) -> str:
    return f"<pre>{escape(text[:limit])}</pre>"


def example_block(summary: str, body: str) -> str:
    """A block that opens on a click, and that the filter finds."""
    return f'<details class="example"><summary>{summary}</summary>{body}</details>'


def score_text(score: float | None) -> str:
    return "none" if score is None else f"{score:.2f}"


# ---- pairs ----


def example_section(run: RunFiles) -> str:
    """Pairs of each iteration, spread evenly, with all that was written on the way to them."""
    examples = []
    for t, files in run.iterations.items():
        rewards = answer_rewards(files)
        every = max(1, len(files.pairs) // MOST_EXAMPLES)
        for pair in files.pairs[::every][:MOST_EXAMPLES]:
            answers = pair_answers(pair, files, rewards)
            examples.append(example_block(f"M{t}: {escape(pair['prompt'][:300])}", answers))
    if not examples:
        return ""
    search_box = '<input id="q" placeholder="show only examples with ..." hidden>'
    return f"<h2>Examples: prompts, answers, verdicts</h2>{search_box}{''.join(examples)}{FILTER}"


def pair_answers(pair: dict, files: IterationFiles, rewards: dict) -> str:
    """The N answers to the prompt of a pair, with scores and verdicts, and what became of them."""
    roles = {pair["chosen_sample"]: "chosen", pair["rejected_sample"]: "rejected"}
    verdicts = [verdict for verdict in files.verdicts if verdict["id"] == pair["id"]]
    parts = []
    for answer in files.responses:
        if answer["id"] != pair["id"]:
            continue
        role = roles.get(answer["sample"], "")
        score = score_text(rewards.get((answer["id"], answer["sample"])))
        ending = "" if answer["finished"] else " &middot; unfinished"
        parts += [
            f'<h3 class="{role}">{role or "answer"} &middot; score {score}{ending}</h3>',
            preformatted(answer["response"], 3000),
            verdict_texts([v for v in verdicts if v["sample"] == answer["sample"]]),
        ]
    return "".join(parts)


def verdict_texts(verdicts: Sequence[dict]) -> str:
    """The K verdicts on one answer, behind a click."""
    # --judge expected writes no text, but the probabilities of the digits.
    texts = [
        preformatted(verdict["text"] or str(verdict.get("digits", "")), 1500)
        for verdict in verdicts
    ]
    body = "".join(texts) or "<p>judged with an answer that reads the same</p>"
    return f"<details><summary>{len(texts)} verdicts</summary>{body}</details>"


# ---- the exam ----


def before_after_section(run: RunFiles) -> str:
    """The same held-out prompts, answered by the first model and by the last."""
    if len(run.models) < 2:
        return ""
    first = run.models[0]
    last = run.models[-1]
    # The exam of the last model may not be written yet.
    answers = list(zip(run.exam[first["t"]], run.exam[last["t"]], strict=False))
    examples = [
        example_block(
            escape(answer["prompt"][:300]),
            exam_answer(first["model"], answer) + exam_answer(last["model"], later_answer),
        )
        for answer, later_answer in answers[:MOST_EXAMPLES]
    ]
    title = f"The same held-out prompts at {first['model']} and {last['model']}"
    return f"<h2>{title}</h2>{''.join(examples)}"


def exam_answer(model: str, answer: dict) -> str:
    scores = f"given {score_text(answer['self_score'])}"
    if answer["true_score"] is not None:
        scores += f", true {answer['true_score']}"
    return f"<h3>{model} &middot; {scores}</h3>{preformatted(answer['response'], 3000)}"
