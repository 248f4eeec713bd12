"""DICOM files and series: values, order, rates and windows; and nothing about a person in any message."""

import builtins
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.uid import JPEGLosslessSV1

import tubelet
from tests.helpers.dicom_files import PATIENT, write_dicom
from tests.helpers.heads import tiny_encoder
from tubelet.data.images import read_image
from tubelet.data.sample_index import version_of
from tubelet.data.sources import list_media
from tubelet.data.stacks import is_stack, open_stack, read_stack_frames, read_stack_info
from tubelet.errors import DecodeError, MissingPackageError
from tubelet.tasks.common.cache import FeatureCache

# Each value of 12 bits once.
VALUES = np.random.default_rng(0).permutation(4096).reshape(4, 64, 16).astype(np.uint16)
PLANE = {"ImageOrientationPatient": [1, 0, 0, 0, 1, 0]}
SERIES = {"SeriesInstanceUID": "1.2.3"}


def frames(path: Path) -> np.ndarray:
    return read_stack_frames(path, np.arange(read_stack_info(path).frames))[..., 0]


def test_a_file_of_several_frames_keeps_every_value_of_12_bits(tmp_path: Path) -> None:
    file = tmp_path / "a.dcm"
    write_dicom(file, VALUES, FrameTime=40, CineRate=10, WindowCenter=2048, WindowWidth=4096)
    info = read_stack_info(file)
    assert (info.frames, info.height, info.width, info.channels, info.dtype) == (4, 64, 16, 1, "uint16")
    assert (info.bits, info.fps, info.window) == (12, 25, (0, 4095))
    assert np.array_equal(frames(file), VALUES)
    with tubelet.Video(file) as video:  # by the window of the file
        assert np.array_equal(video.frames().pixels[..., 0].numpy(), np.rint(VALUES * (255 / 4095)).astype(np.uint8))


@pytest.mark.parametrize(
    ("elements", "fps"),
    [
        ({"FrameTimeVector": [0, 50, 50, 50]}, 20),
        ({"RecommendedDisplayFrameRate": 15, "CineRate": 10}, 15),
        ({"CineRate": 10}, 10),
        ({}, None),
    ],
)
def test_the_rate_is_that_of_acquisition_else_of_display(tmp_path: Path, elements: dict, fps: float | None) -> None:
    write_dicom(tmp_path / "a.dcm", VALUES, **elements)
    assert read_stack_info(tmp_path / "a.dcm").fps == fps


def test_values_are_rescaled_exactly_and_bright_is_large(tmp_path: Path) -> None:
    file = tmp_path / "a.dcm"
    write_dicom(file, VALUES, RescaleSlope=2, RescaleIntercept=-1024)
    assert read_stack_info(file).dtype == "int32"
    assert np.array_equal(frames(file), 2 * VALUES.astype(int) - 1024)
    write_dicom(file, VALUES, RescaleSlope=0.5, RescaleIntercept=0)
    assert read_stack_info(file).dtype == "float32"
    assert np.array_equal(frames(file), VALUES / 2)
    write_dicom(file, VALUES, PhotometricInterpretation="MONOCHROME1", WindowCenter=1000, WindowWidth=101)
    assert np.array_equal(frames(file), 4095 - VALUES)
    assert read_stack_info(file).window == (4095 - 1049.5, 4095 - 949.5)


def write_series(folder: Path, order: list[int], elements: list[dict[str, Any]], **common: Any) -> None:
    folder.mkdir(exist_ok=True)
    for name, number in zip("abcdef", order, strict=False):
        write_dicom(folder / f"{name}.dcm", VALUES[number], **{**SERIES, **common, **elements[number]})


def test_slices_are_ordered_along_the_normal_of_their_plane(tmp_path: Path) -> None:
    places = [{"ImagePositionPatient": [0, 0, 2.5 * k], "InstanceNumber": 9 - k} for k in range(4)]
    write_series(tmp_path / "ct", [2, 0, 3, 1], places, **PLANE)
    for path in (tmp_path / "ct", tmp_path / "ct" / "c.dcm"):
        assert is_stack(path) and read_stack_info(path).fps is None
        assert np.array_equal(frames(path), VALUES)


@pytest.mark.parametrize(
    ("times", "fps"),
    [
        ([{"TriggerTime": 40.0 * k} for k in range(4)], 25),
        ([{"AcquisitionTime": time} for time in ("095959.0", "095959.5", "100000.0", "100000.5")], 2),
        ([{"InstanceNumber": k} for k in range(4)], None),
    ],
)
def test_slices_at_one_position_are_frames_in_time(tmp_path: Path, times: list[dict], fps: float | None) -> None:
    write_series(tmp_path / "cine", [3, 1, 0, 2], times, **PLANE, ImagePositionPatient=[0, 0, 5])
    assert read_stack_info(tmp_path / "cine").fps == (None if fps is None else pytest.approx(fps))
    assert np.array_equal(frames(tmp_path / "cine"), VALUES)


