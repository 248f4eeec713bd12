import dataclasses
import logging
import os
import random
import shutil
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest
import torch
from PIL import Image

import tubelet
from tests.helpers.training import ONE_BLOCK, rows, start_training, tiny_config, train_quietly
from tubelet.checkpoint.run import find_checkpoint, list_checkpoints, load_vjepa, read_checkpoint, step_from_name
from tubelet.data.loader import StepDataset, step_loader
from tubelet.data.sources import list_media
from tubelet.errors import TubeletError
from tubelet.io.files import directory_lock
from tubelet.train import progress
from tubelet.train.distributed import DistContext
from tubelet.train.run_directory import RunDirectory
from tubelet.train.startup import log_startup
from tubelet.train.trainer import Trainer, train
from tubelet.vjepa import VJEPA

LOSSES = ("loss", "prediction_loss", "context_loss")


@pytest.fixture(scope="module")
def undisturbed(media, tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "undisturbed"
    train_quietly(tiny_config(media), run)
    return run


def test_a_run_without_images_encodes_them_by_its_video_tokenizer(media, tmp_path):
    (tmp_path / "videos").mkdir()
    shutil.copy(media / "0.mp4", tmp_path / "videos")
    train_quietly(tiny_config(tmp_path / "videos", steps=1), tmp_path / "run")
    model = tubelet.load(tmp_path / "run", device="cpu", dtype=torch.float32)
    with Image.open(media / "0.png") as image:
        still, clip = model.encode(image), model.encode([image, image])
    assert still.grid == clip.grid
    assert torch.allclose(still.tokens, clip.tokens, atol=1e-5)
    raw = read_checkpoint(find_checkpoint(tmp_path / "run"))[0]
    assert not torch.equal(model.tokenizer.image.weight, raw["teacher.tokenizer.image.weight"])
    assert torch.equal(load_vjepa(tmp_path / "run")[0].teacher.tokenizer.image.weight, model.tokenizer.image.weight)


def wait_for(condition, seconds=300):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.01)


def test_a_run_killed_after_step_ten_resumes_to_the_same_losses(media, undisturbed, tmp_path):
    config, run = tiny_config(media, data={"workers": 1}), tmp_path / "run"
    process = start_training(config, run)
    wait_for(lambda: len(rows(run)) >= 12)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    train_quietly(config, run, resume=True)
    assert [row["step"] for row in rows(run)] == list(range(1, 21))
    for ours, theirs in zip(rows(run), rows(undisturbed), strict=True):
        for name in LOSSES:
            assert ours[name] == pytest.approx(theirs[name], abs=1e-6)


def test_a_run_that_is_signaled_twice_in_a_moment_saves_and_a_later_signal_ends_it_at_once(media, tmp_path):
    config, run = tiny_config(media, steps=10**6, checkpoint_every=10**6), tmp_path / "run"
    process = start_training(config, run)
    wait_for(lambda: rows(run))
    for _ in range(2):
        os.kill(process.pid, signal.SIGTERM)
        time.sleep(0.005)
    process.join()
    assert process.exitcode == 1  # by its error, not by a signal
    assert [step_from_name(path) for path in list_checkpoints(run)] == [rows(run)[-1]["step"]]
    process = start_training(tiny_config(media, steps=10**6, data={"workers": 1}), tmp_path / "other")
    wait_for(lambda: rows(tmp_path / "other"))
    (worker,) = psutil.Process(process.pid).children()
    worker.suspend()  # the step in progress never ends
    time.sleep(1)
    for pause in (2.5, 0):
        os.kill(process.pid, signal.SIGTERM)
        time.sleep(pause)
    process.join(20)
    worker.resume()
    assert process.exitcode == -signal.SIGTERM


@pytest.mark.slow
def test_no_checkpoint_is_ever_unreadable_when_the_run_is_killed_ten_times(media, tmp_path):
    config, run = tiny_config(media, steps=100_000, checkpoint_every=1, monitor_every=100), tmp_path / "run"
    moments = random.Random(0)
    for _ in range(10):
        seen = len(rows(run))
        process = start_training(config, run, resume=True)
        wait_for(
            lambda seen=seen: len(rows(run)) > seen and list_checkpoints(run)
        )  # a row is there before its checkpoint
        time.sleep(moments.uniform(0, 0.5))
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        kept = list_checkpoints(run)
        assert kept
        for path in kept:
            read_checkpoint(path)
    assert rows(run)[-1]["step"] >= 10  # each time went on by a row at least


def test_metrics_have_one_row_a_step_after_a_kill_and_a_resume(media, tmp_path):
    config, run = tiny_config(media, steps=12), tmp_path / "run"
    process = start_training(config, run)
    wait_for(lambda: len(rows(run)) >= 7)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 8, "lo')  # what a kill in the middle of a write leaves
    train_quietly(config, run, resume=True)
    assert [row["step"] for row in rows(run)] == list(range(1, 13))


