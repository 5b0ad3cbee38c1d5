package com.alignserve;

import com.alignserve.v1.AlignServiceGrpc;
import com.alignserve.v1.EmbedImageRequest;
import com.alignserve.v1.EmbedImageResponse;
import com.alignserve.v1.EmbedTextRequest;
import com.alignserve.v1.EmbedTextResponse;
import com.alignserve.v1.StreamInferRequest;
import com.alignserve.v1.StreamInferResponse;
import com.google.protobuf.Any;
import com.google.protobuf.Duration;
import com.google.protobuf.Message;
import com.google.rpc.ErrorInfo;
import com.google.rpc.RetryInfo;
import io.grpc.Grpc;
import io.grpc.InsecureServerCredentials;
import io.grpc.Metadata;
import io.grpc.Server;
import io.grpc.ServerCall;
import io.grpc.ServerCallHandler;
import io.grpc.ServerInterceptor;
import io.grpc.Status;
import io.grpc.StatusRuntimeException;
import io.grpc.protobuf.StatusProto;
import io.grpc.stub.StreamObserver;
import java.io.IOException;
import java.util.List;
import java.util.Queue;
import java.util.concurrent.ConcurrentLinkedQueue;
import java.util.concurrent.CopyOnWriteArrayList;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.function.BiFunction;
import java.util.function.Function;

/** A server on a free port that answers every text with its length, and fails as a test plans. */
final class PlannedServer extends AlignServiceGrpc.AlignServiceImplBase implements AutoCloseable {
  final List<Metadata> received = new CopyOnWriteArrayList<>();
  final AtomicInteger streams = new AtomicInteger();
  private final Queue<StatusRuntimeException> failures = new ConcurrentLinkedQueue<>();
  private final Server server;

  /** Answers a text call; {@code null} leaves it unanswered. */
  Function<EmbedTextRequest, EmbedTextResponse> onText = PlannedServer::lengths;

  /** Handles the stream with a number, from 1. */
  BiFunction<Integer, StreamObserver<StreamInferResponse>, StreamObserver<StreamInferRequest>>
      onStream = (number, responses) -> new Answering(responses);

  PlannedServer() throws IOException {
    server =
        Grpc.newServerBuilderForPort(0, InsecureServerCredentials.create())
            .addService(this)
            .maxInboundMessageSize(32 << 20)
            .intercept(new Recorder())
            .build()
            .start();
  }

  AlignClient.Builder client() {
    return AlignClient.builder("127.0.0.1:" + server.getPort()).plaintext();
  }

  /** Makes the next calls fail, one error each. */
  void fail(StatusRuntimeException... planned) {
    failures.addAll(List.of(planned));
  }

  int calls() {
    return received.size();
  }

  @Override
  public void close() {
    server.shutdownNow();
  }

  @Override
  public void embedText(EmbedTextRequest request, StreamObserver<EmbedTextResponse> responses) {
    StatusRuntimeException planned = failures.poll();
    if (planned != null) {
      responses.onError(planned);
      return;
    }
    EmbedTextResponse response = onText.apply(request);
    if (response != null) {
      responses.onNext(response);
      responses.onCompleted();
    }
  }

  @Override
  public void embedImage(EmbedImageRequest request, StreamObserver<EmbedImageResponse> responses) {
    StatusRuntimeException planned = failures.poll();
    if (planned != null) {
      responses.onError(planned);
      return;
    }
    responses.onNext(EmbedImageResponse.getDefaultInstance());
    responses.onCompleted();
  }

  @Override
  public StreamObserver<StreamInferRequest> streamInfer(
      StreamObserver<StreamInferResponse> responses) {
    return onStream.apply(streams.incrementAndGet(), responses);
  }

  static EmbedTextResponse lengths(EmbedTextRequest request) {
    EmbedTextResponse.Builder response = EmbedTextResponse.newBuilder();
    for (String text : request.getTextsList()) {
      response.addEmbeddingsBuilder().addValues(text.length()).addValues(0);
      response.addTokenizationsBuilder().setTokenCount(text.length());
    }
    return response.build();
  }

  static StreamInferResponse answer(StreamInferRequest request) {
    return StreamInferResponse.newBuilder()
        .setCorrelationId(request.getCorrelationId())
        .setEmbedText(lengths(request.getEmbedText()))
        .build();
  }

  static StreamInferResponse error(StreamInferRequest request, StatusRuntimeException error) {
    return StreamInferResponse.newBuilder()
        .setCorrelationId(request.getCorrelationId())
        .setError(StatusProto.fromThrowable(error))
        .build();
  }

  /** An error of the server, with RetryInfo if the delay is not negative. */
  static StatusRuntimeException failure(Status.Code code, String reason, int delayMillis) {
    ErrorInfo info = ErrorInfo.newBuilder().setReason(reason).setDomain("alignserve.v1").build();
    if (delayMillis < 0) {
      return failure(code, info);
    }
    Duration delay =
        Duration.newBuilder()
            .setSeconds(delayMillis / 1000)
            .setNanos(delayMillis % 1000 * 1_000_000)
            .build();
    return failure(code, info, RetryInfo.newBuilder().setRetryDelay(delay).build());
  }

  static StatusRuntimeException failure(Status.Code code, Message... details) {
    com.google.rpc.Status.Builder status =
        com.google.rpc.Status.newBuilder().setCode(code.value()).setMessage("as planned");
    for (Message detail : details) {
      status.addDetails(Any.pack(detail));
    }
    return StatusProto.toStatusRuntimeException(status.build());
  }

  /** Answers every item of a stream. */
  static class Answering implements StreamObserver<StreamInferRequest> {
    final StreamObserver<StreamInferResponse> responses;

    Answering(StreamObserver<StreamInferResponse> responses) {
      this.responses = responses;
    }

    @Override
    public void onNext(StreamInferRequest request) {
      if (!request.getCorrelationId().isEmpty()) {
        responses.onNext(answer(request));
      }
    }

    @Override
    public void onError(Throwable error) {}

    @Override
    public void onCompleted() {
      responses.onCompleted();
    }
  }

  private final class Recorder implements ServerInterceptor {
    @Override
    public <Q, A> ServerCall.Listener<Q> interceptCall(
        ServerCall<Q, A> call, Metadata headers, ServerCallHandler<Q, A> next) {
      received.add(headers);
      return next.startCall(call, headers);
    }
  }
}
