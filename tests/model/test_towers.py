"""The reimplemented towers equal transformers' AlignModel, with and without oneDNN."""

from __future__ import annotations

import copy
from collections import Counter

import numpy as np
import pytest
import torch
from alignserve_server.model.runtimes import network as networks
from alignserve_server.model.runtimes import onednn
from alignserve_server.model.runtimes.runtime import Rescaling
from alignserve_server.model.runtimes.towers import Step, TextTower, Towers
from torch import nn
from torch.nn.functional import normalize
from torch.utils._python_dispatch import TorchDispatchMode

pytestmark = pytest.mark.model

RESCALING = Rescaling(np.full(3, 1 / 127.5, np.float32), np.full(3, -1, np.float32))
PIXELS = torch.randint(
    0, 256, (3, 289, 289, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
)
INPUT_IDS = torch.randint(5, 40, (3, 12), generator=torch.Generator().manual_seed(0))
ATTENTION_MASK = (torch.arange(12) < torch.tensor([[12], [7], [2]])).long()


@pytest.fixture(scope="module")
def network(random_folder):
    """transformers' AlignModel with every kind of block."""
    return networks.load_network(random_folder)


@pytest.fixture
def towers(network) -> Towers:
    """Its towers with torch's own operators, as on a GPU."""
    optimized = networks.optimized(copy.deepcopy(network))
    return Towers(optimized, RESCALING, torch.device("cpu"), torch.float32)


@pytest.fixture(autouse=True)
def _inference():
    with torch.inference_mode():
        yield


@pytest.mark.parametrize("is_fused", [False, True], ids=["torch", "onednn"])
def test_towers_equal_the_reference(network, towers, is_fused):
    """Embeddings of images, and of texts with padding, equal AlignModel's."""
    images = networks.embed_pixel_values(network, PIXELS.permute(0, 3, 1, 2) / 127.5 - 1)
    texts = networks.embed_tokens(network, INPUT_IDS, ATTENTION_MASK)
    if is_fused:
        onednn.fuse(towers)

    actual = towers.embed_pixels(PIXELS), towers.embed_tokens(INPUT_IDS, ATTENTION_MASK)

    for embeds, expected in zip(actual, (images, texts), strict=True):
        torch.testing.assert_close(normalize(embeds), normalize(expected), rtol=0, atol=1e-5)


def test_every_step_is_fused(towers):
    """All convolutions and linear layers of known checkpoints are fused."""
    onednn.fuse(towers)

    assert not [module for module in towers.modules() if isinstance(module, Step | nn.Conv2d | nn.Linear)]


def test_the_weights_take_no_more_memory_when_fused(towers):
    """Prepacked weights are not also kept in their original layout."""
    before = towers.nbytes

    onednn.fuse(towers)

    assert towers.nbytes <= 1.05 * before


@pytest.mark.parametrize(
    "activation", [None, nn.SiLU(), nn.ReLU(), nn.ReLU6(), nn.Sigmoid(), nn.GELU(), nn.Tanh()], ids=str
)
@pytest.mark.parametrize(
    ("weighted", "inputs"),
    [
        (nn.Conv2d(4, 8, 3, padding="same"), torch.randn(2, 4, 9, 9)),
        (nn.Conv2d(4, 8, 3, stride=2, padding="valid", bias=False), torch.randn(2, 4, 9, 9)),
        (nn.Conv2d(8, 8, 5, padding=2, groups=8), torch.randn(2, 8, 9, 9)),
        (nn.Linear(4, 8), torch.randn(2, 5, 4)),
    ],
    ids=["same", "valid", "depthwise", "linear"],
)
def test_a_fused_step_computes_the_same(weighted, inputs, activation):
    """Activations with and without oneDNN support, and shortcuts, give the same results."""
    step = Step(weighted, activation)
    expected = step(inputs)
    fused = nn.Sequential(step)

    onednn.fuse(fused)

    torch.testing.assert_close(fused(inputs), expected, rtol=1e-5, atol=1e-5)
    if activation is None:
        shortcut = torch.randn_like(expected)
        torch.testing.assert_close(fused[0](inputs, shortcut), expected + shortcut, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("dtype", "is_known"), [(torch.float32, True), (torch.float16, False)], ids=str)
def test_onednn_is_used_only_for_supported_types(dtype, is_known):
    """float16 on a CPU uses torch's own operators."""
    assert onednn.is_available(dtype) == (is_known and torch.backends.mkldnn.is_available())


class Counted(TorchDispatchMode):
    """Counts the operators that run, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("length", "pads"), [(12, 1), (8, 0)])
def test_the_mask_is_made_once_for_all_layers(towers, length, pads):
    """No layer converts it: it has numbers already, aligned as attention on a GPU loads them."""
    with torch.inference_mode(False), torch.no_grad(), Counted() as counted:  # as separate operators
        towers.embed_tokens(INPUT_IDS[:, :length].clone(), ATTENTION_MASK[:, :length].clone())

    assert counted.names["index"] == 1
    assert counted.names["constant_pad_nd"] == pads
    assert not {"logical_not", "masked_fill", "where", "zeros_like", "full_like"} & counted.names.keys()


@pytest.mark.parametrize("length", range(1, 13))
def test_an_additive_mask_gives_the_same_bits(towers, length, monkeypatch):
    """On a CPU, embeddings of texts of any length are those that a boolean mask gives."""
    ids, mask = INPUT_IDS[:, :length], ATTENTION_MASK[:, :length]
    actual = towers.embed_tokens(ids, mask)
    monkeypatch.setattr(TextTower, "_additive", lambda tower, given: given.bool()[:, None, None, :])

    expected = towers.embed_tokens(ids, mask)

    assert torch.equal(actual, expected)
