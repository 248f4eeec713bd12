import dataclasses
import json

import pytest

from tests.helpers.media import (
    write_audio_only,
    write_image,
    write_one_frame,
    write_rotated,
    write_text,
    write_truncated,
    write_variable_rate,
    write_video,
)
from tests.helpers.training import rows, tiny_config, train_quietly
from tubelet.checkpoint.run import list_checkpoints, step_from_name
from tubelet.errors import TubeletError

BAD = {
    "truncated.mp4": "truncated",
    "zero.mp4": "empty",
    "audio.mp4": "no video",
    "text.mp4": "not a",
    "one-frame.mp4": "1 frame",
}


def write_bad(folder):
    write_truncated(folder / "truncated.mp4")
    (folder / "zero.mp4").touch()
    write_audio_only(folder / "audio.mp4")
    write_text(folder / "text.mp4")
    write_one_frame(folder / "one-frame.mp4")


def bad_rows(run):
    return {json.loads(line)["path"]: json.loads(line)["reason"] for line in (run / "bad_files.jsonl").open()}


@pytest.mark.parametrize("workers", [0, 2])
def test_a_mixed_folder_trains_to_the_end_and_each_bad_file_is_named_with_its_reason(tmp_path, workers):
    folder = tmp_path / "mixed"
    folder.mkdir()
    write_bad(folder)
    for i in range(4):
        write_video(folder / f"good{i}.mp4", frames=24)
        write_image(folder / f"good{i}.png")
    write_variable_rate(folder / "variable.mp4")
    write_rotated(folder / "rotated.mp4", 90)
    run = tmp_path / "run"
    train_quietly(tiny_config(folder, steps=12, data={"workers": workers, "max_failed_fraction": 0.5}), run)
    named = bad_rows(run)
    assert {path.rsplit("/", 1)[1] for path in named} == set(BAD)
    for path, reason in named.items():
        assert BAD[path.rsplit("/", 1)[1]] in reason
    assert len(rows(run)) == 12
    assert rows(run)[-1]["bad_files"] == len(BAD)


def test_a_folder_of_bad_files_only_ends_with_one_error_that_names_one(tmp_path):
    folder = tmp_path / "bad"
    folder.mkdir()
    write_bad(folder)
    for share in (0.05, 1.0):
        with pytest.raises(TubeletError, match=r"cannot be read") as error:
            train_quietly(tiny_config(folder, data={"max_failed_fraction": share}), tmp_path / f"run{share}")
        assert "\n" not in str(error.value)


def test_more_bad_files_than_the_requested_share_stop_the_run(tmp_path):
    folder = tmp_path / "mixed"
    folder.mkdir()
    write_text(folder / "text.mp4")
    for i in range(9):
        write_video(folder / f"good{i}.mp4", frames=24)
    with pytest.raises(TubeletError, match=r"1 of 10 files \(10 %\).*--max-failed-fraction"):
        train_quietly(tiny_config(folder, data={"max_failed_fraction": 0.05}), tmp_path / "run")


def test_a_replaced_file_does_not_shift_the_samples_of_the_others(tmp_path):
    import torch

    from tubelet.data.loader import StepDataset
    from tubelet.data.sources import list_media

    folder = tmp_path / "media"
    folder.mkdir()
    for i in range(6):
        write_video(folder / f"{i}.mp4", frames=24)
    config = tiny_config(folder, data={"max_failed_fraction": 0.5})
    media = list_media(config.data.sources)
    before = StepDataset(config, media)[0].batches[0].pixels
    write_text(folder / "0.mp4")
    after = StepDataset(config, media)[0]
    same = [torch.equal(a, b) for a, b in zip(before, after.batches[0].pixels, strict=True)]
    assert same.count(False) == len(after.bad)


def test_a_source_without_media_is_an_error(tmp_path):
    (tmp_path / "notes.txt").write_text("nothing to see")
    with pytest.raises(TubeletError, match=r"\.txt"):
        train_quietly(tiny_config(tmp_path), tmp_path / "run")


def test_a_run_that_meets_too_many_bad_files_keeps_its_steps_and_continues_when_more_may_be(tmp_path, monkeypatch):
    folder, run = tmp_path / "videos", tmp_path / "run"
    folder.mkdir()
    for i in range(8):
        write_video(folder / f"{i}.mp4")
    write_text(folder / "late.mp4")
    config = tiny_config(folder, steps=12, batch_size=1, seed=3, data={"max_failed_fraction": 0.0})
    with pytest.raises(TubeletError, match=r"raise it to --resume.*step-00000000\d\.safetensors is written"):
        train_quietly(config, run)
    done = step_from_name(list_checkpoints(run)[-1])
    assert 0 < done < 9 and [row["step"] for row in rows(run)] == list(range(1, done + 1))
    monkeypatch.chdir(folder)  # sources that were named from elsewhere are found
    lenient = dataclasses.replace(config, data=dataclasses.replace(config.data, max_failed_fraction=0.2))
    train_quietly(lenient, run, resume=True)
    assert [row["step"] for row in rows(run)] == list(range(1, 13))


def test_files_that_were_mended_do_not_count_when_a_run_continues(tmp_path):
    folder, run = tmp_path / "videos", tmp_path / "run"
    folder.mkdir()
    for i in range(5):
        write_video(folder / f"{i}.mp4")
    write_text(folder / "5.mp4")
    config = tiny_config(folder, steps=8)
    with pytest.raises(TubeletError, match="1 of 6 files"):
        train_quietly(config, run)
    write_video(folder / "5.mp4")
    train_quietly(config, run, resume=True)
    assert rows(run)[-1]["step"] == 8 and len(bad_rows(run)) == 1
