"""Converts texts to the same token ids as the checkpoint's own processor, unpadded."""

from __future__ import annotations

import json
import math
import os
from typing import Protocol

from tokenizers import Encoding, Tokenizer

from alignserve_server.errors import TextEmpty, TextTooLong, TextUnsupported
from alignserve_server.model.checkpoint import Checkpoint, CheckpointError
from alignserve_server.model.encoder import TokenizedText

_PROCESSOR_MAX_TOKENS = 64  # max_length of transformers' AlignProcessor
_DEFAULT_POSITIONS = 512  # default of transformers' AlignTextConfig


def max_text_tokens(checkpoint: Checkpoint) -> int:
    """Returns the maximum length of a checkpoint's texts, in tokens, including special tokens.

    Raises:
        CheckpointError: A limit is not a number above 0.
    """
    tokenizer = checkpoint.tokenizer_config
    limits = {
        "model_max_length": tokenizer.get(
            "model_max_length", tokenizer.get("max_len")
        ),  # max_len: files from 2019
        "max_position_embeddings": (checkpoint.config.get("text_config") or {}).get(
            "max_position_embeddings", _DEFAULT_POSITIONS
        ),
    }
    for name, limit in limits.items():
        if limit is not None and not (isinstance(limit, int | float) and limit >= 1):
            raise CheckpointError(f"{name} is {limit!r}; it must be a number of tokens above 0")
    return int(
        min(_PROCESSOR_MAX_TOKENS, *(math.inf if limit is None else limit for limit in limits.values()))
    )


class TokenizerSpec(Protocol):
    """The fields of `model.probe.Reference` that define a tokenizer."""

    @property
    def tokenizer(self) -> str: ...

    @property
    def splits_special_tokens(self) -> bool: ...

    @property
    def truncation_side(self) -> str: ...

    @property
    def max_text_tokens(self) -> int: ...

    @property
    def vocabulary_rows(self) -> int: ...


class TextTokenizer:
    """Splits texts into tokens; safe to call from several threads."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        max_tokens: int,
        max_bytes: int,
        truncation_side: str = "right",
        vocabulary_rows: int | None = None,
    ) -> None:
        """Takes ownership of a tokenizer; the model has embeddings for ids below `vocabulary_rows`."""
        # Each call has one text, so a thread pool cannot speed it up.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        self._max_tokens = max_tokens
        self._max_bytes = max_bytes
        self._vocabulary_rows = math.inf if vocabulary_rows is None else vocabulary_rows
        self._tokenizer = tokenizer
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        # A second tokenizer, since truncation is a setting of the object that other threads use.
        self._truncating = Tokenizer.from_str(tokenizer.to_str())
        self._truncating.enable_truncation(max_tokens, direction=truncation_side)
        self._special_tokens = tokenizer.num_special_tokens_to_add(is_pair=False)
        self._unknown_id = unknown_id(self._truncating)

    @classmethod
    def of(cls, spec: TokenizerSpec, *, max_bytes: int) -> TextTokenizer:
        """Creates the tokenizer that transformers uses."""
        tokenizer = Tokenizer.from_str(spec.tokenizer)
        tokenizer.encode_special_tokens = spec.splits_special_tokens
        return cls(
            tokenizer,
            max_tokens=spec.max_text_tokens,
            max_bytes=max_bytes,
            truncation_side=spec.truncation_side,
            vocabulary_rows=spec.vocabulary_rows,
        )

    def __call__(self, text: str, *, truncate: bool) -> TokenizedText:
        """Returns the tokens of a text, special tokens included.

        Raises:
            TextEmpty: The text is empty or blank, or has only invisible characters that produce no token.
            TextTooLong: It has more bytes than the limit, or more tokens and `truncate` is false.
            TextUnsupported: It has a token for which the model has no embedding.
        """
        encoded = text.encode(errors="replace")  # tokenizers refuses lone surrogates
        if len(encoded) > self._max_bytes:
            raise TextTooLong(f"text has {len(encoded)} bytes, limit {self._max_bytes}; shorten it")
        return self.tokens(encoded.decode(), truncate=truncate)

    def tokens(self, text: str, *, truncate: bool) -> TokenizedText:
        """Returns the tokens of a text of any length, which must not contain lone surrogates."""
        encoding = self._encode(text)
        if not len(encoding) or text.isspace():
            raise TextEmpty("text is empty or blank")
        tokens = len(encoding) + self._special_tokens
        is_too_long = tokens > self._max_tokens
        if is_too_long and not truncate:
            raise TextTooLong(
                f"text has {tokens} tokens, limit {self._max_tokens}; shorten it or set truncate"
            )
        finish = self._truncating if is_too_long else self._tokenizer
        input_ids = tuple(finish.post_process(encoding).ids)
        self._check_rows(input_ids)
        unknown = input_ids.count(self._unknown_id)
        return TokenizedText(input_ids, truncated=is_too_long, unknown_token_count=unknown)

    def _check_rows(self, input_ids: tuple[int, ...]) -> None:
        """Raises TextUnsupported for an id beyond the embeddings: some devices return zeros, others crash."""
        highest = max(input_ids, default=0)
        if highest >= self._vocabulary_rows:
            token = self._tokenizer.id_to_token(highest)
            raise TextUnsupported(
                f"text has the token {token!r} with id {highest}, but the model has {self._vocabulary_rows} "
                "embeddings; leave it out"
            )

    def _encode(self, text: str) -> Encoding:
        try:
            # Only this variant releases the GIL, which 32 KB of text would hold for 10 ms or more.
            return self._tokenizer.encode_batch_fast([text], add_special_tokens=False)[0]
        except BaseException as error:
            # A panic in Rust is a BaseException, which would bypass all error handling that keeps the server
            # alive; its type cannot be imported.
            if type(error).__name__ != "PanicException":
                raise
            raise RuntimeError("the tokenizer panicked") from error


def unknown_id(tokenizer: Tokenizer) -> int | None:
    """Returns the id of the unknown token; None if the vocabulary covers everything."""
    model = json.loads(tokenizer.to_str())["model"]
    if model.get("unk_token") is None:
        unknown_id: int | None = model.get("unk_id")  # as in Unigram models
        return unknown_id
    return tokenizer.token_to_id(model["unk_token"])
