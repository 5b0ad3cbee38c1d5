package com.alignserve.example;

import com.alignserve.AlignClient;
import com.alignserve.Classification;
import com.alignserve.ClassifyOptions;
import com.alignserve.Embedding;
import com.alignserve.Image;
import com.alignserve.Item;
import com.alignserve.Result;
import com.alignserve.ResultStream;
import java.io.IOException;
import java.io.UncheckedIOException;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.List;

/**
 * Compares two pictures and a text, classifies the first picture, and embeds files over a stream.
 */
public final class Similarity {
  private Similarity() {}

  /**
   * Arguments: SERVER IMAGE IMAGE TEXT [FILE...]. A server without {@code https://} is called
   * without TLS. ALIGNSERVE_API_KEY is sent if it is set, and ALIGNSERVE_ROOT_CERTIFICATES names
   * the PEM file of a private authority.
   */
  public static void main(String[] arguments) throws IOException {
    if (arguments.length < 4) {
      System.err.println("usage: Similarity [https://]HOST:PORT IMAGE IMAGE TEXT [FILE...]");
      System.exit(2);
    }
    try (AlignClient client = connect(arguments[0])) {
      compare(client, Path.of(arguments[1]), Path.of(arguments[2]), arguments[3]);
      classify(client, Path.of(arguments[1]));
      embedFiles(client, Arrays.stream(arguments).skip(4).map(Path::of).toList());
    }
  }

  private static AlignClient connect(String server) throws IOException {
    boolean isEncrypted = server.startsWith("https://");
    AlignClient.Builder builder =
        AlignClient.builder(isEncrypted ? server.substring("https://".length()) : server);
    if (!isEncrypted) {
      builder.plaintext();
    }
    String key = System.getenv("ALIGNSERVE_API_KEY");
    if (key != null) {
      builder.apiKey(key);
    }
    String authority = System.getenv("ALIGNSERVE_ROOT_CERTIFICATES");
    if (authority != null) {
      builder.rootCertificates(Path.of(authority));
    }
    return builder.build();
  }

  private static void compare(AlignClient client, Path first, Path second, String text)
      throws IOException {
    List<Embedding> pictures =
        client.embedImages(List.of(Image.ofFile(first), Image.ofFile(second)));
    Embedding words = client.embedTexts(List.of(text)).get(0).embedding();
    System.out.printf("%s and %s: %.4f%n", first, second, pictures.get(0).cosine(pictures.get(1)));
    System.out.printf("%s and \"%s\": %.4f%n", first, text, pictures.get(0).cosine(words));
    System.out.printf("%s and \"%s\": %.4f%n", second, text, pictures.get(1).cosine(words));
  }

  private static void classify(AlignClient client, Path path) throws IOException {
    ClassifyOptions options =
        ClassifyOptions.DEFAULT.withPromptTemplates("a photo of a {label}").withTopK(2);
    List<String> labels = List.of("cat", "dog", "cup of coffee");
    for (Classification found :
        client.classify(List.of(Image.ofFile(path)), labels, options).get(0)) {
      System.out.printf(
          "%s is a %s: score %.4f, similarity %.4f%n",
          path, found.label(), found.score(), found.similarity());
    }
  }

  private static void embedFiles(AlignClient client, List<Path> paths) {
    Iterable<Item> items =
        paths.stream().map(Similarity::read)::iterator; // reads a file when there is room for it
    try (ResultStream results = client.stream(items)) {
      for (Result result : results) {
        if (result.error().isPresent()) {
          System.out.printf("%s failed: %s%n", result.id(), result.error().get().getMessage());
        } else {
          System.out.printf("%s: %.3f…%n", result.id(), result.embedding().vector()[0]);
        }
      }
    }
  }

  private static Item read(Path path) {
    try {
      return Item.image(path.getFileName().toString(), Image.ofFile(path));
    } catch (IOException error) {
      throw new UncheckedIOException(error); // ends the stream after the results before it
    }
  }
}
