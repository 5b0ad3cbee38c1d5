package com.alignserve;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;

import com.google.protobuf.ByteString;
import java.awt.image.BufferedImage;
import org.junit.jupiter.api.Test;

class EmbeddingTest {
  private static com.alignserve.v1.Embedding.Builder message() {
    return com.alignserve.v1.Embedding.newBuilder();
  }

  private static ByteString bytes(int... values) {
    byte[] bytes = new byte[values.length];
    for (int i = 0; i < bytes.length; i++) {
      bytes[i] = (byte) values[i];
    }
    return ByteString.copyFrom(bytes);
  }

  @Test
  void listsAreRead() {
    assertArrayEquals(
        new float[] {1, -2}, Embedding.of(message().addValues(1).addValues(-2).build()).vector());
  }

  @Test
  void packedFloatsAreReadAtAnyOffset() {
    ByteString unaligned = bytes(9, 0, 0, 128, 63, 0, 0, 0, 192).substring(1);

    assertArrayEquals(
        new float[] {1, -2}, Embedding.of(message().setPackedFloat32(unaligned).build()).vector());
  }

  @Test
  void halvesAreReadExactly() {
    ByteString halves = bytes(0, 0x3c, 0, 0xc0, 1, 0, 0xff, 0x7b, 0, 0xfc);

    assertArrayEquals(
        new float[] {1, -2, 1f / (1 << 24), 65504, Float.NEGATIVE_INFINITY},
        Embedding.of(message().setPackedFloat16(halves).build()).vector());
  }

  @Test
  void bytesKeepTheirSignAndScale() {
    Embedding found =
        Embedding.of(message().setPackedInt8(bytes(127, 0x81, 0)).setInt8Scale(0.5f).build());

    assertArrayEquals(new byte[] {127, -127, 0}, found.int8());
    assertArrayEquals(new float[] {63.5f, -63.5f, 0}, found.vector());
  }

  @Test
  void signsAreHandedOverAndCompared() {
    Embedding one = Embedding.of(message().setPackedBinary(bytes(0xff, 1)).build());
    Embedding other = Embedding.of(message().setPackedBinary(bytes(0xf0, 1)).build());

    assertEquals(4, one.hamming(other));
    assertThrows(IllegalStateException.class, one::vector);
  }

  @Test
  void cosineIgnoresLengths() {
    Embedding one = Embedding.of(message().addValues(3).addValues(0).build());
    Embedding other = Embedding.of(message().addValues(2).addValues(2).build());

    assertEquals(Math.sqrt(0.5), one.cosine(other), 1e-9);
  }

  @Test
  void decodedImagesAreSentAsRedGreenAndBlue() {
    for (int type :
        new int[] {
          BufferedImage.TYPE_INT_RGB, BufferedImage.TYPE_3BYTE_BGR, BufferedImage.TYPE_INT_ARGB
        }) {
      BufferedImage larger = new BufferedImage(5, 5, type);
      BufferedImage decoded = larger.getSubimage(1, 1, 2, 1);
      decoded.setRGB(0, 0, 0xffc80a1e);
      decoded.setRGB(1, 0, type == BufferedImage.TYPE_INT_ARGB ? 0x00010203 : 0xff010203);

      var pixels = Image.of(decoded).message.getPixels();

      assertEquals(2, pixels.getWidth());
      assertEquals(1, pixels.getHeight());
      assertEquals(bytes(200, 10, 30, 1, 2, 3), pixels.getData());
    }
  }
}
