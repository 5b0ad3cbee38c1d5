package com.alignserve.conformance;

import com.alignserve.AlignClient;
import com.alignserve.AlignException;
import com.alignserve.Result;
import com.alignserve.ResultStream;
import com.google.gson.Gson;
import com.google.gson.GsonBuilder;
import io.grpc.Context;
import io.grpc.Grpc;
import java.io.BufferedReader;
import java.io.IOException;
import java.io.InputStreamReader;
import java.io.PrintStream;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.Callable;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import java.util.concurrent.ScheduledExecutorService;
import java.util.concurrent.TimeUnit;

/**
 * The driver of the conformance tests for Java. Reads one JSON object per line and answers each;
 * see {@code tests/conformance/PROTOCOL.md}.
 */
public final class Driver {
  private static final Gson GSON =
      new GsonBuilder().serializeNulls().serializeSpecialFloatingPointValues().create();

  private final PrintStream answers;
  private final ScheduledExecutorService timer = Executors.newSingleThreadScheduledExecutor();
  private AlignClient client;

  private Driver(PrintStream answers) {
    this.answers = answers;
  }

  public static void main(String[] arguments) throws Exception {
    Driver driver = new Driver(new PrintStream(System.out, true, StandardCharsets.UTF_8));
    BufferedReader lines =
        new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
    for (String line = lines.readLine(); line != null; line = lines.readLine()) {
      driver.answer(GSON.fromJson(line, Request.class));
    }
    driver.close();
    driver.timer.shutdownNow();
  }

  private void answer(Request asked) throws Exception {
    Map<String, Object> line = new LinkedHashMap<>();
    line.put("id", asked.id);
    try {
      line.put("ok", run(asked));
    } catch (UnsupportedOperationException error) {
      line.put("unsupported", error.getMessage());
    } catch (StreamFailure error) {
      line.put("error", Answers.error(error.getCause()));
      line.put("results", error.results);
    } catch (AlignException | IOException | IllegalArgumentException error) {
      line.put("error", Answers.error(error));
    }
    write(line);
  }

  private void write(Map<String, ?> line) {
    answers.print(GSON.toJson(line) + "\n");
    answers.flush();
  }

  private Object run(Request asked) throws Exception {
    return switch (asked.op) {
      case "hello" ->
          Map.of(
              "language", "Java",
              "library", "com.alignserve:align-client",
              "versions",
                  Map.of(
                      "java",
                      Runtime.version().toString(),
                      "grpc-java",
                      Grpc.class.getPackage().getImplementationVersion()));
      case "connect" -> connect(asked);
      case "close" -> close();
      case "stream" -> cancellable(asked, () -> stream(asked));
      case "repeat" -> repeat(asked);
      default -> cancellable(asked, () -> Calls.run(client(asked), asked));
    };
  }

  private Object connect(Request asked) throws IOException {
    close();
    client = asked.client();
    return Map.of();
  }

  private Object close() {
    if (client != null) {
      client.close();
      client = null;
    }
    return Map.of();
  }

  private AlignClient client(Request asked) {
    return asked.timeout() == null ? client : client.withTimeout(asked.timeout());
  }

  /** Runs a call in a context of gRPC, by which Java's callers cancel. */
  private <T> T cancellable(Request asked, Callable<T> call) throws Exception {
    try (Context.CancellableContext context = Context.current().withCancellation()) {
      if (asked.cancelAfterMs != null) {
        timer.schedule(() -> context.cancel(null), asked.cancelAfterMs, TimeUnit.MILLISECONDS);
      }
      return context.call(call);
    }
  }

  private Object stream(Request asked) throws IOException {
    List<Object> found = new ArrayList<>();
    try (ResultStream results = client.stream(asked.streamItems(), asked.streamOptions())) {
      for (Result result : results) {
        found.add(Answers.result(result));
        if (asked.progressEvery > 0 && found.size() % asked.progressEvery == 0) {
          write(Map.of("id", asked.id, "progress", found.size()));
        }
        if (found.size() == asked.cancelAfterItems) {
          break;
        }
      }
    } catch (AlignException error) {
      throw new StreamFailure(error, found);
    }
    Map<String, Object> answer = new HashMap<>();
    answer.put("reconnects", null);
    answer.put("results", found);
    return answer;
  }

  private Object repeat(Request asked) throws InterruptedException {
    ExecutorService callers = Executors.newFixedThreadPool(asked.concurrency);
    List<Future<?>> calls = new ArrayList<>();
    for (int i = 0; i < asked.calls; i++) {
      calls.add(callers.submit(() -> run(asked.request)));
    }
    int answered = 0;
    Map<List<?>, Integer> failures = new LinkedHashMap<>();
    for (Future<?> call : calls) {
      try {
        call.get();
        answered++;
      } catch (ExecutionException error) {
        Map<String, Object> failure = Answers.error(error.getCause());
        failures.merge(List.of(failure.get("code"), failure.get("reason")), 1, Integer::sum);
      }
    }
    callers.shutdown();
    List<Object> errors = new ArrayList<>();
    failures.forEach(
        (key, count) ->
            errors.add(Map.of("code", key.get(0), "reason", key.get(1), "count", count)));
    return Map.of("answered", answered, "errors", errors);
  }

  /** A stream that failed, with the results before that. */
  private static final class StreamFailure extends RuntimeException {
    private static final long serialVersionUID = 1;

    private final transient List<Object> results;

    StreamFailure(AlignException cause, List<Object> results) {
      super(cause);
      this.results = results;
    }
  }
}
