"""The command `alignserve-server`, up to the moment when it would serve."""

from __future__ import annotations

import os
import re
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from alignserve_server.cli import _parse_flags, run
from alignserve_server.settings import Settings, load_settings


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")  # the width of --help
    for name in os.environ:
        if name.startswith("ALIGNSERVE_"):
            monkeypatch.delenv(name)


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_names_every_setting(capsys: pytest.CaptureFixture[str], flag: str) -> None:
    """Each setting is a flag in kebab case; the exit code is 0."""
    with pytest.raises(SystemExit) as exited:
        run([flag])

    flags = re.findall(r"^  --([a-z-]+)", capsys.readouterr().out, re.MULTILINE)
    assert exited.value.code == 0
    assert {name.replace("_", "-") for name in Settings.model_fields} | {"config", "version"} == set(flags)


def test_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    """`--version` prints one line and exits with 0."""
    with pytest.raises(SystemExit) as exited:
        run(["--version"])

    assert exited.value.code == 0
    assert capsys.readouterr().out == f"alignserve-server {version('alignserve')}\n"


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["--lanes", "0"], "lanes: Input should be greater than or equal to 1"),
        (["--max-batch-size=many"], "max_batch_size: Input should be a valid integer"),
        (["--log-level", "loud"], "log_level: Input should be 'debug', 'info'"),
        (["--listen", "nowhere"], "listen: 'nowhere' is not HOST:PORT"),
        (["--workers", "2", "--device", "cuda:1"], "device cuda:1 cannot be shared by 2 workers"),
        (["--max-client-batch-size", "2000"], "max_client_batch_size (2000) is larger than max_queue_size"),
    ],
)
def test_a_wrong_flag_is_one_line_that_names_the_setting(
    capsys: pytest.CaptureFixture[str], argv: list[str], line: str
) -> None:
    """The exit code is 2, and there is neither traceback nor usage."""
    code = run(argv)

    output = capsys.readouterr()
    assert code == 2
    assert output.out == ""
    assert output.err.startswith(f"alignserve-server: {line}")
    assert output.err.count("\n") == 1


def test_a_wrong_environment_variable_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The environment is checked as flags are."""
    monkeypatch.setenv("ALIGNSERVE_LANES", "two")

    code = run([])

    assert code == 2
    assert capsys.readouterr().err.startswith("alignserve-server: lanes: Input should be a valid integer")


@pytest.mark.parametrize(
    ("text", "line"), [("lanes = 0", "lanes: Input should be greater"), ("lane = 1", "lane: Extra inputs")]
)
def test_a_wrong_line_of_the_file_is_named(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, text: str, line: str
) -> None:
    """Values out of range and unknown names are refused alike."""
    file = tmp_path / "server.toml"
    file.write_text(text)

    code = run(["--config", str(file)])

    assert code == 2
    assert capsys.readouterr().err.startswith(f"alignserve-server: {line}")


def test_each_problem_has_a_line_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    """Two wrong flags are two lines."""
    run(["--lanes", "0", "--listen", "nowhere"])

    lines = capsys.readouterr().err.splitlines()
    assert sorted(line.split(":")[1].strip() for line in lines) == ["lanes", "listen"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--nonsense", "1"], "unrecognized arguments: --nonsense 1"),
        (["--max-batch", "3"], "unrecognized arguments: --max-batch 3"),
        (["serve"], "unrecognized arguments: serve"),
        (["--lanes"], "argument --lanes: expected one argument"),
        (["--config", "/no/such/file.toml"], "--config /no/such/file.toml: there is no such file"),
    ],
)
def test_wrong_usage_exits_with_2(capsys: pytest.CaptureFixture[str], argv: list[str], message: str) -> None:
    """Unknown flags, missing values and a missing file are told by the parser."""
    with pytest.raises(SystemExit) as exited:
        run(argv)

    assert exited.value.code == 2
    assert capsys.readouterr().err.endswith(f"alignserve-server: error: {message}\n")


@pytest.mark.parametrize("content", [b"lanes = = 3", b"lanes = '\xff'"], ids=["syntax", "encoding"])
def test_a_file_that_is_not_toml_is_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, content: bytes
) -> None:
    """A broken file is named, without a traceback."""
    file = tmp_path / "server.toml"
    file.write_bytes(content)

    code = run(["--config", str(file)])

    (line,) = capsys.readouterr().err.splitlines()
    assert code == 2
    assert line.startswith(f"alignserve-server: --config {file}: ")


def test_a_folder_is_not_a_config_file(tmp_path: Path) -> None:
    """`--config` wants a file."""
    with pytest.raises(SystemExit) as exited:
        run(["--config", str(tmp_path)])

    assert exited.value.code == 2


@pytest.mark.parametrize(
    ("argv", "name", "value"),
    [
        (["--max-batch-size", "64"], "max_batch_size", 64),
        (["--max-queue-delay-ms=1.5"], "max_queue_delay_ms", 1.5),
        (["--no-metrics"], "metrics", False),
        (["--reflection"], "reflection", True),
        (["--checkpoint", "a/b"], "checkpoint", "a/b"),
    ],
)
def test_flags_become_settings(argv: list[str], name: str, value: object) -> None:
    """Numbers, switches and texts come out in the type of their setting."""
    flags, _ = _parse_flags(argv)

    assert list(flags) == [name]
    assert getattr(load_settings(flags), name) == value


def test_flags_that_are_not_given_leave_the_rest_to_environment_and_file(tmp_path: Path) -> None:
    """The parser's defaults never hide what stands elsewhere."""
    file = tmp_path / "server.toml"
    file.touch()

    flags, config_file = _parse_flags(["--config", str(file)])

    assert flags == {}
    assert config_file == file


def test_a_missing_dependency_says_what_to_install(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who installed the client alone is told how to get the server; the exit code is 1."""
    monkeypatch.setitem(sys.modules, "pydantic_settings", None)

    code = run([])

    assert code == 1
    assert capsys.readouterr().err == (
        "alignserve-server: pydantic_settings is missing; install the server: "
        "pip install 'alignserve[server]'\n"
    )
