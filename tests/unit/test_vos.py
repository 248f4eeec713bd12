import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tubelet.config import EvaluateConfig, ModelConfig, PredictorConfig
from tubelet.data.palette_png import read_indexed, write_indexed
from tubelet.datasets import davis, youtube_vos
from tubelet.errors import TubeletError
from tubelet.pretrained.backbone import Backbone
from tubelet.sample_data.layouts import LAYOUTS, write_layout
from tubelet.tasks.common.task import run_task
from tubelet.tasks.vos import frame_size

SIZES = ModelConfig(
    width=24, depth=1, heads=2, levels=(0,), patch_size=8, predictor=PredictorConfig(width=16, depth=1, heads=2)
)


@pytest.fixture
def model() -> Backbone:
    torch.manual_seed(0)
    return Backbone(SIZES).eval().requires_grad_(False)


@pytest.fixture
def davis_root(tmp_path: Path) -> Path:
    """Two sequences of 4 frames with a bright square on noise, still in the first and moving in the other."""
    root, rng = tmp_path / "davis", np.random.default_rng(0)
    for name, step in (("still", 0), ("moving", 8)):
        folders = [root / part / "480p" / name for part in ("JPEGImages", "Annotations")]
        for folder in folders:
            folder.mkdir(parents=True)
        noise = rng.integers(0, 90, (48, 64, 3), dtype=np.uint8)
        for t in range(4):
            frame, labels = noise.copy(), np.zeros((48, 64), np.uint8)
            place = (slice(16, 32), slice(8 + step * t, 24 + step * t))
            frame[place], labels[place] = (250, 240, 60), 1
            Image.fromarray(frame).save(folders[0] / f"{t:05d}.jpg", quality=95)
            write_indexed(folders[1] / f"{t:05d}.png", labels)
    (root / "ImageSets" / "2017").mkdir(parents=True)
    (root / "ImageSets" / "2017" / "val.txt").write_text("still\nmoving\n")
    return root


def run(model: Backbone, data: Path, tmp_path: Path, **settings: object):
    config = EvaluateConfig(workers=0, **settings)  # type: ignore[arg-type]
    return run_task("vos", model, data, config, cache=tmp_path / "cache")


def test_an_object_unlike_its_surroundings_is_found_again(model, davis_root, tmp_path):
    result = run(model, davis_root, tmp_path)
    assert result.counts == {"sequences": 2, "objects": 2, "frames": 8, "masks written": 8}
    still = result.details["sequences"]["still"]["1"]
    assert still["J"]["mean"] > 0.8 and still["F"]["mean"] > 0.8
    assert result.metrics["J&F"].value > 70
    first = read_indexed(result.files["predictions/moving"] / "00000.png")
    np.testing.assert_array_equal(first, read_indexed(davis_root / "Annotations/480p/moving/00000.png"))


def test_windows_of_the_video_tokenizer_give_each_frame_features_too(model, davis_root, tmp_path):
    result = run(model, davis_root, tmp_path, frames=3)  # 4 frames: a window of 3 and one of 1
    assert result.counts["masks written"] == 8 and result.metrics["J&F"].value > 50


def test_masks_are_made_once_and_anew_for_other_frames(model, davis_root, tmp_path):
    first = run(model, davis_root, tmp_path)
    stamp = (first.files["predictions/still"] / "00001.png").stat().st_mtime_ns
    again = run(model, davis_root, tmp_path)
    assert again.files == first.files and again.metrics == first.metrics
    assert (again.files["predictions/still"] / "00001.png").stat().st_mtime_ns == stamp
    shutil.copy(davis_root / "JPEGImages/480p/moving/00002.jpg", davis_root / "JPEGImages/480p/still/00001.jpg")
    assert run(model, davis_root, tmp_path).files["predictions/still"] != first.files["predictions/still"]


def test_frames_that_lie_on_their_side_are_followed_upright(model, davis_root, tmp_path):
    upright = run(model, davis_root, tmp_path / "upright")
    exif = Image.Exif()
    exif[0x0112] = 6  # shown after a quarter turn clockwise
    for path in davis_root.glob("JPEGImages/480p/*/*.jpg"):
        with Image.open(path) as frame:
            frame.transpose(Image.Transpose.ROTATE_90).save(path, quality=95, exif=exif)
    turned = run(model, davis_root, tmp_path / "turned")
    assert turned.counts == upright.counts
    assert turned.metrics["J&F"].value == pytest.approx(upright.metrics["J&F"].value, abs=5)


