package com.alignserve;

import com.alignserve.v1.StreamInferRequest;
import java.util.List;

/**
 * One request of a stream. Its id is returned with the result; it is not sent, and need not be
 * unique.
 */
public final class Item {
  private final String id;
  private final StreamInferRequest message;

  private Item(String id, StreamInferRequest.Builder message) {
    this.id = id;
    this.message = message.build();
  }

  public String id() {
    return id;
  }

  public static Item image(String id, Image image) {
    return image(id, image, EmbedOptions.DEFAULT);
  }

  /** Embeds an image. */
  public static Item image(String id, Image image, EmbedOptions options) {
    return new Item(
        id,
        StreamInferRequest.newBuilder()
            .setEmbedImage(Requests.embedImages(List.of(image), options)));
  }

  public static Item text(String id, String text) {
    return text(id, text, EmbedOptions.DEFAULT);
  }

  /** Embeds a text. */
  public static Item text(String id, String text, EmbedOptions options) {
    return new Item(
        id,
        StreamInferRequest.newBuilder().setEmbedText(Requests.embedTexts(List.of(text), options)));
  }

  public static Item query(String id, Query query) {
    return query(id, query, EmbedOptions.DEFAULT);
  }

  /** Embeds a composed query. */
  public static Item query(String id, Query query, EmbedOptions options) {
    return new Item(
        id,
        StreamInferRequest.newBuilder()
            .setEmbedQuery(Requests.embedQueries(List.of(query), options)));
  }

  public static Item classify(String id, Image image, List<String> labels) {
    return classify(id, image, labels, ClassifyOptions.DEFAULT);
  }

  /** Scores an image against labels. */
  public static Item classify(
      String id, Image image, List<String> labels, ClassifyOptions options) {
    return new Item(
        id,
        StreamInferRequest.newBuilder()
            .setClassify(Requests.classify(List.of(image), labels, options)));
  }

  public static Item compare(String id, Pair pair) {
    return compare(id, pair, false);
  }

  /** Compares an image with a text. */
  public static Item compare(String id, Pair pair, boolean truncate) {
    return new Item(
        id, StreamInferRequest.newBuilder().setCompare(Requests.compare(List.of(pair), truncate)));
  }

  StreamInferRequest message(long number) {
    return message.toBuilder().setCorrelationId(Long.toString(number)).build();
  }
}
