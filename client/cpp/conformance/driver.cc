// Speaks the line protocol of tests/conformance/PROTOCOL.md.

#include <atomic>
#include <iostream>
#include <thread>

#include <google/protobuf/stubs/common.h>
#include <google/protobuf/util/json_util.h>
#include <grpcpp/grpcpp.h>
#include <nlohmann/json.hpp>

#include "alignserve/client.h"

namespace {

using nlohmann::json;
using alignserve::CallOptions;
using alignserve::EmbedOptions;
using alignserve::Image;
using Milliseconds = std::chrono::milliseconds;

// A request that the library cannot do.
struct Unsupported {
  std::string text;
};

const json* Find(const json& object, const char* key) {
  const auto found = object.find(key);
  return found == object.end() || found->is_null() ? nullptr : &*found;
}

template <typename T>
T Get(const json& object, const char* key, T otherwise) {
  const json* found = Find(object, key);
  return found ? found->get<T>() : otherwise;
}

Milliseconds Seconds(double seconds) { return Milliseconds(static_cast<int64_t>(seconds * 1000)); }

std::string Decoded(const std::string& base64) {
  std::string bytes;
  int bits = 0, buffer = 0;
  for (const char c : base64) {
    const int value = c >= 'A' && c <= 'Z'   ? c - 'A'
                      : c >= 'a' && c <= 'z' ? c - 'a' + 26
                      : c >= '0' && c <= '9' ? c - '0' + 52
                      : c == '+'             ? 62
                      : c == '/'             ? 63
                                             : -1;
    if (value < 0) continue;
    buffer = (buffer << 6 | value) & 0xffffff;
    bits += 6;
    if (bits >= 8) bytes.push_back(static_cast<char>(buffer >> (bits -= 8)));
  }
  return bytes;
}

std::string Encoded(const std::string& bytes) {
  static const char alphabet[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string base64;
  for (size_t i = 0; i < bytes.size(); i += 3) {
    unsigned buffer = 0;
    for (size_t j = 0; j < 3; ++j) buffer = buffer << 8 | (i + j < bytes.size() ? static_cast<unsigned char>(bytes[i + j]) : 0);
    for (size_t j = 0; j < 4; ++j) base64.push_back(i + j <= bytes.size() ? alphabet[buffer >> (18 - 6 * j) & 63] : '=');
  }
  return base64;
}

Image ReadImage(const json& given) {
  if (const json* path = Find(given, "path")) return alignserve::ImageFile::Read(path->get<std::string>());
  if (const json* content = Find(given, "base64")) return alignserve::ImageFile{Decoded(content->get<std::string>())};
  const json& pixels = given.at("pixels");
  return alignserve::Pixels{pixels.at("height"), pixels.at("width"), Decoded(pixels.at("data"))};
}

alignserve::Query ReadQuery(const json& given) {
  alignserve::Query query;
  for (const json& term : given.at("terms")) {
    alignserve::Term& part = query.emplace_back();
    if (const json* text = Find(term, "text")) {
      part.input = text->get<std::string>();
    } else {
      part.input = ReadImage(term.at("image"));
    }
    if (const json* weight = Find(term, "weight")) part.weight = weight->get<float>();
  }
  return query;
}

EmbedOptions ReadEmbedOptions(const json& given) {
  static const std::map<std::string, alignserve::Format> formats = {{"float_list", alignserve::Format::kFloatList},
                                                                    {"float32", alignserve::Format::kFloat32},
                                                                    {"float16", alignserve::Format::kFloat16},
                                                                    {"int8", alignserve::Format::kInt8},
                                                                    {"binary", alignserve::Format::kBinary}};
  EmbedOptions options;
  if (const json* format = Find(given, "format")) options.format = formats.at(format->get<std::string>());
  options.normalize = Get(given, "normalize", true);
  options.truncate = Get(given, "truncate", false);
  return options;
}

alignserve::ClassifyOptions ReadClassifyOptions(const json& given) {
  return {Get(given, "prompt_templates", std::vector<std::string>{}), Get(given, "top_k", 0)};
}

std::vector<Image> ReadImages(const json& request) {
  std::vector<Image> images;
  for (const json& each : request.at("images")) images.push_back(ReadImage(each));
  return images;
}

json Write(const alignserve::Embedding& embedding) {
  if (!embedding.bits.empty()) return Encoded(embedding.bits);
  if (!embedding.int8.empty()) return {{"values", embedding.int8}, {"scale", embedding.int8_scale}};
  return embedding.values;
}

json Write(const std::vector<alignserve::Embedding>& embeddings) {
  json written = json::array();
  for (const auto& each : embeddings) written.push_back(Write(each));
  return written;
}

json Write(const alignserve::v1::Classification& each) {
  return {{"label", each.label()},
          {"label_index", each.label_index()},
          {"score", each.score()},
          {"similarity", each.similarity()},
          {"logit", each.logit()}};
}

json Write(const std::vector<alignserve::v1::Classification>& classifications) {
  json written = json::array();
  for (const auto& each : classifications) written.push_back(Write(each));
  return written;
}

json Write(const alignserve::v1::Comparison& each) {
  return {{"similarity", each.similarity()}, {"logit", each.logit()}};
}

json Write(const alignserve::Error& error) {
  json fields = json::array();
  for (const auto& each : error.violations) {
    fields.push_back({{"field", each.field}, {"description", each.description}, {"reason", each.reason}});
  }
  json written = {{"code", error.code_name()},
                  {"reason", error.reason},
                  {"domain", nullptr},
                  {"message", error.what()},
                  {"fields", fields},
                  {"retry_delay_seconds", nullptr},
                  {"metadata", json::object()}};
  if (!error.domain.empty()) written["domain"] = error.domain;
  if (error.retry_delay) written["retry_delay_seconds"] = std::chrono::duration<double>(*error.retry_delay).count();
  for (const auto& [key, value] : error.metadata) written["metadata"][key] = value;
  return written;
}

json ClientError(const std::exception& error) {
  json written = Write(alignserve::Error(grpc::StatusCode::UNKNOWN, error.what()));
  written["code"] = "CLIENT";
  return written;
}

class Driver {
 public:
  json Answer(const json& request) {
    try {
      return {{"ok", Run(request)}};
    } catch (const alignserve::Error& error) {
      json answer = {{"error", Write(error)}};
      if (request.at("op") == "stream") answer["results"] = std::move(results_);
      return answer;
    } catch (const Unsupported& unsupported) {
      return {{"unsupported", unsupported.text}};
    } catch (const std::system_error& error) {
      return {{"error", ClientError(error)}};
    } catch (const std::out_of_range& error) {
      return {{"error", ClientError(error)}};
    }
  }

 private:
  json Run(const json& request) {
    const std::string op = request.at("op");
    if (op == "hello") return Hello();
    if (op == "connect") return Connect(request);
    if (op == "close") return client_.reset(), json::object();
    if (op == "stream") return Stream(request);
    if (op == "repeat") return Repeat(request);
    return Called(request, [&](const CallOptions& call) { return Call(op, request, call); });
  }

  json Hello() {
    const auto protobuf = google::protobuf::internal::VersionString(GOOGLE_PROTOBUF_VERSION);
    return {{"language", "C++"}, {"library", "alignserve"}, {"versions", {{"grpc", grpc::Version()}, {"protobuf", protobuf}, {"g++", __VERSION__}}}};
  }

  json Connect(const json& request) {
    client_.reset();
    alignserve::Options options;
    options.plaintext = !Find(request, "tls_ca");
    for (const auto& [name, file] : {std::pair{"tls_ca", &options.tls.ca},
                                     {"tls_certificate", &options.tls.certificate},
                                     {"tls_key", &options.tls.key}}) {
      *file = Get<std::string>(request, name, "");
    }
    options.api_key = Get<std::string>(request, "api_key", "");
    if (const json* seconds = Find(request, "timeout_seconds")) options.timeout = Seconds(*seconds);
    options.max_response_bytes = Get(request, "max_response_bytes", options.max_response_bytes);
    options.retry = Get(request, "retry", true);
    if (const json* metadata = Find(request, "metadata")) {
      for (const auto& [name, value] : metadata->items()) options.metadata.emplace(name, value);
    }
    if (const json* seconds = Find(request, "keepalive_seconds")) options.keepalive = Seconds(*seconds);
    if (const json* seconds = Find(request, "keepalive_timeout_seconds")) options.keepalive_timeout = Seconds(*seconds);
    client_ = std::make_unique<alignserve::Client>(request.at("target").get<std::string>(), std::move(options));
    return json::object();
  }

  json Called(const json& request, const std::function<json(const CallOptions&)>& call) {
    CallOptions options;
    if (const json* seconds = Find(request, "timeout_seconds")) options.timeout = Seconds(*seconds);
    const json* delay = Find(request, "cancel_after_ms");
    if (!delay) return call(options);
    alignserve::Cancellation cancellation;
    options.cancellation = &cancellation;
    std::thread timer([&] {
      std::this_thread::sleep_for(Milliseconds(*delay));
      cancellation.Cancel();
    });
    struct Join {
      std::thread& thread;
      ~Join() { thread.join(); }
    } join{timer};
    return call(options);
  }

  json Call(const std::string& op, const json& request, const CallOptions& call) {
    if (op == "embed_image") {
      return {{"embeddings", Write(client_->EmbedImages(ReadImages(request), ReadEmbedOptions(request), call))}};
    }
    if (op == "embed_text") return EmbedText(request, call);
    if (op == "embed_query") {
      std::vector<alignserve::Query> queries;
      for (const json& each : request.at("queries")) queries.push_back(ReadQuery(each));
      return {{"embeddings", Write(client_->EmbedQueries(queries, ReadEmbedOptions(request), call))}};
    }
    if (op == "classify") return Classify(request, call);
    if (op == "compare") return Compare(request, call);
    if (op == "model_info") return ModelInfo(call);
    if (op == "health") return {{"ready", client_->IsReady(call)}};
    throw Unsupported{"no operation " + op};
  }

  json EmbedText(const json& request, const CallOptions& call) {
    const auto found = client_->EmbedTexts(request.at("texts"), ReadEmbedOptions(request), call);
    json tokenizations = json::array();
    for (const auto& each : found.tokenizations) {
      tokenizations.push_back({{"token_count", each.token_count()},
                               {"truncated", each.truncated()},
                               {"unknown_token_count", each.unknown_token_count()}});
    }
    return {{"embeddings", Write(found.embeddings)}, {"tokenizations", tokenizations}};
  }

  json Classify(const json& request, const CallOptions& call) {
    const auto found =
        client_->Classify(ReadImages(request), request.at("labels"), ReadClassifyOptions(request), call);
    json results = json::array(), counts = json::array();
    const bool is_summary = Get(request, "summary", false);
    for (const auto& labels : found) {
      json written = Write(labels);
      counts.push_back(written.size());
      if (is_summary) written.erase(written.begin() + 1, written.end());
      results.push_back(std::move(written));
    }
    if (is_summary) return {{"results", results}, {"counts", counts}};
    return {{"results", results}};
  }

  json Compare(const json& request, const CallOptions& call) {
    std::vector<std::pair<Image, std::string>> pairs;
    for (const json& each : request.at("pairs")) pairs.emplace_back(ReadImage(each.at("image")), each.at("text"));
    json comparisons = json::array();
    for (const auto& each : client_->Compare(pairs, Get(request, "truncate", false), call)) comparisons.push_back(Write(each));
    return {{"comparisons", comparisons}};
  }

  json ModelInfo(const CallOptions& call) {
    const auto info = client_->ModelInfo(call);
    google::protobuf::util::JsonPrintOptions options;
    options.always_print_primitive_fields = true;
    options.preserve_proto_field_names = true;
    std::string text;
    if (!google::protobuf::util::MessageToJsonString(info, &text, options).ok()) std::abort();
    json written = json::parse(text);
    for (auto& [name, value] : written.items()) {  // JSON of protobuf has 64-bit integers as strings
      const auto* field = info.GetDescriptor()->FindFieldByName(name);
      if (field->cpp_type() == google::protobuf::FieldDescriptor::CPPTYPE_INT64) value = std::stoll(value.get<std::string>());
    }
    return written;
  }

  alignserve::Item ReadItem(const json& given) {
    const std::string id = given.at("id"), kind = given.at("kind");
    if (kind == "image") return alignserve::ImageItem(id, ReadImage(given.at("image")), ReadEmbedOptions(given));
    if (kind == "text") return alignserve::TextItem(id, given.at("text"), ReadEmbedOptions(given));
    if (kind == "query") return alignserve::QueryItem(id, ReadQuery(given), ReadEmbedOptions(given));
    if (kind == "compare") {
      return alignserve::CompareItem(id, ReadImage(given.at("image")), given.at("text"), Get(given, "truncate", false));
    }
    return alignserve::ClassifyItem(id, ReadImage(given.at("image")), given.at("labels"), ReadClassifyOptions(given));
  }

  json Stream(const json& request) {
    results_ = json::array();
    int reconnects = 0;
    std::map<std::string, std::string> kinds;
    for (const json& each : request.at("items")) kinds[each.at("id")] = each.at("kind");
    alignserve::StreamOptions options;
    options.window = request.at("window");
    options.ordered = Get(request, "ordered", false);
    if (const json* seconds = Find(request, "timeout_seconds")) options.timeout = Seconds(*seconds);
    options.on_reconnect = [&] { ++reconnects; };
    auto item = request.at("items").begin();
    const size_t every = Get(request, "progress_every", size_t{0}), enough = Get(request, "cancel_after_items", size_t{0});
    client_->Stream(
        [&]() -> std::optional<alignserve::Item> {
          if (item == request.at("items").end()) return std::nullopt;
          return ReadItem(*item++);
        },
        [&](const alignserve::Result& result) {
          results_.push_back(WriteResult(result, kinds.at(result.id)));
          if (every && results_.size() % every == 0) {
            std::cout << json{{"id", request.at("id")}, {"progress", results_.size()}}.dump() << std::endl;
          }
          return results_.size() != enough;
        },
        options);
    return {{"results", std::move(results_)}, {"reconnects", reconnects}};
  }

  static json WriteResult(const alignserve::Result& result, const std::string& kind) {
    json written = {{"id", result.id}};
    if (result.error) {
      written["error"] = Write(*result.error);
    } else if (kind == "classify") {
      written["classifications"] = Write(result.classifications);
    } else if (kind == "compare") {
      written.update(Write(result.comparison));
    } else {
      written["embedding"] = Write(result.embedding);
    }
    return written;
  }

  json Repeat(const json& request) {
    std::atomic<int> left{request.at("calls").get<int>()};
    std::mutex mutex;
    std::map<std::pair<std::string, std::string>, int> failed;
    std::vector<std::thread> callers;
    for (int i = 0; i < request.at("concurrency"); ++i) {
      callers.emplace_back([&] {
        while (left-- > 0) {
          const json answer = Answer(request.at("request"));
          const json* error = Find(answer, "error");
          if (!error) continue;
          std::lock_guard<std::mutex> lock(mutex);
          ++failed[{error->at("code"), error->at("reason")}];
        }
      });
    }
    for (auto& caller : callers) caller.join();
    json errors = json::array();
    int failures = 0;
    for (const auto& [kind, count] : failed) {
      errors.push_back({{"code", kind.first}, {"reason", kind.second}, {"count", count}});
      failures += count;
    }
    return {{"answered", request.at("calls").get<int>() - failures}, {"errors", errors}};
  }

  std::unique_ptr<alignserve::Client> client_;
  json results_;
};

}  // namespace

int main() {
  std::ios::sync_with_stdio(false);
  Driver driver;
  for (std::string line; std::getline(std::cin, line);) {
    const json request = json::parse(line);
    json answer = driver.Answer(request);
    answer["id"] = request.at("id");
    std::cout << answer.dump() << std::endl;
  }
}
