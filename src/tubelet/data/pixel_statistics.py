"""Statistics of the stored values of a collection, by which models normalize data of any depth and number of channels.

A seeded sample of files is read at full depth: some frames of each, and the same number of pixels of every frame, so
that every frame counts the same.
"""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tubelet.config import PixelStatistics, from_dict
from tubelet.config.fields import Count, check, to_dict
from tubelet.data.decode import Video
from tubelet.data.images import read_image
from tubelet.data.model_frames import match_channels
from tubelet.data.sample_index import SampleIndex, build_index
from tubelet.data.sources import MediaList
from tubelet.errors import BadFile, ConfigError, DataError, DecodeError
from tubelet.grid import Modality
from tubelet.io.files import atomic_write
from tubelet.io.text import read_json

FORMAT = "tubelet-pixel-statistics-1"
FRAMES_PER_FILE = 8
"""Largest number of frames that are read of a video or stack."""
_VALUES = 2**25  # sampled values of all files and channels together
_PIXELS = 2**14  # sampled pixels of a frame
_REMEDY = "create it again with `tubelet stats`"


@dataclass(frozen=True, kw_only=True)
class ChannelStatistics:
    """Stored values of one channel.

    Attributes:
        minimum: smallest value of the frames that were read.
        maximum: largest value.
        low: lower percentile.
        high: upper percentile.
        mean: mean, in units of the window and clipped to it.
        std: standard deviation, likewise.
        outside: fraction of the values outside of the window.
    """

    minimum: float
    maximum: float
    low: float
    high: float
    mean: float
    std: float
    outside: float


@dataclass(frozen=True, kw_only=True)
class CollectionStatistics:
    """Statistics of a collection.

    Attributes:
        pixels: statistics that a model is trained with.
        by_channel: values of each channel.
        percentiles: the two percentiles of `ChannelStatistics.low` and `high`.
        depths: number of files of each kind of values, such as "1 channel of uint16".
        files: number of files that were read.
        frames: number of frames that were read.
        available: number of files of the collection.
        failed: files of the sample that cannot be read, or have other channels.
    """

    pixels: PixelStatistics
    by_channel: tuple[ChannelStatistics, ...]
    percentiles: tuple[float, float]
    depths: dict[str, int]
    files: int
    frames: int
    available: int
    failed: tuple[BadFile, ...]

    def save(self, out: Path, sources: Sequence[str]) -> None:
        """Write the JSON file that `read_pixel_statistics` reads.

        Raises:
            FileError: if it cannot be written.
        """
        values = {
            "format": FORMAT,
            "channels": self.pixels.channels,
            **to_dict(self.pixels),
            "percentiles": self.percentiles,
            "by_channel": [vars(channel) for channel in self.by_channel],
            "depths": self.depths,
            "files": self.files,
            "frames": self.frames,
            "available": self.available,
            "failed": len(self.failed),
            "sources": list(sources),
        }
        with atomic_write(out) as partial:
            partial.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def read_pixel_statistics(path: Path) -> PixelStatistics:
    """The window, means and standard deviations in a file of `tubelet stats`.

    Raises:
        ConfigError: a value is missing or out of range.
        TubeletError: the file cannot be read, or is not of this format.
    """
    values = read_json(path, dict[str, Any], _REMEDY)
    if values.get("format") != FORMAT:
        raise DataError(f"{path}: format is {values.get('format')!r:.100}, expected {FORMAT!r}; {_REMEDY}")
    named = {name: values[name] for name in ("window", "mean", "std") if name in values}
    pixels: PixelStatistics = from_dict(PixelStatistics, named, str(path))
    return pixels


