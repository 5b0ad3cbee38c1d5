package com.alignserve;

import com.alignserve.v1.AlignServiceGrpc;
import com.alignserve.v1.AlignServiceGrpc.AlignServiceBlockingStub;
import com.alignserve.v1.ClassifyResponse;
import com.alignserve.v1.EmbedTextResponse;
import com.alignserve.v1.GetModelInfoRequest;
import com.alignserve.v1.GetModelInfoResponse;
import com.alignserve.v1.StreamInferRequest;
import com.alignserve.v1.StreamInferResponse;
import io.grpc.CallOptions;
import io.grpc.Channel;
import io.grpc.ChannelCredentials;
import io.grpc.ClientInterceptors;
import io.grpc.Context;
import io.grpc.Deadline;
import io.grpc.Grpc;
import io.grpc.InsecureChannelCredentials;
import io.grpc.ManagedChannel;
import io.grpc.MethodDescriptor;
import io.grpc.StatusRuntimeException;
import io.grpc.TlsChannelCredentials;
import io.grpc.health.v1.HealthCheckRequest;
import io.grpc.health.v1.HealthCheckResponse.ServingStatus;
import io.grpc.health.v1.HealthGrpc;
import io.grpc.stub.ClientCalls;
import io.grpc.stub.ClientResponseObserver;
import java.io.IOException;
import java.nio.file.Path;
import java.time.Duration;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.concurrent.TimeUnit;
import java.util.stream.IntStream;

/**
 * Embeds images and texts into one vector space, and classifies images against any labels.
 *
 * <pre>{@code
 * try (AlignClient client = AlignClient.builder("align.example.com:443").apiKey(key).build()) {
 *   Embedding cat = client.embedImages(List.of(Image.ofFile(Path.of("cat.jpg")))).get(0);
 *   Embedding text = client.embedTexts(List.of("a cat")).get(0).embedding();
 *   System.out.println(cat.cosine(text));
 * }
 * }</pre>
 *
 * <p>A client connects on its first call and is thread-safe; create one and keep it. Calls block,
 * until their thread is interrupted or their {@link Context} is cancelled. Every failure is an
 * {@link AlignException}. A call has a deadline over all attempts, 30 seconds by default. Until
 * then it is retried when the connection breaks, when the server is starting or stopping, and when
 * a full server says how long to wait. Retrying is safe, since no call has side effects.
 */
public final class AlignClient implements AutoCloseable {
  private final ManagedChannel connection;
  private final Channel channel;
  private final boolean retries;
  private final CallOptions callOptions;
  private final Duration timeout; // null for none

  private AlignClient(
      ManagedChannel connection,
      Channel channel,
      boolean retries,
      CallOptions callOptions,
      Duration timeout) {
    this.connection = connection;
    this.channel = channel;
    this.retries = retries;
    this.callOptions = callOptions;
    this.timeout = timeout;
  }

  /**
   * Starts building a client for the server at HOST:PORT, or at any other gRPC target, such as
   * {@code dns:///align:50051}. Calls are balanced over all addresses of a name.
   */
  public static Builder builder(String target) {
    return new Builder(target);
  }

  /**
   * Returns a client on the same connections with another deadline for calls; {@code null} for
   * none.
   */
  public AlignClient withTimeout(Duration timeout) {
    return new AlignClient(connection, channel, retries, callOptions, timeout);
  }

  /** Returns a client on the same connections with another priority. */
  public AlignClient withPriority(Priority priority) {
    return new AlignClient(
        connection, channel, retries, callOptions.withOption(Headers.PRIORITY, priority), timeout);
  }

  /**
   * Returns the generated client on the same connections, for everything that the methods leave
   * out. It sends the same metadata, and gRPC retries its calls after UNAVAILABLE; deadlines, other
   * retries and errors are up to you.
   */
  public AlignServiceBlockingStub stub() {
    return AlignServiceGrpc.newBlockingStub(channel);
  }

  /**
   * Closes the connections and cancels open calls, including those of clients that share the
   * connections.
   */
  @Override
  public void close() {
    connection.shutdownNow();
  }

  public List<Embedding> embedImages(List<Image> images) {
    return embedImages(images, EmbedOptions.DEFAULT);
  }

  /**
   * Returns an embedding for each image, in order. The call is atomic: if an image is invalid, it
   * fails and the error names the image. The server limits the number of images ({@code
   * max_client_batch_size} in {@link #modelInfo}); {@link #stream} accepts any number.
   */
  public List<Embedding> embedImages(List<Image> images, EmbedOptions options) {
    return Embedding.of(
        call(AlignServiceGrpc.getEmbedImageMethod(), Requests.embedImages(images, options))
            .getEmbeddingsList());
  }

