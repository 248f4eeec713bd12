"""Segmentation and depth: metrics, readers, points, heads, windows."""

import dataclasses
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from tubelet.config import EvaluateConfig
from tubelet.datasets import DenseSample, DepthDataset, ade20k, cityscapes, kitti, nyuv2, voc2012
from tubelet.datasets import sample_set as sample_layouts
from tubelet.datasets.annotations import IGNORED
from tubelet.datasets.records import Region
from tubelet.errors import TubeletError
from tubelet.heads import training
from tubelet.heads.linear import fit_whitening, linear_head
from tubelet.tasks import depth, segmentation
from tubelet.tasks.common.dense_heads import HeadProtocol, train_dense_heads
from tubelet.tasks.common.extract import FeatureSet, Source
from tubelet.tasks.common.pixel_features import (
    POINTS_CACHED,
    Crop,
    Draw,
    EpochSampler,
    PixelFeatureDataset,
    PointReader,
    check_shape,
    draw_points,
    interpolate,
    source_draws,
    training_source,
)
from tubelet.tasks.metrics.dense import accuracy, confusion, depth_errors, iou_by_class, mean_iou

NYU = DepthDataset(
    name="x", train=[], test=[], units_per_meter=1000, max_depth=10, input_crop=None, eval_crop=(0, 0, 1, 1),
    input_height=None, train_crop=(1.0, 1.0),
)  # fmt: skip


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)
    return path


def silent(what, done, total):
    pass


# Metrics


def test_iou_and_accuracy_worked_out_by_hand():
    truth, predicted = torch.tensor([0, 0, 0, 1, 1, 2]), torch.tensor([0, 0, 1, 1, 2, 2])
    counts = confusion(predicted, truth, 4)
    assert iou_by_class(counts) == {0: pytest.approx(2 / 3), 1: pytest.approx(1 / 3), 2: pytest.approx(1 / 2)}
    assert mean_iou(counts) == pytest.approx(0.5)
    assert accuracy(counts) == pytest.approx(4 / 6)
    assert mean_iou(confusion(truth, truth, 4)) == 1
    assert mean_iou(confusion(torch.full_like(truth, 3), truth, 4)) == 0


def test_iou_of_a_stream_is_that_of_scikit_learn_on_all_of_it():
    import sklearn.metrics

    rng = torch.Generator().manual_seed(0)
    truth, predicted = (torch.randint(0, 7, (3000,), generator=rng) for _ in range(2))
    parts = zip(predicted.split(700), truth.split(700), strict=True)
    counts = sum(confusion(p, t, 7) for p, t in parts)
    assert mean_iou(counts) == pytest.approx(sklearn.metrics.jaccard_score(truth, predicted, average="macro"))
    assert accuracy(counts) == pytest.approx(sklearn.metrics.accuracy_score(truth, predicted))


def test_depth_errors_worked_out_by_hand():
    errors = depth_errors(torch.tensor([1.0, 2.0, 4.0, 13.0]), torch.tensor([1.0, 2.5, 2.0, 10.0]))
    assert errors.rmse == pytest.approx(((0 + 0.25 + 4 + 9) / 4) ** 0.5)
    assert errors.abs_rel == pytest.approx((0 + 0.2 + 1 + 0.3) / 4)
    # Ratios are 1, 1.25, 2 and 1.3: below 1.25 is strictly below.
    assert (errors.delta1, errors.delta2, errors.delta3) == (0.25, 0.75, 0.75)
    logs = np.log10([1, 1.25, 2, 1.3])
    assert errors.log10 == pytest.approx(logs.mean())
    assert errors.silog == pytest.approx(100 * np.log([1, 0.8, 2, 1.3]).std())
    perfect = depth_errors(torch.ones(3), torch.ones(3))
    assert (perfect.rmse, perfect.abs_rel, perfect.delta1, perfect.silog) == (0, 0, 1, 0)


