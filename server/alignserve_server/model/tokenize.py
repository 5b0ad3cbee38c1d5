"""Texts become the token ids that the checkpoint's own processor would make, unpadded."""

from __future__ import annotations

from tokenizers import Tokenizer

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
        self._max_tokens = max_tokens
        self._max_bytes = max_bytes
        # Two tokenizers, as truncation is a state of the object, which other threads are using.
        self._whole = tokenizer
        self._whole.no_padding()
        self._whole.no_truncation()
        self._truncated = Tokenizer.from_str(tokenizer.to_str())
        self._truncated.enable_truncation(max_tokens, direction=truncation_side)
        self._special_tokens = len(_encode(self._whole, ""))

    def __call__(self, text: str, *, truncate: bool) -> TokenizedText:
        """Returns the tokens of a text, special tokens included.

        Raises:
            TextEmpty: The text is empty or blank, or of invisible characters that make no token.
            TextTooLong: It has more bytes than the limit, or more tokens and `truncate` is false.
        """
        encoded = text.encode(errors="replace")  # tokenizers refuses lone surrogates
        if len(encoded) > self._max_bytes:
            raise TextTooLong(f"text has {len(encoded)} bytes, limit {self._max_bytes}; shorten it")
        text = encoded.decode()
        ids = _encode(self._whole, text)
        if len(ids) <= self._special_tokens or not text.strip():
            raise TextEmpty("text is empty or blank")
        if len(ids) <= self._max_tokens:
            return TokenizedText(ids)
        if not truncate:
            raise TextTooLong(
                f"text has {len(ids)} tokens, limit {self._max_tokens}; shorten it or set truncate"
            )
        return TokenizedText(_encode(self._truncated, text), truncated=True)


def _encode(tokenizer: Tokenizer, text: str) -> tuple[int, ...]:
    try:
        return tuple(tokenizer.encode(text).ids)
    except BaseException as error:
        # A panic in Rust is a BaseException, which would pass every boundary that keeps the server alive; its
        # type cannot be imported.
        if type(error).__name__ != "PanicException":
            raise
        raise RuntimeError("the tokenizer panicked") from error
