"""Stacks of frames: every format is read to the last bit, by its own axes; what cannot be read is named."""

import os
import signal
import struct
from pathlib import Path

import av
import numpy as np
import pytest
import tifffile
import zarr
from PIL import Image

import tubelet
from tests.helpers.heads import tiny_encoder
from tubelet.data.images import read_image
from tubelet.data.sample_index import version_of
from tubelet.data.sources import list_media
from tubelet.data.stacks import is_image_file, is_stack, read_stack_frames, read_stack_info
from tubelet.errors import DecodeError, MissingPackageError
from tubelet.tasks.common.cache import FeatureCache

# Every value of 12 bits is once among those of the first channel.
VALUES = np.random.default_rng(0).permutation(2 * 4096).reshape(4, 2, 64, 16).astype(np.uint16) % 4096  # T, C, H, W
GRAY, CHANNELS_LAST = VALUES[:, 0], VALUES.transpose(0, 2, 3, 1)


def check(path: Path, expected: np.ndarray) -> None:
    info = read_stack_info(path)
    assert is_stack(path)
    assert (info.frames, info.height, info.width, info.channels) == expected.shape
    assert info.dtype == expected.dtype.name
    read = read_stack_frames(path, [2, 0, 0, 3])
    assert read.dtype == expected.dtype and np.array_equal(read, expected[[2, 0, 0, 3]])


@pytest.mark.parametrize(
    ("options", "pages"),
    [
        ({"metadata": None}, GRAY),
        ({"byteorder": ">", "bigtiff": True}, GRAY),
        ({"compression": "zlib"}, GRAY),
        ({"metadata": {"axes": "ZYX"}}, GRAY),
        ({"imagej": True, "metadata": {"axes": "TCYX"}}, VALUES),
        ({"ome": True, "metadata": {"axes": "TCYX"}}, VALUES),
        ({"ome": True, "compression": "zlib", "metadata": {"axes": "CTYX"}}, VALUES.swapaxes(0, 1)),
    ],
)
def test_a_tiff_is_read_by_its_axes(tmp_path: Path, options: dict, pages: np.ndarray) -> None:
    tifffile.imwrite(tmp_path / "stack.tif", pages, photometric="minisblack", **options)
    check(tmp_path / "stack.tif", CHANNELS_LAST if pages.ndim == 4 else GRAY[..., None])


def test_a_tiff_states_its_rate_and_its_bits(tmp_path: Path) -> None:
    file = tmp_path / "a.tif"
    about = {"axes": "TYX", "TimeIncrement": 40, "TimeIncrementUnit": "ms", "SignificantBits": 12}
    tifffile.imwrite(file, GRAY, ome=True, metadata=about)
    assert (read_stack_info(file).bits, read_stack_info(file).fps) == (12, pytest.approx(25))
    tifffile.imwrite(file, GRAY, imagej=True, metadata={"axes": "TYX", "finterval": 0.1})
    assert (read_stack_info(file).bits, read_stack_info(file).fps) == (16, pytest.approx(10))
    tifffile.imwrite(file, GRAY, photometric="minisblack")
    assert read_stack_info(file).fps is None


