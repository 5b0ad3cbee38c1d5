package com.alignserve;

import com.alignserve.v1.DeliveryOrder;
import com.alignserve.v1.StreamInferRequest;
import com.alignserve.v1.StreamInferResponse;
import com.alignserve.v1.StreamOptions.Builder;
import io.grpc.Context;
import io.grpc.Deadline;
import io.grpc.Status;
import io.grpc.stub.ClientCallStreamObserver;
import io.grpc.stub.ClientResponseObserver;
import java.lang.reflect.UndeclaredThrowableException;
import java.util.ArrayDeque;
import java.util.Iterator;
import java.util.NoSuchElementException;
import java.util.Queue;
import java.util.SortedMap;
import java.util.TreeMap;
import java.util.concurrent.TimeUnit;

/**
 * The results of a stream, one for each item, in the order in which they become ready.
 *
 * <pre>{@code
 * try (ResultStream results = client.stream(items)) {
 *   for (Result result : results) {
 *     if (result.error().isPresent()) { … } else { use(result.id(), result.embedding()); }
 *   }
 * }
 * }</pre>
 *
 * <p>If the connection breaks, or the server shuts down or ends the stream because of its age, the
 * unanswered items are sent again on a new stream: none is lost or returned twice. After ten
 * consecutive attempts without an answer the iterator throws an {@link AlignException}.
 *
 * <p>A separate thread reads the items, at most a window ahead of the results that have been taken,
 * so the iterable may be infinite. If its iterator throws, so does the iterator of the results,
 * after the last result.
 */
public final class ResultStream implements Iterable<Result>, AutoCloseable {
  private final AlignClient client;
  private final StreamOptions options;
  private final Deadline deadline; // null for none
  private final Context context = Context.current();
  private final Context.CancellationListener contextListener = cancelled -> wake();
  private final Thread reader;
  private final Iterator<Result> iterator = new ResultIterator();

  // Guarded by this.
  private final SortedMap<Long, Item> unanswered = new TreeMap<>();
  private final Queue<Result> results = new ArrayDeque<>();
  private long last; // number of the last item
  private boolean isRead; // all items have a number
  private boolean isClosed;
  private Throwable sourceFailure; // thrown by the items' iterator
  private Call call; // null if none is open
  private AlignException failure; // why the last call ended, until the next is opened
  private int attempt; // since the last answer

  ResultStream(AlignClient client, Iterable<Item> items, StreamOptions options) {
    this.client = client;
    this.options = options;
    this.deadline =
        AlignClient.earlier(
            options.timeout() == null
                ? null
                : Deadline.after(options.timeout().toNanos(), TimeUnit.NANOSECONDS));
    context.addListener(contextListener, Runnable::run);
    reader = new Thread(() -> read(items), "alignserve-items");
    reader.setDaemon(true);
    reader.start();
  }

  /** Returns the only iterator, for one thread. */
  @Override
  public Iterator<Result> iterator() {
    return iterator;
  }

  /** Cancels unanswered items. Has no effect on a stream that has ended. */
  @Override
  public synchronized void close() {
    if (isClosed) {
      return;
    }
    isClosed = true;
    if (call != null && !isDone()) {
      call.cancel();
    }
    context.removeListener(contextListener);
    reader.interrupt();
    notifyAll();
  }

  private final class ResultIterator implements Iterator<Result> {
    private Result next;

    @Override
    public boolean hasNext() {
      if (next == null) {
        next = take();
      }
      return next != null;
    }

    @Override
    public Result next() {
      if (!hasNext()) {
        throw new NoSuchElementException();
      }
      Result taken = next;
      next = null;
      return taken;
    }
  }

  /** Reads the caller's items, at most a window ahead. */
  private void read(Iterable<Item> items) {
    try {
      for (Item item : items) {
        if (!enter(item)) {
          return;
        }
      }
    } catch (Throwable error) { // the caller's own, thrown again in the caller's thread
      synchronized (this) {
        sourceFailure = error;
      }
    }
    end();
  }

  private synchronized boolean enter(Item item) throws InterruptedException {
    while (!isClosed && unanswered.size() + results.size() >= options.window()) {
      wait();
    }
    if (isClosed) {
      return false;
    }
    unanswered.put(++last, item);
    if (call != null) {
      call.send(item.message(last));
    }
    notifyAll();
    return true;
  }

  private synchronized void end() {
    isRead = true;
    if (call != null) {
      call.end();
    }
    notifyAll();
  }

  private synchronized void wake() {
    notifyAll();
  }

  private boolean isDone() {
    return isRead && unanswered.isEmpty();
  }