def measure_collection(
    media: MediaList,
    *,
    channels: int | None = None,
    window: tuple[float, float] | None = None,
    percentiles: tuple[float, float] = (0.5, 99.5),
    max_files: int = 200,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> CollectionStatistics:
    """Measure the stored values of a collection.

    Args:
        media: its files.
        channels: C of the model; None is the number that most files have. Gray and RGB are converted into each other.
        window: stored values that become 0 and 1; None spans the percentiles of all channels.
        percentiles: lower and upper percentile of the values, 0 to 100.
        max_files: largest number of files that are read.
        seed: of the sample.
        progress: called with the number of files that were read, and that will be.

    Raises:
        DataError: no file can be read, or a channel is constant.
        ConfigError: the percentiles or the number of files are out of range.
        StorageError: a source cannot be reached.
    """
    max_files = check(Count, max_files, "max_files")
    if not 0 <= percentiles[0] < percentiles[1] <= 100:
        raise ConfigError(f"percentiles are {percentiles}, expected two ascending numbers from 0 to 100")
    rng = np.random.default_rng(seed)
    indices = [(modality, build_index(media, modality)) for modality in Modality]
    everything = [(modality, index, sample) for modality, index in indices for sample in range(len(index))]
    chosen = sorted(rng.permutation(len(everything))[:max_files])
    per_frame = min(_PIXELS, max(64, _VALUES // (len(chosen) * FRAMES_PER_FILE * (channels or 1))))
    measured: list[_FileValues] = []
    failed: list[BadFile] = []
    for done, number in enumerate(chosen):
        progress(done, len(chosen))
        try:
            modality, index, sample = everything[number]
            measured.append(_read_values(modality, index, sample, per_frame, rng))
        except DecodeError as error:
            failed.append(BadFile(error.path, error.reason))
    progress(len(chosen), len(chosen))
    if not measured:
        raise DataError(f"{failed[0].path}: {failed[0].reason}; none of {len(failed)} files can be read")
    channels = channels or Counter(file.values.shape[1] for file in measured).most_common(1)[0][0]
    matched: list[_FileValues] = []
    for file in measured:
        try:
            matched.append(file.match(channels))
        except DecodeError as error:
            failed.append(BadFile(error.path, error.reason))
    if not matched:
        raise DataError(f"{failed[-1].path}: {failed[-1].reason}; so has every one of {len(measured)} files")
    pixels, by_channel = _summarize(matched, window, percentiles)
    return CollectionStatistics(
        pixels=pixels,
        by_channel=by_channel,
        percentiles=percentiles,
        depths=dict(Counter(file.kind for file in measured).most_common()),
        files=len(matched),
        frames=sum(file.frames for file in matched),
        available=len(everything),
        failed=tuple(failed),
    )


@dataclass(frozen=True)
class _FileValues:
    """What was read of one file: (N, C) sampled values, and the smallest and largest (C,) of all."""

    path: str
    kind: str
    frames: int
    values: np.ndarray
    minimum: np.ndarray
    maximum: np.ndarray

    def match(self, channels: int) -> "_FileValues":
        if self.values.shape[1] == channels:
            return self
        kind = np.result_type(self.values.dtype, np.float32)
        values, minimum, maximum = (
            match_channels(each.astype(kind), channels, self.path) for each in (self.values, self.minimum, self.maximum)
        )
        return _FileValues(self.path, self.kind, self.frames, values, minimum, maximum)


def _read_values(
    modality: Modality, index: SampleIndex, sample: int, per_frame: int, rng: np.random.Generator
) -> _FileValues:
    source, name = index.read(sample), index.name(sample)
    if modality is Modality.IMAGE:
        frames = [read_image(source.media, full_depth=True).numpy()]
    else:
        with Video(source.media, full_depth=True) as video:
            info = source.limit(video.info)
            count = min(FRAMES_PER_FILE, info.frames or FRAMES_PER_FILE)
            times = source.start_s + np.sort(rng.random(count)) * info.duration_s
            frames = [image for image, _, _ in video.scan(times)]
    channels, dtype = frames[0].shape[-1], frames[0].dtype
    values, lowest, highest = [], [], []
    for frame in frames:
        if dtype.kind == "f" and not np.isfinite(frame).all():
            raise DecodeError(name, "has values that are not finite numbers; replace them")
        pixels = frame.reshape(-1, channels)
        values.append(pixels[rng.integers(len(pixels), size=per_frame)])
        lowest.append(pixels.min(0))
        highest.append(pixels.max(0))
    kind = f"{channels} channel{'s' * (channels > 1)} of {dtype.name}"
    return _FileValues(name, kind, len(frames), np.concatenate(values), np.min(lowest, 0), np.max(highest, 0))


def _summarize(
    files: Sequence[_FileValues], window: tuple[float, float] | None, percentiles: tuple[float, float]
) -> tuple[PixelStatistics, tuple[ChannelStatistics, ...]]:
    values = np.concatenate([file.values for file in files])
    minimum, maximum = np.min([file.minimum for file in files], 0), np.max([file.maximum for file in files], 0)
    lows, highs = np.percentile(values, percentiles, axis=0)
    ends = [minimum, maximum]  # exactly those of all values, not only of the sampled ones
    lows, highs = (
        ends[percentile == 100] if percentile in (0, 100) else each
        for percentile, each in zip(percentiles, (lows, highs), strict=True)
    )
    low, high = window or (float(lows.min()), float(highs.max()))
    if not low < high:
        raise DataError(
            f"the values are {low:g} to {high:g} between the percentiles {percentiles[0]:g} and {percentiles[1]:g}: "
            "expected more than one value; widen --percentiles, or set --window"
        )
    scaled = np.clip((values.astype(np.float64) - low) / (high - low), 0, 1)
    outside = ((values < low) | (values > high)).mean(0)
    mean, std = scaled.mean(0), scaled.std(0)
    for number in np.flatnonzero(std == 0):
        raise DataError(
            f"channel {number} has the same value {values[0, number]} in all sampled pixels within the window {low:g} "
            f"to {high:g}, expected different ones; leave the channel out, or widen the window"
        )
    columns = zip(minimum, maximum, lows, highs, mean, std, outside, strict=True)
    names = ("minimum", "maximum", "low", "high", "mean", "std", "outside")
    by_channel = tuple(ChannelStatistics(**dict(zip(names, map(float, column), strict=True))) for column in columns)
    return PixelStatistics(window=(low, high), mean=tuple(mean), std=tuple(std)), by_channel