def test_only_the_requested_number_of_checkpoints_is_kept(undisturbed):
    assert [path.name for path in list_checkpoints(undisturbed)] == [
        "step-000000015.safetensors",
        "step-000000020.safetensors",
    ]


def test_data_workers_end_with_a_run_that_is_killed(media, tmp_path):
    run = start_training(tiny_config(media, steps=10_000, data={"workers": 1}), tmp_path / "run")
    wait_for(lambda: rows(tmp_path / "run"))
    workers = psutil.Process(run.pid).children(recursive=True)
    assert workers
    run.kill()
    run.join()
    wait_for(lambda: not any(worker.is_running() for worker in workers), seconds=20)


def test_a_finished_run_is_not_started_over_without_being_asked(media, undisturbed):
    with pytest.raises(TubeletError, match="--resume"):
        train_quietly(tiny_config(media), undisturbed)


def test_resuming_with_another_model_is_refused(media, undisturbed):
    config = tiny_config(media)
    other = dataclasses.replace(config, model=dataclasses.replace(config.model, width=48))
    with pytest.raises(TubeletError, match=r"another model .* has another width; resume"):
        train_quietly(other, undisturbed, resume=True)
    train_quietly(config, undisturbed, resume=True)  # and nothing was spoilt


def test_checkpoints_without_a_config_are_not_continued_without_being_asked(media, undisturbed, tmp_path):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    shutil.copy(list_checkpoints(undisturbed)[-1], tmp_path / "run" / "checkpoints")
    with pytest.raises(TubeletError, match="a run is here already; continue it with --resume"):
        train_quietly(tiny_config(media, steps=22), tmp_path / "run")
    train_quietly(tiny_config(media, steps=22), tmp_path / "run", resume=True)
    assert [row["step"] for row in rows(tmp_path / "run")] == [21, 22]


