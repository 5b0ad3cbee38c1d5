#include "retry.h"

#include <algorithm>
#include <random>
#include <thread>

namespace alignserve {
namespace {

constexpr int kMaxAttempts = 10;
constexpr std::chrono::milliseconds kFirstBackoff(100);
constexpr std::chrono::milliseconds kMaxBackoff(5000);

// The caller's own cancellation never gets here, so CANCELLED comes from a connection that is being closed.
bool IsRepeatable(const Error& error) {
  switch (error.code) {
    case grpc::StatusCode::UNAVAILABLE:
    case grpc::StatusCode::CANCELLED:
      return true;
    case grpc::StatusCode::RESOURCE_EXHAUSTED:
      return error.retry_delay && error.reason != "WOULD_MISS_DEADLINE";
    default:
      return false;
  }
}

// Random, so that callers that failed together do not come again together.
std::chrono::nanoseconds Backoff(int failures) {
  thread_local std::mt19937 random{std::random_device{}()};
  const auto longest = std::min<std::chrono::milliseconds>(kMaxBackoff, kFirstBackoff * (1 << (failures - 1)));
  const double part = std::uniform_real_distribution<>(0.5, 1.0)(random);
  return std::chrono::duration_cast<std::chrono::nanoseconds>(longest * part);
}

Error CancelledByCaller() { return Error(grpc::StatusCode::CANCELLED, "the caller cancelled the call"); }

}  // namespace

void Cancellation::Cancel() {
  std::lock_guard<std::mutex> lock(mutex_);
  is_cancelled_ = true;
  for (grpc::ClientContext* context : contexts_) context->TryCancel();
  changed_.notify_all();
}

bool Cancellation::is_cancelled() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return is_cancelled_;
}

CancellableContext::CancellableContext(Cancellation* cancellation) : cancellation_(cancellation) {
  if (!cancellation_) return;
  std::lock_guard<std::mutex> lock(cancellation_->mutex_);
  cancellation_->contexts_.insert(this);
  if (cancellation_->is_cancelled_) TryCancel();
}

CancellableContext::~CancellableContext() {
  if (!cancellation_) return;
  std::lock_guard<std::mutex> lock(cancellation_->mutex_);
  cancellation_->contexts_.erase(this);
}

void Retry::Wait(const Error& error) {
  if (cancellation_ && cancellation_->is_cancelled()) throw CancelledByCaller();
  ++failures_;
  if (!is_enabled_ || failures_ >= kMaxAttempts || !IsRepeatable(error)) throw error;
  const auto delay = Delay(error);
  if (deadline_ - Clock::now() <= delay) throw error;
  if (!cancellation_) {
    std::this_thread::sleep_for(delay);
    return;
  }
  std::unique_lock<std::mutex> lock(cancellation_->mutex_);
  if (cancellation_->changed_.wait_for(lock, delay, [this] { return cancellation_->is_cancelled_; })) {
    throw CancelledByCaller();
  }
}

std::chrono::nanoseconds Retry::Delay(const Error& error) const {
  return error.retry_delay ? *error.retry_delay : Backoff(failures_);
}

}  // namespace alignserve
