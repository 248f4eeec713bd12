"""TIFF files of several pages, by their own names of axes (OME, ImageJ, tifffile), read with tifffile."""

import logging
import re
import struct
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from tubelet.data.stacks.stack import AxisLayout, Stack, as_stack_error, existing_path, info_of, layout_of
from tubelet.errors import DecodeError

_KIND = "TIFF"
_IMAGE_DESCRIPTION = 270
_MAX_TAGS = 4096
_IMAGEJ_COUNT = re.compile(rb"^ImageJ=.*?\nimages=(\d+)", re.DOTALL)
_OME_RATE = re.compile(r'<Pixels\b[^>]*?\bTimeIncrement="([0-9.eE+-]+)"')
_OME_UNIT = re.compile(r'<Pixels\b[^>]*?\bTimeIncrementUnit="([^"]+)"')
_OME_BITS = re.compile(r'<Pixels\b[^>]*?\bSignificantBits="(\d+)"')
_UNIT_S = {"s": 1.0, "ms": 1e-3, "µs": 1e-6, "us": 1e-6, "ns": 1e-9, "min": 60.0, "h": 3600.0}


def has_pages(path: str | Path) -> bool:
    """Whether a TIFF file has more than one page, by its header; False for one that cannot be read."""
    try:
        with Path(path).open("rb") as file:
            head = file.read(16)
            order = {b"II": "<", b"MM": ">"}.get(head[:2])
            if order is None or len(head) < 8:
                return False
            big = struct.unpack(f"{order}H", head[2:4])[0] == 43
            offset = struct.unpack(f"{order}Q", head[8:16])[0] if big else struct.unpack(f"{order}I", head[4:8])[0]
            after, table, entry = _page_at(file, offset, order, big)
            # ImageJ writes more than 4 GB behind a single page.
            return after > 0 or _imagej_count(file, table, order, entry) > 1
    except (OSError, struct.error, OverflowError, ValueError):
        return False


def _page_at(file: Any, offset: int, order: str, big: bool) -> tuple[int, bytes, int]:
    """The offset of the page after the one at `offset`, 0 for none; the tags of this one; and the bytes of a tag."""
    file.seek(offset)
    (count,) = struct.unpack(f"{order}Q" if big else f"{order}H", file.read(8 if big else 2))
    entry = 20 if big else 12
    table = file.read(min(count, _MAX_TAGS) * entry + (8 if big else 4))
    (after,) = struct.unpack(f"{order}Q" if big else f"{order}I", table[count * entry :])
    return after, table, entry


def _imagej_count(file: BinaryIO, table: bytes, order: str, entry: int) -> int:
    """The number of images that ImageJ's description of the first page declares; 0 without one."""
    for at in range(0, len(table) - entry + 1, entry):
        if struct.unpack(f"{order}H", table[at : at + 2])[0] == _IMAGE_DESCRIPTION:
            where = table[at + entry - 8 : at + entry] if entry == 20 else table[at + 8 : at + 12]
            file.seek(struct.unpack(f"{order}Q" if entry == 20 else f"{order}I", where)[0])
            match = _IMAGEJ_COUNT.match(file.read(512))
            return int(match.group(1)) if match else 0
    return 0


def is_deep(file: BinaryIO) -> bool:
    """Whether the first page has more than 8 bits, or a number of channels that images of colors do not have.

    Raises:
        DecodeError: the file is damaged.
        MissingPackageError: tifffile is not installed.
    """
    name = str(getattr(file, "name", _KIND))
    with as_stack_error(name, _KIND, "tifffile"):
        import tifffile

        file.seek(0)
        page: Any = tifffile.TiffFile(file).pages.first
        return max(np.atleast_1d(page.bitspersample)) > 8 or page.samplesperpixel not in (1, 3, 4)


def read_page(file: BinaryIO, name: str) -> tuple[np.ndarray, int]:
    """The only page of a TIFF file as it is stored.

    Returns:
        (H, W, C) values, and its orientation as in EXIF.

    Raises:
        DecodeError: the file is damaged, or its axes cannot be decided.
    """
    with as_stack_error(name, _KIND, "tifffile"):
        import tifffile

        file.seek(0)
        series = tifffile.TiffFile(file).series[0]
        layout = layout_of(name, series.axes, series.shape)
        info = info_of(name, layout, series.dtype)
        if info.frames > 1:
            remedy = "copy it to a local disk, where stacks are read"
            raise DecodeError(name, f"has {info.frames} pages, expected 1; it is a stack: {remedy}")
        page = layout.frames(_positive(series.asarray(), series.keyframe))
        orientation = series.keyframe.tags.valueof("Orientation", 1)
        return np.ascontiguousarray(page[0], dtype=np.dtype(info.dtype)), int(orientation)


