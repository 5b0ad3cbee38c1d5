package com.alignserve;

import java.util.List;

/**
 * Options for classification.
 *
 * @param promptTemplates prompts for each label, such as {@code a photo of a {label}}; empty for
 *     the label itself
 * @param topK maximum number of classifications of an image; 0 for all. Scores are still over all
 *     labels
 */
public record ClassifyOptions(List<String> promptTemplates, int topK) {
  public static final ClassifyOptions DEFAULT = new ClassifyOptions(List.of(), 0);

  public ClassifyOptions {
    promptTemplates = List.copyOf(promptTemplates);
  }

  public ClassifyOptions withPromptTemplates(String... templates) {
    return new ClassifyOptions(List.of(templates), topK);
  }

  public ClassifyOptions withTopK(int topK) {
    return new ClassifyOptions(promptTemplates, topK);
  }
}
