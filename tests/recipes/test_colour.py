"""What the head gets to know of colours."""

from __future__ import annotations

import pytest
import torch

from server.recipes.mini import colour


def _painted(red: int, green: int, blue: int, share: float = 1.0) -> torch.Tensor:
    """A grey picture whose upper part has a colour, as the tower sees it, (1, 3, 224, 224)."""
    pixels = torch.full((1, 3, 224, 224), 0.0)
    values = (torch.tensor([red, green, blue]) - 127) / 128
    pixels[:, :, : int(224 * share)] = values[:, None, None]
    return pixels


@pytest.mark.parametrize(
    ("shade", "name"),
    [
        ((230, 20, 30), "red"),
        ((250, 130, 10), "orange"),
        ((250, 230, 30), "yellow"),
        ((30, 160, 50), "green"),
        ((20, 60, 200), "blue"),
        ((130, 40, 180), "purple"),
        ((250, 150, 190), "pink"),
        ((110, 70, 30), "brown"),
        ((5, 5, 5), "black"),
        ((250, 250, 250), "white"),
        ((120, 120, 120), "grey"),
    ],
)
def test_shades_have_the_names_that_people_give_them(shade: tuple[int, int, int], name: str) -> None:
    """Typical shades."""
    red, green, blue = (value / 255 for value in shade)

    assert colour.colour_name(red, green, blue) == name


def test_more_of_a_colour_gives_more_of_its_features() -> None:
    """Features are means over the picture."""
    whole, half, none = (colour.features(_painted(250, 20, 20, share)) for share in (1.0, 0.5, 0.0))

    torch.testing.assert_close(half - none, (whole - none) * 0.5, rtol=0.2, atol=0.05)


def test_shades_of_one_colour_are_nearer_than_two_colours() -> None:
    """Dark red is nearer to red than orange is, in direction."""
    grey = colour.features(_painted(120, 120, 120))
    red, dark, orange = (
        (colour.features(_painted(*shade)) - grey)[0]
        for shade in ((240, 20, 20), (190, 10, 20), (250, 150, 10))
    )

    near, far = (torch.cosine_similarity(red, other, dim=0) for other in (dark, orange))
    assert near > far


def test_units_of_the_middle_do_not_see_the_border() -> None:
    """There is the background, mostly."""
    grey = torch.full((1, 3, 224, 224), 0.0)
    framed = _painted(250, 20, 20)
    framed[:, :, 32:-32, 32:-32] = grey[:, :, 32:-32, 32:-32]

    plain, seen = colour.features(grey)[0], colour.features(framed)[0]

    torch.testing.assert_close(seen[colour.WHOLE_UNITS :], plain[colour.WHOLE_UNITS :])
    assert (seen[: colour.WHOLE_UNITS] - plain[: colour.WHOLE_UNITS]).abs().max() > 0.5
