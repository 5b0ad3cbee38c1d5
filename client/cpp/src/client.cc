#include "alignserve/client.h"

#include <cerrno>
#include <fstream>
#include <iterator>
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

std::shared_ptr<grpc::ChannelCredentials> Credentials(const std::optional<Tls>& tls) {
  if (!tls) return grpc::InsecureChannelCredentials();
  grpc::SslCredentialsOptions options;
  if (!tls->ca.empty()) options.pem_root_certs = ReadFile(tls->ca);
  if (!tls->certificate.empty()) options.pem_cert_chain = ReadFile(tls->certificate);
  if (!tls->key.empty()) options.pem_private_key = ReadFile(tls->key);
  return grpc::SslCredentials(options);
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

Result ToResult(std::string id, const v1::StreamInferResponse& response) {
  Result result{std::move(id), {}, {}, {}, {}};
  switch (response.result_case()) {
    case v1::StreamInferResponse::kError:
      result.error = Error::FromStatus(response.error());
      break;
    case v1::StreamInferResponse::kEmbedImage:
      result.embedding = ReadEmbedding(response.embed_image().embeddings(0));
      break;
    case v1::StreamInferResponse::kEmbedText:
      result.embedding = ReadEmbedding(response.embed_text().embeddings(0));
      break;
    case v1::StreamInferResponse::kEmbedQuery:
      result.embedding = ReadEmbedding(response.embed_query().embeddings(0));
      break;
    case v1::StreamInferResponse::kClassify:
      result.classifications = ToVector(response.classify().results(0).classifications());
      break;
    case v1::StreamInferResponse::kCompare:
      result.comparison = response.compare().comparisons(0);
      break;
    default:
      result.error = Error(grpc::StatusCode::UNKNOWN, "the server answered with a kind that this client does not know");
  }
  return result;
}

Clock::time_point Deadline(std::optional<std::chrono::milliseconds> timeout) {
  return timeout && timeout->count() ? Clock::now() + *timeout : Clock::time_point::max();
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
        channel(grpc::CreateCustomChannel(target, Credentials(options.tls), Arguments(options))),
        stub(v1::AlignService::NewStub(channel)),
        health(grpc::health::v1::Health::NewStub(channel)) {
    options.metadata.emplace("alignserve-max-response-bytes", std::to_string(options.max_response_bytes));
    if (!options.api_key.empty()) options.metadata.emplace("authorization", "Bearer " + options.api_key);
    if (!options.priority.empty()) options.metadata.emplace("alignserve-priority", options.priority);
  }

  void Prepare(grpc::ClientContext& context, Clock::time_point deadline) const {
    for (const auto& [name, value] : options.metadata) context.AddMetadata(name, value);
    if (deadline != Clock::time_point::max()) context.set_deadline(deadline);
  }

  // Calls a method of a stub, again if that may help.
  template <typename Stub, typename Request, typename Response>
  Response Call(Stub& called, grpc::Status (Stub::*method)(grpc::ClientContext*, const Request&, Response*),
                const Request& request, const CallOptions& call) const {
    const auto deadline = Deadline(call.timeout ? call.timeout : options.timeout);
    Retry retry(options.retry, deadline, call.cancellation);
    for (;;) {
      Response response;
      grpc::Status status;
      {
        CancellableContext context(call.cancellation);
        Prepare(context, deadline);
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

void Client::Stream(const std::function<std::optional<Item>()>& next, const std::function<bool(Result)>& take,
                    const StreamOptions& options) {
  const auto deadline = Deadline(options.timeout);
  Retry retry(impl_->options.retry, deadline, nullptr);
  Outbox outbox(next, options.window);
  std::thread feeder(&Outbox::Feed, &outbox);

  // Runs an attempt; returns its status, or none if `take` has had enough.
  const auto attempt = [&](int number) -> std::optional<grpc::Status> {
    grpc::ClientContext context;
    impl_->Prepare(context, deadline);
    const auto stream = impl_->stub->StreamInfer(&context);
    std::thread writer([&] {
      if (options.ordered) {
        v1::StreamInferRequest first;
        first.mutable_stream_options()->set_delivery_order(v1::DELIVERY_ORDER_AS_REQUESTED);
        if (!stream->Write(first)) return;
      }
      while (const auto* request = outbox.Next(number)) {
        if (!stream->Write(*request)) return;
      }
      stream->WritesDone();
    });
    bool is_enough = false;
    const auto end = [&] {
      outbox.Reopen();  // ends the writer
      writer.join();
    };
    try {
      v1::StreamInferResponse response;
      while (!is_enough && stream->Read(&response)) {
        auto id = outbox.Answered(response.correlation_id());
        if (!id) continue;
        retry.Progressed();
        is_enough = !take(ToResult(std::move(*id), response));
      }
    } catch (...) {
      context.TryCancel();
      end();
      stream->Finish();
      throw;
    }
    if (is_enough) context.TryCancel();
    end();
    const grpc::Status status = stream->Finish();
    if (is_enough) return std::nullopt;
    return status;
  };

  std::exception_ptr failure;
  try {
    for (int number = 0;; ++number) {
      const std::optional<grpc::Status> status = attempt(number);
      if (!status || status->ok()) break;
      retry.Wait(Error::FromStatus(*status));
      if (options.on_reconnect) options.on_reconnect();
    }
  } catch (...) {
    failure = std::current_exception();
  }
  const std::exception_ptr of_items = outbox.Close();
  feeder.join();
  if (failure || of_items) std::rethrow_exception(failure ? failure : of_items);
}

}  // namespace alignserve
