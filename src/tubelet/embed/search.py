"""Exact nearest-neighbor search in a table: all pooled features are compared, part by part, without an index."""

import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tubelet.data.part_table import parts
from tubelet.embed.table import PartRemovedError, pooled_rows, read_settings
from tubelet.errors import ConfigError, DataError, TubeletError
from tubelet.pretrained.backbone import Backbone
from tubelet.pretrained.load import load

ATTEMPTS = 5  # to read a table that another process changes at the same time


@dataclass(frozen=True)
class Hit:
    """A search result.

    Attributes:
        path: file of the clip.
        start_s: timestamp of its first frame, in seconds.
        end_s: timestamp of its last frame, in seconds.
        similarity: cosine similarity of its pooled features and the query's, -1 to 1.
    """

    path: str
    start_s: float
    end_s: float
    similarity: float


def search(index: str | Path, file: str | Path, top: int = 10, model: Backbone | None = None) -> list[Hit]:
    """Find the clips of a table that are most similar to an image, or to the middle clip of a video.

    Args:
        index: a folder that `tubelet embed` wrote.
        file: the query.
        top: number of clips.
        model: the encoder; None loads the model of the table.

    Raises:
        TubeletError: if the table is missing or empty, the model is another one, or the file cannot be read.

    Warns:
        UserWarning: if rows are not ranked because their features are not finite or all zero.
    """
    index = Path(index)
    if top < 1:
        raise ConfigError(f"top is {top}, expected at least 1 clip")
    settings = read_settings(index)
    if not parts(index):
        raise DataError(f"{index}: has no rows yet; wait for `tubelet embed` to finish")
    model = model or _load(index, settings["model"])
    if model.weights_id != settings["weights"]:
        raise DataError(
            f"{index}: features are from {settings['model_id']}, the model is {model.model_id}; pass the model of the "
            "table with --model, or embed the collection again"
        )
    features = model.encode(file, resize=settings["image_size"], frames=settings["frames"], fps=settings["fps"])
    query = features.pooled[0].float().cpu().numpy()
    length = np.linalg.norm(query)
    if not (np.isfinite(length) and length > 0):
        raise DataError(f"{file}: features have no direction (norm {length}); check the weights of {model.model_id}")
    for left in reversed(range(ATTEMPTS)):
        try:
            return _nearest(index, query / length, top)
        except PartRemovedError:  # `tubelet embed` replaces rows of changed files: read the table again
            if not left:
                raise
    raise AssertionError


def _nearest(index: Path, query: NDArray[np.float32], top: int) -> list[Hit]:
    """The rows most similar to a query (D,) of norm 1."""
    best: list[Hit] = []
    rows = unranked = 0
    first = ""
    for columns, pooled in pooled_rows(index, ["path", "start_s", "end_s"]):
        if pooled.shape[1] != len(query):
            raise DataError(
                f"{index}: a part has vectors of {pooled.shape[1]} channels, expected {len(query)} as of the model; "
                "embed the collection again into another folder"
            )
        lengths = np.linalg.norm(pooled, axis=1)
        healthy = np.flatnonzero(np.isfinite(lengths) & (lengths > 0))
        if len(healthy) < len(pooled):
            first = first or columns["path"][int(np.setdiff1d(np.arange(len(pooled)), healthy)[0])].as_py()
        rows, unranked = rows + len(pooled), unranked + len(pooled) - len(healthy)
        similarity = pooled[healthy] @ query / lengths[healthy]
        nearest = np.argsort(-similarity)[:top]
        found = columns.take(healthy[nearest]).to_pylist()
        best += [Hit(**row, similarity=float(similarity[i])) for row, i in zip(found, nearest, strict=True)]
        best = sorted(best, key=lambda hit: -hit.similarity)[:top]
    if unranked:
        warnings.warn(
            f"{index}: {unranked} of {rows} rows have features without a direction (NaN, infinity or zero) and are not "
            f"ranked, the first of {first}; delete the table and embed the collection again",
            stacklevel=2,
        )
    return best


def _load(index: Path, name: str) -> Backbone:
    try:
        return load(name)
    except TubeletError as error:
        raise DataError(
            f"{index}: its model {name} cannot be loaded ({error}); pass its new location with --model"
        ) from error
