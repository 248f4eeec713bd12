"""DICOM files of several frames, and series of single-frame files, read with pydicom.

A file of one frame stands for its series: the files of its folder with the same SeriesInstanceUID and size. Projection
radiographs (CR, DX, MG, ...) are images of their own, whatever their series. Slices at one position are frames in time,
by TemporalPositionIdentifier, TriggerTime, acquisition time and InstanceNumber; slices at different positions are those
along the normal of their plane. No message quotes an element of a file.
"""

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from tubelet.data.file_types import STACK_FORMATS
from tubelet.data.stacks.stack import Stack, as_stack_error, existing_path, info_of, layout_of
from tubelet.errors import DecodeError

_KIND = "DICOM"
# Modalities of projection radiographs: files of one series are views, not slices.
_RADIOGRAPHS = ("CR", "DX", "MG", "PX", "IO", "RG")
_TAGS = [
    "TransferSyntaxUID", "Modality", "SeriesInstanceUID", "InstanceNumber", "ImagePositionPatient",
    "ImageOrientationPatient", "SliceLocation", "TriggerTime", "TemporalPositionIdentifier", "AcquisitionDateTime",
    "AcquisitionTime", "Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation", "BitsAllocated", "BitsStored",
    "PixelRepresentation", "NumberOfFrames", "RescaleSlope", "RescaleIntercept", "ModalityLUTSequence", "WindowCenter",
    "WindowWidth", "VOILUTFunction", "FrameTime", "FrameTimeVector", "CineRate", "RecommendedDisplayFrameRate",
    "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence",
]  # fmt: skip
_REQUIRED = ("Rows", "Columns", "SamplesPerPixel", "BitsAllocated", "BitsStored", "PixelRepresentation")
_GRAY, _COLORS = ("MONOCHROME1", "MONOCHROME2"), ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")


@dataclass(frozen=True)
class _SliceHeader:
    """What the elements of a file say about its frames.

    Attributes:
        path: the file.
        series: identifier of its series.
        shape: rows, columns and samples of a pixel.
        frames: number of frames.
        position: millimeters along the normal of the plane; None if the file states none.
        order: temporal position, trigger time in ms, acquisition time in s and number, -1 for those that are missing.
        kind: type of the stored values.
        bits: bits of the stored values.
        inverted: whether larger values are darker.
        rescale: (frames or 1, 2) slope and intercept.
        window: stored window, after the rescaling.
        fps: frames per second; None if the file states none.
        fault: why its pixels cannot be read; empty if they can.
    """

    path: str
    series: str
    shape: tuple[int, int, int]
    frames: int
    position: float | None
    order: tuple[float, float, float, float]
    kind: np.dtype
    bits: int
    inverted: bool
    rescale: np.ndarray
    window: tuple[float, float] | None
    fps: float | None
    fault: str


def series_of(paths: Sequence[str]) -> list[tuple[str, int]]:
    """The stack or image that each of some files belongs to.

    Args:
        paths: existing DICOM files.

    Returns:
        For each, the first file of its series, or itself; and the number of frames. A file that cannot be read counts
        as two frames, so that it is reported where it is opened.
    """
    series = [slices_of(path) for path in paths]
    return [
        (files[0], len(files)) if files else (path, _frame_count(path))
        for path, files in zip(paths, series, strict=True)
    ]


def slices_of(path: str) -> Sequence[str]:
    """The files of the series of a slice, by name; empty for a file that is a stack or an image itself."""
    folder = Path(path).parent
    return _series_of_folder(folder, folder.stat().st_mtime_ns).get(path, ())


@lru_cache(maxsize=2**10)
def _series_of_folder(folder: Path, mtime_ns: int) -> dict[str, list[str]]:
    """Each slice of a folder with the files of its series, kept as long as no file is added or removed."""
    groups: dict[tuple[str, tuple[int, int, int]], list[str]] = {}
    for header in _files(folder):
        if header.frames == 1 and header.series:
            groups.setdefault((header.series, header.shape), []).append(header.path)
    return {path: files for files in groups.values() for path in files}


def _frame_count(path: str) -> int:
    try:
        return _header(path, _mtime(path)).frames
    except DecodeError:
        return 2