  public List<TextEmbedding> embedTexts(List<String> texts) {
    return embedTexts(texts, EmbedOptions.DEFAULT);
  }

  /**
   * Returns an embedding for each text, in order. Like {@link #embedImages}, it is atomic and
   * limited in size.
   */
  public List<TextEmbedding> embedTexts(List<String> texts, EmbedOptions options) {
    EmbedTextResponse response =
        call(AlignServiceGrpc.getEmbedTextMethod(), Requests.embedTexts(texts, options));
    return IntStream.range(0, response.getEmbeddingsCount())
        .mapToObj(
            i ->
                new TextEmbedding(
                    Embedding.of(response.getEmbeddings(i)),
                    Tokenization.at(response.getTokenizationsList(), i)))
        .toList();
  }

  public List<Embedding> embedQueries(List<Query> queries) {
    return embedQueries(queries, EmbedOptions.DEFAULT);
  }

  /** Returns an embedding for each composed query, in order. */
  public List<Embedding> embedQueries(List<Query> queries, EmbedOptions options) {
    return Embedding.of(
        call(AlignServiceGrpc.getEmbedQueryMethod(), Requests.embedQueries(queries, options))
            .getEmbeddingsList());
  }

  public List<List<Classification>> classify(List<Image> images, List<String> labels) {
    return classify(images, labels, ClassifyOptions.DEFAULT);
  }

  /** Scores images against labels (zero-shot). Returns the labels of each image, best first. */
  public List<List<Classification>> classify(
      List<Image> images, List<String> labels, ClassifyOptions options) {
    ClassifyResponse response =
        call(AlignServiceGrpc.getClassifyMethod(), Requests.classify(images, labels, options));
    return response.getResultsList().stream().map(Classification::of).toList();
  }

  public List<Comparison> compare(List<Pair> pairs) {
    return compare(pairs, false);
  }

  /**
   * Returns how well the text of each pair describes its image: two numbers per pair instead of two
   * embeddings.
   *
   * @param truncate whether texts that are too long are truncated; otherwise they are refused
   */
  public List<Comparison> compare(List<Pair> pairs, boolean truncate) {
    return Comparison.of(
        call(AlignServiceGrpc.getCompareMethod(), Requests.compare(pairs, truncate)));
  }

  /** Returns the model and the limits of the server. They do not change while it runs. */
  public GetModelInfoResponse modelInfo() {
    return call(AlignServiceGrpc.getGetModelInfoMethod(), GetModelInfoRequest.getDefaultInstance());
  }

  /**
   * Returns whether the server is ready. It needs no API key. Throws if the server does not answer.
   */
  public boolean isReady() {
    HealthCheckRequest request =
        HealthCheckRequest.newBuilder().setService(AlignServiceGrpc.SERVICE_NAME).build();
    return call(HealthGrpc.getCheckMethod(), request).getStatus() == ServingStatus.SERVING;
  }

  public ResultStream stream(Iterable<Item> items) {
    return stream(items, StreamOptions.DEFAULT);
  }

  /** Runs any number of items over one stream. Close the stream to end it early. */
  public ResultStream stream(Iterable<Item> items, StreamOptions options) {
    return new ResultStream(this, items, options);
  }

  /** Whether a stream that breaks is opened again. */
  boolean reopensStreams() {
    return retries && !connection.isShutdown();
  }

  void startStream(
      Deadline deadline, ClientResponseObserver<StreamInferRequest, StreamInferResponse> observer) {
    ClientCalls.asyncBidiStreamingCall(
        channel.newCall(
            AlignServiceGrpc.getStreamInferMethod(), callOptions.withDeadline(deadline)),
        observer);
  }

  private <Q, A> A call(MethodDescriptor<Q, A> method, Q request) {
    Deadline deadline =
        timeout == null ? null : Deadline.after(timeout.toNanos(), TimeUnit.NANOSECONDS);
    for (int attempt = 1; ; attempt++) {
      try {
        return ClientCalls.blockingUnaryCall(
            channel, method, callOptions.withDeadline(deadline), request);
      } catch (StatusRuntimeException error) {
        AlignException failure = AlignException.of(error);
        if (!retries
            || !Retries.retries(failure, attempt)
            || !Retries.pause(Retries.delayAfter(failure, attempt), earlier(deadline))) {
          throw failure;
        }
      }
    }
  }

  /**
   * The deadline of a call, or that of its context if it is earlier; {@code null} if there is none.
   */
  static Deadline earlier(Deadline deadline) {
    Deadline outer = Context.current().getDeadline();
    if (deadline == null || outer == null) {
      return deadline == null ? outer : deadline;
    }
    return deadline.minimum(outer);
  }

