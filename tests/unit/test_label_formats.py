"""Annotation files of other programs, each as its program's documentation describes it."""

import json
import logging

import numpy as np
import pytest
from PIL import Image

from tests.helpers.annotations import BORIS, BORIS_EVENTS, CVAT, CVAT_META, ELAN, LABEL_STUDIO, VIA3, instances
from tests.helpers.commands import run_tubelet
from tests.helpers.files import put
from tests.helpers.media import write_video
from tubelet.errors import DataError, TubeletError
from tubelet.labels.checks import check_labels
from tubelet.labels.formats.annotation_format import annotation_formats
from tubelet.labels.masks import decode_coco_runs, draw_shapes, read_mask
from tubelet.labels.records import LabelError, MaskShape, MaskShapes
from tubelet.labels.table import read_labels


def spans(table):
    """(file, start, end, label) of each row; frame numbers are negative, less one."""
    return [
        (
            row.path.name,
            row.start_s if row.start_frame is None else -1 - row.start_frame,
            row.end_s if row.end_frame is None else -1 - row.end_frame,
            "|".join(row.labels),
        )
        for row in table.rows
    ]


def test_every_format_has_a_module_and_a_name():
    names = [each.name for each in annotation_formats()]
    assert len(set(names)) == len(names) == 12


# VIA


def test_via_3_project(tmp_path, caplog):
    put(tmp_path / "via.json", json.dumps(VIA3))
    with caplog.at_level(logging.WARNING, "tubelet"):
        table = read_labels(tmp_path / "via.json")
    assert table.format == "VIA 3 project" and not table.faults
    assert spans(table) == [
        ("a.mp4", 1.349, 2.741, "walk"),
        ("a.mp4", 4.633, None, "run"),
        ("b.mp4", None, None, "run"),
    ]
    assert "1 regions in videos are not used" in caplog.text


def test_via_3_csv(tmp_path):
    put(
        tmp_path / "via.csv",
        "# Exported using VGG Image Annotator (http://www.robots.ox.ac.uk/~vgg/software/via)\n"
        '# SHAPE_ID = {"POINT":1,"RECTANGLE":2}\n'
        '# ATTRIBUTE = {"1":{"aname":"label","type":3,"options":{"0":"walk"}}}\n'
        "# CSV_HEADER = metadata_id,file_list,flags,temporal_coordinates,spatial_coordinates,metadata\n"
        '"1_x","[""a.mp4""]",0,"[1.124,5.31493]","[]","{""1"":""0""}"\n'
        '"1_y","[""a.mp4""]",0,"[soon]","[]","{""1"":""0""}"\n',
    )
    table = read_labels(tmp_path / "via.csv")
    assert spans(table) == [("a.mp4", 1.124, 5.31493, "walk")] and table.rows[0].line == 5
    assert [line for line, _ in table.faults] == [6]


@pytest.mark.parametrize("kind", ["json", "csv"])
def test_via_2_regions(tmp_path, kind):
    Image.new("RGB", (8, 6)).save(tmp_path / "a.png")
    polygon = {"name": "polygon", "all_points_x": [1, 5, 5, 1], "all_points_y": [2, 2, 4, 4]}
    circle = {"name": "circle", "cx": 6.5, "cy": 4.5, "r": 1}
    regions = [
        {"shape_attributes": polygon, "region_attributes": {"label": "road"}},
        {"shape_attributes": circle, "region_attributes": {"label": "car"}},
    ]
    if kind == "json":
        image = {"filename": "a.png", "size": 99, "regions": regions, "file_attributes": {}}
        put(tmp_path / "via.json", json.dumps({"_via_settings": {}, "_via_img_metadata": {"a.png99": image}}))
    else:
        lines = ["filename,file_size,file_attributes,region_count,region_id,region_shape_attributes,region_attributes"]
        for number, region in enumerate(regions):
            cells = [json.dumps(region[f"{part}_attributes"]).replace('"', '""') for part in ("shape", "region")]
            lines.append(f'a.png,99,"{{}}",2,{number},"{cells[0]}","{cells[1]}"')
        put(tmp_path / "via.csv", "\n".join(lines))
    table = read_labels(tmp_path / f"via.{kind}")
    assert table.legend == {0: "background", 1: "car", 2: "road"}
    mask = read_mask(table.rows[0])
    assert mask.shape == (6, 8) and (mask[2:4, 1:5] == 2).all() and mask[4, 6] == 1
    assert (mask == 2).sum() == 8


