package com.alignserve;

import io.grpc.CallOptions;
import io.grpc.Channel;
import io.grpc.ClientCall;
import io.grpc.ClientInterceptor;
import io.grpc.ForwardingClientCall.SimpleForwardingClientCall;
import io.grpc.Metadata;
import io.grpc.MethodDescriptor;
import java.util.Map;

/** Adds the client's metadata to each call, except for keys that the call has already. */
final class Headers implements ClientInterceptor {
  static final CallOptions.Key<Priority> PRIORITY = CallOptions.Key.create("alignserve-priority");

  private static final Metadata.Key<String> PRIORITY_KEY = key("alignserve-priority");

  private final Map<String, String> values;

  Headers(Map<String, String> values) {
    this.values = Map.copyOf(values);
  }

  static Metadata.Key<String> key(String name) {
    return Metadata.Key.of(name, Metadata.ASCII_STRING_MARSHALLER);
  }

  @Override
  public <Q, A> ClientCall<Q, A> interceptCall(
      MethodDescriptor<Q, A> method, CallOptions options, Channel next) {
    return new SimpleForwardingClientCall<>(next.newCall(method, options)) {
      @Override
      public void start(Listener<A> listener, Metadata headers) {
        if (options.getOption(PRIORITY) != null) {
          headers.put(PRIORITY_KEY, options.getOption(PRIORITY).value);
        }
        values.forEach(
            (name, value) -> {
              if (!headers.containsKey(key(name))) {
                headers.put(key(name), value);
              }
            });
        super.start(listener, headers);
      }
    };
  }
}
