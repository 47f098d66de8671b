// Group normalisation, a scale and shift per example and channel, and SiLU, in one pass over an
// image that stays in the cache; forward and backward.
//
//   xhat = (x - mean) rstd             mean, rstd over (H, W, channels of a group)
//   u    = xhat scale + shift          scale, shift: (B, C)
//   y    = u sigmoid(u)  or  u
//
// The backward pass reads x again instead of keeping u:
//
//   d      = dy y'(u)
//   dshift = sum_HW d                  dscale = sum_HW d xhat
//   dx     = rstd (scale d - m1 - xhat m2),   m1, m2 = group means of scale d and scale d xhat

#include <cmath>

#include "bfloat16.h"
#include "buffers.h"
#include "exponential.h"
#include "parallel.h"

namespace diffjax {
namespace {

namespace ffi = xla::ffi;

inline float sigmoid(float u) { return 1.0f / (1.0f + exp_within(-u)); }

struct Shape {
  int64_t batch, pixels, channels, groups;
};

// Rows are summed in float32 and blocks of rows in float64.
constexpr int64_t kBlock = 32;

template <typename T, bool kSilu>
void forward_image(const Shape& s, float eps, const T* x, const float* scale, const float* shift,
                   T* y, float* mean, float* rstd) {
  const int64_t C = s.channels, width = C / s.groups;
  thread_local Scratch floats, doubles;
  float* __restrict sum = floats.get<float>(4 * C);
  float* __restrict square = sum + C;
  float* __restrict multiplier = sum + 2 * C;
  float* __restrict center = sum + 3 * C;
  double* __restrict total = doubles.get<double>(2 * C);
  double* __restrict total_square = total + C;
  std::fill(total, total + 2 * C, 0.0);
  for (int64_t begin = 0; begin < s.pixels; begin += kBlock) {
    std::fill(sum, sum + 2 * C, 0.0f);
    const int64_t end = std::min(begin + kBlock, s.pixels);
    for (int64_t p = begin; p < end; ++p) {
      const T* __restrict row = x + p * C;
#pragma GCC ivdep
      for (int64_t c = 0; c < C; ++c) {
        float v = load(row + c);
        sum[c] += v;
        square[c] += v * v;
      }
    }
    for (int64_t c = 0; c < C; ++c) {
      total[c] += sum[c];
      total_square[c] += square[c];
    }
  }
  for (int64_t g = 0; g < s.groups; ++g) {
    double m = 0, q = 0;
    for (int64_t c = g * width; c < (g + 1) * width; ++c) m += total[c], q += total_square[c];
    const double count = static_cast<double>(s.pixels * width);
    m /= count;
    q = q / count - m * m;
    mean[g] = static_cast<float>(m);
    // !(q > 0) would turn a NaN into a zero variance.
    rstd[g] = static_cast<float>(1.0 / std::sqrt((q < 0 ? 0 : q) + eps));
    for (int64_t c = g * width; c < (g + 1) * width; ++c) {
      multiplier[c] = rstd[g] * scale[c];
      center[c] = mean[g];
    }
  }
  for (int64_t p = 0; p < s.pixels; ++p) {
    const T* __restrict row = x + p * C;
    T* __restrict out = y + p * C;
#pragma GCC ivdep
    for (int64_t c = 0; c < C; ++c) {
      // Subtracted first: where the mean is many deviations, u keeps its digits.
      float u = (load(row + c) - center[c]) * multiplier[c] + shift[c];
      store(out + c, kSilu ? u * sigmoid(u) : u);
    }
  }
}

template <typename T, bool kSilu>
void backward_image(const Shape& s, const T* x, const float* scale, const float* shift,
                    const float* mean, const float* rstd, const T* dy, T* dx, float* dscale,
                    float* dshift) {
  const int64_t C = s.channels, width = C / s.groups;
  thread_local Scratch floats, doubles, image;
  float* __restrict buffer = floats.get<float>(7 * C);
  float* __restrict r = buffer;
  float* __restrict center = buffer + C;
  float* __restrict multiplier = buffer + 2 * C;
  float* __restrict sum = buffer + 3 * C;
  float* __restrict product = buffer + 4 * C;
  float* __restrict on_x = buffer + 5 * C;
  float* __restrict constant = buffer + 6 * C;
  double* __restrict total = doubles.get<double>(2 * C);
  double* __restrict total_product = total + C;
  float* __restrict d = kSilu ? image.get<float>(s.pixels * C) : nullptr;
  for (int64_t c = 0; c < C; ++c) {
    const int64_t g = c / width;
    r[c] = rstd[g];
    center[c] = mean[g];
    multiplier[c] = rstd[g] * scale[c];
  }
  std::fill(total, total + 2 * C, 0.0);
  for (int64_t begin = 0; begin < s.pixels; begin += kBlock) {
    std::fill(sum, sum + 2 * C, 0.0f);
    const int64_t end = std::min(begin + kBlock, s.pixels);
    for (int64_t p = begin; p < end; ++p) {
      const T* __restrict row = x + p * C;
      const T* __restrict grad = dy + p * C;
      float* __restrict kept = kSilu ? d + p * C : nullptr;
#pragma GCC ivdep
      for (int64_t c = 0; c < C; ++c) {
        float v = load(row + c) - center[c], e = load(grad + c);
        if constexpr (kSilu) {
          float u = v * multiplier[c] + shift[c];
          float q = sigmoid(u);
          e *= q * (1.0f + u * (1.0f - q));
          kept[c] = e;
        }
        sum[c] += e;
        product[c] += e * v * r[c];
      }
    }
    for (int64_t c = 0; c < C; ++c) {
      total[c] += sum[c];
      total_product[c] += product[c];
    }
  }
  const double count = static_cast<double>(s.pixels * width);
  for (int64_t g = 0; g < s.groups; ++g) {
    double m1 = 0, m2 = 0;
    for (int64_t c = g * width; c < (g + 1) * width; ++c) {
      dshift[c] = static_cast<float>(total[c]);
      dscale[c] = static_cast<float>(total_product[c]);
      m1 += total[c] * scale[c];
      m2 += total_product[c] * scale[c];
    }
    m1 /= count;
    m2 /= count;
    for (int64_t c = g * width; c < (g + 1) * width; ++c) {
      on_x[c] = static_cast<float>(-r[c] * m2 * r[c]);
      constant[c] = static_cast<float>(-r[c] * m1);
    }
  }
  for (int64_t p = 0; p < s.pixels; ++p) {
    const T* __restrict row = x + p * C;
    const T* __restrict grad = dy + p * C;
    const float* __restrict kept = kSilu ? d + p * C : nullptr;
    T* __restrict out = dx + p * C;
#pragma GCC ivdep
    for (int64_t c = 0; c < C; ++c) {
      float e = kSilu ? kept[c] : load(grad + c);
      store(out + c, e * multiplier[c] + (load(row + c) - center[c]) * on_x[c] + constant[c]);
    }
  }
}

Shape shape_of(const ffi::AnyBuffer& x, int64_t groups) {
  auto d = x.dimensions();
  int64_t pixels = 1;
  for (size_t i = 1; i + 1 < d.size(); ++i) pixels *= d[i];
  return {d.front(), pixels, d.back(), groups};
}

template <typename T>
void forward(ffi::ThreadPool& pool, const Shape& s, float eps, bool silu, const T* x,
             const float* scale, const float* shift, T* y, float* mean, float* rstd) {
  const int64_t size = s.pixels * s.channels;
  auto one = silu ? forward_image<T, true> : forward_image<T, false>;
  parallel_for(pool, s.batch, [&](int64_t i) {
    one(s, eps, x + i * size, scale + i * s.channels, shift + i * s.channels, y + i * size,
        mean + i * s.groups, rstd + i * s.groups);
  });
}

template <typename T>
void backward(ffi::ThreadPool& pool, const Shape& s, bool silu, const T* x, const float* scale,
              const float* shift, const float* mean, const float* rstd, const T* dy, T* dx,
              float* dscale, float* dshift) {
  const int64_t size = s.pixels * s.channels;
  auto one = silu ? backward_image<T, true> : backward_image<T, false>;
  parallel_for(pool, s.batch, [&](int64_t i) {
    const int64_t c = i * s.channels, g = i * s.groups;
    one(s, x + i * size, scale + c, shift + c, mean + g, rstd + g, dy + i * size, dx + i * size,
        dscale + c, dshift + c);
  });
}

ffi::Error group_norm_forward(ffi::ThreadPool pool, ffi::AnyBuffer x,
                              ffi::Buffer<ffi::F32> scale, ffi::Buffer<ffi::F32> shift,
                              ffi::Result<ffi::AnyBuffer> y, ffi::ResultBuffer<ffi::F32> mean,
                              ffi::ResultBuffer<ffi::F32> rstd, int64_t groups, float eps,
                              bool silu) {
  return by_type(x, [&](auto t) {
    using T = decltype(t);
    forward(pool, shape_of(x, groups), eps, silu, data<const T>(x), scale.typed_data(),
            shift.typed_data(), data<T>(*y), mean->typed_data(), rstd->typed_data());
  });
}

ffi::Error group_norm_backward(ffi::ThreadPool pool, ffi::AnyBuffer x,
                               ffi::Buffer<ffi::F32> scale, ffi::Buffer<ffi::F32> shift,
                               ffi::Buffer<ffi::F32> mean, ffi::Buffer<ffi::F32> rstd,
                               ffi::AnyBuffer dy, ffi::Result<ffi::AnyBuffer> dx,
                               ffi::ResultBuffer<ffi::F32> dscale,
                               ffi::ResultBuffer<ffi::F32> dshift, int64_t groups, bool silu) {
  return by_type(x, [&](auto t) {
    using T = decltype(t);
    backward(pool, shape_of(x, groups), silu, data<const T>(x), scale.typed_data(),
             shift.typed_data(), mean.typed_data(), rstd.typed_data(), data<const T>(dy),
             data<T>(*dx), dscale->typed_data(), dshift->typed_data());
  });
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(diffjax_group_norm_forward, group_norm_forward,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::AnyBuffer>()
                                  .Ret<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::Buffer<ffi::F32>>()
                                  .Attr<int64_t>("groups")
                                  .Attr<float>("eps")
                                  .Attr<bool>("silu"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(diffjax_group_norm_backward, group_norm_backward,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Ret<ffi::AnyBuffer>()
                                  .Ret<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::Buffer<ffi::F32>>()
                                  .Attr<int64_t>("groups")
                                  .Attr<bool>("silu"));

}  // namespace diffjax
