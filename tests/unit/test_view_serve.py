"""The page of a table, served on this machine: its numbers, its memory, and who may read it."""

import http.client
import json
import os
import re
import shutil
import signal
import socket
import threading
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F

from tests.helpers.commands import run_tubelet
from tests.helpers.media import write_image, write_video
from tubelet.data.part_table import rows_to_table
from tubelet.embed.table import FORMAT
from tubelet.errors import ConfigError, DataError
from tubelet.view import dense_table
from tubelet.view.quantization import quantize_tokens
from tubelet.view.serve import serve_table
from tubelet.view.server import PageServer, Resource

SETTINGS = {"format": FORMAT, "model": "m", "model_id": "m", "weights": "w", "image_size": 8, "frames": 4, "fps": 8.0}
SETTINGS |= {"stride_s": None, "dense": True, "levels": False}
CLIPS, STEPS, SIDE, WIDTH = 40, 2, 16, 24
DIRECTIONS = 16


def write_table(folder, rows, **settings):
    folder.mkdir()
    (folder / "_settings.json").write_text(json.dumps(SETTINGS | settings))
    for number, part in enumerate((rows[::2], rows[1::2])):  # clips in any order, in several parts
        pq.write_table(rows_to_table(part, SETTINGS), folder / f"part-{number:06d}.parquet")
    return folder


def table_rows(media, clips, steps, tokens):
    stat = media.stat()
    shared = {"path": str(media), "clips": clips, "size_bytes": stat.st_size, "changed_s": stat.st_mtime}
    shared |= {"grid": np.array([steps, SIDE, SIDE], np.int32)}
    return [
        shared
        | {"clip_index": clip, "times": 0.125 + 0.25 * (clip * steps + np.arange(steps))}
        | {"tokens": tokens[clip * steps : (clip + 1) * steps].ravel().astype(np.float16)}
        for clip in range(clips)
    ]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A table of a video of 20 s, whose tokens are more than one chunk, and an image."""
    folder = tmp_path_factory.mktemp("serve")
    video = write_video(folder / "a.mp4", frames=160, fps=8, size=96, bframes=0)
    image = write_image(folder / "b.png")
    rng = np.random.default_rng(0)
    scale = 0.9 ** np.arange(WIDTH)
    tokens = [rng.normal(size=(steps, SIDE, SIDE, WIDTH)) * scale + 0.3 for steps in (CLIPS * STEPS, 1)]
    rows = table_rows(video, CLIPS, STEPS, tokens[0]) + table_rows(image, 1, 1, tokens[1])
    expected = [torch.from_numpy(each.astype(np.float16)).reshape(-1, WIDTH) for each in tokens]
    table = write_table(folder / "table", rows)
    return SimpleNamespace(folder=folder, table=table, rows=rows, video=video, tokens=expected)


@contextmanager
def serving(*arguments):
    with serve_table(*arguments) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def server(made):
    with serving(made.table, [], DIRECTIONS) as found:
        yield found


def ask(server, path, method="GET", **headers):
    """Status, headers and body of a request."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
    connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
    response = connection.getresponse()
    body = response.read()
    connection.close()
    return response.status, response.headers, body


def test_features_are_those_of_a_page_in_a_file(server, made):
    expected = quantize_tokens(made.tokens, DIRECTIONS)
    status, headers, body = ask(server, f"/{server.token}/features/0-0")
    found = np.frombuffer(body, np.int8).reshape(-1, DIRECTIONS)
    assert status == 200 and headers["Content-Type"] == "application/octet-stream"
    assert np.abs(found.astype(int) - expected.values).max() <= 1  # sums in another order
    assert (found != expected.values).mean() < 1e-3
    page = ask(server, f"/{server.token}/")[2].decode()
    data = json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)[1])
    (level,) = data["encoders"][0]["levels"]
    assert np.abs(np.array(level["pca"]["axes"]) - expected.colors.axes.T.numpy()).max() < 1e-3
    assert level["error"] == pytest.approx(expected.mean_error, rel=0.1)
    assert "connect-src 'self'" in page and "default-src 'none'" in page


