"""`tubelet view TABLE --serve`: the page of features of a table, served on this machine."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tubelet.prediction.video_writer import rewrite_video
from tubelet.view.dense_table import read_dense_table, square_side
from tubelet.view.feature_page import MEDIA_LINES, encode_image, page_values
from tubelet.view.page import render_page
from tubelet.view.players import COPY_CRF, COPY_LINES, is_playable
from tubelet.view.server import PageServer, Resource
from tubelet.view.viewed_files import ViewedFile

SAMPLE = 6000  # tokens that the page computes components and clusters from, as in features.js
_TYPES = {".webm": "video/webm"}


@contextmanager
def serve_table(
    table: Path, chosen: Sequence[str], directions: int, port: int = 0, weights: str | None = None
) -> Iterator[PageServer]:
    """A server for the page of a table; `serve_forever` answers requests.

    Args:
        table: a folder that `tubelet embed --dense` wrote.
        chosen: the files to show; none means all.
        directions: most directions that features are projected to.
        port: 0 for any that is free.
        weights: id of the weights that the features must be from; None takes any.

    Raises:
        TubeletError: if the port is in use, or the table or a file cannot be shown, see `read_dense_table`.
    """
    with PageServer(port) as server, tempfile.TemporaryDirectory(prefix="tubelet-view-") as folder:
        files, view = read_dense_table(table, chosen, directions, weights)
        media = [square_side(file, MEDIA_LINES) | {"source": f"media/{i}"} for i, file in enumerate(files)]
        text = render_page("view.html", page_values(files, [view], media), links_media=True, fetches=True)
        resources = {"": Resource("text/html; charset=utf-8", text.encode())}
        for number, file in enumerate(files):
            resources[f"media/{number}"] = _media(file, Path(folder) / f"{number}.mp4")
        for number, level in enumerate(view.levels):
            resources[f"features/0-{number}"] = Resource("application/octet-stream", level.values)
            sample = Resource("application/octet-stream", np.ascontiguousarray(level.values[sample_rows(level.values)]))
            resources[f"sample/0-{number}"] = sample
        server.resources = resources
        yield server


def sample_rows(values: NDArray[np.int8]) -> NDArray[np.int64]:
    """The evenly spaced rows that features.js takes of features that are in the page, counted in the same way."""
    stride, at, samples = max(1.0, len(values) / SAMPLE), 0.0, []
    while at < len(values):
        samples.append(int(at))
        at += stride
    return np.array(samples)


def _media(file: ViewedFile, copy: Path) -> Resource:
    if not file.video:
        scale = min(1.0, 2 * MEDIA_LINES / file.height)
        return Resource("image/jpeg", encode_image(file.path, round(file.height * scale), round(file.width * scale)))
    if is_playable(file.path):
        return Resource(_TYPES.get(file.path.suffix.lower(), "video/mp4"), file.path)
    rewrite_video(file.path, copy, COPY_LINES, enlarge=False, crf=COPY_CRF, stack_fps=file.stack_fps)
    return Resource("video/mp4", copy)
