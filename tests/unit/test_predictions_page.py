"""The page of predictions: what it contains, and how it behaves in a browser."""

import json
import re
import time

import numpy as np
import pytest

from tests.helpers.heads import tiny_encoder, tiny_head
from tests.helpers.media import write_image, write_text, write_video
from tubelet.errors import FileError
from tubelet.heads.head_file import load_head
from tubelet.heads.training_files import file_ids
from tubelet.prediction.media_predictions import MediaPredictions, Overlay, ValueCurve, value_curves
from tubelet.prediction.records import Prediction, ValuePrediction
from tubelet.prediction.training_files import note_training_files
from tubelet.view.players import COPIES, is_playable, make_player
from tubelet.view.predictions_page import write_predictions_page

HOSTILE = "walk</script><script>window.attacked = 1</script>\x1b[0m"


def span(start, end, label, score):
    return Prediction(path="a.mp4", start_s=start, end_s=end, label=label, score=score)


def page_data(page):
    text = re.search(r'<script type="application/json" id="data">(.*?)</script>', page.read_text(), re.DOTALL)[1]
    return json.loads(text)


def media(file, *labels, curves=(), duration=8.0, **others):
    return MediaPredictions(
        path=file.name, file=file, duration_s=duration, labels=labels, curves=tuple(curves), **others
    )


def values(count=16):
    each = [ValuePrediction(path="a", start_s=i / 2, end_s=(i + 1) / 2, values=(i / 10,)) for i in range(count)]
    return value_curves(each, ["speed"])


