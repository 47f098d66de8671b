// XLA's buffers as arrays of their type.
#pragma once

#include <stdexcept>

#include "bfloat16.h"
#include "parallel.h"

namespace diffjax {

// run(float{}) or run(bf16{}), by the type of x; what it throws as a status.
template <typename Run>
xla::ffi::Error by_type(const xla::ffi::AnyBuffer& x, const Run& run) {
  return guarded([&] {
    switch (x.element_type()) {
      case xla::ffi::F32: return run(float{});
      case xla::ffi::BF16: return run(bf16{});
      default: throw std::invalid_argument("float32 or bfloat16 expected");
    }
  });
}

template <typename T>
T* data(const xla::ffi::AnyBuffer& buffer) {
  return reinterpret_cast<T*>(buffer.untyped_data());
}

}  // namespace diffjax
