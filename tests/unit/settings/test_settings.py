"""Settings come from flags, the environment, a file and defaults, and are validated before the start."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest
from alignserve_server.settings import ACCESS, GROUPS, Settings, load_settings, read_settings
from alignserve_server.settings.problems import SettingsError
from pydantic import ValidationError


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith("ALIGNSERVE_"):
            monkeypatch.delenv(name)


def _toml(folder: Path, text: str) -> Path:
    file = folder / "server.toml"
    file.write_text(text)
    return file


def _faults(flags: dict[str, object], file: Path | None = None) -> list[str]:
    """Loads invalid settings; returns the names of those at fault."""
    with pytest.raises(SettingsError) as raised:
        load_settings(flags, file)
    return [name for problem in raised.value.problems for name in problem.names]


def test_extra_image_formats_are_separated_by_commas() -> None:
    """Order, case and spaces do not matter; by default there are none."""
    assert load_settings({}).accepted_extra_formats == ()
    settings = load_settings({"extra_image_formats": "heic, AVIF,heic"})
    assert settings.accepted_extra_formats == ("AVIF", "HEIC")


def test_an_unknown_image_format_is_refused() -> None:
    """The message lists the known ones."""
    with pytest.raises(SettingsError, match="unknown format 'webm'; use one or more of avif, tiff, heic"):
        load_settings({"extra_image_formats": "avif,webm"})


@pytest.mark.parametrize("device", ["gpu", "cuda:x", "cuda:", "CPU"])
def test_an_invalid_device_is_refused(device: str) -> None:
    """It is reported together with other errors, before the model is loaded."""
    with pytest.raises(SettingsError, match=f"--device {device}: must be auto, cpu, cuda or cuda:N"):
        load_settings({"device": device})


def test_defaults_serve() -> None:
    """Without any settings, the server can be reached only from this machine and has the embedded model."""
    settings = load_settings({})

    assert settings.listen == "127.0.0.1:50051"
    assert settings.checkpoint == "mini"
    assert settings.max_queue_delay_seconds == 0.0


@pytest.mark.parametrize(
    ("flag", "environment", "in_file", "expected"),
    [
        (None, None, None, None),
        (None, None, 3, 3),
        (None, "2", None, 2),
        (None, "2", 3, 2),
        (1, None, 3, 1),
        (1, "2", None, 1),
        (1, "2", 3, 1),
    ],
)
def test_flags_override_the_environment_the_file_and_defaults(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    flag: int | None,
    environment: str | None,
    in_file: int | None,
    expected: int | None,
) -> None:
    """Of the places where a setting is given, the one closest to the command counts."""
    flags: dict[str, object] = {} if flag is None else {"max_batch_size": flag}
    file = None if in_file is None else _toml(tmp_path, f"max_batch_size = {in_file}")
    if environment is not None:
        monkeypatch.setenv("ALIGNSERVE_MAX_BATCH_SIZE", environment)

    settings = load_settings(flags, file)

    assert settings.max_batch_size == expected


def test_sources_are_merged_per_setting(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Each source provides the settings that earlier ones do not give."""
    monkeypatch.setenv("ALIGNSERVE_REFLECTION", "false")
    file = _toml(tmp_path, 'reflection = true\ndevice = "cuda:1"\nlanes = 3')

    settings = load_settings({"lanes": "2"}, file)

    assert (settings.lanes, settings.reflection, settings.device) == (2, False, "cuda:1")


def test_settings_from_the_supervisor_override_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker has exactly its supervisor's settings, including unset ones, whatever its environment."""
    settings = load_settings({"cache_dir": "/cache", "shutdown_grace_seconds": math.inf, "workers": 2})
    monkeypatch.setenv("ALIGNSERVE_LANES", "3")

    passed_on = json.loads(json.dumps(settings.model_dump(mode="json")))

    assert Settings(**passed_on).model_dump() == settings.model_dump()


