package com.alignserve;

import static com.alignserve.PlannedServer.failure;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import com.alignserve.v1.EmbedTextResponse;
import com.google.protobuf.ByteString;
import com.google.rpc.BadRequest;
import com.google.rpc.ErrorInfo;
import io.grpc.Context;
import io.grpc.Status;
import io.grpc.Status.Code;
import io.grpc.StatusRuntimeException;
import java.io.IOException;
import java.nio.file.Path;
import java.time.Duration;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.stream.Stream;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.Arguments;
import org.junit.jupiter.params.provider.MethodSource;

class AlignClientTest {
  private static final StatusRuntimeException FOREIGN_CANCEL =
      Status.CANCELLED.withDescription("the server is stopping").asRuntimeException();

  private PlannedServer server;

  @BeforeEach
  void start() throws IOException {
    server = new PlannedServer();
  }

  @AfterEach
  void stop() {
    server.close();
  }

  private List<TextEmbedding> embed(AlignClient.Builder builder, String... texts)
      throws IOException {
    try (AlignClient client = builder.build()) {
      return client.embedTexts(List.of(texts));
    }
  }

  private AlignException failureOf(AlignClient.Builder builder, String... texts) {
    return assertThrows(AlignException.class, () -> embed(builder, texts));
  }

  @Test
  void textsComeBackInOrderWithTheirTokens() throws IOException {
    List<TextEmbedding> found = embed(server.client(), "a", "bcd");

    assertEquals(1, found.get(0).embedding().vector()[0]);
    assertEquals(3, found.get(1).embedding().vector()[0]);
    assertEquals(3, found.get(1).tokenization().tokenCount());
  }

  @Test
  void everyPartOfAnErrorIsDecoded() {
    BadRequest.FieldViolation violation =
        BadRequest.FieldViolation.newBuilder()
            .setField("texts[1]")
            .setReason("TEXT_EMPTY")
            .setDescription("blank")
            .build();
    ErrorInfo info =
        ErrorInfo.newBuilder()
            .setReason("TEXT_EMPTY")
            .setDomain("alignserve.v1")
            .putMetadata("error_id", "5f")
            .build();
    server.fail(
        failure(
            Code.INVALID_ARGUMENT,
            info,
            BadRequest.newBuilder().addFieldViolations(violation).build()));

    AlignException found = failureOf(server.client(), "a", " ");

    assertEquals(Code.INVALID_ARGUMENT, found.code());
    assertEquals("TEXT_EMPTY", found.reason());
    assertEquals("alignserve.v1", found.domain());
    assertEquals("5f", found.errorId());
    assertEquals(Optional.empty(), found.retryDelay());
    assertEquals(
        List.of(new AlignException.FieldViolation("texts[1]", "TEXT_EMPTY", "blank")),
        found.violations());
  }

  static Stream<Arguments> temporaryFailuresAreRetried() {
    return Stream.of(
        Arguments.of("a full queue", failure(Code.RESOURCE_EXHAUSTED, "QUEUE_FULL", 1)),
        Arguments.of("a quota", failure(Code.RESOURCE_EXHAUSTED, "QUOTA_EXCEEDED", 0)),
        Arguments.of("a starting server", failure(Code.UNAVAILABLE, "MODEL_LOADING", 1)),
        Arguments.of("a broken call", Status.UNAVAILABLE.asRuntimeException()),
        Arguments.of("a foreign cancel", FOREIGN_CANCEL));
  }

  @ParameterizedTest(name = "{0}")
  @MethodSource
  void temporaryFailuresAreRetried(String name, StatusRuntimeException failed) throws IOException {
    server.fail(failed, failed);

    embed(server.client(), "a");

    assertEquals(3, server.calls());
  }

  static Stream<Arguments> permanentFailuresAreNotRetried() {
    return Stream.of(
        Arguments.of(
            "a deadline too close", failure(Code.RESOURCE_EXHAUSTED, "WOULD_MISS_DEADLINE", 1)),
        Arguments.of("a delay past it", failure(Code.RESOURCE_EXHAUSTED, "QUEUE_FULL", 3_600_000)),
        Arguments.of("a limit of a proxy", Status.RESOURCE_EXHAUSTED.asRuntimeException()),
        Arguments.of("an invalid argument", failure(Code.INVALID_ARGUMENT, "TEXT_EMPTY", -1)),
        Arguments.of("a failure of the server", failure(Code.INTERNAL, "INTERNAL", -1)));
  }

  @ParameterizedTest(name = "{0}")
  @MethodSource
  void permanentFailuresAreNotRetried(String name, StatusRuntimeException failed) {
    server.fail(failed);

    AlignException found = failureOf(server.client(), "a");

    assertEquals(failed.getStatus().getCode(), found.code());
    assertEquals(1, server.calls());
  }

