"""The nearest clips of a table: all pooled features are compared, part by part; no index, no server."""

import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tubelet.embed.table import PartGoneError, parts, pooled_rows, read_settings
from tubelet.errors import TubeletError
from tubelet.pretrained.backbone import Backbone
from tubelet.pretrained.load import load

TRIES = 5  # of a table that another process changes meanwhile


@dataclass(frozen=True)
class Hit:
    """A clip that was found.

    Attributes:
        path: its file.
        start_s: where in the file it begins, in seconds.
        end_s: its last frame's time.
        similarity: cosine of the angle between its pooled features and the query's, -1 to 1.
    """

    path: str
    start_s: float
    end_s: float
    similarity: float


def search(index: str | Path, file: str | Path, top: int = 10, model: Backbone | None = None) -> list[Hit]:
    """The clips of a table that are nearest to an image, or to the middle clip of a video.

    Args:
        index: a folder that `tubelet embed` wrote.
        file: the query.
        top: how many clips.
        model: the encoder; None loads the one that made the table.

    Raises:
        TubeletError: if the table is none or empty, the model is another one, or the file cannot be read.

    Warns:
        UserWarning: how many rows are not ranked, since their features are not finite or all zero.
    """
    index = Path(index)
    if top < 1:
        raise TubeletError(f"top is {top}, expected at least 1 clip")
    settings = read_settings(index)
    if not parts(index):
        raise TubeletError(f"{index}: has no rows yet; run `tubelet embed` to its end")
    model = model or _load(index, settings["model"])
    if model.weights_id != settings["weights"]:
        raise TubeletError(
            f"{index}: was made by {settings['model_id']}, the model is {model.model_id}: their features cannot be "
            "compared; name the model that made the table, or embed the collection again"
        )
    features = model.encode(file, resize=settings["image_size"], frames=settings["frames"], fps=settings["fps"])
    query = features.pooled[0].float().cpu().numpy()
    length = np.linalg.norm(query)
    if not (np.isfinite(length) and length > 0):
        raise TubeletError(
            f"{file}: its features have no direction (length {length}), so that nothing can be near them; check the "
            f"weights of {model.model_id}"
        )
    for left in reversed(range(TRIES)):
        try:
            return _nearest(index, query / length, top)
        except PartGoneError:  # `embed` replaces rows of files that changed: what it leaves is read anew
            if not left:
                raise
    raise AssertionError


def _nearest(index: Path, query: NDArray[np.float32], top: int) -> list[Hit]:
    """The rows nearest to a query (D,) of length 1."""
    best: list[Hit] = []
    rows = unranked = 0
    first = ""
    for columns, pooled in pooled_rows(index, ["path", "start_s", "end_s"]):
        if pooled.shape[1] != len(query):
            raise TubeletError(
                f"{index}: a part holds vectors of {pooled.shape[1]} channels, the model has {len(query)}; embed the "
                "collection again into another folder"
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
            f"ranked, the first is of {first}: delete the table and embed the collection again",
            stacklevel=2,
        )
    return best


def _load(index: Path, name: str) -> Backbone:
    try:
        return load(name)
    except TubeletError as error:
        raise TubeletError(
            f"{index}: the model that made it was {name}, which cannot be loaded ({error}); say with "
            "--model where it is now"
        ) from error
