"""Tasks are found by their modules."""

import json

import pytest

from tubelet import tasks
from tubelet.errors import TubeletError
from tubelet.tasks import get_task, task_names
from tubelet.tasks.common.result import Metric, Result, read_result, write_result


def test_every_module_of_the_package_defines_a_task_of_its_name():
    names = task_names()
    assert {"suite", "segmentation", "depth", "classification", "knn", "linear", "anticipation", "vos"} <= set(names)
    assert [get_task(name).name for name in names] == names


def test_a_task_without_a_head_refuses_settings_of_heads():
    assert get_task("knn").head is None and get_task("linear").head is not None


def test_a_new_file_is_a_new_task(tmp_path, monkeypatch):
    (tmp_path / "my_task.py").write_text(
        "from tubelet.tasks.common.task import Task\n"
        "TASK = Task(name='my-task', evaluate=lambda context: context.result(), metric='x')\n",
    )
    monkeypatch.setattr(tasks, "__path__", [*tasks.__path__, str(tmp_path)])
    assert "my-task" in task_names() and get_task("my-task").metric == "x"


def test_an_unknown_task_is_refused_with_the_names_of_all():
    with pytest.raises(TubeletError, match="unknown task 'sgmentation'; expected one of anticipation, classification"):
        get_task("sgmentation")


def test_a_result_keeps_values_units_and_directions_of_baselines(tmp_path):
    metrics = {"RMSE": Metric(value=1.5, unit="m", higher_is_better=False, low=1.25, high=2.0)}
    baselines = {"random weights": {"RMSE": Metric(value=2.5, unit="m", higher_is_better=False)}}
    result = Result(
        task="depth", benchmark="NYUv2", data="d", model_id="m", protocol="p", metrics=metrics, counts={},
        baselines=baselines,
    )  # fmt: skip
    assert str(metrics["RMSE"]) == "1.500 [1.250, 2.000] m"
    write_result(result, tmp_path / "result.json")
    assert read_result(tmp_path / "result.json") == result and result.best("RMSE") == 1.5
    assert json.loads((tmp_path / "result.json").read_text())["higher_is_better"] == {"RMSE": False}
