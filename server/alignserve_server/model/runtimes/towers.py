"""The image tower and the text tower of an AlignModel, reimplemented for inference.

They compute the same with fewer and larger steps, on any device. A text's embedding depends only on the last
hidden state of [CLS], so the last layer computes nothing else.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from alignserve_server.model.runtimes.network import Network, channels
from alignserve_server.model.runtimes.runtime import Rescaling

_MASK_ALIGNMENT = 8  # elements that efficient attention on a GPU loads at once


class Step(nn.Module):
    """A convolution or a linear layer, followed by an activation or the addition of a shortcut."""

    def __init__(self, weighted: nn.Module, activation: nn.Module | None = None) -> None:
        super().__init__()
        self.weighted = weighted
        self.activation = activation

    def forward(self, hidden: torch.Tensor, shortcut: torch.Tensor | None = None) -> torch.Tensor:
        hidden = self.weighted(hidden)
        if self.activation is not None:
            hidden = self.activation(hidden)
        return hidden if shortcut is None else hidden + shortcut


class Towers(nn.Module):
    """Both towers on their device: from pixels and tokens to float32 embeddings, not normalized."""

    def __init__(
        self, network: Network, rescaling: Rescaling, device: torch.device, dtype: torch.dtype
    ) -> None:
        """Takes ownership of a network from `network.optimized`."""
        super().__init__()
        self.image = ImageTower(network.vision_model).to(device, dtype)
        self.text = TextTower(network.text_model, network.text_projection).to(device, dtype)
        self._dtype = dtype
        self._scale = channels(rescaling.scale).to(device)
        self._offset = channels(rescaling.offset).to(device)

    def embed_pixels(self, pixels: torch.Tensor) -> torch.Tensor:
        """Embeds (batch, height, width, 3) pixels."""
        # Viewed as (batch, 3, height, width), this is channels-last without a copy.
        pixel_values = pixels.permute(0, 3, 1, 2).to(torch.float32).mul_(self._scale).add_(self._offset)
        embeddings: torch.Tensor = self.image(pixel_values.to(self._dtype))
        return embeddings.to(torch.float32)

    def embed_tokens(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Embeds (batch, length) texts."""
        embeddings: torch.Tensor = self.text(input_ids, attention_mask)
        return embeddings.to(torch.float32)

    @property
    def nbytes(self) -> int:
        """Memory that the weights use."""
        return sum(tensor.nbytes for tensor in self.state_dict().values())


class ImageTower(nn.Module):
    """From (batch, 3, height, width) rescaled images to embeddings, not normalized."""

    def __init__(self, vision: Any) -> None:
        super().__init__()
        stem = vision.embeddings
        self.padding = stem.padding
        self.stem = Step(stem.convolution, stem.activation)
        self.blocks = nn.Sequential(*(_Block(block) for block in vision.encoder.blocks))
        self.pooler = vision.pooler

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        hidden = self.blocks(self.stem(self.padding(pixel_values)))
        embeddings: torch.Tensor = self.pooler(hidden).flatten(1)
        return embeddings


