"""The command line as a person or a script uses it: real processes, exit codes, messages."""

import json
import signal
import subprocess
import sys
import time

import pytest

import tubelet
from tests.helpers.commands import run_tubelet
from tests.helpers.launcher import start_tubelet
from tests.helpers.media import write_image, write_text, write_video
from tests.helpers.training import rows
from tubelet.checkpoint.run import list_checkpoints, load_vjepa
from tubelet.cli import main
from tubelet.cli.command import parse
from tubelet.cli.info import Info


def start(*arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "tubelet", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(*arguments):
    process = start(*arguments)
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


@pytest.fixture(scope="module")
def media(tmp_path_factory):
    folder = tmp_path_factory.mktemp("media")
    for i in range(4):
        write_video(folder / f"{i}.mp4", frames=24)
    write_image(folder / "0.png")
    return folder


TRAIN = ("--model", "vit-pico", "--image-size", "32", "--patch-size", "8", "--frames", "4", "--batch-size", "2")


@pytest.mark.slow
def test_sigterm_writes_a_checkpoint_reports_it_and_the_run_resumes_with_one_row_a_step(media, tmp_path):
    out = tmp_path / "run"
    options = ("train", media, "--out", out, *TRAIN, "--checkpoint-every", "1000", "--precision", "fp32")
    process = start_tubelet((*options, "--steps", "500"), tmp_path / "log")
    while len(rows(out)) < 2:
        assert process.is_alive()
        time.sleep(0.05)
    process.terminate()
    process.join(300)
    err = (tmp_path / "log").read_text()
    stopped = rows(out)[-1]["step"]
    assert process.exitcode == 128 + signal.SIGTERM
    assert f"SIGTERM: stopped after step {stopped}" in err
    assert "--resume" in err
    assert len(list_checkpoints(out)) == 1
    resumed = run_tubelet(*options, "--steps", str(stopped + 2), "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert f"continuing after step {stopped}" in resumed.stdout
    assert [row["step"] for row in rows(out)] == list(range(1, stopped + 3))
    promised = {"step", "loss", "prediction_loss", "context_loss", "lr", "clips_per_s", "data_wait_fraction"}
    assert promised <= rows(out)[0].keys()
    model, config = load_vjepa(out)
    assert model.config.patch_size == 8
    assert json.loads((out / "config.json").read_text())["steps"] == config.steps


@pytest.mark.slow
def test_a_resumed_run_continues_with_its_own_settings_but_for_those_that_are_given(
    media, tmp_path, monkeypatch, capsys
):
    out = tmp_path / "run"

    def train(*words):
        monkeypatch.setattr(sys, "argv", ["tubelet", *map(str, words)])
        main()

    train("train", media, "--out", out, *TRAIN, "--steps", "2", "--fps", "6")
    train("train", "--out", out, "--resume", "--steps", "3")
    assert "changed since this run began: steps: 2 -> 3" in capsys.readouterr().out
    train("train", f"--out={out}", "--resume", "--lr", "1e-5", "--steps", "4")
    settings = json.loads((out / "config.json").read_text())
    assert (settings["steps"], settings["optim"]["lr"], settings["data"]["fps"]) == (4, 1e-5, 6)
    assert settings["data"]["sources"] == [str(media)]
    small = tmp_path / "small"
    train("distill", media, "--teacher", out, *TRAIN, "--out", small, "--steps", "1")
    train("distill", "--out", small, "--resume", "--steps", "2")
    assert len(rows(small)) == 2
    kept = (out / "config.json").read_text()
    with pytest.raises(SystemExit):
        train("train", "--out", out, "--resume", "--steps", "3")
    assert "4 steps are done, and steps is 3: raise --steps" in capsys.readouterr().err
    assert (out / "config.json").read_text() == kept
    with pytest.raises(SystemExit):  # what was resumed leaves nothing behind in the process
        train("train", "--out", tmp_path / "other", "--steps", "3")
    assert "no data source" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        train("train", "--out", tmp_path / "other", "--resume")
    assert "other: nothing to resume (no config.json); check --out" in capsys.readouterr().err


def test_a_run_is_not_written_where_it_does_not_belong(media, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "config.json").write_text("{}")  # of a run that failed before its first step
    for out, reason in [
        (media, "this folder is one of the inputs"),
        (tmp_path / "file", "is a file, expected a directory"),
        (tmp_path / "begun", None),
    ]:
        monkeypatch.setattr(sys, "argv", ["tubelet", "train", str(media), "--out", str(out), *TRAIN, "--steps", "1"])
        if reason is None:
            main()
            assert len(rows(out)) == 1
        else:
            with pytest.raises(SystemExit):
                main()
            assert f"error: {out}: {reason}" in capsys.readouterr().err


def test_output_that_nobody_reads_on_ends_without_a_traceback():
    process = start("train", "--help")
    process.stdout.close()
    err = process.stderr.read()
    assert (process.wait(60), err) == (141, "")


def test_the_version_is_reported():
    assert run("--version") == (0, f"tubelet {tubelet.__version__}\n", "")


def test_only_bad_files_end_in_one_line_and_a_non_zero_exit_code(tmp_path):
    for i in range(3):
        write_text(tmp_path / f"{i}.mp4")
    done = run_tubelet("train", tmp_path, "--out", tmp_path / "run", *TRAIN, "--steps", "5")
    err = done.stderr
    assert done.returncode == 1
    assert err.startswith("error: ")
    assert len(err.strip().splitlines()) == 1
    assert "Traceback" not in err


@pytest.fixture
def command(monkeypatch, capsys):
    """Run a command in this process: its exit code and what it printed."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["tubelet", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        return ended.value.code, printed.out + printed.err

    return call


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--steps", "0"), ("--steps is 0, expected 1 to 999999999",)),
        (("--model", "vit-tii"), ("vit-ti",)),
        (("--image-size", "100"), ("100", "multiple of the patch size 16")),
        (("--frames", "7"), ("7 frames", "multiple of the tubelet size 2")),
        (("--imagesize", "32"), ("--image-size",)),
        (("--devices", "8"), ("only apply with --dry-run",)),
    ],
)
def test_a_wrong_setting_is_named_with_what_was_expected(media, tmp_path, command, arguments, words):
    code, text = command("train", media, "--out", tmp_path / "run", *arguments)
    assert code not in (0, None)
    for word in words:
        assert word in text
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("fit labels.csv --modle x --out h", "--modle: unknown option (nearest: '--model'); see tubelet fit --help"),
        ("fit labels.csv --model x --out h --task clasification", "depth (nearest: 'classification')"),
        (
            "train clips --out run --precision=bf61",
            "--precision is 'bf61', expected one of auto, bf16, fp32",
        ),
        ("convert a.pt b.onnx --imags", "--imags: unknown option (nearest: '--images')"),
        ("report run --no-such-option", "--no-such-option: unknown option; see tubelet report --help"),
    ],
)
def test_a_misspelled_option_or_choice_is_reported_with_the_nearest_one(command, line, words):
    code, text = command(*line.split())
    assert code == 1 and words in text and "None" not in text


def test_names_after_two_dashes_are_no_options(command):
    code, text = command("stats", "--out", "stats.json", "--", "--weird.mp4")
    assert code == 1 and "--weird.mp4: no such file or folder" in text


def test_a_command_without_arguments_is_parsed():
    assert parse(Info, "info", []) == Info()


def test_a_source_that_is_not_there_is_named(tmp_path, command):
    code, text = command("train", tmp_path / "nowhere", "--out", tmp_path / "run")
    assert code == 1
    assert "nowhere" in text


@pytest.mark.parametrize(
    "arguments",
    [
        ("convert", "model.safetensors", "model.pt", "--license", "mit"),
        ("convert", "model.safetensors", "head.safetensors", "--to", "head", "--license", "mit"),
        ("convert", "model.safetensors", "folder", "--images"),
        ("convert", "model.safetensors", "model.onnx", "--with-predictor"),
        ("convert", "model.safetensors", "model.pt2", "--int8"),
        ("convert", "model.safetensors", "model.pt", "--preprocess"),
        ("convert", "model.safetensors", "model.pt", "--to", "transformers"),
        ("convert", "model.safetensors", "folder", "--image-size", "64"),
        ("convert", "model.safetensors", "model.gguf", "--with-predictor"),
    ],
)
def test_an_option_that_would_do_nothing_is_refused(command, arguments):
    code, text = command(*arguments)
    assert code == 1
    assert "has no effect for" in text and text.count("\n") == 1
