"""The command `alignserve-server`, up to the point where it would serve."""

from __future__ import annotations

import argparse
import json
import os
import re
import socket
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from alignserve_server.cli.flags import add_settings
from alignserve_server.cli.main import run
from alignserve_server.settings import Settings, load_settings


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")  # the width of --help
    for name in os.environ:
        if name.startswith("ALIGNSERVE_"):
            monkeypatch.delenv(name)


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_lists_every_setting(capsys: pytest.CaptureFixture[str], flag: str) -> None:
    """Each setting is a flag in kebab case; the exit code is 0."""
    with pytest.raises(SystemExit) as exited:
        run([flag])

    flags = re.findall(r"^  --([a-z-]+)", capsys.readouterr().out, re.MULTILINE)
    assert exited.value.code == 0
    assert {name.replace("_", "-") for name in Settings.model_fields} | {"config", "version"} == set(flags)


@pytest.mark.parametrize("command", ["check", "settings", "prepare", "keys", "plan"])
def test_each_command_has_help(capsys: pytest.CaptureFixture[str], command: str) -> None:
    """The exit code is 0, and the text begins with the command's usage."""
    with pytest.raises(SystemExit) as exited:
        run([command, "--help"])

    assert exited.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: alignserve-server {command} ")


@pytest.mark.parametrize(
    ("command", "old", "new"),
    [
        ("keys", "--keys-file", "--api-keys-file"),
        ("prepare", "--calibration-folder", "--calibration-dir"),
        ("prepare", "--min-cosine", "--min-cosine-similarity"),
    ],
)
def test_a_renamed_flag_of_a_command_is_answered_with_its_new_name(
    capsys: pytest.CaptureFixture[str], command: str, old: str, new: str
) -> None:
    """The exit code is 2."""
    with pytest.raises(SystemExit) as exited:
        run([command, old, "x"])

    assert exited.value.code == 2
    assert f"{old}: renamed; use {new}" in capsys.readouterr().err


def test_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    """`--version` prints one line and exits with 0."""
    with pytest.raises(SystemExit) as exited:
        run(["--version"])

    assert exited.value.code == 0
    assert capsys.readouterr().out == f"alignserve-server {version('alignserve-server')}\n"


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["--lanes", "0"], "--lanes 0: must be 1 or more"),
        (["--max-batch-size=many"], "--max-batch-size many: must be a whole number"),
        (["--log-level", "loud"], "--log-level loud: must be 'debug', 'info'"),
        (["--listen", "nowhere"], "--listen nowhere: 'nowhere' is not HOST:PORT"),
        (["--max-client-batch-size", "2000"], "max_client_batch_size (2000) is larger than max_queue_size"),
    ],
)
def test_an_invalid_flag_is_reported_in_one_line_with_its_name(
    capsys: pytest.CaptureFixture[str], argv: list[str], line: str
) -> None:
    """The exit code is 2, and neither a traceback nor the usage is printed."""
    code = run(argv)

    output = capsys.readouterr()
    assert code == 2
    assert output.out == ""
    assert output.err.startswith(f"alignserve-server: {line}")
    assert output.err.count("\n") == 1