def test_a_label_that_no_object_of_the_first_frame_has_is_background_and_reported(model, davis_root, tmp_path):
    path = davis_root / "Annotations/480p/still/00002.png"
    labels = read_indexed(path)
    labels[40:, 40:] = 7
    write_indexed(path, labels)
    result = run(model, davis_root, tmp_path)
    assert [Path(file.path).name for file in result.skipped] == ["00002.png"]
    assert "[7]" in result.skipped[0].reason


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda root: (root / "ImageSets/2017/val.txt").write_text("\n"), "val.txt: lists no sequence"),
        (lambda root: (root / "ImageSets/2017/val.txt").write_text("gone\n"), "gone: no images found"),
        (
            lambda root: (root / "ImageSets/2017/val.txt").unlink(),
            "DAVIS 2017 .*; the directory holds Annotations/, ImageSets/",
        ),
        (lambda root: (root / "Annotations/480p/still/00003.png").unlink(), "00003.png: missing mask"),
        (
            lambda root: (root / "Annotations/480p/still/00000.png").write_text("x"),
            "00000.png: cannot be read as a mask",
        ),
        (lambda root: (root / "JPEGImages/480p/still/00001.jpg").write_text("x"), "00001.jpg: .*1 of 8"),
        (lambda root: blank(root / "Annotations/480p/still/00000.png", 0), r"00000.png: has objects \[\]"),
        (
            lambda root: blank(root / "Annotations/480p/still/00000.png", 2),
            r"has objects \[2\], expected consecutive numbers from 1",
        ),
        (
            lambda root: write_indexed(root / "Annotations/480p/still/00002.png", np.zeros((8, 8))),
            "has 8 x 8 pixels, its frame",
        ),
        (lambda root: color(root / "Annotations/480p/still/00002.png"), "00002.png: image of mode RGB"),
    ],
)
def test_what_is_wrong_with_a_folder_is_reported(spoil, message, model, davis_root, tmp_path):
    spoil(davis_root)
    with pytest.raises(TubeletError, match=message):
        run(model, davis_root, tmp_path)


def blank(path: Path, number: int) -> None:
    labels = np.zeros((48, 64), np.uint8)
    labels[:8, :8] = number
    write_indexed(path, labels)


def color(path: Path) -> None:
    Image.new("RGB", (64, 48)).save(path)


def test_a_sequence_with_an_unreadable_frame_is_left_out_where_some_are_allowed(model, davis_root, tmp_path):
    (davis_root / "JPEGImages/480p/still/00001.jpg").write_text("x")
    result = run(model, davis_root, tmp_path, max_failed_fraction=0.2)
    assert result.counts["sequences"] == result.counts["sequences skipped for a frame"] == 1
    assert [Path(file.path).name for file in result.skipped] == ["00001.jpg"]


def test_frames_are_shrunk_to_the_short_side_and_never_enlarged():
    assert frame_size((480, 854), 480, 16) == (480, 848)
    assert frame_size((720, 1280), 480, 16) == (480, 848)
    assert frame_size((1280, 720), 480, 16) == (848, 480)
    assert frame_size((128, 128), 480, 8) == (128, 128)


def test_the_sample_set_as_youtube_vos_gives_objects_where_they_begin(sample_set, tmp_path, model):
    shutil.copytree(sample_set, tmp_path / "set")
    assert {"davis", "youtube_vos"} <= set(LAYOUTS)
    counts = write_layout(tmp_path / "set", "youtube_vos")
    root = tmp_path / "set" / "layouts" / "youtube_vos"
    found = youtube_vos.YouTubeVos.load(root)
    assert found is not None and len(found.sequences) == counts["sequences"]
    assert sum(len(s.first_frames or {}) for s in found.sequences) == counts["objects"]
    for sequence in found.sequences:
        references = sequence.load_references()
        assert {n: frame for frame, masks in references.items() for n in masks} == sequence.first_frames
    assert not davis.Davis2017.detect(root) and youtube_vos.YouTubeVos.detect(root / "valid")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda meta: meta.pop("videos"), "videos is missing"),
        (
            lambda meta: meta["videos"]["a"]["objects"]["1"]["frames"].append("99999"),
            "frame 99999, which has no image",
        ),
        (lambda meta: meta["videos"]["a"]["objects"]["1"]["frames"].clear(), "object 1 of a has no frame"),
        (lambda meta: meta["videos"]["a"]["objects"].update({"2": {"frames": ["00000"]}}), "has no object 2"),
        (lambda meta: meta["videos"]["a"]["objects"].update({"2": {"frames": ["00005"]}}), "00005.png: missing mask"),
    ],
)
def test_a_wrong_meta_json_is_named(change, message, model, tmp_path):
    root = tmp_path / "yt" / "valid"
    (root / "JPEGImages" / "a").mkdir(parents=True)
    (root / "Annotations" / "a").mkdir(parents=True)
    for name in ("00000", "00005"):
        Image.new("RGB", (64, 48)).save(root / "JPEGImages" / "a" / f"{name}.jpg")
    blank(root / "Annotations" / "a" / "00000.png", 1)
    meta = {"videos": {"a": {"objects": {"1": {"category": "x", "frames": ["00000", "00005"]}}}}}
    change(meta)
    (root / "meta.json").write_text(json.dumps(meta))
    with pytest.raises(TubeletError, match=message):
        run(model, root.parent, tmp_path)