def test_depth_errors_agree_with_scikit_learn():
    import sklearn.metrics

    rng = np.random.default_rng(0)
    truth, predicted = rng.uniform(0.1, 10, 500), rng.uniform(0.1, 10, 500)
    errors = depth_errors(torch.from_numpy(predicted), torch.from_numpy(truth))
    assert errors.rmse == pytest.approx(sklearn.metrics.root_mean_squared_error(truth, predicted))
    assert errors.abs_rel == pytest.approx(sklearn.metrics.mean_absolute_percentage_error(truth, predicted))


# Data sets


@pytest.fixture
def ade(tmp_path):
    root = tmp_path / "ADEChallengeData2016"
    rng = np.random.default_rng(0)
    for split, name in (("training", "ADE_train_00000001"), ("validation", "ADE_val_00000001")):
        save(root / "images" / split / f"{name}.jpg", rng.integers(0, 255, (8, 6, 3), np.uint8))
        save(root / "annotations" / split / f"{name}.png", np.array([[0, 1, 2, 150, 3, 4]] * 8, np.uint8))
    return tmp_path


def test_labels_of_ade20k_count_from_one_and_zero_is_ignored(ade):
    found = ade20k.Ade20k.load(ade)
    assert found.load_target(found.train[0])[0].tolist() == [IGNORED, 0, 1, 149, 2, 3]
    assert len(found.classes) == 150


def test_unknown_label_names_its_file(ade):
    found = ade20k.Ade20k.load(ade)
    save(found.train[0].target, np.full((8, 6), 151, np.uint8))
    with pytest.raises(TubeletError, match=r"ADE_train_00000001\.png: label 151, expected labels 0-150"):
        found.load_target(found.train[0])


def test_missing_annotation_and_empty_split_are_errors(ade):
    (ade / "ADEChallengeData2016/annotations/validation/ADE_val_00000001.png").unlink()
    with pytest.raises(TubeletError, match=r"ADE_val_00000001\.png: missing annotation of ADE_val_00000001"):
        ade20k.Ade20k.load(ade)
    (ade / "ADEChallengeData2016/images/validation/ADE_val_00000001.jpg").unlink()
    with pytest.raises(TubeletError, match=r"validation: no images found"):
        ade20k.Ade20k.load(ade)


def test_colored_maps_and_maps_of_another_size_are_refused(ade):
    found = ade20k.Ade20k.load(ade)
    save(found.train[0].target, np.zeros((8, 6, 3), np.uint8))
    with pytest.raises(TubeletError, match="mode RGB, expected one integer per pixel"):
        found.load_target(found.train[0])
    with pytest.raises(TubeletError, match=r"5 x 8 pixels, but .*\.jpg has 6 x 8"):
        check_shape(found.train[0], (8, 5))


def test_voc_has_21_classes_and_255_is_ignored(tmp_path):
    root = tmp_path / "VOCdevkit" / "VOC2012"
    for split, name in (("train", "2007_000001"), ("val", "2007_000002")):
        save(root / "JPEGImages" / f"{name}.jpg", np.zeros((4, 4, 3), np.uint8))
        palette = Image.fromarray(np.array([[0, 20, 255, 1]] * 4, np.uint8), "P")
        palette.putpalette([i for i in range(256) for _ in range(3)])
        (root / "SegmentationClass").mkdir(exist_ok=True)
        palette.save(root / "SegmentationClass" / f"{name}.png")
        (root / "ImageSets/Segmentation").mkdir(parents=True, exist_ok=True)
        (root / "ImageSets/Segmentation" / f"{split}.txt").write_text(f"{name}\n")
    found = voc2012.PascalVoc2012.load(tmp_path)
    assert found.load_target(found.test[0])[0].tolist() == [0, 20, IGNORED, 1]
    save(found.test[0].target, np.full((4, 4), 21, np.uint8))
    with pytest.raises(TubeletError, match="label 21, expected labels 0-20, 255"):
        found.load_target(found.test[0])


