"""The sample set in the layouts of public benchmarks, so that every reader of `tubelet evaluate` has files to read.

A layout has the names, folders and formats of the benchmark's official download; what lies in them is the sample set.
"""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from tubelet.errors import ConfigError
from tubelet.io.files import directory_lock, file_errors
from tubelet.sample_data.layouts import (
    ade20k,
    cityscapes,
    davis,
    diving48,
    epic,
    imagenet,
    kinetics,
    kitti,
    nyuv2,
    ssv2,
    voc2012,
    youtube_vos,
)
from tubelet.sample_data.truth import read_description

Writer = Callable[[Path, Path], Mapping[str, int]]
"""Writes a rendered sample set (its folder) to an empty folder; says how many of what it wrote."""

LAYOUTS: Mapping[str, Writer] = {
    "ade20k": ade20k.write,
    "voc2012": voc2012.write,
    "cityscapes": cityscapes.write,
    "nyuv2": nyuv2.write,
    "kitti": kitti.write,
    "ssv2": ssv2.write,
    "kinetics": kinetics.write,
    "diving48": diving48.write,
    "imagenet": imagenet.write,
    "epic": epic.write,
    "davis": davis.write,
    "youtube_vos": youtube_vos.write,
}
ALL = "all"


def check_layouts(names: tuple[str, ...]) -> list[str]:
    """The layouts that names stand for, each once; "all" is every one.

    Raises:
        ConfigError: for a name that is none.
    """
    for name in names:
        if name != ALL and name not in LAYOUTS:
            raise ConfigError(f"no layout is called {name!r}; expected {ALL} or one of {', '.join(sorted(LAYOUTS))}")
    return sorted(LAYOUTS) if ALL in names else list(dict.fromkeys(names))


def write_layout(root: Path, name: str) -> Mapping[str, int]:
    """Write a sample set in a layout, as ROOT/layouts/NAME, beside its place first and renamed when it is whole.

    Args:
        root: folder of a rendered sample set.
        name: one of `LAYOUTS`.

    Returns:
        what was written and how many of it; empty if the layout was there already.

    Raises:
        ConfigError: if there is no sample set, or the layout cannot be written.
    """
    read_description(root)
    out = root / "layouts" / name
    if out.exists():
        return {}
    partial = out.with_name(f"{name}.partial")
    with directory_lock(out.parent, f".{name}.lock", "choose another FOLDER"):
        if out.exists():  # since just now
            return {}
        with file_errors(out, "choose another FOLDER"):
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            counts = LAYOUTS[name](root, partial)
            partial.rename(out)
    return counts
