// Client of alignserve: image and text embeddings and zero-shot classification over gRPC.
#ifndef ALIGNSERVE_CLIENT_H_
#define ALIGNSERVE_CLIENT_H_

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "alignserve/embedding.h"
#include "alignserve/error.h"
#include "alignserve/v1/align_service.pb.h"

namespace alignserve {

// Names of PEM files. Without `ca`, the system's authorities are trusted.
struct Tls {
  std::string ca;
  std::string certificate;  // of the client, for mutual TLS
  std::string key;
};

struct Options {
  Tls tls;
  bool plaintext = false;  // no TLS: keys and images can be read in transit
  std::string api_key;
  std::chrono::milliseconds timeout = std::chrono::seconds(30);  // of a unary call, over all attempts; 0 for none
  bool retry = true;                  // repeat calls that were refused for now, or whose connection broke
  int max_response_bytes = 16 << 20;  // the server is told
  std::string priority;               // "interactive" or "bulk"
  std::multimap<std::string, std::string> metadata;  // sent with every call
  std::chrono::milliseconds keepalive = std::chrono::seconds(60);
  std::chrono::milliseconds keepalive_timeout = std::chrono::seconds(10);
};

// Cancels the calls that it is passed to, from any thread. They throw an Error with the code CANCELLED.
class Cancellation {
 public:
  void Cancel();
  bool is_cancelled() const;

 private:
  friend class OnCancel;
  friend class Retry;

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  bool is_cancelled_ = false;
  std::set<const std::function<void()>*> actions_;
};

struct CallOptions {
  std::optional<std::chrono::milliseconds> timeout;  // instead of the client's; 0 for none
  Cancellation* cancellation = nullptr;              // lives longer than the call
};

struct EmbedOptions {
  Format format = Format::kFloat32;
  bool normalize = true;
  bool truncate = false;  // cut texts that are too long, instead of failing
};

// The bytes of an image file.
struct ImageFile {
  std::string content;
  static ImageFile Read(const std::string& path);  // throws std::system_error
};

// Decoded pixels: height * width * 3 bytes, red, green and blue, row by row.
struct Pixels {
  int height = 0;
  int width = 0;
  std::string data;
};

using Image = std::variant<ImageFile, Pixels>;

// A part of a composed query: an image or a text, and the factor of its embedding.
struct Term {
  std::variant<Image, std::string> input;
  std::optional<float> weight;  // 1 if not set
};
using Query = std::vector<Term>;

struct TextEmbeddings {
  std::vector<Embedding> embeddings;
  std::vector<v1::Tokenization> tokenizations;
};

struct ClassifyOptions {
  std::vector<std::string> prompt_templates;
  int top_k = 0;  // 0 for every label
};

// An item of a stream, made by one of the functions below.
struct Item {
  std::string id;  // of your choice; its result has it too
  v1::StreamInferRequest request;
};

Item ImageItem(std::string id, const Image& image, const EmbedOptions& options = {});
Item TextItem(std::string id, const std::string& text, const EmbedOptions& options = {});
Item QueryItem(std::string id, const Query& query, const EmbedOptions& options = {});
Item ClassifyItem(std::string id, const Image& image, const std::vector<std::string>& labels,
                  const ClassifyOptions& options = {});
Item CompareItem(std::string id, const Image& image, const std::string& text, bool truncate = false);

// The outcome of an item: an error, or the one that its kind has.
struct Result {
  std::string id;
  std::optional<Error> error;
  Embedding embedding;
  std::vector<v1::Classification> classifications;
  v1::Comparison comparison;
};

struct StreamOptions {
  int window = 32;       // at most this many items are unanswered at any time
  bool ordered = false;  // results in the order of the items
  std::optional<std::chrono::milliseconds> timeout;  // of the whole stream
  std::function<void()> on_reconnect;                // called whenever the stream is opened again
  Cancellation* cancellation = nullptr;              // lives longer than the call
};

// A client of one target, for any number of threads. Calls throw Error.
class Client {
 public:
  // Connects on the first call. Throws std::system_error if a PEM file cannot be read, and std::invalid_argument if
  // the key or other metadata has characters that cannot be sent.
  explicit Client(const std::string& target, Options options = {});
  ~Client();
  Client(const Client&) = delete;
  Client& operator=(const Client&) = delete;

  std::vector<Embedding> EmbedImages(const std::vector<Image>& images, const EmbedOptions& options = {},
                                     const CallOptions& call = {});
  TextEmbeddings EmbedTexts(const std::vector<std::string>& texts, const EmbedOptions& options = {},
                            const CallOptions& call = {});
  std::vector<Embedding> EmbedQueries(const std::vector<Query>& queries, const EmbedOptions& options = {},
                                      const CallOptions& call = {});

  // Returns the classifications of each image, best first.
  std::vector<std::vector<v1::Classification>> Classify(const std::vector<Image>& images,
                                                        const std::vector<std::string>& labels,
                                                        const ClassifyOptions& options = {},
                                                        const CallOptions& call = {});
  std::vector<v1::Comparison> Compare(const std::vector<std::pair<Image, std::string>>& pairs, bool truncate = false,
                                      const CallOptions& call = {});
  v1::GetModelInfoResponse ModelInfo(const CallOptions& call = {});

  // Returns whether the server is ready to serve.
  bool IsReady(const CallOptions& call = {});

  // Sends items until `next` returns none, and passes each result to `take`, on the calling thread. `next` is called on
  // another thread, as the window allows, so items may be endless. When a server ends the stream, it is opened again and
  // items without an answer are sent again; after ten attempts without an answer the last error is thrown. If `take`
  // returns false the stream is cancelled. What `next` throws is thrown after the results of the items before.
  //
  // However the stream ends, Stream returns only after `next` has: do not let it block for longer than you can wait.
  void Stream(const std::function<std::optional<Item>()>& next, const std::function<bool(Result)>& take,
              const StreamOptions& options = {});

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace alignserve

#endif  // ALIGNSERVE_CLIENT_H_
