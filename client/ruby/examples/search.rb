# frozen_string_literal: true

# Finds the pictures that fit a text best, then says what each shows.
#
#   ruby -I lib examples/search.rb localhost:50051 "a cat" photos/*.jpg
#
# ALIGNSERVE_ROOT_CERTIFICATES names a PEM file and turns TLS on; ALIGNSERVE_API_KEY is sent if it is set.

require "alignserve"
require "pathname"

target, text, *paths = ARGV
abort "usage: search.rb HOST:PORT TEXT IMAGE…" if paths.empty?

security = ENV["ALIGNSERVE_ROOT_CERTIFICATES"] ? { tls: { ca: ENV["ALIGNSERVE_ROOT_CERTIFICATES"] } } : { plaintext: true }
client = Alignserve::Client.new(target, api_key: ENV.fetch("ALIGNSERVE_API_KEY", nil), **security)
query = client.embed_text(text)

# A stream: one unreadable picture fails alone, and any number of pictures fits.
items = paths.map { |path| Alignserve::Items::Image.new(image: Pathname(path), id: path) }
found = client.stream(items, window: 16).filter_map do |result|
  next warn("#{result.id}: #{result.error.message}") if result.error

  [Alignserve::Embeddings.cosine(query, result.value), result.id]
end

found.sort.reverse.first(3).each do |cosine, path|
  best = client.classify([Pathname(path)], %w[cat dog car food building], prompt_templates: ["a photo of a {label}"]).first.first
  puts format("%.4f  %s  (%s, %.0f %%)", cosine, path, best.label, best.score * 100)
end
