"""Predictions as records, with the fields of the tables."""

from dataclasses import dataclass

NONE_OF_THESE = "none of these"
"""Label of clips that are too far from everything that a head was trained on."""


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """A label for a span of a video, or for an image.

    Attributes:
        path: the media file as the sources name it.
        start_s: start in seconds of presentation time; 0 for an image.
        end_s: end in seconds; 0 for an image.
        label: the class.
        score: the probability of the class; for a span its mean over the span.
    """

    path: str
    start_s: float
    end_s: float
    label: str
    score: float


@dataclass(frozen=True, kw_only=True)
class ValuePrediction:
    """Values for a clip of a video, or for an image.

    Attributes:
        path: the media file as the sources name it.
        start_s: start in seconds of presentation time; 0 for an image.
        end_s: end in seconds; 0 for an image.
        values: the targets, in the order of the head's classes.
    """

    path: str
    start_s: float
    end_s: float
    values: tuple[float, ...]
