"""The shape of the program: who may import whom, who trains, how long things are."""

import ast
import importlib

import pytest

from conftest import ROOT

MODULES = {p.stem: p for p in sorted(ROOT.glob("*.py"))}
TREES = {name: ast.parse(path.read_text()) for name, path in MODULES.items()}
ALLOWED = {
    "data": set(),
    "config": {"data"},
    "model": {"data"},
    "sample": {"config", "data", "model"},
    "prompts": {"sample", "data", "model"},
    "judge": {"sample", "config", "data", "model"},
    "dpo": {"data", "model"},
    "evaluate": {"world", "report", "dpo", "judge", "sample", "config", "data", "model"},
    "world": set(),
    "report": set(),
    "train": {
        "config",
        "world",
        "report",
        "evaluate",
        "dpo",
        "judge",
        "prompts",
        "sample",
        "data",
        "model",
    },
}


def imported(tree: ast.AST) -> set[str]:
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module.split(".")[0])
    return found


@pytest.mark.parametrize("name", MODULES)
def test_imports(name):
    """Guards against: torchtune merging a loss file that was never imported."""
    importlib.import_module(name)


@pytest.mark.parametrize("name", MODULES)
def test_imports_point_one_way(name):
    """Guards against: truth or training leaking backwards. model, data <- sample <- judge <- dpo <- evaluate <- train."""
    assert imported(TREES[name]) & set(MODULES) <= ALLOWED[name]


@pytest.mark.parametrize("name", ["sample", "judge", "dpo"])
def test_the_loop_never_mentions_the_truth(name):
    """Guards against: the oracle leaking into what is trained on."""
    words = {n.id for n in ast.walk(TREES[name]) if isinstance(n, ast.Name)}
    words |= {n.attr for n in ast.walk(TREES[name]) if isinstance(n, ast.Attribute)} | imported(
        TREES[name]
    )
    assert not words & {"world", "oracle", "true_score"}


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
