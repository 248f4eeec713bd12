"""Data sets for downstream tasks: one module for each layout, and the record types that all of them load."""

from tubelet.datasets.layout import Layout, find, layout_error, layouts_of
from tubelet.datasets.records import (
    ActionSegment,
    AnticipationDataset,
    ClassificationDataset,
    DatasetRecord,
    DenseDataset,
    DenseSample,
    DepthDataset,
    LabeledFile,
    PointTracks,
    ProbeProtocol,
    SegmentationDataset,
    TrackedVideo,
    TrackingDataset,
    VideoObjectDataset,
    VideoObjectSequence,
)

__all__ = [
    "ActionSegment",
    "AnticipationDataset",
    "ClassificationDataset",
    "DatasetRecord",
    "DenseDataset",
    "DenseSample",
    "DepthDataset",
    "LabeledFile",
    "Layout",
    "PointTracks",
    "ProbeProtocol",
    "SegmentationDataset",
    "TrackedVideo",
    "TrackingDataset",
    "VideoObjectDataset",
    "VideoObjectSequence",
    "find",
    "layout_error",
    "layouts_of",
]
