"""A tokenizer whose file is sound JSON, and which fails on texts all the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from alignserve_server.model.align import LoadOptions, load_align
from alignserve_server.model.checkpoint import CheckpointError, resolve_checkpoint

pytestmark = pytest.mark.model


def test_a_tokenizer_that_fails_on_a_text_is_named(folder: Path) -> None:
    """It lacks the token that stands for whatever it lacks; the library says so only when it meets a word."""
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    del tokenizer["model"]["vocab"]["[UNK]"]
    path.write_text(json.dumps(tokenizer))

    with pytest.raises(CheckpointError, match="tokenizer"):
        load_align(resolve_checkpoint(str(folder)), LoadOptions(runtime="torch"))
