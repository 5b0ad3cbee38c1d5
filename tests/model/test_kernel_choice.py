"""The kernels of the image tower are chosen by their time, their numbers, and whether they run at all."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from alignserve_server.model.encoder import CaptureFailed, DeviceLost
from alignserve_server.model.runtimes import network as networks
from alignserve_server.model.runtimes.kernels import candidates
from alignserve_server.model.runtimes.kernels.choice import Bench, choose_kernels, sample_pixels
from alignserve_server.model.runtimes.kernels.compiled import CompiledForward
from alignserve_server.model.runtimes.kernels.unavailable import Unavailable
from alignserve_server.model.runtimes.runtime import Rescaling
from alignserve_server.model.runtimes.towers import ImageForward, Towers
from structlog.testing import capture_logs

from tests.model.tiny import tiny_model

pytestmark = pytest.mark.model

PLAIN_SECONDS = 2.0


class Candidate:
    """Computes what torch's kernels do, in a given time, unless it is told otherwise."""

    def __init__(self, seconds: float, forward: Callable[[torch.Tensor], torch.Tensor] | None = None) -> None:
        self.seconds = seconds
        self._forward = forward

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        assert self._forward is not None
        return self._forward(pixels)

    def made(self, towers: Towers) -> ImageForward:
        self._forward = self._forward or towers.embed_pixels_plainly
        return self


def seconds_of(forward: Any) -> float:
    """Returns the time that a candidate claims."""
    return forward.func.seconds if isinstance(forward.func, Candidate) else PLAIN_SECONDS


def wrong_for(size: int, forward: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """Returns a forward that computes something else for one batch size."""
    return lambda pixels: torch.randn(size, 24) if len(pixels) == size else forward(pixels)


def failing(error: Exception) -> Callable[[torch.Tensor], torch.Tensor]:
    def forward(pixels: torch.Tensor) -> torch.Tensor:
        raise error

    return forward


@pytest.fixture(scope="module")
def network() -> Any:
    """A network of three blocks."""
    return networks.optimized(tiny_model())


@pytest.fixture
def towers(network: Any) -> Towers:
    """Its towers, with torch's kernels."""
    rescaling = Rescaling(np.full(3, 1 / 127.5, np.float32), np.full(3, -1, np.float32))
    return Towers(network, rescaling, torch.device("cpu"), torch.float32)


@pytest.fixture(autouse=True)
def _variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """The choice sets them for the process."""
    for name in ("TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR"):
        monkeypatch.setenv(name, "kept")


def choose(
    towers: Towers, setting: Any, cache_dir: Path | None = None, batch_size: int = 2, **tried: Candidate
) -> tuple[str, list[Any]]:
    """Returns the choice and the events that it logs."""
    pixels = sample_pixels(batch_size, (40, 40), torch.device("cpu"))
    bench = Bench(torch.float32, pixels, range(1, batch_size + 1), seconds_of, cache_dir)
    makers: Any = {name: candidate.made for name, candidate in tried.items()}
    with capture_logs() as events:
        chosen = choose_kernels(towers, setting, bench, makers)
    return chosen, events


@pytest.mark.parametrize(
    ("epilogues", "fused", "expected"), [(1.0, 1.5, "epilogues"), (1.5, 1.0, "fused"), (3.0, 2.5, "plain")]
)
def test_auto_takes_the_fastest(towers, epilogues, fused, expected):
    """Torch's own kernels are measured too, and the log has all rates."""
    made = {"epilogues": Candidate(epilogues), "fused": Candidate(fused)}

    chosen, events = choose(towers, "auto", epilogues=made["epilogues"], fused=made["fused"])

    assert chosen == expected
    assert [event["event"] for event in events] == ["cuda_kernels_chosen"]
    assert events[0]["seconds"] >= 0
    assert events[0]["images_per_second"] == {
        "plain": round(2 / PLAIN_SECONDS),
        "epilogues": round(2 / epilogues),
        "fused": round(2 / fused),
    }
    assert towers._image_forward == made.get(expected, towers.embed_pixels_plainly)


def test_other_numbers_are_refused(towers):
    """However fast the kernels are."""
    wrong = Candidate(0.1, lambda pixels: torch.randn(len(pixels), 24))

    chosen, events = choose(towers, "auto", epilogues=wrong, fused=Candidate(1.0))

    assert chosen == "fused"
    assert "cosine similarity" in events[0]["epilogues"]


def test_kernels_that_are_wrong_for_one_batch_size_are_refused(towers):
    """Sizes have kernels of their own; the next fastest are used."""
    wrong = Candidate(0.1, wrong_for(2, towers.embed_pixels_plainly))

    chosen, events = choose(towers, "auto", batch_size=3, epilogues=Candidate(1.0), fused=wrong)

    assert chosen == "epilogues"
    assert "with 2 images" in events[0]["fused"]
    assert towers._image_forward != wrong


def test_batches_that_do_not_fit_are_not_compared(towers, monkeypatch):
    """A maximum that is too large for the GPU costs its graph, not the start."""
    plainly = towers.embed_pixels_plainly

    def lacking(pixels: torch.Tensor) -> torch.Tensor:
        if len(pixels) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return plainly(pixels)

    monkeypatch.setattr(towers, "embed_pixels_plainly", lacking)

    chosen, events = choose(towers, "auto", batch_size=8, epilogues=Candidate(1.0), fused=Candidate(1.5))

    assert chosen == "epilogues"
    assert [event["event"] for event in events] == ["cuda_kernels_chosen"]


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_numbers_that_are_not_finite_are_refused(towers, value):
    """A comparison with them is never true."""
    broken = Candidate(0.1, lambda pixels: torch.full((len(pixels), 24), value))

    assert choose(towers, "fused", fused=broken)[0] == "plain"


@pytest.mark.parametrize("setting", ["auto", "fused"])
def test_kernels_that_fail_are_replaced_by_torchs(towers, setting):
    """Whatever a compiler raises: the server starts, and one line has the reasons."""
    broken = Candidate(0.1, failing(subprocess.CalledProcessError(1, "gcc")))

    chosen, events = choose(towers, setting, epilogues=broken, fused=broken)

    assert chosen == "plain"
    assert [event["event"] for event in events] == ["cuda_kernels_unusable", "cuda_kernels_chosen"]
    assert "gcc" in events[0]["fused"]
    assert towers._image_forward == towers.embed_pixels_plainly


def test_chosen_kernels_are_used_even_if_they_are_slower(towers):
    """A setting other than `auto` measures no times."""
    chosen, (event,) = choose(towers, "fused", fused=Candidate(100.0))

    assert (chosen, event["images_per_second"]) == ("fused", {})


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (RuntimeError("CUDA error: an illegal memory access was encountered"), DeviceLost),
        (CaptureFailed("the capture could not be ended"), CaptureFailed),
    ],
    ids=["device", "captures"],
)
def test_kernels_that_ruin_the_process_are_not_tried_again(towers, tmp_path, error, raised):
    """The process must end, and its successor starts without them instead of failing forever."""
    lost = Candidate(0.1, failing(error))
    with pytest.raises(raised):
        choose(towers, "auto", tmp_path, epilogues=Candidate(1.0), fused=lost)

    chosen, events = choose(towers, "auto", tmp_path, epilogues=Candidate(1.0), fused=Candidate(0.1))

    assert chosen == "epilogues"
    (marker,) = (tmp_path / "kernels").iterdir()
    assert str(marker) in events[0]["fused"]


