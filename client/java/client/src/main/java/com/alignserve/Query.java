package com.alignserve;

import com.alignserve.v1.ComposedQuery;
import com.alignserve.v1.QueryTerm;
import java.util.List;

/**
 * A composed query: a weighted sum of images and texts, such as a photo of a bag plus the text
 * {@code red}. Use its embedding to search images or texts.
 */
public record Query(List<Term> terms) {
  public Query {
    terms = List.copyOf(terms);
  }

  public static Query of(Term... terms) {
    return new Query(List.of(terms));
  }

  ComposedQuery message() {
    ComposedQuery.Builder message = ComposedQuery.newBuilder();
    terms.forEach(term -> message.addTerms(term.message));
    return message.build();
  }

  /** A part of a query. */
  public static final class Term {
    private final QueryTerm message;

    private Term(QueryTerm message) {
      this.message = message;
    }

    public static Term of(Image image) {
      return new Term(QueryTerm.newBuilder().setImage(image.message).build());
    }

    public static Term of(String text) {
      return new Term(QueryTerm.newBuilder().setText(text).build());
    }

    /** Returns the term with a weight other than 1. Below 0, the query moves away from the term. */
    public Term weighted(float weight) {
      return new Term(message.toBuilder().setWeight(weight).build());
    }
  }
}
