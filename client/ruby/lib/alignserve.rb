# frozen_string_literal: true

require "stringio"

require "grpc"
require "google/protobuf/well_known_types" # Any#unpack
require "google/rpc/error_details_pb"
require "grpc/health/v1/health_services_pb"
require "alignserve/v1/align_service_services_pb"

require "alignserve/version"
require "alignserve/errors"
require "alignserve/cancellation"
require "alignserve/inputs"
require "alignserve/embeddings"
require "alignserve/requests"
require "alignserve/results"
require "alignserve/connection"
require "alignserve/retries"
require "alignserve/stream"
require "alignserve/client"

# Client of alignserve: image and text embeddings and zero-shot classification over gRPC.
#
#   client = Alignserve::Client.new("localhost:50051", plaintext: true)
#   cat = client.embed_image(Pathname("cat.jpg"))
#   client.classify([Pathname("cat.jpg")], %w[cat dog]).first.first.label
module Alignserve
end