def test_via_2_attributes_of_files_are_classes(tmp_path):
    images = {
        "a.png9": {"filename": "a.png", "size": 9, "regions": [], "file_attributes": {"kind": {"x": True, "y": False}}}
    }
    put(tmp_path / "via.json", json.dumps(images))
    assert spans(read_labels(tmp_path / "via.json")) == [("a.png", None, None, "x")]


# BORIS


def test_boris_project(tmp_path, caplog):
    put(tmp_path / "project.boris", json.dumps(BORIS))
    with caplog.at_level(logging.WARNING, "tubelet"):
        table = read_labels(tmp_path / "project.boris")
    assert sorted(spans(table)) == [
        ("a.mp4", 3.3, 7.75, "sleep"),
        ("a.mp4", 5.0, 10.0, "sleep"),
        ("b.mp4", 0.0, 1.5, "sleep"),
        ("b.mp4", 0.5, None, "peck"),
    ]
    assert "1 events of observations without media files" in caplog.text and "1 media files of further" in caplog.text


def test_boris_events_without_a_partner_are_faults(tmp_path):
    project = json.loads(json.dumps(BORIS))
    project["observations"]["one"]["events"].pop(1)
    put(tmp_path / "project.boris", json.dumps(project))
    table = read_labels(tmp_path / "project.boris")
    assert [fault for _, fault in table.faults] == ["annotation 1: sleep starts at 3.3 s and has no stop"]


def test_boris_aggregated_events(tmp_path):
    put(tmp_path / "events.tsv", BORIS_EVENTS)
    table = read_labels(tmp_path / "events.tsv")
    assert table.format == "BORIS events"
    assert spans(table) == [("a.mp4", 1.0, 5.0, "sleep"), ("a.mp4", 10.0, None, "peck")]
    assert [line for line, _ in table.faults] == [4]


def test_boris_tabular_events(tmp_path):
    header = (
        "Observation id,Observation date,Description,Observation duration,Observation type,Source,Time offset (s),"
        "Media duration (s),FPS,Subject,Behavior,Behavioral category,Behavior type,Time,Media file name,Image index,"
        "Image file path,Comment\n"
    )
    begin = "one,2024,,16,Media file(s),player #1:a.mp4;b.mp4,0,10.000;6.000,25;25,s1,"
    put(
        tmp_path / "events.csv",
        header + f"{begin}sleep,,START,8.5,a.mp4,NA,NA,\n{begin}sleep,,STOP,12,b.mp4,NA,NA,\n"
        f"{begin}peck,,POINT,2.25,a.mp4,NA,NA,\n",
    )
    assert sorted(spans(read_labels(tmp_path / "events.csv"))) == [
        ("a.mp4", 2.25, None, "peck"),
        ("a.mp4", 8.5, 10.0, "sleep"),
        ("b.mp4", 0.0, 2.0, "sleep"),
    ]


def test_boris_events_of_older_versions(tmp_path):
    put(
        tmp_path / "events.tsv",
        "Observation id\tone\n\nMedia file(s)\n\n"
        "Time\tMedia file path\tTotal length\tFPS\tSubject\tBehavior\tModifier 1\tComment\tStatus\n"
        "1.0\ta.mp4\t30\t25\t\twalk\tfast\t\tSTART\n2.5\ta.mp4\t30\t25\t\twalk\tfast\t\tSTOP\n"
        "3.0\ta.mp4\t30\t25\t\twalk\t\t\tSTOP\n",
    )
    table = read_labels(tmp_path / "events.tsv")
    assert spans(table) == [("a.mp4", 1.0, 2.5, "walk")] and table.rows[0].line == 6
    assert [fault for _, fault in table.faults] == ["annotation 8: walk stops at 3 s without a start"]


# ELAN


def test_elan(tmp_path, caplog):
    put(tmp_path / "a.eaf", ELAN)
    with caplog.at_level(logging.WARNING, "tubelet"):
        table = read_labels(tmp_path / "a.eaf")
    # Slots without a time are spread evenly; the annotations begin 0.5 s into the video.
    assert spans(table) == [
        ("a b.mp4", 1.5, 2.5, "walk"),
        ("a b.mp4", 2.5, 3.5, "run & jump"),
        ("a b.mp4", 3.5, 4.5, "behavior"),
    ]
    assert [fault for _, fault in table.faults] == ["annotation 4: its time slots ts4 and ts5 have no times"]
    assert "1 annotations without times of their own are not used" in caplog.text


