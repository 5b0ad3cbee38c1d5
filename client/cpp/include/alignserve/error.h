// Errors of calls, and of items of a stream.
#ifndef ALIGNSERVE_ERROR_H_
#define ALIGNSERVE_ERROR_H_

#include <chrono>
#include <map>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include <grpcpp/support/status.h>

namespace google::rpc {
class Status;
}

namespace alignserve {

// A field at fault.
struct Violation {
  std::string field;        // path, such as images[3].content
  std::string description;  // for people
  std::string reason;
};

// A call that failed, or an item of a stream. `reason` is empty unless the server gave one.
class Error : public std::runtime_error {
 public:
  Error(grpc::StatusCode code, const std::string& message) : std::runtime_error(message), code(code) {}

  // Reads the details of a status.
  static Error FromStatus(const grpc::Status& status);
  static Error FromStatus(const google::rpc::Status& status);

  // The name of the code, such as UNAVAILABLE.
  std::string code_name() const;

  // The id under which the server logged a failure, or an empty string.
  std::string error_id() const;

  grpc::StatusCode code;
  std::string reason;  // stable, such as QUEUE_FULL
  std::string domain;  // alignserve.v1
  std::vector<Violation> violations;
  std::optional<std::chrono::nanoseconds> retry_delay;
  std::map<std::string, std::string> metadata;
};

}  // namespace alignserve

#endif  // ALIGNSERVE_ERROR_H_
