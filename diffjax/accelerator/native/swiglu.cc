// A gated SiLU over the last axis, whose first half is the gate g and second half the value v;
// forward and backward.
//
//   s = 1 / (1 + exp(-g))      y = g s v      dg = dy v s (1 + g (1 - s))      dv = dy g s

#include <algorithm>

#include "bfloat16.h"
#include "buffers.h"
#include "exponential.h"
#include "parallel.h"

namespace diffjax {
namespace {

namespace ffi = xla::ffi;

// Rows of a piece of work, about as many elements as the second cache holds.
constexpr int64_t kElements = 1 << 16;

inline float sigmoid(float g) { return 1.0f / (1.0f + exp_within(-g)); }

template <typename T>
void forward_row(int64_t C, const T* __restrict gate, const T* __restrict value, T* __restrict y) {
#pragma GCC ivdep
  for (int64_t c = 0; c < C; ++c) {
    const float g = load(gate + c);
    store(y + c, g * sigmoid(g) * load(value + c));
  }
}

template <typename T>
void backward_row(int64_t C, const T* __restrict gate, const T* __restrict value,
                  const T* __restrict grad, T* __restrict dgate, T* __restrict dvalue) {
#pragma GCC ivdep
  for (int64_t c = 0; c < C; ++c) {
    const float g = load(gate + c), d = load(grad + c), s = sigmoid(g);
    store(dvalue + c, d * g * s);
    store(dgate + c, d * load(value + c) * s * (1.0f + g * (1.0f - s)));
  }
}

// row(i) for all rows of `channels` elements.
template <typename Row>
void for_rows(ffi::ThreadPool& pool, const ffi::AnyBuffer& y, const Row& row) {
  const int64_t channels = y.dimensions().back(), rows = y.element_count() / channels;
  const int64_t block = std::max<int64_t>(1, kElements / channels);
  parallel_for(pool, (rows + block - 1) / block, [&](int64_t b) {
    for (int64_t i = b * block; i < std::min((b + 1) * block, rows); ++i) row(i, channels);
  });
}

ffi::Error swiglu_forward(ffi::ThreadPool pool, ffi::AnyBuffer x, ffi::Result<ffi::AnyBuffer> y) {
  return by_type(x, [&](auto t) {
    using T = decltype(t);
    for_rows(pool, *y, [&](int64_t i, int64_t C) {
      const T* gate = data<T>(x) + 2 * i * C;
      forward_row(C, gate, gate + C, data<T>(*y) + i * C);
    });
  });
}

ffi::Error swiglu_backward(ffi::ThreadPool pool, ffi::AnyBuffer x, ffi::AnyBuffer dy,
                           ffi::Result<ffi::AnyBuffer> dx) {
  return by_type(x, [&](auto t) {
    using T = decltype(t);
    for_rows(pool, dy, [&](int64_t i, int64_t C) {
      const T* gate = data<T>(x) + 2 * i * C;
      T* dgate = data<T>(*dx) + 2 * i * C;
      backward_row(C, gate, gate + C, data<T>(dy) + i * C, dgate, dgate + C);
    });
  });
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    diffjax_swiglu_forward, swiglu_forward,
    ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<ffi::AnyBuffer>().Ret<ffi::AnyBuffer>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(diffjax_swiglu_backward, swiglu_backward,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Ret<ffi::AnyBuffer>());

}  // namespace diffjax
