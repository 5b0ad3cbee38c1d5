package com.alignserve;

import static com.alignserve.PlannedServer.failure;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import com.alignserve.PlannedServer.Answering;
import com.alignserve.v1.DeliveryOrder;
import com.alignserve.v1.StreamInferRequest;
import com.alignserve.v1.StreamInferResponse;
import io.grpc.Context;
import io.grpc.Status;
import io.grpc.Status.Code;
import io.grpc.StatusRuntimeException;
import io.grpc.stub.StreamObserver;
import java.io.IOException;
import java.lang.reflect.UndeclaredThrowableException;
import java.time.Duration;
import java.util.ArrayList;
import java.util.Iterator;
import java.util.List;
import java.util.concurrent.ArrayBlockingQueue;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.stream.IntStream;
import java.util.stream.Stream;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.Timeout;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.Arguments;
import org.junit.jupiter.params.provider.MethodSource;

@Timeout(60)
class ResultStreamTest {
  private PlannedServer server;

  @BeforeEach
  void start() throws IOException {
    server = new PlannedServer();
  }

  @AfterEach
  void stop() {
    server.close();
  }

  /** Items 1 to count, whose embedding is their number. */
  private static Iterable<Item> texts(int count) {
    return IntStream.rangeClosed(1, count).mapToObj(n -> Item.text("" + n, "x".repeat(n)))
        ::iterator;
  }

  private static List<Integer> upTo(int count) {
    return IntStream.rangeClosed(1, count).boxed().toList();
  }

  private List<Integer> numbers(Iterable<Item> items, StreamOptions options) throws IOException {
    List<Integer> found = new ArrayList<>();
    try (AlignClient client = server.client().build();
        ResultStream results = client.stream(items, options)) {
      for (Result result : results) {
        found.add((int) result.embedding().vector()[0]);
      }
    }
    return found;
  }

  private AlignException failureOf(AlignClient.Builder builder) {
    return assertThrows(
        AlignException.class,
        () -> {
          try (AlignClient client = builder.build();
              ResultStream results = client.stream(texts(3))) {
            results.forEach(result -> {});
          }
        });
  }

  @Test
  void everyItemHasItsResult() throws IOException {
    assertEquals(upTo(100), numbers(texts(100), StreamOptions.DEFAULT));
  }

  @Test
  void aStreamWithoutItemsOpensNoCall() throws IOException {
    assertEquals(List.of(), numbers(texts(0), StreamOptions.DEFAULT));
    assertEquals(0, server.streams.get());
  }

  @Test
  void idsComeBackAndNeedNotBeUnique() throws IOException {
    try (AlignClient client = server.client().build();
        ResultStream results =
            client.stream(List.of(Item.text("same", "x"), Item.text("same", "xx")))) {
      List<String> ids = new ArrayList<>();
      results.forEach(result -> ids.add(result.id()));

      assertEquals(List.of("same", "same"), ids);
    }
  }

  @Test
  void aFailedItemLeavesTheOthers() throws IOException {
    server.onStream =
        (number, responses) ->
            new Answering(responses) {
              @Override
              public void onNext(StreamInferRequest request) {
                boolean isFirst = request.getEmbedText().getTexts(0).length() == 1;
                responses.onNext(
                    isFirst
                        ? PlannedServer.error(
                            request, failure(Code.INVALID_ARGUMENT, "TEXT_EMPTY", -1))
                        : PlannedServer.answer(request));
              }
            };

    try (AlignClient client = server.client().build();
        ResultStream results = client.stream(texts(2))) {
      Iterator<Result> iterator = results.iterator();
      Result failed = iterator.next();

      assertEquals("TEXT_EMPTY", failed.error().orElseThrow().reason());
      assertThrows(AlignException.class, failed::embedding);
      assertEquals(2, iterator.next().embedding().vector()[0]);
      assertFalse(iterator.hasNext());
    }
  }

