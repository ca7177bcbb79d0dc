"""The shape of the program.

Who may import whom, who trains, who knows the truth, and how much a line may hold.
"""

import ast
import importlib
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT

PICTURE = ("train", "prompts", "sample", "judge", "dpo", "model")
FOLDERS = ("core", "worlds", "measure", "experiments")
# From the ground up: a module imports from its own floor and from those before it, never from one
# behind it.
FLOORS = [
    ("core",),
    ("model",),
    ("sample",),
    ("prompts", "judge", "dpo"),
    ("worlds",),
    ("measure",),
    ("train",),
    ("evaluate", "report"),
    ("experiments",),
]
FILES = sorted(ROOT.glob("*.py")) + [p for f in FOLDERS for p in sorted((ROOT / f).glob("*.py"))]
MODULES = {".".join(p.relative_to(ROOT).with_suffix("").parts): p for p in FILES}
TREES = {name: ast.parse(path.read_text()) for name, path in MODULES.items()}
LOOP = ("train", "prompts", "sample", "judge", "dpo", "model", "core")
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


def floor(module: str) -> int:
    """The floor that a module stands on. A module that is on none has no place in the plan."""
    return next(i for i, rooms in enumerate(FLOORS) if module.split(".")[0] in rooms)


def imported(tree: ast.AST) -> set[str]:
    """Dotted names of everything that a module imports, inside functions too."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module)
    return found


def ours(tree: ast.AST) -> set[str]:
    rooms = {room for rooms in FLOORS for room in rooms}
    return {name for name in imported(tree) if name.split(".")[0] in rooms}


def words(tree: ast.AST) -> set[str]:
    """Every name, attribute, argument and imported word of a module.

    And the words of its texts but for docstrings.
    """
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            found.add(node.id)
        elif isinstance(node, ast.Attribute):
            found.add(node.attr)
        elif isinstance(node, ast.arg | ast.keyword):
            found.add(node.arg)
        elif isinstance(node, ast.alias):
            found |= set(node.name.split("."))
        elif isinstance(node, ast.ImportFrom):
            found |= set(node.module.split("."))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found |= set(re.findall(r"\w+", node.value)) if len(node.value) < 40 else set()
    return found


def simple_statements(tree: ast.AST) -> Iterator[ast.AST]:
    """Statements without a body, and the heads of those with one."""
    for node in ast.walk(tree):
        if isinstance(node, ast.If | ast.While):
            yield node.test
        elif isinstance(node, ast.For):
            yield node.iter
        elif isinstance(node, ast.With):
            yield from node.items
        elif isinstance(node, ast.stmt) and not hasattr(node, "body"):
            yield node


def size(node: ast.AST) -> int:
    return sum(1 for _ in ast.walk(node))


def inside(outer: type | tuple, inner: type | tuple, tree: ast.AST) -> list[int]:
    """Lines where a node of the second kind stands inside one of the first."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, outer):
            found += [n.lineno for n in ast.walk(node) if n is not node and isinstance(n, inner)]
    return found


# ---- who may import whom ----


@pytest.mark.parametrize("name", MODULES)
def test_imports(name):
    """Guards against: torchtune merging a loss file that was never imported."""
    importlib.import_module(name)


@pytest.mark.parametrize("name", MODULES)
def test_imports_point_downwards(name):
    """Guards against: truth or training leaking backwards.

    Also against: a room that needs the room above it.
    """
    assert [other for other in ours(TREES[name]) if floor(other) > floor(name)] == []


@pytest.mark.parametrize("name", [n for n in MODULES if n.split(".")[0] in LOOP])
def test_the_loop_never_mentions_the_truth(name):
    """Guards against: the oracle leaking into what is trained on.

    train.py included: it hands the world to the exam whole.
    """
    assert not words(TREES[name]) & {"toy_world", "oracle", "truth", "true_score"}
    if name != "train":
        assert not {other for other in ours(TREES[name]) if other.startswith(("worlds", "measure"))}


