"""Sources in an S3-compatible store, over a network that fails: the same samples, or one sentence that says why not."""

import json

import fsspec
import pandas as pd
import pytest
import torch

from tests.helpers.decoding import decode_clips
from tests.helpers.media import write_image, write_video
from tests.helpers.s3_server import serve
from tests.helpers.training import rows, tiny_config, train_quietly
from tubelet.config import EmbedConfig, ShardConfig
from tubelet.data import storage
from tubelet.data.decode import read_frames
from tubelet.data.images import read_image
from tubelet.data.loader import StepDataset
from tubelet.data.part_table import parts
from tubelet.data.shards.writer import write_shards
from tubelet.data.sources import list_media
from tubelet.data.storage import StorageError
from tubelet.embed.collection import embed_collection
from tubelet.errors import DecodeError, TubeletError
from tubelet.pretrained.load import load

URL = "s3://bucket/videos"


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos").resolve()
    for i in range(4):
        write_video(folder / f"{i}.mp4", frames=24)
        write_image(folder / f"{i}.png", index=i)
    (folder / "notes.txt").write_text("no video")
    (folder / ".hidden.mp4").touch()
    (folder / "list.csv").write_text("path\n0.mp4\n1.mp4\n3.png\n")
    return folder


@pytest.fixture(scope="module")
def network(videos):
    with serve() as network, pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "AWS_ENDPOINT_URL": network.url,
            "AWS_ACCESS_KEY_ID": "tester",
            "AWS_SECRET_ACCESS_KEY": "tester",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_MAX_ATTEMPTS": "1",  # the tries counted here are the package's own
            "NO_PROXY": "127.0.0.1",
        }.items():
            patch.setenv(name, value)
        fsspec.get_filesystem_class("s3").clear_instance_cache()
        files = fsspec.filesystem("s3")
        files.makedirs("bucket", exist_ok=True)  # a slow answer makes the client ask twice
        files.put(str(videos) + "/", "bucket/videos/", recursive=True)
        yield network
        fsspec.get_filesystem_class("s3").clear_instance_cache()


