package com.alignserve;

/** The embedding of a text, and how it was tokenized. */
public record TextEmbedding(Embedding embedding, Tokenization tokenization) {}
