"""CVAT's XML, version 1.1: "CVAT for video" and "CVAT for images".

Of a video, each track gives the spans in which its object is visible, and tags on consecutive frames give one span. Of
images, polygons, ellipses and masks make a mask for segmentation; without any, tags give the classes of each image.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from math import cos, pi, sin
from pathlib import Path
from xml.etree.ElementTree import Element

from tubelet.data.file_types import VIDEO_SUFFIXES
from tubelet.errors import DataError
from tubelet.io.xml_files import read_xml
from tubelet.labels.formats.annotation_format import (
    MAX_CLASSES,
    AnnotationFormat,
    LabelTableBuilder,
    head_of,
    image_size,
    legend_of,
)
from tubelet.labels.records import LabelRow, LabelTable, MaskShape, MaskShapes

_REMEDY = 'export it again from CVAT as "CVAT for video 1.1" or "CVAT for images 1.1"'
_SHAPES = ("polygon", "mask", "ellipse")
_OTHERS = ("box", "polyline", "points", "cuboid", "skeleton")
_ELLIPSE_POINTS = 72


class CvatFile(AnnotationFormat):
    """The annotations of a task or job."""

    name = "CVAT"
    suffixes = (".xml",)

    @staticmethod
    def detect(path: Path) -> bool:
        return "<annotations" in head_of(path)

    @staticmethod
    def read(path: Path) -> LabelTable:
        root = read_xml(path, "annotations", _REMEDY)
        if (version := root.findtext("version", "1.1")) != "1.1":
            raise DataError(f"{path}: has version {version!r:.20}, expected 1.1; {_REMEDY}")
        meta = root.find("meta")
        if meta is None:
            raise DataError(f"{path}: has no <meta>; {_REMEDY}")
        if meta.find("project") is not None:
            raise DataError(f"{path}: is the export of a project, expected that of a task; export each task of it")
        builder = LabelTableBuilder(path)
        source = next((each.text.strip() for each in meta.iter("source") if each.text and each.text.strip()), "")
        tracks, images = root.findall("track"), root.findall("image")
        if tracks:
            _add_tracks(builder, tracks, source)
            return builder.table("CVAT for video")
        names = [name.strip() for label in meta.iter("label") if (name := label.findtext("name"))]
        legend = legend_of(list(dict.fromkeys(names)))
        if any(image.find(kind) is not None for image in images for kind in _SHAPES):
            if len(legend) > MAX_CLASSES + 1:
                raise DataError(f"{path}: has {len(legend) - 1} labels, expected at most {MAX_CLASSES} for masks")
            indices = {name: index for index, name in legend.items()}
            for line, image in enumerate(images, 1):
                _add_mask(builder, line, image, indices, source)
            return builder.table("CVAT for images", legend)
        if Path(source).suffix.lower() in VIDEO_SUFFIXES:
            _add_frame_tags(builder, images, source, _frame_step(meta))
        else:
            _add_image_tags(builder, images)
        return builder.table("CVAT for images")


def _integer(element: Element, name: str) -> int | None:
    text = element.get(name, "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else None


def _frame_step(meta: Element) -> int:
    """From how many frames one is annotated; `frame_filter` is "step=5"."""
    text = next((each.text or "" for each in meta.iter("frame_filter")), "")
    digits = text.partition("step=")[2].split()
    return int(digits[0]) if digits and digits[0].isascii() and digits[0].isdigit() and int(digits[0]) else 1


def _add_span(builder: LabelTableBuilder, line: int, media: Path | None, first: int, last: int, label: str) -> None:
    if media is not None:
        builder.rows.append(LabelRow(line=line, path=media, start_frame=first, end_frame=last, labels=(label,)))


def _add_tracks(builder: LabelTableBuilder, tracks: Sequence[Element], source: str) -> None:
    """The spans of frames in which the object of each track is visible.

    A shape holds until the next one that is listed; the last one holds for its frame.
    """
    media = builder.media(0, source)
    for line, track in enumerate(tracks, 1):
        label = track.get("label", "").strip()
        shapes = [(_integer(shape, "frame"), shape.get("outside") == "1") for shape in track if shape.get("frame")]
        if not label or any(frame is None for frame, _ in shapes):
            builder.fault(line, f"the track of {label!r:.60} has no label, or a frame that is no number")
            continue
        first, last = None, 0
        for frame, outside in sorted((frame or 0, outside) for frame, outside in shapes):
            if outside and first is not None:
                _add_span(builder, line, media, first, frame, label)
                first = None
            elif not outside and first is None:
                first = frame
            last = frame
        if first is not None:
            _add_span(builder, line, media, first, last + 1, label)


def _add_frame_tags(builder: LabelTableBuilder, images: Sequence[Element], source: str, step: int) -> None:
    """The spans of frames of a video that have a tag; the id of an image is the number of its frame."""
    media = builder.media(0, source)
    frames: dict[str, list[int]] = defaultdict(list)
    for line, image in enumerate(images, 1):
        _count_others(builder, image)
        frame = _integer(image, "id")
        if frame is None:
            builder.fault(line, f"the image {image.get('name', '')!r:.60} has no number")
            continue
        for tag in image.findall("tag"):
            frames[tag.get("label", "")].append(frame)
    line = 0
    for label, numbers in frames.items():
        first = before = None
        for frame in [*sorted(set(numbers)), None]:
            if before is not None and first is not None and (frame is None or frame > before + step):
                line += 1
                _add_span(builder, line, media, first, before + step, label)
                first = None
            first = frame if first is None else first
            before = frame


def _add_image_tags(builder: LabelTableBuilder, images: Sequence[Element]) -> None:
    for line, image in enumerate(images, 1):
        _count_others(builder, image)
        labels = tuple(dict.fromkeys(tag.get("label", "") for tag in image.findall("tag")))
        media = builder.media(line, image.get("name"), [builder.path.parent / "images"])
        if not labels:
            builder.unused["images without tags"] += 1
        elif media is not None:
            builder.rows.append(LabelRow(line=line, path=media, labels=labels))


def _count_others(builder: LabelTableBuilder, image: Element) -> None:
    for kind in _OTHERS:
        builder.unused[f"shapes of the kind {kind}"] += len(image.findall(kind))


def _add_mask(builder: LabelTableBuilder, line: int, image: Element, indices: Mapping[str, int], source: str) -> None:
    """The mask of an image or of a frame of a video, by z_order and then by the order in the file."""
    _count_others(builder, image)
    of_video = Path(source).suffix.lower() in VIDEO_SUFFIXES
    media = builder.media(line, source if of_video else image.get("name"), [builder.path.parent / "images"])
    frame = _integer(image, "id") if of_video else None
    size = image_size(_integer(image, "height"), _integer(image, "width"))
    if size is None:
        builder.fault(line, f"the image {image.get('name', '')!r:.60} has no width and height")
        return
    shapes = []
    for element in sorted((each for each in image if each.tag in _SHAPES), key=_z_order):
        try:
            shapes.append(_shape(element, indices, *size))
        except ValueError as error:
            builder.fault(line, f"a {element.tag} of {image.get('name', '')!r:.60} {error}")
    if not shapes:
        builder.unused["images without polygons, ellipses and masks"] += 1
    elif media is not None:
        mask = MaskShapes(size=size, shapes=tuple(shapes))
        builder.rows.append(LabelRow(line=line, path=media, start_frame=frame, mask=mask))


def _z_order(element: Element) -> int:
    text = element.get("z_order", "")
    digits = text.removeprefix("-")
    return int(text) if digits.isascii() and digits.isdigit() and len(digits) < 10 else 0


def _shape(element: Element, indices: Mapping[str, int], height: int, width: int) -> MaskShape:
    """A shape of an image.

    Raises:
        ValueError: says what is wrong with it, without its name.
    """
    label = element.get("label", "").strip()
    if label not in indices:
        raise ValueError(f"has the label {label!r:.60}, which the task does not have")
    index = indices[label]
    if element.tag == "ellipse":
        x, y, rx, ry = (float(element.get(name, "")) for name in ("cx", "cy", "rx", "ry"))
        angles = [2 * pi * step / _ELLIPSE_POINTS for step in range(_ELLIPSE_POINTS)]
        points = tuple(value for a in angles for value in (x + rx * cos(a), y + ry * sin(a)))
        return MaskShape(index=index, polygons=(points,))
    if element.tag == "polygon":
        points = tuple(float(value) for pair in element.get("points", "").split(";") for value in pair.split(","))
        if len(points) < 6 or len(points) % 2 or not all(abs(value) < 1e7 for value in points):
            raise ValueError("has fewer than three points, or one that is not in the image")
        return MaskShape(index=index, polygons=(points,))
    left, top, wide, high = (int(float(element.get(name, ""))) for name in ("left", "top", "width", "height"))
    runs = tuple(int(run) for run in element.get("rle", "").split(","))
    if min(left, top, wide, high, *runs) < 0 or left + wide > width or top + high > height or sum(runs) > wide * high:
        raise ValueError(f"has runs of {sum(runs)} pixels in a box of {wide} x {high} at ({left}, {top})")
    return MaskShape(index=index, runs=runs, box=(left, top, wide, high))
