package com.alignserve;

import com.google.protobuf.Any;
import com.google.protobuf.InvalidProtocolBufferException;
import com.google.rpc.BadRequest;
import com.google.rpc.ErrorInfo;
import com.google.rpc.RetryInfo;
import io.grpc.Status;
import io.grpc.protobuf.StatusProto;
import java.time.Duration;
import java.util.List;
import java.util.Map;
import java.util.Optional;

/** Why a call, an item of a stream or a whole stream failed. */
public class AlignException extends RuntimeException {
  private static final long serialVersionUID = 1;

  private final Status.Code code;
  private final transient Details details;

  /**
   * A request field that the server refused.
   *
   * @param field path, such as {@code images[3].content}
   * @param reason as {@link AlignException#reason}, for this field
   * @param description for people
   */
  public record FieldViolation(String field, String reason, String description) {}

  private record Details(
      String reason,
      String domain,
      Map<String, String> metadata,
      List<FieldViolation> violations,
      Duration retryDelay) {
    static final Details NONE = new Details("", "", Map.of(), List.of(), null);
  }

  private AlignException(Status.Code code, String message, Details details, Throwable cause) {
    super(message, cause);
    this.code = code;
    this.details = details;
  }

  /** The gRPC code. */
  public Status.Code code() {
    return code;
  }

  /**
   * Stable and for programs, such as {@code QUEUE_FULL}. Empty if the error comes from elsewhere: a
   * broken connection, a deadline, a proxy.
   */
  public String reason() {
    return details().reason;
  }

  /** Namespace of the reason: {@code alignserve.v1}, or empty without a reason. */
  public String domain() {
    return details().domain;
  }

  /** Further details of the reason. */
  public Map<String, String> metadata() {
    return details().metadata;
  }

  /** The invalid fields. */
  public List<FieldViolation> violations() {
    return details().violations;
  }

  /** How long the server asks the caller to wait. */
  public Optional<Duration> retryDelay() {
    return Optional.ofNullable(details().retryDelay);
  }

  /** Identifies the error in the server's log; empty unless the server failed. */
  public String errorId() {
    return metadata().getOrDefault("error_id", "");
  }

  private Details details() {
    return details == null ? Details.NONE : details; // after it was serialized
  }

  static AlignException of(Throwable cause) {
    com.google.rpc.Status status = StatusProto.fromThrowable(cause);
    if (status == null) {
      Status local = Status.fromThrowable(cause);
      return new AlignException(
          local.getCode(),
          describe(local.getCode(), "", local.getDescription()),
          Details.NONE,
          cause);
    }
    return of(status, cause);
  }

  static AlignException of(com.google.rpc.Status status) {
    return of(status, null);
  }

  static AlignException of(Status status) {
    return of(status.asRuntimeException());
  }

  private static AlignException of(com.google.rpc.Status status, Throwable cause) {
    Status.Code code = Status.fromCodeValue(status.getCode()).getCode();
    Details details = detailsOf(status);
    return new AlignException(
        code, describe(code, details.reason, status.getMessage()), details, cause);
  }

  private static String describe(Status.Code code, String reason, String message) {
    return code
        + (reason.isEmpty() ? "" : " (" + reason + ")")
        + (message == null ? "" : ": " + message);
  }

  private static Details detailsOf(com.google.rpc.Status status) {
    ErrorInfo info = ErrorInfo.getDefaultInstance();
    List<FieldViolation> violations = List.of();
    Duration retryDelay = null;
    try {
      for (Any detail : status.getDetailsList()) {
        if (detail.is(ErrorInfo.class)) {
          info = detail.unpack(ErrorInfo.class);
        } else if (detail.is(BadRequest.class)) {
          violations = violationsOf(detail.unpack(BadRequest.class));
        } else if (detail.is(RetryInfo.class)) {
          RetryInfo retry = detail.unpack(RetryInfo.class);
          retryDelay =
              Duration.ofSeconds(
                  retry.getRetryDelay().getSeconds(), retry.getRetryDelay().getNanos());
        }
      }
    } catch (InvalidProtocolBufferException error) {
      return Details.NONE; // a proxy's: the code and the message say enough
    }
    return new Details(
        info.getReason(),
        info.getDomain(),
        Map.copyOf(info.getMetadataMap()),
        violations,
        retryDelay);
  }

  private static List<FieldViolation> violationsOf(BadRequest request) {
    return request.getFieldViolationsList().stream()
        .map(each -> new FieldViolation(each.getField(), each.getReason(), each.getDescription()))
        .toList();
  }

  /**
   * Whether a full server asks the client to retry later. A retry of WOULD_MISS_DEADLINE would have
   * the same deadline and less time.
   */
  boolean isRefusal() {
    return code == Status.Code.RESOURCE_EXHAUSTED
        && retryDelay().isPresent()
        && !reason().equals("WOULD_MISS_DEADLINE");
  }

  /**
   * Whether the call was cancelled without a reason: by the caller, a stopping server or a proxy.
   */
  boolean isCancelled() {
    return code == Status.Code.CANCELLED && reason().isEmpty();
  }

  /**
   * Whether the connection of a stream broke, or the server ended the stream so that it moves to
   * another. The server's own INTERNAL errors always have a reason.
   */
  boolean isBroken() {
    return code == Status.Code.UNAVAILABLE
        || isCancelled()
        || (code == Status.Code.INTERNAL && reason().isEmpty());
  }
}
