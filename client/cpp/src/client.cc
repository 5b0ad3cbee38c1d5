#include "alignserve/client.h"

#include <algorithm>
#include <cerrno>
#include <fstream>
#include <iterator>
#include <stdexcept>
#include <system_error>
#include <thread>

#include <grpcpp/grpcpp.h>

#include "alignserve/v1/align_service.grpc.pb.h"
#include "grpc/health/v1/health.grpc.pb.h"
#include "retry.h"
#include "stream.h"

namespace alignserve {
namespace {

constexpr int kMaxRequestBytes = 64 << 20;

// Spreads calls over all servers that a name resolves to. The client repeats calls by itself, not by gRPC, which reads
// neither RetryInfo nor who cancelled.
constexpr char kServiceConfig[] = R"({"loadBalancingConfig": [{"round_robin": {}}]})";

std::string ReadFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::string content{std::istreambuf_iterator<char>(file), {}};
  if (!file) throw std::system_error(errno ? errno : EIO, std::generic_category(), path);
  return content;
}

std::shared_ptr<grpc::ChannelCredentials> Credentials(const Options& options) {
  if (options.plaintext) return grpc::InsecureChannelCredentials();
  grpc::SslCredentialsOptions files;
  if (!options.tls.ca.empty()) files.pem_root_certs = ReadFile(options.tls.ca);
  if (!options.tls.certificate.empty()) files.pem_cert_chain = ReadFile(options.tls.certificate);
  if (!options.tls.key.empty()) files.pem_private_key = ReadFile(options.tls.key);
  return grpc::SslCredentials(files);
}

grpc::ChannelArguments Arguments(const Options& options) {
  grpc::ChannelArguments arguments;
  arguments.SetServiceConfigJSON(kServiceConfig);
  arguments.SetUserAgentPrefix("alignserve-cpp/0.1.0");
  arguments.SetMaxReceiveMessageSize(options.max_response_bytes);
  // gRPC repeats a call that the server never saw, while it still holds the request: 256 KiB by default.
  arguments.SetInt(GRPC_ARG_PER_RPC_RETRY_BUFFER_SIZE, kMaxRequestBytes);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, static_cast<int>(options.keepalive.count()));
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, static_cast<int>(options.keepalive_timeout.count()));
  // Otherwise gRPC stops after two pings while a long call is quiet.
  arguments.SetInt(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 100);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 5000);
  return arguments;
}

v1::Image ToMessage(const Image& image) {
  v1::Image message;
  if (const auto* file = std::get_if<ImageFile>(&image)) {
    message.set_content(file->content);
    return message;
  }
  const auto& pixels = std::get<Pixels>(image);
  message.mutable_pixels()->set_height(pixels.height);
  message.mutable_pixels()->set_width(pixels.width);
  message.mutable_pixels()->set_data(pixels.data);
  return message;
}

v1::EmbeddingOptions ToMessage(const EmbedOptions& options) {
  static const std::map<Format, v1::EmbeddingFormat> formats = {
      {Format::kFloat32, v1::EMBEDDING_FORMAT_PACKED_FLOAT32},
      {Format::kFloat16, v1::EMBEDDING_FORMAT_PACKED_FLOAT16},
      {Format::kInt8, v1::EMBEDDING_FORMAT_PACKED_INT8},
      {Format::kBinary, v1::EMBEDDING_FORMAT_PACKED_BINARY},
      {Format::kFloatList, v1::EMBEDDING_FORMAT_FLOAT_LIST}};
  v1::EmbeddingOptions message;
  message.set_format(formats.at(options.format));
  message.set_skip_normalization(!options.normalize);
  return message;
}

v1::EmbedImageRequest ImageRequest(const std::vector<Image>& images, const EmbedOptions& options) {
  v1::EmbedImageRequest request;
  for (const Image& image : images) *request.add_images() = ToMessage(image);
  *request.mutable_embedding_options() = ToMessage(options);
  return request;
}

v1::EmbedTextRequest TextRequest(const std::vector<std::string>& texts, const EmbedOptions& options) {
  v1::EmbedTextRequest request;
  for (const std::string& text : texts) request.add_texts(text);
  *request.mutable_embedding_options() = ToMessage(options);
  request.set_truncate(options.truncate);
  return request;
}

v1::EmbedQueryRequest QueryRequest(const std::vector<Query>& queries, const EmbedOptions& options) {
  v1::EmbedQueryRequest request;
  for (const Query& query : queries) {
    v1::ComposedQuery& message = *request.add_queries();
    for (const Term& term : query) {
      v1::QueryTerm& part = *message.add_terms();
      if (const auto* text = std::get_if<std::string>(&term.input)) {
        part.set_text(*text);
      } else {
        *part.mutable_image() = ToMessage(std::get<Image>(term.input));
      }
      if (term.weight) part.set_weight(*term.weight);
    }
  }
  *request.mutable_embedding_options() = ToMessage(options);
  request.set_truncate(options.truncate);
  return request;
}

