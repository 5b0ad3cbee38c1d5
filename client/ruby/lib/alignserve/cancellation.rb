# frozen_string_literal: true

module Alignserve
  # Cancels calls from another thread. Pass one to a call, and call `cancel` anywhere but in a signal handler.
  class Cancellation
    def initialize
      @lock = Mutex.new
      @changed = ConditionVariable.new
      @operations = {}.compare_by_identity
      @is_cancelled = false
    end

    # Cancels the calls that it was passed to, now and later. They raise CancelledError.
    def cancel
      operations = @lock.synchronize do
        @is_cancelled = true
        @changed.broadcast
        @operations.keys
      end
      operations.each(&:cancel)
    end

    def cancelled?
      @lock.synchronize { @is_cancelled }
    end

    # Raises CancelledError if it was cancelled.
    def check
      raise Statuses.cancelled if cancelled?
    end

    # Runs a block while an operation, which has a method `cancel`, can be cancelled. Raises CancelledError if it was.
    def during(operation)
      @lock.synchronize do
        raise Statuses.cancelled if @is_cancelled

        @operations[operation] = true
      end
      yield
    ensure
      @lock.synchronize { @operations.delete(operation) }
    end

    # Sleeps. Raises CancelledError as soon as it is cancelled.
    def sleep(seconds)
      finish = Process.clock_gettime(Process::CLOCK_MONOTONIC) + seconds
      @lock.synchronize do
        until @is_cancelled
          left = finish - Process.clock_gettime(Process::CLOCK_MONOTONIC)
          return if left <= 0

          @changed.wait(@lock, left)
        end
      end
      raise Statuses.cancelled
    end
  end
end
