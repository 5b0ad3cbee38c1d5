// The client against a fake server, which runs as a process: FAKE_SERVER_PYTHON has the package `alignserve`.

#include <cstdio>
#include <cstdlib>
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

class ClientTest : public testing::Test {
 protected:
  FakeServer server_;
  Client client_{server_.target()};
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
