# frozen_string_literal: true

# Speaks the line protocol of tests/conformance/PROTOCOL.md.

require "alignserve"
require "base64"
require "json"
require "pathname"

# Answers requests, one at a time.
class Driver
  include Alignserve

  CLIENT_ERRORS = [ArgumentError, TypeError, SystemCallError, RangeError, Google::Protobuf::TypeError].freeze

  def run
    $stdin.each_line do |line|
      request = JSON.parse(line).compact
      write({ id: request["id"], **answer(request) })
    end
    @client&.close
  end

  private

  def write(message)
    $stdout.puts(JSON.generate(message))
    $stdout.flush
  end

  def answer(request)
    { ok: send(:"op_#{request["op"]}", request) }
  rescue StreamFailed => e
    { error: error(e.cause), results: e.results }
  rescue Error => e
    { error: error(e) }
  rescue *CLIENT_ERRORS => e
    { error: error(Error.new("#{e.class}: #{e.message}", code: "CLIENT")) }
  end

  # A stream that failed as a whole, with the results before.
  class StreamFailed < StandardError
    attr_reader :results

    def initialize(results)
      super()
      @results = results
    end
  end

  def op_hello(_)
    versions = { ruby: RUBY_VERSION, grpc: GRPC::VERSION, "google-protobuf": Gem.loaded_specs["google-protobuf"]&.version.to_s }
    { language: "Ruby", library: "alignserve", versions: }
  end

  def op_connect(request)
    @client&.close
    tls = { ca: request["tls_ca"], certificate: request["tls_certificate"], key: request["tls_key"] }.compact
    options = {
      api_key: request["api_key"], timeout: request["timeout_seconds"], retries: request["retry"],
      max_response_bytes: request["max_response_bytes"], metadata: request["metadata"],
      keepalive: request["keepalive_seconds"], keepalive_timeout: request["keepalive_timeout_seconds"]
    }
    @client = Client.new(request["target"], tls:, plaintext: tls.empty?, **options.compact)
    {}
  end

  def op_close(_)
    @client&.close
    @client = nil
    {}
  end

  def op_embed_image(request)
    images = request["images"].map { |each| image(each) }
    found = called(request) { |options| @client.embed_images(images, **embedding_options(request), **options) }
    { embeddings: found.map { |each| vector(each) } }
  end

  def op_embed_text(request)
    found = called(request) do |options|
      @client.embed_texts(request["texts"], **text_options(request), **options)
    end
    { embeddings: found.map { |each| vector(each) }, tokenizations: found.tokenizations.map(&:to_h) }
  end

  def op_embed_query(request)
    queries = request["queries"].map { |query| query["terms"].map { |each| term(each) } }
    found = called(request) { |options| @client.embed_queries(queries, **text_options(request), **options) }
    { embeddings: found.map { |each| vector(each) } }
  end

  def op_classify(request)
    images = request["images"].map { |each| image(each) }
    found = called(request) do |options|
      @client.classify(images, request["labels"], **classify_options(request), **options)
    end
    results = found.map { |labels| labels.map(&:to_h) }
    return { results: } unless request["summary"]

    { results: results.map { |labels| labels.first(1) }, counts: results.map(&:size) }
  end

  def op_compare(request)
    pairs = request["pairs"].map { |pair| [image(pair["image"]), pair["text"]] }
    truncate = request["truncate"] || false
    { comparisons: called(request) { |options| @client.compare(pairs, truncate:, **options) }.map(&:to_h) }
  end

  def op_model_info(request)
    info = called(request) { |options| @client.model_info(**options) }
    info.to_h
  end

  def op_health(request)
    { ready: called(request) { |options| @client.ready?(**options) } }
  end

  def op_stream(request)
    results = []
    reconnects = 0
    kinds = request["items"].to_h { |each| [each["id"], each["kind"]] }
    begin
      @client.stream(
        request["items"].map { |each| item(each) }, window: request["window"], ordered: request["ordered"] || false,
        timeout: request["timeout_seconds"], on_reconnect: -> { reconnects += 1 }
      ) do |found|
        results << result(found, kinds[found.id])
        every = request["progress_every"]
        write({ id: request["id"], progress: results.size }) if every && (results.size % every).zero?
        break if results.size == request["cancel_after_items"]
      end
    rescue Error
      raise StreamFailed.new(results)
    end
    { results:, reconnects: }
  end

  def op_repeat(request)
    left = Queue.new
    request["calls"].times { left << true }
    left.close
    failed = Hash.new(0)
    callers = Array.new(request["concurrency"]) do
      Thread.new do
        while left.pop
          error = answer(request["request"])[:error]
          failed[[error[:code], error[:reason]]] += 1 if error
        end
      end
    end
    callers.each(&:join)
    errors = failed.map { |(code, reason), count| { code:, reason:, count: } }
    { answered: request["calls"] - failed.values.sum, errors: }
  end

  def called(request)
    cancellation = Cancellation.new
    delay = request["cancel_after_ms"]
    timer = delay && Thread.new { sleep(delay / 1000.0) && cancellation.cancel }
    yield({ timeout: request["timeout_seconds"], cancellation: }.compact)
  ensure
    timer&.kill
  end

  def image(given)
    return Pathname(given["path"]) if given["path"]
    return Image.new(Base64.decode64(given["base64"])) if given["base64"]

    pixels = given["pixels"]
    Pixels.new(height: pixels["height"], width: pixels["width"], data: Base64.decode64(pixels["data"]))
  end

  def term(given)
    Term.new(input: given["text"] || image(given["image"]), weight: given["weight"])
  end

  def embedding_options(given)
    { format: given["format"]&.to_sym, normalize: given["normalize"] }.compact
  end

  def text_options(given)
    { truncate: given["truncate"], **embedding_options(given) }.compact
  end

  def classify_options(given)
    { prompt_templates: given["prompt_templates"], top_k: given["top_k"] }.compact
  end

  def item(given)
    id = given["id"]
    case given["kind"]
    when "image" then Items::Image.new(image: image(given["image"]), id:, **embedding_options(given))
    when "text" then Items::Text.new(text: given["text"], id:, **text_options(given))
    when "classify"
      Items::Classify.new(image: image(given["image"]), labels: given["labels"], id:, **classify_options(given))
    when "compare"
      Items::Compare.new(image: image(given["image"]), text: given["text"], id:, truncate: given["truncate"])
    else Items::Query.new(terms: given["terms"].map { |each| term(each) }, id:, **text_options(given))
    end
  end

  def result(found, kind)
    return { id: found.id, error: error(found.error) } if found.error

    case kind
    when "classify" then { id: found.id, classifications: found.value.map(&:to_h) }
    when "compare" then { id: found.id, **found.value.to_h }
    else { id: found.id, embedding: vector(found.value) }
    end
  end

  def vector(embedding)
    case embedding
    when Int8Embedding then embedding.to_h
    when String then Base64.strict_encode64(embedding)
    else embedding
    end
  end

  def error(error)
    {
      code: error.code, reason: error.reason, domain: error.domain, message: error.message,
      fields: error.violations.map(&:to_h), retry_delay_seconds: error.retry_delay, metadata: error.metadata
    }
  end
end

Driver.new.run