def test_cityscapes_evaluates_19_of_its_labels(tmp_path):
    for split in ("train", "val"):
        save(tmp_path / f"leftImg8bit/{split}/ulm/ulm_000000_000019_leftImg8bit.png", np.zeros((2, 4, 3), np.uint8))
        labels = np.array([[7, 33, 0, 16]] * 2, np.uint8)
        save(tmp_path / f"gtFine/{split}/ulm/ulm_000000_000019_gtFine_labelIds.png", labels)
    found = cityscapes.Cityscapes.load(tmp_path)
    assert found.load_target(found.train[0])[0].tolist() == [0, 18, IGNORED, IGNORED]
    assert len(found.classes) == 19 and found.classes[18] == "bicycle"


def test_nyu_is_read_with_and_without_its_lists(tmp_path):
    for folder in ("sync", "official_splits/test"):
        for i in range(2):
            save(tmp_path / folder / f"bath/rgb_{i:05d}.jpg", np.zeros((4, 4, 3), np.uint8))
            save(tmp_path / folder / f"bath/sync_depth_{i:05d}.png", np.array([[0, 500, 9999, 10000]] * 4, np.uint16))
    found = nyuv2.NyuDepthV2.load(tmp_path)
    assert (len(found.train), len(found.test)) == (2, 2)
    assert found.load_target(found.test[0])[0].tolist() == [0, 0.5, pytest.approx(9.999), 0]
    listed = tmp_path / "nyudepthv2_train_files_with_gt.txt"
    listed.write_text("/bath/rgb_00001.jpg /bath/sync_depth_00001.png 518.8579\n")
    assert [pair.name for pair in nyuv2.NyuDepthV2.load(tmp_path).train] == ["bath/rgb_00001"]
    listed.write_text("/bath/rgb_00009.jpg /bath/sync_depth_00009.png 518.8579\n")
    with pytest.raises(TubeletError, match=r"rgb_00009\.jpg: missing image of .* in the train split"):
        nyuv2.NyuDepthV2.load(tmp_path)


def test_kitti_counts_images_without_depth_and_requires_its_lists(tmp_path):
    drive = "2011_09_26_drive_0002_sync"
    (tmp_path / "data_depth_annotated").mkdir()
    with pytest.raises(TubeletError, match=r"no list of Eigen's train split; expected eigen_train_files_with_gt"):
        kitti.KittiEigen.load(tmp_path)
    image, target = (
        f"2011_09_26/{drive}/image_02/data/0000000001.png",
        f"{drive}/proj_depth/groundtruth/image_02/1.png",
    )
    save(tmp_path / image, np.zeros((4, 4, 3), np.uint8))
    save(tmp_path / "data_depth_annotated/val" / target, np.array([[0, 256, 512, 65535]] * 4, np.uint16))
    for split in ("train", "test"):
        lines = f"{image} {target} 721.5377\n{image} None 721.5377\n"
        (tmp_path / f"eigen_{split}_files_with_gt.txt").write_text(lines)
    found = kitti.KittiEigen.load(tmp_path)
    assert len(found.test) == 1 and found.excluded == {"test images without depth": 1}
    assert found.load_target(found.test[0])[0].tolist() == [0, 1, 2, 0]


def test_crops_of_kitti_and_nyu_are_those_of_their_benchmarks():
    kitti_like = dataclasses.replace(
        NYU, input_crop=(352, 1216), eval_crop=(0.40810811, 0.03594771, 0.99189189, 0.96405229), max_depth=80
    )
    assert kitti_like.input_region((375, 1242)) == Region(23, 13, 375, 1229)
    assert kitti_like.eval_region((375, 1242)) == Region(153, 44, 371, 1197)
    assert kitti_like.input_region((128, 128)) == Region(0, 0, 128, 128)
    nyu_like = dataclasses.replace(NYU, eval_crop=(45 / 480, 41 / 640, 471 / 480, 601 / 640))
    assert nyu_like.eval_region((480, 640)) == Region(45, 41, 471, 601)