def test_xml_with_entities_is_refused(tmp_path):
    bomb = '<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;">]>'
    put(tmp_path / "a.eaf", ELAN.replace("<ANNOTATION_DOCUMENT", f"{bomb}\n<ANNOTATION_DOCUMENT", 1))
    with pytest.raises(DataError, match="has a document type"):
        read_labels(tmp_path / "a.eaf")
    put(tmp_path / "b.eaf", "<a>" * 100)
    with pytest.raises(DataError, match="more than 64 levels"):
        read_labels(tmp_path / "b.eaf")
    put(tmp_path / "c.eaf", ELAN[:900])
    with pytest.raises(DataError, match="not well-formed"):
        read_labels(tmp_path / "c.eaf")


def test_a_folder_of_annotation_files_is_one_table(tmp_path):
    for name in ("a", "b"):
        put(tmp_path / f"{name}.eaf", ELAN.replace("a%20b", name))
    put(tmp_path / "notes.md", "not annotations")
    table = read_labels(tmp_path)
    assert len(table.rows) == 6 and {row.path.name for row in table.rows} == {"a.mp4", "b.mp4"}
    with pytest.raises(LabelError) as caught:
        check_labels(table, "timeline")
    faults = caught.value.faults
    assert "a.eaf, annotation 4: its time slots ts4 and ts5 have no times" in faults
    assert any(fault.startswith("b.eaf, annotation 1: ") and "b.mp4: does not exist" in fault for fault in faults)
    with pytest.raises(LabelError, match="no annotation file"):
        read_labels(put(tmp_path / "empty" / "notes.md").parent)


# CVAT


def test_cvat_tracks_of_a_video(tmp_path):
    def box(frame, outside):
        corners = 'xtl="1.00" ytl="1.00" xbr="2.00" ybr="2.00"'
        return f'<box frame="{frame}" keyframe="1" outside="{outside}" occluded="0" {corners} z_order="0"></box>'

    shapes = box(3, 0) + box(4, 0) + box(10, 1) + box(20, 0) + box(21, 0)
    put(
        tmp_path / "annotations.xml",
        CVAT_META.format(more="", source="a.mp4")
        + f'<track id="0" label="car" source="manual">{shapes}</track></annotations>',
    )
    table = read_labels(tmp_path / "annotations.xml")
    assert spans(table) == [("a.mp4", -4, -11, "car"), ("a.mp4", -21, -23, "car")]


def test_cvat_tags_of_frames(tmp_path):
    tagged = {0: "car", 5: "car", 10: "road", 20: "car"}
    images = [
        f'<image id="{frame}" name="frame_{frame:06d}" width="64" height="64"><tag label="{label}"></tag></image>'
        for frame, label in tagged.items()
    ]
    more = "<frame_filter>step=5</frame_filter>"
    put(tmp_path / "annotations.xml", CVAT_META.format(more=more, source="a.mp4") + "".join(images) + "</annotations>")
    table = read_labels(tmp_path / "annotations.xml")
    assert spans(table) == [("a.mp4", -1, -11, "car"), ("a.mp4", -21, -26, "car"), ("a.mp4", -11, -16, "road")]


def test_cvat_masks_of_images(tmp_path, caplog):
    shapes = (
        '<mask label="car" occluded="0" rle="1, 2, 3" left="4" top="1" width="3" height="2" z_order="1"></mask>'
        '<polygon label="road" points="0.00,0.00;6.00,0.00;6.00,3.00;0.00,3.00" z_order="0"></polygon>'
        '<box label="car" xtl="0" ytl="0" xbr="1" ybr="1" z_order="0"></box>'
        '<mask label="car" rle="9" left="4" top="1" width="3" height="2" z_order="1"></mask>'
    )
    put(
        tmp_path / "annotations.xml",
        CVAT_META.format(more="", source="")
        + f'<image id="0" name="a.png" width="8" height="4">{shapes}</image>'
        + '<image id="1" name="b.png" width="8" height="4"></image></annotations>',
    )
    with caplog.at_level(logging.WARNING, "tubelet"):
        table = read_labels(tmp_path / "annotations.xml")
    expected = np.zeros((4, 8), np.uint8)
    expected[:3, :6] = 2
    expected[1, 5:7] = 1
    assert table.legend == {0: "background", 1: "car", 2: "road"} and len(table.rows) == 1
    np.testing.assert_array_equal(read_mask(table.rows[0]), expected)
    assert "has runs of 9 pixels in a box of 3 x 2" in table.faults[0][1]
    assert "1 shapes of the kind box" in caplog.text and "1 images without polygons" in caplog.text


