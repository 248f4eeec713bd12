"""Predictions drawn into videos, and the ethogram."""

import weakref
from dataclasses import replace
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image

from tests.helpers.media import read_index, variable_times, write_rotated, write_text, write_variable_rate, write_video
from tubelet.data.decode import Video
from tubelet.errors import DecodeError
from tubelet.prediction.draw import draw_video
from tubelet.prediction.label_colors import OKABE_ITO, assign_colors, label_colors, rgb
from tubelet.prediction.media_predictions import MediaPredictions, labels_by_seconds, value_curves
from tubelet.prediction.records import NONE_OF_THESE, Prediction, ValuePrediction
from tubelet.prediction.video_writer import write_frames
from tubelet.view.ethogram import draw_ethogram


def span(start, end, label, score=0.9):
    return Prediction(path="a.mp4", start_s=start, end_s=end, label=label, score=score)


def predictions(*labels, values=(), duration=4.0):
    curves = value_curves(values, ["speed"]) if values else []
    return MediaPredictions(path="a.mp4", duration_s=duration, labels=labels, curves=curves)


def packet_times(path):
    """Presentation times of all packets in seconds from the first, exactly, and the end of the last."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        packets = sorted((packet.pts, packet.duration) for packet in container.demux(stream) if packet.size)
        first, last = packets[0][0], packets[-1]
        times = [Fraction(pts - first) * stream.time_base for pts, _ in packets]
        return times, (last[0] - first + last[1]) * stream.time_base


def frames_of(path):
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


@pytest.mark.parametrize("source", ["constant", "variable", "matroska", "ntsc"])
@pytest.mark.slow
def test_every_frame_of_a_drawn_video_is_shown_when_that_of_the_source_is(source, tmp_path):
    if source == "constant":
        video = write_video(tmp_path / "a.mp4", frames=30)
    elif source == "variable":
        video = write_variable_rate(tmp_path / "a.mp4", frames=30)
    elif source == "matroska":
        video = write_video(tmp_path / "a.mkv", frames=30, fps=24)
    else:
        video = write_video(tmp_path / "a.mp4", frames=30, fps=30000 / 1001)
    draw_video(video, predictions(span(0, 1, "walking")), tmp_path / "out.mp4")
    (expected, end), (found, found_end) = packet_times(video), packet_times(tmp_path / "out.mp4")
    assert found == expected
    if source != "matroska":  # whose packets have no duration at the end
        assert found_end == end
    drawn = frames_of(tmp_path / "out.mp4")
    assert [read_index(frame[:480]) for frame in drawn] == list(range(30))


def test_a_drawn_video_is_large_enough_to_read_and_plays_everywhere(tmp_path):
    video = write_video(tmp_path / "a.mp4", frames=3)
    draw_video(video, predictions(span(0, 1, "walking")), tmp_path / "out.mp4")
    with av.open(str(tmp_path / "out.mp4")) as container:
        codec = container.streams.video[0].codec_context
        assert (codec.name, codec.pix_fmt, codec.has_b_frames) == ("h264", "yuv420p", False)
        assert codec.width == 480 and codec.height > 480
        assert codec.width % 2 == codec.height % 2 == 0


def test_a_note_is_a_line_below_the_timeline(tmp_path):
    video = write_video(tmp_path / "a.mp4", frames=2)
    plain = predictions(span(0, 1, "walking"))
    for name, each in (("plain", plain), ("noted", replace(plain, note="mice: do not rely on it"))):
        draw_video(video, each, tmp_path / f"{name}.mp4")
    (before, *_), (after, *_) = (frames_of(tmp_path / f"{name}.mp4") for name in ("plain", "noted"))
    added = after[len(before) :]
    assert len(added) >= 20 and np.ptp(added.astype(int)) > 100


def test_a_turned_video_is_drawn_upright(tmp_path):
    video = write_rotated(tmp_path / "a.mp4", 90, frames=3)
    draw_video(video, predictions(), tmp_path / "out.mp4")
    assert frames_of(tmp_path / "out.mp4")[0].shape[1] == 480


def test_the_timeline_has_a_span_where_it_is_and_the_cursor_at_the_time_of_the_frame(tmp_path):
    video = write_video(tmp_path / "a.mp4", frames=48)  # 4 s
    draw_video(video, predictions(span(2, 4, "x", 1.0)), tmp_path / "out.mp4", classes=("x",))
    first, last = (frames_of(tmp_path / "out.mp4")[index][480:].astype(int) for index in (0, 36))
    color = np.array(rgb(OKABE_ITO[0]))
    columns = np.flatnonzero((np.abs(first - color).sum(-1) < 60).sum(0) > 5)
    right, left = columns.max(), _cursor(first)  # the cursor is at the left end of the timeline
    assert abs(columns.min() - (left + right) / 2) < 6
    assert abs((_cursor(last) - left) / (right - left) - 0.75) < 0.03


def _cursor(panel):
    """Column of the white line."""
    return int((panel > 150).all(-1).sum(0).argmax())


def test_only_what_holds_now_is_written_above_the_timeline(tmp_path):
    video = write_video(tmp_path / "a.mp4", frames=48)
    draw_video(video, predictions(span(1, 2, "x", 1.0)), tmp_path / "out.mp4", classes=("x",))
    frames = frames_of(tmp_path / "out.mp4")
    color = np.array(rgb(OKABE_ITO[0]))
    shown = [bool((np.abs(frame[484:502, 8:60].astype(int) - color).sum(-1) < 60).mean() > 0.2) for frame in frames]
    assert shown == [12 <= index < 24 for index in range(48)]


def test_values_are_drawn_as_a_curve(tmp_path):
    video = write_video(tmp_path / "a.mp4", frames=12)
    values = [ValuePrediction(path="a", start_s=i / 4, end_s=(i + 1) / 4, values=(float(i),)) for i in range(4)]
    draw_video(video, predictions(values=values, duration=1.0), tmp_path / "out.mp4")
    panel = frames_of(tmp_path / "out.mp4")[0][480:].astype(int)
    rows, columns = np.nonzero(np.abs(panel - (98, 174, 226)).sum(-1) < 70)
    assert np.corrcoef(rows, columns)[0, 1] < -0.8  # rises to the right


def test_long_names_and_many_labels_are_drawn_in_few_lanes(tmp_path):
    video = write_video(tmp_path / "a.mp4", frames=2)
    many = [span(0, 1 + i / 100, f"label {i} \x1b[31m " + "long " * 30) for i in range(60)]
    draw_video(video, predictions(*many), tmp_path / "out.mp4")
    assert frames_of(tmp_path / "out.mp4")[0].shape[0] < 480 + 480


def test_the_timeline_of_a_long_video_is_that_of_the_minute_of_now(tmp_path):
    times = [float(second) for second in range(0, 300, 10)]
    video = write_video(tmp_path / "a.mp4", frames=len(times), times=times)
    draw_video(video, predictions(span(0, 30, "x", 1.0), duration=300), tmp_path / "out.mp4", classes=("x",))
    first, last = (frames_of(tmp_path / "out.mp4")[index][520:] for index in (0, -1))
    color = np.array(rgb(OKABE_ITO[0]))
    near = [(np.abs(panel.astype(int) - color).sum(-1) < 60).sum() for panel in (first, last)]
    assert near[0] > 1000 and near[1] == 0


def test_frames_are_written_one_by_one(tmp_path):
    alive: weakref.WeakSet = weakref.WeakSet()
    most = 0

    class Image(np.ndarray):
        """An array that a set can hold."""

        __hash__ = object.__hash__

    def frames():
        nonlocal most
        for index in range(60):
            image = np.full((64, 64, 3), index, np.uint8).view(Image)
            alive.add(image)
            most = max(most, len(alive))
            yield image, index / 10
            del image

    write_frames(frames(), tmp_path / "a.mp4", Fraction(1, 10), 6.0)
    assert len(packet_times(tmp_path / "a.mp4")[0]) == 60
    assert most <= 3


def test_frames_whose_times_go_back_are_left_out(tmp_path):
    image = np.zeros((64, 64, 3), np.uint8)
    frames = ((image, second) for second in (0.0, 0.5, 0.5, 0.25, 1.0))
    write_frames(frames, tmp_path / "a.mp4", Fraction(1, 100), 2.0)
    times, end = packet_times(tmp_path / "a.mp4")
    assert times == [0, Fraction(1, 2), 1] and end == 2


def test_all_frames_in_one_pass_are_those_of_the_video(tmp_path):
    with Video(write_variable_rate(tmp_path / "a.mp4", frames=20)) as video:
        found = [(read_index(pixels), second) for pixels, second in video.iter_frames()]
    assert [index for index, _ in found] == list(range(20))
    assert np.allclose([second for _, second in found], variable_times(20))


def test_a_video_that_cannot_be_read_leaves_nothing(tmp_path):
    with pytest.raises(DecodeError):
        draw_video(write_text(tmp_path / "a.mp4"), predictions(), tmp_path / "out.mp4")
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]


def test_labels_have_different_colors_that_do_not_depend_on_the_file():
    assert len(set(label_colors(150))) == 150
    colors = assign_colors(["b", "a"], ["c", "a", NONE_OF_THESE])
    assert list(colors)[:3] == ["b", "a", "c"]
    assert colors["b"] == assign_colors(["b", "a"], [])["b"] == OKABE_ITO[0]
    assert labels_by_seconds([span(0, 1, "a"), span(0, 3, "b"), span(5, 6, "a")]) == {"b": 3.0, "a": 2.0}


@pytest.mark.parametrize("videos", [1, 40, 210])
@pytest.mark.slow
def test_an_ethogram_has_a_row_for_each_video(videos, tmp_path):
    files = [
        MediaPredictions(path=f"v/{i}.mp4", duration_s=10, labels=[span(0, 5, "a"), span(3, 9, "$b_<&")])
        for i in range(videos)
    ]
    draw_ethogram([*files, MediaPredictions(path="i.png", duration_s=0)], tmp_path / "e.png")
    with Image.open(tmp_path / "e.png") as image:
        assert len(image.convert("RGB").getcolors(2**24)) > 50
        height = image.height
    draw_ethogram(files, tmp_path / "e.svg")
    text = (tmp_path / "e.svg").read_text()
    assert f"{videos} video" in text or videos > 1
    assert height > 10 * min(videos, 200)


def test_an_ethogram_without_labels_is_drawn(tmp_path):
    draw_ethogram([predictions()], tmp_path / "e.png")
    draw_ethogram([], tmp_path / "f.png")
    assert (tmp_path / "f.png").stat().st_size > 1000


def test_times_of_variable_rate_are_really_uneven():
    assert len(set(np.diff(variable_times(30)).round(6))) > 4