def test_depth_of_eight_bits_is_refused(tmp_path):
    pair = DenseSample(name="x", image=tmp_path / "x.jpg", target=save(tmp_path / "x.png", np.zeros((4, 4), np.uint8)))
    with pytest.raises(TubeletError, match=r"x\.png: 8-bit PNG, expected 16-bit depth"):
        NYU.load_target(pair)


@pytest.mark.slow
def test_the_sample_set_gives_images_and_middle_frames(sample_set):
    labels, depths = sample_layouts.SampleSegmentation.load(sample_set), sample_layouts.SampleDepth.load(sample_set)
    assert [p.frame for p in labels.train].count(4) == 19 and len(labels.train) + len(labels.test) == 30
    classes, meters = labels.load_target(labels.test[-1]), depths.load_target(depths.test[-1])
    assert classes.shape == meters.shape == (64, 64)
    assert set(np.unique(classes)) <= {*range(13), IGNORED}
    assert (meters[classes == labels.classes.index("sky")] == 0).all() and meters.max() < 60


# Views and points


def test_points_hold_the_value_that_their_place_in_the_crop_shows(sample_set):
    labels = sample_layouts.SampleSegmentation.load(sample_set)
    pair = labels.train[0]
    source = training_source(pair, 3, seed=0)
    choose = partial(segmentation.choose_crop, scale=(1.0, 2.0))
    reader = PointReader([pair], [source], [], labels.load_target, IGNORED, choose)
    points, classes = reader._draw(0), labels.load_target(pair)
    assert points["at"].shape == (3, POINTS_CACHED, 2)
    for i, draw in enumerate(source_draws(source)):
        top, left, height, width, mirrored = choose(classes.shape, draw, i == 0)
        part = classes[top : top + height, left : left + width]
        part = part[:, ::-1] if mirrored else part
        rows, columns = (points["at"][i] * torch.tensor([height, width])).long().unbind(-1)
        assert np.array_equal(part[rows, columns], points["value"][i].numpy())
        assert (points["value"][i] != IGNORED).all()


def test_interpolated_features_are_those_of_torch_at_pixels():
    x = torch.randn(2, 6 * 8, 5)
    wanted = F.interpolate(x.mT.unflatten(2, (6, 8)), (30, 40), mode="bilinear", align_corners=False)
    rows, columns = torch.meshgrid(torch.arange(30), torch.arange(40), indexing="ij")
    at = torch.stack([(rows.flatten() + 0.5) / 30, (columns.flatten() + 0.5) / 40], dim=-1)
    found = interpolate(x, (6, 8), at.expand(2, -1, -1))
    assert torch.allclose(found.mT.unflatten(2, (30, 40)), wanted, atol=1e-5)


def test_crops_depend_on_an_images_name_and_not_on_its_place_in_a_list(tmp_path):
    pair = DenseSample(name="a", image=tmp_path / "a.png", target=tmp_path / "a.png")
    assert training_source(pair, 2, 0) == training_source(dataclasses.replace(pair), 2, 0)
    assert training_source(pair, 2, 0) != training_source(dataclasses.replace(pair, name="b"), 2, 0)
    assert training_source(pair, 2, 0) != training_source(pair, 2, 1)


def test_every_pass_sees_every_image_once_wherever_training_continues():
    batches = list(EpochSampler([3, 5, 7, 9, 11], 2, seed=0, start=0, steps=5))
    seen = [image for batch in batches for _, image in batch]
    assert sorted(seen[:5]) == sorted(seen[5:]) == [3, 5, 7, 9, 11] and seen[:5] != seen[5:]
    assert list(EpochSampler([3, 5, 7, 9, 11], 2, seed=0, start=3, steps=5)) == batches[3:]