def test_labels_of_any_text_cannot_leave_the_data_of_the_page(tmp_path):
    video = write_video(tmp_path / "a <b>.mp4", frames=12)
    write_predictions_page([media(video, span(0, 1, HOSTILE, 0.5), duration=1.0)], tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert page.count("</script>") == 3
    assert "\x1b" not in page
    assert page_data(tmp_path / "page.html")["labels"][0]["name"] == HOSTILE.replace("\x1b", "\\x1b")


def test_the_page_shows_how_far_to_trust_each_head_and_files_that_it_was_trained_on(tmp_path):
    seen, new = (write_image(tmp_path / name, size=size) for name, size in (("a.png", 32), ("b.png", 48)))
    head = tiny_head(tiny_encoder(), "classification")
    head.training_files = file_ids([seen, tmp_path / "gone.png"])
    head.save(tmp_path / "head.safetensors")
    heads = {"mice": load_head(tmp_path / "head.safetensors")}
    files, known = note_training_files([media(seen, duration=0.0), media(new, duration=0.0)], heads)
    write_predictions_page(files, tmp_path / "page.html", heads={"mice": "Do not rely on <this> head."})
    assert '<p class="trust"><b>mice</b>: Do not rely on &lt;this&gt; head.</p>' in (tmp_path / "page.html").read_text()
    notes = [file["note"] for file in page_data(tmp_path / "page.html")["files"]]
    assert known == 1 and "Among the files that mice was trained on." in notes[0] and "Among" not in notes[1]


def test_videos_are_linked_relative_to_the_page(tmp_path):
    video = write_video(tmp_path / "a b#1.mp4", frames=12)
    write_predictions_page([media(video, duration=1.0)], tmp_path / "out" / "page.html")
    assert page_data(tmp_path / "out" / "page.html")["files"][0]["link"] == "../a%20b%231.mp4"
    assert not (tmp_path / "out" / COPIES).exists()


@pytest.mark.parametrize(
    ("name", "options", "playable"),
    [
        ("a.mp4", {}, True),
        ("a.webm", {"codec": "libvpx-vp9"}, True),
        ("a.mkv", {}, False),
        ("a.avi", {"codec": "mpeg4", "bframes": 0}, False),
        ("late.mp4", {"times": [1 + i / 12 for i in range(12)]}, False),
    ],
)
def test_what_browsers_do_not_play_at_the_times_of_the_tables_gets_a_copy(name, options, playable, tmp_path):
    video = write_video(tmp_path / name, frames=12, **options)
    assert is_playable(video) == playable
    player = make_player(media(video, duration=1.0), tmp_path)
    assert player.link.startswith(COPIES) != playable
    if not playable:
        copy = tmp_path / player.link
        assert is_playable(copy)
        before = copy.stat().st_mtime_ns
        make_player(media(video, duration=1.0), tmp_path)
        assert copy.stat().st_mtime_ns == before


def test_a_drawn_video_is_shown_where_the_source_is_not_playable_or_not_here(tmp_path):
    drawn = write_video(tmp_path / "drawn.mp4", frames=12)
    source = write_video(tmp_path / "a.mkv", frames=12)
    assert make_player(media(source, duration=1.0, drawn=drawn), tmp_path).link == "drawn.mp4"
    remote = MediaPredictions(path="s3://bucket/a.mp4", duration_s=1.0, drawn=drawn)
    assert make_player(remote, tmp_path).link == "drawn.mp4"
    assert not (tmp_path / COPIES).exists()


def test_what_cannot_be_shown_is_named_and_the_others_are_shown(tmp_path):
    broken, good = write_text(tmp_path / "broken.mp4"), write_video(tmp_path / "good.mp4", frames=12)
    gone = tmp_path / "gone.mp4"
    files = [media(broken), media(gone), media(good), MediaPredictions(path="s3://b/far.mp4", duration_s=1.0)]
    write_predictions_page(files, tmp_path / "page.html")
    found = page_data(tmp_path / "page.html")["files"]
    assert [each["link"] for each in found] == ["", "", "good.mp4", ""]
    assert "broken.mp4" in found[0]["note"] and "gone.mp4" in found[1]["note"]
    assert found[3]["note"] == "It is not on this machine."


def test_a_long_curve_is_thinned_to_its_lowest_and_highest_values(tmp_path):
    count = 100_000
    numbers = np.sin(np.arange(count) / 50)
    numbers[777], numbers[5] = 9.0, np.nan
    starts = np.arange(count) / 4
    curve = ValueCurve(name="speed", starts_s=starts, ends_s=starts + 0.25, values=numbers)
    video = write_video(tmp_path / "a.mp4", frames=12)
    write_predictions_page([media(video, curves=[curve], duration=count / 4)], tmp_path / "page.html")
    (shown,) = page_data(tmp_path / "page.html")["files"][0]["curves"]
    assert len(shown["values"]) <= 4000
    assert shown["high"] == max(value for value in shown["values"] if value is not None) == 9.0
    assert shown["starts"][1:] == shown["ends"][:-1]


def test_a_page_replaces_only_a_page_of_this_package(tmp_path):
    (tmp_path / "page.html").write_text("mine")
    with pytest.raises(FileError, match="page"):
        write_predictions_page([], tmp_path / "page.html")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    files = [
        media(
            write_video(folder / "a b#1.mp4", frames=96),
            span(0, 2, "walk", 0.9),
            span(4, 6, "walk", 0.4),
            span(3, 7, HOSTILE, 0.6),
            curves=values(),
        ),
        media(write_video(folder / "other.avi", codec="mpeg4", bframes=0, frames=96), span(1, 2, "rear", 0.3)),
        media(write_image(folder / "image.png"), span(0, 0, "walk", 0.8), duration=0.0),
        media(
            folder / "a b#1.mp4",
            overlays=[
                Overlay(time_s=float(i), image=write_image(folder / f"{i}.png", i), caption=f"cat {i}")
                for i in range(3)
            ],
        ),
    ]
    write_predictions_page(files, folder / "page.html", ["walk", "rear"])
    return folder


@pytest.fixture
def browser(browser, folder):
    """The page in a browser."""
    browser.open(folder / "page.html")
    browser.wait("items[0].video && items[0].video.readyState >= 1")
    yield browser
    assert browser.evaluate("window.attacked") is None


def spans_shown(browser):
    return browser.evaluate("[...document.querySelectorAll('#file-0 .spans tr')].map(row => row.textContent)")


@pytest.mark.browser
@pytest.mark.slow
def test_a_click_on_the_timeline_seeks_and_shows_what_holds_then(browser):
    left, width = browser.evaluate("[items[0].left, items[0].width]")
    browser.click("#file-0 canvas", x=(left + (width - left) * 5 / 8) / width, y=0.3)
    browser.wait("!items[0].video.seeking")
    assert abs(browser.evaluate("items[0].video.currentTime") - 5) < 0.05
    now = browser.evaluate("document.querySelector('#file-0 .now').textContent")
    assert now.startswith("0:05.0 / 0:08.0") and "walk 0.40" in now and "0.60" in now and "speed 1.000" in now
    assert browser.evaluate("document.querySelectorAll('#file-0 .spans tr.here').length") == 2


@pytest.mark.browser
def test_a_click_on_a_span_of_the_list_seeks_to_its_start(browser):
    assert [row.startswith("walk0:00.0") for row in spans_shown(browser)] == [True, False, False]
    browser.click("#file-0 .spans tr:nth-child(2)")
    browser.wait("Math.abs(items[0].video.currentTime - 3) < 0.05")


@pytest.mark.browser
def test_the_slider_hides_spans_below_a_score_and_labels_are_filtered(browser):
    slide = "(s => {{ s.value = {}; s.dispatchEvent(new Event('input')); }})(document.getElementById('threshold'))"
    browser.evaluate(slide.format(0.5))
    browser.wait("document.getElementById('count').textContent.includes('3 of 5 spans')")
    assert len(spans_shown(browser)) == 2
    assert browser.evaluate("[items[0].box.hidden, items[1].box.hidden]") == [False, True]
    browser.click("#labels button:first-child")  # walk
    browser.wait("document.getElementById('count').textContent.includes('1 of 5 spans')")
    browser.evaluate(slide.format(1))
    browser.wait("!document.getElementById('empty').hidden || items[3].box.hidden === false")
    browser.click("#all")
    browser.evaluate(slide.format(0))
    browser.wait("document.getElementById('count').textContent.includes('5 of 5 spans')")
    browser.evaluate("(s => { s.value = 'other'; s.dispatchEvent(new Event('input')); })($('search'))")
    browser.wait("document.getElementById('count').textContent.startsWith('1 of 4 files')")


@pytest.mark.browser
def test_the_list_is_sorted_by_score(browser):
    choose = "(s => {{ s.value = '{}'; s.dispatchEvent(new Event('change')); }})($('order'))"
    for order, expected in (("score", ["0.40", "0.60", "0.90"]), ("best", ["0.90", "0.60", "0.40"])):
        browser.evaluate(choose.format(order))
        browser.wait(f"document.querySelector('#file-0 .spans tr').textContent.endsWith('{expected[0]}')")
        assert [row[-4:] for row in spans_shown(browser)] == expected


@pytest.mark.browser
def test_keys_play_move_and_jump_to_spans(browser):
    browser.click("#file-0 h2")
    browser.press(" ")
    browser.wait("!items[0].video.paused && items[0].video.currentTime > 0.3")
    browser.press(" ")
    browser.wait("items[0].video.paused")
    browser.evaluate("items[0].seek(2)")
    browser.press("ArrowRight")
    browser.wait("Math.abs(items[0].video.currentTime - 3) < 0.05")
    browser.press("ArrowLeft")
    browser.wait("Math.abs(items[0].video.currentTime - 2) < 0.05")
    browser.press("j")
    browser.wait("Math.abs(items[0].video.currentTime - 3) < 0.05")
    browser.press("k")
    browser.wait("Math.abs(items[0].video.currentTime) < 0.05")
    browser.press("+")
    browser.wait("items[0].zoom === 2")
    browser.press("-")
    assert browser.evaluate("items[0].zoom") == 1


@pytest.mark.browser
def test_the_label_of_now_follows_while_the_video_plays(browser):
    browser.evaluate("items[0].seek(2.5)")
    browser.click("#file-0 h2")
    browser.press(" ")
    browser.wait("document.querySelector('#file-0 .now').textContent.includes('0.60')")
    position = browser.evaluate("parseFloat(items[0].playhead.style.left)")
    browser.wait(f"parseFloat(items[0].playhead.style.left) > {position}")
    browser.evaluate("items[1].play()")
    browser.wait("items[0].video.paused")


@pytest.mark.browser
def test_copies_images_and_overlays_are_shown(browser):
    browser.click("#file-1 h2")
    browser.wait("items[1].video && items[1].video.readyState >= 1 && Math.abs(items[1].video.duration - 8) < 0.01")
    browser.place("#file-2")
    browser.wait("document.querySelector('#file-2 img')?.naturalWidth === 64")
    browser.click("#file-3 h2")
    browser.wait("document.querySelector('#file-3 .large img')?.naturalWidth === 64")
    browser.click("#file-3 .overlays figure:nth-child(2)")
    browser.wait("document.querySelector('#file-3 .large figcaption').textContent === 'cat 1'")
    assert browser.evaluate("items[3].now") == 1


@pytest.mark.browser
def test_the_overview_goes_to_a_video_and_a_moment(browser):
    browser.click("#overview canvas", x=0.5, y=0.75)
    browser.wait("state.active === items[1] && Math.abs(items[1].now - 4) < 0.1")


@pytest.mark.browser
def test_a_phone_and_a_dark_page_have_everything_within_the_window(browser, folder, tmp_path):
    seen = []
    for width, dark in ((400, False), (1400, True)):
        browser.open(folder / "page.html", width=width, dark=dark)
        browser.wait("items[0].video && items[0].video.readyState >= 1")
        assert browser.evaluate("document.documentElement.scrollWidth") <= width
        seen.append(browser.evaluate("getComputedStyle(document.body).backgroundColor"))
        assert browser.evaluate("$('filters').open") == (width > 860)
    assert seen[0] != seen[1]


@pytest.mark.browser
@pytest.mark.slow
def test_a_page_of_500_videos_is_quick(browser, tmp_path):
    video = write_video(tmp_path / "a.mp4", frames=96)
    rng = np.random.default_rng(0)
    files = []
    for number in range(500):
        starts = np.sort(rng.uniform(0, 7, 100))
        labels = [span(s, s + 0.5, f"label {i % 12}", float(rng.uniform())) for i, s in enumerate(starts)]
        files.append(media(video, *labels, curves=values()))
        files[-1] = MediaPredictions(**{**vars(files[-1]), "path": f"folder/{number}.mp4"})
    write_predictions_page(files, tmp_path / "page.html")
    assert (tmp_path / "page.html").stat().st_size < 4e6
    started = time.monotonic()
    browser.open(tmp_path / "page.html")
    browser.wait("items[0].built")
    assert time.monotonic() - started < 60
    assert browser.evaluate("items.filter(item => item.built).length") < 10
    browser.place("#file-499")
    browser.wait("items[499].built && !items[0].built")
    assert browser.evaluate("document.querySelectorAll('video').length") < 12
    spent = browser.evaluate("(() => { const t = performance.now(); update(); return performance.now() - t; })()")
    assert spent < 10_000  # quadratic work would take minutes
