"""The trainings of a fit are counted over all its parts, and the time left is estimated once it can be."""

import re
from types import SimpleNamespace

import numpy as np
import pytest

import tubelet.fitting.run as fitting_run
from tests.unit.test_fitting import CLIP, SIZES, timeline_table, write_colors, write_table
from tubelet.config import FitConfig
from tubelet.fitting.rounds import Rounds, Training
from tubelet.pretrained.backbone import Backbone

LINEAR, ATTENTIVE = Training("linear", 6, 100), Training("attentive", 2, 50)


def run(rounds, clock, training, seconds, start=0):
    rounds.begin(training)
    rounds.progress("training: a part", start, training.steps)
    clock.now += seconds
    rounds.progress("training: a part", training.steps, training.steps)


def test_rounds_are_counted_and_their_time_is_estimated():
    clock, stages = SimpleNamespace(now=0.0), []
    rounds = Rounds(lambda stage, done, total: stages.append(stage), now=lambda: clock.now)
    one = (Training("linear", 1, 100), Training("attentive", 1, 50))
    rounds.progress("encoding", 0, 10)
    clock.now += 60
    rounds.progress("encoding", 10, 10)
    rounds.plan([(LINEAR,), (ATTENTIVE,), one, one, (Training("", 1, 100),)], encodings=1)
    run(rounds, clock, LINEAR, 60)
    assert stages[-1] == "training: round 1 of 5, a part"
    run(rounds, clock, ATTENTIVE, 100)
    assert stages[-1] == "training: round 2 of 5, a part", "nothing is known about this network yet"
    rounds.plan([one[1:], one[1:], (Training("", 1, 100),)], encodings=1)
    run(rounds, clock, one[1], 30)
    # This round and another of 50 s each, one of at most 10 s on a single channel, and 60 s of encoding.
    assert stages[-1] == "training: round 3 of 5 (about 3 min left in all), a part"
    run(rounds, clock, one[1], 30, start=20)
    assert stages[-1] == "training: round 4 of 5 (about 2 min left in all), a part"
    rounds.progress("encoding: random weights", 0, 10)
    rounds.progress("encoding: random weights", 10, 10)
    run(rounds, clock, LINEAR, 1)
    assert stages[-1] == "training: round 5 of 5 (about 10 s left in all), a part"
    run(rounds, clock, LINEAR, 1)
    assert stages[-1] == "training: a part", "no round beyond the plan is counted"


def test_the_network_of_the_choice_is_the_slowest_until_it_is_known():
    clock, stages = SimpleNamespace(now=0.0), []
    rounds = Rounds(lambda stage, done, total: stages.append(stage), now=lambda: clock.now)
    rounds.plan([(LINEAR,), (ATTENTIVE,), (LINEAR,), (Training("linear", 1, 100), Training("attentive", 1, 50))])
    run(rounds, clock, LINEAR, 60)
    run(rounds, clock, ATTENTIVE, 200)
    run(rounds, clock, LINEAR, 60)
    assert stages[-1] == "training: round 3 of 4 (up to 3 min left in all), a part"


def colors_table(folder):
    rows = [{"path": f"{i}.mp4", "label": ("red", "blue")[i % 2]} for i in range(8)]
    for row in rows:
        write_colors(folder / row["path"], [(row["label"], 0.5)], np.random.default_rng(0))
    return write_table(folder / "colors.csv", rows)


@pytest.mark.slow
@pytest.mark.parametrize("task", ["classification", "timeline"])
def test_a_fit_runs_as_many_rounds_as_it_plans(task, tmp_path):
    table = timeline_table(tmp_path, videos=7) if task == "timeline" else colors_table(tmp_path)
    networks = ("temporal", "correlation") if task == "timeline" else ("linear", "attentive")
    config = FitConfig(task=task, networks=networks, epochs=1, folds=None if task == "timeline" else 2, **CLIP)
    stages = []
    fitting_run.fit_head(
        *fitting_run.read_label_table(table, config),
        Backbone(SIZES).eval().requires_grad_(False),
        "none",
        config,
        cache=tmp_path / "cache",
        progress=lambda stage, done, total: stages.append(stage),
    )
    trainings = list(dict.fromkeys(stage for stage in stages if stage.startswith("training")))
    counts = [re.search(r"round (\d+) of (\d+)", stage).groups() for stage in trainings]
    assert counts == [(str(i), str(len(trainings))) for i in range(1, len(trainings) + 1)]
    assert "part 1 of 4, choice" in trainings[0] and trainings[0].endswith(f"network {networks[0]}")
