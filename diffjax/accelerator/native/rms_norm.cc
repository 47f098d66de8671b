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
void forward(ffi::ThreadPool pool, const Shape& s, float eps, const ffi::AnyBuffer& x,
             const float* scale, ffi::AnyBuffer& y, float* rstd) {
  const T* in = reinterpret_cast<const T*>(x.untyped_data());
  T* out = reinterpret_cast<T*>(y.untyped_data());
  parallel_for(pool, s.blocks(), [&](int64_t b) {
    const int64_t begin = b * s.block(), end = std::min(begin + s.block(), s.rows);
    for (int64_t i = begin; i < end; ++i)
      forward_row(s.channels, eps, in + i * s.channels, scale, out + i * s.channels, rstd + i);
  });
}

template <typename T>
void backward(ffi::ThreadPool pool, const Shape& s, const ffi::AnyBuffer& x, const float* scale,
              const float* rstd, const ffi::AnyBuffer& dy, ffi::AnyBuffer& dx, float* dscale) {
  const T* in = reinterpret_cast<const T*>(x.untyped_data());
  const T* grad = reinterpret_cast<const T*>(dy.untyped_data());
  T* out = reinterpret_cast<T*>(dx.untyped_data());
  thread_local Scratch scratch;
  float* sums = scratch.get<float>(s.blocks() * s.channels);
  parallel_for(pool, s.blocks(), [&](int64_t b) {
    const int64_t begin = b * s.block(), end = std::min(begin + s.block(), s.rows);
    float* sum = sums + b * s.channels;
    std::fill(sum, sum + s.channels, 0.0f);
    for (int64_t i = begin; i < end; ++i)
      backward_row(s.channels, in + i * s.channels, scale, rstd[i], grad + i * s.channels,
                   out + i * s.channels, sum);
  });
  add_up(pool, sums, s.channels, s.blocks());
  std::copy(sums, sums + s.channels, dscale);
}

ffi::Error unsupported() {
  return ffi::Error::InvalidArgument("diffjax rms_norm: float32 or bfloat16 expected");
}

ffi::Error rms_norm_forward(ffi::ThreadPool pool, ffi::AnyBuffer x, ffi::Buffer<ffi::F32> scale,
                            ffi::Result<ffi::AnyBuffer> y, ffi::ResultBuffer<ffi::F32> rstd,
                            float eps) {
  auto run = x.element_type() == ffi::F32    ? forward<float>
             : x.element_type() == ffi::BF16 ? forward<bf16>
                                             : nullptr;
  if (!run) return unsupported();
  return guarded([&] {
    run(pool, shape_of(x), eps, x, scale.typed_data(), *y, rstd->typed_data());
  });
}

ffi::Error rms_norm_backward(ffi::ThreadPool pool, ffi::AnyBuffer x, ffi::Buffer<ffi::F32> scale,
                             ffi::Buffer<ffi::F32> rstd, ffi::AnyBuffer dy,
                             ffi::Result<ffi::AnyBuffer> dx, ffi::ResultBuffer<ffi::F32> dscale) {
  auto run = x.element_type() == ffi::F32    ? backward<float>
             : x.element_type() == ffi::BF16 ? backward<bf16>
                                             : nullptr;
  if (!run) return unsupported();
  return guarded([&] {
    run(pool, shape_of(x), x, scale.typed_data(), rstd.typed_data(), dy, *dx,
        dscale->typed_data());
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
