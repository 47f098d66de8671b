// 3x3 convolutions of stride 1 by Winograd's minimal filtering, for processors with AVX2 and no
// AVX-512 (Lavin & Gray 2016, "Fast algorithms for convolutional neural networks").
//
// F(4x4, 3x3): a tile of 4x4 outputs takes 6x6 inputs and 36 products in place of 144,
//
//   Y = A^T [ (G g G^T) . (B^T d B) ] A
//
// where g is a 3x3 kernel and d the inputs. Summed over input channels the products are 36 matrix
// products, tiles x in times in x out. The input's gradient is such a convolution, too, and the
// kernel's is the same in reverse,
//
//   dg = G^T [ (B^T d B) . (A dY A^T) ] G
//
// with 36 products in x tiles times tiles x out. Tiles go through in blocks that stay in the
// second-level cache. Errors are about ten times those of direct sums in float32: 1e-5 of the
// largest value.
#pragma once

#include <algorithm>
#include <cstdint>

#include "bfloat16.h"
#include "parallel.h"

#if defined(__AVX2__) && defined(__FMA__)
#include <immintrin.h>
#endif

namespace diffjax {

struct WinogradShape {
  int64_t batch, rows, columns, in, out_rows, out_columns, out, top, left;

  int64_t tile_rows() const { return (out_rows + 3) / 4; }
  int64_t tile_columns() const { return (out_columns + 3) / 4; }
  int64_t tiles() const { return batch * tile_rows() * tile_columns(); }
};

// Floats between two of 36 matrices of `size`. One line more than a power of two, lest they share
// their places in the cache.
inline int64_t matrix_step(int64_t size) { return size + 16; }

// Where it pays: channels in whole vectors, enough tiles for the transformed kernel's sake, and no
// kernel so large that what a thread keeps for it (36 MiB for 512 to 512 channels) is a burden.
inline bool has_winograd(const WinogradShape& g) {
#if defined(__AVX2__) && defined(__FMA__)
  return g.in % 8 == 0 && g.out % 16 == 0 && g.tiles() >= 64 && g.in * g.out <= 512 * 512;
#else
  return false;
#endif
}

#if defined(__AVX2__) && defined(__FMA__)

namespace winograd {

constexpr int64_t kTiles = 24;  // a block; a multiple of the 6 tiles that one product holds
constexpr int64_t kOut = 16;    // output channels that one product holds

inline __m256 load8(const float* p) { return _mm256_loadu_ps(p); }
inline __m256 load8(const bf16* p) {
  const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}
inline void store8(float* p, __m256 v) { _mm256_storeu_ps(p, v); }
// As `store` of bfloat16.h.
inline void store8(bf16* p, __m256 v) {
  const __m256i bits = _mm256_castps_si256(v);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  __m256i high = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
  high = _mm256_srli_epi32(high, 16);
  const __m256i is_nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
  high = _mm256_blendv_epi8(high, _mm256_set1_epi32(0x7fc0), is_nan);
  const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(high, high), 0x08);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(packed));
}

inline __m256 times(float factor, __m256 v) { return _mm256_mul_ps(_mm256_set1_ps(factor), v); }
// factor v + w
inline __m256 plus(float factor, __m256 v, __m256 w) {
  return _mm256_fmadd_ps(_mm256_set1_ps(factor), v, w);
}

// t[i * step] = B^T d[i * step], six vectors each.
inline void transform_input(const __m256* d, __m256* t, int step) {
  const __m256 d0 = d[0], d1 = d[step], d2 = d[2 * step], d3 = d[3 * step], d4 = d[4 * step],
               d5 = d[5 * step];
  const __m256 a = plus(-4, d2, d4), b = plus(-4, d1, d3);
  const __m256 c = _mm256_sub_ps(d4, d2), e = times(2, _mm256_sub_ps(d3, d1));
  t[0] = plus(4, d0, plus(-5, d2, d4));
  t[step] = _mm256_add_ps(a, b);
  t[2 * step] = _mm256_sub_ps(a, b);
  t[3 * step] = _mm256_add_ps(c, e);
  t[4 * step] = _mm256_sub_ps(c, e);
  t[5 * step] = plus(4, d1, plus(-5, d3, d5));
}