def test_wrong_annotations_end_reading_and_are_named(ade, tmp_path):
    found = ade20k.Ade20k.load(ade)
    save(found.train[0].target, np.full((8, 6), 200, np.uint8))
    sources = [training_source(pair, 1, 0) for pair in found.train]
    choose = partial(segmentation.choose_crop, scale=(1.0, 2.0))
    places = [tmp_path / "points" / "x.safetensors"]
    reader = PointReader(found.train, sources, places, found.load_target, IGNORED, choose)
    with pytest.raises(TubeletError, match="label 200, expected labels"):
        draw_points(reader, 1, silent)


def test_windows_cover_an_image_and_agree_with_one_window_where_it_is_enough():
    assert segmentation.window_starts(512, 512) == [0]
    assert segmentation.window_starts(1024, 512) == [0, 341, 512]
    assert segmentation.window_starts(600, 512) == [0, 88]
    # Windows of a linear ramp agree where they overlap, so that averaging them changes nothing.
    weight, bias = torch.tensor([[1.0], [-1.0]]), torch.tensor([0.0, 2.0])
    ramp = torch.arange(8.0).repeat(8, 1).reshape(1, 64, 1)
    predicted = segmentation.predict(ramp, linear(weight, bias), 8, (16, 16))
    assert predicted.shape == (16, 16)
    assert (predicted[:, :2] == 1).all() and (predicted[:, 4:] == 0).all()


# Heads


