package com.alignserve;

import com.alignserve.v1.EmbeddingOptions;

/**
 * Options for embeddings.
 *
 * @param format encoding on the wire
 * @param normalize whether they are L2-normalized; otherwise they are as the model outputs them
 * @param truncate whether texts that are too long are truncated; otherwise they are refused
 */
public record EmbedOptions(Format format, boolean normalize, boolean truncate) {
  public static final EmbedOptions DEFAULT = new EmbedOptions(Format.FLOAT32, true, false);

  public EmbedOptions withFormat(Format format) {
    return new EmbedOptions(format, normalize, truncate);
  }

  public EmbedOptions withNormalize(boolean normalize) {
    return new EmbedOptions(format, normalize, truncate);
  }

  public EmbedOptions withTruncate(boolean truncate) {
    return new EmbedOptions(format, normalize, truncate);
  }

  EmbeddingOptions message() {
    return EmbeddingOptions.newBuilder()
        .setFormat(format.message)
        .setSkipNormalization(!normalize)
        .build();
  }
}
