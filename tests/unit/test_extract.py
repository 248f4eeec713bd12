import dataclasses
import multiprocessing
import os
import signal
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.helpers.media import write_image, write_text
from tubelet.checkpoint.native_clip import NativeClip
from tubelet.config import EmbedConfig, ModelConfig, PredictorConfig, vit_pico
from tubelet.data.clips import resize_center_crop
from tubelet.data.images import read_image
from tubelet.data.sources import MediaList
from tubelet.embed.clips import CollectionClips, clip_loader
from tubelet.errors import BadFile, DecodeError, TubeletError
from tubelet.pretrained.backbone import Backbone
from tubelet.tasks.common import extract as extraction
from tubelet.tasks.common.cache import FeatureCache, model_hash
from tubelet.tasks.common.extract import Source, _read_ahead, _Views, extract, subsample_evenly
from tubelet.tasks.common.result import Example, Metric, Result, write_result
from tubelet.view.results import write_result_page

SIZES = ModelConfig(
    width=32, depth=2, heads=2, levels=(0, 1), patch_size=8, predictor=PredictorConfig(width=24, depth=1, heads=2)
)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Backbone(SIZES).eval().requires_grad_(False)


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    return [Source(files=(write_image(folder / f"{i}.png", size=40 + 8 * i),)) for i in range(3)]


def whole(source: Source, size: int = 32) -> torch.Tensor:
    return resize_center_crop(read_image(source.files[0]).unsqueeze(0), size).unsqueeze(0)


def counted(model: Backbone, pixels: torch.Tensor, seen: list[int]) -> dict[str, torch.Tensor]:
    seen.append(len(pixels))
    return {"tokens": model.forward_features(pixels)}


def test_features_are_those_of_the_encoder_and_are_computed_once(model, images, tmp_path):
    cache, seen = FeatureCache(tmp_path / "cache", model), []
    for _ in range(2):
        features = extract(model, cache, images, {"size": 32}, whole, partial(counted, seen=seen), workers=1)
    assert sum(seen) == 3
    alone = model.encode(images[1].files[0], resize=32).tokens
    assert torch.allclose(features[1]["tokens"].float(), alone, atol=2e-3)


def test_on_cuda_a_batch_is_written_while_the_next_is_encoded(model, images, tmp_path, monkeypatch):
    monkeypatch.setattr(extraction, "_TOKENS_PER_BATCH", 16)  # a source at a time
    events, write = [], extraction.write_features

    class FakeEvent:
        def record(self):
            events.append("copy started")

        def synchronize(self):
            events.append("wait")

    class Batches(extraction._EncodedBatches):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            self.on_cuda = True

    def encode(model, pixels):
        events.append("encode")
        return {"tokens": model.forward_features(pixels)}

    def record_write(path, features):
        events.append("write")
        write(path, features)

    expected = extract(model, FeatureCache(tmp_path / "cpu", model), images, {"size": 32}, whole)
    monkeypatch.setattr("torch.cuda.Event", FakeEvent)
    monkeypatch.setattr("torch.Tensor.pin_memory", lambda pixels: pixels)
    monkeypatch.setattr(extraction, "_EncodedBatches", Batches)
    monkeypatch.setattr(extraction, "write_features", record_write)
    done = []
    features = extract(
        model, FeatureCache(tmp_path / "cuda", model), images, {"size": 32}, whole, encode,
        progress=lambda stage, count, total: done.append(count),
    )  # fmt: skip
    again = ["encode", "wait", "write", "copy started"]
    assert events == ["encode", "copy started", *again, *again, "wait", "write"]
    assert done == [0, 0, 1, 3]
    for ours, theirs in zip(features, expected, strict=True):
        assert torch.equal(ours["tokens"], theirs["tokens"])


