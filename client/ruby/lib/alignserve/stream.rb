# frozen_string_literal: true

module Alignserve
  # Items of a stream, and the outcome of each.
  module Items
    # Any item may have an `id` of the caller's choice, which its Result has too.
    Image = Struct.new(:image, :format, :normalize, :id, keyword_init: true)
    Text = Struct.new(:text, :format, :normalize, :truncate, :id, keyword_init: true)
    Classify = Struct.new(:image, :labels, :prompt_templates, :top_k, :id, keyword_init: true)
    Compare = Struct.new(:image, :text, :truncate, :id, keyword_init: true)
    Query = Struct.new(:terms, :format, :normalize, :truncate, :id, keyword_init: true)

    module_function

    # Returns the name and the message of an item's field in StreamInferRequest.
    def request(item)
      options = item.is_a?(Struct) ? item.to_h.compact.except(:id) : {}
      case item
      when Image then [:embed_image, Requests.embed_images([item.image], **options.except(:image))]
      when Text then [:embed_text, Requests.embed_texts([item.text], **options.except(:text))]
      when Query then [:embed_query, Requests.embed_queries([item.terms], **options.except(:terms))]
      when Compare then [:compare, Requests.compare([[item.image, item.text]], **options.except(:image, :text))]
      when Classify
        [:classify, Requests.classify([item.image], item.labels, **options.except(:image, :labels))]
      else raise ArgumentError, "an item is one of Alignserve::Items, not #{item.class}"
      end
    end

    # Returns the value of an answer: an embedding, an Array of Classification, or a Comparison.
    def value(response)
      case response.result
      when :classify then Results.classifications(response.classify).first
      when :compare then Results.comparisons(response.compare).first
      else Results.embeddings(response[response.result.to_s]).first
      end
    end
  end

  # The outcome of an item: a value or an error.
  Result = Struct.new(:id, :value, :error, keyword_init: true)

  # Sends items with bounded work in flight, and opens the stream again when a server ends it.
  class Stream
    # `open` starts an attempt: it takes an Enumerable of requests and returns a GRPC operation.
    def initialize(items, window:, ordered:, deadline:, cancellation:, retries:, on_reconnect:, open:)
      @items = items
      @window = SizedQueue.new(window)
      @ordered = ordered
      @deadline = deadline
      @cancellation = cancellation
      @retries = retries
      @on_reconnect = on_reconnect
      @open = open
      @lock = Mutex.new
      @changed = ConditionVariable.new
      @unanswered = {} # request by correlation id, in the order of the items
      @ids = {}
      @is_fed = false
      @is_cancelled = false
    end

    # Yields a Result for each item.
    def each(&)
      feeder = Thread.new { feed }
      feeder.report_on_exception = false
      @cancellation.during(self) { run(&) }
      feeder.value # raises what the items raised
    ensure
      feeder&.kill
    end

    # Ends `each`, from another thread.
    def cancel
      @lock.synchronize do
        @is_cancelled = true
        @changed.broadcast
      end
    end

    private

    # Takes items as the window allows. In a thread of its own, since an Enumerator cannot change its thread.
    def feed
      position = 0
      @items.each do |item|
        field, message = Items.request(item)
        @window.push(true)
        enqueue(position.to_s, item.id.nil? ? position : item.id, field, message)
        position += 1
      end
    ensure
      @lock.synchronize do
        @is_fed = true
        @outbox&.close
        @changed.broadcast
      end
    end

    def enqueue(correlation_id, id, field, message)
      @lock.synchronize do
        @ids[correlation_id] = id
        @unanswered[correlation_id] = V1::StreamInferRequest.new(correlation_id:, field => message)
        # Without an open outbox the next one starts with all that is unanswered.
        @outbox.push(correlation_id) unless @outbox.nil? || @outbox.closed?
        @changed.broadcast
      end
    end

    def run(&)
      return unless item?

      until (failure = attempt(&)).nil?
        @retries.wait_for_stream(failure)
        return unless item?

        @on_reconnect&.call
      end
    end

    # Waits until there is an item to send. Returns false if there is none left.
    def item?
      @lock.synchronize do
        until @is_cancelled || @is_fed || !@unanswered.empty?
          left = @deadline && (@deadline - Time.now)
          raise Statuses.deadline_exceeded if left && left <= 0

          @changed.wait(@lock, left)
        end
        raise Statuses.cancelled if @is_cancelled

        !@unanswered.empty?
      end
    end

    # Runs a call until it ends. Returns why, or nil if every item has been answered.
    def attempt(&)
      outbox = fill_outbox
      operation = @open.call(requests(outbox))
      failure = @cancellation.during(operation) { receive(operation, &) }
      failure unless done?
    ensure
      outbox.close # ends the thread that writes
      operation&.cancel # no effect on a call that has ended
    end

    # Yields results until the call ends. Returns its error, or that of an item that no server can answer now.
    def receive(operation)
      is_callers = false # what the block raises is not the stream's error
      operation.execute.each do |response|
        error = response.error && Statuses.of_item(response.error)
        return error if error&.code == "UNAVAILABLE"

        result = answered(response, error)
        next if result.nil?

        @retries.progressed
        is_callers = true
        yield result
        is_callers = false
      end
      Statuses.ended_early
    rescue GRPC::BadStatus => e
      raise if is_callers
      @cancellation.check
      Statuses.of_call(e)
    end

    # Returns a new outbox with what is unanswered; what the feeder takes from now on follows.
    def fill_outbox
      @lock.synchronize do
        @outbox = Queue.new
        @unanswered.each_key { |correlation_id| @outbox.push(correlation_id) }
        @outbox.close if @is_fed
        @outbox
      end
    end

    def requests(outbox)
      Enumerator.new do |requests|
        if @ordered
          options = V1::StreamOptions.new(delivery_order: :DELIVERY_ORDER_AS_REQUESTED)
          requests << V1::StreamInferRequest.new(stream_options: options)
        end
        while (correlation_id = outbox.pop)
          request = @lock.synchronize { @unanswered[correlation_id] }
          requests << request unless request.nil?
        end
      end
    end

    # Returns the Result of an answer, or nil if its item has been answered before.
    def answered(response, error)
      id = @lock.synchronize do
        return if @unanswered.delete(response.correlation_id).nil?

        @ids.delete(response.correlation_id)
      end
      @window.pop
      error ? Result.new(id:, error:) : Result.new(id:, value: Items.value(response))
    end

    def done?
      @lock.synchronize { @is_fed && @unanswered.empty? }
    end
  end
  private_constant :Stream
end
