"""Extraction of features: files are decoded by worker processes, encoded in batches, and cached on disk.

B views of a batch, V views of a source, C channels, T frames, H x W pixels, N tokens, D width.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from tubelet.config import PixelStatistics
from tubelet.data.bad_files import check_failed_fraction
from tubelet.data.clips import normalize
from tubelet.data.prefetch import prefetch_within
from tubelet.data.worker_loader import WorkerLoader, translate_worker_crash
from tubelet.data.worker_status import WorkerStatus
from tubelet.errors import BadFile, DataError, DecodeError
from tubelet.pretrained.backbone import Backbone
from tubelet.tasks.common.cache import FeatureCache, read_features, write_features
from tubelet.user_warnings import warn_user

# What is encoded at once: enough to keep a device busy, little enough for a small one.
_TOKENS_PER_BATCH = 8192
RESUME_HINT = "the same command continues after what was computed"
"""What to do after a worker died."""
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True)
class Source:
    """A media file, or the frames of a clip as files, from which views are cropped.

    Attributes:
        files: the files in their order.
        part: parameters of the part of them that is used, ready for JSON; empty for all.
        pixels: statistics of the model that is shown them, which `extract` sets; None for one of 8-bit RGB.
    """

    files: tuple[Path, ...]
    part: tuple[float | str, ...] = ()
    pixels: PixelStatistics | None = None


@dataclass(frozen=True)
class FeatureSet(Dataset[dict[str, Tensor]]):
    """The features of sources, on disk.

    Attributes:
        sources: readable sources, in their order.
        paths: the file of each.
        indices: index of each in the list that was requested.
        bad_files: unreadable files, with the reasons.
    """

    sources: list[Source]
    paths: list[Path]
    indices: list[int]
    bad_files: list[BadFile]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """The tensors of one source, each (V, ...), or what the leading dimensions of its views were."""
        return read_features(self.paths[index])


def last_level(model: Backbone, pixels: Tensor) -> dict[str, Tensor]:
    """`tokens` (B, N, D): the deepest level of normalized pixels (B, C, T, H, W), after its norm."""
    return {"tokens": model.forward_features(pixels)}


Transform = Callable[[Source], Tensor]
Encode = Callable[[Backbone, Tensor], dict[str, Tensor]]


@dataclass(frozen=True, kw_only=True)
class TokenFeatures:
    """What a head sees of each token.

    Attributes:
        width: D, number of channels.
        encode: normalized pixels (B, C, 1, H, W) to `tokens` (B, N, D).
        recipe: what they depend on besides model and pixels; empty for the deepest level.
    """

    width: int
    encode: Encode = last_level
    recipe: Mapping[str, Any] = field(default_factory=dict)


def level_features(model: Backbone, levels: Sequence[int] = (-1,)) -> TokenFeatures:
    """The output levels of an encoder, concatenated along D; -1 is the deepest."""
    width = model.config.width * len(levels)
    if tuple(levels) == (-1,):
        return TokenFeatures(width=width)
    return TokenFeatures(
        width=width, encode=partial(_encode_levels, levels=tuple(levels)), recipe={"levels": tuple(levels)}
    )


def _encode_levels(model: Backbone, pixels: Tensor, levels: tuple[int, ...]) -> dict[str, Tensor]:
    outputs = model.get_intermediate_layers(pixels, model.config.levels)
    normed = [norm(x) for norm, x in zip(model.norms, outputs, strict=True)]
    return {"tokens": torch.cat([normed[level] for level in levels], dim=-1)}


def extract(
    model: Backbone,
    cache: FeatureCache,
    sources: Sequence[Source],
    recipe: Mapping[str, Any],
    transform: Transform,
    encode: Encode = last_level,
    *,
    workers: int = 0,
    prefetch_mb: int = 2048,
    max_failed_fraction: float = 0.0,
    progress: Progress = lambda what, done, total: None,
) -> FeatureSet:
    """Compute the features of all sources that are not cached yet.

    Args:
        model: the encoder.
        cache: of that model.
        sources: the sources to encode.
        recipe: everything besides model and source that the features depend on: a name, sizes, levels, ...
        transform: a source to its views (..., C, T, H, W), uint8 colors or normalized floats as
            `tubelet.data.model_frames` reads them; called in worker processes, so it must be picklable. Raises
            `DecodeError` for a file that cannot be read.
        encode: normalized views (B, C, T, H, W) to tensors (B, ...), which are kept in float16 in the order, and
            under the leading dimensions, of the views.
        workers: decoding processes; 0 decodes here.
        prefetch_mb: largest total size of views that are decoded ahead, in megabytes (10^6 bytes).
        max_failed_fraction: share of the sources that may be unreadable.
        progress: called with a stage's name, what is done of it, and its total.

    Raises:
        TubeletError: if more sources cannot be read, or none can, naming one; or features cannot be written.
    """
    assert cache.weights_id == model.weights_id, f"a cache of {cache.weights_id} for the features of {model.weights_id}"
    identity = {"dtype": f"{model.dtype} int8" if model.int8 else str(model.dtype)} | dict(recipe)
    if model.config.pixels is not None:
        identity["depth"] = "full"
        sources = [replace(source, pixels=model.config.pixels) for source in sources]
    paths = [cache.path_for(identity | {"part": source.part}, list(source.files)) for source in sources]
    missing = [number for number, path in enumerate(paths) if not path.exists()]
    bad: dict[int, BadFile] = {}
    done = len(sources) - len(missing)
    progress("encoding", done, len(sources))
    views_of = _Views([sources[number] for number in missing], transform, min(workers, len(missing)))
    waiting: list[tuple[int, Tensor]] = []
    encoded = _EncodedBatches(model, paths, encode)
    with translate_worker_crash(RESUME_HINT):
        for number, views in zip(missing, _read_ahead(views_of, min(workers, len(missing)), prefetch_mb), strict=True):
            if isinstance(views, BadFile):
                bad[number] = views
                check_failed_fraction(bad.values(), len(sources), max_failed_fraction, finished=False)
                continue
            if waiting and not _fits(model, waiting, views):
                progress("encoding", done + encoded.add(waiting), len(sources))
                waiting = []
            waiting.append((number, views))
        if waiting:
            encoded.add(waiting)
        done += encoded.flush()
    progress("encoding", done, len(sources))
    check_failed_fraction(bad.values(), len(sources), max_failed_fraction, finished=True)
    readable = [number for number in range(len(sources)) if number not in bad]
    if bad and not readable:
        first = bad[min(bad)]
        raise DataError(f"{first.path}: {first.reason}; none of {len(bad)} files can be read")
    return FeatureSet([sources[n] for n in readable], [paths[n] for n in readable], readable, list(bad.values()))


def _read_ahead(views_of: "_Views", workers: int, prefetch_mb: int) -> Iterator[Tensor | BadFile]:
    """The views of each source; how many are read ahead is decided when the first are there and their size is known."""

    def loader(first: int, last: int, workers: int, factor: int | None) -> Iterable[Tensor | BadFile]:
        return WorkerLoader(
            views_of,
            workers,
            status=views_of.status,
            item_bytes=size or 0,
            prefetch=factor,
            batch_size=None,
            sampler=range(first, last),
        )

    size: int | None = None
    start = 0
    while size is None and start < len(views_of):
        (views,) = loader(start, start + 1, min(workers, 1), 1 if workers else None)
        start += 1
        size = views.nbytes if isinstance(views, Tensor) else None
        yield views
    if start < len(views_of):
        prefetch = prefetch_within(prefetch_mb, "the views of a file", size or 0, workers, max_per_worker=4)
        if prefetch.note:
            warn_user(prefetch.note)
        yield from loader(start, len(views_of), prefetch.workers, prefetch.factor)


def _fits(model: Backbone, waiting: list[tuple[int, Tensor]], views: Tensor) -> bool:
    """Whether views can be encoded together with those that wait."""
    if waiting[0][1].shape[-4:] != views.shape[-4:]:
        return False
    count = sum(_count(v) for _, v in waiting) + _count(views)
    return count * model.tokenizer.grid(_listed(views)).tokens <= _TOKENS_PER_BATCH


def _listed(views: Tensor) -> Tensor:
    """(..., C, T, H, W) -> (V, C, T, H, W)."""
    return views.reshape(-1, *views.shape[-4:])


def _count(views: Tensor) -> int:
    return math.prod(views.shape[:-4])


class _EncodedBatches:
    """Encodes batches and writes their features; on CUDA a batch is written while the next one is encoded."""

    def __init__(self, model: Backbone, paths: list[Path], encode: Encode) -> None:
        self.model, self.paths, self.encode = model, paths, encode
        self.on_cuda = model.device.type == "cuda"
        self.written = 0  # sources
        # Features of the last batch, on their way to the CPU, and of which sources, with the leading shapes, they are.
        self.features: dict[str, list[Tensor]] = {}
        self.sources: list[tuple[int, torch.Size]] = []
        self.arrived: torch.cuda.Event | None = None

    @torch.inference_mode()
    def add(self, waiting: list[tuple[int, Tensor]]) -> int:
        """Encode the views of sources; returns how many sources are written so far."""
        pixels = torch.cat([_listed(views) for _, views in waiting])
        if self.on_cuda:
            pixels = pixels.pin_memory()
        step = max(1, _TOKENS_PER_BATCH // self.model.tokenizer.grid(pixels).tokens)
        features: dict[str, list[Tensor]] = {}
        for chunk in pixels.split(step):
            chunk = chunk.to(self.model.device, non_blocking=self.on_cuda)
            for name, value in self.encode(
                self.model, normalize(chunk, self.model.config.pixels, self.model.dtype)
            ).items():
                features.setdefault(name, []).append(value.half().to("cpu", non_blocking=self.on_cuda))
        self.flush()
        self.features = features
        if self.on_cuda:
            self.arrived = torch.cuda.Event()
            self.arrived.record()
        self.sources = [(number, views.shape[:-4]) for number, views in waiting]
        return self.written if self.on_cuda else self.flush()

    def flush(self) -> int:
        """Write the features of the last batch; returns how many sources are written so far."""
        if not self.sources:
            return self.written
        if self.arrived is not None:
            self.arrived.synchronize()
        features = {name: torch.cat(values) for name, values in self.features.items()}
        first = 0
        for number, shape in self.sources:
            last = first + math.prod(shape)
            source_features = {name: value[first:last].clone().unflatten(0, shape) for name, value in features.items()}
            write_features(self.paths[number], source_features)
            first = last
        self.written += len(self.sources)
        self.features, self.sources = {}, []
        return self.written


class _Views(Dataset[Tensor | BadFile]):
    """Dataset of the views of each source, or the reason why it has none."""

    def __init__(self, sources: list[Source], transform: Transform, workers: int) -> None:
        self.sources, self.transform = sources, transform
        self.status = WorkerStatus(workers)

    def __len__(self) -> int:
        return len(self.sources)

    def __getitem__(self, index: int) -> Tensor | BadFile:
        worker, source = get_worker_info(), self.sources[index]
        try:
            with self.status.track(worker.id if worker else None, str(source.files[0])):
                return self.transform(source)
        except DecodeError as error:
            return BadFile(error.path, error.reason)


T = TypeVar("T")


def subsample_evenly(items: Sequence[T], limit: int | None) -> list[T]:
    """All items, or `limit` of them at even distances, in their order."""
    if limit is None or len(items) <= limit:
        return list(items)
    return [items[i * len(items) // limit] for i in range(limit)]
