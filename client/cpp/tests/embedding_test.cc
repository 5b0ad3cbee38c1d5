#include <cmath>
#include <limits>

#include <gtest/gtest.h>

#include "alignserve/embedding.h"

namespace alignserve {
namespace {

TEST(Embedding, PackedFloatsAreLittleEndian) {
  v1::Embedding message;
  message.set_packed_float32(std::string("\x00\x00\x00\x3f\x00\x00\x00\xc0", 8));
  EXPECT_EQ(ReadEmbedding(message).values, (std::vector<float>{0.5f, -2.0f}));
}

TEST(Embedding, HalfFloatsAreReadAtTheirLimits) {
  v1::Embedding message;
  message.set_packed_float16(std::string("\x00\x3c\x01\x00\xff\x7b\x00\xfc", 8));
  EXPECT_EQ(ReadEmbedding(message).values,
            (std::vector<float>{1.0f, std::ldexp(1.0f, -24), 65504.0f, -std::numeric_limits<float>::infinity()}));
}

TEST(Embedding, Int8HasItsScale) {
  v1::Embedding message;
  message.set_packed_int8(std::string("\x7f\x81\x00", 3));
  message.set_int8_scale(0.5f);
  const Embedding embedding = ReadEmbedding(message);
  EXPECT_EQ(embedding.int8, (std::vector<int8_t>{127, -127, 0}));
  EXPECT_EQ(embedding.int8_scale, 0.5f);
}

TEST(Embedding, CosineIgnoresLengths) { EXPECT_NEAR(Cosine({1, 2}, {2, 4}), 1, 1e-12); }

}  // namespace
}  // namespace alignserve
