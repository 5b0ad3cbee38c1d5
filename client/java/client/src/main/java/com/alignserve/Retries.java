package com.alignserve;

import io.grpc.Context;
import io.grpc.Deadline;
import java.time.Duration;
import java.util.List;
import java.util.Map;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.ThreadLocalRandom;
import java.util.concurrent.TimeUnit;

/**
 * When calls are retried: by gRPC after UNAVAILABLE, and by the client after what gRPC does not
 * cover.
 */
final class Retries {
  /** Attempts of a call that a server or proxy cancels; equal to the service config's. */
  private static final int MAX_ATTEMPTS = 5;

  /** Consecutive attempts of a stream without any answer. */
  static final int MAX_STREAM_ATTEMPTS = 10;

  private static final long INITIAL_BACKOFF_MILLIS = 100;
  private static final long MAX_BACKOFF_MILLIS = 5_000;

  /** Maximum random addition, so that clients do not retry in step. */
  private static final double JITTER = 0.25;

  private static final List<String> METHODS =
      List.of("EmbedImage", "EmbedText", "Classify", "Compare", "EmbedQuery", "GetModelInfo");

  private Retries() {}

  /**
   * Makes gRPC retry calls after UNAVAILABLE, as the server's pushback says, and balance them over
   * all addresses of a name.
   */
  static Map<String, ?> serviceConfig() {
    List<Map<String, String>> names =
        METHODS.stream()
            .map(method -> Map.of("service", "alignserve.v1.AlignService", "method", method))
            .toList();
    Map<String, Object> policy =
        Map.of(
            "maxAttempts",
            (double) MAX_ATTEMPTS,
            "initialBackoff",
            "0.1s",
            "maxBackoff",
            "5s",
            "backoffMultiplier",
            2.0,
            "retryableStatusCodes",
            List.of("UNAVAILABLE"));
    return Map.of(
        "loadBalancingConfig", List.of(Map.of("round_robin", Map.of())),
        "methodConfig", List.of(Map.of("name", names, "retryPolicy", policy)),
        "retryThrottling", Map.of("maxTokens", 100.0, "tokenRatio", 0.1));
  }

  /**
   * Whether a unary call is retried after an attempt, numbered from 1. After refusals by a full
   * server only the deadline limits the number of attempts.
   */
  static boolean retries(AlignException failure, int attempt) {
    return failure.isRefusal()
        || (failure.isCancelled() && !isCallerGone() && attempt < MAX_ATTEMPTS);
  }

  /** Whether the caller's own thread or context ended the call. */
  static boolean isCallerGone() {
    return Thread.currentThread().isInterrupted() || Context.current().isCancelled();
  }

  /**
   * The pause after an attempt, numbered from 1: the server's delay, or a growing one if that is
   * longer.
   */
  static Duration delayAfter(AlignException failure, int attempt) {
    long backoff =
        Math.min(INITIAL_BACKOFF_MILLIS << Math.min(attempt - 1, 16), MAX_BACKOFF_MILLIS);
    long asked = failure.retryDelay().map(Duration::toMillis).orElse(0L);
    double jitter = 1 + JITTER * ThreadLocalRandom.current().nextDouble();
    return Duration.ofMillis((long) Math.ceil(Math.max(backoff, asked) * jitter));
  }

  /**
   * Sleeps, or returns false: at once if the deadline would pass first.
   *
   * @param deadline may be {@code null}
   */
  static boolean pause(Duration delay, Deadline deadline) {
    if (deadline != null && deadline.timeRemaining(TimeUnit.MILLISECONDS) <= delay.toMillis()) {
      return false;
    }
    CountDownLatch gone = new CountDownLatch(1);
    Context.CancellationListener listener = context -> gone.countDown();
    Context.current().addListener(listener, Runnable::run);
    try {
      return !gone.await(delay.toMillis(), TimeUnit.MILLISECONDS);
    } catch (InterruptedException interrupted) {
      Thread.currentThread().interrupt();
      return false;
    } finally {
      Context.current().removeListener(listener);
    }
  }
}
