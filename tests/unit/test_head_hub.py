"""Heads on the Hub, next to their encoders; the Hub is a folder here."""

import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi

import tubelet
from tests.helpers.heads import tiny_encoder, tiny_head
from tubelet.errors import ConfigError, FileError, MissingFileError
from tubelet.prediction.fitted_head import FittedHead


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A folder that takes what is uploaded, and gives it back."""
    there = tmp_path / "hub"

    def repository(name):
        return there / name.replace("/", "--")

    def create(_, *, repo_id, **__):
        repository(repo_id).mkdir(parents=True, exist_ok=True)
        return type("Repository", (), {"repo_id": repo_id})

    def upload(_, *, path_or_fileobj, path_in_repo, repo_id, **__):
        target = repository(repo_id) / path_in_repo
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path_or_fileobj, target)

    def upload_folder(_, *, folder_path, repo_id, **__):
        shutil.copytree(folder_path, repository(repo_id), dirs_exist_ok=True)

    def download(name, file, **_):
        if not (found := repository(name) / file).is_file():
            raise OSError("404 not found")
        return str(found)

    monkeypatch.setattr(HfApi, "create_repo", create)
    monkeypatch.setattr(HfApi, "upload_file", upload)
    monkeypatch.setattr(HfApi, "upload_folder", upload_folder)
    monkeypatch.setattr(HfApi, "file_exists", lambda _, name, file, **__: (repository(name) / file).is_file())
    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **_: str(repository(name)))
    return there


def test_a_head_is_loaded_from_the_hub_with_its_encoder(hub):
    model = tiny_encoder()
    head = FittedHead.of(tiny_head(model, "regression"))
    head.target_scale = torch.tensor([2.0, 3.0, 4.0])
    where = head.push_to_hub("someone/encoder", "walking", model=model)
    assert where == "someone/encoder/heads/walking.safetensors"
    again = tubelet.load_head(where)
    assert again.spec.encoder.source == "someone/encoder"  # the rest of the spec is that of the head
    tokens = torch.randn(2, 2, 4, head.spec.width)
    torch.testing.assert_close(again(tokens), head(tokens))
    again.check_encoder(tubelet.load(again.spec.encoder.source, device="cpu"))


def test_a_head_without_its_encoder_keeps_the_place_of_the_encoder(hub):
    head = FittedHead.of(tiny_head(tiny_encoder(), "classification"))
    where = head.push_to_hub("someone/heads", "walking.safetensors")
    assert tubelet.load_head(where).spec == head.spec
    assert [path.name for path in Path(hub / "someone--heads").rglob("*") if path.is_file()] == ["walking.safetensors"]


def test_a_second_head_finds_the_encoder_that_is_there(hub):
    model = tiny_encoder()
    FittedHead.of(tiny_head(model, "classification")).push_to_hub("someone/encoder", "first", model=model)
    where = FittedHead.of(tiny_head(model, "classification", seed=1)).push_to_hub("someone/encoder", "second")
    assert tubelet.load_head(where).spec.encoder.source == "someone/encoder"


def test_faults_on_the_way_to_and_from_the_hub_are_one_sentence(hub, monkeypatch):
    head = FittedHead.of(tiny_head(tiny_encoder(), "classification"))
    with pytest.raises(ConfigError, match=r"name is '\.\./x'"):
        head.push_to_hub("someone/encoder", "../x")
    with pytest.raises(ConfigError, match="was trained on the encoder"):
        head.push_to_hub("someone/encoder", "x", model=tiny_encoder(seed=1))
    with pytest.raises(MissingFileError, match=r"the Hub has no head of this name \(404 not found\)"):
        tubelet.load_head("someone/encoder/heads/nothing.safetensors")
    with pytest.raises(MissingFileError, match=r"head\.safetensors: does not exist"):
        tubelet.load_head("folder/head.safetensors")  # not the form of a head on the Hub

    def refuse(*_, **__):
        raise OSError("401 unauthorized")

    monkeypatch.setattr(HfApi, "create_repo", refuse)
    with pytest.raises(FileError, match=r"the Hub does not take it \(401 unauthorized\)"):
        head.push_to_hub("someone/encoder", "x")
    assert not hub.exists()
