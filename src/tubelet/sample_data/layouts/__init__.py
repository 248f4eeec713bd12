"""Writers of the sample set in the layouts of public benchmarks, so that every data set reader has files to read.

A layout has the names, folders and formats of the benchmark's official download, with the contents of the sample set.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

from tubelet.errors import ConfigError
from tubelet.io.files import write_directory_once
from tubelet.sample_data.layouts.ade20k import write_ade20k
from tubelet.sample_data.layouts.cityscapes import write_cityscapes
from tubelet.sample_data.layouts.davis import write_davis
from tubelet.sample_data.layouts.diving48 import write_diving48
from tubelet.sample_data.layouts.epic import write_epic
from tubelet.sample_data.layouts.imagenet import write_imagenet
from tubelet.sample_data.layouts.kinetics import write_kinetics
from tubelet.sample_data.layouts.kitti import write_kitti
from tubelet.sample_data.layouts.nyuv2 import write_nyuv2
from tubelet.sample_data.layouts.ssv2 import write_ssv2
from tubelet.sample_data.layouts.voc2012 import write_voc2012
from tubelet.sample_data.layouts.youtube_vos import write_youtube_vos
from tubelet.sample_data.truth import read_description

Writer = Callable[[Path, Path], Mapping[str, int]]
"""Writes a rendered sample set (its folder) to an empty folder; returns what it wrote and how many."""

LAYOUTS: Mapping[str, Writer] = {
    "ade20k": write_ade20k,
    "voc2012": write_voc2012,
    "cityscapes": write_cityscapes,
    "nyuv2": write_nyuv2,
    "kitti": write_kitti,
    "ssv2": write_ssv2,
    "kinetics": write_kinetics,
    "diving48": write_diving48,
    "imagenet": write_imagenet,
    "epic": write_epic,
    "davis": write_davis,
    "youtube_vos": write_youtube_vos,
}
ALL = "all"


def check_layouts(names: tuple[str, ...]) -> list[str]:
    """The requested layouts, each once; "all" requests every one.

    Raises:
        ConfigError: a name is unknown.
    """
    for name in names:
        if name != ALL and name not in LAYOUTS:
            raise ConfigError(f"unknown layout {name!r}; expected {ALL} or one of {', '.join(sorted(LAYOUTS))}")
    return sorted(LAYOUTS) if ALL in names else list(dict.fromkeys(names))


def write_layout(root: Path, name: str) -> Mapping[str, int]:
    """Write a sample set in a layout, as ROOT/layouts/NAME, which is renamed into place when it is complete.

    Args:
        root: folder of a rendered sample set.
        name: one of `LAYOUTS`.

    Returns:
        What was written and how many; empty if the layout existed.

    Raises:
        MissingFileError: there is no sample set.
        FileError: the layout cannot be written.
    """
    read_description(root)
    out = root / "layouts" / name
    return write_directory_once(out, lambda partial: LAYOUTS[name](root, partial), "choose another FOLDER") or {}
