"""Images whose decoding holds the GIL are preprocessed in separate processes, with equal results."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
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
    """Returns the decoder processes started since the test began that are still running."""

    def running() -> list[psutil.Process]:
        found = []
        for each in psutil.Process().children():
            with suppress(psutil.NoSuchProcess):  # it has ended
                if any("preprocessing.child" in word for word in each.cmdline()):
                    found.append(each)
        return found

    others = running()
    return lambda: [each for each in running() if each not in others]


def test_the_result_of_a_process_is_written_to_the_array_given_for_it(preprocess: ImagePreprocessor) -> None:
    large = encoded("JPEG", LARGE)
    expected = preprocess(large)
    given = np.full(expected.shape, 99, np.uint8)
    preprocess.new_pixels = {expected.shape: given}.__getitem__

    assert preprocess(large) is given
    np.testing.assert_array_equal(given, expected)


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
    """The pixels equal those of this process for the same picture."""
    expected = preprocess.preprocess(preprocess.find(content))

    pixels = preprocess(content)

    np.testing.assert_array_equal(pixels, expected)
    assert len(children()) == 1


def test_ordinary_images_start_no_process(preprocess, children):
    """Photos of up to four million pixels and small WEBP images stay in this process."""
    preprocess(encoded("JPEG", (2000, 1500)))
    preprocess(encoded("WEBP", (224, 224)))

    assert children() == []


def test_a_process_serves_again_after_a_refusal(preprocess, children):
    """Sequential images of any kind need only one process."""
    content = encoded("WEBP", (400, 300))

    with pytest.raises(ImageUnreadable, match="image is broken or incomplete"):
        preprocess(content[:60] + bytes(len(content) - 60))
    preprocess(content)

    assert len(children()) == 1


def test_a_process_that_was_killed_is_replaced(preprocess, children):
    """A killed process is replaced for the next image."""
    content = encoded("WEBP", (400, 300))
    expected = preprocess(content)
    (child,) = children()
    child.kill()
    child.wait()

    pixels = preprocess(content)

    np.testing.assert_array_equal(pixels, expected)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_stop_does_not_interrupt_images(preprocess, children, number):
    """SIGTERM and SIGINT, which reach all processes, do not stop a decoder while the server drains."""
    content = encoded("WEBP", (400, 300))
    preprocess(content)
    (child,) = children()

    child.send_signal(number)
    preprocess(content)

    assert children() == [child]


def test_a_terminal_does_not_reach_a_process(preprocess, children):
    """A signal to the server's process group does not reach a decoder, even before it is ready."""
    preprocess(encoded("WEBP", (400, 300)))

    (child,) = children()

    assert os.getsid(child.pid) == child.pid


def test_a_process_imports_nothing_from_the_current_folder(
    preprocess, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    """Modules in the working folder, such as a numpy.py, are not imported."""
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
    """If an image crashes the process, exhausts memory or takes too long, the image is refused."""
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
    """No process is left behind."""
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
    """Decoders end even if the server is killed, which cannot clean up."""
    with subprocess.Popen(
        [sys.executable, "-c", _SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        server.stdin.write(encoded("WEBP", (400, 300)))
        server.stdin.close()
        server.stdout.readline()
        children = psutil.Process(server.pid).children()

        server.kill()

        assert children
        assert psutil.wait_procs(children, timeout=30)[1] == []


def test_a_process_that_cannot_start_is_a_server_error(preprocess, monkeypatch):
    """A process that cannot start is an error of the server, with the cause in the log."""
    monkeypatch.setattr(preprocess_processes, "_PROGRAM", "alignserve_server.no_such_module")

    with pytest.raises(OSError, match="exited at startup"):
        preprocess(encoded("WEBP", (400, 300)))