class TextTower(nn.Module):
    """From (batch, length) tokens and their mask to embeddings, not normalized."""

    positions: torch.Tensor
    penalties: torch.Tensor

    @torch.no_grad()
    def __init__(self, text: Any, projection: nn.Linear) -> None:
        super().__init__()
        embeddings = text.embeddings
        self.words = embeddings.word_embeddings
        # Every token has type 0.
        positions = embeddings.position_embeddings.weight + embeddings.token_type_embeddings.weight[0]
        self.register_buffer("positions", positions)
        # Added to attention's scores: -inf for padding (0 in a mask), nothing for tokens (1).
        self.register_buffer("penalties", torch.tensor([-math.inf, 0.0]), persistent=False)
        self.norm = embeddings.LayerNorm
        self.layers = nn.ModuleList(_Layer(layer) for layer in text.encoder.layer)
        self.projection = Step(projection)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        hidden = self.norm(self.words(input_ids) + self.positions[: input_ids.shape[1]])
        mask = self._additive(attention_mask)
        for layer in self.layers[:-1]:
            hidden = layer(hidden, mask)
        hidden = self.layers[-1](hidden, mask, rows=1)
        embeddings: torch.Tensor = self.projection(hidden[:, 0])
        return embeddings

    def _additive(self, attention_mask: torch.Tensor) -> torch.Tensor:
        """Returns the mask as (batch, 1, 1, length) numbers that all layers add to their scores.

        Attention would convert a boolean mask in every layer, and pad one whose rows are not aligned.
        """
        length = attention_mask.shape[1]
        mask = self.penalties[attention_mask][:, None, None, :]
        if length % _MASK_ALIGNMENT:
            mask = functional.pad(mask, (0, -length % _MASK_ALIGNMENT))[..., :length]
        return mask


class _Block(nn.Module):
    """Expansion, depthwise convolution, squeeze and excitation, projection."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        depthwise, excitation, projection = block.depthwise_conv, block.squeeze_excite, block.projection
        self.expand = (
            Step(block.expansion.expand_conv, block.expansion.expand_act) if block.expand else nn.Identity()
        )
        self.padding = depthwise.depthwise_conv_pad if depthwise.stride == 2 else nn.Identity()
        self.depthwise = Step(depthwise.depthwise_conv, depthwise.depthwise_act)
        self.squeeze = Step(excitation.reduce, excitation.act_reduce)
        self.excite = Step(excitation.expand, excitation.act_expand)
        self.project = Step(projection.project_conv)
        self.has_shortcut = projection.apply_dropout

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        shortcut = hidden if self.has_shortcut else None
        hidden = self.depthwise(self.padding(self.expand(hidden)))
        hidden.mul_(self.excite(self.squeeze(hidden.mean((2, 3), keepdim=True))))
        projected: torch.Tensor = self.project(hidden, shortcut)
        return projected


class _Layer(nn.Module):
    """Self-attention and the feed-forward network, each with its shortcut and norm."""

    @torch.no_grad()
    def __init__(self, layer: Any) -> None:
        super().__init__()
        attention = layer.attention
        self.heads = attention.self.num_attention_heads
        self.queries = Step(attention.self.query)
        self.keys_and_values = Step(_side_by_side(attention.self.key, attention.self.value))
        self.attended = Step(attention.output.dense)
        self.attended_norm = attention.output.LayerNorm
        self.intermediate = Step(layer.intermediate.dense, layer.intermediate.intermediate_act_fn)
        self.output = Step(layer.output.dense)
        self.output_norm = layer.output.LayerNorm

    def forward(self, hidden: torch.Tensor, mask: torch.Tensor, rows: int | None = None) -> torch.Tensor:
        """Returns the next hidden states, of the first `rows` tokens or of all tokens."""
        batch_size, length, width = hidden.shape
        split = self.keys_and_values(hidden).view(batch_size, length, 2, self.heads, -1)
        keys, values = split.permute(2, 0, 3, 1, 4)
        hidden = hidden[:, :rows]
        queries = self.queries(hidden).view(batch_size, -1, self.heads, width // self.heads).transpose(1, 2)
        attended = functional.scaled_dot_product_attention(queries, keys, values, mask)
        hidden = self.attended_norm(self.attended(attended.transpose(1, 2).flatten(2), hidden))
        normed: torch.Tensor = self.output_norm(self.output(self.intermediate(hidden), hidden))
        return normed


def _side_by_side(first: nn.Linear, second: nn.Linear) -> nn.Linear:
    """Returns one layer that computes both."""
    both = nn.Linear(first.in_features, first.out_features + second.out_features)
    both.weight.copy_(torch.cat([first.weight, second.weight]))
    both.bias.copy_(torch.cat([first.bias, second.bias]))
    return both
