"""ELAN annotation files (.eaf), by the schema EAFv3.0 of the Max Planck Institute for Psycholinguistics.

The label of an annotation is its value, or the name of its tier if the value is empty. Annotations of all tiers that
have times of their own are read.
"""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from urllib.parse import unquote
from xml.etree.ElementTree import Element

from tubelet.data.file_types import MEDIA_SUFFIXES
from tubelet.errors import DataError
from tubelet.io.xml_files import read_xml
from tubelet.labels.build import find_media, is_file
from tubelet.labels.formats.annotation_format import AnnotationFormat, LabelTableBuilder
from tubelet.labels.records import LabelTable

_REMEDY = "save it again in ELAN"


class ElanFile(AnnotationFormat):
    """One annotated recording."""

    name = "ELAN"
    suffixes = (".eaf",)

    @staticmethod
    def detect(path: Path) -> bool:
        return True

    @staticmethod
    def read(path: Path) -> LabelTable:
        root = read_xml(path, "ANNOTATION_DOCUMENT", _REMEDY)
        builder = LabelTableBuilder(path)
        header = root.find("HEADER")
        if header is None or header.get("TIME_UNITS", "milliseconds") != "milliseconds":
            raise DataError(f"{path}: has no header with times in milliseconds; {_REMEDY}")
        media, origin_ms = _media(header, path, builder)
        times = {slot.get("TIME_SLOT_ID", ""): _milliseconds(slot.get("TIME_VALUE")) for slot in root.iter("TIME_SLOT")}
        line = 0
        for tier in root.iter("TIER"):
            builder.unused["annotations without times of their own"] += len(list(tier.iter("REF_ANNOTATION")))
            annotations = list(tier.iter("ALIGNABLE_ANNOTATION"))
            pairs = [(each.get("TIME_SLOT_REF1", ""), each.get("TIME_SLOT_REF2", "")) for each in annotations]
            slot_times = times | _spread(pairs, times)
            for annotation, slots in zip(annotations, pairs, strict=True):
                line += 1
                start, end = (slot_times.get(slot) for slot in slots)
                if start is None or end is None:
                    builder.fault(line, f"its time slots {' and '.join(slots)} have no times")
                    continue
                label = (annotation.findtext("ANNOTATION_VALUE") or "").strip() or tier.get("TIER_ID", "")
                begin_s, end_s = ((time + origin_ms) / 1000 for time in (start, end))
                builder.add_span(line, media, begin_s, end_s, (label,))
        return builder.table("ELAN")


def _media(header: Element, path: Path, builder: LabelTableBuilder) -> tuple[Path | None, float]:
    """The first video, and the milliseconds of it that the annotations' time 0 is at."""
    videos = []
    for descriptor in header.iter("MEDIA_DESCRIPTOR"):
        names = [descriptor.get("RELATIVE_MEDIA_URL", ""), descriptor.get("MEDIA_URL", "")]
        candidates = [find_media(each, path.parent) for name in names if name for each in (unquote(name), name)]
        candidates = [each for each in candidates if each.suffix.lower() in MEDIA_SUFFIXES]
        if candidates:
            file = next((each for each in candidates if is_file(each)), candidates[0])
            videos.append((file, float(_milliseconds(descriptor.get("TIME_ORIGIN")) or 0)))
    if not videos:
        builder.fault(0, "the header names no video")
        return None, 0.0
    builder.unused["further videos of the same recording"] += len(videos) - 1
    return videos[0]


def _milliseconds(text: str | None) -> int | None:
    return int(text) if text and text.isascii() and text.isdigit() and len(text) < 16 else None


def _spread(pairs: Sequence[tuple[str, str]], times: dict[str, int | None]) -> dict[str, int | None]:
    """Times of the slots of a tier that have none: even between the neighbors that have."""
    slots: list[str] = []
    for pair in pairs:
        slots += [slot for slot in pair if not slots or slots[-1] != slot]
    anchors = [index for index, slot in enumerate(slots) if times.get(slot) is not None]
    interpolated: dict[str, int | None] = {}
    for before, after in pairwise(anchors):
        begin, end = times[slots[before]], times[slots[after]]
        if begin is not None and end is not None:
            for index in range(before + 1, after):
                interpolated[slots[index]] = round(begin + (end - begin) * (index - before) / (after - before))
    return interpolated