// y[i * to] = A^T m[i * from]: four vectors of six.
inline void transform_output(const __m256* m, int from, __m256* y, int to) {
  const __m256 a = _mm256_add_ps(m[from], m[2 * from]), b = _mm256_sub_ps(m[from], m[2 * from]);
  const __m256 c = _mm256_add_ps(m[3 * from], m[4 * from]);
  const __m256 d = _mm256_sub_ps(m[3 * from], m[4 * from]);
  y[0] = _mm256_add_ps(m[0], _mm256_add_ps(a, c));
  y[to] = plus(2, d, b);
  y[2 * to] = plus(4, c, a);
  y[3 * to] = plus(8, d, _mm256_add_ps(b, m[5 * from]));
}

// u[i * to] = G w[i * from]: six vectors of three.
inline void transform_weights(const __m256* w, int from, __m256* u, int to) {
  const __m256 w0 = w[0], w1 = w[from], w2 = w[2 * from];
  const __m256 outer = times(1.0f / 6, _mm256_add_ps(w0, w2)), near = times(1.0f / 6, w1);
  const __m256 far = times(1.0f / 24, plus(4, w2, w0)), mid = times(1.0f / 12, w1);
  u[0] = times(0.25f, w0);
  u[to] = times(-1, _mm256_add_ps(outer, near));
  u[2 * to] = _mm256_sub_ps(near, outer);
  u[3 * to] = _mm256_add_ps(far, mid);
  u[4 * to] = _mm256_sub_ps(far, mid);
  u[5 * to] = w2;
}

// a[i * to] = A y[i * from]: six vectors of four.
inline void transform_gradient(const __m256* y, int from, __m256* a, int to) {
  const __m256 y0 = y[0], y1 = y[from], y2 = y[2 * from], y3 = y[3 * from];
  const __m256 even = _mm256_add_ps(y0, y2), odd = _mm256_add_ps(y1, y3);
  const __m256 far = plus(4, y2, y0), wide = times(2, plus(4, y3, y1));
  a[0] = y0;
  a[to] = _mm256_add_ps(even, odd);
  a[2 * to] = _mm256_sub_ps(even, odd);
  a[3 * to] = _mm256_add_ps(far, wide);
  a[4 * to] = _mm256_sub_ps(far, wide);
  a[5 * to] = y3;
}

// w[i * to] = G^T s[i * from]: three vectors of six.
inline void transform_back(const __m256* s, int from, __m256* w, int to) {
  const __m256 near = times(1.0f / 6, _mm256_add_ps(s[from], s[2 * from]));
  const __m256 turn = times(1.0f / 6, _mm256_sub_ps(s[2 * from], s[from]));
  const __m256 far = times(1.0f / 24, _mm256_add_ps(s[3 * from], s[4 * from]));
  const __m256 lean = times(1.0f / 12, _mm256_sub_ps(s[3 * from], s[4 * from]));
  w[0] = plus(0.25f, s[0], _mm256_sub_ps(far, near));
  w[to] = _mm256_add_ps(turn, lean);
  w[2 * to] = _mm256_add_ps(plus(4, far, s[5 * from]), times(-1, near));
}

// u = G g G^T of every pair of channels, as [36][out / 16][in][16].
//
// Args:
//   kernel: [3][3][in][out]; or, flipped, the [3][3][out][in] of a convolution whose input gradient
//     is wanted, which is itself a convolution with the kernel turned by 180 degrees.
inline void transform_kernel(xla::ffi::ThreadPool& pool, const WinogradShape& g,
                             const float* kernel, bool flipped, float* u) {
  const int64_t pairs = g.in * g.out, step = matrix_step(pairs);
  parallel_for(pool, g.in, [&](int64_t c) {
    __m256 w[9], half[18], all[36];
    for (int64_t o = 0; o < g.out; o += 8) {
      for (int k = 0; k < 9; ++k) {
        if (flipped) {
          const float* from = kernel + (8 - k) * pairs + o * g.in + c;
          w[k] = _mm256_setr_ps(from[0], from[g.in], from[2 * g.in], from[3 * g.in],
                                from[4 * g.in], from[5 * g.in], from[6 * g.in], from[7 * g.in]);
        } else {
          w[k] = _mm256_loadu_ps(kernel + k * pairs + c * g.out + o);
        }
      }
      for (int j = 0; j < 3; ++j) transform_weights(w + j, 3, half + j, 3);
      for (int i = 0; i < 6; ++i) transform_weights(half + 3 * i, 1, all + 6 * i, 1);
      float* target = u + (o / kOut * g.in + c) * kOut + o % kOut;
      for (int k = 0; k < 36; ++k) _mm256_storeu_ps(target + k * step, all[k]);
    }
  });
}