def open_stack(path: str | Path) -> Stack:
    """Open a file, or the series of a slice or folder, see `tubelet.data.stacks.open_stack`."""
    name, local = str(path), existing_path(path)
    if local.is_dir():
        headers = _only_series(name, local)
    else:
        slice_header = _header(name, _mtime(name))
        headers = (
            [slice_header]
            if slice_header.frames > 1 or not slice_header.series
            else _slices(local.parent, slice_header)
        )
    first = headers[0]
    if fault := next((header.fault for header in headers if header.fault), ""):
        raise DecodeError(name, fault)
    if first.frames > 1:
        count, fps = first.frames, first.fps
    else:
        headers, fps = _ordered(name, headers)
        count = len(headers)
    dtype = _dtype(headers)
    rows, columns, samples = first.shape
    layout = layout_of(name, "TYXC", (count, rows, columns, samples))
    info = info_of(name, layout, dtype, first.bits, fps, _window(headers))

    def read(indices: np.ndarray) -> np.ndarray:
        locations = [(first, int(i)) if first.frames > 1 else (headers[int(i)], 0) for i in indices]
        return np.stack([_frame(header, index, dtype) for header, index in locations])

    return Stack(info, read, lambda: None)


def _is_dicom(path: Path) -> bool:
    return path.suffix.lower() in STACK_FORMATS["dicom"]


def _mtime(path: str) -> int:
    return existing_path(path).stat().st_mtime_ns


def _files(folder: Path) -> Iterator[_SliceHeader]:
    """The headers of a folder's files; those that cannot be read are left to be reported by their own names."""
    for path in sorted(filter(_is_dicom, folder.iterdir())):
        try:
            yield _header(str(path), _mtime(str(path)))
        except DecodeError:
            continue


def _slices(folder: Path, slice_header: _SliceHeader) -> list[_SliceHeader]:
    return [
        header
        for header in _files(folder)
        if (header.series, header.shape, header.frames) == (slice_header.series, slice_header.shape, 1)
    ]


def _only_series(name: str, folder: Path) -> list[_SliceHeader]:
    """The files of the only series of a folder."""
    groups: dict[tuple[object, ...], list[_SliceHeader]] = {}
    for header in _files(folder):
        key = (header.path,) if header.frames > 1 or not header.series else (header.series, header.shape)
        groups.setdefault(key, []).append(header)
    if len(groups) != 1:
        raise DecodeError(name, f"has {len(groups)} DICOM series or images, expected one; name a file of one of them")
    return next(iter(groups.values()))


def _ordered(name: str, headers: list[_SliceHeader]) -> tuple[list[_SliceHeader], float | None]:
    """Slices in the order of their frames, and frames per second if they are frames in time."""
    positions = {header.position for header in headers}
    if len(positions) == len(headers) > 1 and None not in positions:
        return sorted(headers, key=lambda header: header.position or 0.0), None
    if len(positions) > 1:
        raise DecodeError(
            name,
            f"its series has {len(headers)} slices at {len(positions)} positions, expected one position at all times "
            "or a position of its own for each; copy the slices of each time or position into a folder of their own",
        )
    headers = sorted(headers, key=lambda header: header.order)
    for index, unit_s in ((1, 1e-3), (2, 1.0)):
        gaps = np.diff([header.order[index] for header in headers])
        if len(gaps) and gaps.min() > 0:
            return headers, 1 / (float(np.median(gaps)) * unit_s)
    return headers, headers[0].fps


def _dtype(headers: Sequence[_SliceHeader]) -> np.dtype:
    """The smallest type that has all rescaled values; float32 if a slope or intercept is no whole number."""
    rescale = np.concatenate([header.rescale for header in headers])
    kinds = {header.kind for header in headers}
    if len(kinds) == 1 and (rescale == [1, 0]).all():
        return kinds.pop()
    if (rescale != np.rint(rescale)).any():
        return np.dtype(np.float32)
    ends = np.array([(np.iinfo(kind.name).min, np.iinfo(kind.name).max) for kind in kinds])
    values = np.outer(rescale[:, 0], ends).ravel() + np.repeat(rescale[:, 1], ends.size)
    for dtype in map(np.dtype, ("uint8", "int16", "uint16", "int32")):
        if np.iinfo(dtype.name).min <= values.min() and values.max() <= np.iinfo(dtype.name).max:
            return dtype
    return np.dtype(np.float32)


