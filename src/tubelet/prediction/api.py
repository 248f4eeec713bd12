"""The function `tubelet.predict`."""

import logging
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tubelet.config import PredictConfig
from tubelet.config.fields import from_dict
from tubelet.errors import ConfigError, MissingFileError
from tubelet.heads.head_file import Head
from tubelet.prediction.fitted_head import load_head
from tubelet.prediction.pipeline import predict_collection
from tubelet.prediction.predictions import Predictions
from tubelet.pretrained.backbone import Backbone
from tubelet.pretrained.load import load

logger = logging.getLogger(__name__)


def predict(
    head: str | Path | Head,
    sources: str | Path | Sequence[str | Path],
    *,
    model: str | Path | Backbone | None = None,
    out: str | Path | None = None,
    **settings: Any,
) -> Predictions:
    """Apply a head to videos and images.

    Args:
        head: a head, or what `tubelet.load_head` takes.
        sources: files, folders, globs, lists of files, folders of shards; paths or URLs.
        model: the encoder that the head was trained on, or anything that `tubelet.load` takes; None is where it was
            when the head was trained.
        out: folder to write the tables to; None writes none.
        settings: fields of `tubelet.config.PredictConfig`, such as `threshold` or `workers`.

    Returns:
        the rows of the table.

    Raises:
        ConfigError: for another encoder than the head's, or a setting that does not exist or is out of range.
        TubeletError: for sources that cannot be read.
    """
    config: PredictConfig = from_dict(PredictConfig, settings, "tubelet.predict")
    head = head if isinstance(head, Head) else load_head(head)
    encoder = model if isinstance(model, Backbone) else load_encoder(head, model)
    names = _names(sources)
    with tempfile.TemporaryDirectory(prefix="tubelet-predict-") as folder:
        out_path = Path(folder) / "out" if out is None else Path(out).expanduser()
        summary = predict_collection(encoder, {"head": head}, names, out_path, config)
        (found,) = summary.heads
        records = [row for item in found.files() for row in found.output.records(item)]
    if summary.ignored:
        logger.warning(f"{summary.ignored} image{'s' * (summary.ignored > 1)} not read, since the head takes videos")
    return Predictions(columns=found.output.columns, records=records, bad_files=summary.bad_files)


def _names(sources: Any) -> list[str]:
    """Sources as text.

    Raises:
        ConfigError: if one is neither a path nor a URL.
    """
    single = isinstance(sources, (str, Path)) or not isinstance(sources, Iterable) or hasattr(sources, "shape")
    names = [sources] if single else list(sources)
    for name in names:
        if not isinstance(name, (str, Path)) or not str(name):
            found = "empty" if isinstance(name, str) else f"of type {type(name).__name__}"
            raise ConfigError(
                f"a source is {found}, expected a path or URL; for pixels in memory, head(model.encode(pixels)) gives "
                "scores"
            )
    return list(map(str, names))


def load_encoder(head: Head, model: str | Path | None = None, **options: Any) -> Backbone:
    """The encoder of a head.

    Args:
        head: the head.
        model: argument of `tubelet.load`; None is where the encoder was when the head was trained.
        options: further arguments of `tubelet.load`.

    Raises:
        MissingFileError: it is not there.
        TubeletError: see `tubelet.load`.
    """
    if model is not None:
        return load(model, **options)
    source = head.spec.encoder.source
    try:
        return load(source, **options)
    except MissingFileError as error:
        raise MissingFileError(
            f"the encoder {head.spec.encoder.model_id} of the head was at {source} when the head was trained, and is "
            f"not there now ({error}); pass its place as model (--model, and --encoder of evaluate)"
        ) from error
