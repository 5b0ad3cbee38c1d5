# frozen_string_literal: true

require "minitest/autorun"
require "alignserve"

class EmbeddingsTest < Minitest::Test
  Message = Alignserve::V1::Embedding
  include Alignserve

  def test_packed_floats_are_read_wherever_they_lie_in_the_message
    message = Message.decode(Message.encode(Message.new(packed_float32: [0.5, -2.0, 1e-3].pack("e*"))))

    assert_equal [0.5, -2.0, 1e-3].map { |each| [each].pack("e").unpack1("e") }, Embeddings.read(message)
  end

  def test_half_floats_are_read_at_their_limits
    packed = [0x3c00, 0xc000, 0x0001, 0x7bff, 0x8000, 0x7c00].pack("v*")

    assert_equal [1.0, -2.0, 2.0**-24, 65_504.0, -0.0, Float::INFINITY], Embeddings.read(Message.new(packed_float16: packed))
  end

  def test_int8_has_its_scale
    found = Embeddings.read(Message.new(packed_int8: [127, -127, 0].pack("c*"), int8_scale: 0.5))

    assert_equal [[127, -127, 0], 0.5], found.to_a
  end

  def test_an_all_zero_int8_embedding_is_read
    assert_equal [0, 0], Embeddings.read(Message.new(packed_int8: "\0\0".b)).values
  end

  def test_an_unknown_format_is_refused_by_name
    error = assert_raises(ArgumentError) { Embeddings.options(:float8, true) }

    assert_includes error.message, "float8"
  end

  def test_cosine_ignores_lengths
    assert_in_delta 1.0, Embeddings.cosine([1.0, 2.0], [2.0, 4.0])
  end
end