def test_an_invalid_environment_variable_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Variables are validated like flags."""
    monkeypatch.setenv("ALIGNSERVE_LANES", "two")

    code = run([])

    assert code == 2
    assert capsys.readouterr().err.startswith(
        "alignserve-server: ALIGNSERVE_LANES=two: must be a whole number"
    )


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("lanes = 0", "1: lanes = 0: must be 1 or more"),
        ("\nlane = 1", "2: lane = 1: unknown setting; did you mean lanes?"),
    ],
)
def test_an_invalid_line_of_the_file_is_named(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, text: str, line: str
) -> None:
    """Values out of range and unknown names are both refused."""
    file = tmp_path / "server.toml"
    file.write_text(text)

    code = run(["--config", str(file)])

    assert code == 2
    assert capsys.readouterr().err.startswith(f"alignserve-server: {file}:{line}")


def test_each_problem_has_its_own_line(capsys: pytest.CaptureFixture[str]) -> None:
    """Two invalid flags are reported in two lines."""
    run(["--lanes", "0", "--listen", "nowhere"])

    lines = capsys.readouterr().err.splitlines()
    assert sorted(line.split()[1] for line in lines) == ["--lanes", "--listen"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--lanes"], "argument --lanes: expected one argument"),
        (["--config", "/no/such/file.toml"], "argument --config: /no/such/file.toml: no such file"),
        (["--config", "/"], "argument --config: /: not a file"),
    ],
)
def test_invalid_usage_exits_with_2(
    capsys: pytest.CaptureFixture[str], argv: list[str], message: str
) -> None:
    """The parser reports missing values and missing files."""
    with pytest.raises(SystemExit) as exited:
        run(argv)

    assert exited.value.code == 2
    assert capsys.readouterr().err.endswith(f"alignserve-server: error: {message}\n")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--nonsense", "1"], "--nonsense: unknown flag"),
        (["--max-batch", "3"], "--max-batch: unknown flag; did you mean --max-batch-size?"),
        (["--max_batch_siez=3"], "--max_batch_siez: unknown flag; did you mean --max-batch-size?"),
        (["serve"], "serve: unknown command; commands are check, keys, plan, prepare, settings"),
        (["setings"], "setings: unknown command; did you mean settings?"),
        (
            ["--reflection", "false"],
            "false: unexpected argument; switches take no value, use --no-… to turn one off",
        ),
    ],
)
def test_typos_get_suggestions(capsys: pytest.CaptureFixture[str], argv: list[str], message: str) -> None:
    """An unknown flag or command is reported in one line with the closest name; the exit code is 2."""
    code = run(argv)

    assert code == 2
    assert capsys.readouterr().err == f"alignserve-server: {message}\n"


def test_unknown_flags_and_invalid_values_are_reported_together(capsys: pytest.CaptureFixture[str]) -> None:
    """A user who corrects a command line does not need one attempt per mistake."""
    code = run(["--lane", "2", "--max-batch-size", "0"])

    assert code == 2
    assert capsys.readouterr().err.splitlines() == [
        "alignserve-server: --lane: unknown flag; did you mean --lanes?",
        "alignserve-server: --max-batch-size 0: must be 1 or more",
    ]


@pytest.mark.parametrize("content", [b"lanes = = 3", b"lanes = '\xff'"], ids=["syntax", "encoding"])
def test_a_file_that_is_not_toml_is_reported_in_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, content: bytes
) -> None:
    """The line names the file, and there is no traceback."""
    file = tmp_path / "server.toml"
    file.write_bytes(content)

    code = run(["--config", str(file)])

    (line,) = capsys.readouterr().err.splitlines()
    assert code == 2
    assert line.startswith(f"alignserve-server: --config {file}: ")


def test_a_folder_is_not_a_config_file(tmp_path: Path) -> None:
    """`--config` expects a file."""
    with pytest.raises(SystemExit) as exited:
        run(["--config", str(tmp_path)])

    assert exited.value.code == 2


@pytest.mark.parametrize(
    ("argv", "name", "value"),
    [
        (["--max-batch-size", "64"], "max_batch_size", 64),
        (["--max-queue-delay-seconds=0.0015"], "max_queue_delay_seconds", 0.0015),
        (["--metrics-listen", "none"], "metrics_listen", None),
        (["--reflection"], "reflection", True),
        (["--checkpoint", "a/b"], "checkpoint", "a/b"),
    ],
)
def test_flags_become_settings(argv: list[str], name: str, value: object) -> None:
    """Numbers, switches and texts get the type of their setting; others come from other sources."""
    parser = argparse.ArgumentParser()
    add_settings(parser)

    flags = vars(parser.parse_args(argv))

    assert list(flags) == [name]
    assert getattr(load_settings(flags), name) == value


def test_help_has_clear_metavars_and_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    """Metavars say what a value is, and no default is shown twice or as Python's None."""
    with pytest.raises(SystemExit):
        run(["--help"])

    text = capsys.readouterr().out
    metavars = re.findall(r"^  --[a-z-]+ (\S+)", text, re.MULTILINE)
    assert not {"int", "str", "float", "Path", "bool"} & set(metavars)
    assert {"HOST:PORT", "FILE", "DIR", "N", "SECONDS", "BYTES"} <= set(metavars)
    assert "default: None" not in text
    assert not re.search(r"default: [^()\n]*\(default:", text)


