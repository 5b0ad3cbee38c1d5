# frozen_string_literal: true

module Alignserve
  # Cancels calls from another thread. Pass one to a call, and call `cancel` anywhere.
  class Cancellation
    def initialize
      @lock = Mutex.new
      @operations = {}.compare_by_identity
      @is_cancelled = false
    end

    # Cancels the calls that it was passed to, now and later.
    def cancel
      operations = @lock.synchronize do
        @is_cancelled = true
        @operations.keys
      end
      operations.each(&:cancel)
    end

    def cancelled?
      @lock.synchronize { @is_cancelled }
    end

    # Runs a block while an operation can be cancelled. Raises CancelledError if it was.
    def during(operation)
      @lock.synchronize do
        raise Statuses.cancelled if @is_cancelled

        @operations[operation] = true
      end
      yield
    ensure
      @lock.synchronize { @operations.delete(operation) }
    end
  end
end