v1::ClassifyRequest LabelRequest(const std::vector<Image>& images, const std::vector<std::string>& labels,
                                 const ClassifyOptions& options) {
  v1::ClassifyRequest request;
  for (const Image& image : images) *request.add_images() = ToMessage(image);
  for (const std::string& label : labels) request.add_labels(label);
  for (const std::string& prompt : options.prompt_templates) request.add_prompt_templates(prompt);
  request.set_top_k(options.top_k);
  return request;
}

v1::CompareRequest PairRequest(const std::vector<std::pair<Image, std::string>>& pairs, bool truncate) {
  v1::CompareRequest request;
  for (const auto& [image, text] : pairs) {
    v1::ImageTextPair& pair = *request.add_pairs();
    *pair.mutable_image() = ToMessage(image);
    pair.set_text(text);
  }
  request.set_truncate(truncate);
  return request;
}

template <typename Response>
std::vector<Embedding> Embeddings(const Response& response) {
  std::vector<Embedding> embeddings;
  for (const v1::Embedding& each : response.embeddings()) embeddings.push_back(ReadEmbedding(each));
  return embeddings;
}

template <typename Repeated>
auto ToVector(const Repeated& messages) {
  return std::vector<typename Repeated::value_type>(messages.begin(), messages.end());
}

// Returns the only element of an answer to an item.
template <typename Repeated>
const auto& Only(const Repeated& elements) {
  if (elements.size() != 1) throw Error(grpc::StatusCode::INTERNAL, "the server's answer to an item is incomplete");
  return elements.Get(0);
}

Result ToResult(std::string id, const v1::StreamInferResponse& response) {
  Result result{std::move(id), {}, {}, {}, {}};
  switch (response.result_case()) {
    case v1::StreamInferResponse::kError:
      result.error = Error::FromStatus(response.error());
      break;
    case v1::StreamInferResponse::kEmbedImage:
      result.embedding = ReadEmbedding(Only(response.embed_image().embeddings()));
      break;
    case v1::StreamInferResponse::kEmbedText:
      result.embedding = ReadEmbedding(Only(response.embed_text().embeddings()));
      break;
    case v1::StreamInferResponse::kEmbedQuery:
      result.embedding = ReadEmbedding(Only(response.embed_query().embeddings()));
      break;
    case v1::StreamInferResponse::kClassify:
      result.classifications = ToVector(Only(response.classify().results()).classifications());
      break;
    case v1::StreamInferResponse::kCompare:
      result.comparison = Only(response.compare().comparisons());
      break;
    default:
      result.error = Error(grpc::StatusCode::UNKNOWN, "the server answered with a kind that this client does not know");
  }
  return result;
}

Deadline DeadlineAfter(std::optional<std::chrono::milliseconds> timeout) {
  if (!timeout || timeout->count() == 0) return std::nullopt;
  return Clock::now() + std::min<std::chrono::milliseconds>(*timeout, std::chrono::hours(24 * 365));
}

// Files with keys end with a line break.
std::string Stripped(const std::string& text) {
  constexpr char kSpace[] = " \t\r\n";
  const size_t start = text.find_first_not_of(kSpace);
  return start == std::string::npos ? "" : text.substr(start, text.find_last_not_of(kSpace) - start + 1);
}

// gRPC ends the process if a caller's metadata is not legal.
void CheckMetadata(const std::string& name, const std::string& value) {
  const auto is_in_name = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '-' || c == '_' || c == '.';
  };
  const auto is_in_value = [](char c) { return c >= ' ' && c <= '~'; };
  if (name.empty() || !std::all_of(name.begin(), name.end(), is_in_name)) {
    throw std::invalid_argument("'" + name + "' is no name of metadata: use a-z, 0-9, '-', '_' and '.'");
  }
  const bool is_binary = name.size() > 4 && name.compare(name.size() - 4, 4, "-bin") == 0;
  if (!is_binary && !std::all_of(value.begin(), value.end(), is_in_value)) {
    throw std::invalid_argument("the value of '" + name + "' is not printable ASCII");  // it may be a secret
  }
}

}  // namespace

ImageFile ImageFile::Read(const std::string& path) { return {ReadFile(path)}; }

Item ImageItem(std::string id, const Image& image, const EmbedOptions& options) {
  Item item{std::move(id), {}};
  *item.request.mutable_embed_image() = ImageRequest({image}, options);
  return item;
}

