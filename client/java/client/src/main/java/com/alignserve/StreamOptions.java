package com.alignserve;

import java.time.Duration;

/**
 * Options for streams.
 *
 * @param window maximum number of items that have been read but whose results have not been taken;
 *     bounds the memory of a stream
 * @param ordered whether results come in the order of the items; a slow item then delays those
 *     behind it
 * @param timeout deadline of the whole stream; {@code null} for none
 */
public record StreamOptions(int window, boolean ordered, Duration timeout) {
  /** A server reads 32 items of a stream ahead by default. */
  public static final StreamOptions DEFAULT = new StreamOptions(32, false, null);

  public StreamOptions {
    if (window < 1) {
      throw new IllegalArgumentException("window is " + window + ", and must be at least 1");
    }
  }

  public StreamOptions withWindow(int window) {
    return new StreamOptions(window, ordered, timeout);
  }

  public StreamOptions withOrdered(boolean ordered) {
    return new StreamOptions(window, ordered, timeout);
  }

  public StreamOptions withTimeout(Duration timeout) {
    return new StreamOptions(window, ordered, timeout);
  }
}
