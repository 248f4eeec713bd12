"""Nothing is left of a command whose processes are killed: no process, no shared memory, no temporary file."""

import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest
import torch
from rich.console import Console

from tests.helpers.heads import tiny_head
from tests.helpers.process_family import Family, in_temporary, lives, read_log, words
from tests.helpers.training import processes, tiny_config
from tubelet.config import EmbedConfig, PredictConfig, ShardConfig
from tubelet.data import worker_loader
from tubelet.data.clips import resize_center_crop
from tubelet.data.images import read_image
from tubelet.data.shards.writer import write_shards
from tubelet.embed.collection import embed_collection
from tubelet.errors import TubeletError
from tubelet.io.files import temporary_directory
from tubelet.prediction.pipeline import predict_collection
from tubelet.pretrained.backbone import Backbone
from tubelet.sample_data import engine, write_sample_data
from tubelet.tasks.common.cache import FeatureCache
from tubelet.tasks.common.extract import Source, extract
from tubelet.train.trainer import train

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="/proc and /dev/shm are Linux's")


def encoder():
    return Backbone(tiny_config("none").model).eval().requires_grad_(False)


def slow_image(source):
    time.sleep(0.3)
    return resize_center_crop(read_image(source.files[0]).unsqueeze(0), 32).unsqueeze(0)


def run_train(media, out):
    train(tiny_config(media, steps=100_000, data={"workers": 2}), out, console=Console(quiet=True))


def run_embed(media, out):
    clips = EmbedConfig(image_size=32, frames=4, fps=12, batch_size=1, workers=2)
    embed_collection(encoder(), [str(media)], out, clips, progress=lambda done, total: time.sleep(0.3))


def run_predict(media, out):
    model, config = encoder(), PredictConfig(batch_size=1, workers=2)
    heads = {"head": tiny_head(model, "classification")}
    predict_collection(model, heads, [str(media)], out, config, progress=lambda done, total: time.sleep(0.3))


def run_shard(media, out):
    write_shards([str(media)], out, ShardConfig(size=32), workers=2, shard_mb=1e-6)


def run_evaluate(media, out):
    model = encoder()
    sources = [Source(files=(file,), part=(part,)) for part in range(100) for file in sorted(media.glob("*.png"))]
    extract(model, FeatureCache(out, model), sources, {}, slow_image, workers=2)


def run_sample_data(media, out):
    write_sample_data(out, clips=60, images=0, size=64, frames=4, workers=2)


COMMANDS = {
    "train": run_train,
    "embed": run_embed,
    "predict": run_predict,
    "shard": run_shard,
    "evaluate": run_evaluate,
    "sample-data": run_sample_data,
}


def run_command(name, media, out, temporary, log):
    """What a command does, in a process of its own that has imported everything."""
    multiprocessing.set_start_method(None, force=True)  # as in a process that a shell started
    torch.set_num_threads(1)
    in_temporary(temporary)
    for number in (1, 2):
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    try:
        COMMANDS[name](media, out)
    except TubeletError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(1)


class Command:
    """A command that runs, and its family."""

    def __init__(self, name, media, folder):
        self.log, temporary = folder / "log", folder / "tmp"
        temporary.mkdir()
        self.process = processes.Process(target=run_command, args=(name, media, folder / "out", temporary, self.log))
        self.process.start()
        self.family = Family(self.process.pid, temporary)

    def workers(self):
        """The processes that the command started and that have begun their work."""
        return [p for p in self.family.root.children() if lives(p) and p.num_threads() > 1]

    def victim(self, kind):
        """The process of a kind, once the command is at work."""
        root = self.family.root
        if kind == "engine":
            return self.family.wait_for(lambda p: words(p).split(" ")[0].endswith("/vizdoom"))
        if kind == "supervisor":
            return self.victim("engine").parent()
        # One of two: `extract` reads the first file with one worker, which may have ended its work when it is killed.
        worker = self.family.wait_for(lambda p: p in (working := self.workers()) and len(working) > 1)
        time.sleep(0.3)
        self.family.find()
        if kind == "worker":
            return worker
        # What a command leaves that is killed between two sets of workers goes at its next start: another test.
        root.suspend()
        while not self.workers():
            root.resume()
            time.sleep(0.05)
            root.suspend()
        return root

    def end(self):
        for member in filter(lives, self.family.find()):
            member.kill()
        self.process.join(30)


@pytest.fixture
def start(media, tmp_path):
    started = []

    def begin(name):
        started.append(Command(name, media, tmp_path))
        return started[-1]

    yield begin
    for command in started:
        command.end()


