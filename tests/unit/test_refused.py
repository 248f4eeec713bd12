"""What comes from outside runs no code, leads to no other file, and takes no more than stated time and memory."""

import ast
import io
import json
import os
import re
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.fuzz.fuzz import _forget_peak, _peak_mb
from tests.helpers.decoding import decode_clips
from tests.helpers.media import write_image, write_video
from tubelet import config
from tubelet.checkpoint.run import FORMAT, load_vjepa
from tubelet.checkpoint.vjepa2_1 import read_released
from tubelet.config import DataConfig, ModelConfig, TrainConfig, from_dict, to_dict
from tubelet.data import size_limits
from tubelet.data.batch import MediaBytes
from tubelet.data.decode import read_frames
from tubelet.data.images import read_image
from tubelet.data.shards.reader import open_shards
from tubelet.data.size_limits import LINE_CHARACTERS
from tubelet.data.sources import list_media
from tubelet.errors import DecodeError, TubeletError
from tubelet.sample_data import truth

SOURCE = Path(__file__).parents[2] / "src" / "tubelet"
FILES = sorted(SOURCE.rglob("*.py"))
UNSAFE_MODULES = {"cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "yaml", "runpy", "code"}
UNSAFE_BUILTINS = {"eval", "exec", "compile", "__import__"}
UNSAFE_METHODS = {"extract", "extractall", "unpack_archive", "import_module", "system", "popen"}


# What a file must contain to need a look at its syntax tree.
SUSPECT = re.compile(
    r"[pP]ickle|\b(dill|joblib|marshal|shelve|yaml|runpy)\b|(import|from) code\b"
    r"|(?<![.\w])(eval|exec|compile|__import__)\("
    r"|\.(extract|extractall|unpack_archive|import_module|system|popen|load)\(|shell=|trust_remote_code="
)


def test_no_code_of_the_package_unpickles_unpacks_or_evaluates():
    texts = {path.relative_to(SOURCE).as_posix(): path.read_text() for path in FILES}
    assert [place for file, text in texts.items() if SUSPECT.search(text) for place in unsafe_places(file, text)] == []


@pytest.mark.parametrize(
    "text",
    [
        "import os, shelve",
        "from pickle import loads",
        "from code import interact",
        "import io\npickle.loads(b'')",
        "eval('1')",
        "x = [__import__('os')]",
        "os.system('ls')",
        "import tarfile\nfile.extract('a')",
        "importlib.import_module(name)",
        "torch.load(path)",
        "np.load(path)",
        "run(command, shell=True)",
        "load(name, trust_remote_code=True)",
    ],
)
def test_code_that_unpickles_unpacks_or_evaluates_is_found(text):
    assert SUSPECT.search(text) and [*unsafe_places("a.py", text)]


def unsafe_places(file, text):
    """Lines of a file that run what they read, or may."""
    archives = re.search(r"\b(tarfile|zipfile)\b", text)
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            origin = getattr(node, "module", None) or ""
            imported = {name.split(".")[0] for name in (origin, *(alias.name for alias in node.names))}
            unsafe = UNSAFE_MODULES - ({"yaml"} if file == "io/config_file.py" else set())  # its loader is a SafeLoader
            safe = not imported & unsafe and origin != "pickle"
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value) == "pickle":
            # `torch.load` raises the error; jobs.py passes jobs to its own processes through pipes, never a file.
            safe = node.attr == "UnpicklingError" or file == "data/process_map.py"
        elif isinstance(node, ast.Call):
            given = {word.arg: ast.unparse(word.value) for word in node.keywords}
            owner, _, name = ast.unparse(node.func).rpartition(".")
            # Names of the package's own modules, and `extract` of what is no archive, are safe.
            own_module = name == "import_module" and re.match(
                r"f?[\"'](tubelet|\{__name__\})[.'\"]", ast.unparse(node.args[0])
            )
            no_archive = name == "extract" and not archives
            safe = name not in (UNSAFE_METHODS if owner else UNSAFE_BUILTINS) or own_module or no_archive
            if name == "load" and owner == "torch":
                safe = given.get("weights_only") == "True"
            if name == "load" and owner in ("np", "numpy"):
                safe = given.get("allow_pickle") == "False"
            safe = safe and given.get("shell") != "True" and given.get("trust_remote_code") != "True"
        else:
            continue
        if not safe:
            yield f"{file}:{node.lineno}: {ast.unparse(node)}"


