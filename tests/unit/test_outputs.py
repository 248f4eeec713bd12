"""What commands write over: their own, and nothing else."""

import json
import os
import re
import shutil
import sys
import zipfile
from pathlib import Path

import duckdb
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from tests.helpers.media import indexed_image
from tubelet import cli
from tubelet.checkpoint import weights
from tubelet.config import DataConfig, EmbedConfig, ModelConfig, PredictorConfig, TrainConfig, to_dict
from tubelet.data.shards import format as shards
from tubelet.embed import table
from tubelet.embed.collection import embed_collection
from tubelet.errors import TubeletError
from tubelet.io import overwrite_checks as outputs
from tubelet.io.csv_tables import CLIP_COLUMNS
from tubelet.io.overwrite_checks import check_output
from tubelet.prediction.label_output import _SUMMARY_COLUMNS as LABEL_SUMMARY
from tubelet.prediction.label_output import LABEL_COLUMNS
from tubelet.prediction.outputs.values import _SUMMARY_COLUMNS
from tubelet.pretrained.backbone import Backbone
from tubelet.pretrained.load import load
from tubelet.tasks.common.result import Metric, Result, write_result
from tubelet.train import run_directory
from tubelet.view.page import write_page
from tubelet.view.results import write_result_page

SIZES = ModelConfig(
    width=24, depth=2, heads=2, levels=(0, 1), patch_size=8, predictor=PredictorConfig(width=24, depth=1, heads=2)
)
FOREIGN = b"a stranger's, and the only copy"


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with an image, an encoder, a run without steps, a table, shards and a stranger's files."""
    Image.fromarray(indexed_image(0)).save(tmp_path / "image.png")
    os.link(tmp_path / "image.png", tmp_path / "hard.html")
    (tmp_path / "soft.html").symlink_to("image.png")
    torch.manual_seed(0)
    Backbone(SIZES).save_pretrained(tmp_path / "model")
    os.link(tmp_path / "model" / "model.safetensors", tmp_path / "same.safetensors")
    config = TrainConfig(model=SIZES, data=DataConfig(sources=(str(tmp_path),), image_size=32, frames=2))
    for name in ("checkpoints", "tensorboard"):
        (tmp_path / "run" / name).mkdir(parents=True)
    (tmp_path / "run" / "config.json").write_text(json.dumps(to_dict(config)))
    (tmp_path / "run" / "report.html").write_bytes(FOREIGN)
    (tmp_path / "table").mkdir()
    (tmp_path / "table" / "_settings.json").write_text('{"format": 2}')
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "index.jsonl").write_text('{"tubelet_shards": 1}\n')
    (tmp_path / "strange").mkdir()
    for name in ("config.json", "model.safetensors", "page.html", "result.json", "evaluation.json", "sources.txt"):
        (tmp_path / "strange" / name).write_bytes(FOREIGN)
    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors", {"format": "pt"})
    torch.save({"x": 1}, tmp_path / "other.pt")
    for name in ("other.pt2", "other.onnx"):
        (tmp_path / name).write_bytes(FOREIGN)
    (tmp_path / "nowhere.html").symlink_to("not-there.html")
    os.mkfifo(tmp_path / "pipe.html")
    (tmp_path / "sub").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def contents(folder):
    return {path: (path.lstat().st_ino, path.read_bytes()) for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("explain image.png --out image.png", "expected the suffix .html or .htm"),
        ("explain image.png --out hard.html", "hard.html: this file is one of the inputs"),
        ("explain image.png --out soft.html", "soft.html: this file is one of the inputs"),
        ("explain image.png --out sub/../hard.html", "this file is one of the inputs"),
        ("explain image.png --out strange/page.html", "strange/page.html: exists and is not a page of this"),
        ("explain image.png --out sub", "expected the suffix"),
        ("explain image.png --out nowhere.html", "is a dangling link"),
        ("explain image.png --out pipe.html", "is not a regular file"),
        ("explain image.png --out run/checkpoints/a.html", "is inside the checkpoints of a run"),
        ("explain image.png --out table/a.html", "is inside a table of features"),
        ("explain image.png --out table/deeper/a.html", "is inside a table of features"),
        ("explain image.png --out shards/a.html", "is inside a folder of shards"),
        ("report run --out run/config.json", "expected the suffix"),
        ("report run", "run/report.html: exists and is not a page"),
        ("convert model strange", "strange/config.json: exists and is not of a model directory"),
        ("convert model model", "model: this folder is one of the inputs and would"),
        ("convert same.safetensors model", "model/model.safetensors: this file is one of the inputs"),
        ("convert same.safetensors model/model.safetensors", "is one of the inputs"),
        ("convert model run", "run/config.json: exists and is not of a model directory"),
        ("convert model run/tensorboard", "is inside|is a directory|the tensorboard of a run"),
        ("convert model run/checkpoints/new.safetensors", "is inside the checkpoints of a run"),
        ("convert model other.safetensors", "exists and is not an encoder"),
        ("convert model other.pt", "exists and is not a model that this package wrote"),
        ("convert model other.pt2", "exists and is not a graph"),
        ("convert model other.onnx", "exists and is not a graph"),
        ("convert model image.png", "is a file, expected a directory|exists and is not"),
        ("embed image.png --model model --out table/sub", "is inside a table of features"),
        ("embed image.png --model model --out strange", "strange: contains other files"),
        ("embed image.png --model model --out image.png", "image.png: this file is one of the inputs"),
        ("shard image.png --out strange", "strange: contains other files"),
        ("shard image.png --out shards/sub", "is inside a folder of shards"),
        ("shard sub --out sub", "sub: this folder is one of the inputs"),
        ("sample-data run/checkpoints/set", "is inside the checkpoints of a run"),
        ("sample-data table/set", "is inside a table of features"),
        ("sample-data image.png", "image.png: is a file, expected a directory"),
        ("train image.png --out strange", "strange/config.json: exists and is not of a run"),
        ("train sub --out link", "link: this folder is one of the inputs"),
        ("train image.png --init-from model --out model", "model: this folder is one of the inputs"),
        ("evaluate model --data sub --task knn --out strange", "strange/result.json: exists and is not"),
        ("evaluate model --data sub --task knn --out sub", "sub: this folder is one of the inputs"),
    ],
)
def test_what_is_not_a_commands_own_is_refused_and_untouched(command, words, place, monkeypatch, capsys):
    (place / "link").symlink_to("sub")
    before = contents(place)
    monkeypatch.setattr(sys, "argv", ["tubelet", *command.split()])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    stderr = capsys.readouterr().err
    assert ended.value.code == 1 and stderr.count("\n") == 1
    assert re.search(words, stderr), stderr
    assert contents(place) == before


