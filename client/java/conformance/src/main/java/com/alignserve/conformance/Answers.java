package com.alignserve.conformance;

import com.alignserve.AlignException;
import com.alignserve.Classification;
import com.alignserve.Comparison;
import com.alignserve.Embedding;
import com.alignserve.Result;
import com.alignserve.Tokenization;
import java.time.Duration;
import java.util.Base64;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.stream.IntStream;

/** What the library returned, as JSON. */
final class Answers {
  private Answers() {}

  static Map<String, Object> error(Throwable cause) {
    Map<String, Object> answer = new LinkedHashMap<>();
    answer.put("message", String.valueOf(cause.getMessage()));
    if (cause instanceof AlignException error) {
      answer.put("code", error.code().name());
      answer.put("reason", error.reason());
      answer.put("domain", error.domain().isEmpty() ? null : error.domain());
      answer.put("fields", error.violations().stream().map(Answers::violation).toList());
      answer.put("retry_delay_seconds", error.retryDelay().map(Answers::seconds).orElse(null));
      answer.put("metadata", error.metadata());
    } else {
      answer.put("code", "CLIENT");
      answer.put("reason", "");
      answer.put("domain", null);
      answer.put("fields", List.of());
      answer.put("retry_delay_seconds", null);
      answer.put("metadata", Map.of());
    }
    return answer;
  }

  private static Map<String, ?> violation(AlignException.FieldViolation violation) {
    return Map.of(
        "field",
        violation.field(),
        "reason",
        violation.reason(),
        "description",
        violation.description());
  }

  private static double seconds(Duration duration) {
    return duration.toNanos() / 1e9;
  }

  static List<Object> embeddings(List<Embedding> found) {
    return found.stream().map(Answers::embedding).toList();
  }

  /** An embedding in the format that it came in. */
  static Object embedding(Embedding embedding) {
    if (embedding.binary() != null) {
      return Base64.getEncoder().encodeToString(embedding.binary());
    }
    if (embedding.int8() != null) {
      byte[] values = embedding.int8();
      return Map.of(
          "values",
          IntStream.range(0, values.length).map(i -> values[i]).boxed().toList(),
          "scale",
          (double) embedding.int8Scale());
    }
    float[] vector = embedding.vector();
    // As doubles: the shortest text of a float has fewer digits.
    return IntStream.range(0, vector.length).mapToObj(i -> (double) vector[i]).toList();
  }

  static Map<String, ?> tokenization(Tokenization tokenization) {
    return Map.of(
        "token_count", tokenization.tokenCount(),
        "truncated", tokenization.truncated(),
        "unknown_token_count", tokenization.unknownTokenCount());
  }

  static List<Map<String, Object>> classifications(List<Classification> found) {
    return found.stream().map(Answers::classification).toList();
  }

  private static Map<String, Object> classification(Classification found) {
    return Map.of(
        "label", found.label(),
        "label_index", found.labelIndex(),
        "score", found.score(),
        "similarity", found.similarity(),
        "logit", found.logit());
  }

  static Map<String, Object> comparison(Comparison found) {
    return Map.of("similarity", found.similarity(), "logit", found.logit());
  }

  static Map<String, Object> result(Result result) {
    Map<String, Object> answer = new LinkedHashMap<>();
    answer.put("id", result.id());
    switch (result.kind()) {
      case EMBEDDING -> answer.put("embedding", embedding(result.embedding()));
      case CLASSIFICATIONS ->
          answer.put("classifications", classifications(result.classifications()));
      case COMPARISON -> answer.putAll(comparison(result.comparison()));
      case ERROR -> answer.put("error", error(result.error().orElseThrow()));
    }
    return answer;
  }
}
