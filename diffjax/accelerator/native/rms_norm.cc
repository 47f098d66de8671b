// Root mean square normalisation over the last axis, with a scale per channel; forward and backward.
//
//   r = 1 / sqrt(mean(x^2) + eps)          n = r x          y = scale n
//
// The backward pass reads x again:
//
//   dscale = sum_rows dy n                 dx = r (scale dy - n mean(scale dy n))

#include <algorithm>
#include <cmath>

#include "bfloat16.h"
#include "buffers.h"
#include "parallel.h"

namespace diffjax {
namespace {

namespace ffi = xla::ffi;

// Rows of a piece of work, about as many elements as the first cache holds.
constexpr int64_t kElements = 1 << 13;

struct Shape {
  int64_t rows, channels;

  int64_t block() const { return std::max<int64_t>(1, kElements / channels); }
  int64_t blocks() const { return (rows + block() - 1) / block(); }
};

template <typename T>
void forward_row(int64_t C, float eps, const T* __restrict x, const float* __restrict scale,
                 T* __restrict y, float* rstd) {
  float square = 0;
#pragma omp simd reduction(+ : square)
  for (int64_t c = 0; c < C; ++c) square += load(x + c) * load(x + c);
  const float r = 1.0f / std::sqrt(square / C + eps);
  *rstd = r;
#pragma GCC ivdep
  for (int64_t c = 0; c < C; ++c) store(y + c, load(x + c) * r * scale[c]);
}

template <typename T>
void backward_row(int64_t C, const T* __restrict x, const float* __restrict scale, float r,
                  const T* __restrict grad, T* __restrict dx, float* __restrict dscale) {
  float product = 0;
#pragma omp simd reduction(+ : product)
  for (int64_t c = 0; c < C; ++c) {
    const float n = load(x + c) * r, d = load(grad + c);
    dscale[c] += d * n;
    product += d * scale[c] * n;
  }
  const float mean = product / C;
#pragma GCC ivdep
  for (int64_t c = 0; c < C; ++c)
    store(dx + c, r * (load(grad + c) * scale[c] - load(x + c) * r * mean));
}

Shape shape_of(const ffi::AnyBuffer& x) {
  auto d = x.dimensions();
  return {static_cast<int64_t>(x.element_count()) / d.back(), d.back()};
}

template <typename T>
void forward(ffi::ThreadPool& pool, const Shape& s, float eps, const T* x, const float* scale,
             T* y, float* rstd) {
  parallel_for(pool, s.blocks(), [&](int64_t b) {
    const int64_t begin = b * s.block(), end = std::min(begin + s.block(), s.rows);
    for (int64_t i = begin; i < end; ++i)
      forward_row(s.channels, eps, x + i * s.channels, scale, y + i * s.channels, rstd + i);
  });
}

template <typename T>
void backward(ffi::ThreadPool& pool, const Shape& s, const T* x, const float* scale,
              const float* rstd, const T* dy, T* dx, float* dscale) {
  thread_local Scratch scratch;
  float* sums = scratch.get<float>(s.blocks() * s.channels);
  parallel_for(pool, s.blocks(), [&](int64_t b) {
    const int64_t begin = b * s.block(), end = std::min(begin + s.block(), s.rows);
    float* sum = sums + b * s.channels;
    std::fill(sum, sum + s.channels, 0.0f);
    for (int64_t i = begin; i < end; ++i)
      backward_row(s.channels, x + i * s.channels, scale, rstd[i], dy + i * s.channels,
                   dx + i * s.channels, sum);
  });
  add_up(pool, sums, s.channels, s.blocks());
  std::copy(sums, sums + s.channels, dscale);
}

ffi::Error rms_norm_forward(ffi::ThreadPool pool, ffi::AnyBuffer x, ffi::Buffer<ffi::F32> scale,
                            ffi::Result<ffi::AnyBuffer> y, ffi::ResultBuffer<ffi::F32> rstd,
                            float eps) {
  return by_type(x, [&](auto t) {
    using T = decltype(t);
    forward(pool, shape_of(x), eps, data<const T>(x), scale.typed_data(), data<T>(*y),
            rstd->typed_data());
  });
}

ffi::Error rms_norm_backward(ffi::ThreadPool pool, ffi::AnyBuffer x, ffi::Buffer<ffi::F32> scale,
                             ffi::Buffer<ffi::F32> rstd, ffi::AnyBuffer dy,
                             ffi::Result<ffi::AnyBuffer> dx, ffi::ResultBuffer<ffi::F32> dscale) {
  return by_type(x, [&](auto t) {
    using T = decltype(t);
    backward(pool, shape_of(x), data<const T>(x), scale.typed_data(), rstd.typed_data(),
             data<const T>(dy), data<T>(*dx), dscale->typed_data());
  });
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(diffjax_rms_norm_forward, rms_norm_forward,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::AnyBuffer>()
                                  .Ret<ffi::Buffer<ffi::F32>>()
                                  .Attr<float>("eps"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(diffjax_rms_norm_backward, rms_norm_backward,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Ret<ffi::AnyBuffer>()
                                  .Ret<ffi::Buffer<ffi::F32>>());

}  // namespace diffjax
