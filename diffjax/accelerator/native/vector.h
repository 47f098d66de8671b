// Vectors of floats as wide as the processor's, by the extension that g++ and clang++ share:
// arithmetic on them is written as on numbers.
#pragma once

#include <cstdint>
#include <cstring>

#include "bfloat16.h"

namespace diffjax {

#if defined(__AVX512F__)
constexpr int64_t kWidth = 16;
#else
constexpr int64_t kWidth = 8;
#endif

typedef float vec __attribute__((vector_size(kWidth * sizeof(float))));
typedef uint32_t vec_bits __attribute__((vector_size(kWidth * sizeof(uint32_t))));
typedef uint16_t vec_halves __attribute__((vector_size(kWidth * sizeof(uint16_t))));

inline vec load_vec(const float* p) {
  vec v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

inline vec load_vec(const bf16* p) {
  vec_halves halves;
  std::memcpy(&halves, p, sizeof halves);
  return std::bit_cast<vec>(__builtin_convertvector(halves, vec_bits) << 16);
}

inline void store_vec(float* p, vec v) { std::memcpy(p, &v, sizeof v); }

// As `store` of bfloat16.h.
inline void store_vec(bf16* p, vec v) {
  const vec_bits bits = std::bit_cast<vec_bits>(v);
  const vec_bits rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  const vec_bits is_nan = std::bit_cast<vec_bits>(v != v);
  const vec_bits high = (rounded & ~is_nan) | (0x7fc0 & is_nan);
  const vec_halves halves = __builtin_convertvector(high, vec_halves);
  std::memcpy(p, &halves, sizeof halves);
}

}  // namespace diffjax
