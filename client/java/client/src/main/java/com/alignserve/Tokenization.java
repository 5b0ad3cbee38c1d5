package com.alignserve;

import java.util.List;

/**
 * How the server tokenized a text.
 *
 * @param tokenCount number of tokens, including special ones
 * @param truncated whether the text was too long and was truncated
 * @param unknownTokenCount number of tokens that replace words missing from the vocabulary; they
 *     are all the same to the model
 */
public record Tokenization(int tokenCount, boolean truncated, int unknownTokenCount) {
  /** The tokenization at a position; servers in tests may leave them out. */
  static Tokenization at(List<com.alignserve.v1.Tokenization> messages, int position) {
    if (position >= messages.size()) {
      return new Tokenization(0, false, 0);
    }
    com.alignserve.v1.Tokenization message = messages.get(position);
    return new Tokenization(
        message.getTokenCount(), message.getTruncated(), message.getUnknownTokenCount());
  }
}