# Manifests


@pytest.fixture
def tree(tmp_path):
    root = tmp_path.resolve() / "set"
    for name in ("set/a.mp4", "other/b.mp4", "set2/c.mp4"):
        (root.parent / name).parent.mkdir(exist_ok=True)
        (root.parent / name).touch()
    (root / "way-out").symlink_to(root.parent / "other")
    return root


@pytest.mark.parametrize(
    ("listed", "allowed"),
    [
        ("../other/b.mp4", "other"),
        ("{up}/other/b.mp4", "other"),
        ("../set2/c.mp4", "set2"),
        ("way-out/../other/b.mp4", "other"),
        ("a/../../other/b.mp4", "other"),
    ],
)
def test_a_path_out_of_the_manifests_folder_is_refused_and_the_message_names_what_allows_it(listed, allowed, tree):
    manifest = tree / "list.jsonl"
    listed = listed.format(up=tree.parent)
    manifest.write_text('{"path": "a.mp4"}\n' + json.dumps({"path": listed}))
    with pytest.raises(TubeletError) as error:
        list_media([str(manifest)])
    message = str(error.value)
    assert message.startswith(f"{manifest}, line 2: {listed} is outside the manifest's folder, as are 1 of its 2 paths")
    assert message.endswith(f"add --allow-path {tree.parent / allowed}")
    place = message.rsplit(" ", 1)[1]
    assert len(list_media([str(manifest)], [place]).videos) == 2
    with pytest.raises(TubeletError):  # its beginning is not enough
        list_media([str(manifest)], [place[:-1]])


def test_a_link_below_the_manifests_folder_is_followed_as_in_a_source(tree):
    (tree / "list.csv").write_text("way-out/b.mp4\n")
    assert list(list_media([str(tree / "list.csv")]).videos) == [str(tree.parent / "other/b.mp4")]
    assert str(tree.parent / "other/b.mp4") in list(list_media([str(tree)]).videos)


@pytest.mark.parametrize("listed", ["s3://bucket/a.mp4", "file:///etc/a.mp4", "http://10.0.0.1/a.mp4", "~/a.mp4"])
def test_urls_and_homes_in_a_manifest_are_outside_of_it(listed, tree):
    (tree / "list.jsonl").write_text(json.dumps({"path": listed}))
    with pytest.raises(TubeletError, match="is outside"):
        list_media([str(tree / "list.jsonl")])


def test_a_remote_manifest_stays_below_its_url():
    import fsspec

    for listed, inside in [
        ("b/c.mp4", True),
        ("memory://set/in/b.mp4", True),
        ("../b.mp4", False),
        ("/other/b.mp4", False),
        ("memory://set/../other/b.mp4", False),
        ("/etc/b.mp4", False),
    ]:
        fsspec.filesystem("memory").pipe_file("/set/in/list.jsonl", json.dumps({"path": listed}).encode())
        if inside:
            assert len(list_media(["memory://set/in/list.jsonl"]).videos) == 1
        else:
            with pytest.raises(TubeletError, match="is outside"):
                list_media(["memory://set/in/list.jsonl"])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"path": "' + "a" * LINE_CHARACTERS + '.mp4"}', "characters, above the limit of 65536"),
        ('{"path": ' + "[" * 20_000, "is not JSON"),
        ('{"path": "a\\u0000.mp4"}', "is not a valid file name"),
        ('{"path": "a\\ud800.mp4"}', "contains an invalid character"),
        ('{"n": ' + "1" * 5000 + ', "path": 1}', "is not JSON"),
        ('{"path": "file://a::s3://b/c.mp4"}', "chain of URLs"),
        ('{"path": "~nobody-at-all/a.mp4"}', "cannot be resolved"),
    ],
)
def test_a_row_that_is_made_to_harm_is_refused_by_its_line(text, words, tree):
    (tree / "list.jsonl").write_text("\n" + text)
    with pytest.raises(TubeletError, match=rf"list\.jsonl, line 2: .*{words}"):
        list_media([str(tree / "list.jsonl")])


# Media


