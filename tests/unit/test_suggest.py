"""Unlabeled clips that are suggested for labeling next."""

from types import SimpleNamespace

import numpy as np
import pytest

from tests.helpers.commands import run_tubelet
from tests.helpers.media import write_image
from tests.unit.test_fitting import CLIP, COLORS, model, write_colors, write_table  # noqa: F401
from tubelet.config import FitConfig
from tubelet.errors import DataError, FileError
from tubelet.fitting.result import Suggestion
from tubelet.fitting.run import fit_head, read_label_table
from tubelet.fitting.suggest import check_suggestions, choose_clips, find_unlabeled, write_suggestions
from tubelet.heads.head_file import HeadInput
from tubelet.labels.table import read_labels


def test_the_least_sure_clips_are_chosen_and_differ_from_each_other():
    rng = np.random.default_rng(0)
    centers = np.repeat(np.eye(5) * 10, 20, axis=0)  # five groups of twenty alike
    features = centers + rng.normal(0, 0.1, centers.shape)
    margins = rng.uniform(0, 0.1, 100)
    margins[[7, 27]] = -1, -0.5
    chosen = choose_clips(margins, features, 5)
    assert chosen[0] == 7
    pool = set(np.argsort(margins)[:20].tolist())
    assert set(chosen) <= pool
    assert {i // 20 for i in chosen} == {i // 20 for i in pool}
    assert chosen == choose_clips(margins, features, 5)


def test_no_clip_is_suggested_twice():
    assert sorted(choose_clips(np.zeros(3), np.ones((3, 2)), 10)) == [0, 1, 2]
    assert choose_clips(np.zeros(0), np.ones((0, 2)), 10) == []


def suggestions(folder):
    return [
        Suggestion(path=folder / "a, b.mp4", start_s=1.0, end_s=2.5, answer="red|blue", score=0.25),
        Suggestion(path=folder / "été.png", start_s=0.0, end_s=0.0, answer="red", score=0.5),
    ]


@pytest.mark.parametrize("targets", [(), ("speed", "turn")])
def test_a_table_of_suggestions_is_a_label_table_once_it_is_filled_in(tmp_path, targets):
    for name in ("a, b.mp4", "été.png"):
        (tmp_path / name).touch()
    path = tmp_path / "suggestions.csv"
    write_suggestions(suggestions(tmp_path), path, targets)
    check_suggestions(path)  # not filled in: may be written again
    text = path.read_bytes().decode("utf-8-sig")
    write_suggestions(suggestions(tmp_path), path, targets, "semicolon")
    check_suggestions(path)
    semicolons = path.read_bytes().decode("utf-8-sig")
    assert ";1,000;2,500;" in semicolons and semicolons.splitlines()[1].endswith(";red|blue;0,2500")
    text = text.replace("1.000,2.500,,,red|blue", "1.000,2.500,4,5,red|blue").replace(",,,,,red,", ",,,3,4,red,")
    path.write_text(text.replace("2.500,,red|blue", "2.500,walk|run,red|blue").replace(",,,red,", ",,jump,red,"))
    table = read_labels(path)
    assert [row.path.name for row in table.rows] == ["a, b.mp4", "été.png"] and not table.faults
    assert (table.rows[0].start_s, table.rows[0].end_s, table.rows[1].start_s) == (1.0, 2.5, None)
    assert table.targets == targets
    if targets:
        assert [row.values for row in table.rows] == [(4, 5), (3, 4)]
    else:
        assert [row.labels for row in table.rows] == [("walk", "run"), ("jump",)]
    with pytest.raises(FileError, match="has labels that would be lost; rename it"):
        check_suggestions(path)


def test_something_else_is_not_overwritten(tmp_path):
    path = tmp_path / "head.suggestions.csv"
    check_suggestions(path)
    path.write_text("my notes\nof today\n")
    with pytest.raises(FileError, match="is not a table of suggestions"):
        check_suggestions(path)


@pytest.fixture
def moments(tmp_path):
    """Four videos with labeled moments of two colors, and unlabeled ones of a third color."""
    rng = np.random.default_rng(0)
    rows = []
    for i in range(6):
        order = ["red", "green"] if i % 2 else ["green", "red"]
        write_colors(tmp_path / f"{i}.mp4", [(order[0], 1), ("blue", 1), (order[1], 1)], rng)
        rows += [
            {"path": f"{i}.mp4", "start_s": 0, "end_s": 1, "label": order[0], "split": "val" if i > 3 else "train"},
            {"path": f"{i}.mp4", "start_s": 2, "end_s": 3, "label": order[1], "split": "val" if i > 3 else "train"},
        ]
    return write_table(tmp_path / "labels.csv", rows)


def fit(labels, model, cache, **settings):  # noqa: F811
    config = FitConfig(**CLIP | settings)
    table, task = read_label_table(labels, config)
    return fit_head(table, task, model, "none", config, cache=cache)


def test_suggested_clips_are_those_that_no_label_overlaps(moments, model, tmp_path):  # noqa: F811
    rng = np.random.default_rng(1)
    write_colors(tmp_path / "new.mp4", [("blue", 1)], rng)
    (tmp_path / "broken.mp4").write_bytes(b"nothing")
    settings = {"suggest": 4, "task": "classification", "networks": ("linear",), "epochs": 2}
    _, result = fit(moments, model, tmp_path / "cache", **settings)
    assert len(result.suggestions) == 4
    for one in result.suggestions:
        assert (one.path.name, one.start_s >= 0.99, one.end_s <= 2.01) == (one.path.name, True, True) or (
            one.path.name == "new.mp4"
        )
        assert one.answer in ("red", "green") and 0 <= one.score <= 1
    _, again = fit(moments, model, tmp_path / "cache", **settings)
    assert again.suggestions == result.suggestions


@pytest.mark.slow
def test_suggestions_for_timelines_are_whole_videos(moments, model, tmp_path):  # noqa: F811
    rng = np.random.default_rng(1)
    (tmp_path / "more").mkdir()
    for i in range(3):
        write_colors(tmp_path / "more" / f"{i}.mp4", [("red", 1), ("blue", 1)], rng)
    _, result = fit(
        moments, model, tmp_path / "cache", suggest=2, task="timeline", unlabeled=(str(tmp_path / "more"),), epochs=2
    )
    assert len({one.path for one in result.suggestions}) == 2
    assert all(one.start_s == 0 and one.end_s == pytest.approx(2, abs=0.1) for one in result.suggestions)


def test_candidates_from_a_list_lie_in_its_spans(moments, tmp_path):
    write_colors(tmp_path / "new.mp4", [("blue", 4)], np.random.default_rng(1))
    (tmp_path / "list.csv").write_text("path,start_s,end_s\nnew.mp4,1,2.2\nnew.mp4,3,\n0.mp4,0.5,2.5\n")
    context = SimpleNamespace(
        table=read_labels(moments),
        config=FitConfig(suggest=4, unlabeled=(str(tmp_path / "list.csv"),)),
        task="classification",
        head_input=HeadInput(image_size=16, frames=4, fps=8.0, stride_s=0.5),
    )
    found = [(row.path.name, row.start_s, row.end_s) for row in find_unlabeled(context).rows]
    spans = [("new.mp4", 1, 1.5), ("new.mp4", 1.5, 2), ("new.mp4", 3, 3.5), ("new.mp4", 3.5, 4)]
    assert found == [*spans, ("0.mp4", 1, 1.5), ("0.mp4", 1.5, 2)]


def test_folders_of_frames_are_reported_and_read_by_a_pattern(moments, tmp_path, caplog):
    (tmp_path / "seq").mkdir()
    for number in range(8):
        write_image(tmp_path / "seq" / f"{number:03d}.png", number)
    names, context = (
        [],
        SimpleNamespace(
            table=read_labels(moments),
            task="classification",
            head_input=HeadInput(image_size=16, frames=4, fps=4.0, stride_s=1),
        ),
    )
    for source in (str(tmp_path), f"{tmp_path}/*/%03d.png"):
        context.config = FitConfig(suggest=4, unlabeled=(source, str(moments.parent / "0.mp4")))
        with caplog.at_level("INFO"):
            names.append({row.path.name for row in find_unlabeled(context).rows})
    assert "seq" not in names[0] and "seq" in names[1]
    assert caplog.text.count("1 folder looks like frames of videos") == 1


def test_nothing_to_suggest_is_an_error_before_anything_is_trained(moments, model, tmp_path):  # noqa: F811
    rows = [{"path": f"{i}.mp4", "label": list(COLORS)[i % 2], "split": "val" if i > 3 else "train"} for i in range(6)]
    labels = write_table(tmp_path / "whole.csv", rows)
    with pytest.raises(DataError, match=r"nothing in .* is unlabeled; name folders or files that are with --unlabeled"):
        fit(labels, model, tmp_path / "cache", suggest=3)
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


def test_the_command_writes_a_table_and_keeps_one_that_was_filled_in(moments, model, tmp_path):  # noqa: F811
    out = tmp_path / "head.safetensors"
    encoder = tmp_path / "encoder.safetensors"
    model.save_pretrained(encoder)
    options = ("--model", encoder, "--out", out, "--cache", tmp_path / "cache", "--suggest", 3, "--networks", "linear")
    options += (
        "--image-size",
        16,
        "--frames",
        4,
        "--fps",
        8,
        "--epochs",
        2,
        "--task",
        "classification",
        "--workers",
        0,
    )
    done = run_tubelet("fit", moments, *options)
    assert done.returncode == 0, done.stderr
    path = tmp_path / "head.suggestions.csv"
    lines = path.read_text().splitlines()
    assert lines[0] == "path,start_s,end_s,label,answer,answer_score" and len(lines) == 4
    path.write_text(path.read_text().replace(",,red,", ",red,red,").replace(",,green,", ",red,green,"))
    before = out.read_bytes()
    done = run_tubelet("fit", moments, *options)
    assert done.returncode != 0 and "has labels that would be lost" in done.stderr
    assert out.read_bytes() == before
