"""Masks and depth maps of images and videos, as files."""

import csv
from dataclasses import replace

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from tests.helpers.media import write_video
from tubelet.config import ModelConfig, PredictConfig, PredictorConfig
from tubelet.data.images import read_image
from tubelet.data.palette_png import read_indexed
from tubelet.fitting.pixel_inputs import row_samples
from tubelet.heads.head_file import EncoderId, Head, HeadInput, HeadSpec
from tubelet.labels.checks import check_labels
from tubelet.labels.depth_maps import read_depth
from tubelet.labels.infer import infer_task
from tubelet.labels.masks import read_mask
from tubelet.labels.records import LabelRow
from tubelet.labels.table import read_labels
from tubelet.prediction.layout import WindowLayout
from tubelet.prediction.outputs.masks import MaskOutput
from tubelet.prediction.pipeline import predict_collection
from tubelet.pretrained.backbone import Backbone
from tubelet.tasks import segmentation

SIZES = ModelConfig(
    width=32, depth=2, heads=2, levels=(0, 1), patch_size=8, predictor=PredictorConfig(width=24, depth=1, heads=2)
)
CLASSES = ("road", "sky, blue", "background")


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(7)
    return Backbone(SIZES).requires_grad_(False).eval()


def make_head(model, task="segmentation", **options):
    network = {"segmentation": "pixels", "depth": "depth_bins"}[task]
    torch.manual_seed(1)
    spec = HeadSpec(
        task=task,
        network=network,
        options=options,
        width=32,
        classes=CLASSES if task == "segmentation" else ("depth",),
        input=HeadInput(image_size=32, frames=1, fps=4, stride_s=0.5),
        encoder=EncoderId(
            source="tiny", model_id=model.model_id, weights_id=model.weights_id, config_hash=model.config_hash
        ),
    )
    head = Head(spec)
    head.network.linear.weight.data.mul_(30)
    return head.requires_grad_(False).eval()


@pytest.fixture
def media(tmp_path):
    folder = tmp_path / "media"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name, shape in [("wide.png", (40, 100)), ("high.png", (70, 50))]:
        Image.fromarray(rng.integers(0, 256, (*shape, 3), dtype=np.uint8)).save(folder / name)
    write_video(folder / "a b.mp4", frames=20, fps=10, size=64)
    return folder


def predict(model, head, media, out, **settings):
    return predict_collection(model, {"head": head}, [str(media)], out, PredictConfig(workers=0, **settings))


def rows(path):
    with path.open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def content(out):
    return {path.relative_to(out): path.read_bytes() for path in sorted(out.rglob("*")) if path.suffix in SUFFIXES}


SUFFIXES = (".png", ".jpg", ".csv", ".parquet")


def test_masks_cover_whole_images_and_a_frame_of_each_time_step(model, media, tmp_path):
    head, out = make_head(model, indices=(3, 0, 7)), tmp_path / "out"
    summary = predict(model, head, media, out, batch_size=5)
    found = rows(out / "predictions.csv")
    assert list(found[0]) == ["path", "start_s", "start_frame", "mask_file", "overlay_file", *CLASSES]
    video = [row for row in found if row["path"].endswith(".mp4")]
    assert [row["start_s"] for row in video] == ["0.250", "0.750", "1.250", "1.750"] and len(found) == 6
    for row in found:
        mask = read_indexed(out / row["mask_file"])
        assert set(np.unique(mask)) <= {0, 3, 7}
        fractions = [np.mean(mask == index) for index in (3, 0, 7)]
        assert [float(row[name]) for name in CLASSES] == pytest.approx(fractions, abs=1e-5)
        assert read_image(str(out / row["overlay_file"])).shape[:2] == segmentation.resize_shape(*mask.shape, 32)
    for name in ("wide.png", "high.png"):
        (row,) = [row for row in found if row["path"].endswith(name)]
        image = read_image(str(media / name))
        with torch.no_grad():
            tokens = model.encode(segmentation.image_windows(image, 32), resize=None).tokens
        expected = segmentation.predict(tokens, head.network, 32, image.shape[:2])
        assert np.array_equal(read_indexed(out / row["mask_file"]), np.array([3, 0, 7], np.uint8)[expected])
    assert rows(out / "legend.csv") == [
        {"index": str(index), "name": name} for index, name in zip((3, 0, 7), CLASSES, strict=True)
    ]
    means = {row["path"]: row for row in rows(out / "summary.csv")}
    (own,) = [row for path, row in means.items() if path.endswith(".mp4")]
    assert own["maps"] == "4" and float(own["road"]) == pytest.approx(
        np.mean([float(row["road"]) for row in video]), abs=1e-5
    )
    shown = {predictions.path: predictions for (each,) in [summary.heads] for predictions in each.media_predictions()}
    overlays = next(shown[path] for path in shown if path.endswith(".mp4")).overlays
    assert [overlay.time_s for overlay in overlays] == [0.25, 0.75, 1.25, 1.75]
    assert all(overlay.image.is_file() and "%" in overlay.caption for overlay in overlays)


def test_overlays_leave_out_the_background_with_and_without_its_name(model, tmp_path):
    config, image = PredictConfig(), np.full((1, 2, 3), 100, np.uint8)
    for names, left_out in ((("0", "5"), [True, False]), (("sky", "background"), [False, True])):
        head = Head(replace(make_head(model, indices=(3, 0, 7)).spec, classes=names, options={"indices": (0, 5)}))
        output = MaskOutput(head, tmp_path, config, WindowLayout.of_head(head.spec, 2))
        painted = output.paint(np.array([[0, 1]]), image)
        assert (painted == image).all(-1)[0].tolist() == left_out


