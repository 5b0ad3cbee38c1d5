package com.alignserve.conformance;

import com.alignserve.ClassifyOptions;
import com.alignserve.EmbedOptions;
import com.alignserve.Format;
import com.google.gson.annotations.SerializedName;
import java.util.List;
import java.util.Locale;

/** The options of a call or of an item. */
class Options {
  String format;
  Boolean normalize;
  boolean truncate;
  List<String> labels;

  @SerializedName("prompt_templates")
  List<String> promptTemplates = List.of();

  @SerializedName("top_k")
  int topK;

  EmbedOptions embedOptions() {
    EmbedOptions options = EmbedOptions.DEFAULT.withTruncate(truncate);
    if (normalize != null) {
      options = options.withNormalize(normalize);
    }
    return format == null
        ? options
        : options.withFormat(Format.valueOf(format.toUpperCase(Locale.ROOT)));
  }

  ClassifyOptions classifyOptions() {
    return new ClassifyOptions(promptTemplates, topK);
  }
}
