"""Training data of heads for dense tasks: crops of images, and points of their annotations.

Features are computed once, so each image has a few fixed crops. A head is linear, and features between tokens are
interpolated, so that the prediction at a pixel depends only on the four tokens around it: training on a few pixels of
each crop, drawn anew each time, is as good as training on all.

B crops of a batch, V crops of an image, N = h·w tokens, D width, P points.
"""

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from tubelet.data.clips import resize
from tubelet.data.worker_loader import WorkerLoader
from tubelet.datasets import DenseSample
from tubelet.errors import DataError
from tubelet.io.arrays import open_safetensors
from tubelet.tasks.common.cache import DELETE_HINT, FeatureCache, write_features
from tubelet.tasks.common.extract import FeatureSet, Progress, Source
from tubelet.tasks.common.task import EvaluationContext

POINTS_CACHED = 2048  # of each crop, drawn once and kept on disk
POINTS_PER_STEP = 128  # of those, at each pass
# Crops of a small set's images: so many that they are about this many altogether, and an image's at most so many.
CROPS_IN_ALL, CROPS_AT_MOST = 20_000, 4
_MEMORY_BYTES = 1 << 30  # crops that all reading processes together may keep in memory


class Draw(NamedTuple):
    """Random numbers of a crop, from 0 to 1: its position down and across, its scale, and whether it is mirrored."""

    down: float
    across: float
    scale: float
    mirror: float


class Crop(NamedTuple):
    """Part of an image.

    Attributes:
        top, left, height, width: in pixels of the image.
        mirrored: whether left and right are swapped.
    """

    top: int
    left: int
    height: int
    width: int
    mirrored: bool


# (shape (H, W) of the image, draw, whether it is the image's first crop) -> crop
ChooseCrop = Callable[[tuple[int, int], Draw, bool], Crop]


