#include "alignserve/embedding.h"

#include <cmath>
#include <cstring>
#include <limits>

namespace alignserve {
namespace {

// Little-endian, wherever the bytes lie and whatever this machine's order is.
uint32_t ReadUnsigned(const char* bytes, size_t size) {
  uint32_t number = 0;
  for (size_t i = 0; i < size; ++i) number |= static_cast<uint32_t>(static_cast<unsigned char>(bytes[i])) << (8 * i);
  return number;
}

float ReadFloat(const char* bytes) {
  const uint32_t bits = ReadUnsigned(bytes, 4);
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

float ReadHalf(const char* bytes) {
  const uint32_t bits = ReadUnsigned(bytes, 2);
  const int exponent = (bits >> 10) & 0x1f;
  const int fraction = bits & 0x3ff;
  float size;
  if (exponent == 0x1f) {
    size = fraction ? std::numeric_limits<float>::quiet_NaN() : std::numeric_limits<float>::infinity();
  } else if (exponent == 0) {
    size = std::ldexp(static_cast<float>(fraction), -24);
  } else {
    size = std::ldexp(static_cast<float>(1024 + fraction), exponent - 25);
  }
  return bits & 0x8000 ? -size : size;
}

}  // namespace

Embedding ReadEmbedding(const v1::Embedding& message) {
  Embedding embedding;
  embedding.values.assign(message.values().begin(), message.values().end());
  const std::string& floats = message.packed_float32();
  for (size_t i = 0; i + 4 <= floats.size(); i += 4) embedding.values.push_back(ReadFloat(&floats[i]));
  const std::string& halves = message.packed_float16();
  for (size_t i = 0; i + 2 <= halves.size(); i += 2) embedding.values.push_back(ReadHalf(&halves[i]));
  embedding.int8.assign(message.packed_int8().begin(), message.packed_int8().end());
  embedding.int8_scale = message.int8_scale();
  embedding.bits = message.packed_binary();
  return embedding;
}

double Cosine(const std::vector<float>& one, const std::vector<float>& other) {
  double product = 0, one_square = 0, other_square = 0;
  for (size_t i = 0; i < one.size() && i < other.size(); ++i) {
    product += static_cast<double>(one[i]) * other[i];
    one_square += static_cast<double>(one[i]) * one[i];
    other_square += static_cast<double>(other[i]) * other[i];
  }
  return product / std::sqrt(one_square * other_square);
}

}  // namespace alignserve
