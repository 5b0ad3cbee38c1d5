# frozen_string_literal: true

require_relative "lib/alignserve/version"

Gem::Specification.new do |spec|
  spec.name = "alignserve"
  spec.version = Alignserve::VERSION
  spec.summary = "Client of alignserve: image and text embeddings and zero-shot classification over gRPC"
  spec.authors = ["The alignserve authors"]
  spec.license = "Apache-2.0"
  spec.homepage = "https://github.com/alignserve/alignserve"
  spec.required_ruby_version = ">= 3.1"
  # `rake generate` writes lib/alignserve/v1: a gem contains it, the repository does not.
  spec.files = Dir["lib/**/*.rb", "README.md"]
  spec.add_dependency "googleapis-common-protos-types", ">= 1.4"
  spec.add_dependency "grpc", ">= 1.51"
end
