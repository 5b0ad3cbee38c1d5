"""The text tower in training."""

from __future__ import annotations

import torch

from server.recipes.mini.text import TextTower
from server.recipes.mini.vocabulary import SPECIAL


def test_a_text_has_the_same_embedding_alone_and_among_others() -> None:
    """Texts of like length run together; each result is in its text's place."""
    tower = TextTower([*SPECIAL, *"abcdefgh"]).eval()
    texts = ["a b c d e f g h", "a", "b c", *("d e f" for _ in range(20)), "h g"]

    with torch.inference_mode():
        together = tower(texts)
        alone = torch.cat([tower([text]) for text in texts])

    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)
