import json
import re
from pathlib import Path

import pytest

from tubelet.data.sources import list_media
from tubelet.errors import TubeletError


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """b.mp4, a/c.MKV, a/deep/d.jpg and files that are no media; nothing is looked into, so all are empty."""
    root = tmp_path.resolve()
    for name in ("b.mp4", "a/c.MKV", "a/deep/d.jpg", "a/notes.txt", "x.npz", "y.npz", ".hidden/e.mp4", "._b.mp4"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def test_a_folder_is_searched_with_its_subfolders_sorted(tree: Path) -> None:
    media = list_media([str(tree)])
    assert media.videos == [str(tree / "b.mp4"), str(tree / "a/c.MKV")]
    assert media.images == [str(tree / "a/deep/d.jpg")]


def test_files_that_are_no_media_are_counted_by_suffix(tree: Path) -> None:
    assert list_media([str(tree)]).ignored == {".npz": 2, ".txt": 1}
    (note,) = [note for note in list_media([str(tree)]).notes if ".npz files" in note]
    assert re.fullmatch(r"ignored: 2 \.npz files \(\S+, \.\.\.\), 1 \.txt file \(\S+\)", note)


def test_a_single_file_is_a_source(tree: Path) -> None:
    assert list_media([str(tree / "a/c.MKV")]).videos == [str(tree / "a/c.MKV")]


def test_a_glob_reaches_through_folders(tree: Path) -> None:
    assert list_media([str(tree / "**/*.jpg")]).images == [str(tree / "a/deep/d.jpg")]
    assert list_media([str(tree / "**")]).videos == sorted([str(tree / "b.mp4"), str(tree / "a/c.MKV")])
    assert list_media([str(tree / "a*")]).videos == [str(tree / "a/c.MKV")]


def test_a_file_counts_once_however_often_it_is_named(tree: Path) -> None:
    manifest = write(tree / "list.csv", "b.mp4\na/../b.mp4\n")
    sources = [str(tree / "b.mp4"), str(tree), str(tree / "*.mp4"), str(tree / "a/../b.mp4"), manifest]
    assert list_media(sources).videos == [str(tree / "b.mp4"), str(tree / "a/c.MKV")]


def test_relative_sources_are_found_from_the_working_folder(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tree)
    assert list_media(["a"]).videos == [str(tree / "a/c.MKV")]


def test_a_link_back_to_a_folder_above_is_not_followed_for_ever(tree: Path) -> None:
    (tree / "a" / "loop").symlink_to(tree)
    assert len(list_media([str(tree)]).videos) == 2


def test_a_linked_file_keeps_its_own_name(tree: Path) -> None:
    (tree / "store").mkdir()
    (tree / "store" / "93ab").touch()
    (tree / "linked.mp4").symlink_to(tree / "store" / "93ab")
    assert str(tree / "linked.mp4") in list_media([str(tree)]).videos


@pytest.mark.parametrize(
    "text",
    [
        "path,label\nb.mp4,3\na/c.MKV,4\n",
        "label,path\n3,b.mp4\n4,a/c.MKV\n",
        "label , Path\r\n3, b.mp4\r\n\r\n4, a/c.MKV\r\n",
        "\ufeffpath\nb.mp4\na/c.MKV\n",
        "b.mp4,3\na/c.MKV,4\n",
        "b.mp4\na/c.MKV\n",
        "b.mp4 3\na/c.MKV 4\n",
        '"b.mp4",3\n"a/c.MKV",4',
    ],
)
def test_a_csv_may_have_a_header_or_begin_with_the_path(text: str, tree: Path) -> None:
    media = list_media([write(tree / "list.csv", text)])
    assert media.videos == [str(tree / "b.mp4"), str(tree / "a/c.MKV")]


def test_spaces_in_names_survive_in_a_csv_of_commas(tree: Path) -> None:
    assert list_media([write(tree / "list.csv", "my video.mp4,1\nb.mp4,2\n")]).videos[0] == str(tree / "my video.mp4")
    assert list_media([write(tree / "list.csv", "my video.mp4\nb.mp4\n")]).videos[0] == str(tree / "my video.mp4")


def test_a_jsonl_names_paths(tree: Path) -> None:
    rows = [{"path": "b.mp4", "label": 1}, {"path": str(tree / "a/deep/d.jpg")}]
    media = list_media([write(tree / "list.jsonl", "\n".join(map(json.dumps, rows)) + "\n\n")])
    assert (media.videos, media.images) == ([str(tree / "b.mp4")], [str(tree / "a/deep/d.jpg")])


def test_a_listed_file_that_does_not_exist_is_kept(tree: Path) -> None:
    assert list_media([write(tree / "list.csv", "gone.mp4\n")]).videos == [str(tree / "gone.mp4")]


def test_a_missing_source_is_named(tree: Path) -> None:
    with pytest.raises(TubeletError, match="nowhere: no such file or folder"):
        list_media([str(tree / "nowhere")])
    with pytest.raises(TubeletError, match=r"\*\.avi: nothing matches"):
        list_media([str(tree / "*.avi")])
    with pytest.raises(TubeletError, match="no data source"):
        list_media([])


def test_a_source_without_media_names_what_was_found_instead(tree: Path) -> None:
    for name in ("p.npz", "q.npz", "r.txt", "README"):
        (tree / "odd").mkdir(exist_ok=True)
        (tree / "odd" / name).touch()
    (tree / "void").mkdir()
    with pytest.raises(TubeletError, match=r"odd: 4 files, none of them a video \(.*mp4.*\) or image \(.*\): \.npz 2"):
        list_media([str(tree), str(tree / "odd")])
    with pytest.raises(TubeletError, match="void: has no files"):
        list_media([str(tree / "void")])
    with pytest.raises(TubeletError, match=r"x\.npz: 1 file, none"):
        list_media([str(tree / "x.npz")])
    with pytest.raises(TubeletError, match=r"list\.csv: has no files"):
        list_media([write(tree / "list.csv", "path\n")])


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("list.csv", "path,label\nb.mp4,1\n,2\n", "line 3: has no path in column 1"),
        ("list.csv", "label,path\n1\n", "line 2: has no path in column 2"),
        ("list.csv", "file,label\nb.mp4,1\n", "line 1: its header has no column named path: file, label"),
        ("list.csv", '"file\n\x1b[2J",label\n', r"line 2: its header has no column named path: \\x1b\[2J, label"),
        ("list.jsonl", '{"path": "b.mp4"}\n{"path": \n', "line 2: is not JSON"),
        ("list.jsonl", '{"path": "b.mp4"}\n\n{"file": "c.mp4"}\n', "line 3: has no path"),
        ("list.jsonl", '["b.mp4"]\n', "line 1: has no path"),
        ("list.jsonl", '{"path": 7}\n', "line 1: has no path"),
    ],
)
def test_a_bad_row_is_named_with_file_and_line(name: str, text: str, words: str, tree: Path) -> None:
    with pytest.raises(TubeletError, match=f"{name}, {words}"):
        list_media([write(tree / name, text)])


def test_a_manifest_in_another_encoding_is_an_error(tree: Path) -> None:
    (tree / "list.csv").write_bytes("fêté.mp4\n".encode("latin-1"))
    with pytest.raises(TubeletError, match=r"list\.csv, line 1: is not UTF-8"):
        list_media([str(tree / "list.csv")])
