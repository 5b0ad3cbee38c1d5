# frozen_string_literal: true

module Alignserve
  # A client of one target, for any number of threads.
  #
  # Every call takes `timeout:` in seconds, over all its attempts, and `cancellation:`, a Cancellation. An image is a String
  # with the bytes of a file, a Pathname, an IO or Pixels. Embeddings are Arrays of Floats unless `format:` says otherwise (see
  # Embeddings::FORMATS). Calls raise Error.
  class Client
    SERVICE_NAME = "alignserve.v1.AlignService"

    # Yields a client and closes it at the end of the block; returns the block's value. Takes what `new` takes.
    def self.open(target, **options)
      client = new(target, **options)
      yield client
    ensure
      client&.close
    end

    # Connects on the first call.
    #
    # tls:: `{ca:, certificate:, key:}`, names of PEM files. Without `ca`, the system's authorities are trusted.
    # plaintext:: true for no TLS: keys and images can be read in transit.
    # api_key:: sent with every call.
    # timeout:: seconds for a unary call, over all attempts; nil for none.
    # retries:: whether calls that the server refused for now, or whose connection broke, are repeated.
    # max_response_bytes:: the largest response that is accepted; the server is told.
    # priority:: `"interactive"` or `"bulk"`.
    # keepalive:: seconds between pings during a call.
    # keepalive_timeout:: seconds to wait for the answer to a ping.
    # metadata:: sent with every call.
    def initialize(target, timeout: 30, retries: true, priority: nil, metadata: {}, **options)
      metadata = metadata.merge("alignserve-priority" => priority) if priority
      @connection = Connection.new(target, metadata:, **options)
      @timeout = timeout
      @retries = retries
      @closing = Cancellation.new
      @channel = @connection.open
      @stub = @connection.stub(V1::AlignService::Stub, @channel)
    end

    # Cancels all calls, which raise CancelledError, and so do later ones.
    def close
      @closing.cancel
      @channel.close
    end

    # Returns the embedding of one image.
    def embed_image(image, **options)
      embed_images([image], **options).first
    end

    # Returns an Array of embeddings.
    def embed_images(images, timeout: @timeout, cancellation: nil, **options)
      Results.embeddings(call(:embed_image, Requests.embed_images(images, **options), timeout, cancellation))
    end

    # Returns the embedding of one text.
    def embed_text(text, **options)
      embed_texts([text], **options).first
    end

    # Returns TextEmbeddings. `truncate: true` cuts texts that are too long.
    def embed_texts(texts, timeout: @timeout, cancellation: nil, **options)
      Results.text_embeddings(call(:embed_text, Requests.embed_texts(texts, **options), timeout, cancellation))
    end

    # Returns an Array of embeddings, one for each query: an Array of terms. A term is a text, an image, or a Term with a
    # weight.
    def embed_queries(queries, timeout: @timeout, cancellation: nil, **options)
      Results.embeddings(call(:embed_query, Requests.embed_queries(queries, **options), timeout, cancellation))
    end

    # Returns for each image an Array of Classification, best first.
    def classify(images, labels, timeout: @timeout, cancellation: nil, **options)
      Results.classifications(call(:classify, Requests.classify(images, labels, **options), timeout, cancellation))
    end

    # Returns a Comparison for each pair of an image and a text.
    def compare(pairs, timeout: @timeout, cancellation: nil, **options)
      Results.comparisons(call(:compare, Requests.compare(pairs, **options), timeout, cancellation))
    end

    # Returns the model being served and its limits, a V1::GetModelInfoResponse.
    def model_info(timeout: @timeout, cancellation: nil)
      call(:get_model_info, V1::GetModelInfoRequest.new, timeout, cancellation)
    end

    # Returns whether the server is ready to serve.
    def ready?(timeout: @timeout, cancellation: nil)
      health = @connection.stub(Grpc::Health::V1::Health::Stub, @channel)
      request = Grpc::Health::V1::HealthCheckRequest.new(service: SERVICE_NAME)
      call(:check, request, timeout, cancellation, health).status == :SERVING
    end

    # Yields a Result for each of the Items, or returns an Enumerator of them. Items are taken as the window allows, so
    # they may be endless. When a server ends the stream, it is opened again, and items without an answer are sent again;
    # after ten attempts without an answer the last error is raised. What the items raise is raised after the results of
    # those before.
    #
    # window:: at most this many items are unanswered at any time.
    # ordered:: results in the order of the items; otherwise as they become ready.
    # timeout:: seconds for the whole stream.
    # on_reconnect:: called whenever the stream is opened again.
    #
    # To cancel, leave the block by `break`, or use `cancellation:` from another thread.
    def stream(items, window: 32, ordered: false, timeout: nil, on_reconnect: nil, cancellation: nil, &block)
      return to_enum(:stream, items, window:, ordered:, timeout:, on_reconnect:, cancellation:) if block.nil?

      deadline = timeout && (Time.now + timeout)
      open = lambda do |requests|
        @stub.stream_infer(requests, deadline:, metadata: @connection.metadata, return_op: true)
      end
      cancellable(cancellation) do |scope|
        retries = Retries.new(@retries, deadline, scope)
        Stream.new(items, window:, ordered:, deadline:, cancellation: scope, retries:, on_reconnect:, open:).each(&block)
      end
      nil
    end

    # Leaves out the API key.
    def inspect
      "#<#{self.class} #{@connection.target}>"
    end

    private

    def call(method, request, timeout, cancellation, stub = @stub)
      deadline = timeout && (Time.now + timeout)
      cancellable(cancellation) do |scope|
        retries = Retries.new(@retries, deadline, scope)
        begin
          scope.check
          operation = stub.public_send(method, request, deadline:, metadata: @connection.metadata, return_op: true)
          scope.during(operation) { operation.execute }
        rescue GRPC::BadStatus => e
          scope.check
          retries.wait(Statuses.of_call(e))
          retry
        end
      end
    end

    # Yields a Cancellation that `close` cancels, and the caller's Cancellation if there is one.
    def cancellable(cancellation)
      scope = Cancellation.new
      @closing.during(scope) do
        cancellation.nil? ? yield(scope) : cancellation.during(scope) { yield scope }
      end
    end
  end
end