def test_an_image_of_ten_thousand_million_pixels_is_refused_before_it_takes_memory(tmp_path):
    for name in ("still.png", "still.jpg"):
        data = bytearray(write_image(tmp_path / name).read_bytes())
        if name.endswith(".png"):
            data[16:24] = (100_000).to_bytes(4, "big") * 2
            data[29:33] = zipfile.crc32(bytes(data[12:29])).to_bytes(4, "big")
        else:
            at = data.index(b"\xff\xc0") + 5
            data[at : at + 4] = (65_000).to_bytes(2, "big") * 2
        _forget_peak()
        before = _peak_mb()
        with pytest.raises(DecodeError, match="more than 89 million pixels"):
            read_image(MediaBytes(name, bytes(data)))
        assert _peak_mb() - before < 100


def test_the_limit_of_images_does_not_depend_on_pillows_setting(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    monkeypatch.setattr("tubelet.data.images.IMAGE_PIXELS", 1000)
    file = io.BytesIO()
    Image.new("RGB", (40, 40)).save(file, "PNG")
    with pytest.raises(DecodeError, match="pixels; make it smaller"):
        read_image(MediaBytes("still", file.getvalue()))


@pytest.mark.parametrize("which", [0, 3])
def test_a_video_whose_images_become_huge_is_refused_before_it_takes_memory(which, tmp_path):
    path = write_video(tmp_path / "video.mov", codec="mjpeg", bframes=0, frames=6, size=32)
    data = bytearray(path.read_bytes())
    at = -1
    for _ in range(which + 1):
        at = data.index(b"\xff\xc0", at + 1)
    data[at + 5 : at + 9] = (60_000).to_bytes(2, "big") * 2
    _forget_peak()
    before = _peak_mb()
    with pytest.raises(DecodeError, match=r"corrupt frames|pixels, above the limit of 35 million"):
        read_frames(MediaBytes("video", bytes(data)))
    assert _peak_mb() - before < 300


def test_a_containers_claim_of_huge_images_only_takes_no_memory(tmp_path):
    path = write_video(tmp_path / "video.avi", codec="mpeg4", bframes=0, frames=6, size=32)
    data = bytearray(path.read_bytes())
    at = data.index(b"strf") + 12
    data[at : at + 8] = (100_000).to_bytes(4, "little") * 2
    _forget_peak()
    before = _peak_mb()
    assert read_frames(MediaBytes("video", bytes(data))).pixels.shape == (6, 32, 32, 3)
    assert _peak_mb() - before < 300


def test_a_clip_that_would_not_fit_in_memory_is_refused(tmp_path, monkeypatch):
    path = write_video(tmp_path / "video.mp4", frames=24, size=32)
    monkeypatch.setattr(size_limits, "CLIP_PIXELS", 4 * 32 * 32)
    with pytest.raises(DecodeError, match="5 frames of 32x32 pixels exceed"):
        decode_clips(path, [np.arange(5) / 12])
    with pytest.raises(DecodeError, match="5 frames of 32x32 pixels exceed"):
        read_frames(path)
    assert len(decode_clips(path, [np.arange(4) / 12])[0].times) == 4


@pytest.mark.parametrize(
    "text",
    [
        "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{video}\n#EXT-X-ENDLIST\n",
        "ffconcat version 1.0\nfile '{video}'\n",
    ],
)
@pytest.mark.parametrize("in_memory", [True, False])
def test_a_playlist_in_the_guise_of_a_video_opens_no_other_file(text, in_memory, tmp_path):
    write_video(tmp_path / "video.mp4", frames=6, size=32)
    path = tmp_path / "list.mp4"
    path.write_text(text.format(video="video.mp4"))
    with pytest.raises(DecodeError, match="not a media file"):
        read_frames(MediaBytes(str(path), path.read_bytes()) if in_memory else path)


def test_pipes_and_devices_are_refused_instead_of_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    with pytest.raises(DecodeError, match="is not a regular file"):
        read_frames(tmp_path / "pipe.mp4")
    with pytest.raises(DecodeError, match="is not a regular file"):
        read_image(tmp_path / "zero.png")


# Shards, arrays, configs and weights


@pytest.mark.parametrize("name", ["../x.tar", "/etc/passwd", "a/b.tar", "..", "C:\\b.tar", "http://x/y", "", 7])
def test_an_index_that_names_a_tar_elsewhere_is_refused(name, tmp_path):
    header = {"tubelet_shards": 1, "recipe": {}, "shards": [{"name": name, "size": 9}], "members": 1}
    (tmp_path / "index.jsonl").write_text(json.dumps(header) + "\n{}\n")
    with pytest.raises(TubeletError, match=r"line 1: .* is not the name and size of a tar next to it"):
        open_shards(tmp_path)


def npz(path, **entries):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries.items():
            archive.writestr(f"{name}.npy", data)
    return path


def test_arrays_that_claim_or_unpack_to_too_much_are_refused(tmp_path, monkeypatch):
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "<f8", "fortran_order": False, "shape": (10**12,)})
    with pytest.raises(TubeletError, match="claims the shape"):
        truth.read_truth(npz(tmp_path / "claims.npz", classes=file.getvalue() + bytes(100)))
    monkeypatch.setattr(truth, "ARRAY_BYTES", 10_000)
    with pytest.raises(TubeletError, match="unpacks to more than the limit"):
        truth.read_truth(npz(tmp_path / "bomb.npz", classes=bytes(20_000)))