def test_another_recipe_another_file_or_another_model_is_computed_anew(model, images, tmp_path):
    cache, seen = FeatureCache(tmp_path / "cache", model), []
    encode = partial(counted, seen=seen)
    extract(model, cache, images, {"size": 32}, whole, encode)
    extract(model, cache, images, {"size": 40}, partial(whole, size=40), encode)
    assert sum(seen) == 6
    write_image(images[0].files[0], size=72)
    extract(model, cache, images, {"size": 32}, whole, encode)
    assert sum(seen) == 7
    other = Backbone(SIZES).eval()
    assert model_hash(other) != model_hash(model)
    extract(other, FeatureCache(tmp_path / "cache", other), images, {"size": 32}, whole, encode)
    assert sum(seen) == 10


def test_a_file_that_was_replaced_by_another_of_its_size_and_time_is_read_again(model, tmp_path):
    cache, path = FeatureCache(tmp_path / "cache", model), tmp_path / "a\udcff.bin"
    path.write_bytes(b"one")
    os.utime(path, ns=(0, 10**18))
    first = cache.path_for({}, [path])
    assert cache.path_for({}, [path]) == first
    (tmp_path / "new").write_bytes(b"two")
    os.utime(tmp_path / "new", ns=(0, 10**18))
    (tmp_path / "new").replace(path)
    assert cache.path_for({}, [path]) != first


@pytest.mark.parametrize("change", [{"heads": 4}, {"rope_grid": 8}, {"rope": "2.0"}])
def test_the_same_weights_under_other_settings_are_another_model(model, change):
    other = Backbone(dataclasses.replace(SIZES, **change)).eval()
    other.load_state_dict(model.state_dict())
    pixels = torch.randn(1, 3, 1, 32, 32)
    assert not torch.allclose(model.forward_features(pixels), other.forward_features(pixels))
    assert model_hash(other) != model_hash(model)


def test_another_version_of_the_package_computes_features_anew(model, images, tmp_path, monkeypatch):
    seen = []
    for number in ("1.0", "1.1", "1.0"):
        monkeypatch.setattr("tubelet.tasks.common.cache.version", lambda name, number=number: number)
        extract(model, FeatureCache(tmp_path / "cache", model), images, {}, whole, partial(counted, seen=seen))
    assert sum(seen) == 6


def test_a_damaged_note_of_what_files_hold_is_named(model, images, tmp_path):
    extract(model, FeatureCache(tmp_path / "cache", model), images, {}, whole)
    notes = tmp_path / "cache" / "contents.sqlite"
    content = notes.read_bytes()
    notes.write_bytes(content[:4096] + b"\xff" * (len(content) - 4096))
    with pytest.raises(TubeletError, match=r"contents\.sqlite.*delete it"):
        extract(model, FeatureCache(tmp_path / "cache", model), images, {}, whole)


def test_a_file_that_was_replaced_with_its_size_and_time_kept_is_another(tmp_path, model):
    cache, path = FeatureCache(tmp_path / "cache", model), tmp_path / "a"
    path.write_bytes(b"one")
    before, first = path.stat(), cache.path_for({}, [path])
    assert cache.path_for({}, [path]) == first
    path.write_bytes(b"two")  # in place: the same inode, too
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_mtime_ns == before.st_mtime_ns and cache.path_for({}, [path]) != first


def test_the_same_file_under_another_name_is_not_computed_again(model, images, tmp_path):
    cache, seen = FeatureCache(tmp_path / "cache", model), []
    extract(model, cache, images, {}, whole, partial(counted, seen=seen))
    moved = [
        dataclasses.replace(s, files=(s.files[0].rename(s.files[0].with_stem(f"x{i}")),)) for i, s in enumerate(images)
    ]
    extract(model, cache, moved, {}, whole, partial(counted, seen=seen))
    assert sum(seen) == 3


def test_an_unreadable_file_is_named_and_ends_the_evaluation_unless_some_are_allowed(model, images, tmp_path):
    cache = FeatureCache(tmp_path / "cache", model)
    bad = Source(files=(write_text(tmp_path / "bad.png"),))
    with pytest.raises(TubeletError, match=r"bad\.png.*1 of 4"):
        extract(model, cache, [bad, *images], {}, whole)
    features = extract(model, cache, [bad, *images], {}, whole, max_failed_fraction=0.25)
    assert features.indices == [1, 2, 3] and [Path(b.path).name for b in features.bad_files] == ["bad.png"]