def _window(headers: Sequence[_SliceHeader]) -> tuple[float, float] | None:
    """The window of the frame in the middle, of the values that are read."""
    header = headers[len(headers) // 2]
    if header.window is None or not header.inverted:
        return header.window
    slope, intercept = map(float, header.rescale[0])
    total = slope * _mirror(header) + 2 * intercept
    return total - header.window[1], total - header.window[0]


def _mirror(header: _SliceHeader) -> int:
    """The sum of a stored value and its inverse."""
    return -1 if header.kind.kind == "i" else 2**header.bits - 1


def _frame(header: _SliceHeader, index: int, dtype: np.dtype) -> np.ndarray:
    """(H, W, C) rescaled values of a frame."""
    with _guarded(header.path):
        from pydicom.pixels import pixel_array

        values = pixel_array(header.path, index=index).reshape(header.shape)
        if header.inverted:
            values = (_mirror(header) - values.astype(np.int64)).astype(values.dtype)
        slope, intercept = header.rescale[min(index, len(header.rescale) - 1)]
        if (slope, intercept) != (1, 0):
            values = values.astype(np.float64) * slope + intercept
        return np.asarray(values.astype(dtype))


@contextmanager
def _guarded(path: str) -> Iterator[None]:
    """Turn errors into a DecodeError and suppress warnings and log lines: all of them may quote the file."""
    log = logging.getLogger("pydicom")
    disabled, log.disabled = log.disabled, True
    try:
        with as_stack_error(path, _KIND, "pydicom"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.disabled = disabled


@lru_cache(maxsize=2**14)
def _header(path: str, mtime_ns: int) -> _SliceHeader:
    """The header of a file, kept as long as the file is the same."""
    with _guarded(path):
        import pydicom

        data = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=_TAGS)
        if missing := [element for element in _REQUIRED if data.get(element) is None]:
            raise DecodeError(path, f"lacks the elements {', '.join(missing)}; export it again")
        shared = _groups(data, "SharedFunctionalGroupsSequence")
        frames = _groups(data, "PerFrameFunctionalGroupsSequence")
        bits, signed = int(data.BitsAllocated), bool(data.PixelRepresentation)
        rescale = _rescale(data, shared, frames)
        return _SliceHeader(
            path,
            "" if data.get("Modality") in _RADIOGRAPHS else str(data.get("SeriesInstanceUID") or ""),
            (int(data.Rows), int(data.Columns), int(data.SamplesPerPixel)),
            int(data.get("NumberOfFrames") or 1),
            _position(data),
            _order(data),
            np.dtype(f"{'i' if signed else 'u'}{max(1, bits // 8)}"),
            int(data.BitsStored),
            data.get("PhotometricInterpretation") == "MONOCHROME1",
            rescale,
            _stated_window(data, [*shared, *frames[len(frames) // 2 :][:1]]),
            _rate(data),
            _fault(data, rescale, existing_path(path).stat().st_size),
        )


def _groups(data: Any, name: str) -> list[Any]:
    return list(data.get(name) or [])


def _rescale(data: Any, shared: list[Any], frames: list[Any]) -> np.ndarray:
    """(frames or 1, 2) slope and intercept, of each frame if these have their own."""
    sequences = [each for each in map(_transformation, frames) if each is not None]
    if len(sequences) == len(frames) > 0:
        pairs = sequences
    else:
        pairs = [next((each for each in map(_transformation, shared) if each is not None), data)]
    numbers = [[_number(each.get("RescaleSlope"), 1.0), _number(each.get("RescaleIntercept"), 0.0)] for each in pairs]
    return np.array(numbers)


def _transformation(group: Any) -> Any:
    sequence = group.get("PixelValueTransformationSequence")
    return sequence[0] if sequence else None


def _stated_window(data: Any, groups: list[Any]) -> tuple[float, float] | None:
    """Values shown as black and white (PS3.3, C.11.2.1.2); of several windows the first."""
    for dataset in (data, *(each.FrameVOILUTSequence[0] for each in groups if each.get("FrameVOILUTSequence"))):
        center, width = (_number(dataset.get(name), np.nan) for name in ("WindowCenter", "WindowWidth"))
        exact = dataset.get("VOILUTFunction") == "LINEAR_EXACT"
        if width > (0 if exact else 1):
            return center - width / 2, center + width / 2 - (0 if exact else 1)
    return None


def _number(value: Any, default: float) -> float:
    """The first number of an element."""
    several = not isinstance(value, str) and hasattr(value, "__len__")
    value = (value[0] if len(value) else None) if several else value
    return default if value is None or value == "" else float(value)


def _position(data: Any) -> float | None:
    """Millimeters along the normal of the plane."""
    origin, plane = data.get("ImagePositionPatient"), data.get("ImageOrientationPatient")
    if origin and len(origin) == 3:
        axes = np.array(plane if plane and len(plane) == 6 else [1, 0, 0, 0, 1, 0], np.float64).reshape(2, 3)
        return round(float(np.cross(*axes) @ np.array(origin, np.float64)), 3)
    location = _number(data.get("SliceLocation"), np.nan)
    return None if np.isnan(location) else round(location, 3)


def _order(data: Any) -> tuple[float, float, float, float]:
    temporal, trigger, number = (
        _number(data.get(name), -1.0) for name in ("TemporalPositionIdentifier", "TriggerTime", "InstanceNumber")
    )
    text = str(data.get("AcquisitionDateTime") or "")[8:] or str(data.get("AcquisitionTime") or "")
    digits = text.split("+")[0].split("-")[0].replace(":", "")
    clock = -1.0
    if len(digits) >= 6:
        clock = 3600 * int(digits[:2]) + 60 * int(digits[2:4]) + float(digits[4:])
    return temporal, trigger, clock, number


def _rate(data: Any) -> float | None:
    """Frames per second, from the element that says how the frames were taken to that which says how to show them."""
    frame_ms = _number(data.get("FrameTime"), 0.0)
    steps_ms = data.get("FrameTimeVector")
    if not frame_ms and steps_ms is not None and hasattr(steps_ms, "__len__") and len(steps_ms) > 1:
        frame_ms = float(np.mean([float(step) for step in steps_ms[1:]]))
    rates = (_number(data.get(name), 0.0) for name in ("RecommendedDisplayFrameRate", "CineRate"))
    return 1000 / frame_ms if frame_ms > 0 else next((rate for rate in rates if rate > 0), None)


def _fault(data: Any, rescale: np.ndarray, size: int) -> str:
    """Why the pixels of a file cannot be read."""
    from pydicom.pixels import get_decoder

    photometric, bits = str(data.get("PhotometricInterpretation", "")), int(data.BitsAllocated)
    if photometric not in (*_GRAY, *_COLORS) or bits not in (8, 16, 32):
        supported = ", ".join((*_GRAY, *_COLORS))
        return f"has values of {bits} bits or another color space, expected 8, 16 or 32 of {supported}; convert it"
    if not (np.isfinite(rescale).all() and rescale[:, 0].all()):
        return "has a slope or intercept that is no number, or a slope of 0; export it again"
    if data.get("ModalityLUTSequence"):
        return "has a table of rescaled values, expected a slope and an intercept; convert it"
    syntax = data.file_meta.TransferSyntaxUID
    values = int(data.Rows) * int(data.Columns) * int(data.SamplesPerPixel)
    needed = int(data.get("NumberOfFrames") or 1) * values * (bits // 8)
    stored_halves = photometric == "YBR_FULL_422"
    if not syntax.is_compressed and size < needed // (2 if stored_halves else 1):
        return f"truncated: has {size} bytes, its frames need {needed}; copy it again"
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError:
        return f"is compressed as {syntax.name}, which pydicom does not decode; decompress it"
    if not decoder.is_available:
        packages = _plugin(decoder.missing_dependencies)
        return f"is compressed as {syntax.name}, which needs a package: pip install {packages}"
    return ""


def _plugin(missing: Sequence[str]) -> str:
    """The packages of a decoder of pydicom that pip can install: "pylibjpeg - requires A>=2 and B>=2" -> "A B"."""
    line = next((each for each in missing if each.startswith("pylibjpeg")), missing[0] if missing else "pylibjpeg")
    names = line.partition("requires ")[2].split(" and ")
    return " ".join(name.strip().split(">=")[0] for name in names if name.strip()) or "pylibjpeg"
