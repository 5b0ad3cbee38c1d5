package com.alignserve;

import com.alignserve.v1.StreamInferResponse;
import java.util.List;
import java.util.Optional;

/** The outcome of an item of a stream. */
public final class Result {
  private final String id;
  private final StreamInferResponse response;
  private final AlignException error; // null if the item succeeded

  Result(String id, StreamInferResponse response, AlignException error) {
    this.id = id;
    this.response = response;
    this.error = error;
  }

  /** The item's id. */
  public String id() {
    return id;
  }

  /** Why the item failed. Other items are not affected. */
  public Optional<AlignException> error() {
    return Optional.ofNullable(error);
  }

  /** What the item was answered with. */
  public Kind kind() {
    return switch (response.getResultCase()) {
      case EMBED_IMAGE, EMBED_TEXT, EMBED_QUERY -> Kind.EMBEDDING;
      case CLASSIFY -> Kind.CLASSIFICATIONS;
      case COMPARE -> Kind.COMPARISON;
      case ERROR, RESULT_NOT_SET -> Kind.ERROR;
    };
  }

  /** What a result holds. */
  public enum Kind {
    EMBEDDING,
    CLASSIFICATIONS,
    COMPARISON,
    ERROR
  }

  /** The embedding of an image, a text or a query. Throws the error if there is one. */
  public Embedding embedding() {
    expect(Kind.EMBEDDING);
    return Embedding.of(
        switch (response.getResultCase()) {
          case EMBED_IMAGE -> response.getEmbedImage().getEmbeddings(0);
          case EMBED_TEXT -> response.getEmbedText().getEmbeddings(0);
          default -> response.getEmbedQuery().getEmbeddings(0);
        });
  }

  /** How the text of a text item was tokenized. Throws the error if there is one. */
  public Tokenization tokenization() {
    expect(Kind.EMBEDDING);
    return Tokenization.at(response.getEmbedText().getTokenizationsList(), 0);
  }

  /** The labels of a classify item, best first. Throws the error if there is one. */
  public List<Classification> classifications() {
    expect(Kind.CLASSIFICATIONS);
    return Classification.of(response.getClassify().getResults(0));
  }

  /** The comparison of a compare item. Throws the error if there is one. */
  public Comparison comparison() {
    expect(Kind.COMPARISON);
    return Comparison.of(response.getCompare()).get(0);
  }

  private void expect(Kind kind) {
    if (error != null) {
      throw error;
    }
    if (kind() != kind) {
      throw new IllegalStateException(
          "item " + id + " was answered with " + kind() + ", not " + kind);
    }
  }
}
