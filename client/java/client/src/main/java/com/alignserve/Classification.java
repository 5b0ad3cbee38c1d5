package com.alignserve;

import com.alignserve.v1.ClassificationResult;
import java.util.List;

/**
 * A label and how well it fits an image.
 *
 * @param labelIndex position of the label in the call
 * @param score probability among the labels of the call; one label always scores best, even if none
 *     fits
 * @param similarity cosine similarity; use a threshold on it to decide whether a label fits at all
 * @param logit similarity divided by the model's temperature
 */
public record Classification(
    String label, int labelIndex, float score, float similarity, float logit) {
  static List<Classification> of(ClassificationResult result) {
    return result.getClassificationsList().stream().map(Classification::of).toList();
  }

  private static Classification of(com.alignserve.v1.Classification message) {
    return new Classification(
        message.getLabel(),
        message.getLabelIndex(),
        message.getScore(),
        message.getSimilarity(),
        message.getLogit());
  }
}
