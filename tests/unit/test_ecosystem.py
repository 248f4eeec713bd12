"""From and to the files, and behind the interfaces, that others expect."""

import copy
import json
import pickle
import shutil
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest
import torch
import torch.distributed as dist
from huggingface_hub import HfApi, ModelCard
from torch.nn.parallel import DistributedDataParallel

import tubelet
from tests.helpers.media import write_image, write_video
from tests.helpers.training import tiny_config, train_quietly
from tubelet.checkpoint import registry as sources
from tubelet.checkpoint.vjepa2_1 import read_released
from tubelet.checkpoint.weights import LoadSpec
from tubelet.config import ModelConfig, OptimConfig, PredictorConfig
from tubelet.errors import TubeletError
from tubelet.pretrained import load as load_module
from tubelet.pretrained.backbone import Backbone
from tubelet.pretrained.convert import convert
from tubelet.pretrained.encoder_export import export_encoder

CONFIG = ModelConfig(
    width=48, depth=4, heads=2, levels=(0, 1, 3), patch_size=8, predictor=PredictorConfig(width=24, depth=2, heads=2)
)
load = partial(tubelet.load, device="cpu", dtype=torch.float32)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of two steps."""
    folder = tmp_path_factory.mktemp("run")
    write_video(folder / "video.mp4", frames=24)
    write_image(folder / "still.png")
    config = replace(tiny_config(folder, steps=2), optim=OptimConfig(lr=1e-3, ema=0.9))
    train_quietly(config, folder / "mine")
    return folder / "mine"


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Backbone(CONFIG, with_predictor=True).eval()


def same(a, b):
    assert a.state_dict().keys() == b.state_dict().keys()
    return all(torch.equal(value, b.state_dict()[name]) for name, value in a.state_dict().items())


def test_a_run_gives_its_newest_teacher_or_its_student(run):
    teacher, student = load(run), load(run, encoder="student")
    assert teacher.name == "mine/step-000000002"
    assert not same(teacher, student) and teacher.fingerprint != student.fingerprint
    assert teacher.config_hash == student.config_hash
    assert same(teacher, load(run / "checkpoints" / "step-000000002.safetensors"))


def test_a_saved_encoder_comes_back_to_the_bit_with_its_name(run, tmp_path):
    model = load(run, with_predictor=True)
    model.save_pretrained(tmp_path / "saved", model_card_kwargs={"license": "mit", "metrics": {"mIoU": 0.5}})
    for again in (load(tmp_path / "saved", with_predictor=True), load(tmp_path / "saved" / "model.safetensors")):
        assert again.model_id == model.model_id and again.config == model.config
    assert same(Backbone.from_pretrained(tmp_path / "saved", device="cpu", dtype=torch.float32), load(run))
    card = ModelCard.load(tmp_path / "saved" / "README.md")
    assert (card.data.license, card.data.library_name, card.data.metrics) == ("mit", "tubelet", ["mIoU"])
    assert "| mIoU | 0.5 |" in card.text
    with pytest.raises(TubeletError, match="contains only the teacher"):
        load(tmp_path / "saved", encoder="student")


@pytest.mark.parametrize("name", ["a.safetensors", "a.pt", "folder"])
def test_a_file_of_the_student_only_loads_and_converts_as_it_is(run, tmp_path, name):
    student = load(run, encoder="student")
    convert(run, tmp_path / "student.safetensors", LoadSpec("student"))
    convert(tmp_path / "student.safetensors", tmp_path / name, LoadSpec()) if name != "a.safetensors" else None
    path = tmp_path / ("student.safetensors" if name == "a.safetensors" else name)
    again = load(path, **({"heads": 2, "levels": (0, 1)} if name == "a.pt" else {}))
    assert again.encoder_name == "student" and again.weights_id == student.weights_id


@pytest.mark.parametrize("name", ["a.safetensors", "a.pt", "a.pt2", "folder"])
def test_a_target_that_cannot_be_written_is_named(run, tmp_path, name):
    (tmp_path / "file").write_text("no folder")
    target = tmp_path / "file" / name
    with pytest.raises(TubeletError, match=r"a\.bin: expected NAME\.pt"):
        convert(run, tmp_path / "a.bin", LoadSpec())
    with pytest.raises(TubeletError, match=f"{name}.*(written|expected)"):
        export_encoder(load(run), target) if name == "a.pt2" else convert(run, target, LoadSpec())


def test_what_is_pushed_to_the_hub_loads_from_it(model, tmp_path, monkeypatch):
    monkeypatch.setattr(HfApi, "create_repo", lambda *_, repo_id, **__: type("Repo", (), {"repo_id": repo_id}))
    monkeypatch.setattr(
        HfApi, "upload_folder", lambda *_, folder_path, **__: shutil.copytree(folder_path, tmp_path / "there")
    )
    model.push_to_hub("someone/encoder", model_card_kwargs={"license": "cc-by-4.0"})
    asked = []
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download", lambda name, **options: asked.append((name, options)) or tmp_path / "there"
    )
    again = load("someone/encoder", with_predictor=True, revision="v1")
    assert same(model, again)
    patterns = {"allow_patterns": ["config.json", "*.safetensors"], "ignore_patterns": ["heads/*"]}
    assert asked == [("someone/encoder", {"revision": "v1"} | patterns)]


def test_a_hub_id_that_is_not_there_is_one_sentence(monkeypatch):
    def offline(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    with pytest.raises(
        TubeletError,
        match=r"someone/nothing: no such file or directory, and the Hub has no model of this name \(no network\)",
    ):
        load("someone/nothing")


@pytest.mark.parametrize("first", ["own.safetensors", "own", "own.pt"])
def test_a_run_survives_every_conversion_to_the_bit(run, tmp_path, first):
    convert(run, tmp_path / first, LoadSpec(predictor=True))
    heads = {"heads": 2, "predictor_heads": 2, "levels": (0, 1)}
    model = load(tmp_path / first, with_predictor=True, **heads)
    assert same(model, load(run, with_predictor=True))
    convert(tmp_path / first, tmp_path / "back.safetensors", LoadSpec(predictor=True, **heads))
    assert same(load(tmp_path / "back.safetensors", with_predictor=True), model)


def test_a_single_encoder_becomes_a_released_file_with_its_teacher(run, tmp_path):
    convert(run, tmp_path / "own", LoadSpec())
    convert(tmp_path / "own", tmp_path / "own.pt", LoadSpec())
    assert same(load(tmp_path / "own.pt", heads=2, levels=(0, 1)), load(run))
    with pytest.raises(TubeletError, match="expected the keys 'encoder'"):
        read_released(tmp_path / "own.pt")


def test_a_file_is_not_converted_onto_itself(run, tmp_path):
    convert(run, tmp_path / "a.safetensors", LoadSpec())
    with pytest.raises(TubeletError, match="is one of the inputs"):
        convert(tmp_path / "a.safetensors", tmp_path / "a.safetensors", LoadSpec())


def test_a_folder_of_two_models_is_none(run, tmp_path):
    for part in ("student", "teacher"):
        convert(run, tmp_path / f"{part}.safetensors", LoadSpec(part))
    with pytest.raises(TubeletError, match="contains several models"):
        load(tmp_path)
    assert load(tmp_path / "student.safetensors").encoder_name == "student"


def test_a_model_is_not_written_among_the_files_of_another(run, tmp_path):
    convert(run, tmp_path / "model-00001-of-00002.safetensors", LoadSpec())
    with pytest.raises(TubeletError, match="holds the weights of another model"):
        convert(run, tmp_path, LoadSpec())
    assert not (tmp_path / "config.json").exists()


def test_a_folder_with_a_dot_in_its_name_keeps_all_of_it(tmp_path):
    (tmp_path / "vjepa2.tuned").mkdir()
    assert load_module._name_of(tmp_path / "vjepa2.tuned", tmp_path / "vjepa2.tuned") == "vjepa2.tuned"


def test_the_id_names_which_weights_are_in_memory_and_what_was_saved(run, tmp_path):
    model = load(run)
    first = model.model_id
    assert copy.deepcopy(model).bfloat16().model_id == first
    model.blocks[0].mlp.fc1.weight.mul_(2)
    assert model.model_id != first
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert again.model_id == model.model_id
    model.bfloat16().save_pretrained(tmp_path)
    saved = load(tmp_path).model_id
    assert saved == model.model_id == json.loads((tmp_path / "config.json").read_text())["model_id"]


def test_the_id_knows_a_change_anywhere_in_a_tensor(run):
    before = load(run, device="cpu", dtype=torch.float32)
    after = load(run, device="cpu", dtype=torch.float32)
    with torch.no_grad():
        after.blocks[0].attention.proj.weight[1:] = 0
    assert before.weights_id != after.weights_id


@pytest.mark.parametrize("place", [(0, 0), (0, 1), (5, 47), (-1, -1)])
def test_the_id_sees_every_value_of_a_tensor_and_no_type_that_it_is_stored_in(place):
    torch.manual_seed(0)
    model = Backbone(CONFIG)  # 48 wide: of qkv's 144 x 48 values, every 27th would miss most
    same = Backbone(CONFIG)
    same.load_state_dict(model.state_dict())
    assert same.weights_id == model.weights_id and len(model.fingerprint) == 16
    with torch.no_grad():
        same.blocks[1].attention.qkv.weight[place] += 1e-6
    assert same.weights_id != model.weights_id
    rounded = {name: value.bfloat16() for name, value in model.state_dict().items()}
    again, wide = Backbone(CONFIG).bfloat16(), Backbone(CONFIG)
    again.load_state_dict(rounded)
    wide.load_state_dict({name: value.float() for name, value in rounded.items()})
    again.identify()
    assert again.weights_id == wide.weights_id


@pytest.mark.slow
def test_a_network_of_ones_own_is_trained_by_ddp_that_finds_unused_parameters(model, tmp_path):
    own = torch.nn.ModuleDict({"encoder": model.requires_grad_(), "head": torch.nn.Linear(48, 1)})
    own.forward = lambda clips: own["head"](own["encoder"].forward_features(clips).mean(1))
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        for finds in (True, False):
            network = DistributedDataParallel(own, find_unused_parameters=finds)
            with nullcontext() if finds else pytest.raises(RuntimeError, match="find_unused_parameters=True"):
                for _ in range(2):
                    network(torch.randn(2, 3, 4, 16, 16)).sum().backward()
    finally:
        dist.destroy_process_group()
    unused = {name.split(".")[0] for name, value in model.named_parameters() if value.grad is None}
    assert unused == {"norms", "tokenizer", "predictor"} and model.norms[-1].weight.grad is not None


def test_a_state_goes_into_a_model_without_a_file(model):
    again = tubelet.Backbone(model.config, with_predictor=True)
    assert not same(model, again)
    again.load_state_dict(model.state_dict())
    assert same(model, again) and again.weights_id == model.weights_id


def test_heads_for_vits_find_what_timm_has(model):
    images, clips = torch.randn(2, 3, 32, 24), torch.randn(2, 3, 4, 32, 24)
    assert (model.embed_dim, model.num_features, model.patch_size, model.num_prefix_tokens) == (48, 48, 8, 0)
    assert model.feature_info[3] == {"module": "blocks.3", "num_chs": 48, "reduction": 8}
    final, maps = model.forward_intermediates(images, indices=[0, -1], norm=True)
    assert torch.equal(final, model.forward_features(images)) and final.shape == (2, 12, 48)
    assert [m.shape for m in maps] == [(2, 48, 4, 3)] * 2
    assert torch.equal(maps[1].flatten(2).mT, final)
    assert torch.equal(maps[0].flatten(2).mT, model(images.unsqueeze(2))[0])
    assert len(model.forward_intermediates(images, intermediates_only=True)) == 4
    tokens = model.forward_intermediates(images, indices=2, output_fmt="NLC", intermediates_only=True)
    assert [t.shape for t in tokens] == [(2, 12, 48)] * 2
    _, (volume,) = model.forward_intermediates(clips, indices=1)
    assert volume.shape == (2, 48, 2, 4, 3)
    with pytest.raises(TubeletError, match=r"expected some of 0\.\.3"):
        model.forward_intermediates(images, indices=[4])


def test_features_have_the_data_type_of_the_weights_for_pixels_of_any_other(model):
    images = torch.randn(2, 3, 32, 24)
    expected = model(images)
    model.bfloat16()
    for pixels in (images, images.unsqueeze(2).double()):
        levels, final = model(pixels), model.forward_features(pixels)
        assert {level.dtype for level in levels} == {final.dtype} == {torch.bfloat16}
        assert torch.equal(levels[-1], final)
        for ours, exact in zip(levels, expected, strict=True):
            assert torch.nn.functional.cosine_similarity(ours.float(), exact, dim=-1).min() > 0.99
    packed = model([images[:1].unsqueeze(2)] * 2, [torch.tensor([[0, 5]])] * 2)
    assert packed[-1].shape == (1, 4, 48) and packed[-1].dtype == torch.bfloat16


def test_intermediates_come_from_shallow_to_deep_and_as_a_dictionary_as_those_of_timm(model):
    images = torch.randn(2, 3, 32, 24)
    final, maps = model.forward_intermediates(images, indices=[1, 3])
    for indices in ([3, 1], (-1, 1, 3)):
        found = model.forward_intermediates(images, indices=indices, output_dict=True)
        assert list(found) == ["image_intermediates", "image_features"]
        assert torch.equal(found["image_features"], final)
        assert all(torch.equal(a, b) for a, b in zip(found["image_intermediates"], maps, strict=True))
    alone = model.forward_intermediates(images, output_dict=True, intermediates_only=True)
    assert list(alone) == ["image_intermediates"]


CONTENT = bytes(range(256)) * 4000
NAME = "vjepa2.1-vitb16-384"
FILE = sources.RELEASED[NAME]


class Handler(SimpleHTTPRequestHandler):
    """One file, whole or from some byte on, as the release's server gives it."""

    asked: list[str | None] = []  # noqa: RUF012 - one server at a time

    def do_GET(self):
        asked = self.headers.get("Range")
        self.asked.append(asked)
        if not self.path.endswith(FILE):
            return self.send_error(404)
        begin = int(asked.removeprefix("bytes=").split("-")[0]) if asked else 0
        found = range(begin, len(CONTENT))
        self.send_response(200 if not asked else 206 if found else 416)
        self.send_header("Content-Length", str(len(found)))
        if asked:
            place = f"{begin}-{len(CONTENT) - 1}" if found else "*"
            self.send_header("Content-Range", f"bytes {place}/{len(CONTENT)}")
        self.end_headers()
        for i in found[::100_000]:
            self.wfile.write(CONTENT[i : i + 100_000])
            self.wfile.flush()

    def log_message(self, *_):
        pass


