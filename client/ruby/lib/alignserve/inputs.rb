# frozen_string_literal: true

module Alignserve
  # A decoded image: `data` is a String of `height * width * 3` bytes, red, green and blue of each pixel, row by row.
  Pixels = Struct.new(:height, :width, :data, keyword_init: true)

  # A part of a composed query: an image or a text, and the factor of its embedding. A String is a text here; pass
  # an image as Pathname, IO, Pixels or Image.
  Term = Struct.new(:input, :weight, keyword_init: true)

  # The bytes of an image file, where a String would be taken for a text.
  Image = Struct.new(:content)

  # Turns inputs into messages.
  module Inputs
    module_function

    # An image is a String with the bytes of a file, a Pathname, an IO, an Image or Pixels.
    def image(input)
      case input
      when Pixels
        V1::Image.new(pixels: V1::Pixels.new(height: input.height, width: input.width, data: input.data))
      when Image then V1::Image.new(content: bytes(input.content))
      when String then V1::Image.new(content: bytes(input))
      else
        return V1::Image.new(content: input.binread) if input.respond_to?(:binread)
        return V1::Image.new(content: bytes(input.read)) if input.respond_to?(:read)

        raise ArgumentError, "an image is a String of bytes, a Pathname, an IO or Pixels, not #{input.class}"
      end
    end

    def term(given)
      term = given.is_a?(Term) ? given : Term.new(input: given)
      input = term.input.is_a?(String) ? { text: term.input } : { image: image(term.input) }
      V1::QueryTerm.new(**input, **{ weight: term.weight }.compact)
    end

    def pair(image, text)
      V1::ImageTextPair.new(image: image(image), text:)
    end

    def bytes(content)
      content.encoding == Encoding::BINARY ? content : content.b
    end
    private_class_method :bytes
  end
  private_constant :Inputs
end
