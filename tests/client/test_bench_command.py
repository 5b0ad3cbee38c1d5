"""`alignserve bench` as a command: what it prints and writes, and how it exits."""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import grpc
import pytest
from alignserve import UnavailableError, __version__
from alignserve._bench import run
from alignserve._bench.histogram import Histogram
from alignserve._bench.load import OpenLoop
from alignserve._bench.recorder import Recorder
from alignserve._bench.report import latency_chart, ms, notes
from alignserve._bench.ticker import Ticker
from alignserve._cli.arguments import parser
from alignserve.testing import FakeServer

FEW = ("--work", "text", "--warmup-seconds", "0", "--max-requests", "20", "--seed", "1")


def parsed(target: str, *arguments: object) -> argparse.Namespace:
    return parser().parse_args(["--server", target, "bench", *map(str, arguments)])


@pytest.fixture
def bench(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs the command; returns its exit code and stdout."""

    def call(*arguments: object) -> tuple[int, str]:
        code = run(parsed(server.target, *arguments))
        return code, capsys.readouterr().out

    return call


def test_one_load_is_a_row_and_a_chart(bench: Any) -> None:
    """The setup is printed first; then rates, percentiles and the distribution."""
    code, out = bench(*FEW)

    heading, table, chart = out.strip().split("\n\n")
    assert code == 0
    assert "fake" in heading
    assert "seed 1" in heading
    columns = "concurrency requests/s items/s requests failed mean ms p50 p90 p95 p99 p99.9 max"
    assert " ".join(table.splitlines()[0].split()) == columns
    assert table.splitlines()[2].split()[3:5] == ["20", "0"]
    assert "█" in chart


def test_a_sweep_is_a_row_for_each_load(bench: Any) -> None:
    """Rows are in the order given, under one header."""
    _, out = bench(*FEW, "--rate", "500,1000,250", "--arrivals", "constant")

    rows = out.split("\n\n")[1].splitlines()
    assert rows[0].split()[0] == "rate"
    assert [row.split()[0] for row in rows[2:]] == ["500", "1,000", "250"]
    assert len({len(row) for row in rows}) == 1


def test_json_has_all_that_was_set_and_measured(bench: Any) -> None:
    """Without a file, JSON replaces the table; scripts rely on its names."""
    code, out = bench(*FEW, "--concurrency", "1,2", "--json")

    found = json.loads(out)
    assert code == 0
    assert set(found) == {
        *("schema_version", "started_at", "server", "model", "client", "settings", "was_interrupted"),
        "measurements",
    }
    assert found["model"]["fingerprint"] == "fake-8"
    assert found["client"]["version"] == __version__
    assert found["settings"]["concurrency"] == [1, 2]
    assert [one["concurrency"] for one in found["measurements"]] == [1, 2]
    assert set(found["measurements"][0]) == {
        *("concurrency", "seconds", "requests", "succeeded", "failed", "unfinished", "failures"),
        *("requests_per_second", "items_per_second", "latency_ms", "latency_spread_ms", "send_delay_ms"),
        *("client_cores", "was_interrupted"),
    }
    assert list(found["measurements"][0]["latency_ms"]) == [
        *("mean", "min", "p50", "p90", "p95", "p99", "p99_9", "max")
    ]


def test_json_knows_every_option(server: FakeServer, bench: Any) -> None:
    """All options are recorded, including future ones, except those for the output."""
    _, out = bench(*FEW, "--json")

    others = {"command", "usage_error"} | set(vars(parser().parse_args(["info"])))
    options = set(vars(parsed("", *FEW))) - others | {"json"}
    assert set(json.loads(out)["settings"]) == options - {"json", "save_plot"}


def test_json_to_a_file_leaves_the_table(bench: Any, tmp_path: Path) -> None:
    """One run gives both a table and JSON."""
    _, out = bench(*FEW, "--rate", "1000", "--json", tmp_path / "out.json")

    found = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert "requests/s" in out
    assert found["settings"]["concurrency"] is None
    assert found["measurements"][0]["send_delay_ms"]["max"] >= 0


def test_items_are_counted_apart_from_requests(bench: Any) -> None:
    """Four texts in a request count as four items."""
    _, out = bench(*FEW, "--items-per-request", "4", "--json")

    found = json.loads(out)["measurements"][0]
    assert found["items_per_second"] == pytest.approx(4 * found["requests_per_second"], rel=0.001)


@pytest.mark.parametrize("transport", ["unary", "stream"])
def test_a_mix_is_sent_over_both_transports(
    server: FakeServer, bench: Any, photo: Path, transport: str
) -> None:
    """Images, texts and classifications reach the server, each with unique content."""
    options = ("--work", "mix", "--mix", "image=1,text=1,classify=1", "--images", photo, "--seed", "1")

    code, _ = bench(*FEW, *options, "--transport", transport, "--streams", 2, "--connections", 2)

    assert code == 0
    payloads = [call.request.SerializeToString() for call in server.received if call.method != "GetModelInfo"]
    assert len(set(payloads)) == len(payloads) == 20


def test_failures_are_named_and_exit_with_1(server: FakeServer, bench: Any, tmp_path: Path) -> None:
    """Code, reason and an example of the message are printed below the table."""
    (tmp_path / "texts").write_text("good\nbad\n")
    server.fail_input("bad", grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL", times=3)

    code, out = bench(*FEW, "--concurrency", 1, "--texts-file", tmp_path / "texts", "--no-unique")

    assert code == 1
    assert "concurrency 1: 3 failed with RESOURCE_EXHAUSTED QUEUE_FULL" in out


def test_no_server_is_raised(capsys: pytest.CaptureFixture[str]) -> None:
    """The command prints the error and exits with 3, like every command."""
    with FakeServer() as gone:
        target = gone.target

    with pytest.raises(UnavailableError):
        run(parsed(target, *FEW))

    assert capsys.readouterr().out == ""


def test_more_items_than_the_server_takes_is_said_before(bench: Any) -> None:
    """Oversized requests are reported at once, instead of a run of refusals."""
    with pytest.raises(ValueError, match="--items-per-request is 5, but the server accepts at most 4"):
        bench(*FEW, "--items-per-request", 5)


def test_ctrl_c_prints_the_results_so_far(server: FakeServer) -> None:
    """The first interrupt ends the run with its results and exit code 130."""
    options = ["--work", "text", "--concurrency", "2,4", "--duration-seconds", "600", "--warmup-seconds", "0"]
    command = [sys.executable, "-m", "alignserve.cli", "--server", server.target, "bench", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        server.wait_for_received(50, timeout_seconds=60)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)

    assert (process.returncode, err) == (130, "")
    assert "concurrency 2: interrupted after" in out
    assert "concurrency 4" not in out


@pytest.mark.parametrize(
    "arguments",
    [
        *[["--concurrency", "0"], ["--concurrency", "1,x"], ["--rate", "-1"], ["--rate", "nan"]],
        *[["--rate", "1", "--concurrency", "1"], ["--mix", "audio=1"], ["--mix", "image=0"]],
        *[["--items-per-request", "0"], ["--duration-seconds", "0"], ["--warmup-seconds", "-1"]],
        ["--save-plot", "plot.txt"],
    ],
    ids=" ".join,
)
def test_a_wrong_command_line_exits_with_2(arguments: list[str]) -> None:
    """Mistakes are found before anything is sent."""
    with pytest.raises(SystemExit) as caught:
        parsed("", *arguments)

    assert caught.value.code == 2


def test_a_plot_without_matplotlib_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A missing matplotlib is reported before the measurement, not after."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)

    with pytest.raises(SystemExit):
        parsed("", "--save-plot", "plot.png")

    assert "pip install 'alignserve[bench]'" in capsys.readouterr().err


@pytest.mark.parametrize(("suffix", "begin"), [("png", b"\x89PNG"), ("svg", b"<?xml")])
def test_a_plot_is_saved_by_its_suffix(bench: Any, tmp_path: Path, suffix: str, begin: bytes) -> None:
    """PNG and SVG are plotted without a display."""
    pytest.importorskip("matplotlib")

    bench(*FEW, "--concurrency", "1,2", "--save-plot", tmp_path / f"plot.{suffix}")

    assert (tmp_path / f"plot.{suffix}").read_bytes().startswith(begin)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0, "0.00"), (0.0012345, "1.23"), (0.0123, "12.3"), (0.1234, "123"), (12.3456, "12,346")],
)
def test_milliseconds_have_three_digits(seconds: float, text: str) -> None:
    """Numbers are printed with no more digits than are meaningful."""
    assert ms(seconds) == text


def test_the_chart_has_a_bar_for_whatever_came() -> None:
    """A single request among thousands is visible in the chart."""
    histogram = Histogram()
    for seconds in [0.01] * 5000 + [1.0]:
        histogram.record(seconds)

    rows = latency_chart(histogram).splitlines()[2:]

    assert rows[0].count("█") == 40
    assert rows[-1].split()[-2:] == ["1", "█"]


@pytest.mark.parametrize(
    ("answer_seconds", "cores", "late_seconds", "expected"),
    [
        (0.1, 0.2, 0.0, []),
        (9.0, 0.2, 0.0, ["did not keep up; 1.0 of 10.0"]),
        (0.1, 1.1, 0.0, ["kept 1.1 cores busy"]),
        (0.1, 0.2, 0.02, ["was sent 20.0 ms late"]),
    ],
    ids=["fine", "overload", "busy client", "late client"],
)
def test_notes_warn_about_unreliable_numbers(
    answer_seconds: float, cores: float, late_seconds: float, expected: list[str]
) -> None:
    """Notes say when the numbers are not, or not only, the server's."""
    recorder = Recorder(begin=0.0, end=10.0)
    for due in (number / 10 for number in range(100)):
        recorder.start(due, due + late_seconds)
        recorder.succeed(due, due + answer_seconds, 1)
    found = recorder.measurement(OpenLoop(10), 99.0, client_cores=cores, was_interrupted=False)

    said = list(notes(found))

    assert len(said) == len(expected)
    assert all(part in note for part, note in zip(expected, said, strict=True))


class Terminal:
    """A terminal that records its output."""

    def __init__(self) -> None:
        self.shown = ""

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> None:
        self.shown += text

    def flush(self) -> None:
        """Does nothing."""


def test_a_terminal_shows_how_it_goes() -> None:
    """The line is redrawn periodically, not for each request, and cleared at the end."""
    out: Any = Terminal()
    recorder = Recorder(begin=10.0, end=20.0)
    ticker = Ticker(OpenLoop(50), out)
    for now in (9.0, 9.1, 12.0, 12.1):
        recorder.succeed(now - 0.01, now, 1)
        ticker.watch(recorder, now)
    ticker.finish()

    lines = [line for line in out.shown.split("\r\x1b[K") if line]
    assert lines == ["rate 50: warming up", "rate 50: 2 of 10 s, 0.5 requests/s, p50 10.0 ms, 0 failed"]
