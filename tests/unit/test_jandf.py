import numpy as np
import pytest
from trackeval.metrics import JAndF

from tubelet.data.palette_png import davis_palette, read_indexed, write_indexed
from tubelet.tasks.metrics.j_and_f import (
    boundaries,
    boundary_accuracy,
    dilate,
    measure_objects,
    region_similarity,
    statistics,
)


def square(top: int, left: int, side: int, size: int = 60) -> np.ndarray:
    """(1, size, size) a filled square."""
    mask = np.zeros((1, size, size), bool)
    mask[0, top : top + side, left : left + side] = True
    return mask


def blobs(frames: int, objects: int, size: tuple[int, int], seed: int) -> np.ndarray:
    """(T, H, W) numbers of objects that move, overlap, leave and come back."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: size[0], : size[1]]
    labels = np.zeros((frames, *size), np.uint8)
    for number in range(1, objects + 1):
        center, speed, radius = rng.uniform(0.2, 0.8, 2) * size, rng.uniform(-5, 5, 2), rng.uniform(3, 15)
        for t in range(frames):
            at = center + speed * t
            wobble = 1 + 0.3 * np.sin(3 * np.arctan2(y - at[0], x - at[1]) + t)
            labels[t][np.hypot(y - at[0], x - at[1]) < radius * wobble] = number
    return labels


def test_j_is_intersection_over_union_and_nothing_agrees_with_nothing():
    # 10 x 10 squares, 4 columns apart: 60 pixels in common of 140.
    assert region_similarity(square(10, 14, 10), square(10, 10, 10))[0] == pytest.approx(60 / 140)
    empty = np.zeros((1, 60, 60), bool)
    assert region_similarity(empty, empty)[0] == 1
    assert region_similarity(empty, square(0, 0, 5))[0] == 0


def test_a_boundary_lies_on_the_near_side_of_each_change():
    mask = np.zeros((1, 5, 6), bool)
    mask[0, 2:4, 2:4] = True
    drawn = ["......", ".###..", ".#.#..", ".###..", "......"]
    assert ["".join(".#"[int(v)] for v in row) for row in boundaries(mask)[0]] == drawn
    # At the rim there is nothing to differ from.
    assert not boundaries(np.ones((1, 4, 4), bool)).any()


def test_f_of_shifted_squares_worked_out_by_hand():
    # 60 x 60: the diagonal is 84.9, so that boundaries within ceil(0.68) = 1 pixel match: along rows and columns.
    truth = square(20, 20, 10)
    assert boundaries(truth).sum() == 40
    assert boundary_accuracy(truth, truth)[0] == 1
    assert boundary_accuracy(square(20, 21, 10), truth)[0] == 1
    # Two columns to the right: rings over rows 19..29 and columns 21..31 against 19..29. Of the 11 pixels of the upper
    # and of the lower edge 9 lie on the other ring and the next one touches it; of the upright edge at column 21 the
    # ends, at rows 20 and 28, touch the other ring's upper and lower edge.
    assert boundary_accuracy(square(20, 22, 10), truth)[0] == pytest.approx((10 + 10 + 2) / 40)
    assert boundary_accuracy(square(40, 40, 10), truth)[0] == 0


def test_f_of_empty_masks():
    empty, full = np.zeros((1, 60, 60), bool), square(20, 20, 10)
    assert boundary_accuracy(empty, empty)[0] == 1
    assert boundary_accuracy(empty, full)[0] == 0
    assert boundary_accuracy(full, empty)[0] == 0


@pytest.mark.parametrize("radius", [0, 1, 2, 5, 8, 40])
def test_dilating_reaches_all_within_a_disk(radius):
    rng = np.random.default_rng(radius)
    masks = rng.random((2, 23, 31)) < 0.01
    masks[1] = False
    y, x = np.mgrid[:23, :31]
    expected = np.zeros_like(masks)
    for t, i, j in zip(*np.nonzero(masks), strict=True):
        expected[t] |= (y - i) ** 2 + (x - j) ** 2 <= radius**2
    np.testing.assert_array_equal(dilate(masks, radius), expected)


def test_mean_recall_and_decay_of_eight_frames():
    values = np.array([1.0, 0.9, 0.8, 0.6, 0.5, 0.4, 0.3, 0.1])
    found = statistics(values)
    assert found.mean == pytest.approx(4.6 / 8)
    assert found.recall == 4 / 8
    # Quarters end at frames 1, 2.75 -> 3, 4.5 -> 5 (halves go up), 6.25 -> 6 and 8, and overlap.
    assert found.decay == pytest.approx((1 + 0.9 + 0.8) / 3 - (0.4 + 0.3 + 0.1) / 3)


def test_one_frame_has_no_decay():
    assert statistics(np.array([0.7])).decay == 0


@pytest.mark.parametrize(("frames", "size", "seed"), [(7, (90, 120), 0), (12, (64, 64), 1), (4, (133, 75), 2)])
def test_figures_are_those_of_another_implementation(frames, size, seed, tmp_path):
    from pycocotools import mask as coco

    objects = 3
    truth = blobs(frames, objects, size, seed)
    predicted = np.roll(truth, 2, axis=2)
    predicted[frames // 2] = 0
    predicted[-1][predicted[-1] == 2] = 0
    write_indexed(tmp_path / "mask.png", predicted[0])
    np.testing.assert_array_equal(read_indexed(tmp_path / "mask.png"), predicted[0])

    def encoded(labels):
        masks = [np.asfortranarray(labels == number).astype(np.uint8) for number in range(1, objects + 1)]
        return [coco.encode(mask) for mask in masks]

    numbers = [list(range(objects))] * frames
    theirs = JAndF().eval_sequence(
        {
            "num_timesteps": frames,
            "num_gt_ids": objects,
            "num_tracker_ids": objects,
            "gt_ids": numbers,
            "tracker_ids": numbers,
            "gt_dets": [encoded(labels) for labels in truth],
            "tracker_dets": [encoded(labels) for labels in predicted],
        }
    )
    mine = measure_objects(predicted, truth, objects)
    for i, name in enumerate("JF"):
        for what in ("mean", "recall", "decay"):
            value = np.mean([getattr(pair[i], what) for pair in mine])
            assert value == pytest.approx(theirs[f"{name}-{what.title()}"], abs=1e-9), f"{name} {what}"
    assert 0.1 < theirs["J-Mean"] < 0.95  # a comparison that says something


def test_masks_are_indexed_pngs_in_the_palette_of_davis(tmp_path):
    from PIL import Image

    write_indexed(tmp_path / "mask.png", np.arange(16, dtype=np.uint8).reshape(4, 4))
    with Image.open(tmp_path / "mask.png") as image:
        assert image.mode == "P"
        colors = np.array(image.convert("RGB")).reshape(16, 3)
    assert colors[:5].tolist() == [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0], [0, 0, 128]]
    assert colors[9].tolist() == [191, 0, 0]
    assert davis_palette()[255].tolist() == [255, 255, 255]
