#include "retry.h"

#include <algorithm>
#include <random>
#include <thread>
#include <utility>

namespace alignserve {
namespace {

constexpr int kMaxAttempts = 5;
constexpr int kMaxStreamAttempts = 10;  // without an answer
constexpr std::chrono::milliseconds kFirstBackoff(100);
constexpr std::chrono::milliseconds kMaxBackoff(5000);
constexpr double kJitter = 0.25;  // largest random addition, so that clients do not repeat in step

// Waiting brings the deadline closer. Without a delay it is the limit of a proxy, or of a message's size.
bool IsRefusal(const Error& error) {
  return error.code == grpc::StatusCode::RESOURCE_EXHAUSTED && error.retry_delay &&
         error.reason != "WOULD_MISS_DEADLINE";
}

// The caller's own cancellation never gets here, so CANCELLED comes from a connection that is being closed.
bool IsBroken(const Error& error) {
  return error.code == grpc::StatusCode::UNAVAILABLE ||
         (error.code == grpc::StatusCode::CANCELLED && error.reason.empty());
}

// The server gives a reason with each INTERNAL. Without one, a proxy has reset the stream of a server that died.
bool IsReset(const Error& error) { return error.code == grpc::StatusCode::INTERNAL && error.reason.empty(); }

// The server's delay, or a growing one if that is longer.
std::chrono::nanoseconds Delay(const Error& error, int attempts) {
  thread_local std::mt19937 random{std::random_device{}()};
  std::chrono::nanoseconds delay = std::min(kMaxBackoff, kFirstBackoff * (1 << std::min(attempts - 1, 16)));
  if (error.retry_delay) delay = std::max(delay, *error.retry_delay);
  const std::chrono::duration<double, std::nano> longer =
      delay * (1 + std::uniform_real_distribution<>(0, kJitter)(random));
  return std::chrono::duration_cast<std::chrono::nanoseconds>(longer);
}

Error CancelledByCaller() { return Error(grpc::StatusCode::CANCELLED, "the caller cancelled the call"); }

}  // namespace

void Cancellation::Cancel() {
  std::lock_guard<std::mutex> lock(mutex_);
  if (is_cancelled_) return;
  is_cancelled_ = true;
  for (const auto* action : actions_) (*action)();
  changed_.notify_all();
}

bool Cancellation::is_cancelled() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return is_cancelled_;
}

OnCancel::OnCancel(Cancellation* cancellation, std::function<void()> action)
    : cancellation_(cancellation), action_(std::move(action)) {
  if (!cancellation_) return;
  std::lock_guard<std::mutex> lock(cancellation_->mutex_);
  if (cancellation_->is_cancelled_) action_();
  cancellation_->actions_.insert(&action_);
}

OnCancel::~OnCancel() {
  if (!cancellation_) return;
  std::lock_guard<std::mutex> lock(cancellation_->mutex_);
  cancellation_->actions_.erase(&action_);
}

void ThrowIfCancelled(const Cancellation* cancellation) {
  if (cancellation && cancellation->is_cancelled()) throw CancelledByCaller();
}

void Retry::Wait(const Error& error) {
  ThrowIfCancelled(cancellation_);
  if (!is_enabled_ || IsLast(error)) throw error;
  const auto delay = Delay(error, attempts_);
  if (deadline_ && *deadline_ - Clock::now() <= delay) throw error;
  if (!cancellation_) {
    std::this_thread::sleep_for(delay);
    return;
  }
  std::unique_lock<std::mutex> lock(cancellation_->mutex_);
  if (cancellation_->changed_.wait_for(lock, delay, [this] { return cancellation_->is_cancelled_; })) {
    throw CancelledByCaller();
  }
}

bool Retry::IsLast(const Error& error) {
  ++attempts_;
  if (kind_ == Kind::kStream) {
    if (error.reason == "STREAM_AGED") attempts_ = 1;  // no failure: the stream is to move to another server
    return attempts_ >= kMaxStreamAttempts || !(IsBroken(error) || IsReset(error) || IsRefusal(error));
  }
  if (IsRefusal(error)) return false;  // the deadline limits these
  if (error.reason != "SHUTTING_DOWN") ++breaks_;
  return breaks_ >= kMaxAttempts || !IsBroken(error);
}

}  // namespace alignserve
