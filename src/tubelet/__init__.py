"""V-JEPA 2.1: self-supervised pre-training on videos and images that yields dense features."""

import logging
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tubelet.data.decode import Video
    from tubelet.errors import TubeletError
    from tubelet.pretrained.dense_features import DenseFeatures
    from tubelet.pretrained.load import load

__all__ = ["DenseFeatures", "TubeletError", "Video", "__version__", "load"]

_MODULES = {
    "DenseFeatures": "tubelet.pretrained.dense_features",
    "TubeletError": "tubelet.errors",
    "Video": "tubelet.data.decode",
    "load": "tubelet.pretrained.load",
}


# A library prints nothing by itself: an application installs a handler, as the command line does.
logging.getLogger("tubelet").addHandler(logging.NullHandler())


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that `import tubelet` does not import torch."""
    if name == "__version__":
        from importlib.metadata import version

        return version("tubelet")
    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    raise AttributeError(f"module 'tubelet' has no attribute {name!r}")


def __dir__() -> list[str]:
    """For completion."""
    return [*globals(), *__all__]