// m[t][0..15] = sum_c v[t][c] u[c][0..15] for kRows tiles.
template <int kRows>
void product(const float* v, int64_t v_stride, const float* u, int64_t in, float* m,
             int64_t m_stride) {
  __m256 sums[kRows][2];  // in registers, if every loop over it is unrolled
#pragma GCC unroll 6
  for (int r = 0; r < kRows; ++r) sums[r][0] = sums[r][1] = _mm256_setzero_ps();
  for (int64_t c = 0; c < in; ++c, u += kOut) {
    const __m256 low = _mm256_loadu_ps(u), high = _mm256_loadu_ps(u + 8);
#pragma GCC unroll 6
    for (int r = 0; r < kRows; ++r) {
      const __m256 value = _mm256_broadcast_ss(v + r * v_stride + c);
      sums[r][0] = _mm256_fmadd_ps(value, low, sums[r][0]);
      sums[r][1] = _mm256_fmadd_ps(value, high, sums[r][1]);
    }
  }
#pragma GCC unroll 6
  for (int r = 0; r < kRows; ++r) {
    _mm256_storeu_ps(m + r * m_stride, sums[r][0]);
    _mm256_storeu_ps(m + r * m_stride + 8, sums[r][1]);
  }
}

inline void products(const float* v, const float* u, int64_t tiles, int64_t in, int64_t out,
                     float* m) {
  for (int64_t o = 0; o < out; o += kOut, u += in * kOut) {
    for (int64_t t = 0; t < tiles; t += 6) {
      const int64_t rows = std::min<int64_t>(6, tiles - t);
      const auto multiply = rows == 6   ? product<6>
                            : rows == 5 ? product<5>
                            : rows == 4 ? product<4>
                            : rows == 3 ? product<3>
                            : rows == 2 ? product<2>
                                        : product<1>;
      multiply(v + t * in, in, u, in, m + t * out + o, out);
    }
  }
}

// The tile's place in the images.
struct Place {
  int64_t image, row, column;  // of its first output
};

inline Place place(const WinogradShape& g, int64_t tile) {
  const int64_t columns = g.tile_columns(), image_tiles = g.tile_rows() * columns;
  const int64_t within = tile % image_tiles;
  return {tile / image_tiles, within / columns * 4, within % columns * 4};
}

template <typename T>
void gather(const WinogradShape& g, const Place& at, const T* x, float* v, int64_t v_step) {
  const int64_t row = at.row - g.top, column = at.column - g.left;
  const T* image = x + at.image * g.rows * g.columns * g.in;
  __m256 d[36], half[36], t[36];
  for (int64_t c = 0; c < g.in; c += 8) {
    for (int i = 0; i < 6; ++i) {
      const bool in_rows = row + i >= 0 && row + i < g.rows;
      for (int j = 0; j < 6; ++j) {
        const bool in_image = in_rows && column + j >= 0 && column + j < g.columns;
        d[i * 6 + j] = in_image
                           ? load8(image + ((row + i) * g.columns + column + j) * g.in + c)
                           : _mm256_setzero_ps();
      }
    }
    for (int j = 0; j < 6; ++j) transform_input(d + j, half + j, 6);
    for (int i = 0; i < 6; ++i) transform_input(half + 6 * i, t + 6 * i, 1);
    for (int k = 0; k < 36; ++k) _mm256_storeu_ps(v + k * v_step + c, t[k]);
  }
}

// sums[c][o] += sum_t v[t][c] d[t][o] for kIn times 16 channels, kept in registers meanwhile.
template <int kIn>
struct Tile {
  __m256 sums[kIn][2];  // which needs every loop over them unrolled

  void read(const float* from, int64_t stride) {
#pragma GCC unroll 6
    for (int c = 0; c < kIn; ++c) {
      sums[c][0] = _mm256_loadu_ps(from + c * stride);
      sums[c][1] = _mm256_loadu_ps(from + c * stride + 8);
    }
  }
  void add(const float* v, int64_t v_step, const float* d, int64_t d_step, int64_t tiles) {
    for (int64_t t = 0; t < tiles; ++t, v += v_step, d += d_step) {
      const __m256 low = _mm256_loadu_ps(d), high = _mm256_loadu_ps(d + 8);
#pragma GCC unroll 6
      for (int c = 0; c < kIn; ++c) {
        const __m256 value = _mm256_broadcast_ss(v + c);
        sums[c][0] = _mm256_fmadd_ps(value, low, sums[c][0]);
        sums[c][1] = _mm256_fmadd_ps(value, high, sums[c][1]);
      }
    }
  }
  void write(float* to, int64_t stride) const {
#pragma GCC unroll 6
    for (int c = 0; c < kIn; ++c) {
      _mm256_storeu_ps(to + c * stride, sums[c][0]);
      _mm256_storeu_ps(to + c * stride + 8, sums[c][1]);
    }
  }
};