def test_parts_of_files_are_sent_as_requested(server, made):
    whole, address = made.video.read_bytes(), f"/{server.token}/media/0"
    status, headers, body = ask(server, address, Range="bytes=10-19")
    assert (status, headers["Content-Range"], body) == (206, f"bytes 10-19/{len(whole)}", whole[10:20])
    assert ask(server, address, Range="bytes=-5")[2] == whole[-5:]
    assert ask(server, address, Range=f"bytes={len(whole) - 3}-")[2] == whole[-3:]
    assert ask(server, address)[2] == whole
    assert ask(server, address, Range=f"bytes={len(whole)}-")[0] == 416
    assert ask(server, address, "HEAD")[1]["Content-Length"] == str(len(whole))


def test_a_file_that_is_gone_is_reported_and_all_else_goes_on(server, made, tmp_path):
    server.resources["media/gone"] = Resource("video/mp4", tmp_path / "gone.mp4")
    assert ask(server, f"/{server.token}/media/gone")[0] == 410
    assert ask(server, f"/{server.token}/")[0] == 200


def test_nobody_else_can_read(server):
    own = f"/{server.token}/"
    assert server.server_address[0] == "127.0.0.1"
    assert ask(server, own)[0] == 200
    assert ask(server, own, Host="attacker.example")[0] == 403  # a name that was made to point here
    assert ask(server, own, Host=f"attacker.example:{server.server_port}")[0] == 403
    assert ask(server, own, Origin="http://attacker.example")[0] == 403
    for path in ("/", "/x/", "/x/media/0", f"{own}media/../../etc/passwd", f"{own}/etc/passwd", f"{own}media/%2e%2e/x"):
        assert ask(server, path)[0] == 404, path
    assert ask(server, own, "POST")[0] == 501
    headers = ask(server, own)[1]
    assert headers["Cross-Origin-Resource-Policy"] == "same-origin" and headers["Referrer-Policy"] == "no-referrer"
    assert "Access-Control-Allow-Origin" not in headers


def test_what_cannot_be_served_is_one_sentence(made, tmp_path):
    with pytest.raises(
        DataError, match="has no tokens, which the page shows; embed the videos with --dense into another"
    ):
        dense_table.read_dense_table(write_table(tmp_path / "pooled", made.rows, dense=False), [], 16)
    with pytest.raises(DataError, match="features are from m, --model has other weights"):
        dense_table.read_dense_table(made.table, [], 16, "other")
    with pytest.raises(ConfigError, match=r"is not in .* pass files that were embedded"):
        dense_table.read_dense_table(made.table, ["c.mp4"], 16)
    with pytest.raises(DataError, match="has 39 of 40 clips of"):
        dense_table.read_dense_table(write_table(tmp_path / "partial", made.rows[1:]), [], 16)
    moved = shutil.copy(made.video, tmp_path / "moved.mp4")
    rows = [{**row, "path": str(moved)} for row in made.rows[:CLIPS]]
    table = write_table(tmp_path / "moved", rows)
    moved.write_bytes(b"")
    with pytest.raises(DataError, match=r"has 0 bytes, .* when it was embedded"):
        dense_table.read_dense_table(table, [], 16)
    moved.unlink()
    with pytest.raises(DataError, match="is in the table but not on this machine"):
        dense_table.read_dense_table(table, [], 16)
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(ConfigError, match=f"--port is {port}, which is in use; choose another one"):
            PageServer(port)


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_command_and_leaves_nothing(made, tmp_path, monkeypatch, end):
    ports, serve = [], PageServer.serve_forever

    def serve_and_stop(self):
        ports.append(self.server_port)
        threading.Timer(0.1, os.kill, (os.getpid(), end)).start()
        serve(self)

    monkeypatch.setattr(PageServer, "serve_forever", serve_and_stop)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    before = signal.getsignal(signal.SIGTERM)
    result = run_tubelet("view", made.table, made.folder / "b.png", "--serve")
    assert result.returncode == 0
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/[\w-]{22}/ .*stopped\s*", result.stdout, re.DOTALL)
    assert list(tmp_path.iterdir()) == [] and signal.getsignal(signal.SIGTERM) == before
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", ports[0]))
    refused = run_tubelet("view", made.table, "--serve", "--video", "a.mp4")
    assert refused.returncode == 1 and "nothing is written" in " ".join(refused.stderr.split())


