"""A generated data set with ground truth: first-person clips through the textured 3-D levels of Freedoom.

The reader (`read_truth`, `read_index`) needs only numpy; the writer needs ViZDoom, which is the extra `sample`.
"""

from tubelet.sample_data.long_videos import write_long_videos
from tubelet.sample_data.truth import CLASSES, MOTIONS, ClipTruth, SampleEntry, read_index, read_truth
from tubelet.sample_data.write import write_sample_data

__all__ = [
    "CLASSES",
    "MOTIONS",
    "ClipTruth",
    "SampleEntry",
    "read_index",
    "read_truth",
    "write_long_videos",
    "write_sample_data",
]