def _positive(values: np.ndarray, page: Any) -> np.ndarray:
    """Values of which larger ones are brighter: those of pages where zero is white are inverted."""
    if page.photometric == 0 and values.dtype.kind == "u":
        return values.dtype.type(2**page.bitspersample - 1) - values
    return values


def open_stack(path: str | Path) -> Stack:
    """Open a TIFF file, see `tubelet.data.stacks.open_stack`."""
    name, local = str(path), existing_path(path)
    with as_stack_error(name, _KIND, "tifffile"):
        import tifffile

        logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # what it warns about ends in an error below
        file = tifffile.TiffFile(local)
    try:
        with as_stack_error(name, _KIND):
            last: Any = file.pages[len(file.pages) - 1]
            if _page_at(file.filehandle, last.offset, file.byteorder, file.is_bigtiff)[0]:  # tifffile stops there
                raise DecodeError(name, f"truncated after {len(file.pages)} pages; copy it again")
            series = file.series[0]
            if len(file.series) > 1:
                shapes = ", ".join(" x ".join(map(str, each.shape)) for each in file.series[:4])
                raise DecodeError(
                    name,
                    f"has {len(file.series)} series of pages of their own ({shapes}), expected one; save each as a "
                    "file of its own",
                )
            layout = layout_of(name, series.axes, series.shape)
            bits, fps = _bits_and_rate(file)
            info = info_of(name, layout, series.dtype, bits, fps)
            read = _reader(name, file, series, layout)
    except BaseException:
        file.close()
        raise
    return Stack(info, read, file.close)


def _reader(name: str, file: Any, series: Any, layout: AxisLayout) -> Any:
    """The function that reads frames: contiguous values by their offset, others page by page."""
    size = file.filehandle.size
    stored = int(np.prod(series.shape)) * series.dtype.itemsize
    contiguous = series.dataoffset is not None
    if contiguous and series.dataoffset + stored > size:
        raise DecodeError(
            name, f"truncated: has {size} bytes, its pages need {series.dataoffset + stored}; copy it again"
        )
    inner = series.keyframe.shape
    outer = layout.shape[: len(layout.shape) - len(inner)]
    if int(np.prod(outer)) != len(series.pages) and not contiguous:
        raise DecodeError(name, f"has {len(series.pages)} pages for the axes {series.axes} of sizes {series.shape}")
    numbers = np.arange(int(np.prod(outer))).reshape(outer)

    def read(indices: np.ndarray) -> np.ndarray:
        selection = layout.selection(indices)
        with as_stack_error(name, _KIND):
            if contiguous:
                kind = series.dtype.newbyteorder(file.byteorder)
                mapped = np.memmap(file.filehandle.path, kind, "r", series.dataoffset, tuple(series.shape))
                return layout.frames(_positive(np.asarray(mapped[selection]), series.keyframe))
            chosen = numbers[selection[: len(outer)]]
            pages = np.stack([series.pages[int(number)].asarray() for number in chosen.ravel()])
            block = _positive(pages.reshape(chosen.shape + inner), series.keyframe)
            return layout.frames(block if "T" in layout.axes[: len(outer)] else block[selection])

    return read


def _bits_and_rate(file: Any) -> tuple[int | None, float | None]:
    """Significant bits and frames per second by the metadata of OME and ImageJ, as far as these have them."""
    if file.is_ome:
        text = file.ome_metadata or ""
        bits, rate, unit = (pattern.search(text) for pattern in (_OME_BITS, _OME_RATE, _OME_UNIT))
        seconds = float(rate.group(1)) * _UNIT_S.get(unit.group(1) if unit else "s", 0.0) if rate else 0.0
        return int(bits.group(1)) if bits else None, 1 / seconds if seconds > 0 else None
    about = file.imagej_metadata if file.is_imagej else None
    if about:
        interval = float(about.get("finterval") or 0)
        return None, 1 / interval if interval > 0 else float(about.get("fps") or 0) or None
    return None, None
