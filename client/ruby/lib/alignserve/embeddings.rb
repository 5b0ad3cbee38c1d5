# frozen_string_literal: true

module Alignserve
  # An embedding as signed bytes; an element is about its byte times `scale`.
  Int8Embedding = Struct.new(:values, :scale, keyword_init: true)

  # Reads and compares embeddings.
  module Embeddings
    # The formats by name; `:binary` embeddings are Strings, as `packed_binary` has them.
    FORMATS = {
      float32: :EMBEDDING_FORMAT_PACKED_FLOAT32,
      float16: :EMBEDDING_FORMAT_PACKED_FLOAT16,
      int8: :EMBEDDING_FORMAT_PACKED_INT8,
      binary: :EMBEDDING_FORMAT_PACKED_BINARY,
      float_list: :EMBEDDING_FORMAT_FLOAT_LIST
    }.freeze

    module_function

    # Returns the cosine similarity of two embeddings, Arrays of numbers.
    def cosine(one, other)
      dot(one, other) / Math.sqrt(dot(one, one) * dot(other, other))
    end

    # Returns a message's vector: an Array of Floats, an Int8Embedding, or a String of bits.
    def read(embedding)
      return embedding.packed_float32.unpack("e*") unless embedding.packed_float32.empty?
      return embedding.values.to_a unless embedding.values.empty?
      return half_floats(embedding.packed_float16) unless embedding.packed_float16.empty?
      return embedding.packed_binary unless embedding.packed_binary.empty?

      Int8Embedding.new(values: embedding.packed_int8.unpack("c*"), scale: embedding.int8_scale)
    end

    # Returns the message EmbeddingOptions.
    def options(format, normalize)
      name = FORMATS.fetch(format) { raise ArgumentError, "format is one of #{FORMATS.keys.join(", ")}, not #{format}" }
      V1::EmbeddingOptions.new(format: name, skip_normalization: !normalize)
    end

    def dot(one, other)
      one.each_with_index.sum(0.0) { |value, index| value * other[index] }
    end

    # Ruby's unpack has no half-precision floats.
    def half_floats(packed)
      packed.unpack("v*").map do |bits|
        exponent = (bits >> 10) & 0x1f
        fraction = bits & 0x3ff
        size = exponent.zero? ? Math.ldexp(fraction, -24) : Math.ldexp(1024 + fraction, exponent - 25)
        size = fraction.zero? ? Float::INFINITY : Float::NAN if exponent == 0x1f
        bits[15].zero? ? size : -size
      end
    end
    private_class_method :dot, :half_floats
  end
end
