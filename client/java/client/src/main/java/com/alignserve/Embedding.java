package com.alignserve;

import com.google.protobuf.ByteString;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.FloatBuffer;
import java.nio.ShortBuffer;
import java.util.List;

/**
 * The embedding of an image, a text or a query. Embeddings are comparable only within one
 * fingerprint of the model.
 */
public final class Embedding {
  private final float[] vector;
  private final byte[] int8;
  private final float int8Scale;
  private final byte[] binary;

  private Embedding(float[] vector, byte[] int8, float int8Scale, byte[] binary) {
    this.vector = vector;
    this.int8 = int8;
    this.int8Scale = int8Scale;
    this.binary = binary;
  }

  /**
   * The numbers, decoded from any format but {@link Format#BINARY}. They have length 1 unless
   * normalization is off. The array is not a copy.
   */
  public float[] vector() {
    if (vector == null) {
      throw new IllegalStateException("a binary embedding has signs, not numbers: use binary()");
    }
    return vector;
  }

  /**
   * With {@link Format#INT8}, the elements divided by {@link #int8Scale()}; otherwise {@code null}.
   */
  public byte[] int8() {
    return int8;
  }

  /** Multiplies {@link #int8()} to restore the elements; 0 with other formats. */
  public float int8Scale() {
    return int8Scale;
  }

  /**
   * With {@link Format#BINARY}, a bit for each element, the first one highest; otherwise {@code
   * null}.
   */
  public byte[] binary() {
    return binary;
  }

  /** Cosine similarity, from -1 to 1. */
  public double cosine(Embedding other) {
    return dot(vector(), other.vector())
        / Math.sqrt(dot(vector, vector) * dot(other.vector, other.vector));
  }

  /**
   * Number of bits that differ between two binary embeddings: for embeddings at an angle a, about a
   * / pi of all bits.
   */
  public int hamming(Embedding other) {
    int count = 0;
    for (int i = 0; i < binary.length; i++) {
      count += Integer.bitCount((binary[i] ^ other.binary[i]) & 0xff);
    }
    return count;
  }

  static Embedding of(com.alignserve.v1.Embedding message) {
    if (!message.getPackedFloat32().isEmpty()) {
      return ofVector(float32(message.getPackedFloat32()));
    }
    if (!message.getPackedFloat16().isEmpty()) {
      return ofVector(float16(message.getPackedFloat16()));
    }
    if (!message.getPackedInt8().isEmpty()) {
      return ofInt8(message.getPackedInt8().toByteArray(), message.getInt8Scale());
    }
    if (!message.getPackedBinary().isEmpty()) {
      return new Embedding(null, null, 0, message.getPackedBinary().toByteArray());
    }
    return ofVector(list(message.getValuesList()));
  }

  static List<Embedding> of(List<com.alignserve.v1.Embedding> messages) {
    return messages.stream().map(Embedding::of).toList();
  }

  private static Embedding ofVector(float[] vector) {
    return new Embedding(vector, null, 0, null);
  }

  private static Embedding ofInt8(byte[] int8, float scale) {
    float[] vector = new float[int8.length];
    for (int i = 0; i < vector.length; i++) {
      vector[i] = int8[i] * scale;
    }
    return new Embedding(vector, int8, scale, null);
  }

  private static float[] list(List<Float> values) {
    float[] vector = new float[values.size()];
    for (int i = 0; i < vector.length; i++) {
      vector[i] = values.get(i);
    }
    return vector;
  }

  private static float[] float32(ByteString packed) {
    FloatBuffer floats = littleEndian(packed).asFloatBuffer();
    float[] vector = new float[floats.remaining()];
    floats.get(vector);
    return vector;
  }

  private static float[] float16(ByteString packed) {
    ShortBuffer halves = littleEndian(packed).asShortBuffer();
    float[] vector = new float[halves.remaining()];
    for (int i = 0; i < vector.length; i++) {
      vector[i] = float16(halves.get(i));
    }
    return vector;
  }

  private static ByteBuffer littleEndian(ByteString packed) {
    return packed
        .asReadOnlyByteBuffer()
        .order(ByteOrder.LITTLE_ENDIAN); // a buffer starts big-endian
  }

  /**
   * Converts an IEEE 754 half, whose exponent is 5 bits with a bias of 15. Java has this from
   * version 20.
   */
  private static float float16(short half) {
    int exponent = half >> 10 & 0x1f;
    int fraction = half & 0x3ff;
    float value;
    if (exponent == 0) { // zero and subnormal numbers
      value = Math.scalb((float) fraction, -24);
    } else if (exponent == 0x1f) {
      value = fraction == 0 ? Float.POSITIVE_INFINITY : Float.NaN;
    } else {
      value = Math.scalb((float) (fraction + 1024), exponent - 25);
    }
    return half < 0 ? -value : value;
  }

  private static double dot(float[] one, float[] other) {
    double sum = 0;
    for (int i = 0; i < one.length; i++) {
      sum += (double) one[i] * other[i];
    }
    return sum;
  }
}
