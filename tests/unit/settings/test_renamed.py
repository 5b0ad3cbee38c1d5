"""Settings of earlier versions prevent the start, with a message that says what to use instead."""

from __future__ import annotations

from pathlib import Path

import pytest
from alignserve_server.cli.main import run
from alignserve_server.settings import ACCESS, Settings
from alignserve_server.settings.renamed import REMOVED, RENAMED


@pytest.mark.parametrize(("old", "new"), RENAMED.items())
def test_a_renamed_flag_prevents_the_start_with_its_new_name(
    capsys: pytest.CaptureFixture[str], old: str, new: str
) -> None:
    """The name is shown as a flag, without the value."""
    code = run([_flag(old), "value"])

    assert code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"alignserve-server: {_flag(old)}: renamed; use {_flag(new)}")
    assert "value" not in line


@pytest.mark.parametrize("value", ["value", ""])
@pytest.mark.parametrize(("old", "new"), RENAMED.items())
def test_a_renamed_variable_prevents_the_start_with_its_new_name(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, old: str, new: str, value: str
) -> None:
    """The name is shown as a variable. An empty one counts too, since it may be a secret that is missing."""
    monkeypatch.setenv(f"ALIGNSERVE_{old.upper()}", value)

    code = run([])

    assert code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(
        f"alignserve-server: ALIGNSERVE_{old.upper()}: renamed; use ALIGNSERVE_{new.upper()}"
    )


@pytest.mark.parametrize(("old", "new"), RENAMED.items())
def test_a_renamed_line_of_the_file_prevents_the_start_with_its_new_name(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, old: str, new: str
) -> None:
    """The message has the line number."""
    file = tmp_path / "server.toml"
    file.write_text(f"lanes = 1\n{old} = 1")

    code = run(["--config", str(file)])

    assert code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"alignserve-server: {file}:2: renamed; use {new}")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--no-metrics"], "--no-metrics: removed; to serve no metrics, set --metrics-listen to none"),
        (["--metrics"], "--metrics: removed; to serve no metrics, set --metrics-listen to none"),
        (
            ["--no-warmup"],
            "--no-warmup: removed; the model always warms up; to use batch sizes as given, set "
            "--max-image-batch-size and --max-text-batch-size",
        ),
        (
            ["--watchdog-interval-seconds", "5"],
            "--watchdog-interval-seconds: removed; the interval is a tenth of --stall-timeout-seconds, at "
            "most 1 s",
        ),
    ],
)
def test_a_removed_flag_is_an_error_that_says_what_to_do(
    capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    """The settings to use instead are shown as flags."""
    code = run(flags)

    assert code == 2
    assert capsys.readouterr().err == f"alignserve-server: {message}\n"


@pytest.mark.parametrize("old", REMOVED)
def test_a_removed_setting_prevents_the_start_from_every_source(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, old: str
) -> None:
    """Variables and lines of the file are refused too, each with its place."""
    monkeypatch.setenv(f"ALIGNSERVE_{old.upper()}", "1")
    file = tmp_path / "server.toml"
    file.write_text(f"{old} = 1")

    code = run(["--config", str(file)])

    assert code == 2
    variable, line = capsys.readouterr().err.splitlines()
    assert variable.startswith(f"alignserve-server: ALIGNSERVE_{old.upper()}: removed; ")
    assert "ALIGNSERVE_" in variable.partition("removed")[2]
    assert line.startswith(f"alignserve-server: {file}:1: removed; ")


def test_old_names_are_not_settings() -> None:
    """Every new name is a setting, no old name is, and secret settings are still secret."""
    names = Settings.model_fields.keys()

    assert set(RENAMED.values()) <= names
    assert not names & {*RENAMED, *REMOVED}
    assert RENAMED["keys_file"] in ACCESS


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["keys", "--keys-file", "k.json", "list"], "--keys-file: renamed; use --api-keys-file"),
        (
            ["prepare", "--to", "x", "--calibration-folder", "photos"],
            "--calibration-folder: renamed; use --calibration-dir",
        ),
        (
            ["prepare", "--to", "x", "--min-cosine", "0.9"],
            "--min-cosine: renamed; use --min-cosine-similarity",
        ),
    ],
)
def test_a_renamed_flag_of_a_command_is_an_error_with_its_new_name(
    capsys: pytest.CaptureFixture[str], argv: list[str], message: str
) -> None:
    """As with the flags of the server, the exit code is 2."""
    with pytest.raises(SystemExit) as exited:
        run(argv)

    assert exited.value.code == 2
    assert capsys.readouterr().err.endswith(f"alignserve-server {argv[0]}: error: {message}\n")


def test_the_command_for_keys_refuses_the_old_variable(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a key could be written to a file that the server does not read."""
    monkeypatch.setenv("ALIGNSERVE_KEYS_FILE", "k.json")

    with pytest.raises(SystemExit) as exited:
        run(["keys", "list"])

    assert exited.value.code == 2
    assert capsys.readouterr().err.endswith(
        "error: ALIGNSERVE_KEYS_FILE: renamed; use ALIGNSERVE_API_KEYS_FILE\n"
    )


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