@pytest.fixture
def release(tmp_path, monkeypatch):
    """A server with one released file, and the folder that it is downloaded to."""
    cache = tmp_path / "cache" / "tubelet" / "released"
    cache.mkdir(parents=True)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(sources, "RELEASE_URL", f"http://127.0.0.1:{server.server_port}/")
    Handler.asked.clear()
    yield cache
    server.shutdown()
    server.server_close()


def test_a_download_that_was_broken_off_continues_where_it_ended(release):
    (release / f"{FILE}.partial").write_bytes(CONTENT[:100_000])
    found = sources.resolve_checkpoint(NAME)
    with pytest.raises(TubeletError, match=r"could not be downloaded.*vjepa2_1_vitg_384\.pt"):  # 404
        sources.resolve_checkpoint("vjepa2.1-vitg16-384")
    assert found == release / FILE and found.read_bytes() == CONTENT
    assert Handler.asked[0].startswith("bytes=100000-")


@pytest.mark.parametrize("beyond", [b"", b"something else"])
def test_a_download_with_nothing_left_to_fetch_is_taken_if_it_is_whole_and_else_made_anew(release, beyond):
    (release / f"{FILE}.partial").write_bytes(CONTENT + beyond)
    assert sources.resolve_checkpoint(NAME).read_bytes() == CONTENT


def test_several_who_want_a_file_at_once_get_it_whole_from_one_download(release):
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: sources.resolve_checkpoint(NAME).read_bytes(), range(4)))
    assert found == [CONTENT] * 4 and len(Handler.asked) == 1
