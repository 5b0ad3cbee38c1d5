#include "stream.h"

#include <cstdlib>
#include <stdexcept>
#include <utility>

namespace alignserve {

Outbox::Outbox(const std::function<std::optional<Item>()>& next, int window) : next_(next), window_(window) {
  if (window < 1) throw std::invalid_argument("window is " + std::to_string(window) + ", and must be at least 1");
}

void Outbox::Feed() {
  std::exception_ptr failure;
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
      unanswered_.emplace(id, std::make_shared<Item>(std::move(*item)));
      to_send_.push_back(id);
      changed_.notify_all();
    }
  } catch (...) {
    failure = std::current_exception();
  }
  std::lock_guard<std::mutex> lock(mutex_);
  failure_ = failure;
  is_fed_ = true;
  changed_.notify_all();
}

bool Outbox::WaitForItem(Deadline deadline) {
  std::unique_lock<std::mutex> lock(mutex_);
  const auto is_over = [this] { return is_closed_ || is_fed_ || !unanswered_.empty(); };
  if (deadline) {
    changed_.wait_until(lock, *deadline, is_over);
  } else {
    changed_.wait(lock, is_over);
  }
  return !is_closed_ && !unanswered_.empty();
}

std::shared_ptr<const Item> Outbox::Next(int attempt) {
  std::unique_lock<std::mutex> lock(mutex_);
  for (;;) {
    changed_.wait(lock, [&] { return attempt != attempt_ || is_closed_ || is_fed_ || !to_send_.empty(); });
    if (attempt != attempt_ || is_closed_ || to_send_.empty()) return nullptr;
    const auto found = unanswered_.find(to_send_.front());
    to_send_.pop_front();
    if (found != unanswered_.end()) return found->second;
  }
}

std::optional<std::string> Outbox::Answered(const std::string& correlation_id) {
  std::lock_guard<std::mutex> lock(mutex_);
  const auto found = unanswered_.find(std::strtoull(correlation_id.c_str(), nullptr, 10));
  if (found == unanswered_.end()) return std::nullopt;
  std::string id = found->second->id;
  unanswered_.erase(found);
  changed_.notify_all();
  return id;
}

void Outbox::EndAttempt() {
  std::lock_guard<std::mutex> lock(mutex_);
  to_send_.clear();
  for (const auto& [id, item] : unanswered_) to_send_.push_back(id);
  ++attempt_;
  changed_.notify_all();
}

bool Outbox::IsDone() {
  std::lock_guard<std::mutex> lock(mutex_);
  return is_fed_ && unanswered_.empty();
}

void Outbox::Close() {
  std::lock_guard<std::mutex> lock(mutex_);
  is_closed_ = true;
  changed_.notify_all();
}

std::exception_ptr Outbox::failure() {
  std::lock_guard<std::mutex> lock(mutex_);
  return failure_;
}

}  // namespace alignserve
