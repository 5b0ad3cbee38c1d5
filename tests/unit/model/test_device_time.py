"""Forwards are charged the device time that no other was charged."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from alignserve_server.model.runtimes.device_time import DeviceTime


@dataclass
class At:
    """An event at a time in seconds, with a clock that is as coarse as CUDA's between distant events."""

    seconds: float

    def elapsed_time(self, end: At) -> float:
        milliseconds = 1e3 * (end.seconds - self.seconds)
        return round(milliseconds) if abs(milliseconds) > 1e6 else milliseconds


def test_forwards_of_one_stream_are_charged_in_full():
    """Waiting for the forward before is not charged."""
    time = DeviceTime(["images", "texts"])

    assert time.charge("images", At(10.0), At(10.5)) == pytest.approx(0.5)
    assert time.charge("images", At(10.5), At(10.75)) == pytest.approx(0.25)


def test_overlapping_forwards_are_charged_once():
    """A text within an image's forward is charged to the text, and the rest to the image."""
    time = DeviceTime(["images", "texts"])

    assert time.charge("texts", At(1.0), At(1.2)) == pytest.approx(0.2)
    assert time.charge("texts", At(1.5), At(1.6)) == pytest.approx(0.1)
    assert time.charge("images", At(0.5), At(2.0)) == pytest.approx(1.2)


def test_a_forward_that_ends_after_another_is_charged_the_rest():
    """Of a text that begins while images run, the part after them."""
    time = DeviceTime(["images", "texts"])
    time.charge("images", At(0.0), At(1.0))

    assert time.charge("texts", At(0.8), At(1.3)) == pytest.approx(0.3)
    assert time.charge("images", At(1.0), At(2.0)) == pytest.approx(0.7)


def test_the_sum_of_charges_is_the_time_that_the_device_was_busy():
    """Whatever the two streams do."""
    time = DeviceTime(["images", "texts"])
    images = [("images", start, start + 0.9) for start in range(20)]
    texts = [("texts", 0.7 * number, 0.7 * number + 0.5) for number in range(28)]
    forwards = sorted(images + texts, key=lambda forward: forward[2])

    charged = sum(time.charge(stream, At(begin), At(end)) for stream, begin, end in forwards)

    moments = [step / 1e3 + 5e-4 for step in range(21_000)]
    busy = sum(any(begin < at < end for _, begin, end in forwards) for at in moments) / 1e3
    assert charged == pytest.approx(busy, abs=0.01)


def test_a_long_pause_does_not_blur_a_short_forward():
    """CUDA's clock is precise only between close events."""
    time = DeviceTime(["images", "texts"])
    time.charge("images", At(0.0), At(1.0))

    assert time.charge("texts", At(90_000.00011), At(90_000.00042)) == pytest.approx(0.00031)
