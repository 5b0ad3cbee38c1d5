# frozen_string_literal: true

module Alignserve
  # Decides whether and when a failed attempt is repeated.
  class Retries
    MAX_ATTEMPTS = 10
    MAX_BACKOFF = 5.0 # seconds
    FIRST_BACKOFF = 0.1
    private_constant :MAX_ATTEMPTS, :MAX_BACKOFF, :FIRST_BACKOFF

    def initialize(enabled, deadline = nil)
      @enabled = enabled
      @deadline = deadline
      @failures = 0
    end

    # Starts to count again, since the server has answered something.
    def progressed
      @failures = 0
    end

    # Waits until the next attempt, or raises the error if there is none.
    def wait(error, cancellation = nil)
      @failures += 1
      delay = error.retry_delay || backoff
      raise error unless @enabled && @failures < MAX_ATTEMPTS && repeatable?(error) && in_time?(delay)

      sleep(delay)
      raise Statuses.cancelled if cancellation&.cancelled?
    end

    private

    # The caller's own cancellation never gets here, so CANCELLED comes from a connection that is being closed.
    def repeatable?(error)
      case error.code
      when "UNAVAILABLE", "CANCELLED" then true
      when "RESOURCE_EXHAUSTED" then !error.retry_delay.nil? && error.reason != "WOULD_MISS_DEADLINE"
      else false
      end
    end

    def in_time?(delay)
      @deadline.nil? || Time.now + delay < @deadline
    end

    # Random, so that callers that failed together do not come again together.
    def backoff
      [FIRST_BACKOFF * (2**(@failures - 1)), MAX_BACKOFF].min * rand(0.5..1.0)
    end
  end
  private_constant :Retries
end
