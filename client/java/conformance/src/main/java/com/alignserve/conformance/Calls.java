package com.alignserve.conformance;

import com.alignserve.AlignClient;
import com.alignserve.Classification;
import com.alignserve.TextEmbedding;
import com.alignserve.v1.GetModelInfoResponse;
import com.google.protobuf.Descriptors.FieldDescriptor;
import java.io.IOException;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;

/** The unary calls. */
final class Calls {
  private Calls() {}

  static Map<String, ?> run(AlignClient client, Request asked) throws IOException {
    return switch (asked.op) {
      case "embed_image" ->
          Map.of(
              "embeddings",
              Answers.embeddings(client.embedImages(asked.images(), asked.embedOptions())));
      case "embed_text" -> texts(client.embedTexts(asked.texts, asked.embedOptions()));
      case "embed_query" ->
          Map.of(
              "embeddings",
              Answers.embeddings(client.embedQueries(asked.queries(), asked.embedOptions())));
      case "classify" ->
          results(
              client.classify(asked.images(), asked.labels, asked.classifyOptions()),
              asked.summary);
      case "compare" ->
          Map.of(
              "comparisons",
              client.compare(asked.pairs(), asked.truncate).stream()
                  .map(Answers::comparison)
                  .toList());
      case "model_info" -> fields(client.modelInfo());
      case "health" -> Map.of("ready", client.isReady());
      default -> throw new UnsupportedOperationException("no operation " + asked.op);
    };
  }

  private static Map<String, ?> texts(List<TextEmbedding> found) {
    return Map.of(
        "embeddings", Answers.embeddings(found.stream().map(TextEmbedding::embedding).toList()),
        "tokenizations",
            found.stream().map(text -> Answers.tokenization(text.tokenization())).toList());
  }

  private static Map<String, ?> results(List<List<Classification>> found, boolean isSummary) {
    if (!isSummary) {
      return Map.of("results", found.stream().map(Answers::classifications).toList());
    }
    return Map.of(
        "results",
            found.stream().map(labels -> Answers.classifications(labels.subList(0, 1))).toList(),
        "counts", found.stream().map(List::size).toList());
  }

  /** Every field, also those that have their default. */
  private static Map<String, ?> fields(GetModelInfoResponse info) {
    Map<String, Object> fields = new LinkedHashMap<>();
    for (FieldDescriptor field : info.getDescriptorForType().getFields()) {
      fields.put(field.getName(), info.getField(field));
    }
    return fields;
  }
}
