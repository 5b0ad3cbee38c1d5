# frozen_string_literal: true

module Alignserve
  # Builds request messages, for unary calls and for items of a stream alike.
  module Requests
    module_function

    def embed_images(images, format: :float32, normalize: true)
      V1::EmbedImageRequest.new(
        images: images.map { |each| Inputs.image(each) }, embedding_options: Embeddings.options(format, normalize)
      )
    end

    def embed_texts(texts, format: :float32, normalize: true, truncate: false)
      V1::EmbedTextRequest.new(texts:, truncate:, embedding_options: Embeddings.options(format, normalize))
    end

    def embed_queries(queries, format: :float32, normalize: true, truncate: false)
      composed = queries.map { |terms| V1::ComposedQuery.new(terms: terms.map { |each| Inputs.term(each) }) }
      V1::EmbedQueryRequest.new(
        queries: composed, truncate:, embedding_options: Embeddings.options(format, normalize)
      )
    end

    def classify(images, labels, prompt_templates: [], top_k: 0)
      V1::ClassifyRequest.new(
        images: images.map { |each| Inputs.image(each) }, labels:, prompt_templates:, top_k:
      )
    end

    def compare(pairs, truncate: false)
      V1::CompareRequest.new(pairs: pairs.map { |image, text| Inputs.pair(image, text) }, truncate:)
    end
  end
  private_constant :Requests
end
