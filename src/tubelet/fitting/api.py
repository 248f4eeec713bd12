"""The functions `tubelet.fit` and `tubelet.evaluate_head`."""

from pathlib import Path
from typing import Any

from tubelet.config import FitConfig
from tubelet.config.fields import from_dict
from tubelet.errors import ConfigError
from tubelet.fitting.evaluate import evaluate_on_labels, read_evaluation_table
from tubelet.fitting.result import HeadEvaluation
from tubelet.fitting.run import fit_head, read_label_table
from tubelet.heads.head_file import Head
from tubelet.prediction.api import load_encoder
from tubelet.prediction.fitted_head import FittedHead, load_head
from tubelet.pretrained.backbone import Backbone
from tubelet.pretrained.load import load

_READING = ("workers", "prefetch_mb", "max_failed_fraction")


def fit(
    labels: str | Path,
    model: str | Path | Backbone,
    *,
    out: str | Path | None = None,
    cache: str | Path | None = None,
    **settings: Any,
) -> FittedHead:
    """Train a head on a label table.

    `head.spec.scores` has its metrics on held-out files with 95 % intervals, next to those of baselines.

    Example:
        ```python
        head = tubelet.fit("labels.csv", "runs/a", task="classification")
        probabilities = head(model.encode("video.mp4"))
        ```

    Args:
        labels: the table, see docs/labels.md.
        model: an encoder, or anything that `tubelet.load` takes.
        out: head file to write; None writes none.
        cache: folder of cached features; None is in the user's cache.
        settings: fields of `tubelet.config.FitConfig`, such as `task`, `levels` or `seed`.

    Returns:
        the head, in eval mode on the CPU.

    Raises:
        LabelError: names every fault of the table.
        ConfigError: for a setting that does not exist or is out of range.
        TubeletError: for unreadable files, or labels that cannot be split.
    """
    path = _table_path(labels)
    config: FitConfig = from_dict(FitConfig, settings, "tubelet.fit")
    table, task = read_label_table(path, config)
    encoder = model if isinstance(model, Backbone) else load(model)
    source = encoder.name if isinstance(model, Backbone) else str(model)
    folder = None if cache is None else Path(cache).expanduser()
    head, _ = fit_head(table, task, encoder, source, config, cache=folder)
    if out is not None:
        head.save(out)
    return FittedHead.of(head)


def evaluate_head(
    head: str | Path | Head,
    labels: str | Path,
    *,
    model: str | Path | Backbone | None = None,
    include_training_files: bool = False,
    cache: str | Path | None = None,
    **settings: Any,
) -> HeadEvaluation:
    """Measure a head on a label table, by the metrics and intervals of `fit`.

    Example:
        ```python
        found = tubelet.evaluate_head("head.safetensors", "new.csv")
        print(*found.scores[0].metrics)
        ```

    Args:
        head: a head, or what `tubelet.load_head` takes; for classification, multilabel, regression or timeline.
        labels: the table, see docs/labels.md. All rows are measured, whatever its column `split` says.
        model: the encoder that the head was trained on, or anything that `tubelet.load` takes; None is where it was
            when the head was trained.
        include_training_files: whether files that the head was trained on are measured too, on which it is better
            than on others. By default they are left out.
        cache: folder of cached features; None is in the user's cache.
        settings: `workers`, `prefetch_mb` and `max_failed_fraction` of `tubelet.config.FitConfig`.

    Returns:
        the metrics of the head and of a constant answer, with 95 % intervals; how many files and rows they are of; and
        the files that were left out.

    Raises:
        LabelError: names every fault of the table.
        ConfigError: for another encoder than the head's, another task, classes that the head does not know, or a
            setting that does not exist or is out of range.
        TubeletError: for unreadable files, or if the head was trained on all of them.
    """
    path = _table_path(labels)
    for name in settings:
        if name not in _READING:
            raise ConfigError(
                f"tubelet.evaluate_head: {name!r:.100} is not a setting of it; it has {', '.join(_READING)}"
            )
    config: FitConfig = from_dict(FitConfig, settings, "tubelet.evaluate_head")
    head = head if isinstance(head, Head) else load_head(head)
    table = read_evaluation_table(head, path, config)
    encoder = model if isinstance(model, Backbone) else load_encoder(head, model)
    return evaluate_on_labels(
        head,
        table,
        encoder,
        config,
        include_training_files=include_training_files,
        cache=None if cache is None else Path(cache).expanduser(),
    )


def _table_path(labels: Any) -> Path:
    """The path of a label table.

    Raises:
        ConfigError: if it is not one.
    """
    if not isinstance(labels, (str, Path)):
        raise ConfigError(
            f"labels is a {type(labels).__name__}, expected the path of a label table; write a data frame by "
            'labels.to_csv("labels.csv", index=False)'
        )
    return Path(labels).expanduser()