def test_a_file_is_not_kept_for_the_next_time(tmp_path: Path) -> None:
    """Settings can be loaded several times in a process, each time from the given sources."""
    load_settings({}, _toml(tmp_path, "lanes = 3"))

    assert load_settings({}).lanes is None


def test_an_unknown_name_among_the_flags_is_refused() -> None:
    """A misspelled setting does not go unnoticed."""
    assert _faults({"max_batchsize": 3}) == ["max_batchsize"]


@pytest.mark.parametrize(("text", "name"), [("max_batchsize = 3", "max_batchsize"), ("[server]", "server")])
def test_an_unknown_name_in_the_file_is_refused(tmp_path: Path, text: str, name: str) -> None:
    """Neither a misspelled setting nor a table goes unnoticed."""
    assert _faults({}, _toml(tmp_path, text)) == [name]


@pytest.mark.parametrize(
    ("name", "wrong", "right"),
    [
        ("lanes", 0, 1),
        ("max_batch_size", 0, 1),
        ("max_batch_size", "many", "8"),
        ("max_image_batch_size", -1, 1),
        ("max_queue_delay_seconds", -0.1, 0),
        ("max_queue_delay_seconds", "nan", "0.5"),
        ("drain_delay_seconds", -1, 0),
        ("shutdown_grace_seconds", -1, 0),
        ("stall_timeout_seconds", 0, 0.001),
        ("max_connection_age_seconds", -1, 0),
        ("max_stream_age_seconds", -1, 1),
        ("reflection", "perhaps", "off"),
        ("dtype", "int4", "int8"),
        ("log_level", "loud", "debug"),
        ("log_format", "xml", "console"),
    ],
)
def test_each_value_has_its_range(name: str, wrong: object, right: object) -> None:
    """The last value within the range is accepted; the first one outside is refused by name."""
    load_settings({name: right})

    assert _faults({name: wrong}) == [name]