  /** Configures a client. TLS is on unless {@link #plaintext} is called. */
  public static final class Builder {
    /**
     * How much of a request gRPC keeps to retry it: more than a server accepts by default (16 MiB).
     * gRPC's default, 1 MiB, is less than many images.
     */
    private static final long RETRY_BUFFER_BYTES = 64 << 20;

    /** The same for all calls together; gRPC's default is 16 MiB. */
    private static final long ALL_RETRY_BUFFERS_BYTES = 512 << 20;

    private final String target;
    private final Map<String, String> metadata = new HashMap<>();
    private boolean isPlaintext;
    private Path rootCertificates;
    private Path clientCertificate;
    private Path clientKey;
    private Duration timeout = Duration.ofSeconds(30);
    private int maxResponseBytes = 16 << 20;
    private Duration keepaliveTime = Duration.ofMinutes(1);
    private Duration keepaliveTimeout = Duration.ofSeconds(10);
    private boolean retries = true;

    private Builder(String target) {
      this.target = Objects.requireNonNull(target);
    }

    /**
     * Turns TLS off. Keys and images can then be read in transit: use it on one machine, or where a
     * mesh encrypts the traffic.
     */
    public Builder plaintext() {
      isPlaintext = true;
      return this;
    }

    /** Trusts only the certificate authorities in a PEM file. */
    public Builder rootCertificates(Path file) {
      rootCertificates = file;
      return this;
    }

    /** Sets the client certificate, for servers that require one: PEM files, the key in PKCS #8. */
    public Builder clientCertificate(Path certificate, Path key) {
      clientCertificate = certificate;
      clientKey = key;
      return this;
    }

    /** Sends a key with every call, without the space around it: files end with a line break. */
    public Builder apiKey(String key) {
      return metadata("authorization", "Bearer " + key.strip());
    }

    /**
     * Sets the deadline of each unary call, over all attempts: 30 seconds by default, {@code null}
     * for none.
     */
    public Builder timeout(Duration timeout) {
      this.timeout = timeout;
      return this;
    }

    /** Sets the priority of all calls. */
    public Builder priority(Priority priority) {
      return metadata("alignserve-priority", priority.value);
    }

    /** Sends a value with every call. */
    public Builder metadata(String key, String value) {
      metadata.put(key, value);
      return this;
    }

    /**
     * Limits the size of a response, to 16 MiB by default. The client tells the server, which
     * refuses larger calls before doing any work.
     */
    public Builder maxResponseBytes(int size) {
      maxResponseBytes = size;
      return this;
    }

    /**
     * Sets the interval of pings during calls, a minute by default, and the time to wait for their
     * answer, 10 seconds by default. Servers close the connections of clients that ping much more
     * often than every 30 seconds.
     */
    public Builder keepalive(Duration interval, Duration timeout) {
      keepaliveTime = interval;
      keepaliveTimeout = timeout;
      return this;
    }

    /**
     * Turns retries off: a call fails after one attempt, and a stream when its connection breaks.
     */
    public Builder withoutRetries() {
      retries = false;
      return this;
    }

    /** Builds the client, which connects on its first call. */
    public AlignClient build() throws IOException {
      Map<String, String> headers = new HashMap<>(metadata);
      headers.put("alignserve-max-response-bytes", Integer.toString(maxResponseBytes));
      var builder =
          Grpc.newChannelBuilder(target, credentials())
              .defaultServiceConfig(Retries.serviceConfig())
              .perRpcBufferLimit(RETRY_BUFFER_BYTES)
              .retryBufferSize(ALL_RETRY_BUFFERS_BYTES)
              .maxInboundMessageSize(maxResponseBytes)
              .keepAliveTime(keepaliveTime.toMillis(), TimeUnit.MILLISECONDS)
              .keepAliveTimeout(keepaliveTimeout.toMillis(), TimeUnit.MILLISECONDS);
      if (!retries) {
        builder.disableRetry();
      }
      ManagedChannel connection = builder.build();
      Channel channel = ClientInterceptors.intercept(connection, new Headers(headers));
      return new AlignClient(connection, channel, retries, CallOptions.DEFAULT, timeout);
    }

    private ChannelCredentials credentials() throws IOException {
      if (isPlaintext) {
        if (rootCertificates != null || clientCertificate != null) {
          throw new IllegalStateException("plaintext excludes certificates");
        }
        return InsecureChannelCredentials.create();
      }
      TlsChannelCredentials.Builder tls = TlsChannelCredentials.newBuilder();
      if (rootCertificates != null) {
        tls.trustManager(rootCertificates.toFile());
      }
      if (clientCertificate != null) {
        tls.keyManager(clientCertificate.toFile(), clientKey.toFile());
      }
      return tls.build();
    }
  }
}
