"""The recording used by tests of alerts matches the current server."""

from __future__ import annotations

from tests.deploy.recorded_series import PHASES, read, record

_STATES = ("loading", "serving", "stalled", "serving", "stalled", "draining")


async def test_the_recording_matches_a_real_server() -> None:
    """Each phase has the same series; to update them, run python -m tests.deploy.recorded_series."""
    kept, now = read(), await record()

    assert list(dict.fromkeys(kept.phases)) == list(PHASES)
    for phase, state in zip(PHASES, _STATES, strict=True):
        assert kept.in_phase(phase).keys() == now.in_phase(phase).keys()
        for recording in (kept, now):
            assert recording.in_phase(phase)[f'alignserve_state{{state="{state}"}}'] == 1


def test_phases_can_be_as_long_as_a_rule_needs() -> None:
    """Series are in promtool's notation, with the labels that Prometheus adds and gaps before they exist."""
    only = ("alignserve_lanes", "alignserve_state")
    phases, labels = {"loading": 2, "serving": 40}, 'job="alignserve",instance="a"'

    series = read().promtool_series(phases, labels, only)

    values = {each["series"]: each["values"] for each in series}
    assert values['alignserve_lanes{job="alignserve",instance="a"}'] == "_x2 1x39"
    assert values['alignserve_state{state="loading",job="alignserve",instance="a"}'] == "1x1 0x39"
