"""VIA, the VGG Image Annotator: projects of version 3 (JSON, CSV) and regions of version 2 (JSON, CSV).

Of version 3, temporal segments are spans, and annotations of a file without a time are about the whole file. Of both
versions, polygons, circles and ellipses of images make a mask for segmentation. The class is the attribute called
label or class, or the only attribute.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from math import cos, pi, sin
from pathlib import Path
from typing import Any

from tubelet.data.file_types import IMAGE_SUFFIXES
from tubelet.data.tables import decode_list, parse_table
from tubelet.datasets.annotations import image_shape
from tubelet.errors import DataError, DecodeError
from tubelet.io.text import parse_json, read_bytes, read_json
from tubelet.labels.formats.annotation_format import (
    MAX_CLASSES,
    AnnotationFormat,
    LabelTableBuilder,
    chosen_attribute,
    head_of,
    legend_of,
)
from tubelet.labels.records import LabelRow, LabelTable, MaskShape, MaskShapes

_REMEDY = "save it again in VIA"
_CSV_HEADER = "# CSV_HEADER = "
_ATTRIBUTES = ("# ATTRIBUTE = ", "# ATTRIBUTES = ")
# Numbers of shapes of version 3.
_CIRCLE, _ELLIPSE, _POLYGON = 3, 4, 7
_CHECKBOX, _OPTIONS = 2, (2, 3, 4)
_OUTLINE_POINTS = 72
_Region = tuple[int, str, tuple[float, ...]]


class Via3Project(AnnotationFormat):
    """A project of version 3."""

    name = "VIA 3"
    suffixes = (".json",)

    @staticmethod
    def detect(path: Path) -> bool:
        head = head_of(path)
        return '"vid_list"' in head or '"data_format_version"' in head

    @staticmethod
    def read(path: Path) -> LabelTable:
        project = read_json(path, dict[str, Any], _REMEDY)
        attributes, files, views, metadata = (
            _named(project, key, path) for key in ("attribute", "file", "view", "metadata")
        )
        reader = _Via3Reader(path, attributes)
        for line, each in enumerate(metadata.values(), 1):
            view = views.get(str(each.get("vid"))) if isinstance(each, dict) else None
            ids = view.get("fid_list") if isinstance(view, dict) else None
            file = files.get(str(ids[0])) if isinstance(ids, list) and ids else None
            if not isinstance(file, dict):
                reader.builder.fault(line, "belongs to no file of the project")
                continue
            name = file.get("fname") or file.get("src")
            reader.add(line, name, each.get("z"), each.get("xy"), each.get("av"))
        return reader.table("VIA 3 project")


class Via3Csv(AnnotationFormat):
    """A table that version 3 exports."""

    name = "VIA 3 CSV"
    suffixes = (".csv",)

    @staticmethod
    def detect(path: Path) -> bool:
        return _CSV_HEADER in head_of(path)

    @staticmethod
    def read(path: Path) -> LabelTable:
        lines = decode_list(read_bytes(path), path).split("\n")
        at = next((i for i, line in enumerate(lines) if line.startswith(_CSV_HEADER)), -1)
        if at < 0:
            raise DataError(f"{path}: has no line {_CSV_HEADER.strip()!r}; {_REMEDY}")
        text = next((line.split("=", 1)[1] for line in lines if line.startswith(_ATTRIBUTES)), "{}")
        reader = _Via3Reader(path, parse_json(text, path, dict[str, Any], _REMEDY))
        # Blank lines keep the numbers of the lines.
        content = [*[""] * at, lines[at].removeprefix(_CSV_HEADER), *lines[at + 1 :]]
        table = parse_table("\n".join(content).encode(), path, ("file_list", "temporal_coordinates", "metadata"))
        reader.builder.faults += [(line, f"line {line} {fault}") for line, fault in table.faults]
        for line, row in table.rows:
            try:
                names, times, shape, values = (
                    parse_json(row.get(name) or "null", f"line {line}", remedy=_REMEDY)
                    for name in ("file_list", "temporal_coordinates", "spatial_coordinates", "metadata")
                )
            except DataError as error:
                reader.builder.faults.append((line, str(error)))
                continue
            reader.add(line, names[0] if isinstance(names, list) and names else None, times, shape, values)
        return reader.table("VIA 3 CSV")


class _Via3Reader:
    """Annotations of version 3 to rows."""

    def __init__(self, path: Path, attributes: Mapping[str, Any]) -> None:
        self.builder = LabelTableBuilder(path)
        # The older CSV has only the names of the attributes.
        self.attributes = {
            key: each if isinstance(each, dict) else {"aname": str(each)} for key, each in attributes.items()
        }
        self.regions: dict[Path, list[_Region]] = defaultdict(list)

    def add(self, line: int, name: object, times: object, shape: object, values: object) -> None:
        """Add an annotation: name of the file, seconds, shape number and coordinates, and values of attributes."""
        labels = self._labels(line, values)
        media = self.builder.media(line, name)
        if media is None or labels is None:
            return
        times, shape = (each if isinstance(each, list) else [] for each in (times, shape))
        if shape and media.suffix.lower() in IMAGE_SUFFIXES:
            outline = _outline3(shape)
            if outline is None or len(labels) != 1:
                self.builder.unused["regions that are no polygon, circle or ellipse of one class"] += 1
            else:
                self.regions[media].append((line, labels[0], outline))
        elif shape:
            self.builder.unused["regions in videos"] += 1
        elif len(times) in (1, 2):
            self.builder.add_span(line, media, times[0], times[1] if len(times) == 2 else None, labels)
        elif times:
            self.builder.fault(line, f"has the times {times!r:.60}, expected a start and an end")
        else:
            self.builder.rows.append(LabelRow(line=line, path=media, labels=labels))

    def _labels(self, line: int, values: object) -> tuple[str, ...] | None:
        if not isinstance(values, dict) or not values:
            self.builder.unused["annotations without a value"] += 1
            return None
        names = {str(self.attributes.get(key, {}).get("aname", key)): key for key in values}
        name = chosen_attribute(names)
        if name is None:
            listed = ", ".join(names)
            self.builder.fault(line, f"has the attributes {listed}; call the one with the classes label")
            return None
        attribute = self.attributes.get(names[name], {})
        value, options = str(values[names[name]]).strip(), attribute.get("options")
        chosen = value.split(",") if attribute.get("type") == _CHECKBOX else [value]
        if isinstance(options, dict) and attribute.get("type") in _OPTIONS:
            chosen = [str(options.get(each.strip(), each)) for each in chosen]
        labels = tuple(dict.fromkeys(each.strip() for each in chosen if each.strip()))
        if not labels:
            self.builder.unused["annotations without a value"] += 1
        return labels or None

    def table(self, form: str) -> LabelTable:
        return _table(self.builder, self.regions, form)


class Via2Json(AnnotationFormat):
    """A project of version 2, or the regions that it exports as JSON."""

    name = "VIA 2"
    suffixes = (".json",)

    @staticmethod
    def detect(path: Path) -> bool:
        head = head_of(path)
        return '"_via_img_metadata"' in head or ('"regions"' in head and '"file_attributes"' in head)

    @staticmethod
    def read(path: Path) -> LabelTable:
        data = read_json(path, dict[str, Any], _REMEDY)
        images = data.get("_via_img_metadata", data)
        if not isinstance(images, dict):
            raise DataError(f"{path}: its _via_img_metadata is no object; {_REMEDY}")
        builder = LabelTableBuilder(path)
        regions: dict[Path, list[_Region]] = defaultdict(list)
        for line, image in enumerate(images.values(), 1):
            if not isinstance(image, dict):
                builder.fault(line, f"is {image!r:.60}, expected an object")
                continue
            media = builder.media(line, image.get("filename"))
            _add_file(builder, line, media, image.get("file_attributes"))
            listed = image.get("regions")
            listed = list(listed.values()) if isinstance(listed, dict) else listed
            for region in listed if isinstance(listed, list) else []:
                attributes = region if isinstance(region, dict) else {}
                shape, values = (attributes.get(f"{kind}_attributes") for kind in ("shape", "region"))
                _add_region(builder, regions, line, media, shape, values)
        return _table(builder, regions, "VIA 2 JSON")


class Via2Csv(AnnotationFormat):
    """The regions that version 2 exports as CSV."""

    name = "VIA 2 CSV"
    suffixes = (".csv",)

    @staticmethod
    def detect(path: Path) -> bool:
        return "region_shape_attributes" in head_of(path).split("\n", 1)[0]

    @staticmethod
    def read(path: Path) -> LabelTable:
        text = decode_list(read_bytes(path), path).lstrip("\ufeff").removeprefix("#")
        columns = ("filename", "file_attributes", "region_shape_attributes", "region_attributes")
        table = parse_table(text.encode(), path, columns)
        if missing := [name for name in columns if name not in table.header]:
            raise DataError(f"{path}: has no column {', '.join(missing)}; {_REMEDY}")
        builder = LabelTableBuilder(path)
        builder.faults += [(line, f"line {line} {fault}") for line, fault in table.faults]
        regions: dict[Path, list[_Region]] = defaultdict(list)
        seen: set[Path] = set()
        for line, row in table.rows:
            try:
                file, shape, values = (
                    parse_json(row[name] or "{}", f"line {line}", remedy=_REMEDY) for name in columns[1:]
                )
            except DataError as error:
                builder.faults.append((line, str(error)))
                continue
            media = builder.media(line, row["filename"])
            if media is not None and media not in seen:
                seen.add(media)
                _add_file(builder, line, media, file)
            if shape:
                _add_region(builder, regions, line, media, shape, values)
        return _table(builder, regions, "VIA 2 CSV")


def _named(project: Mapping[str, Any], key: str, path: Path) -> dict[str, Any]:
    value = project.get(key)
    if not isinstance(value, dict):
        raise DataError(f"{path}: has no object {key!r}; {_REMEDY}")
    return value


def _values2(builder: LabelTableBuilder, line: int, values: object) -> tuple[str, ...]:
    """The classes in attributes of version 2; a checkbox has an object of options that are true."""
    filled = {str(name): value for name, value in values.items() if value} if isinstance(values, dict) else {}
    if not filled:
        return ()
    name = chosen_attribute(filled)
    if name is None:
        builder.fault(line, f"has the attributes {', '.join(filled)}; call the one with the classes label")
        return ()
    value = filled[name]
    return tuple(key for key, chosen in value.items() if chosen) if isinstance(value, dict) else (str(value).strip(),)


def _add_file(builder: LabelTableBuilder, line: int, media: Path | None, values: object) -> None:
    labels = _values2(builder, line, values)
    if labels and media is not None:
        builder.rows.append(LabelRow(line=line, path=media, labels=labels))


def _add_region(
    builder: LabelTableBuilder,
    regions: dict[Path, list[_Region]],
    line: int,
    media: Path | None,
    shape: object,
    values: object,
) -> None:
    labels = _values2(builder, line, values)
    outline = _outline2(shape) if isinstance(shape, dict) else None
    if outline is None or len(labels) != 1:
        builder.unused["regions that are no polygon, circle or ellipse of one class"] += 1
    elif media is not None:
        regions[media].append((line, labels[0], outline))


def _outline3(shape: Sequence[object]) -> tuple[float, ...] | None:
    """The polygon of a shape of version 3: its number, then its coordinates."""
    numbers = [float(value) for value in shape if isinstance(value, (int, float)) and abs(value) < 1e7]
    if len(numbers) < len(shape):
        return None
    kind, points = int(numbers[0]), numbers[1:]
    if kind == _POLYGON and len(points) >= 6 and len(points) % 2 == 0:
        return tuple(points)
    if kind == _CIRCLE and len(points) == 3:
        return _ellipse(points[0], points[1], points[2], points[2])
    if kind == _ELLIPSE and len(points) >= 4:
        return _ellipse(*points[:4])
    return None


def _outline2(shape: Mapping[str, Any]) -> tuple[float, ...] | None:
    """The polygon of a shape of version 2."""
    kind = shape.get("name")
    try:
        if kind == "polygon":
            pairs = zip(shape["all_points_x"], shape["all_points_y"], strict=True)
            points = tuple(float(value) for pair in pairs for value in pair)
        elif kind in ("circle", "ellipse"):
            x, y = float(shape["cx"]), float(shape["cy"])
            rx, ry = (float(shape["r"]),) * 2 if kind == "circle" else (float(shape["rx"]), float(shape["ry"]))
            points = _ellipse(x, y, rx, ry, float(shape.get("theta", 0)))
        else:
            return None
    except (KeyError, TypeError, ValueError):
        return None
    return points if len(points) >= 6 and all(abs(value) < 1e7 for value in points) else None


def _ellipse(x: float, y: float, rx: float, ry: float, angle: float = 0.0) -> tuple[float, ...]:
    points: list[float] = []
    for step in range(_OUTLINE_POINTS):
        across, along = rx * cos(2 * pi * step / _OUTLINE_POINTS), ry * sin(2 * pi * step / _OUTLINE_POINTS)
        points += [x + across * cos(angle) - along * sin(angle), y + across * sin(angle) + along * cos(angle)]
    return tuple(points)


def _table(builder: LabelTableBuilder, regions: Mapping[Path, Iterable[_Region]], form: str) -> LabelTable:
    """The table; the regions of an image become its mask, and labels of whole files are then not used."""
    if not regions:
        return builder.table(form)
    names = sorted({label for each in regions.values() for _, label, _ in each})
    if len(names) > MAX_CLASSES:
        raise DataError(f"{builder.path}: has {len(names)} classes of regions, expected at most {MAX_CLASSES}")
    legend = legend_of(names)
    indices = {name: index for index, name in legend.items()}
    builder.unused["labels of whole files, next to regions,"] += len(builder.rows)
    builder.rows = []
    for media, each in regions.items():
        shapes = tuple(MaskShape(index=indices.get(label, 0), polygons=(points,)) for _, label, points in each)
        line = min(number for number, _, _ in each)
        try:
            size = image_shape(media)
        except DecodeError:  # `check_labels` reports the file
            size = (0, 0)
        builder.rows.append(LabelRow(line=line, path=media, mask=MaskShapes(size=size, shapes=shapes)))
    return builder.table(form, legend)
