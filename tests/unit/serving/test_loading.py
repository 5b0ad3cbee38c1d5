"""The device on which each worker loads its model."""

from __future__ import annotations

from pathlib import Path

import pytest
from alignserve_server.batching.batch_size import Run
from alignserve_server.errors import StartupError
from alignserve_server.model import align
from alignserve_server.serving.loading import batch_limits, load_encoder, measured_sizes
from alignserve_server.serving.tuned_sizes import TunedSizes
from alignserve_server.settings import Settings


@pytest.fixture(autouse=True)
def _gpus(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine whose number of GPUs is the test's parameter, and where loading returns the device."""

    def resolved(device: str, runtime: str, *, is_tried: bool = True) -> str:
        if device == "cpu" or (device == "auto" and not request.param):
            return "cpu"
        number = int(device.removeprefix("cuda:")) if ":" in device else 0
        if number >= request.param:
            raise ValueError(f"device cuda:{number} does not exist; torch sees {request.param} GPUs")
        return f"cuda:{number}"

    def load_align(_: object, options: align.LoadOptions) -> str:
        return options.device

    monkeypatch.setattr(align, "resolved_device", resolved)
    monkeypatch.setattr(align, "load_align", load_align)


@pytest.mark.parametrize(
    ("_gpus", "device", "expected"),
    [
        (4, "auto", ["cuda:0", "cuda:1"]),
        (2, "cuda", ["cuda:0", "cuda:1"]),
        (2, "cpu", ["cpu", "cpu"]),
        (2, "cuda:1", ["cuda:1", "cuda:1"]),
        (0, "auto", ["cpu", "cpu"]),
    ],
    indirect=["_gpus"],
)
def test_each_worker_has_a_gpu_of_its_own(device: str, expected: list[str]) -> None:
    """Unless one is named for all; all use the CPU if it is configured or there is no GPU."""
    settings = Settings(workers=2, device=device)

    found: list[object] = [load_encoder(settings, worker) for worker in range(2)]

    assert found == expected


@pytest.mark.parametrize(("_gpus", "device"), [(1, "auto"), (1, "cuda"), (0, "cuda")], indirect=["_gpus"])
def test_too_few_gpus_are_refused_by_the_first_worker(device: str) -> None:
    """The server does not start with only some of its workers."""
    with pytest.raises(StartupError, match=r"cuda.* does not exist"):
        load_encoder(Settings(workers=2, device=device), 0)


@pytest.mark.parametrize(
    ("_gpus", "device", "expected"),
    [(2, "auto", "cuda:0"), (2, "cuda:1", "cuda:1"), (0, "auto", "cpu")],
    indirect=["_gpus"],
)
def test_a_single_process_uses_the_configured_device(device: str, expected: str) -> None:
    """`auto` is the first GPU, or the CPU if there is none."""
    found: object = load_encoder(Settings(device=device))

    assert found == expected


@pytest.mark.parametrize(
    ("given", "cpu", "gpu"),
    [
        ({}, {"image": 32, "text": 32}, {"image": 64, "text": 256}),
        ({"max_batch_size": 8}, {"image": 8, "text": 8}, {"image": 8, "text": 8}),
        ({"max_text_batch_size": 512}, {"image": 32, "text": 512}, {"image": 64, "text": 512}),
    ],
    ids=str,
)
def test_a_gpu_may_run_larger_batches(
    given: dict[str, int], cpu: dict[str, int], gpu: dict[str, int]
) -> None:
    """Sizes from settings apply to any device."""
    settings = Settings.model_validate(given)

    assert [batch_limits(settings, device) for device in ("cpu", "cuda:1")] == [cpu, gpu]


@pytest.mark.parametrize(
    ("given", "sizes"),
    [
        ({}, {"image": 2, "text": 16}),
        ({"max_batch_size": 8}, {"image": 2, "text": 8}),
        ({"max_text_batch_size": 64}, {"image": 2, "text": 64}),
        ({"max_image_batch_size": 7}, {"image": 7, "text": 16}),
    ],
    ids=str,
)
def test_known_sizes_are_not_measured(given: dict[str, int], sizes: dict[str, int], tmp_path: Path) -> None:
    """Sizes from settings override saved ones, and only missing sizes are measured."""
    file = TunedSizes(tmp_path, "a model", {})
    file.write({"image": 2})
    runs: dict[str, Run] = {
        "image": lambda _: pytest.fail("measured"),
        "text": lambda size: max(0.001, 0.001 * size / 16),
    }

    chosen = measured_sizes(Settings.model_validate(given), "cpu", runs, 15, file=file)

    assert chosen.as_dict() == sizes


def test_the_fixed_cost_of_a_batch_is_measured(tmp_path: Path) -> None:
    """A forward of 0.45 ms and 0.35 us a token, as on an H100, costs as much as 1286 tokens for itself."""
    file = TunedSizes(tmp_path, "a model", {})
    runs: dict[str, Run] = {
        "image": lambda size: 0.0022 + 0.00033 * size,
        "text": lambda size: 0.00045 + 0.35e-6 * 15 * size,
    }

    first = measured_sizes(Settings(), "cuda:0", runs, 15, file=file)
    second = measured_sizes(Settings(), "cuda:0", {}, 15, file=file)

    assert first.as_dict() == {"image": 64, "text": 256}
    assert first.policies()["text"].overhead == second.policies()["text"].overhead == 1286


def test_texts_are_never_grouped_by_equal_length(tmp_path: Path) -> None:
    """Even if a batch has no measurable fixed cost."""
    runs: dict[str, Run] = {"image": lambda size: 0.001 * size, "text": lambda size: 0.001 * size}

    assert measured_sizes(Settings(), "cpu", runs, 15).policies()["text"].overhead == 8