def test_a_trial_that_another_process_runs_is_not_a_failure(towers, tmp_path):
    """Workers that start together share the directory."""
    with pytest.raises(DeviceLost):
        choose(towers, "auto", tmp_path, epilogues=Candidate(1, failing(DeviceLost())), fused=Candidate(1))
    (marker,) = (tmp_path / "kernels").iterdir()
    marker.write_text(str(os.getppid()))

    assert choose(towers, "auto", tmp_path, epilogues=Candidate(0.1), fused=Candidate(1.0))[0] == "epilogues"
    assert not marker.exists()


@pytest.mark.parametrize(("deaths", "expected"), [(1, "epilogues"), (2, "fused")])
def test_kernels_are_given_up_after_two_deaths(towers, tmp_path, deaths, expected):
    """A process that ends during a trial may have been stopped by its orchestrator."""
    with pytest.raises(DeviceLost):
        choose(towers, "auto", tmp_path, epilogues=Candidate(1, failing(DeviceLost())), fused=Candidate(1))
    (marker,) = (tmp_path / "kernels").iterdir()
    marker.write_text(f"{os.getpid()}\n" * deaths)  # of an earlier process in another container

    assert choose(towers, "auto", tmp_path, epilogues=Candidate(0.1), fused=Candidate(1.0))[0] == expected


@pytest.mark.parametrize("setting", ["auto", "fused"])
def test_without_a_writable_cache_torchs_kernels_stay(towers, tmp_path, setting):
    """No failed trial could be remembered: kernels that lose the device would do so at every startup."""
    file = tmp_path / "file"
    file.write_text("")

    chosen, events = choose(towers, setting, file, epilogues=Candidate(0.1), fused=Candidate(1.0))

    assert chosen == "plain"
    assert "writable cache_dir" in events[0]["fused"]


@pytest.mark.parametrize("name", ["epilogues", "fused", "compiled"])
def test_without_triton_the_reason_says_so(towers, name, monkeypatch):
    """torch for CPUs, and for other systems than Linux, comes without."""
    monkeypatch.setitem(sys.modules, "triton", None)

    with pytest.raises(Unavailable, match="triton"):
        candidates.MAKERS[name](towers)


def test_without_a_compiler_the_reason_says_so(towers, monkeypatch):
    """Triton would raise it only at the first launch."""
    pytest.importorskip("triton")
    monkeypatch.setattr(shutil, "which", lambda name: None)

    with pytest.raises(Unavailable, match="install gcc"):
        candidates.MAKERS["fused"](towers)


def test_an_older_gpu_keeps_torchs_kernels(monkeypatch):
    """Triton would compile for minutes and might fail."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))

    with pytest.raises(Unavailable, match=r"capability 8\.0 or later; this one has 7\.5"):
        candidates._check_capability(torch.device("cuda:0"))


def test_compiled_kernels_are_kept_in_the_cache_directory(tmp_path, monkeypatch):
    """The next start does not compile them again."""
    for name in ("TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR"):
        monkeypatch.delenv(name)

    candidates.keep_compiled(tmp_path / "cache")

    assert os.environ["TRITON_CACHE_DIR"] == str(tmp_path / "cache" / "triton")
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "cache" / "inductor")


@pytest.mark.long
def test_two_compilations_serve_every_batch_size(towers):
    """One for a single image, one for all larger batches; both compute the same as torch's kernels."""
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable[..., Any]:
        graphs.append(graph)
        return graph.forward

    forward = CompiledForward(towers, backend=backend)
    with torch.inference_mode():
        for size in (3, 1, 2, 5):
            pixels = sample_pixels(size, (40, 40), torch.device("cpu"))
            torch.testing.assert_close(forward(pixels), towers.embed_pixels_plainly(pixels))

    assert len(graphs) == 2
