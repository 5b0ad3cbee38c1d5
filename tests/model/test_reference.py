"""Computing the reference is not slowed by other work on the machine."""

from __future__ import annotations

import torch
from alignserve_server.model.checkpoint import resolve_checkpoint
from alignserve_server.model.reference import make_reference
from alignserve_server.model.runtimes.network import load_network


def test_the_reference_is_computed_by_one_thread() -> None:
    """torch uses one thread, since several would wait for each other; afterwards the setting is restored."""
    checkpoint = resolve_checkpoint("mini", None)
    network = load_network(checkpoint.folder)
    threads: list[int] = []
    for tower in (network.vision_model, network.text_model):
        tower.register_forward_pre_hook(lambda *_: threads.append(torch.get_num_threads()))
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        make_reference(checkpoint, network)
        after = torch.get_num_threads()
    finally:
        torch.set_num_threads(before)

    assert set(threads) == {1}
    assert after == 2
