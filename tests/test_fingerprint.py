"""tests/fingerprint.py: two runs of one command compute the same, bit by bit."""

from fingerprint import fingerprints


def test_two_runs_same_hash():
    """Guards against: a result that hangs on the clock, on a folder's name or on a set's order.

    Then no change of shape can be told from a change of result.
    """
    first, second = fingerprints(2)
    assert first == second
    for name in ("toy", "llama"):
        files = ("t0/eft.jsonl", "sft.jsonl", "t2/verdicts.jsonl", "t2/pairs.jsonl", "t2/dpo.jsonl")
        assert {f"{name}/{file}" for file in files} <= set(first)
        weights = [first[f"{name}/M{t}/model.safetensors"] for t in (1, 2, 3)]
        assert len(set(weights)) == 3, "every trip makes another model"
