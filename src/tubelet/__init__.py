"""V-JEPA 2.1: self-supervised pre-training on videos and images that yields dense features."""

import logging
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tubelet.data.decode import Video
    from tubelet.errors import (
        CheckpointError,
        ConfigError,
        DataError,
        DecodeError,
        FileError,
        MissingFileError,
        MissingPackageError,
        TrainingError,
        TubeletError,
    )
    from tubelet.fitting.api import evaluate_head, fit
    from tubelet.fitting.result import HeadEvaluation
    from tubelet.prediction.api import predict
    from tubelet.prediction.fitted_head import FittedHead, load_head
    from tubelet.prediction.predictions import Predictions
    from tubelet.pretrained.backbone import Backbone
    from tubelet.pretrained.dense_features import DenseFeatures
    from tubelet.pretrained.load import load

__all__ = [
    "Backbone",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "DecodeError",
    "DenseFeatures",
    "FileError",
    "FittedHead",
    "HeadEvaluation",
    "MissingFileError",
    "MissingPackageError",
    "Predictions",
    "TrainingError",
    "TubeletError",
    "Video",
    "__version__",
    "evaluate_head",
    "fit",
    "load",
    "load_head",
    "predict",
]

_MODULES = {
    "Backbone": "tubelet.pretrained.backbone",
    "DenseFeatures": "tubelet.pretrained.dense_features",
    "FittedHead": "tubelet.prediction.fitted_head",
    "HeadEvaluation": "tubelet.fitting.result",
    "Predictions": "tubelet.prediction.predictions",
    "Video": "tubelet.data.decode",
    "evaluate_head": "tubelet.fitting.api",
    "fit": "tubelet.fitting.api",
    "load_head": "tubelet.prediction.fitted_head",
    "predict": "tubelet.prediction.api",
    "load": "tubelet.pretrained.load",
}


# A library prints nothing by itself: an application installs a handler, as the command line does.
logging.getLogger("tubelet").addHandler(logging.NullHandler())


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that `import tubelet` does not import torch."""
    if name == "__version__":
        from importlib.metadata import version

        return version("tubelet")
    if name in __all__:
        return getattr(import_module(_MODULES.get(name, "tubelet.errors")), name)
    raise AttributeError(f"module 'tubelet' has no attribute {name!r}")


def __dir__() -> list[str]:
    """The public names, for completion."""
    return sorted(__all__)
