// Decides whether and when a failed attempt is repeated.
#ifndef ALIGNSERVE_SRC_RETRY_H_
#define ALIGNSERVE_SRC_RETRY_H_

#include <chrono>

#include "alignserve/client.h"

namespace alignserve {

using Clock = std::chrono::system_clock;  // as gRPC's deadlines

// A context that a Cancellation can cancel while it exists.
class CancellableContext : public grpc::ClientContext {
 public:
  explicit CancellableContext(Cancellation* cancellation);
  ~CancellableContext();

 private:
  Cancellation* cancellation_;
};

class Retry {
 public:
  Retry(bool is_enabled, Clock::time_point deadline, Cancellation* cancellation)
      : is_enabled_(is_enabled), deadline_(deadline), cancellation_(cancellation) {}

  // Starts to count again, since the server has answered something.
  void Progressed() { failures_ = 0; }

  // Waits until the next attempt. Throws the error if there is none.
  void Wait(const Error& error);

 private:
  std::chrono::nanoseconds Delay(const Error& error) const;

  bool is_enabled_;
  Clock::time_point deadline_;
  Cancellation* cancellation_;
  int failures_ = 0;
};

}  // namespace alignserve

#endif  // ALIGNSERVE_SRC_RETRY_H_