def test_arrays_of_objects_are_not_unpickled(tmp_path):
    np.savez(tmp_path / "objects.npz", classes=np.array([{"a": 1}], dtype=object))
    with pytest.raises(TubeletError, match=r"objects\.npz: .*sample set again"):
        truth.read_truth(tmp_path / "objects.npz")


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (("steps",), "12", "run: steps is '12', expected a whole number"),
        (("steps",), True, "run: steps is True, expected a whole number"),
        (("data",), [], r"run: data is \[\], expected a mapping"),
        (("data", "sources"), "videos", "run: data.sources is 'videos', expected a list of"),
        (("data", "crop_scale"), [1], r"run: data.crop_scale is \(1.0,\), expected a list of 2 numbers"),
        (("optim", "lr"), float("inf"), "run: optim.lr is inf, expected a finite number"),
        (("optim", "decay"), "exp", "run: optim.decay is 'exp', expected 'cosine' or 'linear'"),
        (("model", "depth"), 10**9, "run: model.depth is 1000000000, expected 1 to 1024"),
        (("model", "heads"), 0, "run: model.heads is 0, expected 1 to"),
        (("masks", "image"), [3], r"run: masks.image\[0\] is 3, expected a mapping"),
    ],
)
def test_a_config_with_a_value_of_another_kind_is_refused_by_its_name(path, value, words):
    values = json.loads(json.dumps(to_dict(TrainConfig(data=DataConfig(sources=("videos",))))))
    place = values
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(TubeletError, match=words):
        from_dict(TrainConfig, values, "run")


@pytest.mark.parametrize("name", config.MODELS)
def test_every_preset_survives_json(name):
    run = TrainConfig(model=config.model_preset(name))
    assert from_dict(TrainConfig, json.loads(json.dumps(to_dict(run)))) == run


def test_a_checkpoint_whose_config_speaks_of_a_giant_is_refused_before_it_takes_memory(tmp_path):
    giant = ModelConfig(width=2**16, depth=2, heads=2**10, levels=(0, 1))
    run = json.dumps(to_dict(replace(TrainConfig(), model=giant)))
    save_file({"x": torch.zeros(1)}, tmp_path / "a.safetensors", {"format": FORMAT, "step": "1", "config": run})
    _forget_peak()
    before = _peak_mb()
    with pytest.raises(TubeletError, match="does not match the model: missing"):
        load_vjepa(tmp_path / "a.safetensors")
    assert _peak_mb() - before < 300
    assert load_file(tmp_path / "a.safetensors").keys() == {"x"}


def test_a_tensor_that_is_larger_than_what_the_file_holds_of_it_is_refused(tmp_path):
    state = {"blocks.0.norm1.weight": torch.zeros(1).expand(10**12)}
    torch.save({"encoder": state, "predictor": {}, "target_encoder": state}, tmp_path / "a.pt")
    with pytest.raises(TubeletError, match=r"has shape \(1000000000000,\), more than its storage"):
        read_released(tmp_path / "a.pt")


@pytest.mark.parametrize("file", [{"encoder": 7}, {"encoder": {"a": 7}}, {"encoder": {3: torch.zeros(1)}}])
def test_a_pt_file_of_other_things_than_tensors_is_refused(file, tmp_path):
    torch.save({"predictor": {}, "target_encoder": {}, **file}, tmp_path / "a.pt")
    with pytest.raises(TubeletError, match=r"expected a dictionary of tensors|is not a plain tensor"):
        read_released(tmp_path / "a.pt")