def test_a_run_that_no_step_can_be_made_for_leaves_no_folder_behind(media, tmp_path):
    with pytest.raises(TubeletError, match="batch_size is 1, too small"):
        train_quietly(tiny_config(media, batch_size=1), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_whose_sources_hold_other_files_than_before_reports_it_when_it_is_resumed(media, tmp_path, caplog):
    files, run = tmp_path / "media", tmp_path / "run"
    shutil.copytree(media, files)
    caplog.set_level(logging.INFO, "tubelet")
    train(tiny_config(files, steps=2), run, resume=True)
    assert f"{run}: nothing to resume; starting at step 0" in caplog.text
    with (files / "1.mp4").open("ab") as file:
        file.write(b"\0")
    train(tiny_config(files, steps=3), run, resume=True)
    assert "the sources hold" not in caplog.text
    contents = f"contents of 1 of {len(list(files.iterdir()))} sampled files, such as {files / '1.mp4'}"
    assert f"changed since this run began: {contents}" in caplog.text
    caplog.clear()
    (files / "0.mp4").rename(files / os.fsdecode(b"\xff.mp4"))  # a name that is no text
    train(tiny_config(files, steps=4), run, resume=True)
    change = "what the sources hold, so that data come in another order: 5 videos"
    assert f"changed since this run began: {change}" in caplog.text and "contents of" not in caplog.text


@pytest.mark.slow
def test_a_log_without_a_terminal_has_twenty_lines_of_a_run_and_one_whenever_ten_minutes_are_over(
    media, tmp_path, caplog, monkeypatch
):
    caplog.set_level(logging.INFO, "tubelet")
    config = tiny_config(media, steps=40, batch_size=2, checkpoint_every=40, monitor_every=40)
    config = dataclasses.replace(config, model=ONE_BLOCK)
    for seconds, lines in ((600.0, 20), (0.0, 40)):
        monkeypatch.setattr(progress, "_LOG_SECONDS", seconds)
        caplog.clear()
        train(config, tmp_path / str(lines))
        assert caplog.text.count("clips/s") == lines


def test_a_damaged_checkpoint_is_named_with_what_to_do_and_the_run_continues_from_the_one_before(media, tmp_path):
    config, run = tiny_config(media, steps=10), tmp_path / "run"
    train_quietly(config, run)
    before, newest = rows(run), list_checkpoints(run)[-1]
    newest.write_bytes(newest.read_bytes()[:1000])
    with pytest.raises(TubeletError, match=r"10\.safetensors: cannot be read .*remove it to continue from an older"):
        train_quietly(config, run, resume=True)
    newest.unlink()
    train_quietly(config, run, resume=True)
    assert [row["loss"] for row in rows(run)] == [row["loss"] for row in before]


def test_data_of_a_step_do_not_depend_on_where_loading_began(media):
    config = tiny_config(media)
    media_list = list_media(config.data.sources)
    whole = list(step_loader(config, media_list, 0, pin_memory=False))
    late = list(step_loader(config, media_list, 15, pin_memory=False))
    for a, b in zip(whole[15:], late, strict=True):
        for x, y in zip(a.batches, b.batches, strict=True):
            assert torch.equal(x.pixels, y.pixels)
            assert all(torch.equal(m.context, n.context) for m, n in zip(x.masks, y.masks, strict=True))


def test_recomputed_activations_give_the_same_losses(media, tmp_path):
    for recompute in (True, False):
        train_quietly(tiny_config(media, steps=5, activation_checkpointing=recompute), tmp_path / str(recompute))
    for ours, theirs in zip(rows(tmp_path / "True"), rows(tmp_path / "False"), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-6)


def test_a_deterministic_run_sets_the_algorithms_while_it_lasts(media, tmp_path):
    config = tiny_config(media, steps=1, deterministic=True)
    with Trainer(config, tmp_path / "run", DistContext(torch.device("cpu"))):
        assert torch.are_deterministic_algorithms_enabled()
    assert not torch.are_deterministic_algorithms_enabled()
    empty = tiny_config(tmp_path, steps=1, deterministic=True)
    with pytest.raises(TubeletError), Trainer(empty, tmp_path / "other", DistContext(torch.device("cpu"))):
        pass
    assert not torch.are_deterministic_algorithms_enabled()


def test_accumulated_parts_of_a_step_weigh_one_together_and_hold_all_samples(media):
    config = tiny_config(media, grad_accum_steps=2, batch_size=8)
    step = StepDataset(config, list_media(config.data.sources))[0]
    assert [len(batch.pixels) for batch in step.batches] == [2, 2, 2, 2]
    assert sum(batch.weight for batch in step.batches) == pytest.approx(1)
    assert [batch.modality for batch in step.batches] == ["video", "video", "image", "image"]


def test_bf16_gives_nearly_the_losses_of_fp32(media, tmp_path):
    for precision in ("bf16", "fp32"):
        train_quietly(tiny_config(media, steps=3, precision=precision), tmp_path / precision)
    for ours, theirs in zip(rows(tmp_path / "bf16"), rows(tmp_path / "fp32"), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=0.01)


def test_two_processes_do_not_write_one_run(media, tmp_path):
    with directory_lock(tmp_path / "run"), pytest.raises(TubeletError, match="another process is writing"):
        train_quietly(tiny_config(media, steps=1), tmp_path / "run")
    train_quietly(tiny_config(media, steps=1), tmp_path / "run")
    (tmp_path / "plain").touch()
    assert list_checkpoints(tmp_path / "run")[0].stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_folder_without_locks_is_reported(tmp_path, monkeypatch):
    def unknown(self):
        raise NotImplementedError

    monkeypatch.setattr("filelock.FileLock._acquire", unknown)
    with pytest.warns(UserWarning, match="does not support locking"), directory_lock(tmp_path / "run"):
        assert (tmp_path / "run").is_dir()


def test_a_thread_may_train(media, tmp_path):
    with ThreadPoolExecutor(1) as pool:
        pool.submit(train_quietly, tiny_config(media, steps=1), tmp_path / "run").result()
    assert list_checkpoints(tmp_path / "run")


def test_a_run_without_a_checkpoint_names_the_step_of_its_first_and_what_is_lost(media, tmp_path, caplog):
    config = tiny_config(media, steps=6, checkpoint_every=4)
    train_quietly(config, tmp_path)
    for checkpoint in (tmp_path / "checkpoints").iterdir():
        checkpoint.unlink()
    with pytest.raises(
        TubeletError, match=r"no checkpoint in this directory .* its first one after 5 min of training, or step 4"
    ):
        find_checkpoint(tmp_path)
    with caplog.at_level("INFO", "tubelet"):
        train_quietly(config, tmp_path, resume=True)
    assert "starting at step 0, the 6 steps before are lost (--checkpoint-every 4)" in caplog.text
    assert "the first checkpoint comes at step 4, or after 5 min if that is earlier, and then every 4" in caplog.text


def test_a_cpu_gets_a_warning_of_a_run_of_days_and_the_options_of_one_of_minutes(media, tmp_path, caplog):
    config = tiny_config(media, steps=10**8)
    ctx, lists = DistContext(torch.device("cpu")), list_media([str(media)])
    with caplog.at_level("WARNING", "tubelet"):
        for flops, warned in ((1e11, True), (1e6, False)):
            caplog.clear()
            log_startup(config, lists, RunDirectory(tmp_path, config, False), VJEPA(config.model), ctx, 0, "ddp", flops)
            assert ("takes in the order of 1157.4 days on a CPU" in caplog.text) is warned
