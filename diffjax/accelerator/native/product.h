// Products of small matrices of floats on one thread, in the registers of the processor.
#pragma once

#include <cstdint>

#include "vector.h"

namespace diffjax {

// A matrix whose elements (i, j) are at data[i row + j column].
struct Strided {
  const float* data;
  int64_t row, column;
};

#if defined(__AVX512F__)
constexpr int64_t kRows = 12;
#else
constexpr int64_t kRows = 6;
#endif

// R rows and V vectors of columns of C, over the whole depth.
template <int R, int V, bool kAdd>
inline void product_tile(int64_t depth, Strided a, const float* b, int64_t b_row, float* c,
                         int64_t c_row) {
  vec sum[R][V];
  for (int r = 0; r < R; ++r)
    for (int v = 0; v < V; ++v)
      sum[r][v] = kAdd ? load_vec(c + r * c_row + v * kWidth) : vec{};
  for (int64_t k = 0; k < depth; ++k) {
    vec right[V];
    for (int v = 0; v < V; ++v) right[v] = load_vec(b + k * b_row + v * kWidth);
    for (int r = 0; r < R; ++r) {
      const float left = a.data[r * a.row + k * a.column];
      for (int v = 0; v < V; ++v) sum[r][v] += left * right[v];
    }
  }
  for (int r = 0; r < R; ++r)
    for (int v = 0; v < V; ++v) store_vec(c + r * c_row + v * kWidth, sum[r][v]);
}

template <int R, bool kAdd>
inline void product_rows(int64_t columns, int64_t depth, Strided a, const float* b, int64_t b_row,
                         float* c, int64_t c_row) {
  int64_t j = 0;
  for (; j + 2 * kWidth <= columns; j += 2 * kWidth)
    product_tile<R, 2, kAdd>(depth, a, b + j, b_row, c + j, c_row);
  if (j < columns) product_tile<R, 1, kAdd>(depth, a, b + j, b_row, c + j, c_row);
}

template <int R, bool kAdd>
inline void product_rest(int64_t rows, int64_t columns, int64_t depth, Strided a, const float* b,
                         int64_t b_row, float* c, int64_t c_row) {
  if constexpr (R > 0) {
    if (rows == R)
      product_rows<R, kAdd>(columns, depth, a, b, b_row, c, c_row);
    else
      product_rest<R - 1, kAdd>(rows, columns, depth, a, b, b_row, c, c_row);
  }
}

// C = A B, or C += A B. `columns` is a multiple of kWidth; B and C are row by row.
template <bool kAdd>
void product(int64_t rows, int64_t columns, int64_t depth, Strided a, const float* b, int64_t b_row,
             float* c, int64_t c_row) {
  int64_t i = 0;
  for (; i + kRows <= rows; i += kRows) {
    const Strided here{a.data + i * a.row, a.row, a.column};
    product_rows<kRows, kAdd>(columns, depth, here, b, b_row, c + i * c_row, c_row);
  }
  const Strided here{a.data + i * a.row, a.row, a.column};
  product_rest<kRows - 1, kAdd>(rows - i, columns, depth, here, b, b_row, c + i * c_row, c_row);
}

}  // namespace diffjax