@pytest.mark.parametrize(
    ("name", "victim"),
    [
        *(
            (name, victim)
            for name in ("train", "embed", "predict", "shard", "evaluate")
            for victim in ("parent", "worker")
        ),
        *(("sample-data", victim) for victim in ("parent", "worker", "supervisor", "engine")),
    ],
)
def test_nothing_is_left_when_a_process_is_killed(start, name, victim):
    if name == "sample-data":
        pytest.importorskip("vizdoom")
    command = start(name)
    process = command.victim(victim)
    if name == "sample-data":
        command.victim("engine")  # there is one
    process.kill()
    command.process.join(15)
    assert command.family.left() == [], read_log(command.log)
    command.process.join(30)
    if victim != "parent":
        (sentence,) = [line for line in read_log(command.log).splitlines() if line.startswith("error: ")]
        assert "ended unexpectedly" in sentence or "the engine stopped" in sentence, sentence
        assert {"supervisor": "supervisor was killed"}.get(victim, "ended by SIGKILL") in sentence, sentence
        assert "memory may" not in sentence


@pytest.mark.parametrize(
    ("name", "kind", "sweep"),
    [("train", "workers", worker_loader._sweep_tensors), ("sample-data", "engine", engine._sweep)],
)
def test_what_is_left_when_all_are_killed_at_once_goes_at_the_next_start(start, name, kind, sweep, monkeypatch):
    if name == "sample-data":
        pytest.importorskip("vizdoom")
    command = start(name)
    command.victim("engine" if name == "sample-data" else "worker")
    members: list[psutil.Process] = []
    while new := [member for member in command.family.find() if member not in members]:  # what starts meanwhile too
        for member in new:
            member.suspend()
        members += new
    for member in members:
        member.kill()
    psutil.wait_procs(members, timeout=10)
    assert any(command.family.temporary.iterdir())
    monkeypatch.setattr(tempfile, "tempdir", str(command.family.temporary))
    monkeypatch.setattr(engine, "ORPHAN_S", 0.0)
    engine._sweep_unmapped(0.0, time.time())
    with temporary_directory(kind, sweep) as (folder, _):
        assert [entry.name for entry in command.family.temporary.iterdir()] == [folder.name]
    assert command.family.left() == []


SLOW_MKDIR = """
#include <dlfcn.h>
#include <sys/stat.h>
#include <unistd.h>
int mkdir(const char *path, mode_t mode) {
    usleep(700000);
    return ((int (*)(const char *, mode_t))dlsym((void *)-1L, "mkdir"))(path, mode);
}
"""
BROKEN_ENGINE = """
extern char *program_invocation_short_name;
#include <stdio.h>
#include <string.h>
#include <unistd.h>
__attribute__((constructor)) static void start(void) {
    if (strcmp(program_invocation_short_name, "vizdoom")) return;
    puts("loading\\n\\nR_Init: no textures");
    fflush(stdout);
    _exit(3);
}
"""


@pytest.fixture
def preload(tmp_path, monkeypatch):
    """A function that loads C code into every program that is started from then on."""

    def load(code):
        if (compiler := shutil.which("cc")) is None:
            pytest.skip("there is no C compiler")
        (tmp_path / "loaded.c").write_text(code)
        command = [compiler, "-D_GNU_SOURCE", "-shared", "-fPIC", "-o", "loaded.so", "loaded.c", "-ldl"]
        subprocess.run(command, cwd=tmp_path, check=True)
        monkeypatch.setenv("LD_PRELOAD", str(tmp_path / "loaded.so"))

    return load


def test_engines_that_start_at_once_share_no_working_directory(tmp_path, monkeypatch, preload):
    pytest.importorskip("vizdoom")
    place = tmp_path / "place"
    place.mkdir()
    preload(SLOW_MKDIR)
    monkeypatch.chdir(place)
    write_sample_data("set", clips=2, images=0, size=64, frames=3, workers=2)
    assert [entry.name for entry in place.iterdir()] == ["set"]


def test_a_working_directory_that_cannot_be_written_to_is_no_obstacle(tmp_path, monkeypatch):
    pytest.importorskip("vizdoom")
    monkeypatch.chdir("/proc")  # where not even root can make a directory
    write_sample_data(tmp_path / "set", clips=1, images=0, size=64, frames=3, workers=1)


def test_the_engines_own_last_words_are_in_the_error(tmp_path, monkeypatch, preload):
    pytest.importorskip("vizdoom")
    preload(BROKEN_ENGINE)
    with pytest.raises(TubeletError, match=r"exit code 3, its last output: loading / R_Init: no textures; ") as error:
        write_sample_data(tmp_path / "set", clips=1, images=0, size=64, frames=3, workers=1)
    assert "memory" not in str(error.value)


def test_a_folder_in_use_or_of_another_kind_stays(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    stranger = tmp_path / "tubelet-engineer"
    stranger.mkdir()
    with temporary_directory("engine") as (first, _), temporary_directory("engine") as (second, _):
        assert first.is_dir() and second.is_dir() and first != second
    assert list(tmp_path.iterdir()) == [stranger]
    Path(tempfile.mkdtemp(prefix="tubelet-engine-"))  # of a process that was killed before it took the lock
    with temporary_directory("engine") as (third, _):
        assert sorted(tmp_path.iterdir()) == sorted([stranger, third])
