package com.alignserve;

import com.alignserve.v1.Pixels;
import com.google.protobuf.ByteString;
import com.google.protobuf.UnsafeByteOperations;
import java.awt.image.BufferedImage;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;

/** An image to send. */
public final class Image {
  final com.alignserve.v1.Image message;

  private Image(com.alignserve.v1.Image.Builder message) {
    this.message = message.build();
  }

  /**
   * Reads an image file, which is sent unchanged: JPEG, PNG or another format that the server
   * accepts.
   */
  public static Image ofFile(Path path) throws IOException {
    return ofBytes(Files.readAllBytes(path));
  }

  /** An image file in memory. The bytes are not copied; do not change them during the call. */
  public static Image ofBytes(byte[] content) {
    return new Image(
        com.alignserve.v1.Image.newBuilder().setContent(UnsafeByteOperations.unsafeWrap(content)));
  }

  /**
   * A decoded image, sent as 8-bit RGB. Alpha is dropped, as the server drops it from files. If you
   * have a file, send the file: it is smaller, and JPEG decoders differ slightly.
   */
  public static Image of(BufferedImage decoded) {
    int width = decoded.getWidth();
    int height = decoded.getHeight();
    byte[] rgb = new byte[Math.multiplyExact(Math.multiplyExact(width, height), 3)];
    int[] row = new int[width];
    int next = 0;
    for (int y = 0; y < height; y++) {
      decoded.getRGB(0, y, width, 1, row, 0, width);
      for (int pixel : row) {
        rgb[next++] = (byte) (pixel >> 16);
        rgb[next++] = (byte) (pixel >> 8);
        rgb[next++] = (byte) pixel;
      }
    }
    return ofPixels(width, height, rgb);
  }

  /**
   * Pixels in memory, of a camera or a video.
   *
   * @param rgb 8-bit RGB, row by row from the top left; not copied
   */
  public static Image ofPixels(int width, int height, byte[] rgb) {
    ByteString data = UnsafeByteOperations.unsafeWrap(rgb);
    Pixels.Builder pixels = Pixels.newBuilder().setWidth(width).setHeight(height).setData(data);
    return new Image(com.alignserve.v1.Image.newBuilder().setPixels(pixels));
  }
}
