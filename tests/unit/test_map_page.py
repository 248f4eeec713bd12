"""The page of a map: what it contains, and how it behaves in a browser."""

import json
import re

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.helpers.commands import run_tubelet
from tests.helpers.media import write_video
from tubelet.cli.map import read_colorings
from tubelet.data.part_table import rows_to_table
from tubelet.embed.clip_vectors import ClipVectors
from tubelet.embed.duplicates import DuplicatePair
from tubelet.embed.layout import ClipLayout
from tubelet.embed.table import FORMAT
from tubelet.errors import TubeletError
from tubelet.labels.table import read_labels
from tubelet.view.map_page import Coloring, MapContent, _neighbors_of_other_files, write_map_page

HOSTILE = '</script><script>window.attacked = 1</script> "a", b\u202e\x1b.mp4'
FILES, EACH = 10, 4
N = FILES * EACH


def content(folder):
    """Clips on a grid of 8 x 5 places; those of the first file have thumbnails."""
    rng = np.random.default_rng(0)
    write_video(folder / "0.mp4", frames=48)
    names = [str(folder / "0.mp4"), *(str(folder / f"{i} {HOSTILE if i == 1 else '.mp4'}") for i in range(1, FILES))]
    file, start = np.repeat(np.arange(FILES), EACH), np.tile(np.arange(EACH), FILES).astype(float)
    x = rng.normal(size=(N, 8)).astype(np.float32)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    similarity = x @ x.T - 2 * np.eye(N, dtype=np.float32)
    neighbors = np.argsort(-similarity, axis=1)[:, :16]
    places = np.stack([np.arange(N) % 8, np.arange(N) // 8], 1).astype(np.float32)
    layout = ClipLayout(places, neighbors, np.take_along_axis(similarity, neighbors, 1), rng.random(N).astype("f4"))
    colorings = [
        Coloring("cluster", "Alike.", np.array([f"cluster {1 + i // 20}" for i in range(N)])),
        Coloring(HOSTILE, HOSTILE, np.array([HOSTILE if i % 2 else "" for i in range(N)])),
        Coloring("time", "Seconds.", start),
    ]
    pairs = [DuplicatePair((1, 2), ((0.0, 3.0), (1.0, 4.0)), 1.0, 0.9, 0.6)]
    return MapContent("table", ClipVectors(names, file, start, start + 1, x), layout, colorings, pairs, [3, 5])


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("map")
    made = content(folder)
    write_map_page(made, folder / "map.html", 4)
    return folder / "map.html", made


def test_a_page_has_all_clips_and_no_name_leaves_its_data(page):
    text = page[0].read_text()
    data = json.loads(re.search(r'id="data">(.*?)</script>', text, re.DOTALL)[1])
    assert data["files"][1] == f"1 {HOSTILE}" and data["clips"] == N
    assert text.count("</script>") == 4 and "\u202e" not in text and "window.attacked" in text
    assert len(data["thumbnails"]) <= 4 and len(data["duplicates"]) == 1 and data["picks"] == [3, 5]
    assert data["colorings"][1]["labels"][0]["count"] == N // 2


def test_neighbors_are_of_other_files_where_there_are_any(page):
    data = json.loads(re.search(r'id="data">(.*?)</script>', page[0].read_text(), re.DOTALL)[1])
    assert data["neighbors"] == 8
    clips = page[1].clips
    found, similarity = _neighbors_of_other_files(clips, page[1].layout)
    assert (clips.file[found] != clips.file[:, None]).all() and (np.diff(similarity, axis=1) <= 0).all()


@pytest.fixture
def opened(browser, page):
    browser.open(page[0], 1300, 900)
    return browser


def move_to(browser, clip):
    x, y = browser.evaluate(f"screen({clip})")
    left, top, _, _ = browser.place("#overlay")
    browser.page.mouse.move(left + x, top + y)
    return left + x, top + y


@pytest.mark.browser
def test_a_point_shows_its_clip_and_a_click_its_neighbors(opened, page):
    move_to(opened, 2)
    opened.wait("!$('card').hidden")
    assert "0.mp4, 2.0 to 3.0 s. cluster: cluster 1" in opened.evaluate("$('card-text').textContent")
    before = opened.evaluate("document.querySelector('#card .thumb').style.backgroundPosition")
    opened.wait(f"document.querySelector('#card .thumb').style.backgroundPosition !== {json.dumps(before)}")
    opened.page.mouse.click(*move_to(opened, 6))
    text = opened.evaluate("$('list').innerText")
    assert text.count("similarity") == 8 and opened.evaluate("state.focus") == 6
    assert "\\u202e" in opened.evaluate("$('about').textContent")
    assert opened.evaluate("window.attacked") is None


@pytest.mark.browser
def test_a_lasso_selects_what_it_surrounds_and_the_list_is_a_label_table(opened, page, tmp_path):
    opened.click("#lasso")
    left, top, _, _ = opened.place("#overlay")
    (x0, y0), (x1, y1) = opened.evaluate("[screen(0), screen(18)]")  # columns 0 to 2, rows 0 to 2
    corners = [(x0 - 15, y0 - 15), (x1 + 15, y0 - 15), (x1 + 15, y1 + 15), (x0 - 15, y1 + 15)]
    opened.page.mouse.move(left + corners[0][0], top + corners[0][1])
    opened.page.mouse.down()
    for x, y in corners[1:]:
        opened.page.mouse.move(left + x, top + y, steps=3)
    opened.page.mouse.up()
    expected = [8 * row + column for row in range(3) for column in range(3)]
    assert opened.evaluate("selection()") == expected
    opened.page.fill("#label", 'walk, "fast"')
    opened.click("#give")
    opened.page.fill("#legend li:nth-child(2) input", "still")
    with opened.page.expect_download() as download:
        opened.click("#save-labels")
    download.value.save_as(tmp_path / "labels.csv")
    table = read_labels(tmp_path / "labels.csv")
    clips = page[1].clips
    assert [(str(row.path), row.start_s, row.labels) for row in table.rows] == [
        (clips.paths[clips.file[i]], clips.start_s[i], ('walk, "fast"',) if i in expected else ("still",))
        for i in [*expected, *range(20, 40)]
    ]


@pytest.mark.browser
def test_keys_move_from_clip_to_clip_select_and_clear(opened):
    opened.evaluate("focusOn(9)")
    for key, clip in (("ArrowRight", 10), ("ArrowDown", 18), ("ArrowLeft", 17), ("ArrowUp", 9)):
        opened.press(key)
        assert opened.evaluate("state.focus") == clip
    opened.press("s")
    opened.press("Enter")
    assert opened.evaluate("[selection(), state.list]") == [[9], "neighbors"]
    opened.press("Escape")
    assert opened.evaluate("[state.count, state.focus]") == [0, -1]


@pytest.mark.browser
def test_colors_lists_and_hidden_labels(opened):
    opened.page.select_option("#color", "1")
    assert "\\u202e" in opened.evaluate("$('legend').innerText")
    opened.click("#legend button")
    assert not opened.evaluate("isShown(1)") and opened.evaluate("isShown(2)")
    opened.page.select_option("#color", "2")
    assert opened.evaluate("[$('low').textContent, $('high').textContent]") == ["0.00", "3.00"]
    opened.click("[data-list=duplicates]")
    opened.click("#list button")
    assert opened.evaluate("selection()") == list(range(4, 12))
    for name, rows in (("outliers", 40), ("picks", 2)):
        opened.click(f"[data-list={name}]")
        assert opened.evaluate("document.querySelectorAll('#list button').length") == rows


@pytest.mark.browser
@pytest.mark.slow
def test_a_hundred_thousand_clips_are_drawn_and_found_in_time(browser, tmp_path):
    rng, n = np.random.default_rng(0), 100_000
    clips = ClipVectors(
        [str(tmp_path / "no.mp4")], np.zeros(n, int), np.arange(n) * 1.0, np.arange(n) + 1.0, np.ones((n, 1), "f4")
    )
    layout = ClipLayout(
        rng.normal(size=(n, 2)).astype("f4"), np.zeros((n, 8), int), np.ones((n, 8), "f4"), np.ones(n, "f4")
    )
    colorings = [Coloring("cluster", "Alike.", np.array([f"cluster {i % 12}" for i in range(n)]))]
    write_map_page(MapContent("table", clips, layout, colorings, [], []), tmp_path / "map.html", 0)
    assert (tmp_path / "map.html").stat().st_size < 12e6
    browser.open(tmp_path / "map.html", 1440, 900)
    found = browser.evaluate("Array.from({length: 50}, (_, i) => nearestPoint(...screen(i * 1000), 14))")
    near = browser.evaluate(
        f"{found}.map((j, i) => Math.hypot(screen(j)[0] - screen(i * 1000)[0], screen(j)[1] - screen(i * 1000)[1]))"
    )
    assert max(near) < 1e-3
    timed = "(() => {{ const t = performance.now(); {0}; return performance.now() - t; }})()"
    draw = min(browser.evaluate(timed.format("drawPoints()")) for _ in range(5))
    hover = min(browser.evaluate(timed.format("nearestPoint(500, 400, 14)")) for _ in range(5))
    assert draw < 200 and hover < 50


def write_table(folder):
    """A table of 24 clips of 6 files."""
    settings = {
        "format": FORMAT,
        "model": "m",
        "model_id": "m",
        "weights": "w",
        "image_size": 8,
        "frames": 2,
        "fps": 4.0,
    }
    settings |= {"stride_s": None, "dense": False, "levels": False}
    rng = np.random.default_rng(0)
    rows = [
        {
            "path": str(folder / f"{i // 4}.mp4"),
            "start_s": i % 4 * 1.0,
            "end_s": i % 4 + 1.0,
            "pooled": rng.normal(size=16),
        }
        for i in range(24)
    ]
    rows = [row | {"pooled": row["pooled"].astype(np.float16)} for row in rows]
    (folder / "table").mkdir()
    (folder / "table" / "_settings.json").write_text(json.dumps(settings))
    pq.write_table(rows_to_table(rows, settings), folder / "table" / "part-000000.parquet")
    return folder / "table"


@pytest.mark.slow
def test_the_command_writes_a_page_and_picks_and_keeps_picks_that_were_filled_in(tmp_path):
    table = write_table(tmp_path)
    (tmp_path / "labels.csv").write_text("path,start_s,end_s,label\n0.mp4,0,2.5,walk\n1.mp4,,,run\n")
    words = ("map", table, "--out", tmp_path / "map.html", "--pick", 5, "--clusters", 3)
    done = run_tubelet(*words, "--labels", tmp_path / "labels.csv")
    assert done.returncode == 0, done.stderr
    data = json.loads(re.search(r'id="data">(.*?)</script>', (tmp_path / "map.html").read_text(), re.DOTALL)[1])
    assert [coloring["name"] for coloring in data["colorings"]] == ["cluster", "labels", "folder", "time"]
    assert {label["name"]: label["count"] for label in data["colorings"][1]["labels"]} == {"walk": 3, "run": 4}
    picks = tmp_path / "map.pick.csv"
    assert len(read_labels(picks).rows) == len(data["picks"]) == 5 and data["thumbnails"] == {}
    picks.write_text(picks.read_text().replace(",\r\n", ",walk\r\n").replace(",\n", ",walk\n"))
    done = run_tubelet(*words)
    assert done.returncode == 1 and "has labels that would be lost" in " ".join(done.stderr.split())


def test_labels_of_other_files_are_refused(tmp_path, page):
    (tmp_path / "labels.csv").write_text("path,label\nother.mp4,walk\n")
    with pytest.raises(TubeletError, match="has no label for any clip of the table"):
        read_colorings(tmp_path / "labels.csv", page[1].clips)


@pytest.mark.browser
def test_fingers_move_zoom_choose_and_draw(browser, page):
    browser.open(page[0], 390, 844, touch=True)
    assert browser.small_controls() == [] and browser.evaluate("document.documentElement.scrollWidth") == 390
    width, height = browser.evaluate("[width, height]")
    x, y = browser.evaluate("screen(20)")
    browser.tap("#overlay", x / width, y / height)
    assert browser.evaluate("[state.focus, state.list, $('list').children.length]") == [20, "neighbors", 8]
    before = browser.evaluate("state.scale")
    browser.swipe("#overlay", [(0.4, 0.5), (0.3, 0.5), (0.2, 0.5)], [(0.6, 0.5), (0.7, 0.5), (0.8, 0.5)])
    assert browser.evaluate("state.scale") == pytest.approx(3 * before, rel=0.01)
    left = browser.evaluate("state.left")
    browser.swipe("#overlay", [(0.5, 0.7), (0.6, 0.7), (0.7, 0.7)])
    assert browser.evaluate("state.left") == pytest.approx(left + 0.2 * width, abs=1)
    browser.tap("#all")
    browser.tap("#lasso")
    browser.swipe("#overlay", [(0.01, 0.01), (0.99, 0.01), (0.99, 0.99), (0.01, 0.99)])
    assert browser.evaluate("state.count") == N