// The transformed 4x4 gradients of a tile; outputs beyond the image's edge have none.
template <typename T>
void gather_gradient(const WinogradShape& g, const Place& at, const T* dy, float* d,
                     int64_t d_step) {
  const T* image = dy + at.image * g.out_rows * g.out_columns * g.out;
  __m256 y[16], half[24], all[36];
  for (int64_t o = 0; o < g.out; o += 8) {
    for (int i = 0; i < 4; ++i) {
      for (int j = 0; j < 4; ++j) {
        const bool in_image = at.row + i < g.out_rows && at.column + j < g.out_columns;
        y[i * 4 + j] =
            in_image ? load8(image + ((at.row + i) * g.out_columns + at.column + j) * g.out + o)
                     : _mm256_setzero_ps();
      }
    }
    for (int j = 0; j < 4; ++j) transform_gradient(y + j, 4, half + j, 4);
    for (int i = 0; i < 6; ++i) transform_gradient(half + 4 * i, 1, all + 6 * i, 1);
    for (int k = 0; k < 36; ++k) _mm256_storeu_ps(d + k * d_step + o, all[k]);
  }
}

// sums[c][o] += sum_t v[t][c] d[t][o] of one of the 36.
inline void add_products(const WinogradShape& g, const float* v, const float* d, int64_t tiles,
                         float* sums) {
  for (int64_t o = 0; o < g.out; o += kOut) {
    for (int64_t c = 0, width; c < g.in; c += width) {
      const int64_t left = g.in - c;
      width = left == 8 || left < 6 ? 4 : 6;  // multiples of 8 are sums of 6s and 4s
      float* target = sums + c * g.out + o;
      const auto add = [&]<int kIn>(Tile<kIn> tile) {
        tile.read(target, g.out);
        tile.add(v + c, g.in, d + o, g.out, tiles);
        tile.write(target, g.out);
      };
      width == 6 ? add(Tile<6>()) : add(Tile<4>());
    }
  }
}

// dkernel = G^T sums G, [3][3][in][out] of [36][in][out].
inline void transform_sums(const WinogradShape& g, const float* sums, float* dkernel) {
  const int64_t pairs = g.in * g.out, step = matrix_step(pairs);
  __m256 all[36], half[18], w[9];
  for (int64_t p = 0; p < pairs; p += 8) {
    for (int k = 0; k < 36; ++k) all[k] = _mm256_loadu_ps(sums + k * step + p);
    for (int j = 0; j < 6; ++j) transform_back(all + j, 6, half + j, 6);
    for (int i = 0; i < 3; ++i) transform_back(half + 6 * i, 1, w + 3 * i, 1);
    for (int k = 0; k < 9; ++k) _mm256_storeu_ps(dkernel + k * pairs + p, w[k]);
  }
}

template <typename T>
void scatter(const WinogradShape& g, const Place& at, const float* m, int64_t m_step,
             const float* bias, T* y) {
  __m256 products[36], half[24], out[16];
  const int64_t rows = std::min<int64_t>(4, g.out_rows - at.row);
  const int64_t columns = std::min<int64_t>(4, g.out_columns - at.column);
  T* image = y + at.image * g.out_rows * g.out_columns * g.out;
  for (int64_t o = 0; o < g.out; o += 8) {
    for (int k = 0; k < 36; ++k) products[k] = _mm256_loadu_ps(m + k * m_step + o);
    for (int j = 0; j < 6; ++j) transform_output(products + j, 6, half + j, 6);
    for (int i = 0; i < 4; ++i) transform_output(half + 6 * i, 1, out + 4 * i, 1);
    const __m256 constant = bias ? _mm256_loadu_ps(bias + o) : _mm256_setzero_ps();
    for (int64_t i = 0; i < rows; ++i) {
      T* to = image + ((at.row + i) * g.out_columns + at.column) * g.out + o;
      for (int64_t j = 0; j < columns; ++j) {
        store8(to + j * g.out, _mm256_add_ps(out[4 * i + j], constant));
      }
    }
  }
}

}  // namespace winograd

