"""Policies worth having: import direction, no dead config field, no file that needs a table of contents."""

import ast
import dataclasses
import re
from pathlib import Path

import pytest

from tubelet import config

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "tubelet"
FILES = sorted(path.relative_to(SOURCE).as_posix() for path in SOURCE.rglob("*.py"))
# Floor by floor, and on a floor room by room: a file imports from floors below, or from earlier files of its own room.
FLOORS = [
    [["types.py", "values.py", "files.py", "hidden.py", "readers.py", "array_files.py", "launch.py", "outputs.py"]],
    [
        [
            "config/fields.py",
            "config/model.py",
            "config/data.py",
            "config/train.py",
            "config/recipes.py",
            "config/tools.py",
        ]
    ],
    [["device.py"], ["console.py"]],
    [
        [
            "data/workers.py",
            "data/jobs.py",
            "data/prefetch.py",
            "data/bad_files.py",
            "data/limits.py",
            "data/storage.py",
            "data/suffixes.py",
            "data/containers.py",
            "data/video/claims.py",
            "data/video/timestamps.py",
            "data/video/leading.py",
            "data/video/display.py",
            "data/video/color.py",
            "data/video/deinterlace.py",
            "data/video/image.py",
            "data/video/sequential.py",
            "data/video/stream.py",
            "data/video/reader.py",
            "data/decode.py",
            "data/images.py",
            "data/indexed.py",
            "data/shards.py",
            "data/tables.py",
            "data/lists.py",
            "data/paths.py",
            "data/manifest.py",
            "data/sources.py",
            "data/clips.py",
            "data/masks.py",
            "data/pool.py",
            "data/mix.py",
            "data/division.py",
            "data/loader.py",
            "data/cut.py",
            "data/make_shards.py",
        ],
        [
            "model/rope.py",
            "model/attention.py",
            "model/layers.py",
            "model/tokenizer.py",
            "model/encoder.py",
            "model/predictor.py",
            "model/lora.py",
        ],
    ],
    [
        [
            "sample_data/level.py",
            "sample_data/truth.py",
            "sample_data/plan.py",
            "sample_data/tracks.py",
            "sample_data/supervisor.py",
            "sample_data/engine.py",
            "sample_data/render.py",
            "sample_data/media.py",
            "sample_data/write.py",
            "sample_data/__init__.py",
            "sample_data/layouts/labels.py",
            "sample_data/layouts/ssv2.py",
            "sample_data/layouts/kinetics.py",
            "sample_data/layouts/diving48.py",
            "sample_data/layouts/frames.py",
            "sample_data/layouts/imagenet.py",
            "sample_data/layouts/epic.py",
            "sample_data/layouts/objects.py",
            "sample_data/layouts/davis.py",
            "sample_data/layouts/youtube_vos.py",
            "sample_data/layouts/ade20k.py",
            "sample_data/layouts/voc2012.py",
            "sample_data/layouts/cityscapes.py",
            "sample_data/layouts/nyuv2.py",
            "sample_data/layouts/kitti.py",
            "sample_data/layouts/__init__.py",
        ],
    ],
    [["objective.py"]],
    [["vjepa.py"]],
    [["released.py", "released_2_0.py"]],
    [["parts.py", "resharding.py", "checkpoint.py"]],
    [
        [
            "pretrained/features.py",
            "pretrained/inputs.py",
            "pretrained/windows.py",
            "pretrained/sources.py",
            "pretrained/weights.py",
            "pretrained/hub.py",
            "pretrained/backbone.py",
            "pretrained/convert.py",
            "pretrained/export.py",
        ],
    ],
    [
        [
            "train/schedules.py",
            "train/signals.py",
            "train/parallel.py",
            "train/sharding.py",
            "train/optim.py",
            "train/monitor.py",
            "train/state.py",
            "train/saving.py",
            "train/progress.py",
            "train/float8.py",
            "train/compilation.py",
            "train/initial.py",
            "train/log.py",
            "train/guards.py",
            "train/stream.py",
            "train/step.py",
            "train/health.py",
            "train/tracing.py",
            "train/plan.py",
            "train/plan_table.py",
            "train/session.py",
            "train/loop.py",
        ],
        ["embed/table.py", "embed/clips.py", "embed/collection.py", "embed/search.py"],
        [
            "evaluate/metrics.py",
            "evaluate/frozen.py",
            "evaluate/time/correspondence.py",
            "evaluate/time/windows.py",
            "evaluate/suite/probes.py",
            "evaluate/suite/features.py",
            "evaluate/suite/comparison.py",
            "evaluate/suite/dynamics.py",
            "evaluate/suite/run.py",
            "evaluate/result.py",
            "evaluate/cache.py",
            "evaluate/extract.py",
            "evaluate/training_state.py",
            "evaluate/layouts/folders.py",
            "evaluate/layouts/labelled.py",
            "evaluate/layouts/kinetics.py",
            "evaluate/layouts/ssv2.py",
            "evaluate/layouts/diving48.py",
            "evaluate/layouts/imagenet.py",
            "evaluate/layouts/epic.py",
            "evaluate/clips/ranking.py",
            "evaluate/clips/cuts.py",
            "evaluate/clips/attentive.py",
            "evaluate/clips/sweep.py",
            "evaluate/clips/benchmarks.py",
            "evaluate/clips/answers.py",
            "evaluate/clips/classification.py",
            "evaluate/clips/pooled.py",
            "evaluate/clips/anticipation.py",
            "evaluate/time/drawing.py",
            "evaluate/time/tracking.py",
            "evaluate/layouts/pairs.py",
            "evaluate/layouts/sequences.py",
            "evaluate/layouts/davis.py",
            "evaluate/layouts/youtube_vos.py",
            "evaluate/time/jandf.py",
            "evaluate/time/propagation.py",
            "evaluate/time/vos.py",
            "evaluate/dense/colours.py",
            "evaluate/layouts/labels.py",
            "evaluate/layouts/depths.py",
            "evaluate/layouts/ade20k.py",
            "evaluate/layouts/voc2012.py",
            "evaluate/layouts/cityscapes.py",
            "evaluate/layouts/nyuv2.py",
            "evaluate/layouts/kitti.py",
            "evaluate/layouts/sample.py",
            "evaluate/dense/points.py",
            "evaluate/dense/evaluation_set.py",
            "evaluate/dense/heads.py",
            "evaluate/dense/segmentation.py",
            "evaluate/dense/depth.py",
            "evaluate/tasks.py",
        ],
    ],
    [
        [
            "view/pictures.py",
            "view/pca.py",
            "view/maps.py",
            "view/trace.py",
            "view/facts.py",
            "view/diagram.py",
            "view/scenes.py",
            "view/explain.py",
            "view/report.py",
            "view/results.py",
        ],
    ],
    [["cli/options.py"]],
    [["cli/defaults.py", "cli/runs.py"], ["cli/data.py"], ["cli/features.py"], ["cli/look.py"]],
    [["cli/__init__.py"]],
    [["__main__.py"]],
]
PLACE = {
    file: (floor, room, i)
    for floor, rooms in enumerate(FLOORS)
    for room, files in enumerate(rooms)
    for i, file in enumerate(files)
}


