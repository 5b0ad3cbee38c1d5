"""A tokenizer whose file is valid JSON, but which fails on texts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from alignserve_server.model.align import LoadOptions, load_align
from alignserve_server.model.checkpoint import CheckpointError, resolve_checkpoint

pytestmark = pytest.mark.model


def test_a_tokenizer_that_fails_on_a_text_is_named(folder: Path) -> None:
    """A tokenizer without its unknown token is refused; the library fails only on the first unknown word."""
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    del tokenizer["model"]["vocab"]["[UNK]"]
    path.write_text(json.dumps(tokenizer))

    with pytest.raises(CheckpointError, match="tokenizer"):
        load_align(resolve_checkpoint(str(folder)), LoadOptions(device="cpu", runtime="torch"))
