# frozen_string_literal: true

require "minitest/autorun"
require "alignserve"
require "fake_server"

class ClientTest < Minitest::Test
  include Alignserve

  def setup
    @server = FakeServer.new
    @client = Client.new(@server.target, plaintext: true, api_key: "as_secret")
  end

  def teardown
    @client.close
    @server.stop
  end

  def test_the_same_text_has_the_same_embedding
    assert_equal @client.embed_text("a cat"), @client.embed_texts(["a dog", "a cat"])[1]
  end

  def test_a_refused_text_is_named
    error = assert_raises(InvalidArgumentError) { @client.embed_texts(["a cat", " "]) }

    assert_equal ["TEXT_EMPTY", "texts[1]"], [error.reason, error.violations.first.field]
  end

  def test_a_full_queue_is_waited_for
    @server.call(:fail_next, code: "RESOURCE_EXHAUSTED", reason: "QUEUE_FULL", retry_delay_seconds: 0.01)

    assert_equal 64, @client.embed_text("a cat").size
  end

  def test_a_delay_beyond_the_deadline_is_not_waited_for
    @server.call(:fail_next, code: "UNAVAILABLE", reason: "MODEL_LOADING", retry_delay_seconds: 60)

    assert_raises(UnavailableError) { @client.embed_text("a cat", timeout: 30) }
  end

  def test_a_stream_that_breaks_loses_nothing
    @server.call(:break_stream, after: 3, code: "UNAVAILABLE", reason: "SHUTTING_DOWN", retry_delay_seconds: 0.01)
    items = Array.new(10) { |number| Items::Text.new(text: "text #{number}", id: number) }

    assert_equal (0..9).to_a, @client.stream(items, window: 4).map(&:id).sort
  end

  def test_an_item_that_is_unavailable_is_sent_again
    @server.call(:fail_input, content: "a cat", code: "UNAVAILABLE", reason: "MODEL_LOADING", times: 1)

    assert_nil @client.stream([Items::Text.new(text: "a cat")]).first.error
  end

  def test_a_stream_waits_for_its_first_item
    items = Enumerator.new { |all| @server.call(:received).empty? && (all << Items::Text.new(text: "a cat")) }

    assert_equal 1, @client.stream(items).count
  end

  def test_what_the_block_raises_is_not_repeated
    items = Array.new(3) { |number| Items::Text.new(text: "text #{number}") }

    assert_raises(GRPC::Unavailable) { @client.stream(items) { raise GRPC::Unavailable, "of another service" } }
  end

  def test_a_call_that_waits_for_its_repeat_can_be_cancelled
    @server.call(:fail_next, code: "RESOURCE_EXHAUSTED", reason: "QUEUE_FULL", retry_delay_seconds: 3600)
    cancellation = Cancellation.new
    caller = Thread.new { @client.embed_text("a cat", timeout: nil, cancellation:) }
    caller.report_on_exception = false
    @server.call(:wait_for_received, count: 1)
    cancellation.cancel

    assert_raises(CancelledError) { caller.value }
  end

  def test_a_stream_that_waits_for_items_can_be_cancelled
    cancellation = Cancellation.new
    items = Enumerator.new { |all| (all << Items::Text.new(text: "a cat")) && sleep }

    assert_raises(CancelledError) { @client.stream(items, cancellation:) { cancellation.cancel } }
  end

  def test_a_key_with_a_space_is_refused_and_not_shown
    error = assert_raises(ArgumentError) { Client.new(@server.target, api_key: "as_secret key") }

    refute_includes error.message, "as_secret"
  end

  def test_closing_ends_calls
    @server.call(:hold)
    caller = Thread.new { @client.embed_text("a cat", timeout: nil) }
    caller.report_on_exception = false
    @server.call(:wait_for_received, count: 1)
    @client.close

    assert_raises(CancelledError) { caller.value }
    assert_raises(CancelledError) { @client.embed_text("a cat") }
  end

  def test_a_client_closes_at_the_end_of_its_block
    assert_equal 64, Client.open(@server.target, plaintext: true) { |client| client.embed_text("a cat").size }
  end

  def test_an_endless_stream_can_be_left
    items = (1..).lazy.map { |number| Items::Text.new(text: "text #{number}") }

    assert_equal 5, @client.stream(items, window: 4).first(5).size
  end

  def test_what_the_items_raise_reaches_the_caller
    items = Enumerator.new do |all|
      all << Items::Text.new(text: "a cat")
      raise KeyError, "no more"
    end

    assert_raises(KeyError) { @client.stream(items).to_a }
  end

  def test_the_key_is_not_shown
    refute_includes @client.inspect, "as_secret"
  end
end