def imported(file):
    """Files of the package that a file imports."""
    for node in ast.walk(ast.parse((SOURCE / file).read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tubelet"):
            for alias in node.names:  # `from package import module` is an import of the module, not of the package
                yield from path_of(f"{node.module}.{alias.name}") or path_of(node.module)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                yield from path_of(alias.name)


def path_of(name):
    """The file of a module of the package, in a list that is empty for anything else."""
    package, *parts = name.split(".")
    candidates = ["/".join(parts) + ".py", "/".join([*parts, "__init__.py"])] if package == "tubelet" else []
    return [candidate for candidate in candidates if (SOURCE / candidate).exists()]


def test_every_file_has_its_place_in_the_house():
    rooms_doors = {file for file in FILES if file.endswith("__init__.py") and file not in PLACE}
    assert set(FILES) - rooms_doors == set(PLACE)


@pytest.mark.parametrize("file", sorted(PLACE))
def test_imports_go_one_way(file):
    floor, room, index = PLACE[file]
    for other in imported(file):
        if other not in PLACE:
            continue
        below = PLACE[other][0] < floor
        earlier = PLACE[other][:2] == (floor, room) and PLACE[other][2] < index
        assert below or earlier, f"{file} imports {other}"


def test_every_config_field_is_read_somewhere():
    code = "\n".join((SOURCE / file).read_text() for file in FILES)
    for kind in vars(config).values():
        if dataclasses.is_dataclass(kind):
            for field in dataclasses.fields(kind):
                assert re.search(rf"\.{field.name}\b", code), f"{kind.__name__}.{field.name} is never read"


def test_every_config_field_is_documented():
    for file in [file for file in FILES if file.startswith("config/")]:
        for node in ast.parse((SOURCE / file).read_text()).body:
            if not isinstance(node, ast.ClassDef):
                continue
            for field, doc in zip(node.body, node.body[1:], strict=False):
                if isinstance(field, ast.AnnAssign):
                    assert isinstance(doc, ast.Expr) and isinstance(doc.value, ast.Constant), (
                        f"{node.name}: {ast.unparse(field)}"
                    )


def test_every_model_preset_can_be_built_without_memory():
    import torch

    from tubelet.vjepa import VJEPA

    millions = {}
    for name in config.MODELS:
        with torch.device("meta"):
            model = VJEPA(config.model_preset(name))
        millions[name] = sum(p.numel() for p in model.student.parameters()) / 1e6
    published = {"vit-b": 80, "vit-l": 300, "vit-g": 1000, "vit-G": 2000}
    for name, size in published.items():
        assert millions[name] == pytest.approx(size, rel=0.1), name


# Who parses a format that is not media; everything else asks readers.py. What processes of this package hand to each
# other, and what the kernel reports of them, is no file of anybody's.
READERS = (
    "readers.py",
    "array_files.py",
    "data/tables.py",
    "data/lists.py",
    "data/jobs.py",
    "data/workers.py",
    "sample_data/engine.py",
    "sample_data/render.py",
)
PARSERS = re.compile(
    r"json\.loads?\(|\.read_text\(|\.read_bytes\(|np\.load\(|torch\.load\(|safe_open|load_file|\bpq\.(?!write_table)"
    r"|parquet\.Parquet|csv\.(reader|DictReader)|pickle\.loads?\(|\byaml\.|tomllib|literal_eval"
)


@pytest.mark.parametrize("file", [file for file in FILES if file not in READERS])
def test_files_that_are_not_media_are_parsed_in_one_place(file):
    found = [line.strip() for line in (SOURCE / file).read_text().splitlines() if PARSERS.search(line)]
    assert not found, f"{file} parses a file itself: use tubelet.readers"