// y = x * kernel + bias, or without a bias where it is null; see `transform_kernel` for `flipped`.
template <typename T>
void winograd_convolution(xla::ffi::ThreadPool& pool, const WinogradShape& g, const T* x,
                          const float* kernel, bool flipped, const float* bias, T* y) {
  using namespace winograd;
  thread_local Scratch kernels;
  const int64_t u_step = matrix_step(g.in * g.out);
  float* u = kernels.get<float>(36 * u_step);
  transform_kernel(pool, g, kernel, flipped, u);
  const int64_t v_step = matrix_step(kTiles * g.in), m_step = matrix_step(kTiles * g.out);
  parallel_for(pool, (g.tiles() + kTiles - 1) / kTiles, [&](int64_t block) {
    thread_local Scratch scratch;
    float* v = scratch.get<float>(36 * (v_step + m_step));
    float* m = v + 36 * v_step;
    const int64_t first = block * kTiles, tiles = std::min(kTiles, g.tiles() - first);
    for (int64_t t = 0; t < tiles; ++t) gather(g, place(g, first + t), x, v + t * g.in, v_step);
    for (int k = 0; k < 36; ++k) {
      products(v + k * v_step, u + k * u_step, tiles, g.in, g.out, m + k * m_step);
    }
    for (int64_t t = 0; t < tiles; ++t) {
      scatter(g, place(g, first + t), m + t * g.out, m_step, bias, y);
    }
  });
}

// dkernel (HWIO) and dbias; each of the pool's threads sums over its own tiles first.
template <typename T>
void winograd_kernel_gradient(xla::ffi::ThreadPool& pool, const WinogradShape& g, const T* x,
                              const T* dy, float* dkernel, float* dbias) {
  using namespace winograd;
  const int64_t parts = std::min<int64_t>(pool.num_threads(), g.tiles() / kTiles);
  const int64_t kernel_floats = 9 * g.in * g.out, stride = kernel_floats + g.out;
  const int64_t v_step = matrix_step(kTiles * g.in), d_step = matrix_step(kTiles * g.out);
  const int64_t sum_step = matrix_step(g.in * g.out);
  const int64_t pixels = g.batch * g.out_rows * g.out_columns;
  thread_local Scratch partials;
  float* partial = partials.get<float>(parts * stride);
  parallel_for(pool, parts, [&](int64_t part) {
    thread_local Scratch block_scratch, sum_scratch;
    float* v = block_scratch.get<float>(36 * (v_step + d_step));
    float* d = v + 36 * v_step;
    float* sums = sum_scratch.get<float>(36 * sum_step);
    std::fill(sums, sums + 36 * sum_step, 0.0f);
    const int64_t end = g.tiles() * (part + 1) / parts;
    for (int64_t first = g.tiles() * part / parts; first < end; first += kTiles) {
      const int64_t tiles = std::min(kTiles, end - first);
      for (int64_t t = 0; t < tiles; ++t) {
        const Place at = place(g, first + t);
        gather(g, at, x, v + t * g.in, v_step);
        gather_gradient(g, at, dy, d + t * g.out, d_step);
      }
      for (int k = 0; k < 36; ++k) {
        add_products(g, v + k * v_step, d + k * d_step, tiles, sums + k * sum_step);
      }
    }
    float* kernel = partial + part * stride;
    transform_sums(g, sums, kernel);
    float* bias = kernel + kernel_floats;
    std::fill(bias, bias + g.out, 0.0f);
    for (int64_t p = pixels * part / parts; p < pixels * (part + 1) / parts; ++p) {
      for (int64_t o = 0; o < g.out; ++o) bias[o] += load(dy + p * g.out + o);
    }
  });
  add_up(pool, partial, stride, parts);
  std::copy(partial, partial + kernel_floats, dkernel);
  std::copy(partial + kernel_floats, partial + stride, dbias);
}

#else

template <typename T>
void winograd_convolution(xla::ffi::ThreadPool&, const WinogradShape&, const T*, const float*,
                          bool, const float*, T*) {}

template <typename T>
void winograd_kernel_gradient(xla::ffi::ThreadPool&, const WinogradShape&, const T*, const T*,
                              float*, float*) {}

#endif

}  // namespace diffjax