def linear_world(tmp_path, classes=3, width=6, images=12, common=0.0, scale=1.0):
    """Crops whose tokens are of a class that a linear map can read, and points that say it.

    What is of the class has a scale, and beside it is something that all channels of a token have in common.
    """
    from safetensors.torch import save_file

    rng = torch.Generator().manual_seed(0)
    centers = 3 * torch.randn(classes, width, generator=rng)
    places, points, sources = [], [], []
    for i in range(images):
        kind = torch.randint(0, classes, (1, 16), generator=rng)
        tokens = scale * (centers[kind] + 0.3 * torch.randn(1, 16, width, generator=rng))
        if common:
            tokens += common * torch.randn(1, 16, 1, generator=rng)
        chosen = torch.randint(0, 16, (1, POINTS_CACHED), generator=rng)
        at = torch.stack([(chosen // 4 + 0.5) / 4, (chosen % 4 + 0.5) / 4], dim=-1)
        places.append(tmp_path / f"{i}.safetensors")
        points.append(tmp_path / f"{i}.points.safetensors")
        save_file({"tokens": tokens.half()}, places[-1])
        save_file({"at": at, "value": kind[0][chosen].to(torch.uint8)}, points[-1])
        sources.append(Source(files=(places[-1],), part=(-1, 0.0, 0.0, 0.0, 0.0)))
    features = FeatureSet(sources, places, list(range(images)), [])
    return PixelFeatureDataset(features, points, (4, 4), 0, 0)


def linear(weight, bias):
    """A linear head of these parameters."""
    head = torch.nn.Linear(*reversed(weight.shape)).requires_grad_(False)
    head.weight.copy_(weight)
    head.bias.copy_(bias)
    return head


def train(rows, folder, protocol, make_head=lambda: linear_head(6, 3), workers=0, progress=silent):
    context = SimpleNamespace(
        task="segmentation",
        config=EvaluateConfig(workers=workers),
        model=SimpleNamespace(device=torch.device("cpu")),
        cache=SimpleNamespace(folder=folder),
        progress=progress,
    )
    return train_dense_heads(
        context,
        rows,
        make_head,
        protocol,
        segmentation.sum_of_losses,
        segmentation.accumulate,
        segmentation.held_out_scores,
    )


PROTOCOL = HeadProtocol(iterations=60, epochs=100, batch_size=4, learning_rates=(1e-5, 1e-2), weight_decay=1e-3)


def test_a_head_reads_what_is_linear_and_the_better_learning_rate_is_chosen(tmp_path):
    rows = linear_world(tmp_path)
    head = train(rows, tmp_path / "heads", PROTOCOL)
    assert head.learning_rate == 1e-2 and head.steps == 60 and head.images == (11, 1)
    x, values = rows[[(0, i) for i in range(12)]]
    assert (head.head(x).argmax(-1) == values).float().mean() > 0.99


def test_a_head_trained_side_by_side_equals_one_trained_separately(tmp_path):
    rows = linear_world(tmp_path)
    both = train(rows, tmp_path / "both", PROTOCOL)
    alone = train(rows, tmp_path / "alone", dataclasses.replace(PROTOCOL, learning_rates=(1e-2,)))
    assert torch.allclose(both.head.weight, alone.head.weight, atol=1e-5)


@pytest.mark.parametrize("rates", [(1e30, 1e-2), (1e-2, 1e30)])
def test_a_head_that_diverged_is_never_chosen(tmp_path, rates):
    head = train(linear_world(tmp_path), tmp_path / "heads", dataclasses.replace(PROTOCOL, learning_rates=rates))
    assert head.learning_rate == 1e-2 and head.sweep["1e+30"] is None
    assert head.sweep["0.01"] is not None and head.head.weight.isfinite().all()


def test_heads_that_all_diverged_are_an_error(tmp_path):
    protocol = dataclasses.replace(PROTOCOL, learning_rates=(1e30,))
    with pytest.raises(TubeletError, match=r"diverged: .*1e\+30,\); lower them, or remove --learning-rates"):
        train(linear_world(tmp_path), tmp_path / "heads", protocol)


def test_damaged_features_are_named_in_a_sentence_also_where_a_worker_reads_them(tmp_path):
    rows = linear_world(tmp_path)
    rows.features.paths[3].write_bytes(b"x")
    with pytest.raises(
        TubeletError, match=r"^\S+3\.safetensors: cannot be read [^\n]*; delete this file of cached features [^\n]*$"
    ):
        train(rows, tmp_path / "heads", PROTOCOL, workers=1)


def test_training_that_was_stopped_continues_to_the_same_head(tmp_path, monkeypatch):
    rows = linear_world(tmp_path)
    protocol = dataclasses.replace(PROTOCOL, dropout=0.1)
    whole = train(rows, tmp_path / "whole", protocol)
    monkeypatch.setattr(training, "SAVE_SECONDS", -1)

    def stop(what, done, total):
        if done > 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(rows, tmp_path / "parts", protocol, progress=stop)
    seen = []
    parts = train(rows, tmp_path / "parts", protocol, progress=lambda what, done, total: seen.append(done))
    assert min(seen) == 20
    assert torch.equal(parts.head.weight, whole.head.weight)


def test_whitening_brings_rows_to_variance_one_and_drop_what_does_not_vary():
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(4000, 3, generator=rng) @ torch.tensor([[5.0, 5.0, 4.9], [0.0, 0.1, 0.1], [0.0, 0.0, 0.02]]) + 7
    x = torch.cat([x, x[:, :1], torch.ones(4000, 1)], dim=1)  # a channel that is another's copy, and a still one
    y = fit_whitening(x.split(1000))(x)
    found = y.T @ y / len(y)
    assert torch.allclose(found, torch.diag(torch.tensor([0.0, 0.0, 1.0, 1.0, 1.0])), atol=1e-2)


def test_a_trained_head_is_one_linear_map_of_rows_as_they_are():
    rng = torch.Generator().manual_seed(0)
    x = 2 + torch.randn(50, 5, generator=rng) @ torch.randn(5, 5, generator=rng)
    whitening, head = fit_whitening([x]), linear_head(5, 3)
    torch.nn.init.normal_(head.bias, generator=rng)
    folded = whitening.before(head)
    assert isinstance(folded, torch.nn.Linear)
    assert torch.allclose(folded(x), head(whitening(x)), atol=1e-4)


def test_any_module_is_a_head(tmp_path):
    def make_head():
        return torch.nn.Sequential(torch.nn.Linear(6, 16), torch.nn.GELU(), torch.nn.Linear(16, 3))

    rows = linear_world(tmp_path)
    trained = train(rows, tmp_path / "heads", PROTOCOL, make_head)
    x, values = rows[[(0, i) for i in range(12)]]
    with torch.no_grad():
        assert (trained.head(x).argmax(-1) == values).float().mean() > 0.95


def test_a_head_learns_in_few_epochs_from_small_variation_under_a_common_signal(tmp_path):
    rows = linear_world(tmp_path, common=10.0, scale=0.05)
    head = train(rows, tmp_path / "heads", dataclasses.replace(PROTOCOL, learning_rates=(1e-2,)))
    x, values = rows[[(0, i) for i in range(12)]]
    assert (head.head(x).argmax(-1) == values).float().mean() > 0.95


def test_one_training_image_is_too_few(tmp_path):
    with pytest.raises(TubeletError, match="fewer than 2 images"):
        train(linear_world(tmp_path, images=1), tmp_path / "heads", PROTOCOL)


# Depth


def test_depth_of_scores_is_the_weighted_mean_of_bins():
    bins = torch.tensor([1.0, 2.0, 4.0])
    assert depth.depth_of(torch.zeros(3), bins) == pytest.approx(7 / 3)
    assert depth.depth_of(torch.tensor([-5.0, 0.9, 0.0]), bins) == pytest.approx((0.1 + 2 + 0.4) / 1.2)


def test_depth_loss_worked_out_by_hand_leaves_out_unknown_pixels():
    bins, wanted = torch.tensor([1.0, 3.0]), torch.tensor([2.0, 4.0, 0.0])
    g = np.log(2.001) - np.log([2.001, 4.001])
    loss = depth.sum_of_losses(torch.zeros(3, 1, 2), wanted, bins)
    assert float(loss) == pytest.approx(np.sqrt(g.var() + 0.15 * g.mean() ** 2), rel=1e-4)


def test_a_mirrored_view_is_turned_back_and_what_models_do_not_see_is_zero():
    depths = dataclasses.replace(NYU, input_crop=(4, 4))
    bins = torch.tensor([1.0, 9.0])
    tokens = torch.tensor([0.0, 50.0]).repeat(2)[None, :, None].repeat(2, 1, 1)  # 2 x 2 tokens, the right ones far
    tokens[1] = tokens[1].flip(0)  # of each row: the mirror image
    weight, bias = torch.tensor([[0.0], [1.0]]), torch.tensor([1.0, 0.0])
    meters = depth.predict(tokens, linear(weight, bias), (2, 2), bins, depths, (6, 8))
    assert meters.shape == (6, 8) and (meters[:2] == 0).all() and (meters[:, :2] == 0).all()
    assert meters[2:, 5].min() > 6 > 3 > meters[2:, 2].max() > 0


def test_views_of_depth_are_whole_patches_in_the_shape_of_what_is_seen():
    nyu_like = dataclasses.replace(NYU, input_height=480)
    assert depth.input_size(nyu_like, (480, 640), None, 16) == (480, 640)
    assert depth.input_size(nyu_like, (480, 640), 100, 16) == (96, 128)
    kitti_like = dataclasses.replace(NYU, input_height=352, input_crop=(352, 1216))
    assert depth.input_size(kitti_like, (375, 1242), None, 16) == (352, 1216)
    crop = depth.choose_crop((375, 1242), Draw(1.0, 0.0, 0.5, 0.9), True, kitti_like)
    assert isinstance(crop, Crop) and crop[:4] == (23, 13, 352, 1216)
