// Sends items with bounded work in flight, and opens the stream again when a server ends it.
#ifndef ALIGNSERVE_SRC_STREAM_H_
#define ALIGNSERVE_SRC_STREAM_H_

#include <condition_variable>
#include <deque>
#include <exception>
#include <map>
#include <memory>
#include <mutex>
#include <string>

#include "alignserve/client.h"
#include "alignserve/v1/align_service.grpc.pb.h"
#include "retry.h"

namespace alignserve {

// The items of a stream: those that wait to be sent, and those without an answer.
class Outbox {
 public:
  // Throws std::invalid_argument if the window is not positive.
  Outbox(const std::function<std::optional<Item>()>& next, int window);

  // Takes items from `next` as the window allows, until there are no more or the stream is over.
  void Feed();

  // Waits until there is an item to send. Returns false if there will be none, and at the deadline.
  bool WaitForItem(Deadline deadline);

  // Returns the next item to send; blocks until there is one. Null if there will be none in this attempt.
  std::shared_ptr<const Item> Next(int attempt);

  // Removes an answered item; returns its id, or none if it has been answered before.
  std::optional<std::string> Answered(const std::string& correlation_id);

  // Ends the sending of this attempt. The next one, numbered one higher, sends what is unanswered again.
  void EndAttempt();

  // Returns whether all items have been answered.
  bool IsDone();

  // Ends everything.
  void Close();

  // Returns what `next` threw, if it did.
  std::exception_ptr failure();

 private:
  const std::function<std::optional<Item>()>& next_;
  const size_t window_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::map<uint64_t, std::shared_ptr<const Item>> unanswered_;  // by correlation id, in the order of the items
  std::deque<uint64_t> to_send_;
  uint64_t last_id_ = 0;
  int attempt_ = 0;
  bool is_fed_ = false;
  bool is_closed_ = false;
  std::exception_ptr failure_;
};

}  // namespace alignserve

#endif  // ALIGNSERVE_SRC_STREAM_H_
