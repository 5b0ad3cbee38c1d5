"""Texts are counted, truncated and refused according to the limits."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, cast

import pytest
from alignserve_server.errors import TextEmpty, TextTooLong, TextUnsupported
from alignserve_server.model.checkpoint import resolve_checkpoint
from alignserve_server.model.preprocessing.texts import TextTokenizer, max_text_tokens
from tokenizers import Tokenizer, models, pre_tokenizers

TOKENIZER = resolve_checkpoint().folder / "tokenizer.json"
MAX_TOKENS = 8  # [CLS], six words, [SEP]


@pytest.fixture(scope="module")
def tokenize() -> TextTokenizer:
    return TextTokenizer(Tokenizer.from_file(str(TOKENIZER)), max_tokens=MAX_TOKENS, max_bytes=100)


@pytest.mark.parametrize("text", ["", " ", "\t\n", "\u3000", "\x00", "\u200b"])
def test_refuses_a_blank_text(tokenize, text):
    """Empty texts, white space and invisible characters are refused."""
    with pytest.raises(TextEmpty, match="empty or blank"):
        tokenize(text, truncate=True)


def test_a_text_that_just_fits_is_whole(tokenize):
    """Exactly the limit of tokens is not truncated."""
    text = tokenize("cat " * 6, truncate=False)

    assert len(text.input_ids) == MAX_TOKENS
    assert not text.truncated


def test_refuses_one_token_more(tokenize):
    """The message has the count, the limit and what to do."""
    with pytest.raises(TextTooLong, match="text has 9 tokens, limit 8; shorten it or set truncate"):
        tokenize("cat " * 7, truncate=False)


def test_truncates_on_request(tokenize):
    """Truncation removes the end of the text and keeps the special tokens."""
    whole = tokenize("cat " * 6, truncate=False)

    cut = tokenize("cat " * 7, truncate=True)

    assert cut.truncated
    assert cut.input_ids == whole.input_ids


def test_counts_bytes_of_utf_8(tokenize):
    """The byte limit applies before tokenization, even if the text is truncated."""
    assert tokenize("é" * 50, truncate=True)

    with pytest.raises(TextTooLong, match="text has 102 bytes, limit 100"):
        tokenize("é" * 51, truncate=True)


def test_a_lone_surrogate_is_replaced(tokenize):
    """Text without a UTF-8 form does not crash the tokenizer."""
    assert tokenize("cat \ud800", truncate=False) == tokenize("cat ?", truncate=False)


def test_threads_do_not_disturb_each_other(tokenize):
    """Truncated and whole texts have the same tokens from many threads as from one."""
    calls = [("cat " * (i % 12 + 1), True) for i in range(400)]
    expected = [tokenize(text, truncate=truncate) for text, truncate in calls]

    with ThreadPoolExecutor(8) as pool:
        actual = list(pool.map(lambda call: tokenize(call[0], truncate=call[1]), calls))

    assert actual == expected


def test_a_panic_becomes_an_ordinary_error():
    """A panic in the tokenizer becomes an Exception: a BaseException would bypass error handling."""
    panic = type("PanicException", (BaseException,), {})  # pyo3's cannot be imported

    class Panicking:
        no_padding = no_truncation = lambda self: None

        def to_str(self) -> str:
            return TOKENIZER.read_text()

        def num_special_tokens_to_add(self, is_pair: bool) -> int:
            return 2

        def encode_batch_fast(self, texts: list[str], add_special_tokens: bool) -> None:
            raise panic

    tokenize = TextTokenizer(cast("Any", Panicking()), max_tokens=MAX_TOKENS, max_bytes=100)

    with pytest.raises(RuntimeError, match="the tokenizer panicked"):
        tokenize("cat", truncate=False)


def test_an_id_beyond_the_rows_of_the_model_is_refused():
    """The last id with an embedding passes; the next is refused by name, unless truncation removes it."""
    dog, cat = (Tokenizer.from_file(str(TOKENIZER)).token_to_id(word) for word in ("dog", "cat"))
    assert dog is not None
    assert cat is not None
    assert dog < cat
    tokenizer = Tokenizer.from_file(str(TOKENIZER))
    tokenize = TextTokenizer(tokenizer, max_tokens=MAX_TOKENS, max_bytes=100, vocabulary_rows=cat)

    assert dog in tokenize("dog", truncate=False).input_ids
    assert tokenize("dog " * 6 + "cat", truncate=True).truncated
    with pytest.raises(
        TextUnsupported, match=rf"the token 'cat' with id {cat}, but the model has {cat} embed"
    ):
        tokenize("dog cat dog", truncate=False)


@pytest.mark.parametrize(
    ("positions", "tokenizer_config", "limit"),
    [(512, {"model_max_length": 64}, 64), (48, {}, 48), (512, {"model_max_length": 32}, 32), (512, {}, 64)],
)
def test_the_limit_is_the_smallest_that_the_checkpoint_names(positions, tokenizer_config, limit):
    """model_max_length, the position embeddings and the processor's 64 all count."""
    checkpoint = resolve_checkpoint()

    checkpoint = replace(
        checkpoint,
        config={"text_config": {"max_position_embeddings": positions}},
        tokenizer_config=tokenizer_config,
    )

    assert max_text_tokens(checkpoint) == limit


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("a cat", 0),
        ("🐱", 1),
        ("a 🐱 and a 🐶", 2),
        ("猫犬", 2),
        ("b" * 101 + " cat", 1),
        ("[UNK] cat", 1),
        ("🐱 " * 5 + "cat 🐶", 5),
        ("cat " * 6 + "🐱 " * 10, 0),
        ("🐱 " * 20, 6),
    ],
)
def test_counts_the_tokens_that_the_vocabulary_lacks(text, count):
    """Unknown tokens are counted after truncation."""
    tokenize = TextTokenizer(Tokenizer.from_file(str(TOKENIZER)), max_tokens=MAX_TOKENS, max_bytes=1000)

    assert tokenize(text, truncate=True).unknown_token_count == count


@pytest.mark.parametrize(
    ("model", "count"),
    [
        (models.WordLevel({"<unk>": 7, "cat": 1}, unk_token="<unk>"), 2),
        (models.Unigram([("cat", -1.0), ("<unk>", -9.0)], unk_id=1), 2),
        (models.BPE({"c": 0, "a": 1, "t": 2}, []), 0),
    ],
    ids=["by name", "by id", "none"],
)
def test_finds_the_unknown_token_of_any_model(model, count):
    """The unknown token is found by name or by id; a model without one has no unknown tokens."""
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenize = TextTokenizer(tokenizer, max_tokens=MAX_TOKENS, max_bytes=100)

    assert tokenize("cat 🐱 🐶", truncate=False).unknown_token_count == count
