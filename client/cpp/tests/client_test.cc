// The client against a fake server, which runs as a process: FAKE_SERVER_PYTHON has the package `alignserve`.

#include <cstdio>
#include <cstdlib>
#include <future>
#include <stdexcept>
#include <thread>

#include <sys/wait.h>
#include <unistd.h>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "alignserve/client.h"

namespace alignserve {
namespace {

using nlohmann::json;

// A fake server, scripted over its standard input.
class FakeServer {
 public:
  FakeServer() {
    int to[2], from[2];
    if (pipe(to) || pipe(from)) std::abort();
    process_ = fork();
    if (process_ == 0) {
      dup2(to[0], 0);
      dup2(from[1], 1);
      for (const int file : {to[0], to[1], from[0], from[1]}) close(file);
      const char* given = std::getenv("FAKE_SERVER_PYTHON");
      const char* python = given ? given : "python3";
      execlp(python, python, "-m", "alignserve.testing", nullptr);
      _exit(127);
    }
    close(to[0]);
    close(from[1]);
    input_ = fdopen(to[1], "w");
    output_ = fdopen(from[0], "r");
    target_ = Read().at("target");
  }

  ~FakeServer() {
    std::fclose(input_);
    std::fclose(output_);
    waitpid(process_, nullptr, 0);
  }

  const std::string& target() const { return target_; }

  json Call(const std::string& name, const json& arguments) {
    std::fprintf(input_, "%s\n", json{{"call", name}, {"arguments", arguments}}.dump().c_str());
    std::fflush(input_);
    return Read().at("ok");
  }

 private:
  json Read() {
    std::string line;
    for (int c; (c = std::fgetc(output_)) != EOF && c != '\n';) line.push_back(static_cast<char>(c));
    return json::parse(line);
  }