def test_what_this_package_wrote_may_be_replaced(place, monkeypatch, capsys):
    (place / "README.md").write_bytes(FOREIGN)
    (place / "empty.html").touch()  # nothing is lost with it
    for command in (
        "convert model a.safetensors",
        "convert model a.pt",
        "convert model hub",
        "explain image.png --image-size 32 --model vit-pico --out empty.html",
    ):
        for _ in range(2):
            monkeypatch.setattr(sys, "argv", ["tubelet", *command.split()])
            cli.main()
    assert "with the existing README.md (delete it" in capsys.readouterr().out
    for name in ("a.pt", "a.safetensors", "hub"):
        again = load(place / name, device="cpu", heads=2, levels=(0, 1))
        assert again.weights_id == load(place / "model", device="cpu").weights_id
    with zipfile.ZipFile(place / "a.pt") as archive:
        assert archive.testzip() is None
    assert not list(place.rglob("*.partial"))


def test_a_readme_and_other_files_of_a_hubs_folder_are_kept(place):
    shutil.rmtree(place / "strange")
    (place / "strange").mkdir()
    (place / "strange" / "README.md").write_bytes(FOREIGN)
    Backbone(SIZES).save_pretrained(place / "strange")
    assert (place / "strange" / "README.md").read_bytes() == FOREIGN
    (place / "strange" / "config.json").write_text('{"model_type": "bert"}')
    before = contents(place / "strange")
    with pytest.raises(TubeletError, match=r"config\.json: exists and is not"):
        Backbone(SIZES).save_pretrained(place / "strange")
    assert contents(place / "strange") == before


def result(**changes):
    about = {"task": "knn", "benchmark": "B", "data": "d", "model_id": "m", "protocol": "p", "counts": {}}
    return Result(**about | {"metrics": {"top-1": Metric(value=1.0)}} | changes)


def test_results_replace_results_only(place):
    (place / "predictions" / "s").mkdir(parents=True)
    (place / "predictions" / "s" / "a.png").write_bytes(FOREIGN)
    mine = place / "mine"
    (mine / "predictions").mkdir(parents=True)
    (mine / "predictions" / "kept.png").write_bytes(FOREIGN)
    files = {"predictions/s": place / "predictions" / "s"}
    with pytest.raises(TubeletError, match="mine/predictions: exists, but not from an earlier evaluation"):
        write_result(result(files=files), mine / "result.json")
    assert (mine / "predictions" / "kept.png").read_bytes() == FOREIGN
    (mine / "predictions" / "kept.png").unlink()
    (mine / "predictions").rmdir()
    for _ in range(2):
        write_result(result(files=files), mine / "result.json")
        write_result_page(result(), mine / "page.html")
    with pytest.raises(TubeletError, match=r"metric is not finite \(top-1\); result not written"):
        write_result(result(metrics={"top-1": Metric(value=float("nan"))}), mine / "result.json")
    assert json.loads((mine / "result.json").read_text())["metrics"] == {"top-1": 1.0}


def test_a_run_is_started_where_nothing_is_lost(place):
    (place / "begun").mkdir()
    (place / "begun" / "config.json").write_text("{}")  # of a run that failed before its first step
    for name in ("begun", "run", "new", "sub"):
        check_output(place / name, "run")
    (place / "sub" / "sources.txt").write_bytes(FOREIGN)
    with pytest.raises(TubeletError, match=r"sub/sources.txt: exists, but not from a run"):
        check_output(place / "sub", "run")


