"""COCO's instances: polygons and run-length encoded masks of images, as JSON.

The mask of an image has the class of each pixel: 0 is the background, and categories have the indices from 1 on, in
the order of their ids. Smaller regions are drawn over larger ones.
"""

from collections import defaultdict
from pathlib import Path
from typing import Any

from tubelet.errors import DataError
from tubelet.io.text import read_json
from tubelet.labels.formats.annotation_format import (
    MAX_CLASSES,
    AnnotationFormat,
    LabelTableBuilder,
    head_of,
    image_size,
    legend_of,
)
from tubelet.labels.masks import decode_coco_runs
from tubelet.labels.records import LabelRow, LabelTable, MaskShape, MaskShapes

_REMEDY = "export the instances again"
_HINTS = ("info", "licenses", "segmentation", "file_name")


class CocoInstances(AnnotationFormat):
    """The instances of a set of images."""

    name = "COCO"
    suffixes = (".json",)

    @staticmethod
    def detect(path: Path) -> bool:
        head = head_of(path)
        keys = [f'"{name}"' in head for name in ("images", "annotations", "categories", *_HINTS)]
        return head.lstrip("\ufeff \r\n\t").startswith("{") and sum(keys[:3]) + any(keys[3:]) >= 2

    @staticmethod
    def read(path: Path) -> LabelTable:
        data = read_json(path, dict[str, Any], _REMEDY)
        images, annotations, categories = (
            _objects(data, name, path) for name in ("images", "annotations", "categories")
        )
        ordered = sorted(categories, key=lambda each: each.get("id", 0) if isinstance(each.get("id"), int) else 0)
        names = [str(each.get("name", "")).strip() for each in ordered]
        if len(ordered) > MAX_CLASSES or len(set(names)) < len(names) or not all(names):
            summary = f"{len(ordered)} categories, {len(set(names))} of them with names of their own"
            raise DataError(f"{path}: has {summary}, expected at most {MAX_CLASSES} that all differ; {_REMEDY}")
        legend = legend_of(names)
        index_of = {name: index for index, name in legend.items()}
        indices = {
            each.get("id"): index_of.get(name, 0 if name.lower() == legend[0] else -1)
            for each, name in zip(ordered, names, strict=True)
            if _is_key(each.get("id"))
        }
        builder = LabelTableBuilder(path)
        shapes = _shapes(builder, annotations, images, indices)
        folder = path.parent.parent / path.stem.removeprefix("instances_")
        folders = [path.parent / "images", path.parent.parent / "images", folder, path.parent.parent]
        for line, image in enumerate(images, 1):
            media = builder.media(line, image.get("file_name"), folders)
            size = image_size(image.get("height"), image.get("width"))
            if size is None:
                builder.fault(line, f"the image {image.get('file_name')!r:.60} has no height and width")
            elif media is not None:
                image_shapes = shapes.get(image["id"], []) if _is_key(image.get("id")) else []
                drawn = [shape for _, shape in sorted(image_shapes, key=lambda pair: -pair[0])]
                mask = MaskShapes(size=size, shapes=tuple(drawn))
                builder.rows.append(LabelRow(line=line, path=media, mask=mask))
        return builder.table("COCO instances", legend)


def _objects(data: dict[str, Any], name: str, path: Path) -> list[dict[str, Any]]:
    entries = data.get(name)
    if not isinstance(entries, list) or not all(isinstance(each, dict) for each in entries):
        raise DataError(f"{path}: has no list of {name}; {_REMEDY}")
    return entries


def _shapes(
    builder: LabelTableBuilder,
    annotations: list[dict[str, Any]],
    images: list[dict[str, Any]],
    indices: dict[object, int],
) -> dict[object, list[tuple[float, MaskShape]]]:
    """Area and shape of each annotation by the id of its image."""
    sizes = {
        image["id"]: image_size(image.get("height"), image.get("width")) for image in images if _is_key(image.get("id"))
    }
    shapes: dict[object, list[tuple[float, MaskShape]]] = defaultdict(list)
    for line, annotation in enumerate(annotations, 1):
        image, category = annotation.get("image_id"), annotation.get("category_id")
        if not _is_key(image) or image not in sizes:
            builder.faults.append(
                (line, f"annotations[{line - 1}]: image_id is {image!r:.40}, which images do not have")
            )
        elif not _is_key(category) or category not in indices:
            fault = f"annotations[{line - 1}]: category_id is {category!r:.40}, which categories do not have"
            builder.faults.append((line, fault))
        else:
            try:
                shape = _shape(annotation.get("segmentation"), indices[category], sizes[image])
                area = annotation.get("area", 0)
                shapes[image].append((float(area) if isinstance(area, (int, float)) else 0.0, shape))
            except ValueError as error:
                builder.faults.append((line, f"annotations[{line - 1}]: segmentation {error}"))
    return shapes


def _is_key(value: object) -> bool:
    return isinstance(value, (int, str))


def _shape(segmentation: object, index: int, size: tuple[int, int] | None) -> MaskShape:
    """A region of one class.

    Raises:
        ValueError: says what is wrong with it.
    """
    if size is None:
        raise ValueError("is of an image without height and width")
    if isinstance(segmentation, dict):
        counts, given = segmentation.get("counts"), segmentation.get("size")
        if given != list(size):
            raise ValueError(f"has the size {given!r:.40}, its image {list(size)!r:.40}")
        runs = decode_coco_runs(counts) if isinstance(counts, str) else counts
        if not isinstance(runs, (list, tuple)) or not all(isinstance(run, int) and run >= 0 for run in runs):
            raise ValueError(f"has counts {counts!r:.40}, expected numbers of pixels")
        height, width = size
        if sum(runs) != height * width:
            raise ValueError(f"has runs of {sum(runs)} pixels, its image {height * width}")
        return MaskShape(index=index, runs=tuple(runs), box=(0, 0, width, height), by_column=True)
    if not isinstance(segmentation, list) or not segmentation:
        raise ValueError("is empty, expected polygons or runs")
    polygons = []
    for polygon in segmentation:
        numbers = isinstance(polygon, list) and all(isinstance(v, (int, float)) and abs(v) < 1e7 for v in polygon)
        if not numbers or len(polygon) < 6 or len(polygon) % 2:
            raise ValueError("has a polygon of fewer than three points, or of values that are no pairs of numbers")
        polygons.append(tuple(float(value) for value in polygon))
    return MaskShape(index=index, polygons=tuple(polygons))
