"""Small annotation files of other programs, each as its program's documentation describes it."""

import json
from typing import Any

VIA3 = {
    "project": {"pid": "__VIA_PROJECT_ID__", "data_format_version": "3.1.1", "vid_list": ["1", "2"]},
    "config": {"file": {"loc_prefix": {"1": "", "2": "", "3": "", "4": ""}}},
    "attribute": {
        "1": {"aname": "Class", "anchor_id": "FILE1_Z2_XY0", "type": 4, "options": {"0": "walk", "1": "run"}},
        "2": {"aname": "note", "anchor_id": "FILE1_Z2_XY0", "type": 1, "options": {}},
    },
    "file": {
        "1": {"fid": "1", "fname": "a.mp4", "type": 4, "loc": 1, "src": ""},
        "2": {"fid": "2", "fname": "b.mp4", "type": 4, "loc": 2, "src": "http://localhost/b.mp4"},
    },
    "metadata": {
        "1_x": {"vid": "1", "flg": 0, "z": [1.349, 2.741], "xy": [], "av": {"1": "0", "2": "slow"}},
        "1_y": {"vid": "1", "flg": 0, "z": [4.633], "xy": [], "av": {"1": "1"}},
        "2_x": {"vid": "2", "flg": 0, "z": [], "xy": [], "av": {"1": "1"}},
        "2_y": {"vid": "2", "flg": 0, "z": [0.5], "xy": [2, 10, 20, 50, 80], "av": {"1": "1"}},
    },
    "view": {"1": {"fid_list": ["1"]}, "2": {"fid_list": ["2"]}},
}

BORIS = {
    "time_format": "hh:mm:ss",
    "project_name": "test",
    "behaviors_conf": {
        "0": {"type": "Point event", "key": "p", "code": "peck"},
        "1": {"type": "State event", "key": "s", "code": "sleep"},
    },
    "observations": {
        "one": {
            "file": {"1": ["/home/user/a.mp4", "b.mp4"], "2": ["side.mp4"]},
            "type": "MEDIA",
            "time offset": 0.0,
            "events": [
                [3.3, "s1", "sleep", "", ""],
                [7.75, "s1", "sleep", "", ""],
                [5.0, "s2", "sleep", "", ""],
                [11.5, "s2", "sleep", "", ""],
                [10.5, "", "peck", "", ""],
            ],
            "media_info": {"length": {"/home/user/a.mp4": 10.0, "b.mp4": 6.0}},
        },
        "field": {"file": [], "type": "LIVE", "events": [[1.0, "", "peck", "", ""]]},
    },
}

BORIS_EVENTS = (
    "Observation id\tObservation date\tDescription\tMedia file\tTotal length\tFPS\tSubject\tBehavior\t"
    "Behavioral category\tModifiers\tBehavior type\tStart (s)\tStop (s)\tDuration (s)\n"
    "one\t2024-01-15\t\tplayer #1:C:\\videos\\a.mp4\t30.0\t25.0\ts1\tsleep\t\t\tSTATE\t1.0\t5.0\t4.0\n"
    "one\t2024-01-15\t\tplayer #1:C:\\videos\\a.mp4\t30.0\t25.0\ts1\tpeck\t\t\tPOINT\t10.0\t10.0\tNA\n"
    "one\t2024-01-15\t\tplayer #1:C:\\videos\\a.mp4\t30.0\t25.0\ts1\tsleep\t\t\tSTATE\t1.0\tNA\t4.0\n"
)

