# frozen_string_literal: true

module Alignserve
  # Decides whether and when a failed attempt is repeated.
  class Retries
    MAX_ATTEMPTS = 5
    MAX_STREAM_ATTEMPTS = 10 # without an answer
    FIRST_BACKOFF = 0.1 # seconds
    MAX_BACKOFF = 5.0
    JITTER = 0.25 # largest random addition, so that clients do not repeat in step
    private_constant :MAX_ATTEMPTS, :MAX_STREAM_ATTEMPTS, :FIRST_BACKOFF, :MAX_BACKOFF, :JITTER

    def initialize(enabled, deadline, cancellation)
      @enabled = enabled
      @deadline = deadline
      @cancellation = cancellation
      @attempts = 0
      @breaks = 0
    end

    # Starts to count again, since the server has answered an item.
    def progressed
      @attempts = 0
    end

    # Waits until the next attempt of a call, or raises the error if there is none. After refusals by a full server only
    # the deadline limits the number of attempts.
    def wait(error)
      @attempts += 1
      @breaks += 1 if broken?(error) && error.reason != "SHUTTING_DOWN"
      pause(error, refused?(error) || (broken?(error) && @breaks < MAX_ATTEMPTS))
    end

    # Waits until a stream is opened again, or raises the error if it is not.
    def wait_for_stream(error)
      # An aged stream is no failure: it is to move to another server.
      @attempts = error.reason == "STREAM_AGED" ? 1 : @attempts + 1
      pause(error, @attempts < MAX_STREAM_ATTEMPTS && (broken?(error) || reset?(error) || refused?(error)))
    end

    private

    def pause(error, repeatable)
      raise error unless @enabled && repeatable

      delay = delay_after(error)
      raise error if @deadline && Time.now + delay >= @deadline

      @cancellation.sleep(delay)
    end

    # The caller's own cancellation never gets here, so CANCELLED comes from a connection that is being closed.
    def broken?(error)
      error.code == "UNAVAILABLE" || (error.code == "CANCELLED" && error.reason.empty?)
    end

    # The server gives a reason with each INTERNAL. Without one, a proxy has reset the stream of a server that died.
    def reset?(error)
      error.code == "INTERNAL" && error.reason.empty?
    end

    # Waiting brings the deadline closer. Without a delay it is the limit of a proxy, or of a message's size.
    def refused?(error)
      error.code == "RESOURCE_EXHAUSTED" && !error.retry_delay.nil? && error.reason != "WOULD_MISS_DEADLINE"
    end

    # The server's delay, or a growing one if that is longer.
    def delay_after(error)
      backoff = [FIRST_BACKOFF * (2**[@attempts - 1, 16].min), MAX_BACKOFF].min
      [backoff, error.retry_delay || 0].max * rand(1.0..(1 + JITTER))
    end
  end
  private_constant :Retries
end