def test_a_table_of_a_model_and_its_continuation_pass(place):
    model = load(place / "model", device="cpu")
    for _ in range(2):
        embed_collection(model, ["image.png"], "features", EmbedConfig(image_size=32, frames=2, workers=0), "")
    write_page("results.html", place / "a.html", {"result": result(), "first": "", "examples": [], "tops": [],
               "shown_skipped": 1, "details": {"d": "<b>\x1b[31m\u202e\udcff\n{\n}</b>"}})  # fmt: skip
    page = (place / "a.html").read_text()
    assert r"&lt;b&gt;\x1b[31m\u202e\udcff" in page and "\n{\n}&lt;/b&gt;" in page


def test_the_names_by_which_things_are_known_are_those_that_are_written():
    assert outputs.KINDS["table"].marks == (table.SETTINGS,)
    assert outputs.KINDS["shards"].marks == (shards.INDEX, shards.PLAN)
    assert set(outputs.KINDS["run"].files) == {run_directory.CONFIG}
    assert set(outputs._RUN_FILES) == {
        run_directory.ALARMS,
        run_directory.METRICS,
        run_directory.ALERTS,
        run_directory.BAD_FILES,
        run_directory.SOURCES,
        run_directory.SOURCE_SAMPLE,
    }
    assert weights.FORMAT.startswith("tubelet-encoder-")


def test_no_column_hides_behind_a_method_of_a_data_frame_or_a_word_of_sql():
    file = Path(__file__).parents[1] / "data" / "format-3-features" / "part-000000.parquet"
    tables = [
        [*table.read_part(file, None).column_names, "tokens", "pooled_level0", "tokens_level0"],
        *([name for name, _ in columns] for columns in (LABEL_COLUMNS, CLIP_COLUMNS, _SUMMARY_COLUMNS, LABEL_SUMMARY)),
        [
            "mask_file",
            "depth_file",
            "overlay_file",
            "maps",
            "per_unit",
            "mean_depth",
            "label",
            "answer",
            "answer_score",
        ],
    ]
    reserved = "select keyword_name from duckdb_keywords() where keyword_category = 'reserved'"
    words = {word for (word,) in duckdb.sql(reserved).fetchall()}
    names = {name for columns in tables for name in columns}
    assert not [name for name in names if hasattr(pd.DataFrame, name) or name in words]


def test_a_template_of_another_folder_is_read_from_where_the_name_leads_now(place, monkeypatch):
    for name in ("one", "two"):
        (place / name / "templates").mkdir(parents=True)
        (place / name / "templates" / "a.html").write_text(f"{outputs.PAGE_MARK}{name}")
        os.utime(place / name / "templates" / "a.html", (0, 0))
        monkeypatch.chdir(place / name)
        write_page("a.html", place / "a.html", {}, folder=Path("templates"))
        assert (place / "a.html").read_text().endswith(name)


def test_a_models_name_is_text_in_its_card_and_in_its_id(place):
    model = load(place / "model", device="cpu")
    model.name = "a\x1b[31m\n# b|<b>*c*\u202e\udcff"
    metrics = {"x|y\n| z": 0.5}
    model.save_pretrained(place / "hub", model_card_kwargs={"metrics": metrics})
    card = (place / "hub" / "README.md").read_text(encoding="utf-8")
    assert "\x1b" not in card and "\u202e" not in card
    shown = r"# a\\x1b\[31m\\n\# b\|\<b\>\*c\*\\u202e\\udcff-teacher"
    assert shown in card and r"| x\|y\\n\| z | 0.5 |" in card
    again = load(place / "hub", device="cpu")
    assert again.name == r"a\x1b[31m\n# b|<b>*c*\u202e\udcff"
    assert again.weights_id == model.weights_id


def test_a_pipe_that_has_the_name_of_an_index_is_not_waited_for(tmp_path):
    for name in ("index.jsonl", "plan.json", "_settings.json", "config.json"):
        folder = tmp_path / name / "out"
        folder.mkdir(parents=True)
        os.mkfifo(folder / name)
        os.mkfifo(folder.parent / name)
        check_output(folder, "sample set")
    with pytest.raises(TubeletError, match="not a regular file"):
        check_output(folder, "run")
    os.mkfifo(tmp_path / "page.html")
    with pytest.raises(TubeletError, match="not a regular file"):
        check_output(tmp_path / "page.html", "page")


@pytest.mark.parametrize("kind", ["run", "encoder", "model"])
def test_weights_are_not_written_to_where_they_could_not_be_read_again(kind, tmp_path):
    with pytest.raises(TubeletError, match="not a UTF-8 name"):
        check_output(tmp_path / os.fsdecode(b"a\xff") / "b", kind)
    check_output(tmp_path / os.fsdecode(b"a\xff"), "shards")
    check_output(tmp_path / "\u00e9", kind)