def test_cvat_masks_of_frames(tmp_path):
    write_video(tmp_path / "a.mp4")
    polygon = '<polygon label="road" points="0.00,0.00;6.00,0.00;6.00,3.00;0.00,3.00" z_order="0"></polygon>'
    images = "".join(
        f'<image id="{frame}" name="frame_{frame:06d}" width="64" height="64">{polygon}</image>' for frame in (6, 18)
    )
    put(tmp_path / "annotations.xml", CVAT_META.format(more="", source="a.mp4") + images + "</annotations>")
    table = check_labels(read_labels(tmp_path / "annotations.xml"))
    assert [(row.path.name, row.start_s, row.end_s) for row in table.rows] == [
        ("a.mp4", 0.5, None),
        ("a.mp4", 1.5, None),
    ]
    assert (read_mask(table.rows[1]) == 2).sum() == 18


def test_cvat_tags_of_images(tmp_path):
    images = (
        '<image id="0" name="a.png" width="8" height="4"><tag label="car"></tag><tag label="road"></tag></image>'
        '<image id="1" name="b.png" width="8" height="4"></image>'
    )
    put(tmp_path / "annotations.xml", CVAT_META.format(more="", source="") + images + "</annotations>")
    assert spans(read_labels(tmp_path / "annotations.xml")) == [("a.png", None, None, "car|road")]


# Label Studio


def test_label_studio_json(tmp_path, caplog):
    put(tmp_path / "0a1b2c3d-a.mp4")
    put(tmp_path / "b.mp4")

    put(tmp_path / "export.json", json.dumps(LABEL_STUDIO))
    with caplog.at_level(logging.WARNING, "tubelet"):
        table = read_labels(tmp_path / "export.json")
    # Frames are counted from 1, and the last one of a range belongs to it.
    assert spans(table) == [
        ("0a1b2c3d-a.mp4", -3, -6, "Moving"),
        ("b.mp4", 0.2, 0.5, "Moving"),
        ("b.mp4", 1.5, 2.25, "Speech"),
        ("b.mp4", None, None, "yes"),
    ]
    assert [fault for _, fault in table.faults] == ["annotation 4: has no media file among text"]
    assert "1 results of the kind videorectangle are not used" in caplog.text


@pytest.mark.parametrize("kind", ["json", "csv"])
def test_label_studio_json_min_and_csv(tmp_path, kind):
    ranges = [{"ranges": [{"start": 1, "end": 12}], "timelinelabels": ["Moving"]}]
    if kind == "json":
        task = {"video": "a.mp4", "id": 1, "timeline": ranges, "kind": "indoor", "annotator": 1, "annotation_id": 4}
        put(tmp_path / "export.json", json.dumps([task]))
    else:
        cell = json.dumps(ranges).replace('"', '""')
        put(tmp_path / "export.csv", f'video,id,timeline,kind,annotator,annotation_id\na.mp4,1,"{cell}",indoor,1,4\n')
    assert spans(read_labels(tmp_path / f"export.{kind}")) == [
        ("a.mp4", -1, -13, "Moving"),
        ("a.mp4", None, None, "indoor"),
    ]


# COCO


def test_coco_polygons_and_runs(tmp_path):
    put(tmp_path / "coco" / "annotations" / "instances_val2017.json", instances())
    put(tmp_path / "coco" / "val2017" / "a.jpg")
    table = read_labels(tmp_path / "coco" / "annotations" / "instances_val2017.json")
    assert table.legend == {0: "background", 1: "cat", 2: "dog"}
    assert table.rows[0].path == tmp_path / "coco" / "val2017" / "a.jpg"
    expected = np.zeros((4, 5), np.uint8)
    expected[:, :3] = 2  # runs go down columns
    expected[1:3, 1:3] = 1  # the smaller region is drawn over the larger one
    np.testing.assert_array_equal(read_mask(table.rows[0]), expected)
    assert not read_mask(table.rows[1]).any()


