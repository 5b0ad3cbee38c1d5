package com.alignserve;

import com.alignserve.v1.EmbeddingFormat;

/** The encoding of embeddings on the wire. */
public enum Format {
  /** 4 bytes per number, packed: the default. */
  FLOAT32(EmbeddingFormat.EMBEDDING_FORMAT_PACKED_FLOAT32),
  /** About three decimal digits in half of the bytes. */
  FLOAT16(EmbeddingFormat.EMBEDDING_FORMAT_PACKED_FLOAT16),
  /** A quarter of the bytes, for vector stores that accept it. */
  INT8(EmbeddingFormat.EMBEDDING_FORMAT_PACKED_INT8),
  /** Signs only, to find candidates with {@link Embedding#hamming}. */
  BINARY(EmbeddingFormat.EMBEDDING_FORMAT_PACKED_BINARY),
  /** The unpacked form that JSON uses. */
  FLOAT_LIST(EmbeddingFormat.EMBEDDING_FORMAT_FLOAT_LIST);

  final EmbeddingFormat message;

  Format(EmbeddingFormat message) {
    this.message = message;
  }
}
