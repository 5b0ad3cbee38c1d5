// Finds the pictures that fit a text best, then says what each shows.
//
//   search localhost:50051 "a cat" photos/*.jpg
//
// ALIGNSERVE_ROOT_CERTIFICATES names a PEM file and turns TLS on; ALIGNSERVE_API_KEY is sent if it is set.

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <iostream>

#include "alignserve/client.h"

int main(int argc, char** argv) {
  if (argc < 4) {
    std::cerr << "usage: search HOST:PORT TEXT IMAGE…\n";
    return 2;
  }
  alignserve::Options options;
  options.plaintext = true;
  if (const char* ca = std::getenv("ALIGNSERVE_ROOT_CERTIFICATES")) {
    options.plaintext = false;
    options.tls.ca = ca;
  }
  if (const char* key = std::getenv("ALIGNSERVE_API_KEY")) options.api_key = key;
  try {
    alignserve::Client client(argv[1], std::move(options));
    const auto query = client.EmbedTexts({argv[2]}).embeddings[0].values;

    // A stream: one unreadable picture fails alone, and any number of pictures fits.
    int position = 3;
    std::vector<std::pair<double, std::string>> found;
    client.Stream(
        [&]() -> std::optional<alignserve::Item> {
          if (position == argc) return std::nullopt;
          const char* path = argv[position++];
          return alignserve::ImageItem(path, alignserve::ImageFile::Read(path));
        },
        [&](const alignserve::Result& result) {
          if (result.error) {
            std::cerr << result.id << ": " << result.error->what() << '\n';
          } else {
            found.emplace_back(alignserve::Cosine(query, result.embedding.values), result.id);
          }
          return true;
        });

    std::sort(found.rbegin(), found.rend());
    found.resize(std::min<size_t>(found.size(), 3));
    for (const auto& [cosine, path] : found) {
      const auto best = client.Classify({alignserve::ImageFile::Read(path)}, {"cat", "dog", "car", "food", "building"},
                                        {{"a photo of a {label}"}, 1})[0][0];
      std::printf("%.4f  %s  (%s, %.0f %%)\n", cosine, path.c_str(), best.label().c_str(), best.score() * 100);
    }
  } catch (const std::exception& error) {
    std::cerr << error.what() << '\n';
    return 1;
  }
}
