# frozen_string_literal: true

module Alignserve
  # A field at fault: its path, such as `images[3].content`, a text for people, and a reason.
  Violation = Struct.new(:field, :description, :reason, keyword_init: true)

  # A call or an item of a stream that failed.
  class Error < StandardError
    # The gRPC code in upper case, such as `"UNAVAILABLE"`.
    attr_reader :code
    # The stable reason, such as `"QUEUE_FULL"`; `""` if the error does not come from the server.
    attr_reader :reason
    # `"alignserve.v1"`, or nil if the error does not come from the server.
    attr_reader :domain
    # The fields at fault, an Array of Violation.
    attr_reader :violations
    # Seconds to wait before a retry, or nil.
    attr_reader :retry_delay
    # Further facts, a Hash; `"error_id"` is also in the server's log.
    attr_reader :metadata

    def initialize(message, code:, reason: "", domain: nil, violations: [], retry_delay: nil, metadata: {})
      super(message)
      @code = code
      @reason = reason
      @domain = domain
      @violations = violations
      @retry_delay = retry_delay
      @metadata = metadata
    end

    # The id under which the server logged a failure, or nil.
    def error_id
      metadata["error_id"]
    end
  end

  class InvalidArgumentError < Error; end
  class UnauthenticatedError < Error; end
  class PermissionDeniedError < Error; end
  class ResourceExhaustedError < Error; end
  class UnavailableError < Error; end
  class DeadlineExceededError < Error; end
  class CancelledError < Error; end
  class InternalError < Error; end

  # Turns gRPC's statuses into errors.
  module Statuses
    KINDS = {
      "INVALID_ARGUMENT" => InvalidArgumentError,
      "UNAUTHENTICATED" => UnauthenticatedError,
      "PERMISSION_DENIED" => PermissionDeniedError,
      "RESOURCE_EXHAUSTED" => ResourceExhaustedError,
      "UNAVAILABLE" => UnavailableError,
      "DEADLINE_EXCEEDED" => DeadlineExceededError,
      "CANCELLED" => CancelledError,
      "INTERNAL" => InternalError
    }.freeze
    CODES = GRPC::Core::StatusCodes.constants.to_h { |name| [GRPC::Core::StatusCodes.const_get(name), name.to_s] }.freeze
    DETAILS = [Google::Rpc::ErrorInfo, Google::Rpc::BadRequest, Google::Rpc::RetryInfo].freeze
    private_constant :KINDS, :CODES, :DETAILS

    module_function

    # Returns the Error of a GRPC::BadStatus.
    def of_call(status)
      rich = status.to_rpc_status
      build(status.code, rich&.message || status.details, rich&.details || [])
    rescue Google::Protobuf::ParseError # a proxy's, perhaps
      build(status.code, status.details, [])
    end

    # Returns the Error of a Google::Rpc::Status, as items of a stream carry.
    def of_item(status)
      build(status.code, status.message, status.details)
    end

    # Returns the Error of a call that this side has cancelled.
    def cancelled
      CancelledError.new("the call was cancelled, or its client was closed", code: "CANCELLED")
    end

    # Returns the Error of a stream that has no time left.
    def deadline_exceeded
      DeadlineExceededError.new("the deadline of the stream has passed", code: "DEADLINE_EXCEEDED")
    end

    # Returns the Error of a stream that a server ended before all items were answered.
    def ended_early
      UnavailableError.new("the server ended the stream early", code: "UNAVAILABLE")
    end

    def build(number, message, details)
      code = CODES.fetch(number, "UNKNOWN")
      info, request, retry_info = DETAILS.map { |kind| find(details, kind) }
      KINDS.fetch(code, Error).new(
        message.to_s.empty? ? code : message,
        code:,
        reason: info&.reason || "",
        domain: info&.domain,
        violations: violations(request),
        retry_delay: retry_info&.retry_delay && (retry_info.retry_delay.seconds + (retry_info.retry_delay.nanos / 1e9)),
        metadata: info.nil? ? {} : info.metadata.to_h
      )
    end

    def find(details, kind)
      details.find { |detail| detail.is(kind) }&.unpack(kind)
    end

    def violations(request)
      return [] if request.nil?

      request.field_violations.map do |each|
        reason = each.respond_to?(:reason) ? each.reason : unknown_reason(each)
        Violation.new(field: each.field, description: each.description, reason:)
      end
    end

    # Reads field 3, which googleapis-common-protos-types does not know before 1.18. All fields of the message are
    # strings and messages: a tag, a varint of the length, and the bytes.
    def unknown_reason(violation)
      encoded = StringIO.new(Google::Protobuf.encode(violation))
      until encoded.eof?
        tag = varint(encoded)
        value = encoded.read(varint(encoded))
        return value.force_encoding(Encoding::UTF_8) if tag >> 3 == 3
      end
      ""
    end

    def varint(encoded)
      (0..).step(7).inject(0) do |number, shift|
        byte = encoded.readbyte
        number |= (byte & 0x7f) << shift
        byte < 0x80 ? (break number) : number
      end
    end
    private_class_method :build, :find, :violations, :unknown_reason, :varint
  end
  private_constant :Statuses
end
