"""Features of photographs that do not exist: a class's mean feature with the spread of real photographs.

Lite0's classifier separates classes as a linear discriminant does, so a class's mean feature lies about where
the covariance of features takes the classifier's row. Lite0 itself then says what each imagined one shows.
"""

from __future__ import annotations

import torch
from torch import Tensor


class Imagined:
    """Draws features (n, FEATURES) from real ones and from a classifier's weights (1000, FEATURES)."""

    def __init__(self, real: Tensor, weights: Tensor, bias: Tensor, generator: torch.Generator) -> None:
        self._weights, self._bias, self._generator = weights, bias, generator
        self._mean = real.mean(dim=0)
        self._residuals = real - self._mean
        covariance = self._residuals.T @ self._residuals / len(real)
        covariance = 0.5 * covariance + 0.5 * torch.diag(covariance.diagonal())
        shifts = (weights - weights.mean(dim=0)) @ covariance
        # every class's shift raises its own logit by the same amount
        self._shifts = shifts / ((weights - weights.mean(dim=0)) * shifts).sum(dim=1, keepdim=True)

    def draw(self, count: int) -> tuple[Tensor, Tensor]:
        """`count` features of random classes, and Lite0's probabilities of all classes for each."""
        classes = torch.randint(len(self._weights), (count,), generator=self._generator)
        rows = torch.randint(len(self._residuals), (count,), generator=self._generator)
        spread = 0.4 + 0.6 * torch.rand(count, 1, generator=self._generator)
        rise = 6.0 + 8.0 * torch.rand(count, 1, generator=self._generator)
        features = self._mean + spread * self._residuals[rows] + rise * self._shifts[classes]
        features = features.clamp(0, 6)
        return features, (features @ self._weights.T + self._bias).softmax(dim=1)