@pytest.fixture(autouse=True)
def impatient(monkeypatch, network):
    monkeypatch.setattr(storage, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(storage, "READ_TIMEOUT_S", 1.5)
    network.disturb(lambda number: None)


def test_folders_globs_files_and_manifests_are_found_by_url(videos):
    folder = list_media([URL + "/"])
    assert folder.videos == [f"{URL}/{i}.mp4" for i in range(4)]
    assert folder.images == [f"{URL}/{i}.png" for i in range(4)]
    assert folder.notes[0].startswith("ignored: 1 .csv file (") and ", 1 .txt file (" in folder.notes[0]
    assert list_media([URL]) == folder
    assert list_media([f"{URL}/[01].mp4"]).videos == [f"{URL}/0.mp4", f"{URL}/1.mp4"]
    assert list_media(["s3://bucket/**/2.*"]).images == [f"{URL}/2.png"]
    assert list_media([f"{URL}/2.mp4"]).videos == [f"{URL}/2.mp4"]
    listed = list_media([f"{URL}/list.csv"])
    assert (listed.videos, listed.images) == ([f"{URL}/0.mp4", f"{URL}/1.mp4"], [f"{URL}/3.png"])


def test_a_local_manifest_may_list_urls_that_are_allowed(videos, tmp_path):
    manifest = tmp_path / "list.jsonl"
    manifest.write_text(json.dumps({"path": f"{URL}/0.mp4"}) + "\n")
    with pytest.raises(TubeletError, match=r"line 1: s3://bucket.*add --allow-path s3://bucket$"):
        list_media([str(manifest)])
    assert list_media([str(manifest)], ["s3://bucket"]).videos == [f"{URL}/0.mp4"]


def test_a_url_without_files_is_an_error(videos):
    for url, words in (("s3://bucket/void", "no such file"), ("s3://bucket/*.mkv", "nothing matches")):
        with pytest.raises(TubeletError, match=words):
            list_media([url])


@pytest.mark.parametrize("fault", ["error", "slow", "cut"])
def test_a_network_that_fails_now_and_then_delivers_the_same_frames(fault, videos, network):
    network.disturb(lambda number: fault if number in (1, 2, 4) else None)
    assert read_frames(f"{URL}/0.mp4").pixels.equal(read_frames(videos / "0.mp4").pixels)
    assert read_image(f"{URL}/0.png").equal(read_image(videos / "0.png"))
    assert network.faults >= 2


def test_storage_that_stays_away_is_tried_five_times_and_stops_the_run_without_a_bad_file(network, monkeypatch):
    monkeypatch.setattr(storage, "READ_TIMEOUT_S", 0.4)
    config = tiny_config(URL, data={"max_failed_fraction": 1.0})
    media = list_media([URL])
    network.disturb(lambda number: "cut")
    with pytest.raises(StorageError, match=r"0\.png: cannot be read .*check the URL, the network and the credentials"):
        read_image(f"{URL}/0.png")
    step = StepDataset(config, media)[0]
    assert step.bad == [] and "cannot be read" in step.failure


def test_a_single_object_that_is_missing_is_a_bad_file(videos, network, tmp_path):
    media = list_media([URL])
    manifest = tmp_path / "list.csv"
    manifest.write_text("".join(f"{url}\n" for url in [*media.videos, "s3://bucket/videos/gone.mp4"]))
    config = tiny_config(manifest, steps=5, data={"allow_path": ("s3://bucket",), "max_failed_fraction": 0.5})
    train_quietly(config, tmp_path / "run")
    named = [json.loads(line) for line in (tmp_path / "run" / "bad_files.jsonl").open()]
    assert named == [{"path": f"{URL}/gone.mp4", "reason": "does not exist"}]


def test_a_run_from_a_bucket_in_worker_processes_has_the_losses_of_one_from_the_folder(videos, network, tmp_path):
    train_quietly(tiny_config(videos, steps=4), tmp_path / "near")
    # The parent has listed the bucket when its workers are forked. Workers race for the numbers, and only a read can be
    # cut: of some 37 requests five are refused whatever their order, and some of the reads end in their middle.
    network.disturb(lambda number: "error" if number % 7 == 3 else "cut" if number % 5 == 0 else None)
    train_quietly(tiny_config(URL, steps=4, data={"workers": 2}), tmp_path / "far")
    assert network.faults > 2
    for near, far in zip(rows(tmp_path / "near"), rows(tmp_path / "far"), strict=True):
        assert far["loss"] == pytest.approx(near["loss"], abs=1e-6)
        assert far["bad_files"] == 0


def test_shards_and_features_of_a_bucket_are_those_of_the_folder(videos, network, tmp_path):
    recipe = ShardConfig(size=32, fps=6, segment_s=1)
    made = write_shards([URL], tmp_path / "far", recipe, workers=1)
    near = write_shards([str(videos)], tmp_path / "near", recipe, workers=1)
    assert (made.videos, made.images, made.size) == (near.videos, near.images, near.size)
    fsspec.filesystem("s3").put(str(tmp_path / "far") + "/", "bucket/v1.0/", recursive=True)
    assert len(list_media(["s3://bucket/v1.0"]).shards[0].members) == near.videos + near.images
    train_quietly(tiny_config(videos, steps=1), tmp_path / "run")
    model = load(tmp_path / "run", device="cpu")
    config = EmbedConfig(image_size=32, frames=4, fps=12, batch_size=4, workers=0)
    tables = []
    for name, source in (("a", URL), ("b", str(videos))):
        embed_collection(model, [source], tmp_path / name, config)
        tables.append(pd.concat([pd.read_parquet(part) for part in parts(tmp_path / name)], ignore_index=True))
    assert list(tables[0]["path"]) == [path.replace(str(videos), URL) for path in tables[1]["path"]]
    for far, near_row in zip(tables[0]["pooled"], tables[1]["pooled"], strict=True):
        assert torch.equal(torch.from_numpy(far.copy()), torch.from_numpy(near_row.copy()))


def test_features_stop_with_one_sentence_where_storage_stays_away(videos, network, monkeypatch, tmp_path):
    monkeypatch.setattr(storage, "READ_TIMEOUT_S", 0.4)
    train_quietly(tiny_config(videos, steps=1), tmp_path / "run")
    config = EmbedConfig(image_size=32, frames=4, fps=12, workers=1, max_failed_fraction=1.0)
    network.disturb(lambda number: "cut" if number > 3 else None)
    with pytest.raises(StorageError, match="cannot be read") as error:
        embed_collection(load(tmp_path / "run", device="cpu"), [URL], tmp_path / "table", config)
    assert "\n" not in str(error.value)


def test_of_a_long_file_only_the_blocks_that_a_clip_needs_are_fetched(videos, network):
    padding = 12 * 2**20
    data = (videos / "0.mp4").read_bytes() + padding.to_bytes(4, "big") + b"free" + bytes(padding - 8)
    fsspec.filesystem("s3").pipe_file("bucket/long/video.mp4", data)
    network.disturb(lambda number: None)
    decode_clips("s3://bucket/long/video.mp4", [torch.tensor([0.5, 1.0]).numpy()])
    assert network.sent <= 3 * storage.BLOCK_BYTES


def test_an_object_that_is_cut_short_or_empty_is_a_bad_file(videos, network):
    files = fsspec.filesystem("s3")
    files.pipe_file("bucket/bad/half.mp4", (videos / "0.mp4").read_bytes()[:2000])
    files.pipe_file("bucket/bad/empty.png", b"")
    with pytest.raises(DecodeError, match="index"):
        read_frames("s3://bucket/bad/half.mp4")
    with pytest.raises(DecodeError, match="empty"):
        read_image("s3://bucket/bad/empty.png")
