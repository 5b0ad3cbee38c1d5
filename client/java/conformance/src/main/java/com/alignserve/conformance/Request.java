package com.alignserve.conformance;

import com.alignserve.AlignClient;
import com.alignserve.Image;
import com.alignserve.Item;
import com.alignserve.Pair;
import com.alignserve.Query;
import com.alignserve.StreamOptions;
import com.google.gson.annotations.SerializedName;
import java.io.IOException;
import java.nio.file.Path;
import java.time.Duration;
import java.util.ArrayList;
import java.util.Base64;
import java.util.List;
import java.util.Map;

/** The keys of every operation, as Gson reads them; {@code null} and 0 are not given. */
final class Request extends Options {
  int id;
  String op;

  // connect
  String target;

  @SerializedName("tls_ca")
  String tlsCa;

  @SerializedName("tls_certificate")
  String tlsCertificate;

  @SerializedName("tls_key")
  String tlsKey;

  @SerializedName("api_key")
  String apiKey;

  @SerializedName("max_response_bytes")
  int maxResponseBytes;

  Boolean retry;
  Map<String, String> metadata = Map.of();

  @SerializedName("keepalive_seconds")
  Double keepaliveSeconds;

  @SerializedName("keepalive_timeout_seconds")
  Double keepaliveTimeoutSeconds;

  // every call
  @SerializedName("timeout_seconds")
  Double timeoutSeconds;

  @SerializedName("cancel_after_ms")
  Integer cancelAfterMs;

  // unary calls
  List<Source> images;
  List<String> texts;
  List<PairSource> pairs;
  List<QuerySource> queries;
  boolean summary;

  // stream
  List<ItemSource> items;
  int window;
  boolean ordered;

  @SerializedName("progress_every")
  int progressEvery;

  @SerializedName("cancel_after_items")
  int cancelAfterItems;

  // repeat
  int calls;
  int concurrency;
  Request request;

  static final class Source {
    String path;
    String base64;
    PixelsSource pixels;

    Image image() throws IOException {
      if (path != null) {
        return Image.ofFile(Path.of(path));
      }
      if (pixels != null) {
        return Image.ofPixels(pixels.width, pixels.height, Base64.getDecoder().decode(pixels.data));
      }
      return Image.ofBytes(Base64.getDecoder().decode(base64));
    }
  }

  static final class PixelsSource {
    int height;
    int width;
    String data;
  }

  static final class PairSource {
    Source image;
    String text;

    Pair pair() throws IOException {
      return new Pair(image.image(), text);
    }
  }

  static final class QuerySource {
    List<TermSource> terms;

    Query query() throws IOException {
      return new Query(each(terms, TermSource::term));
    }
  }

  static final class TermSource {
    Source image;
    String text;
    Float weight;

    Query.Term term() throws IOException {
      Query.Term term = image == null ? Query.Term.of(text) : Query.Term.of(image.image());
      return weight == null ? term : term.weighted(weight);
    }
  }

  static final class ItemSource extends Options {
    String id;
    String kind;
    Source image;
    String text;
    List<TermSource> terms;

    Item item() throws IOException {
      return switch (kind) {
        case "text" -> Item.text(id, text, embedOptions());
        case "image" -> Item.image(id, image.image(), embedOptions());
        case "query" -> Item.query(id, new Query(each(terms, TermSource::term)), embedOptions());
        case "classify" -> Item.classify(id, image.image(), labels, classifyOptions());
        case "compare" -> Item.compare(id, new Pair(image.image(), text), truncate);
        default -> throw new UnsupportedOperationException("no item of kind " + kind);
      };
    }
  }

  AlignClient client() throws IOException {
    AlignClient.Builder builder = AlignClient.builder(target);
    if (tlsCa == null) {
      builder.plaintext();
    } else {
      builder.rootCertificates(Path.of(tlsCa));
    }
    if (tlsCertificate != null) {
      builder.clientCertificate(Path.of(tlsCertificate), Path.of(tlsKey));
    }
    if (apiKey != null) {
      builder.apiKey(apiKey);
    }
    if (timeout() != null) {
      builder.timeout(timeout());
    }
    if (maxResponseBytes > 0) {
      builder.maxResponseBytes(maxResponseBytes);
    }
    if (Boolean.FALSE.equals(retry)) {
      builder.withoutRetries();
    }
    metadata.forEach(builder::metadata);
    if (keepaliveSeconds != null && keepaliveTimeoutSeconds != null) {
      builder.keepalive(seconds(keepaliveSeconds), seconds(keepaliveTimeoutSeconds));
    }
    return builder.build();
  }

  Duration timeout() {
    return timeoutSeconds == null ? null : seconds(timeoutSeconds);
  }

  private static Duration seconds(double count) {
    return Duration.ofNanos((long) (count * 1e9));
  }

  List<Image> images() throws IOException {
    return each(images, Source::image);
  }

  List<Pair> pairs() throws IOException {
    return each(pairs, PairSource::pair);
  }

  List<Query> queries() throws IOException {
    return each(queries, QuerySource::query);
  }

  List<Item> streamItems() throws IOException {
    return each(items, ItemSource::item);
  }

  StreamOptions streamOptions() {
    StreamOptions options = StreamOptions.DEFAULT.withOrdered(ordered).withTimeout(timeout());
    return window == 0 ? options : options.withWindow(window);
  }

  private interface Conversion<A, B> {
    B convert(A value) throws IOException;
  }

  private static <A, B> List<B> each(List<A> values, Conversion<A, B> conversion)
      throws IOException {
    List<B> converted = new ArrayList<>(values.size());
    for (A value : values) {
      converted.add(conversion.convert(value));
    }
    return converted;
  }
}