  static Stream<Arguments> unansweredItemsAreSentAgain() {
    return Stream.of(
        Arguments.of("a server that stops", failure(Code.UNAVAILABLE, "SHUTTING_DOWN", 1)),
        Arguments.of("a stream of great age", failure(Code.UNAVAILABLE, "STREAM_AGED", 0)),
        Arguments.of("a broken connection", Status.UNAVAILABLE.asRuntimeException()),
        Arguments.of("a foreign cancel", Status.CANCELLED.asRuntimeException()),
        Arguments.of("a reset by a proxy", Status.INTERNAL.asRuntimeException()),
        Arguments.of("a quota", failure(Code.RESOURCE_EXHAUSTED, "QUOTA_EXCEEDED", 1)),
        Arguments.of("an early end", null));
  }

  @ParameterizedTest(name = "{0}")
  @MethodSource
  void unansweredItemsAreSentAgain(String name, StatusRuntimeException end) throws IOException {
    server.onStream =
        (number, responses) ->
            number == 1 ? new Breaking(responses, 3, end) : new Answering(responses);

    assertEquals(upTo(10), numbers(texts(10), StreamOptions.DEFAULT.withWindow(4)));
    assertEquals(2, server.streams.get());
  }

  /** Ends a stream after some answers. */
  private static final class Breaking extends Answering {
    private final int count;
    private final StatusRuntimeException end; // null for OK
    private int answered;

    Breaking(StreamObserver<StreamInferResponse> responses, int count, StatusRuntimeException end) {
      super(responses);
      this.count = count;
      this.end = end;
    }

    @Override
    public void onNext(StreamInferRequest request) {
      if (answered == count) {
        return;
      }
      super.onNext(request);
      if (++answered < count) {
        return;
      }
      if (end == null) {
        responses.onCompleted();
      } else {
        responses.onError(end);
      }
    }

    @Override
    public void onCompleted() {}
  }

  @Test
  void anItemThatNoServerCanTakeIsSentAgain() throws IOException {
    server.onStream =
        (number, responses) ->
            number > 1
                ? new Answering(responses)
                : new Answering(responses) {
                  @Override
                  public void onNext(StreamInferRequest request) {
                    responses.onNext(
                        PlannedServer.error(
                            request, failure(Code.UNAVAILABLE, "MODEL_LOADING", 1)));
                  }
                };

    assertEquals(upTo(3), numbers(texts(3), StreamOptions.DEFAULT));
    assertEquals(2, server.streams.get());
  }

  @Test
  void aStreamThatIsRefusedEnds() {
    server.onStream =
        (number, responses) -> {
          responses.onError(failure(Code.UNAUTHENTICATED, "KEY_MISSING", -1));
          return new Answering(responses);
        };

    assertEquals("KEY_MISSING", failureOf(server.client()).reason());
    assertEquals(1, server.streams.get());
  }

  @Test
  void withoutRetriesAStreamEndsWhenItBreaks() {
    server.onStream =
        (number, responses) ->
            new Breaking(responses, 1, failure(Code.UNAVAILABLE, "SHUTTING_DOWN", 0));

    assertEquals("SHUTTING_DOWN", failureOf(server.client().withoutRetries()).reason());
    assertEquals(1, server.streams.get());
  }

  /** The server answers only once the window is full; the items were not read further. */
  @Test
  void theWindowBoundsWhatIsRead() throws IOException {
    int window = 4;
    AtomicInteger read = new AtomicInteger();
    AtomicInteger answered = new AtomicInteger();
    AtomicInteger most = new AtomicInteger();
    server.onStream =
        (number, responses) ->
            new Answering(responses) {
              private final List<StreamInferRequest> held = new ArrayList<>();

              @Override
              public void onNext(StreamInferRequest request) {
                held.add(request);
                if (held.size() == window) {
                  most.accumulateAndGet(read.get() - answered.getAndAdd(window), Math::max);
                  held.forEach(super::onNext);
                  held.clear();
                }
              }
            };
    Iterable<Item> items =
        IntStream.rangeClosed(1, 5 * window)
                .peek(n -> read.incrementAndGet())
                .mapToObj(n -> Item.text("" + n, "x".repeat(n)))
            ::iterator;

    assertEquals(upTo(5 * window), numbers(items, StreamOptions.DEFAULT.withWindow(window)));
    assertTrue(most.get() <= window + 1, "read " + most + " ahead"); // one more waits for room
  }

