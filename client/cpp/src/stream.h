// Sends items with bounded work in flight, and opens the stream again when a server ends it.
#ifndef ALIGNSERVE_SRC_STREAM_H_
#define ALIGNSERVE_SRC_STREAM_H_

#include <condition_variable>
#include <deque>
#include <exception>
#include <map>
#include <mutex>
#include <string>

#include "alignserve/client.h"
#include "alignserve/v1/align_service.grpc.pb.h"
#include "retry.h"

namespace alignserve {

// The items of a stream: those that wait to be sent, and those without an answer.
class Outbox {
 public:
  Outbox(const std::function<std::optional<Item>()>& next, int window) : next_(next), window_(window) {}

  // Takes items from `next` as the window allows, until there are no more or the stream is over.
  void Feed();

  // Returns the next request to send; blocks until there is one. None if there will be none in this attempt.
  const v1::StreamInferRequest* Next(int attempt);

  // Removes an answered item; returns its id, or none if it has been answered before.
  std::optional<std::string> Answered(const std::string& correlation_id);

  // Ends the sending of this attempt, and returns the number of the next one, which sends what is unanswered again.
  int Reopen();

  // Ends everything. Returns what `next` threw, if it did.
  std::exception_ptr Close();

 private:
  const std::function<std::optional<Item>()>& next_;
  const size_t window_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::map<uint64_t, Item> unanswered_;  // by correlation id, in the order of the items
  std::deque<uint64_t> to_send_;
  uint64_t last_id_ = 0;
  int attempt_ = 0;
  bool is_fed_ = false;
  bool is_closed_ = false;
  std::exception_ptr failure_;
};

}  // namespace alignserve

#endif  // ALIGNSERVE_SRC_STREAM_H_
