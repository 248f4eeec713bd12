"""Average precision of region search on the sample set, compared with pooled search and random weights.

    python -m benchmarks.region_search SET --model MODEL

A query is the box of an object in the second clip of a video. A result is correct if objects of the query's class fill
at least a fifth of its box at its time. Pooled search, which has no boxes, is compared by clips: a clip is correct if
it contains an object of the class. Average precision is over all clips of the other videos; its mean is over queries.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import tubelet
from benchmarks.measure import sample_set_parser
from tubelet.config import EmbedConfig
from tubelet.embed.collection import embed_collection
from tubelet.embed.search import Hit, search
from tubelet.pretrained.backbone import Backbone
from tubelet.pretrained.load import random_init_like
from tubelet.sample_data.truth import CLASSES, FIRST_OBJECT, OTHER_OBJECT, ClipTruth, read_index, read_truth
from tubelet.tasks.metrics.intervals import bootstrap_interval

FRAMES, FPS = 4, 7.0
METRICS = ("mAP, place", "right of the first 10", "mAP, clips", "mAP, clips, pooled", "chance, clips")
LEAST_PIXELS, LEAST_PART = 300, 0.2  # of an object, and of a token


@dataclass(frozen=True)
class Query:
    """An object to search for.

    Attributes:
        path: video of the object.
        at_s: time in seconds.
        box: x, y, width and height in pixels.
        label: index of its class.
    """

    path: Path
    at_s: float
    box: tuple[int, int, int, int]
    label: int


def choose_queries(truths: dict[str, ClipTruth], at_s: float, count: int) -> list[Query]:
    """Objects of all classes in turn, at a given time of their videos."""
    found: dict[int, list[Query]] = {}
    for path, truth in truths.items():
        frame = round(at_s * FPS)
        for number in np.unique(truth.instances[frame]):
            inside = truth.instances[frame] == number
            label = int(np.bincount(truth.classes[frame][inside]).argmax())
            if number and inside.sum() >= LEAST_PIXELS and FIRST_OBJECT <= label < OTHER_OBJECT:
                y, x = np.nonzero(inside)
                box = (int(x.min()), int(y.min()), int(np.ptp(x)) + 1, int(np.ptp(y)) + 1)
                found.setdefault(label, []).append(Query(Path(path), at_s, box, label))
    rng = np.random.default_rng(0)
    for queries in found.values():
        rng.shuffle(queries)  # type: ignore[arg-type]
    interleaved = [
        queries[i] for i in range(max(map(len, found.values()))) for queries in found.values() if i < len(queries)
    ]
    return interleaved[:count]


def contains_class(truth: ClipTruth, hit: Hit, label: int) -> bool:
    """Whether a clip contains an object of a class."""
    first, last = round(hit.start_s * FPS), round(hit.end_s * FPS)
    return bool((truth.classes[first : last + 1] == label).sum((1, 2)).max() >= LEAST_PIXELS)


def is_correct(truth: ClipTruth, hit: Hit, label: int) -> bool:
    """Whether the middle of a result's box is an object of a class."""
    assert hit.time_s is not None and hit.box is not None
    classes = truth.classes[min(round(hit.time_s * FPS), len(truth.classes) - 1)]
    x, y, w, h = hit.box
    return bool((classes[y : y + h, x : x + w] == label).mean() >= LEAST_PART)


def average_precision(right: NDArray[np.bool_], positives: int) -> float:
    """Average precision of a ranking, given its correct entries and the number of positives."""
    precision = np.cumsum(right) / np.arange(1, len(right) + 1)
    return float(precision[right].sum() / max(1, positives))


def measure(table: Path, model: Backbone, queries: list[Query], truths: dict[str, ClipTruth]) -> NDArray[np.float64]:
    """A row for each query, with a column for each of METRICS."""
    rows = []
    for query in queries:
        everything = 10**6
        places = search(table, query.path, everything, model, query.at_s, query.box, other_files=True)
        clips = search(table, query.path, everything, model, query.at_s, other_files=True)
        present = np.array([contains_class(truths[hit.path], hit, query.label) for hit in places])
        right = np.array([is_correct(truths[hit.path], hit, query.label) for hit in places])
        pooled = np.array([contains_class(truths[hit.path], hit, query.label) for hit in clips])
        positives = int(present.sum())
        row = [average_precision(right, positives), right[:10].mean()]
        rows.append([*row, *(average_precision(each, positives) for each in (present, pooled)), present.mean()])
    return np.array(rows)


def print_means(name: str, rows: NDArray[np.float64]) -> None:
    """Print means over queries with 95 % intervals."""
    for metric, values in zip(METRICS, rows.T, strict=False):
        found = bootstrap_interval(metric, lambda w, v=values: w @ v / w.sum(1), len(rows), bounds=(-1, 1))
        print(f"{name:<26}{metric:<24}{found.value:6.3f}  [{found.low:.3f}, {found.high:.3f}]", flush=True)


def main() -> None:
    parser = sample_set_parser(__doc__, max_videos=200)
    parser.add_argument("--image-size", type=int, default=128)
    parser.add_argument("--queries", type=int, default=40)
    arguments = parser.parse_args()
    entries = read_index(arguments.set, "train")[: arguments.max_videos]
    truths = {str(entry.media.resolve()): read_truth(entry.truth) for entry in entries}
    queries = choose_queries(truths, 0.7, arguments.queries)
    labels = np.array([query.label for query in queries])
    counts = ", ".join(f"{CLASSES[label]} {(labels == label).sum()}" for label in np.unique(labels))
    print(f"{len(queries)} objects of {len(truths)} videos: {counts}")
    model = tubelet.load(arguments.model)
    size = EmbedConfig(image_size=arguments.image_size, frames=FRAMES, fps=FPS, dense=True, workers=0, batch_size=32)
    measured = []
    for name, encoder in (("trained", model), ("random weights", random_init_like(model, 0))):
        with tempfile.TemporaryDirectory() as folder:
            embed_collection(encoder, list(truths), Path(folder) / "table", size)
            measured.append(measure(Path(folder) / "table", encoder, queries, truths))
        print_means(name, measured[-1])
    print_means("trained - random weights", (measured[0] - measured[1])[:, :-1])


if __name__ == "__main__":
    main()