def test_coco_compressed_runs_as_pycocotools_writes_them(tmp_path):
    tools = pytest.importorskip("pycocotools.mask")
    mask = np.random.default_rng(0).random((37, 53)) > 0.5
    mask[5:30, 7:40] = True
    encoded = tools.encode(np.asfortranarray(mask.astype(np.uint8)))
    shape = MaskShape(index=1, runs=decode_coco_runs(encoded["counts"].decode()), box=(0, 0, 53, 37), by_column=True)
    np.testing.assert_array_equal(draw_shapes(MaskShapes(size=(37, 53), shapes=(shape,))), mask)


ENCODED = "d18<0;NG00000000000000000000000000000000000000000000000U6"
RUNS = (52, 8, 12, 8, 23, 6, *(14, 6) * 24, 211)


def test_coco_compressed_runs():
    assert decode_coco_runs("06") == (0, 6)
    # A rectangle of 25 columns and another of 2, as pycocotools encodes them: later numbers are differences.
    assert decode_coco_runs(ENCODED) == RUNS
    for wrong in ("P", "\x1f", "é"):
        with pytest.raises(ValueError, match="compressed mask"):
            decode_coco_runs(wrong)


def test_faults_of_coco(tmp_path):
    annotations = [
        {"id": 1, "image_id": 9, "category_id": 1, "segmentation": []},
        {"id": 2, "image_id": 7, "category_id": 2, "segmentation": []},
        {"id": 3, "image_id": 7, "category_id": 1, "segmentation": []},
        {"id": 4, "image_id": 7, "category_id": 1, "segmentation": [[1, 2, 3]]},
        {"id": 5, "image_id": 7, "category_id": 1, "segmentation": {"counts": [3, 4], "size": [4, 5]}},
        {"id": 6, "image_id": 7, "category_id": 1, "segmentation": {"counts": "0", "size": [5, 4]}},
    ]
    put(tmp_path / "coco.json", instances(annotations=annotations))
    table = read_labels(tmp_path / "coco.json")
    words = [
        "image_id is 9",
        "category_id is 2",
        "is empty",
        "fewer than three points",
        "runs of 7 pixels",
        "has the size",
    ]
    assert all(word in fault for word, (_, fault) in zip(words, table.faults, strict=True)), table.faults


def test_json_of_no_known_program_is_an_error(tmp_path):
    put(tmp_path / "labels.json", '{"a.mp4": "x"}')
    with pytest.raises(TubeletError, match="JSON of no known annotation program"):
        read_labels(tmp_path / "labels.json")


def test_polygons_cover_the_pixels_whose_centers_they_contain():
    def draw(*points):
        shape = MaskShape(index=1, polygons=(tuple(map(float, points)),))
        return draw_shapes(MaskShapes(size=(4, 6), shapes=(shape,)))

    assert draw(0, 0, 6, 0, 6, 4, 0, 4).all()
    assert draw(-5, -5, 50, -5, 50, 50, -5, 50).all()
    assert not draw(0, 0, 0.4, 0, 0.4, 4, 0, 4).any()
    assert draw(0, 0, 6, 0, 0, 6).sum() == 5 + 4 + 3 + 2  # centers on the slanted edge are outside


EXPORTS = {
    "via.json": VIA3,
    "project.boris": BORIS,
    "events.tsv": BORIS_EVENTS,
    "a.eaf": ELAN,
    "annotations.xml": CVAT,
    "tasks.json": LABEL_STUDIO,
    "coco.json": instances(),
}


@pytest.mark.parametrize("name", EXPORTS)
def test_fit_takes_an_export_and_reports_that_its_media_are_not_there(tmp_path, name):
    path = put(tmp_path / "labels" / name, EXPORTS[name])
    done = run_tubelet("fit", path, "--model", "no-model", "--out", tmp_path / "out" / "head.safetensors")
    assert done.returncode == 2
    assert "nothing was computed" in done.stderr and ": does not exist" in done.stderr
    assert not (tmp_path / "out").exists()
