package com.alignserve;

import com.alignserve.v1.ClassifyRequest;
import com.alignserve.v1.CompareRequest;
import com.alignserve.v1.EmbedImageRequest;
import com.alignserve.v1.EmbedQueryRequest;
import com.alignserve.v1.EmbedTextRequest;
import com.alignserve.v1.ImageTextPair;
import java.util.List;

/** Messages from values, for calls and for items of streams. */
final class Requests {
  private Requests() {}

  static EmbedImageRequest embedImages(List<Image> images, EmbedOptions options) {
    EmbedImageRequest.Builder request =
        EmbedImageRequest.newBuilder().setEmbeddingOptions(options.message());
    images.forEach(image -> request.addImages(image.message));
    return request.build();
  }

  static EmbedTextRequest embedTexts(List<String> texts, EmbedOptions options) {
    return EmbedTextRequest.newBuilder()
        .addAllTexts(texts)
        .setEmbeddingOptions(options.message())
        .setTruncate(options.truncate())
        .build();
  }

  static EmbedQueryRequest embedQueries(List<Query> queries, EmbedOptions options) {
    EmbedQueryRequest.Builder request =
        EmbedQueryRequest.newBuilder()
            .setEmbeddingOptions(options.message())
            .setTruncate(options.truncate());
    queries.forEach(query -> request.addQueries(query.message()));
    return request.build();
  }

  static ClassifyRequest classify(
      List<Image> images, List<String> labels, ClassifyOptions options) {
    ClassifyRequest.Builder request =
        ClassifyRequest.newBuilder()
            .addAllLabels(labels)
            .addAllPromptTemplates(options.promptTemplates())
            .setTopK(options.topK());
    images.forEach(image -> request.addImages(image.message));
    return request.build();
  }

  static CompareRequest compare(List<Pair> pairs, boolean truncate) {
    CompareRequest.Builder request = CompareRequest.newBuilder().setTruncate(truncate);
    for (Pair pair : pairs) {
      request.addPairs(
          ImageTextPair.newBuilder().setImage(pair.image().message).setText(pair.text()));
    }
    return request.build();
  }
}
