# frozen_string_literal: true

require "json"

module Alignserve
  # The options of a channel, and the metadata of every call.
  class Connection
    MAX_RESPONSE_BYTES = 16 << 20
    RETRY_BUFFER_BYTES = 64 << 20
    SERVICE_CONFIG = {
      # Spreads calls over all servers that a name resolves to. The client repeats calls by itself, not by gRPC, which
      # reads neither RetryInfo nor who cancelled.
      "loadBalancingConfig" => [{ "round_robin" => {} }]
    }.freeze
    private_constant :MAX_RESPONSE_BYTES, :RETRY_BUFFER_BYTES, :SERVICE_CONFIG

    attr_reader :target, :metadata

    def initialize(target, tls: {}, plaintext: false, api_key: nil, metadata: {},
                   max_response_bytes: MAX_RESPONSE_BYTES, keepalive: 60, keepalive_timeout: 10)
      raise ArgumentError, "tls and plaintext exclude each other" if plaintext && !tls.empty?

      @target = target
      @credentials = plaintext ? :this_channel_is_insecure : credentials(**tls)
      @metadata = metadata.transform_keys(&:to_s).merge("alignserve-max-response-bytes" => max_response_bytes.to_s)
      @metadata["authorization"] = "Bearer #{valid_key(api_key)}" if api_key
      @channel_options = channel_options(max_response_bytes, keepalive, keepalive_timeout)
    end

    # Returns a channel. Whoever closes it does so once.
    def open
      GRPC::ClientStub.setup_channel(nil, @target, @credentials, @channel_options)
    end

    # Returns a stub of a service on a channel.
    def stub(service, channel)
      service.new(@target, @credentials, channel_override: channel)
    end

    # Leaves out the API key.
    def inspect
      "#<#{self.class} #{@target}>"
    end

    private

    def valid_key(key)
      key = key.strip # files end with a line break
      return key if key.match?(/\A[!-~]+\z/)

      raise ArgumentError, "the API key is empty, or has characters that no key has"
    end

    def credentials(ca: nil, certificate: nil, key: nil)
      root, certificate, key = [ca, certificate, key].map { |path| path && File.binread(path) }
      # gRPC takes the key before the certificate.
      certificate ? GRPC::Core::ChannelCredentials.new(root, key, certificate) : GRPC::Core::ChannelCredentials.new(root)
    end

    def channel_options(max_response_bytes, keepalive, keepalive_timeout)
      {
        "grpc.service_config" => JSON.generate(SERVICE_CONFIG),
        "grpc.primary_user_agent" => "alignserve-ruby/#{VERSION}",
        "grpc.max_receive_message_length" => max_response_bytes,
        # gRPC repeats a call that the server never saw, while it still holds the request: 256 KiB by default.
        "grpc.per_rpc_retry_buffer_size" => RETRY_BUFFER_BYTES,
        "grpc.keepalive_time_ms" => (keepalive * 1000).to_i,
        "grpc.keepalive_timeout_ms" => (keepalive_timeout * 1000).to_i,
        # Otherwise gRPC core stops after two pings while a long call is quiet.
        "grpc.http2.max_pings_without_data" => 0,
        "grpc.initial_reconnect_backoff_ms" => 100,
        "grpc.max_reconnect_backoff_ms" => 5_000
      }
    end
  end
  private_constant :Connection
end