def test_a_tiff_in_which_zero_is_white_is_inverted(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", GRAY, photometric="miniswhite")
    check(tmp_path / "a.tif", 65535 - GRAY[..., None])


def test_axes_that_cannot_be_decided_are_an_error_with_what_was_found(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", VALUES, photometric="minisblack", metadata={"axes": "TZYX"})
    with pytest.raises(DecodeError, match=r"axes TZYX of sizes 4 x 2 x 64 x 16, expected one axis of frames"):
        read_stack_info(tmp_path / "a.tif")
    np.save(tmp_path / "a.npy", GRAY[0])
    with pytest.raises(DecodeError, match=r"has 2 axes \(64 x 16\) without names, expected 3 .* or 4"):
        read_stack_info(tmp_path / "a.npy")
    np.save(tmp_path / "b.npy", np.zeros((6, 6, 8, 80), np.uint8))
    with pytest.raises(DecodeError, match=r"has 80 channels, above the limit of 64; its shape is 6 x 6 x 8 x 80"):
        read_stack_info(tmp_path / "b.npy")


@pytest.mark.parametrize("shape", [(8, 3, 32, 32), (2, 8, 32, 32), (32, 32, 3)])
def test_arrays_without_names_of_axes_have_their_channels_last(tmp_path: Path, shape: tuple[int, ...]) -> None:
    np.save(tmp_path / "a.npy", np.zeros(shape, np.uint16))
    zarr.create_array(tmp_path / "a.zarr", data=np.zeros(shape, np.uint16))
    for name in ("a.npy", "a.zarr"):
        with pytest.raises(DecodeError, match=f"has the shape {' x '.join(map(str, shape))}, as (of|an)"):
            read_stack_info(tmp_path / name)


def test_pages_of_several_sizes_are_an_error(tmp_path: Path) -> None:
    for size in (32, 16):
        tifffile.imwrite(tmp_path / "a.tif", np.zeros((size, size), np.uint16), append=True)
    with pytest.raises(DecodeError, match=r"has 2 series of pages of their own \(32 x 32, 16 x 16\), expected one"):
        read_stack_info(tmp_path / "a.tif")


def test_a_tiff_of_one_page_is_an_image(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", GRAY[0])
    assert not is_stack(tmp_path / "a.tif")
    assert np.array_equal(read_image(tmp_path / "a.tif", full_depth=True).numpy(), GRAY[0][..., None])


def test_arrays_of_numpy_are_read_in_either_order(tmp_path: Path) -> None:
    for order in "CF":
        np.save(tmp_path / "a.npy", np.asarray(CHANNELS_LAST, order=order))
        check(tmp_path / "a.npy", CHANNELS_LAST)
    np.save(tmp_path / "a.npy", GRAY.astype(">u2"))
    check(tmp_path / "a.npy", GRAY[..., None])
    np.savez_compressed(tmp_path / "a.npz", GRAY)
    check(tmp_path / "a.npz", GRAY[..., None])


def test_arrays_next_to_other_media_are_counted_with_the_pattern_that_reads_them(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", GRAY, photometric="minisblack")
    np.save(tmp_path / "b.npy", GRAY)
    media = list_media([str(tmp_path)])
    assert len(media.videos) == 1 and media.has_stacks
    (note,) = [note for note in media.notes if "NumPy" in note]
    pattern = note.split("'")[1]
    assert note == f"{tmp_path}: 1 NumPy file not read, since the folder has other media; '{pattern}' reads them"
    assert [Path(path).name for path in list_media([pattern]).videos] == ["b.npy"]


def test_damaged_arrays_are_named_with_the_reason(tmp_path: Path) -> None:
    file = tmp_path / "a.npy"
    np.save(file, GRAY)
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    with pytest.raises(DecodeError, match=rf"a.npy: truncated: has {len(whole) - 1} bytes, its header says"):
        read_stack_frames(file, [0])
    file.write_bytes(whole[:20])
    with pytest.raises(DecodeError, match=r"a\.npy: cannot be read as an array"):
        read_stack_info(file)
    np.save(file, np.array([{}]), allow_pickle=True)
    with pytest.raises(DecodeError, match="contains pickled objects"):
        read_stack_info(file)
    np.savez(tmp_path / "two.npz", a=GRAY, b=GRAY)
    with pytest.raises(DecodeError, match=r"has 2 arrays \(a, b\), expected one"):
        read_stack_info(tmp_path / "two.npz")


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_a_truncated_tiff_is_named(tmp_path: Path, compression: str | None) -> None:
    file = tmp_path / "a.tif"
    tifffile.imwrite(file, GRAY, photometric="minisblack", compression=compression, metadata=None)
    pages = tifffile.TiffFile(file).pages
    file.write_bytes(file.read_bytes()[: pages[1].dataoffsets[0] + 10])
    assert is_stack(file)
    with pytest.raises(DecodeError, match=r"a\.tif: (truncated|corrupt or truncated)"):
        read_stack_frames(file, [3])


@pytest.mark.parametrize("version", [2, 3])
def test_zarr_arrays_are_read_by_chunks(tmp_path: Path, version: int) -> None:
    array = zarr.create_array(tmp_path / "a.zarr", data=CHANNELS_LAST, chunks=(3, 64, 16, 2), zarr_format=version)
    assert array.shape == CHANNELS_LAST.shape
    check(tmp_path / "a.zarr", CHANNELS_LAST)


def test_zarr_names_its_axes(tmp_path: Path) -> None:
    zarr.create_array(tmp_path / "a.zarr", data=VALUES, dimension_names=["time", "channel", "y", "x"])
    check(tmp_path / "a.zarr", CHANNELS_LAST)
    group = zarr.create_group(tmp_path / "ome.zarr")
    group.create_array("0", shape=(4, 2, 1, 64, 16), dtype=VALUES.dtype)[:] = VALUES[:, :, None]
    axes = [{"name": name, "unit": "millisecond"} if name == "t" else {"name": name} for name in "tczyx"]
    levels = [{"path": "0", "coordinateTransformations": [{"type": "scale", "scale": [50, 1, 1, 1, 1]}]}]
    group.attrs["ome"] = {"version": "0.5", "multiscales": [{"axes": axes, "datasets": levels}]}
    check(tmp_path / "ome.zarr", CHANNELS_LAST)
    assert read_stack_info(tmp_path / "ome.zarr").fps == pytest.approx(20)


def test_zarr_arrays_are_read_in_forked_workers_too(tmp_path: Path) -> None:
    zarr.create_array(tmp_path / "a.zarr", data=GRAY)
    read_stack_info(tmp_path / "a.zarr")  # starts the threads of zarr, which a fork does not copy
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        os._exit(0 if np.array_equal(read_stack_frames(tmp_path / "a.zarr", [1])[0, ..., 0], GRAY[1]) else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_what_zarr_cannot_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty.zarr").mkdir()
    with pytest.raises(DecodeError, match=r"empty\.zarr: corrupt or truncated Zarr file"):
        read_stack_info(tmp_path / "empty.zarr")
    group = zarr.create_group(tmp_path / "two.zarr")
    for name in "ab":
        group.create_array(name, shape=GRAY.shape, dtype=GRAY.dtype)
    with pytest.raises(DecodeError, match=r"is a group of 2 arrays \(a, b\), expected one"):
        read_stack_info(tmp_path / "two.zarr")
    with pytest.raises(DecodeError, match=r"none\.zarr: does not exist"):
        read_stack_info(tmp_path / "none.zarr")


@pytest.mark.parametrize(("package", "name"), [("tifffile", "a.tif"), ("zarr", "a.zarr")])
def test_a_missing_package_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str, name: str
) -> None:
    (tmp_path / name).touch()
    monkeypatch.setitem(__import__("sys").modules, package, None)
    with pytest.raises(MissingPackageError, match=rf"files need {package}: pip install 'tubelet\[stacks\]'"):
        read_stack_info(tmp_path / name)


def test_a_stack_is_a_video_at_its_own_rate_else_at_that_of_the_caller(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", GRAY)
    with tubelet.Video(tmp_path / "a.npy", full_depth=True, stack_fps=8) as video:
        assert (video.info.duration_s, video.info.fps, video.info.channels, video.info.bits) == (0.5, 8, 1, 16)
        (clip,) = video.clips([np.array([0, 1, 1, 3]) / 8])
    assert np.array_equal(clip.pixels.numpy()[..., 0], GRAY[[0, 1, 1, 3]])
    assert clip.times.tolist() == [0, 0.125, 0.125, 0.375]
    tifffile.imwrite(tmp_path / "a.tif", GRAY, imagej=True, metadata={"axes": "TYX", "finterval": 0.1})
    with tubelet.Video(tmp_path / "a.tif", full_depth=True, stack_fps=8) as video:
        assert video.info.fps == pytest.approx(10)
        assert np.array_equal(np.stack([frame for frame, _ in video.iter_frames()])[..., 0], GRAY)


def test_deep_values_become_8_bits_by_a_window_alone(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", GRAY)
    with pytest.raises(DecodeError, match="values of type uint16, expected 8 bits; pass a window"):
        tubelet.Video(tmp_path / "a.npy")
    with tubelet.Video(tmp_path / "a.npy", window=(1000, 3000)) as video:
        pixels = video.frames().pixels.numpy()
    expected = np.rint((np.clip(GRAY.astype(float), 1000, 3000) - 1000) * 255 / 2000)
    assert np.array_equal(pixels, np.repeat(expected[..., None], 3, -1).astype(np.uint8))
    np.save(tmp_path / "b.npy", (GRAY >> 4).astype(np.uint8))
    with tubelet.Video(tmp_path / "b.npy") as video:
        assert np.array_equal(video.frames().pixels[..., 1].numpy(), GRAY >> 4)


def test_a_stack_of_imagej_behind_a_single_page_is_found(tmp_path: Path) -> None:
    file = tmp_path / "a.tif"
    tifffile.imwrite(file, GRAY, imagej=True, metadata={"axes": "TYX"})
    page = tifffile.TiffFile(file).pages[0]
    data = bytearray(file.read_bytes())
    at = page.offset + 2 + 12 * len(page.tags)
    data[at : at + 4] = struct.pack(f"{tifffile.TiffFile(file).byteorder}I", 0)  # no next page, as of more than 4 GB
    file.write_bytes(data)
    check(file, GRAY[..., None])


def test_sources_have_stacks_among_videos_and_count_the_rest(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", GRAY, photometric="minisblack")
    tifffile.imwrite(tmp_path / "b.tif", GRAY[0])
    zarr.create_array(tmp_path / "c.zarr", data=GRAY)
    np.save(tmp_path / "labels.npy", GRAY)
    found = list_media([str(tmp_path)])
    assert list(found.videos) == [str(tmp_path / name) for name in ("a.tif", "c.zarr")]
    assert list(found.images) == [str(tmp_path / "b.tif")]
    assert found.ignored == {".npy": 1}
    assert any("2 stacks of frames; those that state no rate" in note for note in found.notes)
    for source in ("c.zarr", "*.zarr", "**/*.zarr", "**"):
        assert str(tmp_path / "c.zarr") in list_media([str(tmp_path / source)]).videos
    assert not any("zarr/" in path for path in found.videos) and not list_media([str(tmp_path / "*.zarr")]).ignored


def test_arrays_are_stacks_where_they_are_named_or_by_themselves(tmp_path: Path) -> None:
    for name, values in {"a.npy": GRAY, "features.npy": GRAY[0], "b.npz": GRAY}.items():
        np.save(tmp_path / name, values) if name.endswith("npy") else np.savez(tmp_path / name, values)
    (tmp_path / "damaged.npy").write_bytes(b"x")
    for source in (tmp_path, tmp_path / "*.np*"):
        found = list_media([str(source)])
        assert [Path(path).name for path in found.videos] == ["a.npy", "b.npz", "damaged.npy"]
        assert found.ignored == {".npy": 1}
    (tmp_path / "list.csv").write_text("path\na.npy\ngone.npy\n")
    assert [Path(path).name for path in list_media([str(tmp_path / "list.csv")]).videos] == ["a.npy", "gone.npy"]


def test_a_stack_behind_a_url_is_refused() -> None:
    with pytest.raises(DecodeError, match=r"a\.npy: stacks are read from a local disk; copy it"):
        tubelet.Video("s3://bucket/a.npy")


def test_images_keep_their_depth_and_channels(tmp_path: Path) -> None:
    deep = np.random.default_rng(0).integers(0, 2**16, (8, 6, 3)).astype(np.uint16)
    with av.open(str(tmp_path / "a.png"), "w", format="image2") as container:
        stream = container.add_stream("png")
        stream.width, stream.height, stream.pix_fmt = 6, 8, "rgb48be"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(deep, format="rgb48le")))
        container.mux(stream.encode(None))
    tifffile.imwrite(tmp_path / "a.tif", deep, photometric="rgb", extratags=[(274, "H", 1, 6, True)])
    Image.fromarray(GRAY[0]).save(tmp_path / "gray.png")
    Image.fromarray((deep >> 8).astype(np.uint8)).save(tmp_path / "rgb.png")
    turned = np.rot90(deep, -1)
    for name, expected in {
        "a.png": deep,
        "a.tif": turned,
        "gray.png": GRAY[0][..., None],
        "rgb.png": deep >> 8,
    }.items():
        read = read_image(tmp_path / name, full_depth=True).numpy()
        assert read.dtype == (np.uint8 if name == "rgb.png" else np.uint16) and np.array_equal(read, expected)
    assert np.array_equal(read_image(tmp_path / "a.png").numpy(), deep >> 8)
    assert is_image_file(tmp_path / "a.tif")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_deep_images_are_turned_as_those_of_8_bits(tmp_path: Path, orientation: int) -> None:
    pixels = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    exif = Image.Exif()
    exif[274] = orientation
    Image.fromarray(pixels).save(tmp_path / "8.png", exif=exif)
    tag = [(274, "H", 1, orientation, True)]
    tifffile.imwrite(tmp_path / "16.tif", pixels.astype(np.uint16), photometric="rgb", extratags=tag)
    for read in (read_image(tmp_path / "8.png", full_depth=True), read_image(tmp_path / "16.tif", full_depth=True)):
        assert np.array_equal(read.numpy(), read_image(tmp_path / "8.png").numpy())


def test_a_zarr_array_of_which_a_chunk_changes_is_another_version(tmp_path: Path) -> None:
    array = zarr.create_array(tmp_path / "a.zarr", data=GRAY, chunks=(1, *GRAY.shape[1:]))
    before = version_of(str(tmp_path / "a.zarr"))
    array[1] = 0
    assert version_of(str(tmp_path / "a.zarr")) != before
    assert version_of(str(tmp_path / "b.zarr")) is None
    assert FeatureCache(tmp_path, tiny_encoder()).path_for({}, [tmp_path / "a.zarr"]).suffix == ".safetensors"