  @Test
  void orderedAsksTheServerForTheOrder() throws IOException {
    BlockingQueue<DeliveryOrder> orders = new ArrayBlockingQueue<>(10);
    server.onStream =
        (number, responses) ->
            new Answering(responses) {
              @Override
              public void onNext(StreamInferRequest request) {
                if (request.hasStreamOptions()) {
                  orders.add(request.getStreamOptions().getDeliveryOrder());
                }
                super.onNext(request);
              }
            };

    assertEquals(upTo(3), numbers(texts(3), StreamOptions.DEFAULT.withOrdered(true)));
    assertEquals(List.of(DeliveryOrder.DELIVERY_ORDER_AS_REQUESTED), List.copyOf(orders));
  }

  @Test
  void closingCancelsTheStream() throws Exception {
    CountDownLatch ended = new CountDownLatch(1);
    server.onStream =
        (number, responses) ->
            new Answering(responses) {
              @Override
              public void onError(Throwable error) {
                ended.countDown();
              }
            };

    try (AlignClient client = server.client().build()) {
      try (ResultStream results = client.stream(texts(1_000))) {
        results.iterator().next();
      }

      ended.await();
    }
  }

  @Test
  void aCancelledContextEndsAStream() throws IOException {
    server.onStream = (number, responses) -> new Silent();
    try (Context.CancellableContext context = Context.current().withCancellation();
        AlignClient client = server.client().build()) {
      AlignException found =
          assertThrows(
              AlignException.class,
              () ->
                  context.call(
                      () -> {
                        try (ResultStream results = client.stream(texts(1))) {
                          context.cancel(null);
                          return results.iterator().next();
                        }
                      }));

      assertEquals(Code.CANCELLED, found.code());
    }
  }

  @Test
  void aStreamEndsAtItsDeadline() {
    server.onStream = (number, responses) -> new Silent();

    AlignException found =
        assertThrows(
            AlignException.class,
            () -> numbers(texts(1), StreamOptions.DEFAULT.withTimeout(Duration.ofMillis(20))));

    assertEquals(Code.DEADLINE_EXCEEDED, found.code());
  }

  private static final class Silent implements StreamObserver<StreamInferRequest> {
    @Override
    public void onNext(StreamInferRequest request) {}

    @Override
    public void onError(Throwable error) {}

    @Override
    public void onCompleted() {}
  }

  @Test
  void whatTheItemsThrowComesAfterTheResultsBeforeIt() throws IOException {
    Iterable<Item> items =
        Stream.of(1, 2, 0).map(n -> Item.text("" + n, "x".repeat(12 / n % 7)))::iterator;
    List<String> ids = new ArrayList<>();

    try (AlignClient client = server.client().build();
        ResultStream results = client.stream(items)) {
      assertThrows(
          ArithmeticException.class, () -> results.forEach(result -> ids.add(result.id())));
    }

    assertEquals(List.of("1", "2"), ids);
  }

  @Test
  void closingTheClientEndsTheStream() throws IOException {
    server.onStream = (number, responses) -> new Answering(responses);
    AlignClient client = server.client().build();
    try (ResultStream results = client.stream(texts(1 << 20))) {
      results.iterator().next();
      client.close();

      assertThrows(AlignException.class, () -> results.forEach(result -> {}));
    }
    assertEquals(1, server.streams.get());
  }

  /** Kotlin has no checked exceptions, so its sequences may throw any. */
  @Test
  void aCheckedExceptionOfTheItemsIsNoEndOfThem() throws IOException {
    Iterable<Item> items =
        () -> {
          throw ResultStreamTest.<RuntimeException>unchecked(new IOException("unreadable"));
        };

    UndeclaredThrowableException thrown =
        assertThrows(
            UndeclaredThrowableException.class, () -> numbers(items, StreamOptions.DEFAULT));
    assertEquals("unreadable", thrown.getCause().getMessage());
  }

  @SuppressWarnings("unchecked")
  private static <T extends Throwable> T unchecked(Throwable thrown) throws T {
    throw (T) thrown;
  }
}