def crops_per_image(images: int) -> int:
    """V, the number of crops of each image, given the number of images."""
    return max(1, min(CROPS_AT_MOST, CROPS_IN_ALL // images))


def training_source(pair: DenseSample, crops: int, seed: int) -> Source:
    """An image with the random numbers of its crops, which are a function of its name and the seed."""
    rng = np.random.default_rng([seed, zlib.crc32(pair.name.encode())])
    draws = rng.random((crops, len(Draw._fields))).round(6).ravel().tolist()
    return Source(files=(pair.image,), part=(_position(pair), *draws))


def test_source(pair: DenseSample) -> Source:
    """An image as a whole."""
    return Source(files=(pair.image,), part=(_position(pair),))


def source_image(source: Source) -> NDArray[Any]:
    """The image (H, W, C) of a source as its model takes it: uint8, or normalized float32.

    Raises:
        DecodeError: if it cannot be read.
    """
    position, path = source.part[0], source.files[0]
    if isinstance(position, str):
        return DenseSample(name="", image=path, target=path, time_s=float(position)).load_image(source.pixels)
    frame = int(position)
    return DenseSample(name="", image=path, target=path, frame=None if frame < 0 else frame).load_image(source.pixels)


def _position(pair: DenseSample) -> float | str:
    """The index of a video frame, its time as text, or -1 for an image."""
    if pair.time_s is not None:
        return repr(pair.time_s)
    return -1 if pair.frame is None else pair.frame


def source_draws(source: Source) -> list[Draw]:
    """The random numbers of the crops of a `training_source`."""
    numbers = [float(number) for number in source.part[1:]]
    size = len(Draw._fields)
    return [Draw(*numbers[i : i + size]) for i in range(0, len(numbers), size)]


def crop_image(source: Source, choose: ChooseCrop, size: tuple[int, int]) -> Tensor:
    """The crops of an image, (V, C, 1, *size) of the type of `source_image`.

    Raises:
        DecodeError: if the image cannot be read.
    """
    image = source_image(source)
    shape = (image.shape[0], image.shape[1])
    crops = [choose(shape, draw, i == 0) for i, draw in enumerate(source_draws(source))]
    return torch.stack([crop_and_resize(image, crop, size) for crop in crops])


def crop_and_resize(image: NDArray[Any], crop: Crop, size: tuple[int, int]) -> Tensor:
    """Part of an image (H, W, C) at a size in pixels: (C, 1, *size) of the same type."""
    rows, columns = slice(crop.top, crop.top + crop.height), slice(crop.left, crop.left + crop.width)
    pixels = resize(torch.from_numpy(image[rows, columns]).unsqueeze(0), *size)
    return pixels.flip(-1) if crop.mirrored else pixels


@dataclass(frozen=True)
class PointReader(Dataset[int]):
    """Dataset that draws the points of crops and writes them to disk; an item is an image.

    Attributes:
        pairs: the images.
        sources: each as `training_source` gives it.
        paths: the file of each one's points.
        read: a pair to its map (H, W).
        ignored: the value of the map that is ignored.
        choose: the crops.
    """

    pairs: list[DenseSample]
    sources: list[Source]
    paths: list[Path]
    read: Callable[[DenseSample], NDArray[Any]]
    ignored: float
    choose: ChooseCrop

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> int:
        """Write `at` (V, P, 2), rows and columns of points as fractions of a crop, and `value` (V, P)."""
        if not self.paths[index].exists():
            write_features(self.paths[index], self._draw(index))
        return index

    def _draw(self, index: int) -> dict[str, Tensor]:
        values = self.read(self.pairs[index])
        shape = (values.shape[0], values.shape[1])
        check_shape(self.pairs[index], shape)
        rng = np.random.default_rng(zlib.crc32(repr(self.sources[index].part).encode()))
        points = [
            _points(values, self.choose(shape, draw, i == 0), self.ignored, rng)
            for i, draw in enumerate(source_draws(self.sources[index]))
        ]
        return {"at": torch.stack([at for at, _ in points]), "value": torch.stack([value for _, value in points])}


def check_shape(pair: DenseSample, shape: tuple[int, int]) -> None:
    """Check that an annotation (H, W) has the size of its image.

    Raises:
        TubeletError: if they do not.
    """
    H, W = pair.image_shape()
    if shape != (H, W):
        raise DataError(f"{pair.target}: {shape[1]} x {shape[0]} pixels, but {pair.image} has {W} x {H}")


def _points(values: NDArray[Any], crop: Crop, ignored: float, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Places (P, 2) float32 and values (P,) of points of a crop; ignored ones only where it has no others."""
    part = values[crop.top : crop.top + crop.height, crop.left : crop.left + crop.width]
    valid = np.flatnonzero(part != ignored)
    chosen = valid[rng.integers(len(valid), size=POINTS_CACHED)] if len(valid) else np.zeros(POINTS_CACHED, np.int64)
    rows, columns = np.divmod(chosen, crop.width)
    across = (columns + 0.5) / crop.width
    at = np.stack([(rows + 0.5) / crop.height, 1 - across if crop.mirrored else across], axis=-1)
    return torch.from_numpy(at.astype(np.float32)), torch.from_numpy(part.ravel()[chosen])


def draw_points(reader: PointReader, workers: int, progress: Progress) -> None:
    """Write the points of all images to disk, reading every annotation.

    Raises:
        TubeletError: if a map cannot be read, or does not fit its image.
    """
    loader: WorkerLoader[int] = WorkerLoader(reader, min(workers, len(reader)), batch_size=None)
    for index in loader:
        progress("annotations", index + 1, len(reader))


def point_paths(
    cache: FeatureCache, pairs: Sequence[DenseSample], sources: Sequence[Source], recipe: object
) -> list[Path]:
    """The file of each image's points, which depends on its annotation, its crops and how they are read."""
    identity = {"points": POINTS_CACHED, "recipe": recipe}
    return [
        cache.path_for(identity | {"part": source.part}, [pair.target])
        for pair, source in zip(pairs, sources, strict=True)
    ]


def interpolate(tokens: Tensor, grid: tuple[int, int], at: Tensor) -> Tensor:
    """Features at points, as `F.interpolate(mode="bilinear", align_corners=False)` has them at pixels.

    Args:
        tokens: (B, N, D) of any float type.
        grid: (h, w).
        at: (B, P, 2) float32 rows and columns as shares of the crop.

    Returns:
        (B, P, D) float32.
    """
    (B, N, _), (h, w) = tokens.shape, grid
    last = torch.tensor([h - 1, w - 1])
    position = (at * torch.tensor([h, w]) - 0.5).clamp(min=0).minimum(last)
    first = position.floor()
    fraction = position - first
    top, left = first.long().unbind(-1)
    bottom, right = (top + 1).clamp(max=h - 1), (left + 1).clamp(max=w - 1)
    down, across = fraction.unbind(-1)
    flat, start = tokens.flatten(0, 1), (torch.arange(B) * N).unsqueeze(1)
    corners = (
        (top, left, (1 - down) * (1 - across)),
        (top, right, (1 - down) * across),
        (bottom, left, down * (1 - across)),
        (bottom, right, down * across),
    )
    total = torch.zeros(*at.shape[:2], tokens.shape[-1])
    for row, column, weight in corners:
        total += flat[start + row * w + column].float() * weight.unsqueeze(-1)
    return total


class PixelFeatureDataset(Dataset[tuple[Tensor, Tensor]]):
    """Dataset of batches of points and their features; the index of an item is a list of (epoch, image) pairs."""

    def __init__(
        self, features: FeatureSet, points: list[Path], grid: tuple[int, int], seed: int, readers: int
    ) -> None:
        self.features, self.points, self.grid, self.seed = features, points, grid, seed
        self.budget = _MEMORY_BYTES // max(1, readers)
        self.kept: dict[tuple[int, int], tuple[Tensor, Tensor, Tensor]] = {}
        self.size = 0

    @property
    def crops(self) -> int:
        """Number of crops that each image is seen in."""
        return len(source_draws(self.features.sources[0]))

    def __getitem__(self, batch: list[tuple[int, int]]) -> tuple[Tensor, Tensor]:
        """(B·P, D) float32 features and (B·P,) values of (epoch, image) pairs."""
        tokens, at, values = [], [], []
        for number, image in batch:
            rng = np.random.default_rng([self.seed, number, image])
            crops = len(self.features.sources[image].part) // len(Draw._fields)
            crop_tokens, crop_at, crop_values = self._crop(image, int(rng.integers(crops)))
            chosen = torch.from_numpy(rng.integers(POINTS_CACHED, size=POINTS_PER_STEP))
            tokens.append(crop_tokens)
            at.append(crop_at[chosen])
            values.append(crop_values[chosen])
        rows = interpolate(torch.stack(tokens), self.grid, torch.stack(at))
        return rows.flatten(0, 1), torch.cat(values)

    def _crop(self, image: int, crop: int) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens (N, D), positions (P, 2) and values (P,) of a crop, from memory while there is room in it."""
        key = (image, crop)
        if key not in self.kept:
            (tokens,) = read_slices(self.features.paths[image], ("tokens",), crop)
            at, value = read_slices(self.points[image], ("at", "value"), crop)
            self.size += sum(t.numel() * t.element_size() for t in (tokens, at, value))
            if self.size > self.budget:
                return tokens, at, value
            self.kept[key] = (tokens, at, value)
        return self.kept[key]


def read_slices(path: Path, names: Sequence[str], index: int) -> list[Tensor]:
    """One entry along the first dimension of some tensors of a file.

    Raises:
        TubeletError: if the file is gone or damaged.
    """
    with open_safetensors(path, DELETE_HINT) as file:
        return [file.entry(name, index) for name in names]


class EpochSampler:
    """Sampler of the images of each step: all of them in random order, then again, as a function of the seed."""

    def __init__(self, images: Sequence[int], batch: int, seed: int, start: int, steps: int) -> None:
        self.images, self.batch, self.seed, self.start, self.steps = images, batch, seed, start, steps
        self.order = lru_cache(2)(lambda number: np.random.default_rng([seed, number]).permutation(len(images)))

    def __len__(self) -> int:
        return self.steps - self.start

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        n = len(self.images)
        for step in range(self.start, self.steps):
            paths = [divmod(i, n) for i in range(step * self.batch, (step + 1) * self.batch)]
            yield [(number, self.images[self.order(number)[index]]) for number, index in paths]


def extract_training_set(
    context: EvaluationContext,
    samples: Sequence[DenseSample],
    choose: ChooseCrop,
    size: tuple[int, int],
    recipe: Mapping[str, Any],
    load_target: Callable[[DenseSample], NDArray[Any]],
    ignored: float,
    target_recipe: Mapping[str, Any],
) -> PixelFeatureDataset:
    """The features of crops of images, and points of their annotations, both kept on disk.

    Args:
        context: the evaluation.
        samples: the images and their annotations.
        choose: the crops.
        size: (rows, columns) that crops are resized to, in pixels.
        recipe: what the features depend on besides model and image.
        load_target: the map (H, W) of a sample.
        ignored: the value of a map that is ignored.
        target_recipe: what the points depend on besides the annotation and the crops.

    Raises:
        TubeletError: if a map cannot be read or does not fit its image, or too many images cannot be read.
    """
    sources = [training_source(sample, crops_per_image(len(samples)), context.config.seed) for sample in samples]
    features = context.extract(sources, recipe, partial(crop_image, choose=choose, size=size))
    readable = [samples[number] for number in features.indices]
    paths = point_paths(context.cache, readable, features.sources, {"transform": recipe, **target_recipe})
    reader = PointReader(readable, features.sources, paths, load_target, ignored, choose)
    draw_points(reader, context.config.workers, context.progress)
    patch = context.model.patch_size
    grid = (size[0] // patch, size[1] // patch)
    return PixelFeatureDataset(features, paths, grid, context.config.seed, context.config.workers)