  /**
   * Returns the next result, and {@code null} at the end. Opens a call whenever there are items and
   * no call.
   */
  private synchronized Result take() {
    try {
      while (true) {
        if (!results.isEmpty()) {
          notifyAll(); // there is room
          return results.poll();
        }
        if (isClosed) {
          return null;
        }
        if (isDone()) {
          return finish();
        }
        if (failure != null) {
          pauseAfter(failure);
          failure = null;
        } else if (call == null && !unanswered.isEmpty()) {
          open();
        } else {
          await(Long.MAX_VALUE);
        }
      }
    } catch (InterruptedException interrupted) {
      close();
      Thread.currentThread().interrupt();
      throw AlignException.of(
          Status.CANCELLED.withDescription("the thread was interrupted").withCause(interrupted));
    } catch (AlignException error) {
      close();
      throw error;
    }
  }

  private Result finish() {
    close();
    if (sourceFailure instanceof RuntimeException error) {
      throw error;
    }
    if (sourceFailure instanceof Error error) {
      throw error;
    }
    if (sourceFailure != null) { // checked, from Kotlin or another language without such exceptions
      throw new UndeclaredThrowableException(sourceFailure);
    }
    return null;
  }

  /** Waits before the next call, or throws why there is none. */
  private void pauseAfter(AlignException failure) throws InterruptedException {
    attempt = failure.reason().equals("STREAM_AGED") ? 1 : attempt + 1;
    boolean isTemporary = failure.isBroken() || failure.isRefusal();
    if (!client.reopensStreams()
        || !isTemporary
        || attempt >= Retries.MAX_STREAM_ATTEMPTS
        || isCallerGone()) {
      throw failure;
    }
    long delay = Retries.delayAfter(failure, attempt).toNanos();
    if (deadline != null && deadline.timeRemaining(TimeUnit.NANOSECONDS) <= delay) {
      throw failure;
    }
    long end = System.nanoTime() + delay;
    while (!isClosed && end - System.nanoTime() > 0) {
      await(end - System.nanoTime());
    }
  }

  /** Waits for a change, and throws at the end of the context or the deadline. */
  private void await(long nanos) throws InterruptedException {
    if (isCallerGone()) {
      throw AlignException.of(
          Status.CANCELLED
              .withDescription("the context was cancelled")
              .withCause(context.cancellationCause()));
    }
    long left = deadline == null ? Long.MAX_VALUE : deadline.timeRemaining(TimeUnit.NANOSECONDS);
    if (left <= 0) {
      throw AlignException.of(
          Status.DEADLINE_EXCEEDED.withDescription("the deadline of the stream has passed"));
    }
    TimeUnit.NANOSECONDS.timedWait(
        this, Math.max(Math.min(nanos, left), 1_000_000)); // 0 ms would not wait
  }

  private boolean isCallerGone() {
    return context.isCancelled() && !(deadline != null && deadline.isExpired());
  }

  private void open() {
    call = new Call();
    client.startStream(deadline, call);
    if (options.ordered()) {
      call.send(ORDERED);
    }
    unanswered.forEach((number, item) -> call.send(item.message(number)));
    if (isRead) {
      call.end();
    }
  }

  private static final StreamInferRequest ORDERED =
      StreamInferRequest.newBuilder().setStreamOptions(ordered()).build();

  private static Builder ordered() {
    return com.alignserve.v1.StreamOptions.newBuilder()
        .setDeliveryOrder(DeliveryOrder.DELIVERY_ORDER_AS_REQUESTED);
  }

  /** One call of the stream. Events of a call that is no longer the open one are ignored. */
  private final class Call
      implements ClientResponseObserver<StreamInferRequest, StreamInferResponse> {
    private ClientCallStreamObserver<StreamInferRequest> requests;

    @Override
    public void beforeStart(ClientCallStreamObserver<StreamInferRequest> requests) {
      this.requests = requests;
    }

    void send(StreamInferRequest request) {
      requests.onNext(request); // buffers what the connection cannot take, which the window bounds
    }

    void end() {
      requests.onCompleted();
    }

    void cancel() {
      requests.cancel("the caller has left", null);
    }

    @Override
    public void onNext(StreamInferResponse response) {
      synchronized (ResultStream.this) {
        if (call == this) {
          answer(response);
        }
      }
    }

    @Override
    public void onError(Throwable error) {
      close(AlignException.of(error));
    }

    @Override
    public void onCompleted() {
      close(
          AlignException.of(
              Status.UNAVAILABLE.withDescription("the server ended the stream early")));
    }

    /** UNAVAILABLE for an item ends the call, so that the item is sent again. */
    private void answer(StreamInferResponse response) {
      AlignException error = response.hasError() ? AlignException.of(response.getError()) : null;
      if (error != null && error.code() == Status.Code.UNAVAILABLE) {
        cancel();
        close(error);
        return;
      }
      Item item = unanswered.remove(Long.parseLong(response.getCorrelationId()));
      if (item != null) {
        results.add(new Result(item.id(), response, error));
        attempt = 0;
        ResultStream.this.notifyAll();
      }
    }

    private void close(AlignException why) {
      synchronized (ResultStream.this) {
        if (call == this) {
          call = null;
          failure = why;
          ResultStream.this.notifyAll();
        }
      }
    }
  }
}
