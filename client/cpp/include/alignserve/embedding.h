// Embeddings, and how they are read from messages.
#ifndef ALIGNSERVE_EMBEDDING_H_
#define ALIGNSERVE_EMBEDDING_H_

#include <cstdint>
#include <string>
#include <vector>

#include "alignserve/v1/align_service.pb.h"

namespace alignserve {

// How embeddings are sent. All but kInt8 and kBinary are read as floats.
enum class Format { kFloat32, kFloat16, kInt8, kBinary, kFloatList };

// A vector in the format that was asked for.
struct Embedding {
  std::vector<float> values;  // kFloat32, kFloat16, kFloatList

  std::vector<int8_t> int8;  // kInt8: an element is about its byte times `int8_scale`
  float int8_scale = 0;

  std::string bits;  // kBinary: the sign of each element, the first in the highest bit of the first byte
};

// Reads a message. Its bytes may lie at any address.
Embedding ReadEmbedding(const v1::Embedding& message);

// Returns the cosine similarity of two vectors of the same size.
double Cosine(const std::vector<float>& one, const std::vector<float>& other);

}  // namespace alignserve

#endif  // ALIGNSERVE_EMBEDDING_H_