ELAN = """<?xml version="1.0" encoding="UTF-8"?>
<ANNOTATION_DOCUMENT AUTHOR="" DATE="2026-01-01T00:00:00+00:00" FORMAT="3.0" VERSION="3.0"
    xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"
    xsi:noNamespaceSchemaLocation="http://www.mpi.nl/tools/elan/EAFv3.0.xsd">
  <HEADER MEDIA_FILE="" TIME_UNITS="milliseconds">
    <MEDIA_DESCRIPTOR MEDIA_URL="file:///D:/videos/a%20b.mp4" MIME_TYPE="video/mp4" RELATIVE_MEDIA_URL="./a%20b.mp4"
      TIME_ORIGIN="500"/>
    <MEDIA_DESCRIPTOR MEDIA_URL="file:///D:/videos/a.wav" MIME_TYPE="audio/x-wav" RELATIVE_MEDIA_URL="./a.wav"/>
  </HEADER>
  <TIME_ORDER>
    <TIME_SLOT TIME_SLOT_ID="ts1" TIME_VALUE="1000"/><TIME_SLOT TIME_SLOT_ID="ts2"/>
    <TIME_SLOT TIME_SLOT_ID="ts3"/><TIME_SLOT TIME_SLOT_ID="ts4" TIME_VALUE="4000"/>
    <TIME_SLOT TIME_SLOT_ID="ts5"/>
  </TIME_ORDER>
  <TIER LINGUISTIC_TYPE_REF="t" TIER_ID="behavior">
    <ANNOTATION><ALIGNABLE_ANNOTATION ANNOTATION_ID="a1" TIME_SLOT_REF1="ts1" TIME_SLOT_REF2="ts2">
      <ANNOTATION_VALUE>walk</ANNOTATION_VALUE></ALIGNABLE_ANNOTATION></ANNOTATION>
    <ANNOTATION><ALIGNABLE_ANNOTATION ANNOTATION_ID="a2" TIME_SLOT_REF1="ts2" TIME_SLOT_REF2="ts3">
      <ANNOTATION_VALUE>run &amp; jump</ANNOTATION_VALUE></ALIGNABLE_ANNOTATION></ANNOTATION>
    <ANNOTATION><ALIGNABLE_ANNOTATION ANNOTATION_ID="a3" TIME_SLOT_REF1="ts3" TIME_SLOT_REF2="ts4">
      <ANNOTATION_VALUE/></ALIGNABLE_ANNOTATION></ANNOTATION>
    <ANNOTATION><ALIGNABLE_ANNOTATION ANNOTATION_ID="a4" TIME_SLOT_REF1="ts4" TIME_SLOT_REF2="ts5">
      <ANNOTATION_VALUE>late</ANNOTATION_VALUE></ALIGNABLE_ANNOTATION></ANNOTATION>
  </TIER>
  <TIER LINGUISTIC_TYPE_REF="t2" TIER_ID="gloss" PARENT_REF="behavior">
    <ANNOTATION><REF_ANNOTATION ANNOTATION_ID="a5" ANNOTATION_REF="a1">
      <ANNOTATION_VALUE>x</ANNOTATION_VALUE></REF_ANNOTATION></ANNOTATION>
  </TIER>
</ANNOTATION_DOCUMENT>
"""

CVAT_META = (
    '<?xml version="1.0" encoding="utf-8"?>\n<annotations><version>1.1</version><meta><task><size>99</size>'
    "{more}<labels><label><name>car</name></label><label><name>road</name></label></labels><source>{source}</source>"
    "</task></meta>"
)

CVAT = (
    CVAT_META.format(more="", source="a.mp4")
    + '<track id="0" label="car" source="manual"><box frame="3" outside="0" xtl="1.00" ytl="1.00"'
    ' xbr="2.00" ybr="2.00" z_order="0"></box><box frame="9" outside="1" xtl="1.00" ytl="1.00"'
    ' xbr="2.00" ybr="2.00" z_order="0"></box></track><image id="0" name="a.png" width="8" height="4">'
    '<mask label="car" rle="1, 2, 3" left="4" top="1" width="3" height="2" z_order="1"></mask></image></annotations>'
)


def _result(kind: str, **value: Any) -> dict[str, Any]:
    return {"id": "x", "type": kind, "from_name": "f", "to_name": "video", "value": value}


_TIMELINE = _result("timelinelabels", ranges=[{"start": 3, "end": 5}], timelinelabels=["Moving"])
LABEL_STUDIO = [
    {
        "id": 1,
        "data": {"video": "/data/upload/1/0a1b2c3d-a.mp4"},
        "annotations": [
            {"was_cancelled": True, "result": [_result("choices", choices=["no"])]},
            {"was_cancelled": False, "result": [_TIMELINE, _result("videorectangle", sequence=[])]},
        ],
    },
    {
        "id": 2,
        "data": {"video": "/data/local-files/?d=videos/b.mp4", "fps": 10},
        "annotations": [
            {"result": [_TIMELINE, _result("labels", start=1.5, end=2.25, labels=["Speech"], channel=0)]},
        ],
    },
    {
        "id": 3,
        "data": {"video": "s3://bucket/b.mp4"},
        "annotations": [{"result": [_result("choices", choices=["yes"])]}],
    },
    {"id": 4, "data": {"text": "b"}, "annotations": []},
]


def instances(**changes: Any) -> str:
    """A file of COCO instances."""
    data = {
        "info": {"year": 2017},
        "images": [
            {"id": 7, "file_name": "a.jpg", "height": 4, "width": 5},
            {"id": 8, "file_name": "b.jpg", "height": 4, "width": 5},
        ],
        "categories": [{"id": 3, "name": "dog"}, {"id": 1, "name": "cat"}],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 1, "iscrowd": 0, "area": 4, "bbox": [1, 1, 2, 2],
             "segmentation": [[1, 1, 3, 1, 3, 3, 1, 3]]},
            {"id": 2, "image_id": 7, "category_id": 3, "iscrowd": 1, "area": 12, "bbox": [0, 0, 3, 4],
             "segmentation": {"counts": [0, 12, 8], "size": [4, 5]}},
        ],
    }  # fmt: skip
    return json.dumps(data | changes)