def test_an_evaluation_of_nothing_but_unreadable_files_ends_whatever_share_is_allowed(model, tmp_path):
    bad = Source(files=(write_text(tmp_path / "bad.png"),))
    with pytest.raises(TubeletError, match=r"bad\.png.*none of 1"):
        extract(model, FeatureCache(tmp_path / "cache", model), [bad], {}, whole, max_failed_fraction=1.0)


def killed_by_the_last(source: Source) -> torch.Tensor:
    if source.files[0].name == "2.png":
        os.kill(os.getpid(), signal.SIGKILL)
    return whole(source)


def test_a_file_that_crashes_its_decoder_is_named(model, images, tmp_path):
    cache = FeatureCache(tmp_path / "cache", model)
    with pytest.raises(
        TubeletError, match=r"unexpectedly \(ended by SIGKILL\) while reading \S+2\.png: .* the same command continues"
    ):
        extract(model, cache, images, {"size": 32}, killed_by_the_last, workers=1)


def test_views_that_wait_are_bounded_by_the_size_of_the_first_that_can_be_read():
    made = multiprocessing.get_context("fork").Value("i", 0)

    def cut(source: Source) -> torch.Tensor:
        if source.files[0].name == "0.png":
            raise DecodeError("0.png", "cannot be read")
        with made.get_lock():
            made.value += 1
        return torch.zeros(1, 3, 4, 190, 190, dtype=torch.uint8)  # 433 kB

    views_of = _Views([Source(files=(Path(f"{i}.png"),)) for i in range(10)], cut, 3)
    views = _read_ahead(views_of, 3, prefetch_mb=1)
    assert isinstance(next(views), BadFile)
    assert next(views).shape == (1, 3, 4, 190, 190) and made.value == 1  # its size was not known before
    with pytest.warns(UserWarning, match=r"the views of a file are 0.4 MB, .* has room for 2 of them: 2 of 3 workers"):
        next(views)
    time.sleep(0.5)
    assert 2 < made.value <= 2 + 2
    assert sum(1 for _ in views) == 7 and made.value == 9


def test_batches_of_clips_that_wait_are_bounded():
    media = MediaList(["a.mp4", "b.mp4", "c.mp4"], [])
    config = EmbedConfig(batch_size=4, workers=3, prefetch_mb=1)
    clip = NativeClip(128, 4)  # 786 kB in a batch
    with pytest.warns(UserWarning, match="the clips of a batch are 0.8 MB, .* 1 of 3 workers start; .* 3 has room"):
        loader = clip_loader(CollectionClips(media, clip, config, vit_pico(), {}))
    assert (loader.loader.num_workers, loader.loader.prefetch_factor) == (1, 1)
    loader = clip_loader(CollectionClips(media, clip, dataclasses.replace(config, prefetch_mb=5), vit_pico(), {}))
    assert (loader.loader.num_workers, loader.loader.prefetch_factor) == (3, 2)


def test_a_quick_look_is_spread_over_a_list():
    assert subsample_evenly(range(10), 3) == [0, 3, 6]
    assert subsample_evenly([1, 2], 5) == [1, 2]


def test_a_result_is_written_as_json_and_as_a_page_that_escapes_names(tmp_path):
    image = np.zeros((8, 600, 3), np.uint8)
    result = Result(
        task="depth",
        benchmark="NYUv2",
        data="<b>here</b>",
        model_id="m",
        protocol="p",
        metrics={"RMSE": Metric(value=0.5, unit="m", higher_is_better=False)},
        counts={"images": 3},
        skipped=[BadFile("a.png", "is damaged")],
        examples=[Example(name="<i>x</i>", score=0.7, images={"input": image})],
    )
    write_result(result, tmp_path / "result.json")
    write_result_page(result, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "<i>x</i>" not in page and "&lt;b&gt;here" in page
    assert "0.500 m" in page and "is damaged" in page
