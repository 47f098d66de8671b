// exp of a float in operations that a compiler turns into vectors.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

namespace diffjax {

// exp(v) for v in [-87, 87], to which v is limited; to 2 units in the last place: 2^n times a
// polynomial on [-ln2/2, ln2/2].
inline float exp_within(float v) {
  v = v < -87.0f ? -87.0f : v;
  v = v > 87.0f ? 87.0f : v;
  float n = std::nearbyint(v * 1.44269504f);
  float r = (v - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  return p * std::bit_cast<float>((static_cast<int32_t>(n) + 127) << 23);
}

}  // namespace diffjax
