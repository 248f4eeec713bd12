"""V-JEPA 2.1: self-supervised pre-training on videos and images that yields dense features."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tubelet.data.decode import Video
    from tubelet.pretrained.backbone import load
    from tubelet.pretrained.dense_features import DenseFeatures

__all__ = ["DenseFeatures", "Video", "__version__", "load"]


def __getattr__(name: str) -> Any:
    """What is imported when it is first asked for: commands that need no torch stay quick."""
    if name == "load":
        from tubelet.pretrained.backbone import load

        return load
    if name == "__version__":
        from importlib.metadata import version

        return version("tubelet")
    if name == "DenseFeatures":
        from tubelet.pretrained.dense_features import DenseFeatures

        return DenseFeatures
    if name == "Video":
        from tubelet.data.decode import Video

        return Video
    raise AttributeError(f"module 'tubelet' has no attribute {name!r}")


def __dir__() -> list[str]:
    """For completion."""
    return [*globals(), *__all__]