def test_settings_are_shown_with_the_place_of_each(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The place is a flag, a variable, a line of the file, or the default."""
    file = tmp_path / "server.toml"
    file.write_text('\nlanes = 2\nmetrics_listen = "[::]:1"')
    monkeypatch.setenv("ALIGNSERVE_WORKERS", "3")
    monkeypatch.setenv("ALIGNSERVE_REVISION", "")

    code = run(["settings", "--config", str(file), "--metrics-listen", "none", "--format", "json"])

    shown = json.loads(capsys.readouterr().out)
    assert code == 0
    assert set(shown) == set(Settings.model_fields)
    assert shown["lanes"] == {"value": 2, "from": f"{file}:2"}
    assert shown["metrics_listen"] == {"value": None, "from": "--metrics-listen"}
    assert shown["workers"] == {"value": 3, "from": "ALIGNSERVE_WORKERS"}
    assert shown["revision"] == {"value": None, "from": "default"}


def test_settings_can_be_written_and_read_again(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """The TOML that `settings` prints is a file for --config with the same settings."""
    file = tmp_path / "server.toml"
    flags = ["--lanes", "2", "--shutdown-grace-seconds", "inf", "--checkpoint", 'möd"el 🚀']
    run(["settings", "--format", "toml", *flags])
    file.write_text(capsys.readouterr().out)

    written = load_settings({}, file)

    assert written == load_settings({"lanes": 2, "shutdown_grace_seconds": "inf", "checkpoint": 'möd"el 🚀'})


def test_the_table_lists_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    """Each has a line with its value and place."""
    run(["settings", "--lanes", "2"])

    lines = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
    assert [line[0] for line in lines] == list(Settings.model_fields)
    assert ["lanes", "2", "--lanes"] in lines


def test_an_unknown_variable_is_reported(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message has its name and the closest setting, but not its value."""
    monkeypatch.setenv("ALIGNSERVE_MAX_BATCHSIZE", "secret")

    code = run(["settings"])

    assert code == 0
    assert capsys.readouterr().err == (
        "alignserve-server: ALIGNSERVE_MAX_BATCHSIZE: unknown setting, ignored; "
        "did you mean ALIGNSERVE_MAX_BATCH_SIZE?\n"
    )


def test_check_reports_everything_that_fails(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Settings, ports, files, folders and the checkpoint each have a line, and the exit code is 1."""
    taken = socket.create_server(("127.0.0.1", 0))
    file = tmp_path / "file"
    file.write_text("neither a key nor a folder")

    with taken:
        code = run(
            [
                *("check", "--lanes", "0", "--lane", "1"),
                *("--listen", f"127.0.0.1:{taken.getsockname()[1]}", "--metrics-listen", "192.0.2.1:1"),
                *("--tls-certificate", str(file), "--tls-key", str(file), "--api-keys-file", str(file)),
                *(
                    "--cache-dir",
                    str(file),
                    "--calibration-dir",
                    str(file),
                    "--checkpoint",
                    str(tmp_path),
                ),
            ]
        )

    *lines, _ = [line.split(maxsplit=2) for line in capsys.readouterr().out.splitlines()]
    assert code == 1
    assert [subject for verdict, subject, _ in lines if verdict == "FAIL"] == [
        *("settings", "settings", "listen", "metrics_listen", "tls_certificate", "api_keys_file"),
        *("checkpoint", "checkpoint", "checkpoint", "checkpoint"),  # of each kind of file
    ]
    assert [subject for verdict, subject, _ in lines if verdict == "warn"][:2] == [
        "cache_dir",
        "calibration_dir",
    ]


def test_check_opens_all_ports_at_the_same_time(capsys: pytest.CaptureFixture[str]) -> None:
    """Two addresses cannot use the same port."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"

    code = run(["check", "--checkpoint", "fake", "--listen", address, "--metrics-listen", address])

    assert code == 1
    assert "FAIL  metrics_listen" in capsys.readouterr().out


def test_check_passes_if_a_start_would(capsys: pytest.CaptureFixture[str]) -> None:
    """The exit code is 0, and nothing is left open."""
    ports = ["--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0"]

    code = run(["check", "--checkpoint", "fake", *ports])

    *lines, summary = capsys.readouterr().out.splitlines()
    assert code == 0
    assert {line.split()[0] for line in lines} <= {"ok", "warn"}  # a small machine has warnings
    assert lines[-2].startswith("ok    model               fake on fake in float32")
    assert re.fullmatch(r"\d+ ok, \d+ warn, 0 FAIL; \d+\.\d s", summary)


def test_a_quick_check_does_not_load_the_model(capsys: pytest.CaptureFixture[str]) -> None:
    """As JSON, each finding has a verdict, a subject, a text and its duration."""
    ports = ["--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0"]

    code = run(["check", "--quick", "--json", *ports])

    result = json.loads(capsys.readouterr().out)
    subjects = [finding["subject"] for finding in result["findings"]]
    assert code == 0
    assert result["starts"] is True
    assert set(result["findings"][0]) == {"verdict", "subject", "text", "seconds"}
    assert {"tokenizer", "prepared", "memory", "clock"} <= set(subjects)
    assert "model" not in subjects


def test_check_shows_where_spans_are_exported(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The endpoint for traces overrides the one for all signals, as in OpenTelemetry."""
    pytest.importorskip("opentelemetry.sdk")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://all:4317")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://traces:4317")
    ports = ["--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0"]

    run(["check", "--checkpoint", "fake", "--tracing", *ports])

    assert "spans are exported to http://traces:4317" in capsys.readouterr().out


def test_the_error_for_a_missing_dependency_says_what_to_install() -> None:
    """Users who have installed only the client learn how to install the server; the exit code is 1."""
    program = """
import sys
sys.modules["pydantic"] = None
from alignserve_server.cli.main import run
sys.exit(run([]))
"""

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)

    assert done.returncode == 1
    assert done.stderr == ("alignserve-server: pydantic is missing; pip install 'alignserve[server]'\n")
