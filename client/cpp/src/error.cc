#include "alignserve/error.h"

#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"

namespace alignserve {
namespace {

const char* const kCodeNames[] = {
    "OK",           "CANCELLED",         "UNKNOWN",           "INVALID_ARGUMENT",    "DEADLINE_EXCEEDED", "NOT_FOUND",
    "ALREADY_EXISTS", "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED",           "OUT_OF_RANGE",
    "UNIMPLEMENTED", "INTERNAL",          "UNAVAILABLE",       "DATA_LOSS",           "UNAUTHENTICATED"};

void AddDetail(const google::protobuf::Any& detail, Error& error) {
  google::rpc::ErrorInfo info;
  google::rpc::BadRequest request;
  google::rpc::RetryInfo retry;
  if (detail.UnpackTo(&info)) {
    error.reason = info.reason();
    error.domain = info.domain();
    error.metadata = {info.metadata().begin(), info.metadata().end()};
  } else if (detail.UnpackTo(&request)) {
    for (const auto& violation : request.field_violations()) {
      error.violations.push_back({violation.field(), violation.description(), violation.reason()});
    }
  } else if (detail.UnpackTo(&retry)) {
    error.retry_delay = std::chrono::seconds(retry.retry_delay().seconds()) +
                        std::chrono::nanoseconds(retry.retry_delay().nanos());
  }
}

}  // namespace

Error Error::FromStatus(const grpc::Status& status) {
  google::rpc::Status rich;
  if (!status.error_details().empty() && rich.ParseFromString(status.error_details())) return FromStatus(rich);
  const std::string& message = status.error_message();
  Error error(status.error_code(), message);
  return message.empty() ? Error(error.code, error.code_name()) : error;
}

Error Error::FromStatus(const google::rpc::Status& status) {
  Error error(static_cast<grpc::StatusCode>(status.code()), status.message());
  for (const auto& detail : status.details()) AddDetail(detail, error);
  return error;
}

std::string Error::code_name() const {
  const auto number = static_cast<size_t>(code);
  return number < std::size(kCodeNames) ? kCodeNames[number] : "UNKNOWN";
}

std::string Error::error_id() const {
  const auto found = metadata.find("error_id");
  return found == metadata.end() ? "" : found->second;
}

}  // namespace alignserve
