"""Lists of files in the forms in which people and programs write them, and what is hidden in folders."""

import os
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.commands import run_tubelet
from tubelet.data.lists import parse_list
from tubelet.data.paths import Paths, checksum
from tubelet.data.sources import list_media
from tubelet.data.tables import read_lines, read_table
from tubelet.errors import TubeletError, escape_filename
from tubelet.io.hidden_files import is_hidden

NAMES = [f"run/{i}.mp4" for i in range(3)] + [f"riding a bike/{i}.mp4" for i in range(3)]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in NAMES:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path.resolve()


def quoted(name: str) -> str:
    return f'"{name}"' if " " in name else name


@pytest.mark.parametrize(
    "write",
    [
        lambda n: f"{n} 0",
        lambda n: f"{n}::0",
        lambda n: f"{quoted(n)} 0",
        lambda n: f"{n},0",
        lambda n: f'"{n}","0"',
        lambda n: f"{n}\t0",
        lambda n: f"{n};0",
        lambda n: f"{n} 300 0",
        lambda n: f"0 {quoted(n)}",
        lambda n: f"0,{n}",
        lambda n: f"0 {n}",
        lambda n: f'"0"::"{n}"',
        lambda n: n,
        lambda n: f"./{n} , 0 ",
    ],
)
@pytest.mark.parametrize("encode", [lambda t: t.encode(), lambda t: t.replace("\n", "\r\n").encode("utf-16")])
def test_a_list_is_read_whatever_separates_its_columns(write, encode, tree):
    (tree / "list.csv").write_bytes(encode("".join(f"{write(name)}\n" for name in NAMES)))
    media = list_media([str(tree / "list.csv")])
    assert media.videos == [str(tree / name) for name in NAMES]
    assert media.notes[0].startswith(f"{tree / 'list.csv'}: 6 files listed; read as ")


@pytest.mark.parametrize("separator", [",", " ", "\t", ";", "::"])
@pytest.mark.parametrize("header", [("path", "label"), ("label", "path")])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_a_header_names_the_column(separator, header, mark, tree):
    rows = [header, *((name, "3") if header[0] == "path" else ("3", name) for name in NAMES)]
    text = mark + "".join(f"{separator.join(row)}\n" for row in rows)
    listed = parse_list("list.csv", text.encode(), lambda paths: sum((tree / path).exists() for path in paths))
    assert listed.paths.to_pylist() == NAMES and set(listed.labels.to_pylist()) == {"3"}
    assert listed.lines.tolist() == list(range(2, 8))


def test_of_several_readings_that_counts_whose_paths_exist(tree):
    for name in ("b, c.mp4", "x.mp4 y.mp4", "my.mp4 folder/0.mp4"):
        (tree / name).parent.mkdir(exist_ok=True)
        (tree / name).touch()
        for line in (name, f"{name} 7"):
            (tree / "list.txt").write_text(f"{line}\n")
            assert list_media([str(tree / "list.txt")]).videos == [str(tree / name)]


def test_columns_with_line_feeds_and_quotes_in_them(tree):
    text = 'path,caption\nrun/0.mp4,"He said ""run"",\nand ran."\n"riding a bike/1.mp4",no\n'
    (tree / "list.csv").write_text(text)
    assert list_media([str(tree / "list.csv")]).videos == [str(tree / "run/0.mp4"), str(tree / "riding a bike/1.mp4")]


@pytest.mark.parametrize(
    "text, words",
    [
        ("run/0.mp4 0\nrun/1.mp4,0\nrun/2.mp4 0\n", r"line 2: 'run/1\.mp4,0' has no path .* as 2 of the other lines"),
        ("run/0.mp4 0\n# a remark\n", r"line 2: '# a remark' has no path"),
        ("run/0.mp4 0\nrun 0\n", r"line 2: 'run 0' has no path"),
        ('run/0.mp4 0\n"run/1.mp4 0\nrun/2.mp4 0\n', "line 2"),
        ("path label\nrun/0.mp4 0\nnone 1\n", "line 3"),
        ("run/0.mp4\npath\nrun/1.mp4\n", "line 2"),
        ("r\0u\0n\0.\0m\0p\0" + "4\0\n\0", "line 1: contains NUL characters .UTF-16 without a byte order mark"),
        ("run/0.mp4 0\nrun/\x1b[2J.mp4 0\n", r"line 2: .*is not a valid file name"),
    ],
)
def test_a_line_that_cannot_be_understood_is_named_and_none_is_dropped(text, words, tree):
    (tree / "list.csv").write_text(text)
    with pytest.raises(TubeletError, match=words):
        list_media([str(tree / "list.csv")])


def test_files_of_other_kinds_are_left_out_and_named(tree):
    (tree / "list.csv").write_text("run/0.mp4 0\nrun/notes.txt 0\n")
    assert "ignored: 1 .txt file (notes.txt)" in list_media([str(tree / "list.csv")]).notes
    (tree / "run/broken").symlink_to(tree / "nowhere")
    (tree / "run/README").touch()
    notes = list_media([str(tree / "run")]).notes
    assert notes == ["ignored: 1 broken link (broken), 1 file without a suffix (README)"]


