// Decides whether and when a failed attempt is repeated.
#ifndef ALIGNSERVE_SRC_RETRY_H_
#define ALIGNSERVE_SRC_RETRY_H_

#include <chrono>
#include <functional>
#include <optional>

#include <grpcpp/client_context.h>

#include "alignserve/client.h"

namespace alignserve {

using Clock = std::chrono::system_clock;  // as gRPC's deadlines
using Deadline = std::optional<Clock::time_point>;

// Runs an action when a Cancellation, which may be null, is cancelled while this object exists; at once if it is already.
class OnCancel {
 public:
  OnCancel(Cancellation* cancellation, std::function<void()> action);
  ~OnCancel();
  OnCancel(const OnCancel&) = delete;
  OnCancel& operator=(const OnCancel&) = delete;

 private:
  Cancellation* const cancellation_;
  const std::function<void()> action_;
};

// Throws an Error if the caller has cancelled.
void ThrowIfCancelled(const Cancellation* cancellation);

// Counts the attempts of a call or a stream, and waits between them.
class Retry {
 public:
  enum class Kind { kCall, kStream };

  Retry(Kind kind, bool is_enabled, Deadline deadline, Cancellation* cancellation)
      : kind_(kind), is_enabled_(is_enabled), deadline_(deadline), cancellation_(cancellation) {}

  // Starts to count again, since the server has answered an item.
  void Progressed() { attempts_ = 0; }

  // Waits until the next attempt. Throws the error if there is none.
  void Wait(const Error& error);

 private:
  bool IsLast(const Error& error);

  const Kind kind_;
  const bool is_enabled_;
  const Deadline deadline_;
  Cancellation* const cancellation_;
  int attempts_ = 0;
  int breaks_ = 0;  // attempts that ended with a broken connection or without a server
};

}  // namespace alignserve

#endif  // ALIGNSERVE_SRC_RETRY_H_