Item TextItem(std::string id, const std::string& text, const EmbedOptions& options) {
  Item item{std::move(id), {}};
  *item.request.mutable_embed_text() = TextRequest({text}, options);
  return item;
}

Item QueryItem(std::string id, const Query& query, const EmbedOptions& options) {
  Item item{std::move(id), {}};
  *item.request.mutable_embed_query() = QueryRequest({query}, options);
  return item;
}

Item ClassifyItem(std::string id, const Image& image, const std::vector<std::string>& labels,
                  const ClassifyOptions& options) {
  Item item{std::move(id), {}};
  *item.request.mutable_classify() = LabelRequest({image}, labels, options);
  return item;
}

Item CompareItem(std::string id, const Image& image, const std::string& text, bool truncate) {
  Item item{std::move(id), {}};
  *item.request.mutable_compare() = PairRequest({{image, text}}, truncate);
  return item;
}

struct Client::Impl {
  Impl(const std::string& target, Options given)
      : options(std::move(given)),
        channel(grpc::CreateCustomChannel(target, Credentials(options), Arguments(options))),
        stub(v1::AlignService::NewStub(channel)),
        health(grpc::health::v1::Health::NewStub(channel)) {
    options.metadata.emplace("alignserve-max-response-bytes", std::to_string(options.max_response_bytes));
    if (!options.api_key.empty()) options.metadata.emplace("authorization", "Bearer " + Stripped(options.api_key));
    if (!options.priority.empty()) options.metadata.emplace("alignserve-priority", options.priority);
    for (const auto& [name, value] : options.metadata) CheckMetadata(name, value);
  }

  void Prepare(grpc::ClientContext& context, Deadline deadline) const {
    for (const auto& [name, value] : options.metadata) context.AddMetadata(name, value);
    if (deadline) context.set_deadline(*deadline);
  }

  // Calls a method of a stub, again if that may help.
  template <typename Stub, typename Request, typename Response>
  Response Call(Stub& called, grpc::Status (Stub::*method)(grpc::ClientContext*, const Request&, Response*),
                const Request& request, const CallOptions& call) const {
    const Deadline deadline = DeadlineAfter(call.timeout ? call.timeout : options.timeout);
    Retry retry(Retry::Kind::kCall, options.retry, deadline, call.cancellation);
    for (;;) {
      Response response;
      grpc::Status status;
      {
        grpc::ClientContext context;
        Prepare(context, deadline);
        const OnCancel on_cancel(call.cancellation, [&context] { context.TryCancel(); });
        status = (called.*method)(&context, request, &response);
      }
      if (status.ok()) return response;
      retry.Wait(Error::FromStatus(status));
    }
  }

  Options options;
  std::shared_ptr<grpc::Channel> channel;
  std::unique_ptr<v1::AlignService::Stub> stub;
  std::unique_ptr<grpc::health::v1::Health::Stub> health;
};

Client::Client(const std::string& target, Options options)
    : impl_(std::make_unique<Impl>(target, std::move(options))) {}

Client::~Client() = default;

std::vector<Embedding> Client::EmbedImages(const std::vector<Image>& images, const EmbedOptions& options,
                                           const CallOptions& call) {
  return Embeddings(
      impl_->Call(*impl_->stub, &v1::AlignService::Stub::EmbedImage, ImageRequest(images, options), call));
}

TextEmbeddings Client::EmbedTexts(const std::vector<std::string>& texts, const EmbedOptions& options,
                                  const CallOptions& call) {
  const auto response =
      impl_->Call(*impl_->stub, &v1::AlignService::Stub::EmbedText, TextRequest(texts, options), call);
  return {Embeddings(response), ToVector(response.tokenizations())};
}

std::vector<Embedding> Client::EmbedQueries(const std::vector<Query>& queries, const EmbedOptions& options,
                                            const CallOptions& call) {
  return Embeddings(
      impl_->Call(*impl_->stub, &v1::AlignService::Stub::EmbedQuery, QueryRequest(queries, options), call));
}

std::vector<std::vector<v1::Classification>> Client::Classify(const std::vector<Image>& images,
                                                              const std::vector<std::string>& labels,
                                                              const ClassifyOptions& options,
                                                              const CallOptions& call) {
  const auto response =
      impl_->Call(*impl_->stub, &v1::AlignService::Stub::Classify, LabelRequest(images, labels, options), call);
  std::vector<std::vector<v1::Classification>> results;
  for (const auto& result : response.results()) results.push_back(ToVector(result.classifications()));
  return results;
}

