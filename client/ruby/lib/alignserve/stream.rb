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
      options = item.to_h.compact.except(:id)
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
    def initialize(items, window:, ordered:, retries:, open:)
      @items = items
      @window = SizedQueue.new(window)
      @ordered = ordered
      @retries = retries
      @open = open
      @lock = Mutex.new
      @unanswered = {} # request by correlation id, in the order of the items
      @ids = {}
      @outbox = Queue.new
    end

    # Yields a Result for each item.
    def each(&)
      feeder = Thread.new { feed }
      feeder.report_on_exception = false
      reopen until run_attempt(&)
      feeder.value # raises what the items raised
    ensure
      feeder&.kill
      @outbox.close
      @operation&.cancel
    end

    private

    # Takes items as the window allows. In a thread of its own, since an Enumerator cannot change its thread.
    def feed
      @items.each_with_index do |item, position|
        field, message = Items.request(item)
        @window.push(true)
        enqueue(position.to_s, item.id.nil? ? position : item.id, field, message)
      end
    ensure
      @lock.synchronize do
        @is_fed = true
        @outbox.close
      end
    end

    def enqueue(correlation_id, id, field, message)
      @lock.synchronize do
        @ids[correlation_id] = id
        @unanswered[correlation_id] = V1::StreamInferRequest.new(correlation_id:, field => message)
        @outbox.push(correlation_id) unless @outbox.closed? # if it is, `reopen` takes it from the unanswered ones
      end
    end

    # Returns whether the stream ended as it should. Otherwise it is to be opened again.
    def run_attempt
      outbox = @outbox
      @operation = @open.call(requests(outbox))
      @operation.execute.each do |response|
        result = answered(response)
        next if result.nil?

        @retries.progressed
        yield result
      end
      true
    rescue GRPC::BadStatus => e
      @retries.wait(Statuses.of_call(e)) # raises if it is not to be repeated
      false
    ensure
      outbox.close # ends the thread that writes
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

    def answered(response)
      id = @lock.synchronize do
        return if @unanswered.delete(response.correlation_id).nil?

        @ids.delete(response.correlation_id)
      end
      @window.pop
      return Result.new(id:, error: Statuses.of_item(response.error)) if response.result == :error

      Result.new(id:, value: Items.value(response))
    end

    # Puts what is unanswered into a new outbox; what the feeder takes meanwhile follows.
    def reopen
      @lock.synchronize do
        @outbox = Queue.new
        @unanswered.each_key { |correlation_id| @outbox.push(correlation_id) }
        @outbox.close if @is_fed
      end
    end
  end
  private_constant :Stream
end