def test_a_list_of_ten_thousand_lines_with_one_that_is_wrong(tree):
    lines = [f"class {i % 7}/{i}.mp4 {i % 7}" for i in range(10_000)]
    (tree / "list.csv").write_text("\n".join(lines))
    assert list_media([str(tree / "list.csv")]).videos[-1] == str(tree / "class 3/9999.mp4")
    lines[7_777] = "class 4"
    (tree / "list.csv").write_text("\n".join(lines))
    with pytest.raises(TubeletError, match="line 7778: 'class 4' has no path"):
        list_media([str(tree / "list.csv")])


def test_json_lines_that_pyarrow_would_read_otherwise(tree):
    for line, words in {
        '{"path": "a.mp4"} {"path": "b.mp4"}': "line 1: is not JSON",
        '{\n"path": "a.mp4"}': "line 1: is not JSON",
        '{"path": null}': "line 1: has no path",
        '{"meta": {"path": "a.mp4"}}': "line 1: has no path",
        '{"path": "a.mp4"},': "line 1: is not JSON",
        '{"path": "b.mp4", "path": "c.mp4"}': "line 1: 'path' appears twice in one object",
    }.items():
        (tree / "list.jsonl").write_text(line)
        with pytest.raises(TubeletError, match=words):
            list_media([str(tree / "list.jsonl")])
    (tree / "list.jsonl").write_text('{"p\\u0061th": "a.mp4"}\n')
    assert [Path(p).name for p in list_media([str(tree / "list.jsonl")]).videos] == ["a.mp4"]


# Folders


@pytest.mark.parametrize(
    "name",
    [
        "._x.jpg", ".ipynb_checkpoints", "@eaDir", "lost+found", "Thumbs.db", "desktop.ini", "__MACOSX", ".DS_Store",
        "#recycle", "$RECYCLE.BIN", "System Volume Information", "a.jpg@SynoEAStream", "~$a.mp4", ".Trash-1000",
        "a.mp4:Zone.Identifier", "@Recycle", "THUMBS.DB",
    ],
)  # fmt: skip
def test_what_systems_leave_is_hidden(name, tree):
    assert is_hidden(name)
    (tree / "run" / name).mkdir()
    (tree / "run" / name / "x.mp4").touch()
    media = list_media([str(tree / "run")])
    assert len(media.videos) == 3 and media.notes == [f"ignored: 1 hidden folder, such as {tree}/run/{name}"]


@pytest.mark.parametrize("name", ["eaDir", "recycled paper", "lost and found", "thumbs", "#1", "$5", "@home", "~a"])
def test_what_users_name_is_not(name):
    assert not is_hidden(name)


def test_hidden_files_are_counted_and_globs_leave_them_out(tree):
    (tree / "run/._0.mp4").touch()
    (tree / "run/@eaDir").mkdir()
    (tree / "run/@eaDir/0.mp4").touch()
    assert list_media([str(tree / "run")]).notes == [
        f"ignored: 1 hidden file and 1 hidden folder, such as {tree}/run/._0.mp4"
    ] or list_media([str(tree / "run")]).notes == [
        f"ignored: 1 hidden file and 1 hidden folder, such as {tree}/run/@eaDir"
    ]
    for pattern in ("run/**", "run/**/*.mp4", "r*", "*/[0-9].mp4"):
        assert sum("/run/" in path for path in list_media([str(tree / pattern)]).videos) == 3
    assert list_media([str(tree / "run/@eaDir")]).videos == [str(tree / "run/@eaDir/0.mp4")]  # named by the user
    assert list_media([str(tree / "run/@eaDir/*")]).videos == [str(tree / "run/@eaDir/0.mp4")]


def test_hidden_objects_of_a_storage_are_left_out():
    import fsspec

    files = fsspec.filesystem("memory")
    for name in ("a.mp4", "._a.mp4", "@eaDir/a.mp4", "__MACOSX/._a.mp4"):
        files.pipe_file(f"/hidden/.cache/{name}", b"")
    media = list_media(["memory://hidden/.cache"])
    assert media.videos == ["memory:///hidden/.cache/a.mp4"]
    assert media.notes == ["ignored: 3 hidden files, such as memory:///hidden/.cache/._a.mp4"]
    assert list_media(["memory://hidden/.cache/*.mp4"]).videos == media.videos


def test_a_folder_that_may_not_be_listed_is_an_error(tree, monkeypatch):
    def scandir(path):
        if str(path).endswith("run"):
            raise PermissionError(13, "Permission denied", path)
        return listed(path)

    listed = os.scandir
    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(TubeletError, match=r"/run: cannot be listed \(Permission denied\)"):
        list_media([str(tree)])


