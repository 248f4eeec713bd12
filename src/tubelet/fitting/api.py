"""The function `tubelet.fit`."""

from pathlib import Path
from typing import Any

from tubelet.config import FitConfig
from tubelet.config.fields import from_dict
from tubelet.errors import ConfigError
from tubelet.fitting.run import fit_head, read_label_table
from tubelet.prediction.fitted_head import FittedHead
from tubelet.pretrained.backbone import Backbone
from tubelet.pretrained.load import load


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
    if not isinstance(labels, (str, Path)):
        raise ConfigError(
            f"labels is a {type(labels).__name__}, expected the path of a label table; write a data frame by "
            'labels.to_csv("labels.csv", index=False)'
        )
    config: FitConfig = from_dict(FitConfig, settings, "tubelet.fit")
    table, task = read_label_table(Path(labels).expanduser(), config)
    encoder = model if isinstance(model, Backbone) else load(model)
    source = encoder.name if isinstance(model, Backbone) else str(model)
    folder = None if cache is None else Path(cache).expanduser()
    head, _ = fit_head(table, task, encoder, source, config, cache=folder)
    if out is not None:
        head.save(out)
    return FittedHead.of(head)
