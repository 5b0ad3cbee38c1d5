"""Texts become the token ids that the checkpoint's own processor would make, unpadded."""

from __future__ import annotations

import json
import os

from tokenizers import Encoding, Tokenizer

from alignserve_server.errors import TextEmpty, TextTooLong
from alignserve_server.model.checkpoint import Checkpoint
from alignserve_server.model.encoder import TokenizedText

_PROCESSOR_MAX_TOKENS = 64  # max_length of transformers' AlignProcessor


def max_text_tokens(checkpoint: Checkpoint) -> int:
    """Returns the longest text that a checkpoint reads, in tokens, including special tokens."""
    limits = (
        checkpoint.tokenizer_config.get("model_max_length"),
        checkpoint.config.get("text_config", {}).get("max_position_embeddings"),
        _PROCESSOR_MAX_TOKENS,
    )
    return int(min(limit for limit in limits if limit is not None))


class TextTokenizer:
    """Splits texts into tokens; safe to call from several threads."""

    def __init__(
        self, tokenizer: Tokenizer, *, max_tokens: int, max_bytes: int, truncation_side: str = "right"
    ) -> None:
        """Takes over a tokenizer as `tokenizer.json` describes it."""
        # Each call has one text, which a pool of threads cannot speed up.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        self._max_tokens = max_tokens
        self._max_bytes = max_bytes
        self._tokenizer = tokenizer
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        # A second one, as truncation is a state of the object, which other threads are using.
        self._truncating = Tokenizer.from_str(tokenizer.to_str())
        self._truncating.enable_truncation(max_tokens, direction=truncation_side)
        self._special_tokens = tokenizer.num_special_tokens_to_add(is_pair=False)
        self._unknown_id = _unknown_id(self._truncating)

    def __call__(self, text: str, *, truncate: bool) -> TokenizedText:
        """Returns the tokens of a text, special tokens included.

        Raises:
            TextEmpty: The text is empty or blank, or of invisible characters that make no token.
            TextTooLong: It has more bytes than the limit, or more tokens and `truncate` is false.
        """
        encoded = text.encode(errors="replace")  # tokenizers refuses lone surrogates
        if len(encoded) > self._max_bytes:
            raise TextTooLong(f"text has {len(encoded)} bytes, limit {self._max_bytes}; shorten it")
        encoding = self._encode(encoded.decode())
        if not len(encoding) or text.isspace():
            raise TextEmpty("text is empty or blank")
        tokens = len(encoding) + self._special_tokens
        is_too_long = tokens > self._max_tokens
        if is_too_long and not truncate:
            raise TextTooLong(
                f"text has {tokens} tokens, limit {self._max_tokens}; shorten it or set truncate"
            )
        finish = self._truncating if is_too_long else self._tokenizer
        ids = tuple(finish.post_process(encoding).ids)
        return TokenizedText(ids, truncated=is_too_long, unknown_token_count=ids.count(self._unknown_id))

    def _encode(self, text: str) -> Encoding:
        try:
            # Of all variants this one releases the GIL, which 32 KB of text would hold for 10 ms and more.
            return self._tokenizer.encode_batch_fast([text], add_special_tokens=False)[0]
        except BaseException as error:
            # A panic in Rust is a BaseException, which would pass every boundary that keeps the server
            # alive; its type cannot be imported.
            if type(error).__name__ != "PanicException":
                raise
            raise RuntimeError("the tokenizer panicked") from error


def _unknown_id(tokenizer: Tokenizer) -> int | None:
    """Returns the token that stands for all that the vocabulary lacks; None if it lacks nothing."""
    model = json.loads(tokenizer.to_str())["model"]
    if model.get("unk_token") is None:
        unknown_id: int | None = model.get("unk_id")  # as Unigram has it
        return unknown_id
    return tokenizer.token_to_id(model["unk_token"])
