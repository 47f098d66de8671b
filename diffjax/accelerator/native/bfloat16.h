// bfloat16 as its bits, with conversions that compilers turn into vector operations.
#pragma once

#include <bit>
#include <cstdint>

namespace diffjax {

using bf16 = uint16_t;

inline float load(const float* p) { return *p; }
inline float load(const bf16* p) { return std::bit_cast<float>(static_cast<uint32_t>(*p) << 16); }

inline void store(float* p, float v) { *p = v; }

// To nearest, ties to even; a NaN stays one.
inline void store(bf16* p, float v) {
  const uint32_t bits = std::bit_cast<uint32_t>(v);
  const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  *p = static_cast<bf16>(v != v ? (bits >> 16) | 0x40 : rounded);
}

}  // namespace diffjax
