"""A folder has one writer, who locks it before looking at what is there; readers of what changes are no victims."""

import shutil
import warnings
from pathlib import Path

import pytest
import torch

from tests.helpers.training import rows, tiny_config, train_quietly
from tubelet.checkpoint.weights import LoadSpec
from tubelet.config import EmbedConfig, ShardConfig
from tubelet.data.shards.writer import write_shards
from tubelet.embed import search as searching
from tubelet.embed import table as tables
from tubelet.embed.collection import embed_collection
from tubelet.embed.search import search
from tubelet.errors import TubeletError
from tubelet.io.files import LOCK, directory_lock
from tubelet.pretrained.convert import convert
from tubelet.pretrained.load import load
from tubelet.sample_data import write, write_sample_data
from tubelet.sample_data.layouts import write_layout
from tubelet.train import trainer

CLIPS = EmbedConfig(image_size=32, frames=4, fps=12, batch_size=4, workers=0)
TINY = {"clips": 2, "images": 0, "size": 64, "frames": 3}


@pytest.fixture(scope="module")
def run(media, tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "run"
    train_quietly(tiny_config(media, steps=2), run)
    return run


def test_the_slower_of_two_runs_in_one_new_folder_leaves_the_faster_unchanged(media, tmp_path, monkeypatch):
    run, config = tmp_path / "run", tiny_config(media, steps=2)

    def slower(folder):
        monkeypatch.setattr(trainer, "directory_lock", directory_lock)
        train_quietly(config, run)  # from its first look to its last step, while the other is about to lock
        return directory_lock(folder)

    monkeypatch.setattr(trainer, "directory_lock", slower)
    with pytest.raises(TubeletError, match="a run is here already; continue it with --resume"):
        train_quietly(tiny_config(media, steps=3), run)
    assert [row["step"] for row in rows(run)] == [1, 2]


def test_a_run_at_work_is_at_work_and_not_damaged(media, run, tmp_path):
    live = tmp_path / "run"
    shutil.copytree(run, live)
    (live / "metrics.jsonl").write_text('{"step": 1, "lo\n')
    with directory_lock(live), pytest.raises(TubeletError, match="another process is writing to it; wait for it"):
        train_quietly(tiny_config(media, steps=4), live, resume=True)
    with pytest.raises(TubeletError, match=r"metrics\.jsonl, line 1: is not JSON"):
        train_quietly(tiny_config(media, steps=4), live, resume=True)


def test_a_refused_run_leaves_no_folder(media, tmp_path):
    with pytest.raises(TubeletError, match=r"none"):
        train_quietly(tiny_config(media, steps=1, init_from=str(tmp_path / "none")), tmp_path / "runs" / "run")
    assert not (tmp_path / "runs" / "run").exists()


def test_each_command_that_writes_a_folder_has_it_to_itself(media, run, sample_set, tmp_path):
    out = tmp_path / "out"
    model = load(run, device="cpu", dtype=torch.float32)
    commands = [
        lambda: write_shards([str(media)], out, ShardConfig(size=32), workers=1),
        lambda: embed_collection(model, [str(media)], out, CLIPS),
        lambda: write_sample_data(out, **TINY),
    ]
    with directory_lock(out):
        for command in commands:
            with pytest.raises(TubeletError, match=f"{out}: another process is writing to it; wait for it, or "):
                command()
        assert [entry.name for entry in out.iterdir()] == [LOCK]
    with directory_lock(out, ".convert.lock"), pytest.raises(TubeletError, match="another process is writing"):
        convert(run, out, LoadSpec())
    with (
        directory_lock(sample_set / "layouts", ".davis.lock"),
        pytest.raises(TubeletError, match=r"layouts: another process is writing to it; .* choose another FOLDER"),
    ):
        write_layout(sample_set, "davis")


def test_a_converted_folder_holds_no_lock(run, tmp_path):
    convert(run, tmp_path / "hub", LoadSpec())
    assert not [entry.name for entry in (tmp_path / "hub").iterdir() if "lock" in entry.name]


def test_what_a_killed_sample_data_left_is_no_obstacle(sample_set, tmp_path, monkeypatch):
    """Killed while it rendered, while it moved what was finished, and just before the end."""

    def render(settings, *arguments):
        for split in write.SPLITS:
            (settings.root / split).mkdir()
        return {"parameters": {}}

    monkeypatch.setattr(write, "_render_set", render)
    for left in (["x"], ["val"], []):
        out = tmp_path / f"set{len(list(tmp_path.iterdir()))}"
        (out / write.UNFINISHED).mkdir(parents=True)
        for name in left:
            (out / write.UNFINISHED / name).mkdir()
        (out / "train").mkdir()
        (out / "train" / "old").touch()
        write_sample_data(out, **TINY)
        assert sorted(entry.name for entry in out.iterdir()) == [LOCK, "dataset.json", "train", "val"]
        assert not list((out / "train").iterdir())
    (out / write.DATASET).unlink()
    with pytest.raises(TubeletError, match="contains other files"):  # not marked as of this command
        write_sample_data(out, **TINY)


def test_a_sample_set_that_fails_leaves_no_folder(tmp_path, monkeypatch):
    def render(root, *arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(write, "_render_set", render)
    with pytest.raises(KeyboardInterrupt):
        write_sample_data(tmp_path / "set", **TINY)
    assert not list(tmp_path.iterdir())


def test_a_table_that_changes_while_it_is_searched_is_read_again(media, run, tmp_path, monkeypatch):
    model, out = load(run, device="cpu", dtype=torch.float32), tmp_path / "table"
    embed_collection(model, [str(media)], out, CLIPS)
    real, gone = tables.parts, Path(out / "part-000099.parquet")
    listings = iter([[gone, *real(out)], [*real(out), gone]])
    monkeypatch.setattr(tables, "parts", lambda path: next(listings, real(path)))
    (hit,) = search(out, media / "0.png", top=1, model=model)
    assert not hit.path.endswith("/0.png")
    monkeypatch.setattr(tables, "parts", lambda path: [gone, *real(path)])
    with pytest.raises(TubeletError, match="try again when `tubelet embed` has finished"):
        search(out, media / "0.png", model=model)
    assert searching.ATTEMPTS > 2


def test_a_lock_is_free_again_and_an_empty_folder_goes(tmp_path):
    folder = tmp_path / "a" / "b"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with directory_lock(folder):
            assert (folder / LOCK).is_file()
        assert not folder.exists()
        with directory_lock(folder):
            (folder / "file").touch()
        with directory_lock(folder):
            pass
    assert sorted(entry.name for entry in folder.iterdir()) == [LOCK, "file"]
