"""The text tower: MiniLM's first two layers and a third that starts as mean pooling, in `AlignTextModel`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from tokenizers import BertWordPieceTokenizer
from torch import Tensor, nn
from transformers import AlignTextConfig, AlignTextModel

from server.recipes.mini.vision import DIMENSION

WIDTH = 384
MAX_TOKENS = 64
_LAYERS = 3
_POOLING_WEIGHT = 4.0
_GROUPS = 4
_FEWEST_TOGETHER = 16


def text_config(vocabulary_size: int) -> AlignTextConfig:
    """A BERT of three layers without dropout."""
    return AlignTextConfig(
        vocab_size=vocabulary_size,
        hidden_size=WIDTH,
        num_hidden_layers=_LAYERS,
        num_attention_heads=12,
        intermediate_size=4 * WIDTH,
        max_position_embeddings=MAX_TOKENS,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        layer_norm_eps=1e-12,
        pad_token_id=0,
    )


class TextTower(nn.Module):
    """Texts -> embeddings (batch, DIMENSION), not normalized."""

    def __init__(self, pieces: Sequence[str]) -> None:
        super().__init__()
        self.model = AlignTextModel(text_config(len(pieces)))
        self.projection = nn.Linear(WIDTH, DIMENSION)
        self._tokenizer = BertWordPieceTokenizer(
            vocab={piece: at for at, piece in enumerate(pieces)}, lowercase=True
        )
        self._tokenizer.enable_truncation(MAX_TOKENS)
        self._tokenizer.enable_padding()

    def forward(self, texts: Sequence[str]) -> Tensor:
        return self.projection(self.first_token(texts))

    def first_token(self, texts: Sequence[str]) -> Tensor:
        """What the projection gets, (batch, WIDTH). Texts of like length run together, to pad less."""
        order = sorted(range(len(texts)), key=lambda at: len(texts[at]))
        size = max(_FEWEST_TOGETHER, -(-len(texts) // _GROUPS))
        groups = [order[start : start + size] for start in range(0, len(texts), size)]
        found = torch.cat([self._first_token([texts[at] for at in group]) for group in groups])
        return found[torch.tensor(order, device=found.device).argsort()]

    def attention_output(self, texts: Sequence[str]) -> Tensor:
        """What the last layer's attention makes of the first token, (batch, WIDTH)."""
        found: list[Tensor] = []
        with self._last.intermediate.register_forward_pre_hook(
            lambda _, inputs: found.append(inputs[0][:, 0].clone())  # without the other tokens' memory
        ):
            self._first_token(texts)
        return found[0]

    def embed_from(self, attention_output: Tensor) -> Tensor:
        """Returns the embeddings of texts, given what `attention_output` returned for them."""
        return self.projection(self._last.output(self._last.intermediate(attention_output), attention_output))

    def parameters_of_end(self) -> list[nn.Parameter]:
        """Those behind the last layer's attention: its feed-forward network and the projection."""
        modules = (self._last.intermediate, self._last.output, self.projection)
        return [parameter for module in modules for parameter in module.parameters()]

    def untrained_parameters(self) -> list[nn.Parameter]:
        """Those that do not come from MiniLM: the last layer and the projection."""
        return [*self._last.parameters(), *self.projection.parameters()]

    @property
    def _last(self) -> nn.Module:
        return self.model.encoder.layer[-1]

    def _first_token(self, texts: Sequence[str]) -> Tensor:
        device = self.projection.weight.device
        encoded = self._tokenizer.encode_batch(texts)
        ids = torch.tensor([each.ids for each in encoded], device=device)
        mask = torch.tensor([each.attention_mask for each in encoded], device=device)
        hidden: Tensor = self.model(input_ids=ids, attention_mask=mask).last_hidden_state
        return hidden[:, 0]


def initial_state(minilm: Mapping[str, Tensor], kept: Sequence[int]) -> dict[str, Tensor]:
    """The state of `AlignTextModel`. `kept` are the rows of MiniLM's word embeddings."""
    state = {
        "embeddings.word_embeddings.weight": minilm["embeddings.word_embeddings.weight"][list(kept)],
        "embeddings.position_embeddings.weight": minilm["embeddings.position_embeddings.weight"][:MAX_TOKENS],
        "embeddings.token_type_embeddings.weight": minilm["embeddings.token_type_embeddings.weight"],
        "embeddings.LayerNorm.weight": minilm["embeddings.LayerNorm.weight"],
        "embeddings.LayerNorm.bias": minilm["embeddings.LayerNorm.bias"],
        "pooler.dense.weight": torch.zeros(WIDTH, WIDTH),
        "pooler.dense.bias": torch.zeros(WIDTH),
    }
    from_minilm = tuple(f"encoder.layer.{at}." for at in range(_LAYERS - 1))
    state |= {name: tensor for name, tensor in minilm.items() if name.startswith(from_minilm)}
    return state | _pooling_layer(f"encoder.layer.{_LAYERS - 1}")


def ridge(inputs: Tensor, targets: Tensor, strength: float) -> tuple[Tensor, Tensor]:
    """The affine map (weight, bias) of least squared error plus `strength` times its squared weights."""
    inputs, targets = inputs.double(), targets.double()
    centre, target_centre = inputs.mean(dim=0), targets.mean(dim=0)
    centred = inputs - centre
    gram = centred.T @ centred + strength * torch.eye(inputs.shape[1], dtype=torch.float64)
    weight = torch.linalg.solve(gram, centred.T @ (targets - target_centre)).T
    return weight.float(), (target_centre - weight @ centre).float()


def _pooling_layer(layer: str) -> dict[str, Tensor]:
    """A layer whose queries are 0, so attention is uniform: each token becomes mostly the mean of all."""
    identity, nothing, zeros = torch.eye(WIDTH), torch.zeros(WIDTH, WIDTH), torch.zeros(WIDTH)
    generator = torch.Generator().manual_seed(0)
    widened = torch.randn(4 * WIDTH, WIDTH, generator=generator) * 0.02
    return {
        f"{layer}.attention.self.query.weight": nothing,
        f"{layer}.attention.self.query.bias": zeros,
        f"{layer}.attention.self.key.weight": identity.clone(),
        f"{layer}.attention.self.key.bias": zeros.clone(),
        f"{layer}.attention.self.value.weight": identity.clone(),
        f"{layer}.attention.self.value.bias": zeros.clone(),
        f"{layer}.attention.output.dense.weight": _POOLING_WEIGHT * identity,
        f"{layer}.attention.output.dense.bias": zeros.clone(),
        f"{layer}.attention.output.LayerNorm.weight": torch.ones(WIDTH),
        f"{layer}.attention.output.LayerNorm.bias": zeros.clone(),
        f"{layer}.intermediate.dense.weight": widened,
        f"{layer}.intermediate.dense.bias": torch.zeros(4 * WIDTH),
        f"{layer}.output.dense.weight": torch.zeros(WIDTH, 4 * WIDTH),
        f"{layer}.output.dense.bias": zeros.clone(),
        f"{layer}.output.LayerNorm.weight": torch.ones(WIDTH),
        f"{layer}.output.LayerNorm.bias": zeros.clone(),
    }
