"""What would hold the GIL is preprocessed in a process of its own, to the same pixels and refusals."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import psutil
import pytest
from alignserve_server.errors import ImageTooLarge, ImageUnreadable
from alignserve_server.model.preprocessing import processes as preprocess_processes
from alignserve_server.model.preprocessing.decode import ImageDecoder
from alignserve_server.model.preprocessing.images import ImagePreprocessor
from PIL import Image

CONFIG = {
    "size": {"height": 40, "width": 90},
    "do_center_crop": True,
    "crop_size": {"height": 30, "width": 50},
}
LARGE = 4097, 1025  # more than 2 ** 22 pixels


@pytest.fixture
def preprocess() -> Iterator[ImagePreprocessor]:
    yield ImagePreprocessor(CONFIG, ImageDecoder(max_bytes=1 << 20, max_pixels=5_000_000))
    gc.collect()


def encoded(file_format: str, size: tuple[int, int], **options: object) -> bytes:
    buffer = BytesIO()
    Image.radial_gradient("L").resize(size).convert("RGB").save(buffer, file_format, **options)
    return buffer.getvalue()


@pytest.fixture
def children() -> Callable[[], list[psutil.Process]]:
    """Returns the decoders that have started since the test began and still run."""

    def running() -> list[psutil.Process]:
        processes = psutil.Process().children()
        return [each for each in processes if any("preprocessing.child" in word for word in each.cmdline())]

    others = running()
    return lambda: [each for each in running() if each not in others]


def turned(size: tuple[int, int]) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded("JPEG", size, exif=exif)


@pytest.mark.parametrize(
    "content",
    [encoded("WEBP", (400, 300)), encoded("PNG", LARGE), turned(LARGE)],
    ids=["webp", "png", "turned"],
)
def test_gives_the_same_pixels(preprocess, content, children):
    """As this process would make of the same picture."""
    expected = preprocess.preprocess(preprocess.find(content))

    pixels = preprocess(content)

    np.testing.assert_array_equal(pixels, expected)
    assert len(children()) == 1


def test_ordinary_images_start_no_process(preprocess, children):
    """Photos of up to four million pixels, and thumbnails in WEBP."""
    preprocess(encoded("JPEG", (2000, 1500)))
    preprocess(encoded("WEBP", (224, 224)))

    assert children() == []


def test_a_process_serves_again_after_a_refusal(preprocess, children):
    """One is enough for what comes one by one, whatever it is."""
    content = encoded("WEBP", (400, 300))

    with pytest.raises(ImageUnreadable, match="image is broken or incomplete"):
        preprocess(content[:60] + bytes(len(content) - 60))
    preprocess(content)

    assert len(children()) == 1


def test_a_process_that_was_killed_is_replaced(preprocess, children):
    """The next image does not notice."""
    content = encoded("WEBP", (400, 300))
    expected = preprocess(content)
    (child,) = children()
    child.kill()
    child.wait()

    pixels = preprocess(content)

    np.testing.assert_array_equal(pixels, expected)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_stops_the_server_leaves_images_alone(preprocess, children, number):
    """systemd and terminals send it to all processes, and what was accepted is answered."""
    content = encoded("WEBP", (400, 300))
    preprocess(content)
    (child,) = children()

    child.send_signal(number)
    preprocess(content)

    assert children() == [child]


def test_a_terminal_does_not_reach_a_process(preprocess, children):
    """It tells its own group that it closes, or of Ctrl-C, even before the process could be ready."""
    preprocess(encoded("WEBP", (400, 300)))

    (child,) = children()

    assert os.getsid(child.pid) == child.pid


def test_a_process_imports_nothing_from_the_current_folder(
    preprocess, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    """A server may be started anywhere, in a folder with a numpy.py of its own too."""
    (tmp_path / "numpy.py").write_text("raise SystemExit")
    monkeypatch.chdir(tmp_path)

    pixels = preprocess(encoded("WEBP", (400, 300)))

    assert pixels.shape == (30, 50, 3)


@pytest.mark.parametrize(
    ("number", "error"),
    [(signal.SIGKILL, ImageUnreadable), (signal.SIGALRM, ImageTooLarge)],
    ids=["killed", "late"],
)
def test_an_image_that_ends_its_process_is_refused(preprocess, monkeypatch, number, error):
    """By a crash, for memory or by taking too long; it comes out as the image's own fault."""
    processes = preprocess_processes._Process
    send = processes._send

    def send_and_end(self, line, content=b""):
        send(self, line, content)
        if content:
            self._process.send_signal(number)
            os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)

    monkeypatch.setattr(processes, "_send", send_and_end)

    with pytest.raises(error):
        preprocess(encoded("WEBP", (400, 300)))
    monkeypatch.undo()

    assert preprocess(encoded("WEBP", (400, 300))).shape == (30, 50, 3)


def test_processes_end_with_their_preprocessor(children):
    """None is left behind."""
    preprocess = ImagePreprocessor(CONFIG, ImageDecoder(max_bytes=1 << 20, max_pixels=5_000_000))
    preprocess(encoded("WEBP", (400, 300)))
    (child,) = children()

    del preprocess
    gc.collect()

    assert not child.is_running()


_SERVER = f"""
import signal, sys
from alignserve_server.model.preprocessing.decode import ImageDecoder
from alignserve_server.model.preprocessing.images import ImagePreprocessor
preprocess = ImagePreprocessor({CONFIG!r}, ImageDecoder(max_bytes=1 << 20, max_pixels=5_000_000))
preprocess(sys.stdin.buffer.read())
print("preprocessed", flush=True)
signal.pause()
"""


def test_processes_end_with_a_server_that_is_killed():
    """Which can end nothing itself."""
    with subprocess.Popen(
        [sys.executable, "-c", _SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as server:
        server.stdin.write(encoded("WEBP", (400, 300)))
        server.stdin.close()
        server.stdout.readline()
        children = psutil.Process(server.pid).children()

        server.kill()

        assert children
        assert psutil.wait_procs(children, timeout=30)[1] == []


def test_a_process_that_cannot_start_is_no_fault_of_the_image(preprocess, monkeypatch):
    """It is an error of the server, with the cause in the log."""
    monkeypatch.setattr(preprocess_processes, "_PROGRAM", "alignserve_server.no_such_module")

    with pytest.raises(OSError, match="ended at its start"):
        preprocess(encoded("WEBP", (400, 300)))
