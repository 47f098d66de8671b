// Attention without a matrix of tokens x tokens in memory (cf. Dao et al. 2022, "FlashAttention"):
// a block of queries at a time, against all keys, in float32.
//
//   S = scale Q K^T          P = softmax(S), row by row          O = P V
//
// The backward pass computes P again, from the logarithm of each row's sum:
//
//   dV = P^T dO              dP = dO V^T
//   dS = P (dP - rowsum(P dP))
//   dQ = scale dS K          dK = scale dS^T Q

#include <algorithm>
#include <cmath>
#include <limits>

#include "bfloat16.h"
#include "buffers.h"
#include "exponential.h"
#include "parallel.h"
#include "product.h"

namespace diffjax {
namespace {

namespace ffi = xla::ffi;

// Arrays are (B, L, heads, D); queries and keys may differ in L.
struct Shape {
  int64_t batch, queries, keys, heads, depth;

  int64_t row() const { return heads * depth; }
  int64_t wide_depth() const { return padded(depth); }
  int64_t wide_keys() const { return padded(keys); }

  static int64_t padded(int64_t n) { return (n + kWidth - 1) / kWidth * kWidth; }
};

// Queries of a block: a multiple of kRows.
constexpr int64_t kQueries = 48;

// `rows` rows of one head, times `factor`: (rows, wide) with zeros after column `depth`.
template <typename T>
void gather(const T* from, int64_t rows, int64_t row, int64_t depth, int64_t wide, float factor,
            float* to) {
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t d = 0; d < depth; ++d) to[i * wide + d] = factor * load(from + i * row + d);
    std::fill(to + i * wide + depth, to + (i + 1) * wide, 0.0f);
  }
}

// The same, transposed: (depth, wide) with zeros after column `rows`.
template <typename T>
void gather_transposed(const T* from, int64_t rows, int64_t row, int64_t depth, int64_t wide,
                       float* to) {
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t d = 0; d < depth; ++d) to[d * wide + i] = load(from + i * row + d);
  for (int64_t d = 0; d < depth; ++d) std::fill(to + d * wide + rows, to + (d + 1) * wide, 0.0f);
}

template <typename T>
void scatter(const float* from, int64_t rows, int64_t row, int64_t depth, int64_t wide,
             float factor, T* to) {
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t d = 0; d < depth; ++d) store(to + i * row + d, factor * from[i * wide + d]);
}

float largest(const float* row, int64_t count) {
  float most = -std::numeric_limits<float>::infinity();
#pragma omp simd reduction(max : most)
  for (int64_t j = 0; j < count; ++j) most = row[j] > most ? row[j] : most;
  return most;
}

// row = exp(row - by); the sum.
float exponentials(float* row, int64_t count, float by) {
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t j = 0; j < count; ++j) {
    const float e = exp_within(row[j] - by);
    row[j] = e;
    sum += e;
  }
  return sum;
}

template <typename T>
void forward_head(const Shape& s, float scale, const T* q, const T* k, const T* v, T* o,
                  float* log_sum) {
  const int64_t D = s.wide_depth(), L = s.wide_keys();
  thread_local Scratch scratch;
  float* keys = scratch.get<float>(s.depth * L + s.keys * D + kQueries * (2 * D + L));
  float* values = keys + s.depth * L;
  float* queries = values + s.keys * D;
  float* out = queries + kQueries * D;
  float* weights = out + kQueries * D;
  gather_transposed(k, s.keys, s.row(), s.depth, L, keys);
  gather(v, s.keys, s.row(), s.depth, D, 1.0f, values);
  for (int64_t begin = 0; begin < s.queries; begin += kQueries) {
    const int64_t rows = std::min(kQueries, s.queries - begin);
    gather(q + begin * s.row(), rows, s.row(), s.depth, D, scale, queries);
    product<false>(rows, L, s.depth, {queries, D, 1}, keys, L, weights, L);
    for (int64_t i = 0; i < rows; ++i) {
      float* row = weights + i * L;
      const float most = largest(row, s.keys);
      const float sum = exponentials(row, s.keys, most);
      log_sum[begin + i] = most + std::log(sum);
      const float share = 1.0f / sum;
      for (int64_t j = 0; j < s.keys; ++j) row[j] *= share;
    }
    product<false>(rows, D, s.keys, {weights, L, 1}, values, D, out, D);
    scatter(out, rows, s.row(), s.depth, D, 1.0f, o + begin * s.row());
  }
}