def test_predictions_are_a_label_table(model, media, tmp_path):
    predict(model, make_head(model, indices=(3, 0, 7)), media, tmp_path / "out", csv_dialect="semicolon")
    assert (tmp_path / "out" / "legend.csv").read_text() == "index;name\n3;road\n0;sky, blue\n7;background\n"
    assert (tmp_path / "out" / "summary.csv").read_text().startswith("path;maps;mask_file;road;sky, blue;background\n")
    table = check_labels(read_labels(tmp_path / "out" / "predictions.csv"), None, min_examples=1)
    assert infer_task(table)[0] == "segmentation" and table.legend == {0: CLASSES[1], 3: CLASSES[0], 7: CLASSES[2]}
    assert [row.start_s for row in table.rows] == [0.25, 0.75, 1.25, 1.75, None, None]
    assert [sample.time_s for sample in row_samples(table)] == [0.25, 0.75, 1.25, 1.75, None, None]


def test_maps_of_a_stack_are_named_by_page_and_are_one_file(model, tmp_path):
    pages = np.random.default_rng(2).integers(0, 256, (5, 32, 40), np.uint8)
    tifffile.imwrite(tmp_path / "cells.tif", pages, photometric="minisblack")
    out = tmp_path / "out"
    summary = predict(model, make_head(model, indices=(3, 0, 7)), tmp_path / "cells.tif", out)
    found = rows(out / "predictions.csv")
    assert [(row["start_s"], row["start_frame"]) for row in found] == [("", str(page)) for page in range(5)]
    assert [row["mask_file"].rpartition("/")[2] for row in found][::4] == ["page-000000.png", "page-000004.png"]
    (own,) = rows(out / "summary.csv")
    masks = tifffile.imread(out / own["mask_file"])
    assert masks.shape == (5, 32, 40) and masks.dtype == np.uint8 and own["mask_file"].endswith("/cells.tif")
    assert all(np.array_equal(masks[page], read_indexed(out / row["mask_file"])) for page, row in enumerate(found))
    ((shown,),) = [each.media_predictions() for each in summary.heads]
    assert [overlay.caption.partition(":")[0] for overlay in shown.overlays] == [f"page {page}" for page in range(5)]
    table = check_labels(read_labels(out / "predictions.csv"), None, min_examples=1)  # of pages
    assert [row.start_s for row in table.rows] == [0, 0.25, 0.5, 0.75, 1]
    (tmp_path / "labels.csv").write_text(f"path,mask\ncells.tif,out/{own['mask_file']}\n")
    table = check_labels(read_labels(tmp_path / "labels.csv"))  # of whole stacks
    assert np.array_equal(np.stack([read_mask(row) for row in table.rows]), masks)


@pytest.mark.parametrize(("largest", "per_unit"), [(4000.0, 1), (8.0, 1000), (300.0, 1)])
def test_depth_maps_are_in_the_unit_of_the_labels(model, media, tmp_path, largest, per_unit):
    head, out = make_head(model, "depth", bins=np.linspace(largest / 1e4, largest, 256).tolist()), tmp_path / "out"
    predict(model, head, media, out)
    found = rows(out / "predictions.csv")
    assert (
        list(found[0]) == ["path", "start_s", "start_frame", "depth_file", "overlay_file", "per_unit", "mean_depth"]
        and len(found) == 6
    )
    for row in found:
        depth = read_depth(LabelRow(line=1, path=out, depth=out / row["depth_file"]))
        assert float(row["per_unit"]) == per_unit and depth.min() > 0 and depth.max() <= largest * per_unit
        assert float(row["mean_depth"]) == pytest.approx(depth.mean() / per_unit, rel=0.01, abs=1 / per_unit)
        assert len(np.unique(depth)) > 4
    assert {read_image(str(media / name)).shape[:2] for name in ("wide.png", "high.png")} < {
        np.asarray(Image.open(out / row["depth_file"])).shape for row in found
    }


def test_an_interrupted_call_ends_with_the_same_bytes(model, media, tmp_path, monkeypatch):
    head = make_head(model)
    predict(model, head, media, tmp_path / "whole", batch_size=3)
    calls = []
    real = segmentation.predict

    def fail_at_third(*arguments):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(segmentation, "predict", fail_at_third)
    with pytest.raises(KeyboardInterrupt):
        predict(model, head, media, tmp_path / "again", batch_size=3)
    monkeypatch.setattr(segmentation, "predict", real)
    predict(model, head, media, tmp_path / "again", batch_size=3)
    whole, again = content(tmp_path / "whole"), content(tmp_path / "again")
    assert {path for path in whole if "_scores" not in path.parts} == {
        path for path in again if "_scores" not in path.parts
    }
    assert all(again[path] == data for path, data in whole.items() if "_scores" not in path.parts)


def test_a_file_that_breaks_off_leaves_no_maps(model, media, tmp_path):
    head, out = make_head(model), tmp_path / "out"
    write_video(media / "long.mp4", frames=96)
    data = bytearray((media / "long.mp4").read_bytes())
    middle = len(data) * 7 // 10
    data[middle : middle + 200] = bytes(255 - byte for byte in data[middle : middle + 200])
    (media / "long.mp4").write_bytes(data)
    summary = predict(model, head, media, out, max_failed_fraction=0.5, batch_size=2)
    assert summary.files == 4 and summary.truncated == 1
    found = rows(out / "predictions.csv")
    assert len(found) == 6 and not [path for path in (out / "mask").iterdir() if path.name.startswith("long")]
    assert len(list((out / "mask").iterdir())) == 3
