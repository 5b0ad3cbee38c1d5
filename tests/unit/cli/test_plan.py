"""The command `alignserve-server plan`, with a saved curve."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from alignserve_server.cli.main import run
from alignserve_server.cli.plan import busy_machine
from alignserve_server.planning.curve import Curve, FrontCalls

FEW = ("--calls", "1000")
BY_SIZE = {1: 0.010, 2: 0.011, 4: 0.013, 8: 0.017}
CURVE = Curve(
    model="a model",
    cores=2,
    lanes=1,
    has_parallel_lanes=True,
    forward_cores=0.0,
    call={"image": 0.0, "text": 0.0},
    prepare={"image": 0.002, "text": 0.0},
    forward={"image": {1: {1: 0.010, 2: 0.020}}, "text": {8: BY_SIZE, 64: BY_SIZE}},
)


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith("ALIGNSERVE_"):
            monkeypatch.delenv(name)


@pytest.fixture
def curve(tmp_path: Path) -> str:
    """A file in the format of `--save`."""
    file = tmp_path / "curve.json"
    file.write_text(json.dumps(asdict(CURVE)))
    return str(file)


def _planned(capsys: pytest.CaptureFixture[str], *argv: str) -> dict[str, Any]:
    assert run(["plan", "--json", *FEW, *argv]) == 0
    answer: dict[str, Any] = json.loads(capsys.readouterr().out)
    return answer


def test_a_load_gets_the_replicas_that_sustain_it_and_one_more(
    capsys: pytest.CaptureFixture[str], curve: str
) -> None:
    """Each gets its share of the load and answers in time."""
    answer = _planned(capsys, "--p99", "0.1", "--rps", "1000", "--curve", curve)

    needed, spare = answer["plans"]
    assert needed["replicas"] * answer["calls_per_second_of_one"] >= 1000
    assert needed["calls_per_second_each"] * needed["replicas"] == pytest.approx(1000)
    assert needed["is_sustained"]
    assert spare["replicas"] == needed["replicas"] + 1
    assert spare["p99_seconds"] <= needed["p99_seconds"] <= 0.1


def test_batch_sizes_are_those_that_a_server_would_choose(
    capsys: pytest.CaptureFixture[str], curve: str
) -> None:
    """On this curve, images gain nothing from batching, and texts do, up to the given limit."""
    answer = _planned(capsys, "--p99", "0.1", "--curve", curve, "--max-batch-size", "8")

    assert answer["max_batch_size"] == {"image": 1, "text": 8}


def test_without_a_load_it_shows_what_replicas_sustain(
    capsys: pytest.CaptureFixture[str], curve: str
) -> None:
    """Three replicas sustain three times the load of one."""
    answer = _planned(capsys, "--p99", "0.1", "--replicas", "3", "--curve", curve)

    (plan,) = answer["plans"]
    assert plan["replicas"] == 3
    assert plan["calls_per_second_each"] == answer["calls_per_second_of_one"]


def test_the_default_output_is_a_table(capsys: pytest.CaptureFixture[str], curve: str) -> None:
    """It names the model and has a column for each figure."""
    code = run(["plan", *FEW, "--p99", "0.1", "--rps", "200", "--curve", curve])

    lines = capsys.readouterr().out.splitlines()
    assert code == 0
    assert lines[0].startswith("a model; cores: 2; lanes: 1")
    assert lines[1].startswith("One replica sustains ")
    assert lines[3].split()[0] == "replicas"
    assert len(lines) == 6


def test_too_few_replicas_are_reported_with_a_growing_wait(
    capsys: pytest.CaptureFixture[str], curve: str
) -> None:
    """The exit code is 1, so that scripts notice."""
    code = run(["plan", *FEW, "--p99", "0.1", "--rps", "1000", "--replicas", "1", "--curve", curve])

    output = capsys.readouterr()
    assert code == 1
    assert output.out.splitlines()[-1].endswith("grows  grows")
    assert " replicas cannot sustain the load; " in output.err


def test_an_unreachable_target_is_reported_with_the_minimum(
    capsys: pytest.CaptureFixture[str], curve: str
) -> None:
    """An image takes 2 ms to decode and 10 ms in the model."""
    code = run(["plan", *FEW, "--p99", "0.005", "--curve", curve])

    output = capsys.readouterr()
    assert code == 1
    assert output.out == ""
    assert "a p99 of 5 ms is unreachable: a single call on an idle replica takes 12 ms; allow " in output.err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "the following arguments are required: --p99"),
        (["--p99", "0"], "argument --p99: invalid value 0: must be greater than 0"),
        (["--p99", "1", "--rps", "inf"], "argument --rps: invalid value inf: must be greater than 0"),
        (["--p99", "1", "--replicas", "0"], "argument --replicas: invalid value 0: must be 1 or more"),
        (
            ["--p99", "1", "--calls", "9"],
            "invalid value 9: must be 1000 or more, of which 10 are slower than the p99",
        ),
        (
            ["--p99", "1", "--share-of-images", "2"],
            "argument --share-of-images: invalid value 2: must be from 0 to 1",
        ),
        (
            ["--p99", "1", "--text-tokens", "9-3"],
            "invalid range '9-3': use MIN-MAX, for example 5-20, or one number",
        ),
        (["--p99", "1", "--image-size", "640"], "invalid size '640': use WIDTHxHEIGHT, for example 640x480"),
        (["--p99", "1", "--save", "a", "--curve", "b"], "--curve: not allowed with argument --save"),
    ],
)
def test_invalid_usage_exits_with_2(
    capsys: pytest.CaptureFixture[str], argv: list[str], message: str
) -> None:
    """The parser reports values out of range and unknown flags."""
    with pytest.raises(SystemExit) as exited:
        run(["plan", *argv])

    assert exited.value.code == 2
    assert capsys.readouterr().err.endswith(f"{message}\n")


def test_fronts_need_a_curve_that_was_measured_with_them(
    capsys: pytest.CaptureFixture[str], curve: str, tmp_path: Path
) -> None:
    """With one they raise the rate, if the event loop was the limit."""
    call = {"image": 0.008, "text": 0.008}  # fewer than the model computes
    slow = replace(CURVE, cores=8, call=call, front_calls=FrontCalls(call, {"image": 1e-4, "text": 1e-4}))
    file = tmp_path / "fronts.json"
    file.write_text(json.dumps(asdict(slow)))
    flags = ("--p99", "0.1", "--share-of-images", "0")

    rates = [
        _planned(capsys, *flags, "--curve", str(file), "--front-processes", fronts)["calls_per_second_of_one"]
        for fronts in ("0", "2")
    ]
    code = run(["plan", *flags, "--curve", curve, "--front-processes", "2"])

    assert 1.8 < rates[1] / rates[0] < 2.5
    assert code == 2
    assert "was measured without front processes" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--workers", "2"], "workers is 2, but a plan is for one worker; omit it"),
        (["--lanes", "0"], "--lanes 0: must be 1 or more"),
        (
            ["--save", "/no/such/folder/file"],
            "--save /no/such/folder/file: no such directory: /no/such/folder",
        ),
        (["--curve", "/no/such/file"], "--curve /no/such/file: [Errno 2] No such file or directory"),
    ],
)
def test_other_errors_are_reported_in_one_line(
    capsys: pytest.CaptureFixture[str], argv: list[str], message: str
) -> None:
    """The exit code is 2, and there is no traceback."""
    code = run(["plan", "--p99", "1", *argv])

    output = capsys.readouterr()
    assert code == 2
    assert message in output.err
    assert output.err.count("\n") == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lanes": "many"}, "lanes: Input should be a valid integer"),
        ({"forward": {"image": {1: BY_SIZE}}}, "times of texts are missing"),
    ],
)
def test_the_error_for_an_invalid_curve_says_what_is_wrong(
    capsys: pytest.CaptureFixture[str], curve: str, change: dict[str, object], message: str
) -> None:
    """It names the file and the field."""
    Path(curve).write_text(json.dumps({**asdict(CURVE), **change}))

    code = run(["plan", "--p99", "1", "--curve", curve])

    assert code == 2
    assert f"--curve {curve}: {message}" in capsys.readouterr().err


def test_a_plan_warns_that_the_machine_was_busy() -> None:
    """Measured while tests ran, a replica that sustains 100 calls per second was planned with 8."""
    assert busy_machine(None, 2) is None
    assert busy_machine(0.1, 2) is None
    note = busy_machine(1.6, 2)
    assert note is not None
    assert "other processes used 1.6 of the machine's 2 cores" in note