def test_all_errors_are_reported_together(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A user who corrects settings does not need one attempt per mistake."""
    monkeypatch.setenv("ALIGNSERVE_LANES", "0")
    file = _toml(tmp_path, 'log_level = "loud"')

    assert set(_faults({"listen": "nowhere"}, file)) == {"listen", "lanes", "log_level"}


@pytest.mark.parametrize(
    ("wrong", "right", "message"),
    [
        (
            {"max_client_batch_size": 65, "max_queue_size": 64},
            {"max_client_batch_size": 64, "max_queue_size": 64},
            r"max_client_batch_size \(65\) is larger than max_queue_size \(64\)",
        ),
        (
            {"max_image_bytes": 101, "max_request_bytes": 100},
            {"max_image_bytes": 100, "max_request_bytes": 100},
            r"max_image_bytes \(101\) is larger than max_request_bytes",
        ),
        (
            {"max_image_bytes": 101, "max_queue_bytes": 100},
            {"max_image_bytes": 100, "max_queue_bytes": 100},
            r"max_image_bytes \(101\) is larger than max_queue_bytes \(100\)",
        ),
    ],
    ids=["items", "request bytes", "queue bytes"],
)
def test_contradicting_sizes_are_refused(
    wrong: dict[str, object], right: dict[str, object], message: str
) -> None:
    """Everything that a limit allows must fit into the limits around it, up to exactly full."""
    load_settings(right)

    with pytest.raises(SettingsError, match=message):
        load_settings(wrong)


@pytest.mark.parametrize("age", [0, 60])
def test_streams_end_before_their_connection_is_cut_off(age: float) -> None:
    """A stream that starts when its connection reaches its maximum age has only the grace period."""
    ages = {"max_stream_age_seconds": age, "max_connection_age_grace_seconds": 60}
    load_settings({**ages, "max_connection_age_seconds": 0})

    with pytest.raises(SettingsError, match="max_stream_age_seconds"):
        load_settings({**ages, "max_connection_age_seconds": 1})


@pytest.mark.parametrize(
    "address", ["127.0.0.1:50051", "[::]:50051", "0.0.0.0:0", "host.example:65535", "localhost:1"]
)
def test_an_address_is_host_and_port(address: str) -> None:
    """Names, IPv4 addresses and IPv6 addresses in brackets are used unchanged."""
    assert load_settings({"listen": address}).listen == address


@pytest.mark.parametrize("name", ["listen", "metrics_listen"])
@pytest.mark.parametrize(
    "address",
    ["", "50051", ":50051", "host", "host:", "host:-1", "host:65536", "h:80x", "::1:1", " :1", "h:²"],
)
def test_an_address_without_host_or_port_is_refused(name: str, address: str) -> None:
    """In particular, an empty host must not open the server to the network by accident."""
    assert _faults({name: address}) == [name]


def test_settings_do_not_change() -> None:
    """Settings that were validated stay as they are."""
    settings = load_settings({})

    with pytest.raises(ValidationError, match="frozen"):
        settings.lanes = 0  # type: ignore[misc]  # type checkers refuse it too


@pytest.mark.parametrize("name", Settings.model_fields)
def test_every_setting_has_a_description(name: str) -> None:
    """`--help` shows it."""
    assert Settings.model_fields[name].description


NUMBERS = [name for name, field in Settings.model_fields.items() if name not in ACCESS]


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("empty", ["", " ", "\n"])
def test_an_empty_variable_is_unset(monkeypatch: pytest.MonkeyPatch, name: str, empty: str) -> None:
    """Compose and Kubernetes leave variables empty if they have no value."""
    monkeypatch.setenv(f"ALIGNSERVE_{name.upper()}", empty)

    assert load_settings({}) == Settings()


def test_an_empty_variable_leaves_the_setting_to_the_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It has the same effect as a missing variable."""
    monkeypatch.setenv("ALIGNSERVE_LANES", "")

    assert load_settings({}, _toml(tmp_path, "lanes = 3")).lanes == 3


@pytest.mark.parametrize("name", sorted(ACCESS))
def test_an_empty_access_variable_prevents_the_start(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """A secret that was not mounted must not open the server, whatever is in the file."""
    monkeypatch.setenv(f"ALIGNSERVE_{name.upper()}", "")

    with pytest.raises(SettingsError, match=f"ALIGNSERVE_{name.upper()}: is empty.*none"):
        load_settings({})


@pytest.mark.parametrize("source", ["flag", "variable", "file"])
@pytest.mark.parametrize("name", ["api_keys_file", "tls_client_ca", "lanes", "revision", "cache_dir"])
def test_none_unsets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, source: str) -> None:
    """A setting without a default can be unset, which overrides less important sources."""
    file = _toml(tmp_path, f'{name} = "{"none" if source == "file" else "1"}"')
    if source == "variable":
        monkeypatch.setenv(f"ALIGNSERVE_{name.upper()}", "none")

    settings = load_settings({name: "none"} if source == "flag" else {}, file)

    assert getattr(settings, name) is None


def test_none_disables_required_access(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Given explicitly, it is not an accident."""
    monkeypatch.setenv("ALIGNSERVE_REQUIRE_AUTH", "none")

    assert not load_settings({}, _toml(tmp_path, "require_auth = true")).require_auth


@pytest.mark.parametrize(
    "name", ["checkpoint", "api_keys_file", "cache_dir", "lanes", "require_auth", "listen"]
)
def test_an_empty_flag_or_line_is_refused(tmp_path: Path, name: str) -> None:
    """In particular, an empty path would be the current folder."""
    assert _faults({name: ""}) == [name]
    assert _faults({}, _toml(tmp_path, f"{name} = ''")) == [name]


@pytest.mark.parametrize("name", ["checkpoint", "revision", "api_keys_file", "tls_key", "cache_dir"])
def test_a_nul_byte_is_refused(tmp_path: Path, name: str) -> None:
    """File names cannot contain it, and system calls raise unexpected exceptions for it."""
    assert _faults({}, _toml(tmp_path, f'{name} = "a\\u0000b"'))[0] == name


@pytest.mark.parametrize(
    ("name", "secret"),
    [
        ("tls_key", "-----BEGIN PRIVATE KEY-----\nMIIEvQIBADAN"),
        ("api_keys_file", "as_search_" + "x" * 43),
    ],
)
def test_a_secret_in_place_of_its_path_is_not_shown(
    monkeypatch: pytest.MonkeyPatch, name: str, secret: str
) -> None:
    """The variable is named, and its value is not logged."""
    monkeypatch.setenv(f"ALIGNSERVE_{name.upper()}", secret)

    with pytest.raises(SettingsError, match="is a secret; write it to a file") as raised:
        load_settings({})

    assert secret[-10:] not in str(raised.value)
    assert f"ALIGNSERVE_{name.upper()}" in str(raised.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SERVICE_HOST", "10.0.0.1"),
        ("SERVICE_PORT", "50051"),
        ("SERVICE_PORT_GRPC", "50051"),
        ("PORT", "tcp://10.0.0.1:50051"),
        ("PORT_50051_TCP", "tcp://10.0.0.1:50051"),
        ("PORT_50051_TCP_PROTO", "tcp"),
        ("PORT_50051_TCP_PORT", "50051"),
        ("PORT_50051_TCP_ADDR", "10.0.0.1"),
        ("METRICS_SERVICE_HOST", "10.0.0.1"),
        ("METRICS_PORT", "tcp://10.0.0.1:9464"),
        ("METRICS_PORT_9464_TCP_ADDR", "10.0.0.1"),
        ("API_KEY", "as_a_b"),
        ("SERVER", "localhost:50051"),
        ("TARGET", "localhost:50051"),
        ("LANES", ""),
    ],
)
def test_variables_of_others_are_known(name: str, value: str) -> None:
    """Kubernetes creates some for a Service `alignserve` or `alignserve-metrics`; others are the client's."""
    reading = read_settings({}, environment={f"ALIGNSERVE_{name}": value})

    assert (reading.unknown_variables, reading.problems) == ((), ())


@pytest.mark.parametrize(
    "name", ["ALIGNSERVE_LANE", "ALIGNSERVE_PORT", "alignserve_max_batchsize", "ALIGNSERVE_"]
)
def test_other_variables_are_unknown(name: str) -> None:
    """They do not prevent the start, but are reported."""
    reading = read_settings({}, environment={name: "8"})

    assert reading.unknown_variables == (name,)
    assert reading.problems == ()


def test_each_problem_has_its_place_its_value_and_a_suggestion(tmp_path: Path) -> None:
    """All problems are reported, whether in flags, variables or lines of the file."""
    file = _toml(tmp_path, '# a file\nlane = 2\nlog_level = "debgu"\n\n[server]\nx = 1')

    reading = read_settings(
        {"max_batch_size": "0", "tls_key": "/key"}, file, {"ALIGNSERVE_MAX_QUEUE_SIZE": "two"}
    )

    assert sorted(map(str, reading.problems)) == sorted(
        [
            "--max-batch-size 0: must be 1 or more",
            "ALIGNSERVE_MAX_QUEUE_SIZE=two: must be a whole number",
            f"{file}:2: lane = 2: unknown setting; did you mean lanes?",
            f"{file}:3: log_level = debgu: must be 'debug', 'info', 'warning' or 'error'; "
            "did you mean debug?",
            f"{file}:5: server = {{'x': 1}}: unknown setting",
            "tls_certificate and tls_key must be set together (given: --tls-key)",
        ]
    )


@pytest.mark.parametrize(
    "name", [name for name, field in Settings.model_fields.items() if field.annotation in (int, float)]
)
@pytest.mark.parametrize("value", ["1e400", "9" * 400, "-9", "inf"])
def test_a_number_is_accepted_or_refused(name: str, value: str) -> None:
    """However large it is, there is no traceback."""
    reading = read_settings({name: value})

    assert all(problem.names for problem in reading.problems)


def test_each_group_starts_with_a_setting() -> None:
    """The pages and `--help` find the start of a group by that name."""
    assert set(GROUPS) <= set(Settings.model_fields)
