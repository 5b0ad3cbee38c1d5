# frozen_string_literal: true

module Alignserve
  # How a text was tokenized.
  Tokenization = Struct.new(:token_count, :truncated, :unknown_token_count, keyword_init: true)

  # A label and how well it matches an image.
  Classification = Struct.new(:label, :label_index, :score, :similarity, :logit, keyword_init: true)

  # How well a text matches an image.
  Comparison = Struct.new(:similarity, :logit, keyword_init: true)

  # The embeddings of texts, an Enumerable, and how each was tokenized.
  class TextEmbeddings
    include Enumerable

    attr_reader :embeddings, :tokenizations

    def initialize(embeddings, tokenizations)
      @embeddings = embeddings
      @tokenizations = tokenizations
    end

    def each(&)
      embeddings.each(&)
    end

    def [](index)
      embeddings[index]
    end

    def size
      embeddings.size
    end
  end

  # Turns responses into values.
  module Results
    module_function

    def embeddings(response)
      response.embeddings.map { |each| Embeddings.read(each) }
    end

    def text_embeddings(response)
      TextEmbeddings.new(embeddings(response), response.tokenizations.map { |each| value(Tokenization, each) })
    end

    def classifications(response)
      response.results.map { |result| result.classifications.map { |each| value(Classification, each) } }
    end

    def comparisons(response)
      response.comparisons.map { |each| value(Comparison, each) }
    end

    def value(kind, message)
      kind.new(**kind.members.to_h { |name| [name, message[name.to_s]] })
    end
    private_class_method :value
  end
  private_constant :Results
end
