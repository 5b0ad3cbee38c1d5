#include "stream.h"

#include <cstdlib>
#include <utility>

namespace alignserve {

void Outbox::Feed() {
  try {
    for (;;) {
      {
        std::unique_lock<std::mutex> lock(mutex_);
        changed_.wait(lock, [this] { return is_closed_ || unanswered_.size() < window_; });
        if (is_closed_) break;
      }
      std::optional<Item> item = next_();
      if (!item) break;
      std::lock_guard<std::mutex> lock(mutex_);
      const uint64_t id = ++last_id_;
      item->request.set_correlation_id(std::to_string(id));
      unanswered_.emplace(id, std::move(*item));
      to_send_.push_back(id);
      changed_.notify_all();
    }
  } catch (...) {
    failure_ = std::current_exception();
  }
  std::lock_guard<std::mutex> lock(mutex_);
  is_fed_ = true;
  changed_.notify_all();
}

const v1::StreamInferRequest* Outbox::Next(int attempt) {
  std::unique_lock<std::mutex> lock(mutex_);
  for (;;) {
    changed_.wait(lock, [&] { return attempt != attempt_ || is_closed_ || is_fed_ || !to_send_.empty(); });
    if (attempt != attempt_ || is_closed_ || to_send_.empty()) return nullptr;
    const auto found = unanswered_.find(to_send_.front());
    to_send_.pop_front();
    // The address stays valid: only an answer removes the item, and none comes before it is sent.
    if (found != unanswered_.end()) return &found->second.request;
  }
}

std::optional<std::string> Outbox::Answered(const std::string& correlation_id) {
  std::lock_guard<std::mutex> lock(mutex_);
  const auto found = unanswered_.find(std::strtoull(correlation_id.c_str(), nullptr, 10));
  if (found == unanswered_.end()) return std::nullopt;
  std::string id = std::move(found->second.id);
  unanswered_.erase(found);
  changed_.notify_all();
  return id;
}

int Outbox::Reopen() {
  std::lock_guard<std::mutex> lock(mutex_);
  to_send_.clear();
  for (const auto& [id, item] : unanswered_) to_send_.push_back(id);
  changed_.notify_all();
  return ++attempt_;
}

std::exception_ptr Outbox::Close() {
  std::lock_guard<std::mutex> lock(mutex_);
  is_closed_ = true;
  changed_.notify_all();
  return failure_;
}

}  // namespace alignserve
