"""What people bring: every row of docs/inputs.md is executed as it is written there."""

import json
import re
import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path

import fsspec
import numpy as np
import pyarrow.parquet as pq
import pytest
import tifffile
import torch
from PIL import Image

import tubelet
from tests.helpers.commands import run_tubelet
from tests.helpers.dicom_files import write_dicom
from tests.helpers.lerobot import make_dataset
from tests.helpers.media import indexed_image, write_image, write_truncated, write_video
from tests.helpers.training import tiny_config
from tests.unit.test_load import random_release
from tubelet.checkpoint.native_clip import NativeClip
from tubelet.checkpoint.registry import RELEASED
from tubelet.checkpoint.weights import LoadSpec
from tubelet.config import vit_b
from tubelet.errors import TubeletError
from tubelet.pretrained.convert import convert_to

PAGE = Path(__file__).parents[2] / "docs" / "inputs.md"
ROWS = {
    int(number): code for number, code in re.findall(r"^\| (\d+) \|.*?\| `([^`]+)` \|", PAGE.read_text(), re.MULTILINE)
}
PREPARED, CHECKS = {}, {}  # functions by the number of their row


@dataclass
class FrameBatch:
    """The fields of torchcodec's class of this name."""

    data: torch.Tensor
    pts_seconds: torch.Tensor
    duration_seconds: torch.Tensor