def test_a_path_that_may_not_be_looked_at_is_an_error(tree, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied", "secret/index.jsonl")

    monkeypatch.setattr("tubelet.data.sources.is_shards", refuse)
    with pytest.raises(TubeletError, match=r"run: cannot be read \(Permission denied\); change its permissions"):
        list_media([str(tree / "run")])
    monkeypatch.setattr("tubelet.cli.Explain.inputs", refuse)
    done = run_tubelet("explain", tree / "run/0.mp4")
    assert (done.returncode, done.stderr) == (
        1,
        "error: secret/index.jsonl: Permission denied; change its permissions\n",
    )


def test_a_relative_source_and_a_link_that_was_moved_are_read_anew(tree, monkeypatch):
    monkeypatch.chdir(tree)
    (tree / "there").symlink_to("run")
    (tree / "riding a bike/run").mkdir()
    (tree / "riding a bike/run/9.mp4").touch()
    assert list_media(["run"]).videos[0] == str(tree / "run/0.mp4")
    assert list_media(["there"]).videos[0] == str(tree / "run/0.mp4")
    (tree / "there").unlink()
    (tree / "there").symlink_to("riding a bike")
    assert list_media(["there"]).videos[0] == str(tree / "riding a bike/0.mp4")
    monkeypatch.chdir(tree / "riding a bike")
    assert list_media(["run"]).videos == [str(tree / "riding a bike/run/9.mp4")]


# Arrays


def test_paths_in_one_array_are_those_of_the_list():
    names = ["a.mp4", "b c/\u00e9.mp4", "odd\udcff.mp4", "", "with\nfeed.png"]
    paths = Paths.of(names)
    assert list(paths) == names and [paths[i] for i in range(-5, 5)] == names + names and len(paths) == 5
    assert paths[1:4] == names[1:4] and paths[::2] == names[::2] and paths[3:3] == [] and paths != names[:4]
    assert checksum(paths.printed()) == checksum([("\n".join(map(escape_filename, names)) + "\n").encode()])
    with pytest.raises(IndexError):
        paths[5]
    assert np.array_equal(Paths.of([]).offsets, [0])


def test_workers_that_were_started_anew_share_the_array():
    from multiprocessing.reduction import ForkingPickler

    paths = Paths.of(f"{i}.mp4" for i in range(10_000))
    assert len(ForkingPickler.dumps(paths)) < 2_000  # a handle of shared memory, not the names
    assert paths[9_999] == "9999.mp4"


# Tables


def test_a_table_is_read_by_its_header(tmp_path):
    for text in ("label,id\n'a b',1\n", "\ufeffid\tlabel\r\n1\t'a b'\r\n", "label;id;more\n\"'a b'\";1;\n\n"):
        (tmp_path / "table.csv").write_text(text)
        ((line, row),) = read_table(tmp_path / "table.csv", ("label", "id"))
        assert (line, row["label"], row["id"]) == (2, "'a b'", "1")
    (tmp_path / "table.csv").write_text("label,id\nzumba, slow,1\n")
    with pytest.raises(TubeletError, match="line 2 has 3 values, the header 2 columns"):
        read_table(tmp_path / "table.csv", ("label", "id"))
    (tmp_path / "names.txt").write_text('\ufeffbear\r\n\r\n"dog"\n', encoding="utf-16")
    assert read_lines(tmp_path / "names.txt") == ["bear", "dog"]


@pytest.mark.parametrize("rank, local_rank, lists", [(0, 0, 1), (1, 1, 0), (8, 0, 1)])
def test_the_first_process_of_each_machine_lists_and_the_others_receive(rank, local_rank, lists, tree, monkeypatch):
    from tubelet.config import DataConfig, TrainConfig
    from tubelet.train import startup, trainer

    class Group:
        is_rank0 = rank == 0

        def run_on_rank0(self, work):
            return work() if self.is_rank0 else received

    def listed(*arguments, **options):
        calls.append(arguments)
        return list_media(*arguments, **options)

    calls: list[object] = []
    received = list_media([str(tree)])
    monkeypatch.setattr(trainer, "list_media", listed)
    place = {"RANK": rank, "LOCAL_RANK": local_rank, "WORLD_SIZE": 16, "LOCAL_WORLD_SIZE": 8}
    for name, value in (place | {"MASTER_ADDR": "node1", "MASTER_PORT": 29500}).items():
        monkeypatch.setenv(name, str(value))
    media = trainer.list_media_once_per_machine(TrainConfig(data=DataConfig(sources=(str(tree),))), Group())
    assert len(calls) == lists and media.videos == received.videos and (media is received) == (lists == 0)
    assert startup.source_summary(media) == f"6 videos, 0 images, checksum {received.checksum():08x}"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", "path,start,label\nrun/0.mp4,0.5,a\n"),
        ("a.tsv", "label\tpath\tStart\na\trun/0.mp4\t0.5\n"),
        ("a.jsonl", '{"path": "run/0.mp4", "start": 0.5, "height": 3}\n'),
    ],
)
def test_a_column_with_almost_the_name_of_one_that_is_used_is_reported(name, text, tree, caplog):
    parse_list(name, text.encode(), len)
    assert [record.getMessage() for record in caplog.records] == [
        f"{name}: column start is not used (nearest: 'start_s')"
    ]
