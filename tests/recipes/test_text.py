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


def test_the_end_of_the_tower_embeds_what_the_rest_remembers() -> None:
    """Both parts together are the tower."""
    tower = TextTower([*SPECIAL, *"abcdefgh"]).eval()
    texts = ["a b c d e f g h", "a", "b c"]

    with torch.inference_mode():
        attention_output = tower.attention_output(texts)
        in_parts = tower.embed_from(attention_output)
        whole = tower(texts)

    assert attention_output.untyped_storage().nbytes() == attention_output.nbytes
    torch.testing.assert_close(in_parts, whole, rtol=1e-4, atol=1e-5)