  pid_t process_;
  FILE* input_;
  FILE* output_;
  std::string target_;
};

Options Plaintext() {
  Options options;
  options.plaintext = true;
  return options;
}

class ClientTest : public testing::Test {
 protected:
  FakeServer server_;
  Client client_{server_.target(), Plaintext()};
};

TEST_F(ClientTest, TheSameTextHasTheSameEmbedding) {
  EXPECT_EQ(client_.EmbedTexts({"a dog", "a cat"}).embeddings[1].values,
            client_.EmbedTexts({"a cat"}).embeddings[0].values);
}

TEST_F(ClientTest, ARefusedTextIsNamed) {
  try {
    client_.EmbedTexts({"a cat", " "});
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.reason, "TEXT_EMPTY");
    ASSERT_EQ(error.violations.size(), 1u);
    EXPECT_EQ(error.violations[0].field, "texts[1]");
  }
}

TEST_F(ClientTest, AFullQueueIsWaitedFor) {
  server_.Call("fail_next", {{"code", "RESOURCE_EXHAUSTED"}, {"reason", "QUEUE_FULL"}, {"retry_delay_seconds", 0.01}});
  EXPECT_EQ(client_.EmbedTexts({"a cat"}).embeddings.size(), 1u);
}

TEST_F(ClientTest, ADelayBeyondTheDeadlineIsNotWaitedFor) {
  server_.Call("fail_next", {{"code", "UNAVAILABLE"}, {"reason", "MODEL_LOADING"}, {"retry_delay_seconds", 60}});
  CallOptions call;
  call.timeout = std::chrono::seconds(30);
  EXPECT_THROW(client_.EmbedTexts({"a cat"}, {}, call), Error);
}

TEST_F(ClientTest, AStreamThatBreaksLosesNothing) {
  server_.Call("break_stream", {{"after", 3}, {"code", "UNAVAILABLE"}, {"retry_delay_seconds", 0.01}});
  int sent = 0, reconnects = 0;
  std::multiset<std::string> answered;
  StreamOptions options;
  options.window = 4;
  options.on_reconnect = [&] { ++reconnects; };
  client_.Stream(
      [&]() -> std::optional<Item> {
        if (sent == 10) return std::nullopt;
        const std::string id = std::to_string(sent++);
        return TextItem(id, "text " + id);
      },
      [&](const Result& result) { return answered.insert(result.id), true; }, options);
  EXPECT_EQ(answered, (std::multiset<std::string>{"0", "1", "2", "3", "4", "5", "6", "7", "8", "9"}));
  EXPECT_EQ(reconnects, 1);
}

TEST_F(ClientTest, AnItemThatIsUnavailableIsSentAgain) {
  server_.Call("fail_input", {{"content", "a cat"}, {"code", "UNAVAILABLE"}, {"reason", "MODEL_LOADING"}, {"times", 1}});
  bool is_sent = false;
  std::vector<Result> results;
  client_.Stream(
      [&]() -> std::optional<Item> {
        if (is_sent) return std::nullopt;
        is_sent = true;
        return TextItem("cat", "a cat");
      },
      [&](Result result) { return results.push_back(std::move(result)), true; });
  ASSERT_EQ(results.size(), 1u);
  EXPECT_FALSE(results[0].error);
}

TEST_F(ClientTest, ACallThatWaitsForItsRepeatCanBeCancelled) {
  server_.Call("fail_next", {{"code", "RESOURCE_EXHAUSTED"}, {"reason", "QUEUE_FULL"}, {"retry_delay_seconds", 3600}});
  Cancellation cancellation;
  CallOptions call;
  call.cancellation = &cancellation;
  call.timeout = std::chrono::milliseconds(0);
  std::thread canceller([&] {
    server_.Call("wait_for_received", {{"count", 1}});
    cancellation.Cancel();
  });
  try {
    client_.EmbedTexts({"a cat"}, {}, call);
    ADD_FAILURE();
  } catch (const Error& error) {
    EXPECT_EQ(error.code, grpc::StatusCode::CANCELLED);
  }
  canceller.join();
}

TEST_F(ClientTest, AStreamThatWaitsForItemsCanBeCancelled) {
  Cancellation cancellation;
  StreamOptions options;
  options.cancellation = &cancellation;
  std::promise<void> is_cancelled;
  bool is_first = true;
  const auto next = [&]() -> std::optional<Item> {
    if (!is_first) is_cancelled.get_future().wait();
    is_first = false;
    return TextItem("cat", "a cat");
  };
  const auto take = [&](const Result&) {
    std::thread([&] {
      cancellation.Cancel();
      is_cancelled.set_value();
    }).detach();
    return true;
  };
  EXPECT_THROW(client_.Stream(next, take, options), Error);
}

TEST_F(ClientTest, AWindowIsPositive) {
  StreamOptions options;
  options.window = 0;
  EXPECT_THROW(client_.Stream([] { return std::nullopt; }, [](const Result&) { return true; }, options),
               std::invalid_argument);
}

TEST(Client, AKeyWithALineBreakInsideIsRefusedAndNotShown) {
  Options options;
  options.api_key = "as_secret\nkey";
  try {
    Client("localhost:1", options);
    FAIL();
  } catch (const std::invalid_argument& error) {
    EXPECT_EQ(std::string(error.what()).find("as_secret"), std::string::npos);
  }
}

TEST_F(ClientTest, AnEndlessStreamCanBeLeft) {
  int answered = 0;
  client_.Stream([]() -> std::optional<Item> { return TextItem("", "a cat"); },
                 [&](const Result&) { return ++answered < 5; });
  EXPECT_EQ(answered, 5);
}

TEST_F(ClientTest, WhatTheItemsThrowReachesTheCaller) {
  EXPECT_THROW(client_.Stream([]() -> std::optional<Item> { throw std::logic_error("no more"); },
                              [](const Result&) { return true; }),
               std::logic_error);
}

TEST_F(ClientTest, WhatTheCallerThrowsEndsTheStream) {
  EXPECT_THROW(client_.Stream([]() -> std::optional<Item> { return TextItem("", "a cat"); },
                              [](const Result&) -> bool { throw std::logic_error("full"); }),
               std::logic_error);
}

}  // namespace
}  // namespace alignserve
