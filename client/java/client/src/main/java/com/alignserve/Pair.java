package com.alignserve;

/** An image and a text that may describe it. */
public record Pair(Image image, String text) {}
