package com.alignserve;

import com.alignserve.v1.CompareResponse;
import java.util.List;
import java.util.stream.IntStream;

/**
 * How well the text of a pair describes its image.
 *
 * @param similarity cosine similarity
 * @param logit similarity divided by the model's temperature
 * @param tokenization how the text was tokenized
 */
public record Comparison(float similarity, float logit, Tokenization tokenization) {
  static List<Comparison> of(CompareResponse response) {
    return IntStream.range(0, response.getComparisonsCount())
        .mapToObj(
            i ->
                new Comparison(
                    response.getComparisons(i).getSimilarity(),
                    response.getComparisons(i).getLogit(),
                    Tokenization.at(response.getTokenizationsList(), i)))
        .toList();
  }
}