  @Test
  void foreignCancelsAreRetriedAFewTimes() {
    server.fail(
        FOREIGN_CANCEL,
        FOREIGN_CANCEL,
        FOREIGN_CANCEL,
        FOREIGN_CANCEL,
        FOREIGN_CANCEL,
        FOREIGN_CANCEL);

    AlignException found = failureOf(server.client(), "a");

    assertEquals(Code.CANCELLED, found.code());
    assertEquals(5, server.calls());
  }

  @Test
  void withoutRetriesMakesOneAttempt() {
    server.fail(failure(Code.UNAVAILABLE, "MODEL_LOADING", 1));

    AlignException found = failureOf(server.client().withoutRetries(), "a");

    assertEquals("MODEL_LOADING", found.reason());
    assertEquals(Optional.of(Duration.ofMillis(1)), found.retryDelay());
    assertEquals(1, server.calls());
  }

  @Test
  void largeRequestsAreRetried() throws IOException {
    server.fail(Status.UNAVAILABLE.asRuntimeException());

    try (AlignClient client = server.client().build()) {
      client.embedImages(List.of(Image.ofBytes(new byte[20 << 20])));
    }

    assertEquals(2, server.calls());
  }

  @Test
  void aCancelledContextEndsACall() throws IOException {
    try (Context.CancellableContext context = Context.current().withCancellation();
        AlignClient client = server.client().build()) {
      server.onText =
          request -> {
            context.cancel(null);
            return null;
          };

      AlignException found =
          assertThrows(
              AlignException.class, () -> context.call(() -> client.embedTexts(List.of("a"))));

      assertEquals(Code.CANCELLED, found.code());
      assertEquals(1, server.calls());
    }
  }

  @Test
  void anInterruptEndsACallAndIsKept() throws IOException {
    Thread caller = Thread.currentThread();
    server.onText =
        request -> {
          caller.interrupt();
          return null;
        };

    AlignException found = failureOf(server.client(), "a");

    assertEquals(Code.CANCELLED, found.code());
    assertTrue(Thread.interrupted());
  }

  @Test
  void callsHaveADeadline() {
    server.onText = request -> null;

    AlignException found = failureOf(server.client().timeout(Duration.ofMillis(20)), "a");

    assertEquals(Code.DEADLINE_EXCEEDED, found.code());
  }

  @Test
  void metadataIsSentWithEveryCall() throws IOException {
    try (AlignClient client =
        server
            .client()
            .apiKey("as_key")
            .priority(Priority.BULK)
            .maxResponseBytes(1 << 20)
            .metadata("x-team", "search")
            .build()) {
      client.embedTexts(List.of("a"));
      client.withPriority(Priority.INTERACTIVE).embedTexts(List.of("a"));
    }

    Map<String, String> expected =
        Map.of(
            "authorization", "Bearer as_key",
            "alignserve-priority", "bulk",
            "alignserve-max-response-bytes", "1048576",
            "x-team", "search");
    expected.forEach(
        (key, value) -> assertEquals(value, server.received.get(0).get(Headers.key(key))));
    assertEquals("interactive", server.received.get(1).get(Headers.key("alignserve-priority")));
  }

  @Test
  void answersUpToTheLimitAreAccepted() throws IOException {
    ByteString large = ByteString.copyFrom(new byte[5 << 20]);
    server.onText =
        request -> {
          EmbedTextResponse.Builder response = EmbedTextResponse.newBuilder();
          response.addEmbeddingsBuilder().setPackedFloat32(large);
          return response.build();
        };

    List<TextEmbedding> found = embed(server.client(), "a");
    AlignException tooLarge = failureOf(server.client().maxResponseBytes(4 << 20), "a");

    assertEquals(5 << 18, found.get(0).embedding().vector().length);
    assertEquals(Code.RESOURCE_EXHAUSTED, tooLarge.code());
    assertEquals(2, server.calls());
  }

  @Test
  void healthOfAServerThatCannotBeAskedIsAnError() throws IOException {
    try (AlignClient client = server.client().build()) {
      AlignException found = assertThrows(AlignException.class, client::isReady);

      assertEquals(Code.UNIMPLEMENTED, found.code());
    }
  }

  @Test
  void connectionsAreEncryptedUnlessPlaintextIsAskedFor() throws IOException {
    String target = "127.0.0.1:1";

    assertThrows(
        IllegalStateException.class,
        () -> AlignClient.builder(target).plaintext().rootCertificates(Path.of("ca.pem")).build());
    assertThrows(
        IOException.class,
        () -> AlignClient.builder(target).rootCertificates(Path.of("no.pem")).build());
  }
}
