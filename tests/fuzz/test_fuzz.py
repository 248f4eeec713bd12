"""The inputs that once found faults, and a hundred new ones, are read or refused with a reason."""

import json
from pathlib import Path

import pytest

from tests.fuzz.front import READERS
from tests.fuzz.fuzz import measure, run, summary
from tests.fuzz.seeds import write_seeds

CORPUS = sorted((Path(__file__).parent / "corpus").iterdir())


@pytest.fixture(scope="module")
def seeds(tmp_path_factory):
    return write_seeds(tmp_path_factory.mktemp("fuzz") / "seeds")


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.name)
@pytest.mark.slow
def test_what_once_found_a_fault_is_refused_with_a_reason(path, seeds, tmp_path):
    kind, name = path.name.split("-", 1)
    given = (kind, name, path.read_bytes(), tmp_path / "place", seeds)
    outcomes = [measure(100 * way, *given) for way in range(6)]
    assert not [outcome.verdict for outcome in outcomes if outcome.fault]
    assert any(outcome.verdict != "read" for outcome in outcomes)


def test_an_error_that_no_person_is_meant_to_read_is_a_finding(seeds, tmp_path, monkeypatch):
    def fails(path, way):
        raise KeyError("tensor")

    monkeypatch.setitem(READERS, "truth", fails)
    outcome = measure(0, "truth", "a.npz", b"", tmp_path / "place", seeds)
    assert outcome.fault and "KeyError" in outcome.verdict


def test_a_command_line_that_is_accepted_though_it_is_invalid_is_a_finding(seeds, tmp_path):
    for invalid, words in ((True, ["explain", "a.png"]), (False, ["explain", "a.png", "--seed", "nan"])):
        data = json.dumps({"words": words, "invalid": invalid}).encode()
        outcome = measure(0, "cli", "explain.json", data, tmp_path / "place", seeds)
        assert outcome.fault == invalid and (not invalid or "accepted" in outcome.verdict)


@pytest.mark.slow
def test_a_hundred_damaged_inputs_are_read_or_refused_with_a_reason(seeds):
    outcomes = list(run(seeds, seed=7, numbers=range(100), workers=1))
    faults = [f"{o.kind} {o.number} {o.name}: {o.verdict}" for o in outcomes if o.fault]
    assert not faults
    kinds = summary(outcomes)["kinds"]
    assert len(outcomes) == 100 and len(kinds) == 15
    assert kinds["video"]["read"] > 5 and kinds["video"]["refused"] > 5  # damage of the kind that matters