std::vector<v1::Comparison> Client::Compare(const std::vector<std::pair<Image, std::string>>& pairs, bool truncate,
                                            const CallOptions& call) {
  return ToVector(
      impl_->Call(*impl_->stub, &v1::AlignService::Stub::Compare, PairRequest(pairs, truncate), call).comparisons());
}

v1::GetModelInfoResponse Client::ModelInfo(const CallOptions& call) {
  return impl_->Call(*impl_->stub, &v1::AlignService::Stub::GetModelInfo, v1::GetModelInfoRequest(), call);
}

bool Client::IsReady(const CallOptions& call) {
  grpc::health::v1::HealthCheckRequest request;
  request.set_service(v1::AlignService::service_full_name());
  const auto response = impl_->Call(*impl_->health, &grpc::health::v1::Health::Stub::Check, request, call);
  return response.status() == grpc::health::v1::HealthCheckResponse::SERVING;
}

namespace {

// Joins a thread at the end of a scope, after telling it to end.
class Joined {
 public:
  Joined(std::function<void()> run, std::function<void()> stop) : stop_(std::move(stop)), thread_(std::move(run)) {}
  ~Joined() {
    stop_();
    thread_.join();
  }
  Joined(const Joined&) = delete;
  Joined& operator=(const Joined&) = delete;

 private:
  const std::function<void()> stop_;
  std::thread thread_;
};

void Send(grpc::ClientReaderWriter<v1::StreamInferRequest, v1::StreamInferResponse>& stream, Outbox& outbox,
          int attempt, bool is_ordered) {
  if (is_ordered) {
    v1::StreamInferRequest first;
    first.mutable_stream_options()->set_delivery_order(v1::DELIVERY_ORDER_AS_REQUESTED);
    if (!stream.Write(first)) return;
  }
  while (const auto item = outbox.Next(attempt)) {
    if (!stream.Write(item->request)) return;
  }
  stream.WritesDone();
}

}  // namespace

void Client::Stream(const std::function<std::optional<Item>()>& next, const std::function<bool(Result)>& take,
                    const StreamOptions& options) {
  const Deadline deadline = DeadlineAfter(options.timeout);
  Retry retry(Retry::Kind::kStream, impl_->options.retry, deadline, options.cancellation);
  Outbox outbox(next, options.window);

  bool is_wanted = true;  // false once `take` has had enough

  // Passes results on until the call ends. Returns the error of an item that no server can answer now.
  const auto receive = [&](auto& stream) -> std::optional<Error> {
    v1::StreamInferResponse response;
    while (is_wanted && stream.Read(&response)) {
      if (response.error().code() == grpc::StatusCode::UNAVAILABLE) return Error::FromStatus(response.error());
      auto id = outbox.Answered(response.correlation_id());
      if (!id) continue;
      retry.Progressed();
      is_wanted = take(ToResult(std::move(*id), response));
    }
    return std::nullopt;
  };

  // Runs a call. Returns why it ended.
  const auto attempt = [&](int number) {
    grpc::ClientContext context;
    impl_->Prepare(context, deadline);
    const OnCancel on_cancel(options.cancellation, [&context] { context.TryCancel(); });
    const auto stream = impl_->stub->StreamInfer(&context);
    std::optional<Error> unavailable;
    bool has_ended = false;  // otherwise it is left early, perhaps since `take` threw
    {
      const Joined writer([&] { Send(*stream, outbox, number, options.ordered); },
                          [&] {
                            if (!has_ended) context.TryCancel();
                            outbox.EndAttempt();
                          });
      unavailable = receive(*stream);
      has_ended = is_wanted && !unavailable;
    }
    const grpc::Status status = stream->Finish();
    if (unavailable) return *unavailable;
    if (status.ok()) return Error(grpc::StatusCode::UNAVAILABLE, "the server ended the stream early");
    return Error::FromStatus(status);
  };

  {
    const Joined feeder([&] { outbox.Feed(); }, [&] { outbox.Close(); });
    const OnCancel on_cancel(options.cancellation, [&outbox] { outbox.Close(); });
    for (int number = 0; outbox.WaitForItem(deadline); ++number) {
      if (number > 0 && options.on_reconnect) options.on_reconnect();
      const Error failure = attempt(number);
      if (!is_wanted) return;
      if (outbox.IsDone()) break;
      retry.Wait(failure);
    }
    ThrowIfCancelled(options.cancellation);
    if (!outbox.IsDone()) throw Error(grpc::StatusCode::DEADLINE_EXCEEDED, "the deadline of the stream has passed");
  }
  if (const auto failure = outbox.failure()) std::rethrow_exception(failure);
}

}  // namespace alignserve