def test_a_series_of_several_times_at_several_positions_is_refused(tmp_path: Path) -> None:
    places = [{"ImagePositionPatient": [0, 0, k % 2], "TriggerTime": k // 2} for k in range(4)]
    write_series(tmp_path / "4d", [0, 1, 2, 3], places, **PLANE)
    with pytest.raises(DecodeError, match="its series has 4 slices at 2 positions, expected one position at all times"):
        read_stack_info(tmp_path / "4d")


def test_a_source_has_a_series_once_and_radiographs_as_images(tmp_path: Path) -> None:
    places = [{"ImagePositionPatient": [0, 0, k]} for k in range(4)]
    write_series(tmp_path / "ct", [0, 1, 2, 3], places, **PLANE)
    write_dicom(tmp_path / "cine.dcm", VALUES)
    for name in "uv":
        write_dicom(tmp_path / f"{name}.dcm", VALUES[0], **SERIES, Modality="DX")
    (tmp_path / "broken.dcm").write_bytes(b"no DICOM")
    found = list_media([str(tmp_path), str(tmp_path / "ct" / "*.dcm"), str(tmp_path / "ct" / "d.dcm")])
    expected = [tmp_path / "broken.dcm", tmp_path / "cine.dcm", tmp_path / "ct" / "a.dcm"]
    assert list(found.videos) == [str(path) for path in expected] and not found.ignored
    assert list(found.images) == [str(tmp_path / "u.dcm"), str(tmp_path / "v.dcm")]
    assert np.array_equal(read_image(found.images[1], full_depth=True)[..., 0].numpy(), VALUES[0])
    with pytest.raises(DecodeError, match=r"has 2 DICOM series or images, expected one; name a file of one"):
        write_dicom(tmp_path / "ct" / "other.dcm", VALUES)
        read_stack_info(tmp_path / "ct")


def test_any_slice_that_changes_is_another_version_and_other_features(tmp_path: Path) -> None:
    places = [{"ImagePositionPatient": [0, 0, k]} for k in range(4)]
    write_series(tmp_path / "ct", [0, 1, 2, 3], places, **PLANE)
    first, last = tmp_path / "ct" / "a.dcm", tmp_path / "ct" / "d.dcm"
    write_dicom(tmp_path / "ct" / "other.dcm", VALUES[0], **PLANE)
    size, _ = before = version_of(str(first))
    assert size == sum((tmp_path / "ct" / f"{name}.dcm").stat().st_size for name in "abcd")
    cache = FeatureCache(tmp_path / "cache", tiny_encoder())
    features = cache.path_for({}, [first])
    status = last.stat()
    write_dicom(last, VALUES[0], **SERIES, **PLANE, **places[3])
    os.utime(last, ns=(status.st_atime_ns, status.st_mtime_ns - 10**9))  # as of a copy that keeps times
    assert last.stat().st_size == status.st_size
    assert version_of(str(first)) != before and cache.path_for({}, [first]) != features
    (tmp_path / "ct" / "b.dcm").unlink()
    assert version_of(str(first))[0] < size
    assert version_of(str(tmp_path / "ct" / "other.dcm")) == version_of_file(tmp_path / "ct" / "other.dcm")
    assert version_of(str(tmp_path / "gone" / "a.dcm")) is None


def version_of_file(path: Path) -> tuple[int, float]:
    return path.stat().st_size, path.stat().st_mtime


@pytest.mark.filterwarnings("ignore:Invalid value for VR CS")  # of the writer
def test_no_message_names_a_patient(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "a.dcm"
    write_dicom(file, VALUES)
    whole = file.read_bytes()
    faults = [whole[:-1000], whole[:100], whole[: whole.index(PATIENT.encode()) + 3]]
    write_dicom(file, VALUES, PhotometricInterpretation=PATIENT)
    faults.append(file.read_bytes())
    caplog.clear()
    for content in faults:
        file.write_bytes(content)
        with pytest.raises(DecodeError) as raised:
            read_stack_frames(file, [3])
        assert str(raised.value).startswith(f"{file}: ") and PATIENT[:3] not in str(raised.value) + caplog.text


def test_a_compression_that_needs_a_package_names_it(tmp_path: Path) -> None:
    write_dicom(tmp_path / "a.dcm", VALUES)
    data = (tmp_path / "a.dcm").read_bytes()
    before, after = b"1.2.840.10008.1.2.1\0", f"{JPEGLosslessSV1}".encode()
    at = data.index(before)
    data = data[: at - 2] + len(after).to_bytes(2, "little") + after + data[at + len(before) :]
    group = data.index(b"\x02\x00\x00\x00UL") + 8  # length of the file's meta information
    length = int.from_bytes(data[group : group + 4], "little") + len(after) - len(before)
    (tmp_path / "a.dcm").write_bytes(data[:group] + length.to_bytes(4, "little") + data[group + 4 :])
    with pytest.raises(DecodeError, match="which needs a package: pip install pylibjpeg pylibjpeg-libjpeg"):
        read_stack_info(tmp_path / "a.dcm")


def test_without_pydicom_the_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_dicom(tmp_path / "a.dcm", VALUES)
    load = builtins.__import__

    def without(name: str, *rest: Any, **options: Any) -> Any:
        if name.split(".")[0] == "pydicom":
            raise ImportError(name=name)
        return load(name, *rest, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingPackageError, match=r"DICOM files need pydicom: pip install 'tubelet\[stacks\]'"):
        list_media([str(tmp_path)])


def test_missing_elements_and_impossible_rescaling_are_named(tmp_path: Path) -> None:
    file = tmp_path / "a.dcm"
    for elements, words in (
        ({"SamplesPerPixel": None, "BitsStored": None}, "lacks the elements SamplesPerPixel, BitsStored"),
        ({"RescaleSlope": float("nan")}, "has a slope or intercept that is no number"),
        ({"RescaleSlope": 0}, "or a slope of 0"),
    ):
        write_dicom(file, VALUES, **elements)
        with pytest.raises(DecodeError, match=words):
            open_stack(file)
        file.unlink()