def row(*numbers, prepare=None):
    """Registers the check of rows, and what is made before they are executed."""

    def register(check):
        for number in numbers:
            CHECKS[number], PREPARED[number] = check, prepare
        return check

    return register


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """The folder in which the rows are executed, and the names that the page explains."""
    folder = tmp_path_factory.mktemp("brought")
    torch.manual_seed(0)
    encoder = tubelet.Backbone(tiny_config("none").model)
    encoder.native_clip = NativeClip(image_size=64, frames=16)
    encoder.save_pretrained(folder / "encoder")
    write_video(folder / "video.mp4", frames=24, size=128, rotation=90)
    frames = np.stack([indexed_image(i) for i in range(16)])
    clip = torch.from_numpy(frames).permute(0, 3, 1, 2)
    mean, std = (torch.tensor(value)[:, None, None] for value in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    names = {
        "tubelet": tubelet,
        "torch": torch,
        "model": tubelet.load(folder / "encoder", device="cpu", dtype=torch.float32),
        "frames": frames,
        "clip": clip,
        "image": Image.fromarray(frames[0]),
        "pil_frames": [Image.fromarray(frame) for frame in frames],
        "standardized": (clip / 255 - mean) / std,
        "frame_batch": FrameBatch(clip, torch.arange(16) / 8 + 3, torch.full((16,), 1 / 8)),
    }
    names["expected"] = names["model"].encode(frames, layout="THWC").tokens
    return folder, names


def test_every_row_has_a_check():
    assert list(ROWS) == list(range(1, len(ROWS) + 1)) == sorted(CHECKS) and len(ROWS) >= 25


@pytest.mark.slow
@pytest.mark.parametrize("number", ROWS)
def test_a_row_does_what_it_says(number, place, monkeypatch):
    folder, names = place
    monkeypatch.chdir(folder)
    monkeypatch.setenv("TUBELET_CACHE", str(folder / "cache"))
    if PREPARED[number]:
        PREPARED[number]()
    if ROWS[number].startswith("tubelet "):
        CHECKS[number](run_tubelet(*shlex.split(ROWS[number])[1:]))
        return
    try:
        result = eval(ROWS[number], names)
    except TubeletError as error:
        result = error
    CHECKS[number](result, names)


@row(1)
def one_image(features, names):
    assert features.grid.t == 1 and len(features.tokens) == 1
    assert torch.equal(features.tokens, names["model"].encode(names["frames"][0]).tokens)


@row(2, 3, 4, 5, 6, 9, 10, 13)
def the_same_clip(features, names):
    assert features.grid.t == 8
    assert torch.allclose(features.tokens, names["expected"], atol=1e-5)


@row(7)
def images(features, names):
    assert len(features.tokens) == 16 and features.grid.t == 1
    last = names["model"].encode(names["frames"][-1]).tokens
    assert torch.allclose(features.tokens[-1], last[0], atol=1e-5)


@row(8)
def ambiguous(error, names):
    assert isinstance(error, TubeletError) and "layout=" in str(error)


@row(11)
def out_of_range(error, names):
    assert isinstance(error, TubeletError) and "normalized=True" in str(error) and "255" in str(error)


@row(12)
def not_finite(error, names):
    assert isinstance(error, TubeletError) and re.search("NaN|not finite", str(error))


@row(14)
def with_times(features, names):
    the_same_clip(features, names)
    assert features.times[0, :2].tolist() == [3.0625, 3.3125]


@row(15)
def native_size(features, names):
    assert features.grid[1:] == (8, 8)
    assert features.grid.t == 8


def put_in_memory():
    with fsspec.open("memory://video.mp4", "wb") as file:
        file.write(Path("video.mp4").read_bytes())


@row(16, prepare=put_in_memory)
def as_the_file(features, names):
    assert torch.equal(features.tokens, names["model"].encode("video.mp4").tokens)
    fsspec.filesystem("memory").rm("/video.mp4")


def damage():
    Path("damaged").mkdir()
    shutil.copy("video.mp4", "damaged/whole.mp4")
    write_truncated(Path("damaged/torn.mp4"), frames=24)


@row(17, prepare=damage)
def named_and_counted(done):
    assert done.returncode == 0 and "torn.mp4" in done.stdout + done.stderr
    assert all("whole.mp4" in path for path in table("t17")["path"].to_pylist())


def list_moments():
    Path("moments.csv").write_text("path,start_s,end_s\nvideo.mp4,0.5,1.5\nvideo.mp4,1.0,2.0\n")


@row(18, prepare=list_moments)
def inside_the_moments(done):
    assert done.returncode == 0, done.stderr
    found = table("t18")
    assert {0.5, 1.0} == set(found["span_start_s"].to_pylist())
    for start, end, low, high in zip(
        *(found[name].to_pylist() for name in ("start_s", "end_s", "span_start_s", "span_end_s")), strict=True
    ):
        assert low - 1e-6 <= start <= end <= high + 1e-6


VALUES = np.random.default_rng(0).permutation(8 * 64 * 64).reshape(8, 64, 64).astype(np.uint16) % 4096


def write_scans():
    Path("scans").mkdir(exist_ok=True)
    for i in range(2):
        tifffile.imwrite(f"scans/{i}.tif", VALUES, photometric="minisblack", metadata={"axes": "TYX"})


def write_slices():
    Path("dicom/series").mkdir(parents=True)
    for i, values in enumerate(VALUES):
        write_dicom(Path(f"dicom/series/{i}.dcm"), values, SeriesInstanceUID="1.2.3", InstanceNumber=i + 1)


def statistics(done, file):
    assert done.returncode == 0, done.stderr
    found = json.loads(Path(file).read_text())
    assert found["channels"] == 1
    return found


@row(19, prepare=write_scans)
def twelve_bits(done):
    statistics(done, "scans.json")


@row(20, prepare=write_slices)
def one_stack(done):
    statistics(done, "dicom.json")


def write_sequences():
    for name, count in (("seq_00", 16), ("seq_01", 24)):
        folder = Path("sequences", name)
        folder.mkdir(parents=True, exist_ok=True)
        for number in range(count):
            Image.fromarray(indexed_image(number)).save(folder / f"{number:06d}.png")


@row(21, prepare=write_sequences)
def folders_of_frames(done):
    assert done.returncode == 0, done.stderr
    assert {Path(path).name for path in table("t21")["path"].to_pylist()} == {"seq_00", "seq_01"}


@row(22, prepare=write_sequences)
def a_folder_of_frames(features, names):
    the_same_clip(features, names)


@row(23, prepare=lambda: make_dataset(Path("robot"), "v3.0"))
def episodes(done):
    assert done.returncode == 0, done.stderr
    found = table("t23")
    assert {(0.0, 1.0), (1.0, 2.0)} <= {
        (start, end)
        for start, end in zip(found["span_start_s"].to_pylist(), found["span_end_s"].to_pylist(), strict=True)
    }
    assert len(set(found["path"].to_pylist())) == 4  # two files of two cameras


def write_photos():
    Path("photos").mkdir()
    rows = ["file_name,label"]
    for i in range(24):
        write_image(Path(f"photos/{i}.png"), index=i)
        rows.append(f"{i}.png,{'light' if i % 2 else 'dark'}")
    Path("photos/metadata.csv").write_text("\n".join(rows) + "\n")


@row(24, prepare=write_photos)
def fitted(done):
    assert done.returncode == 0, done.stderr
    assert tubelet.load_head("photos.safetensors").spec.classes == ("dark", "light")


def write_release():
    file = Path("released.pt")
    if not file.exists():
        random_release(file, vit_b(), "ema_encoder")


def write_release_to_the_cache():
    write_release()
    Path("cache/released").mkdir(parents=True)
    Path("released.pt").rename(Path("cache/released", RELEASED["vjepa2.1-vitb16-384"]))


@row(25, prepare=write_release)
def every_tensor(model, names):
    assert model.model_id.startswith("released-teacher-") and model.config.width == 768
    names["weights_id"] = model.weights_id


@row(26, prepare=write_release_to_the_cache)
def the_released_model(model, names):
    assert model.model_id.startswith("vjepa2.1-vitb16-384-teacher-") and model.config.width == 768
    assert model.weights_id == names.get("weights_id", model.weights_id)


def write_vjepa2():
    pytest.importorskip("transformers")
    from tests.numerics.test_vjepa2_0 import build

    build("theirs")


def write_classifier():
    pytest.importorskip("transformers")
    from tests.numerics.test_imported_heads import build_classifier

    build_classifier("classifier")


@row(27, prepare=write_vjepa2)
def as_transformers(model, names):
    from transformers import VJEPA2Model

    theirs = VJEPA2Model.from_pretrained("theirs")
    pixels = torch.randn(1, 4, 3, 32, 32)
    expected = theirs(pixel_values_videos=pixels, skip_predictor=True).last_hidden_state
    found = model.encode(pixels, normalized=True, resize=None).tokens
    assert torch.allclose(found, expected, atol=2e-5)


@row(28, prepare=lambda: convert_to(Path("encoder"), Path("encoder.gguf"), "gguf", LoadSpec()))
def the_same_encoder(model, names):
    for key, value in names["model"].state_dict().items():
        assert torch.equal(model.state_dict()[key], value)


@row(29, prepare=write_classifier)
def a_head(head, names):
    assert head.spec.classes == ("falls", "stays", "rises")


def put_stack_in_memory():
    write_scans()
    with fsspec.open("memory://scan.tif", "wb") as file:
        file.write(Path("scans/0.tif").read_bytes())


@row(30, prepare=put_stack_in_memory)
def to_be_copied(error, names):
    assert isinstance(error, TubeletError) and "has 8 pages" in str(error) and "copy it to a local disk" in str(error)


@row(31, prepare=write_scans)
def too_deep(done):
    words = " ".join(done.stderr.split())
    assert done.returncode == 1 and "has 1 channel of uint16, shards have 8-bit RGB; train on the stacks" in words
    assert not Path("shards", "index.jsonl").exists()


@row(32)
def gray_to_be_repeated(error, names):
    assert isinstance(error, TubeletError) and "np.repeat(x[..., None], 3, axis=-1)" in str(error)


def table(folder):
    """The rows of a table of features."""
    return pq.read_table(folder)