@pytest.fixture
def page(browser, server):
    browser.open(server.url)
    browser.wait(
        "layers.length > 0 && cards[0].video?.readyState >= 2 && layers[0].filled.size === features(0).chunks.length"
    )
    return browser


SAMPLE_IS_THAT_OF_THE_CHUNKS = """(() => {
  const store = features(0), stride = store.count / SAMPLE;
  let row = 0;
  for (let i = 0; i < store.count; i += stride, row++) {
    const token = Math.floor(i), unit = store.at(token).unit(token);
    if (unit.some((value, d) => Math.abs(value - store.sampled[row][d]) > 1e-6)) return false;
  }
  return row === store.sampled.length;
})()"""


@pytest.mark.browser
def test_the_served_page_shows_the_numbers_of_the_table(page, made):
    assert page.evaluate("[features(0).count, features(0).chunks.length]") == [20_736, 3]
    page.evaluate("cards[0].seek(12.4)")
    assert page.evaluate("cards[0].stepOf(0)") == 49
    page.click("#file-0 .screen:last-child .stage", x=2.5 / SIDE, y=5.5 / SIDE)
    page.wait("layers[0]?.values && layers[0].filled.size === 3")
    shown = np.array(page.evaluate("[...layers[0].values]"))
    units = quantize_tokens(made.tokens, DIRECTIONS).units()
    assert np.abs(shown - (units @ units[49 * SIDE**2 + 5 * SIDE + 2]).numpy()).max() < 0.02
    exact = F.normalize(torch.cat(made.tokens).float(), dim=-1)
    assert np.abs(shown - (exact @ exact[49 * SIDE**2 + 5 * SIDE + 2]).numpy()).mean() < 0.05
    page.click("[data-mode=clusters]")
    page.wait("layers[0]?.shares?.length === 6 && layers[0].filled.size === 3")
    assert page.evaluate("layers[0].shares.reduce((a, b) => a + b)") == pytest.approx(1)
    assert page.evaluate(SAMPLE_IS_THAT_OF_THE_CHUNKS)
    page.click("[data-mode=compare]")
    page.wait("comparison.pairs.length > 0")
    page.click("[data-mode=pca]")
    page.evaluate("$('foreground').value = 50; $('foreground').dispatchEvent(new Event('input'))")
    page.wait("Math.abs(layers[0]?.kept?.reduce((a, b) => a + b) / features(0).count - 0.5) < 0.02")
    assert page.evaluate("[cards[0].screens.at(-1).frame.width, cards[0].screens.at(-1).frame.height]") == [96, 96]


@pytest.mark.browser
def test_the_page_shows_what_the_server_no_longer_has(page):
    page.evaluate("fetch = async () => new Response(null, { status: 410 })")
    page.evaluate("for (const chunk of features(0).chunks) chunk.features = null; setMode('similarity')")
    page.wait("$('error').textContent.includes('the server answers 410); start tubelet view --serve again')")
    page.evaluate("cards[0].video.dispatchEvent(new Event('error'))")
    assert "a.mp4 cannot be read any more" in page.evaluate("document.querySelector('#file-0 .missing').textContent")


@pytest.mark.browser
def test_the_page_keeps_few_features_in_memory(page):
    page.evaluate("for (const chunk of features(0).chunks) chunk.features = null; features(0).recent.clear()")
    page.evaluate("features(0).load(features(0).chunks[1])")
    page.wait("features(0).chunks[1].features")
    page.evaluate("setMode('similarity')")  # the chunk of the query is loaded first, then the others
    page.wait("layers[0]?.values && layers[0].filled.size === 3")
    assert page.evaluate("layers[0].values.every(value => value <= 1.001)")
    assert page.evaluate("features(0).recent.size * CHUNK * features(0).width <= CACHE_BYTES")
