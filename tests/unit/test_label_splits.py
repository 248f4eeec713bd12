"""Held-out rows of label tables."""

from pathlib import Path

import numpy as np
import pytest

from tubelet.labels.records import LabelError, LabelRow, LabelTable
from tubelet.labels.splits import fold_rows, row_units, split_rows


def table(rows):
    """A table of (file, labels, group, split)."""
    records = [
        LabelRow(line=i + 2, path=Path(f"/v/{file}"), labels=tuple(labels), group=group, split=split)
        for i, (file, labels, group, split) in enumerate(rows)
    ]
    return LabelTable(path=Path("labels.csv"), format="CSV", digest="0", columns=("path", "label"), rows=records)


def of_files(counts, group=lambda name, i: ""):
    """A table with so many files of each class."""
    return table([(f"{name}{i}.mp4", [name], group(name, i), "") for name, n in counts.items() for i in range(n)])


def shares(labels, rows):
    names = [labels.rows[i].labels[0] for i in rows]
    return {name: names.count(name) for name in sorted(set(names))}


def test_every_class_has_about_the_same_fraction_held_out():
    labels = of_files({"walk": 50, "run": 20, "rest": 10, "jump": 2})
    train, held_out = split_rows(labels, 0.2, seed=0)
    assert shares(labels, held_out) == {"jump": 1, "rest": 2, "run": 4, "walk": 10}
    assert sorted([*train, *held_out]) == list(range(82))


def test_a_seed_gives_one_split_and_another_seed_another():
    labels = of_files({"walk": 50, "run": 20})
    first, again, other = (split_rows(labels, 0.2, seed)[1].tolist() for seed in (0, 0, 1))
    assert first == again != other


def test_files_and_groups_stay_on_one_side():
    rng = np.random.default_rng(0)
    rows = [(f"{i % 40}.mp4", [str(rng.integers(3))], f"animal {i % 40 // 4}", "") for i in range(200)]
    labels = table(rows)
    for train, held_out in [split_rows(labels, 0.3, 0), *fold_rows(labels, 5, 0)]:
        for key in ("path", "group"):
            sides = [{getattr(labels.rows[i], key) for i in side} for side in (train, held_out)]
            assert not sides[0] & sides[1]


def test_a_file_in_two_groups_joins_them():
    labels = table([("a.mp4", [], "1", ""), ("b.mp4", [], "1", ""), ("b.mp4", [], "2", ""), ("c.mp4", [], "2", "")])
    assert row_units(labels).tolist() == [0, 0, 0, 0]


def test_folds_hold_out_each_row_once_with_all_classes():
    labels = of_files({"walk": 25, "run": 10, "rest": 5})
    folds = fold_rows(labels, 5, seed=3)
    assert sorted(np.concatenate([held_out for _, held_out in folds])) == list(range(40))
    assert all(shares(labels, held_out) == {"rest": 1, "run": 2, "walk": 5} for _, held_out in folds)


def test_a_given_split_decides():
    labels = table([("a.mp4", ["x"], "", "train"), ("b.mp4", ["x"], "", "val"), ("c.mp4", ["x"], "", "test")])
    for train, held_out in [split_rows(labels, 0.2, 0), *fold_rows(labels, 5, 0)]:
        assert (train.tolist(), held_out.tolist()) == ([0], [1, 2])


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("a.mp4", ["x"], "", ""), ("a.mp4", ["y"], "", "")], "one file"),
        ([("a.mp4", ["x"], "mouse", ""), ("b.mp4", ["y"], "mouse", "")], "one group"),
        ([("a.mp4", ["x"], "", "train"), ("b.mp4", ["y"], "", "train")], "all rows have the split train"),
    ],
)
def test_what_cannot_be_held_out_is_an_error_with_a_remedy(rows, message):
    with pytest.raises(LabelError, match=message):
        split_rows(table(rows), 0.2, 0)


def test_more_folds_than_files_are_an_error():
    with pytest.raises(LabelError, match="--folds 3"):
        fold_rows(of_files({"walk": 3}), 5, 0)


def test_targets_are_spread_over_both_sides():
    rows = [LabelRow(line=i, path=Path(f"/v/{i}.mp4"), values=(float(i),)) for i in range(40)]
    labels = LabelTable(path=Path("l.csv"), format="CSV", digest="0", columns=("path", "x"), rows=rows, targets=("x",))
    _, held_out = split_rows(labels, 0.2, 0)
    assert np.histogram(held_out, [0, 10, 20, 30, 40])[0].tolist() == [2, 2, 2, 2]
