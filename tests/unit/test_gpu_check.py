"""The check for machines with a GPU, as far as a CPU can run it."""

import json
import time

import pytest
import torch

from benchmarks import gpu_check, gpu_sections
from benchmarks.gpu_check import Section
from benchmarks.gpu_sections import Check
from tests.helpers.training import NARROW_PICO
from tubelet.config.model import MODELS
from tubelet.errors import TubeletError


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A check of one planted section; returns its exit code and what is in the file."""

    def check(section):
        monkeypatch.setitem(gpu_check.SECTIONS, "planted", Section(section, 30.0))
        code = gpu_check.main(["--smoke", "--out", str(tmp_path), "--only", "planted"])
        return code, json.loads((tmp_path / gpu_check.FILE).read_text())["planted"]

    return check


def test_a_section_whose_package_is_missing_is_skipped_and_says_so(run, capsys):
    def section(check, found):
        found["before"] = 1
        import no_such_package  # noqa: F401

    code, found = run(section)
    assert code == 0
    assert found["before"] == 1
    assert "planted: skipped: no_such_package is not installed" in capsys.readouterr().out


def test_a_module_of_the_package_that_is_missing_is_a_failure(run, capsys):
    def section(check, found):
        import tubelet.no_such_module  # noqa: F401

    code, found = run(section)
    assert code == 1
    assert "no_such_module" in found["error"]
    assert "planted: FAILED: ModuleNotFoundError" in capsys.readouterr().out


def test_a_section_that_fails_or_whose_check_fails_ends_in_exit_code_1(run):
    def fails(check, found):
        raise TubeletError("planted")

    def finds(check, found):
        found["checks"] = {"right": True, "wrong": False}

    assert run(fails)[0] == 1
    assert run(finds)[0] == 1


def test_a_section_whose_time_is_up_keeps_what_it_has():
    def section(check, found):
        found["first"] = 1
        try:
            time.sleep(20)
        except Exception:  # as libraries do
            found["swallowed"] = True

    found = gpu_check.run_section(Section(section, 0.2), Check(torch.device("cpu"), False, {}))
    assert found["first"] == 1
    assert "swallowed" not in found
    assert found["stopped"] == "stopped after 0 s"
    assert found["seconds"] < 15


def test_sections_that_are_run_again_replace_theirs_and_leave_the_others(run, tmp_path):
    (tmp_path / gpu_check.FILE).write_text('{"steps": {"a": {"samples_per_s": 3.0}}, "planted": {"old": 1}}')

    def section(check, found):
        found["others"] = check.results["steps"]["a"]["samples_per_s"]

    _, found = run(section)
    assert found["others"] == 3.0
    assert "old" not in found
    assert "steps" in json.loads((tmp_path / gpu_check.FILE).read_text())


def test_an_unknown_section_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        gpu_check.main(["--smoke", "--out", str(tmp_path), "--only", "no-such-section"])
    assert "there is no section no-such-section; expected some of environment, ceilings" in capsys.readouterr().err


def test_the_time_of_all_sections_is_under_ten_minutes():
    assert sum(section.seconds for section in gpu_check.SECTIONS.values()) < 570  # the rest is for imports


def test_time_without_kernels_counts_overlapping_ones_once():
    kernels = [("a", 0.0, 40.0), ("b", 20.0, 60.0), ("a", 80.0, 100.0), ("c", 85.0, 90.0)]
    found = gpu_sections.kernel_summary(kernels, 2)
    assert found["kernels"] == 2
    assert found["idle_fraction"] == pytest.approx(0.2)
    assert found["costliest_ms"] == {"a": 0.03, "b": 0.02, "c": 0.0}


def test_markdown_has_a_row_for_each_step_and_says_what_is_missing():
    results = {
        "environment": {"device": "NVIDIA H100 80GB HBM3", "torch": "2.11.0", "cuda": "13.0", "date": "2026-01-01"},
        "steps": {
            "vit-l 12+12 compiled": {"s_per_step": 0.1, "samples_per_s": 240.0, "mfu": 0.5, "kernels": 9000},
            "vit-g 12+12 eager": {"error": "OutOfMemoryError: ..."},
            "seconds": 100.0,
        },
        "data": {"workers": 15, "clips_per_s": {"shards, 720 lines": 450.0}},
    }
    text = gpu_check.markdown(results)
    assert "NVIDIA H100 80GB HBM3, torch 2.11.0, CUDA 13.0, measured 2026-01-01." in text
    assert "| vit-l 12+12 compiled | 0.1 |  | 240.0 | 50.0% |  |  | 9,000 |  |" in text
    assert "| vit-g 12+12 eager | error |" in text
    assert "| 15 workers | samples/s |\n| --- | --- |\n| made from shards, 720 lines | 450.0 |" in text


@pytest.mark.slow
def test_sections_run_on_a_cpu_with_tiny_sizes(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("benchmarks.measure.product_shape", lambda device, width: (64, 64, 64))
    monkeypatch.setitem(MODELS, "vit-pico", lambda: NARROW_PICO)
    names = ["environment", "ceilings", "sync", "attention", "steps"]
    assert gpu_check.main(["--smoke", "--out", str(tmp_path), "--only", ",".join(names), "--markdown"]) == 0
    results = json.loads((tmp_path / gpu_check.FILE).read_text())
    assert list(results) == names
    assert all("error" not in found for found in results.values())
    assert results["steps"]["vit-pico 1+1 eager"]["samples_per_s"] > 0
    assert results["steps"]["vit-pico 1+1 reference"]["samples_per_s"] > 0
    assert "| vit-pico 1+1 eager |" in capsys.readouterr().out


def test_a_gradient_that_is_not_finite_changes_nothing_and_a_finite_one_does():
    run = gpu_sections.TinyRun(torch.device("cpu"), "fp32")
    run.step(0)
    assert gpu_sections.skips_gradient(run, float("nan"))
    assert not gpu_sections.skips_gradient(run, 1.0)


def test_differences_are_relative_and_infinite_without_a_finite_value():
    assert gpu_sections.relative_difference([1.1, 2.0], [1.0, 2.0]) == pytest.approx(0.1)
    assert gpu_sections.relative_difference([float("nan")], [1.0]) == float("inf")


def test_a_check_knows_how_much_time_is_left():
    assert Check(torch.device("cpu"), True, {}, time.monotonic() + 100).left() == pytest.approx(100, abs=5)