def test_only_dpo_trains():
    """Guards against: a second training loop with another shift, mask or precision."""
    calls = {
        name
        for name, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr == "backward"
    }
    assert calls == {"dpo"}


def test_nothing_is_unpickled():
    """Guards against: a checkpoint that runs code when it is loaded."""
    for name, tree in TREES.items():
        assert not imported(tree) & {"pickle", "shelve", "dill", "joblib", "marshal"}, name
        calls = {ast.unparse(n.func) for n in ast.walk(tree) if isinstance(n, ast.Call)}
        assert not calls & {"torch.load", "torch.save", "eval", "exec"}, name


# ---- how much a line may hold ----


@pytest.mark.parametrize("name", MODULES)
def test_a_line_holds_one_thought(name):
    """Guards against: code that grows sideways.

    The codebases that people hold up as models have 5.4 to 9.4 nodes a line.
    """
    lines = [line for line in MODULES[name].read_text().splitlines() if line.strip()]
    assert size(TREES[name]) / max(1, len(lines)) <= 9.5


@pytest.mark.parametrize("name", MODULES)
def test_statements_are_small(name):
    """Guards against: one statement of 210 nodes, as alarms once was."""
    large = [(s.lineno, size(s)) for s in simple_statements(TREES[name]) if size(s) > 60]
    assert large == []


@pytest.mark.parametrize("name", MODULES)
def test_nothing_stands_inside_its_like(name):
    """Guards against: a comprehension or a conditional that has to be unfolded in the head."""
    assert inside(COMPREHENSIONS, COMPREHENSIONS, TREES[name]) == []
    assert inside(ast.IfExp, ast.IfExp, TREES[name]) == []


@pytest.mark.parametrize("name", MODULES)
def test_walrus_only_as_an_if(name):
    """Guards against: an assignment hidden in an argument. `if name := call:` is the one use."""
    tree = TREES[name]
    heads = {id(node.test) for node in ast.walk(tree) if isinstance(node, ast.If)}
    named = [node for node in ast.walk(tree) if isinstance(node, ast.NamedExpr)]
    assert [node.lineno for node in named if id(node) not in heads] == []


def test_a_name_is_defined_once():
    """Guards against: `mean`, `table`, `show` and `interval` in more than one file.

    They once stood in two or three files each.
    """
    names = Counter(
        node.name
        for tree in TREES.values()
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name != "main"
    )
    assert [name for name, count in names.items() if count > 1] == []


@pytest.mark.parametrize("name", MODULES)
def test_every_file_says_what_it_owns(name):
    """Guards against: a reader who opens a file and has to guess."""
    assert ast.get_docstring(TREES[name])


def lines_of(path: Path) -> int:
    return len(path.read_text().splitlines())


def test_the_picture_is_an_evening():
    """Guards against: six files that nobody reads to the end.

    Together they stood at 2,005 before texts that are too long were left out aloud, final scores
    were told from others, stages were logged before their files got their names, and an overflow
    ended in a sentence; at 2,205 before adapters, shards and the shares of several processes.
    """
    lines = {name: lines_of(MODULES[name]) for name in PICTURE}
    assert max(lines.values()) <= 490, lines
    assert sum(lines.values()) <= 2264, lines


def test_the_whole_tree():
    """Guards against: the same for the house. Tests and bench are not counted.

    The goal was 5,300; docs/log.md says what bounds it. It stood at 6,582 when IFEval moved in, and
    at 7,010 when the checked world did: kinds of requirement, judges, controls, an experiment. It
    stood at 8,970 before everything that comes from outside was checked, and at 10,200 before
    --keep-best, the attacks on the judge and what a loop costs elsewhere. Adapters, several
    processes and models in several files came at 10,850; a step that waits once, --kinds, and the
    curve of the checklist judge, at 11,550; kinds outside training, at 11,900; figures of that
    curve and of controls with other seeds, at 12,000.
    """
    assert sum(map(lines_of, FILES)) <= 12_050


def test_readme_is_short():
    """Guards against: a front page of 374 lines, whose "Read it" stood at line 84."""
    assert lines_of(ROOT / "README.md") <= 150
