// 3x3 convolutions of stride 1 by Winograd's minimal filtering (Lavin & Gray 2016, "Fast algorithms
// for convolutional neural networks").
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

#include "parallel.h"
#include "vector.h"

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
  return g.in % kWidth == 0 && g.out % 16 == 0 && g.tiles() >= 64 && g.in * g.out <= 512 * 512;
}

namespace winograd {

constexpr int64_t kTiles = 24;                  // a block
constexpr int64_t kRows = kWidth == 16 ? 12 : 6;  // tiles that a product holds; divides kTiles
constexpr int64_t kOut = 2 * kWidth;            // output channels that it holds

// t[i * step] = B^T d[i * step], six vectors each.
inline void transform_input(const vec* d, vec* t, int step) {
  const vec d0 = d[0], d1 = d[step], d2 = d[2 * step], d3 = d[3 * step], d4 = d[4 * step],
            d5 = d[5 * step];
  const vec a = d4 - 4 * d2, b = d3 - 4 * d1;
  const vec c = d4 - d2, e = 2 * (d3 - d1);
  t[0] = 4 * d0 - 5 * d2 + d4;
  t[step] = a + b;
  t[2 * step] = a - b;
  t[3 * step] = c + e;
  t[4 * step] = c - e;
  t[5 * step] = 4 * d1 - 5 * d3 + d5;
}

// y[i * to] = A^T m[i * from]: four vectors of six.
inline void transform_output(const vec* m, int from, vec* y, int to) {
  const vec a = m[from] + m[2 * from], b = m[from] - m[2 * from];
  const vec c = m[3 * from] + m[4 * from], d = m[3 * from] - m[4 * from];
  y[0] = m[0] + a + c;
  y[to] = b + 2 * d;
  y[2 * to] = a + 4 * c;
  y[3 * to] = b + 8 * d + m[5 * from];
}

// u[i * to] = G w[i * from]: six vectors of three.
inline void transform_weights(const vec* w, int from, vec* u, int to) {
  const vec w0 = w[0], w1 = w[from], w2 = w[2 * from];
  const vec outer = (1.0f / 6) * (w0 + w2), near = (1.0f / 6) * w1;
  const vec far = (1.0f / 24) * (w0 + 4 * w2), mid = (1.0f / 12) * w1;
  u[0] = 0.25f * w0;
  u[to] = -(outer + near);
  u[2 * to] = near - outer;
  u[3 * to] = far + mid;
  u[4 * to] = far - mid;
  u[5 * to] = w2;
}

// a[i * to] = A y[i * from]: six vectors of four.
inline void transform_gradient(const vec* y, int from, vec* a, int to) {
  const vec y0 = y[0], y1 = y[from], y2 = y[2 * from], y3 = y[3 * from];
  const vec even = y0 + y2, odd = y1 + y3;
  const vec far = y0 + 4 * y2, wide = 2 * y1 + 8 * y3;
  a[0] = y0;
  a[to] = even + odd;
  a[2 * to] = even - odd;
  a[3 * to] = far + wide;
  a[4 * to] = far - wide;
  a[5 * to] = y3;
}

// w[i * to] = G^T s[i * from]: three vectors of six.
inline void transform_back(const vec* s, int from, vec* w, int to) {
  const vec near = (1.0f / 6) * (s[from] + s[2 * from]);
  const vec turn = (1.0f / 6) * (s[2 * from] - s[from]);
  const vec far = (1.0f / 24) * (s[3 * from] + s[4 * from]);
  const vec lean = (1.0f / 12) * (s[3 * from] - s[4 * from]);
  w[0] = 0.25f * s[0] + far - near;
  w[to] = turn + lean;
  w[2 * to] = 4 * far + s[5 * from] - near;
}

// u = G g G^T of every pair of channels: 36 matrices of panels [in][kOut], the last of which may
// have fewer columns.
//
// Args:
//   kernel: [3][3][in][out]; or, flipped, the [3][3][out][in] of a convolution whose input gradient
//     is wanted, which is itself a convolution with the kernel turned by 180 degrees.
inline void transform_kernel(xla::ffi::ThreadPool& pool, const WinogradShape& g,
                             const float* kernel, bool flipped, float* u) {
  const int64_t pairs = g.in * g.out, step = matrix_step(pairs);
  const int64_t panels = (g.out + kOut - 1) / kOut;
  parallel_for(pool, panels * (g.in / 8), [&](int64_t piece) {
    const int64_t begin = piece % panels * kOut, columns = std::min(kOut, g.out - begin);
    vec w[9], half[18], all[36];
    for (int64_t c = piece / panels * 8, end = c + 8; c < end; ++c) {
      for (int64_t o = 0; o < columns; o += kWidth) {
        for (int k = 0; k < 9; ++k) {
          if (flipped) {
            const float* from = kernel + (8 - k) * pairs + (begin + o) * g.in + c;
            for (int64_t i = 0; i < kWidth; ++i) w[k][i] = from[i * g.in];
          } else {
            w[k] = load_vec(kernel + k * pairs + c * g.out + begin + o);
          }
        }
        for (int j = 0; j < 3; ++j) transform_weights(w + j, 3, half + j, 3);
        for (int i = 0; i < 6; ++i) transform_weights(half + 3 * i, 1, all + 6 * i, 1);
        float* target = u + begin * g.in + c * columns + o;
        for (int k = 0; k < 36; ++k) store_vec(target + k * step, all[k]);
      }
    }
  });
}

// m[t][0..kVectors * kWidth - 1] = sum_c v[t][c] u[c][the same], of kTall tiles.
template <int kTall, int kVectors>
void product(const float* v, int64_t v_stride, const float* u, int64_t in, float* m,
             int64_t m_stride) {
  vec sums[kTall][kVectors] = {};  // in registers, if every loop over it is unrolled
  for (int64_t c = 0; c < in; ++c, u += kVectors * kWidth) {
    vec right[kVectors];
#pragma GCC unroll 2
    for (int i = 0; i < kVectors; ++i) right[i] = load_vec(u + i * kWidth);
#pragma GCC unroll 12
    for (int r = 0; r < kTall; ++r) {
#pragma GCC unroll 2
      for (int i = 0; i < kVectors; ++i) sums[r][i] += v[r * v_stride + c] * right[i];
    }
  }
#pragma GCC unroll 12
  for (int r = 0; r < kTall; ++r) {
#pragma GCC unroll 2
    for (int i = 0; i < kVectors; ++i) store_vec(m + r * m_stride + i * kWidth, sums[r][i]);
  }
}

// m = v u of `tiles` rows, of one panel.
template <int kVectors>
void products(const float* v, const float* u, int64_t tiles, int64_t in, float* m, int64_t out) {
  int64_t t = 0;
  for (; t + kRows <= tiles; t += kRows) {
    product<kRows, kVectors>(v + t * in, in, u, in, m + t * out, out);
  }
  for (; t + 4 <= tiles; t += 4) product<4, kVectors>(v + t * in, in, u, in, m + t * out, out);
  for (; t < tiles; ++t) product<1, kVectors>(v + t * in, in, u, in, m + t * out, out);
}

inline void products(const float* v, const float* u, int64_t tiles, int64_t in, int64_t out,
                     float* m) {
  for (int64_t o = 0; o < out; o += kOut) {
    const auto of_panel = out - o < kOut ? products<1> : products<2>;
    of_panel(v, u + o * in, tiles, in, m + o, out);
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
  vec d[36], half[36], t[36];
  for (int64_t c = 0; c < g.in; c += kWidth) {
    for (int i = 0; i < 6; ++i) {
      const bool in_rows = row + i >= 0 && row + i < g.rows;
      for (int j = 0; j < 6; ++j) {
        const bool in_image = in_rows && column + j >= 0 && column + j < g.columns;
        d[i * 6 + j] =
            in_image ? load_vec(image + ((row + i) * g.columns + column + j) * g.in + c) : vec{};
      }
    }
    for (int j = 0; j < 6; ++j) transform_input(d + j, half + j, 6);
    for (int i = 0; i < 6; ++i) transform_input(half + 6 * i, t + 6 * i, 1);
    for (int k = 0; k < 36; ++k) store_vec(v + k * v_step + c, t[k]);
  }
}

// The transformed 4x4 gradients of a tile; outputs beyond the image's edge have none.
template <typename T>
void gather_gradient(const WinogradShape& g, const Place& at, const T* dy, float* d,
                     int64_t d_step) {
  const T* image = dy + at.image * g.out_rows * g.out_columns * g.out;
  vec y[16], half[24], all[36];
  for (int64_t o = 0; o < g.out; o += kWidth) {
    for (int i = 0; i < 4; ++i) {
      for (int j = 0; j < 4; ++j) {
        const bool in_image = at.row + i < g.out_rows && at.column + j < g.out_columns;
        y[i * 4 + j] =
            in_image
                ? load_vec(image + ((at.row + i) * g.out_columns + at.column + j) * g.out + o)
                : vec{};
      }
    }
    for (int j = 0; j < 4; ++j) transform_gradient(y + j, 4, half + j, 4);
    for (int i = 0; i < 6; ++i) transform_gradient(half + 4 * i, 1, all + 6 * i, 1);
    for (int k = 0; k < 36; ++k) store_vec(d + k * d_step + o, all[k]);
  }
}

// sums[c][o] += sum_t v[t][c] d[t][o] of kIn times kVectors * kWidth channels.
template <int kIn, int kVectors>
void add_product(const float* v, int64_t in, const float* d, int64_t out, int64_t tiles,
                 float* target) {
  vec sums[kIn][kVectors];  // in registers, if every loop over it is unrolled
#pragma GCC unroll 12
  for (int c = 0; c < kIn; ++c) {
#pragma GCC unroll 2
    for (int i = 0; i < kVectors; ++i) sums[c][i] = load_vec(target + c * out + i * kWidth);
  }
  for (int64_t t = 0; t < tiles; ++t, v += in, d += out) {
    vec right[kVectors];
#pragma GCC unroll 2
    for (int i = 0; i < kVectors; ++i) right[i] = load_vec(d + i * kWidth);
#pragma GCC unroll 12
    for (int c = 0; c < kIn; ++c) {
#pragma GCC unroll 2
      for (int i = 0; i < kVectors; ++i) sums[c][i] += v[c] * right[i];
    }
  }
#pragma GCC unroll 12
  for (int c = 0; c < kIn; ++c) {
#pragma GCC unroll 2
    for (int i = 0; i < kVectors; ++i) store_vec(target + c * out + i * kWidth, sums[c][i]);
  }
}

// The same of all input channels: twelves, sixes and fours make every multiple of 4 above 8.
template <int kVectors>
void add_products(const float* v, int64_t in, const float* d, int64_t out, int64_t tiles,
                  float* target) {
  int64_t c = 0;
  for (; kWidth == 16 && in - c >= 12; c += 12) {
    add_product<12, kVectors>(v + c, in, d, out, tiles, target + c * out);
  }
  for (; in - c >= 6 && in - c != 8; c += 6) {
    add_product<6, kVectors>(v + c, in, d, out, tiles, target + c * out);
  }
  for (; c < in; c += 4) add_product<4, kVectors>(v + c, in, d, out, tiles, target + c * out);
}

inline void add_products(const WinogradShape& g, const float* v, const float* d, int64_t tiles,
                         float* sums) {
  for (int64_t o = 0; o < g.out; o += kOut) {
    const auto of_panel = g.out - o < kOut ? add_products<1> : add_products<2>;
    of_panel(v, g.in, d + o, g.out, tiles, sums + o);
  }
}

// dkernel = G^T sums G, [3][3][in][out] of [36][in][out].
inline void transform_sums(const WinogradShape& g, const float* sums, float* dkernel) {
  const int64_t pairs = g.in * g.out, step = matrix_step(pairs);
  vec all[36], half[18], w[9];
  for (int64_t p = 0; p < pairs; p += kWidth) {
    for (int k = 0; k < 36; ++k) all[k] = load_vec(sums + k * step + p);
    for (int j = 0; j < 6; ++j) transform_back(all + j, 6, half + j, 6);
    for (int i = 0; i < 3; ++i) transform_back(half + 6 * i, 1, w + 3 * i, 1);
    for (int k = 0; k < 9; ++k) store_vec(dkernel + k * pairs + p, w[k]);
  }
}

template <typename T>
void scatter(const WinogradShape& g, const Place& at, const float* m, int64_t m_step,
             const float* bias, T* y) {
  vec products[36], half[24], out[16];
  const int64_t rows = std::min<int64_t>(4, g.out_rows - at.row);
  const int64_t columns = std::min<int64_t>(4, g.out_columns - at.column);
  T* image = y + at.image * g.out_rows * g.out_columns * g.out;
  for (int64_t o = 0; o < g.out; o += kWidth) {
    for (int k = 0; k < 36; ++k) products[k] = load_vec(m + k * m_step + o);
    for (int j = 0; j < 6; ++j) transform_output(products + j, 6, half + j, 6);
    for (int i = 0; i < 4; ++i) transform_output(half + 6 * i, 1, out + 4 * i, 1);
    const vec constant = bias ? load_vec(bias + o) : vec{};
    for (int64_t i = 0; i < rows; ++i) {
      T* to = image + ((at.row + i) * g.out_columns + at.column) * g.out + o;
      for (int64_t j = 0; j < columns; ++j) store_vec(to + j * g.out, out[4 * i + j] + constant);
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

}  // namespace diffjax