template <typename T>
void backward_head(const Shape& s, float scale, const T* q, const T* k, const T* v,
                   const float* log_sum, const T* grad, T* dq, T* dk, T* dv) {
  const int64_t D = s.wide_depth(), L = s.wide_keys();
  thread_local Scratch scratch;
  const int64_t across = s.depth * L, along = s.keys * D, block = kQueries * D;
  float* keys = scratch.get<float>(2 * across + 3 * along + 3 * block + 2 * kQueries * L);
  float* values = keys + across;
  float* key_rows = values + across;
  float* key_sum = key_rows + along;
  float* value_sum = key_sum + along;
  float* queries = value_sum + along;
  float* grads = queries + block;
  float* out = grads + block;
  float* weights = out + block;
  float* slopes = weights + kQueries * L;
  gather_transposed(k, s.keys, s.row(), s.depth, L, keys);
  gather_transposed(v, s.keys, s.row(), s.depth, L, values);
  gather(k, s.keys, s.row(), s.depth, D, 1.0f, key_rows);
  std::fill(key_sum, key_sum + 2 * along, 0.0f);
  for (int64_t begin = 0; begin < s.queries; begin += kQueries) {
    const int64_t rows = std::min(kQueries, s.queries - begin);
    gather(q + begin * s.row(), rows, s.row(), s.depth, D, scale, queries);
    gather(grad + begin * s.row(), rows, s.row(), s.depth, D, 1.0f, grads);
    product<false>(rows, L, s.depth, {queries, D, 1}, keys, L, weights, L);
    product<false>(rows, L, s.depth, {grads, D, 1}, values, L, slopes, L);
    for (int64_t i = 0; i < rows; ++i) {
      float* __restrict weight = weights + i * L;
      float* __restrict slope = slopes + i * L;
      exponentials(weight, s.keys, log_sum[begin + i]);
      float mean = 0;
#pragma omp simd reduction(+ : mean)
      for (int64_t j = 0; j < s.keys; ++j) mean += weight[j] * slope[j];
      for (int64_t j = 0; j < s.keys; ++j) slope[j] = weight[j] * (slope[j] - mean);
    }
    product<true>(s.keys, D, rows, {weights, 1, L}, grads, D, value_sum, D);
    product<true>(s.keys, D, rows, {slopes, 1, L}, queries, D, key_sum, D);
    product<false>(rows, D, s.keys, {slopes, L, 1}, key_rows, D, out, D);
    scatter(out, rows, s.row(), s.depth, D, scale, dq + begin * s.row());
  }
  scatter(key_sum, s.keys, s.row(), s.depth, D, 1.0f, dk);
  scatter(value_sum, s.keys, s.row(), s.depth, D, 1.0f, dv);
}

Shape shape_of(const ffi::AnyBuffer& q, const ffi::AnyBuffer& k) {
  auto d = q.dimensions();
  return {d[0], d[1], k.dimensions()[1], d[2], d[3]};
}

// one(offset of queries, offset of keys, offset of statistics), for every head of every example.
template <typename One>
void each_head(ffi::ThreadPool& pool, const Shape& s, const One& one) {
  parallel_for(pool, s.batch * s.heads, [&](int64_t i) {
    const int64_t b = i / s.heads, head = i % s.heads * s.depth;
    one(b * s.queries * s.row() + head, b * s.keys * s.row() + head, i * s.queries);
  });
}

ffi::Error attention_forward(ffi::ThreadPool pool, ffi::AnyBuffer q, ffi::AnyBuffer k,
                             ffi::AnyBuffer v, ffi::Result<ffi::AnyBuffer> o,
                             ffi::ResultBuffer<ffi::F32> log_sum, float scale) {
  const Shape s = shape_of(q, k);
  return by_type(q, [&](auto t) {
    using T = decltype(t);
    each_head(pool, s, [&](int64_t at, int64_t key, int64_t row) {
      forward_head<T>(s, scale, data<T>(q) + at, data<T>(k) + key, data<T>(v) + key,
                      data<T>(*o) + at, log_sum->typed_data() + row);
    });
  });
}

ffi::Error attention_backward(ffi::ThreadPool pool, ffi::AnyBuffer q, ffi::AnyBuffer k,
                              ffi::AnyBuffer v, ffi::Buffer<ffi::F32> log_sum, ffi::AnyBuffer grad,
                              ffi::Result<ffi::AnyBuffer> dq, ffi::Result<ffi::AnyBuffer> dk,
                              ffi::Result<ffi::AnyBuffer> dv, float scale) {
  const Shape s = shape_of(q, k);
  return by_type(q, [&](auto t) {
    using T = decltype(t);
    each_head(pool, s, [&](int64_t at, int64_t key, int64_t row) {
      backward_head<T>(s, scale, data<T>(q) + at, data<T>(k) + key, data<T>(v) + key,
                       log_sum.typed_data() + row, data<T>(grad) + at, data<T>(*dq) + at,
                       data<T>(*dk) + key, data<T>(*dv) + key);
    });
  });
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(diffjax_attention_forward, attention_forward,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Ret<ffi::AnyBuffer>()
                                  .Ret<ffi::Buffer<ffi::F32>>()
                                  .Attr<float>("scale"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(diffjax_attention_backward, attention_backward,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Ret<ffi::AnyBuffer>()
                                  .Ret<ffi::AnyBuffer>()
                                  .Ret<ffi::AnyBuffer>()
                                  .Attr<float>("scale"));

}  // namespace diffjax
