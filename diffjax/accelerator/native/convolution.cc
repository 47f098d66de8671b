// Convolutions by oneDNN: forward, gradient of the input, gradient of the kernel and bias.
//
// Images are NHWC, float32 or bfloat16; kernels HWIO and biases float32, as flax keeps them. A batch
// is cut into pieces of a few images, each run by one thread (parallel.h). oneDNN chooses the layout
// of the kernel; it is reordered once a call, for all pieces. One primitive is kept per shape: to
// make one costs more than many a convolution.
//
// bfloat16 goes to oneDNN as it is where the processor has AMX, and for 1x1 kernels where it has
// AVX-512 BF16. Elsewhere each piece is widened to float32 in the cache instead: winograd.h in
// float32 is as fast as AVX-512 BF16, and without that oneDNN would take its slow reference.

#include <array>
#include <map>
#include <memory>
#include <oneapi/dnnl/dnnl.hpp>
#include <stdexcept>
#include <unordered_map>

#include "bfloat16.h"
#include "buffers.h"
#include "parallel.h"
#include "winograd.h"

namespace diffjax {
namespace {

namespace ffi = xla::ffi;
using dnnl::memory;
using type = memory::data_type;
using tag = memory::format_tag;

enum Kind : int64_t { kForward, kInputGradient, kKernelGradient };

const dnnl::engine& engine() {
  static const dnnl::engine e(dnnl::engine::kind::cpu, 0);
  return e;
}

dnnl::stream& stream() {
  thread_local dnnl::stream s(engine());
  return s;
}

bool has(dnnl::cpu_isa wanted) {
  static const unsigned found = static_cast<unsigned>(dnnl::get_effective_cpu_isa());
  const unsigned bits = static_cast<unsigned>(wanted);
  return (found & bits) == bits;
}

bool has_amx() { return has(dnnl::cpu_isa::avx512_core_amx); }

// What a primitive depends on. The paddings are those before and after, rows then columns.
struct Geometry {
  int64_t kind, batch, rows, columns, in, out_rows, out_columns, out;
  int64_t kernel_rows, kernel_columns, stride, top, bottom, left, right, groups, bf16;
  auto operator<=>(const Geometry&) const = default;

  int64_t x_size() const { return rows * columns * in; }
  int64_t y_size() const { return out_rows * out_columns * out; }
  int64_t operations() const {  // multiply-adds an image
    return y_size() * kernel_rows * kernel_columns * in / groups;
  }
};

struct Plan {
  dnnl::primitive primitive;
  memory::desc x, y, kernel, bias, scratchpad;
};

memory::desc images(int64_t n, int64_t h, int64_t w, int64_t c, type t) {
  return memory::desc({n, c, h, w}, t, tag::nhwc);
}

memory::desc kernel_desc(const Geometry& g, type t, bool any) {
  memory::dims dims{g.out, g.in, g.kernel_rows, g.kernel_columns};
  if (g.groups > 1) {
    dims = {g.groups, g.out / g.groups, g.in / g.groups, g.kernel_rows, g.kernel_columns};
  }
  if (any) return memory::desc(dims, t, tag::any);
  if (g.groups == 1) return memory::desc(dims, t, tag::hwio);
  const int64_t i = g.in / g.groups;
  return memory::desc(
      dims, t, memory::dims{g.out / g.groups, 1, g.out, g.kernel_columns * i * g.out, i * g.out});
}

std::unique_ptr<Plan> make_plan(const Geometry& g) {
  const type t = g.bf16 ? type::bf16 : type::f32;
  const auto x = images(g.batch, g.rows, g.columns, g.in, t);
  const auto y = images(g.batch, g.out_rows, g.out_columns, g.out, t);
  const auto kernel = kernel_desc(g, t, true);
  const memory::desc bias({g.out}, type::f32, tag::a);
  const memory::dims stride{g.stride, g.stride}, before{g.top, g.left}, after{g.bottom, g.right};
  const auto direct = dnnl::algorithm::convolution_direct;
  dnnl::primitive_attr attributes;
  attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);

  using Forward = dnnl::convolution_forward;
  const Forward::primitive_desc forward(engine(), dnnl::prop_kind::forward_training, direct, x,
                                        kernel, bias, y, stride, before, after, attributes);
  if (g.kind == kForward) {
    return std::make_unique<Plan>(
        Plan{Forward(forward), x, y, forward.weights_desc(), bias, forward.scratchpad_desc()});
  }
  if (g.kind == kInputGradient) {
    using Backward = dnnl::convolution_backward_data;
    const Backward::primitive_desc backward(engine(), direct, x, kernel, y, stride, before, after,
                                            forward, attributes);
    return std::make_unique<Plan>(
        Plan{Backward(backward), x, y, backward.weights_desc(), bias, backward.scratchpad_desc()});
  }
  using Backward = dnnl::convolution_backward_weights;
  // The sum over images stays in float32, whatever the images' type.
  const Backward::primitive_desc backward(engine(), direct, x, kernel_desc(g, type::f32, true),
                                          bias, y, stride, before, after, forward, attributes);
  return std::make_unique<Plan>(Plan{Backward(backward), x, y, backward.diff_weights_desc(), bias,
                                     backward.scratchpad_desc()});
}

const Plan& plan(const Geometry& g) {
  static std::mutex lock;
  static std::map<Geometry, std::unique_ptr<Plan>> plans;
  std::lock_guard hold(lock);
  auto& found = plans[g];
  if (!found) {
    SingleThreaded guard;  // oneDNN plans for as many threads as it sees
    found = make_plan(g);
  }
  return *found;
}

void reorder(const memory::desc& from, const void* source, const memory::desc& to, void* target) {
  SingleThreaded guard;
  memory a(from, engine(), const_cast<void*>(source)), b(to, engine(), target);
  dnnl::reorder(a, b).execute(stream(), a, b);
  stream().wait();
}

// A call's images, cut into pieces.
class Pieces {
 public:
  // Several pieces a thread even out what one thread loses to other work, unless they get too
  // small to be worth a call.
  Pieces(const Geometry& g, int64_t threads, int64_t pieces_a_thread) : whole_(g) {
    const int64_t worth = 4'000'000;
    const int64_t least = std::max<int64_t>(1, worth / std::max<int64_t>(1, g.operations()));
    const int64_t wanted = threads * pieces_a_thread;
    size_ = std::min(g.batch, std::max((g.batch + wanted - 1) / wanted, std::min(
        least, (g.batch + threads - 1) / threads)));
  }
  int64_t count() const { return (whole_.batch + size_ - 1) / size_; }
  int64_t first(int64_t i) const { return i * size_; }
  int64_t images(int64_t i) const { return std::min(size_, whole_.batch - i * size_); }
  const Plan& plan_of(int64_t i, bool native) const {
    Geometry g = whole_;
    g.batch = images(i);
    g.bf16 = native;
    return plan(g);
  }

 private:
  Geometry whole_;
  int64_t size_;
};

// Whether oneDNN gets images of type T as they are: not bfloat16 where the processor has no fast
// products of it, or where oneDNN has no primitive for these shapes in it.
template <typename T>
bool is_native(const Geometry& g, const Pieces& pieces) {
  if (std::is_same_v<T, float>) return true;
  const bool is_product = g.kernel_rows == 1 && g.kernel_columns == 1;
  if (!has_amx() && !(is_product && has(dnnl::cpu_isa::avx512_core_bf16))) return false;
  try {
    pieces.plan_of(0, true);
    pieces.plan_of(pieces.count() - 1, true);
    return true;
  } catch (const dnnl::error&) {
    return false;
  }
}

// Images of a piece as the primitive wants them: as they are, or widened into `scratch`.
template <typename T>
void* input(const T* data, int64_t size, bool native, Scratch& scratch) {
  if (native || std::is_same_v<T, float>) return const_cast<T*>(data);
  float* wide = scratch.get<float>(size);
  for (int64_t i = 0; i < size; ++i) wide[i] = load(data + i);
  return wide;
}

void execute(const Plan& p, const std::unordered_map<int, memory>& arguments) {
  thread_local Scratch scratchpad;
  auto all = arguments;
  all.emplace(DNNL_ARG_SCRATCHPAD,
              memory(p.scratchpad, engine(), scratchpad.get<char>(p.scratchpad.get_size() + 1)));
  p.primitive.execute(stream(), all);
  stream().wait();
}

// Whether the convolution is one that winograd.h is for, and images of type T not AMX's.
template <typename T>
bool may_filter(const Geometry& g) {
  return g.kernel_rows == 3 && g.kernel_columns == 3 && g.stride == 1 && g.groups == 1 &&
         (std::is_same_v<T, float> || !has_amx());
}

WinogradShape winograd_shape(const Geometry& g) {
  return {g.batch, g.rows, g.columns, g.in, g.out_rows, g.out_columns, g.out, g.top, g.left};
}

// dx is the convolution of dy, with the border that makes it x's size.
WinogradShape winograd_shape_of_gradient(const Geometry& g) {
  return {g.batch, g.out_rows, g.out_columns, g.out, g.rows, g.columns, g.in, 2 - g.top,
          2 - g.left};
}

// y = x * kernel + bias, or dx from dy: the two that write images.
template <typename T>
void to_images(ffi::ThreadPool& pool, const Geometry& g, const T* from, const float* kernel,
               const float* bias, T* to) {
  const bool is_forward = g.kind == kForward;
  const int64_t from_size = is_forward ? g.x_size() : g.y_size();
  const int64_t to_size = is_forward ? g.y_size() : g.x_size();

  const WinogradShape shape = is_forward ? winograd_shape(g) : winograd_shape_of_gradient(g);
  if (may_filter<T>(g) && has_winograd(shape)) {
    return winograd_convolution(pool, shape, from, kernel, !is_forward, bias, to);
  }
  const Pieces pieces(g, pool.num_threads(), 4);
  const bool native = is_native<T>(g, pieces);
  const bool bf16 = native && !std::is_same_v<T, float>;

  // Pieces of one size have one kernel layout; the last may be smaller and want another.
  thread_local Scratch kernels[2];
  const int64_t last = pieces.count() - 1;
  const Plan& most = pieces.plan_of(0, bf16);
  const Plan& rest = pieces.plan_of(last, bf16);
  const auto plain = kernel_desc(g, type::f32, false);
  void* ready = kernels[0].get<char>(most.kernel.get_size());
  reorder(plain, kernel, most.kernel, ready);
  void* rest_ready = ready;
  if (rest.kernel != most.kernel) {
    rest_ready = kernels[1].get<char>(rest.kernel.get_size());
    reorder(plain, kernel, rest.kernel, rest_ready);
  }

  parallel_for(pool, pieces.count(), [&](int64_t i) {
    thread_local Scratch wide_from, wide_to;
    const Plan& p = i == last ? rest : most;
    const int64_t n = pieces.images(i);
    void* in = input(from + pieces.first(i) * from_size, n * from_size, native, wide_from);
    T* target = to + pieces.first(i) * to_size;
    void* out = native ? static_cast<void*>(target) : wide_to.get<float>(n * to_size);
    const memory weights(p.kernel, engine(), i == last ? rest_ready : ready);
    if (is_forward) {
      execute(p, {{DNNL_ARG_SRC, memory(p.x, engine(), in)},
                  {DNNL_ARG_WEIGHTS, weights},
                  {DNNL_ARG_BIAS, memory(p.bias, engine(), const_cast<float*>(bias))},
                  {DNNL_ARG_DST, memory(p.y, engine(), out)}});
    } else {
      execute(p, {{DNNL_ARG_DIFF_DST, memory(p.y, engine(), in)},
                  {DNNL_ARG_WEIGHTS, weights},
                  {DNNL_ARG_DIFF_SRC, memory(p.x, engine(), out)}});
    }
    if (!native) {
      const float* wide = static_cast<const float*>(out);
      for (int64_t j = 0; j < n * to_size; ++j) store(target + j, wide[j]);
    }
  });
}

// dkernel and dbias: each piece sums over its own images, then the pieces are summed.
template <typename T>
void to_kernel(ffi::ThreadPool& pool, const Geometry& g, const T* x, const T* dy, float* dkernel,
               float* dbias) {
  if (may_filter<T>(g) && has_winograd(winograd_shape(g))) {
    return winograd_kernel_gradient(pool, winograd_shape(g), x, dy, dkernel, dbias);
  }
  const Pieces pieces(g, pool.num_threads(), 1);
  const bool native = is_native<T>(g, pieces);
  const bool bf16 = native && !std::is_same_v<T, float>;
  const int64_t last = pieces.count() - 1;
  const Plan& most = pieces.plan_of(0, bf16);
  const Plan& rest = pieces.plan_of(last, bf16);
  // All pieces must be summed in one layout.
  const bool alike = rest.kernel == most.kernel;
  const int64_t kernel_floats =
      std::max(most.kernel.get_size(), rest.kernel.get_size()) / sizeof(float);
  const int64_t stride = kernel_floats + g.out;
  thread_local Scratch sums;
  float* partial = sums.get<float>(stride * (pieces.count() + 1));

  parallel_for(pool, pieces.count(), [&](int64_t i) {
    thread_local Scratch wide_x, wide_dy;
    const Plan& p = i == last ? rest : most;
    const int64_t n = pieces.images(i), begin = pieces.first(i);
    void* in = input(x + begin * g.x_size(), n * g.x_size(), native, wide_x);
    void* grad = input(dy + begin * g.y_size(), n * g.y_size(), native, wide_dy);
    float* kernel = partial + i * stride;
    execute(p, {{DNNL_ARG_SRC, memory(p.x, engine(), in)},
                {DNNL_ARG_DIFF_DST, memory(p.y, engine(), grad)},
                {DNNL_ARG_DIFF_WEIGHTS, memory(p.kernel, engine(), kernel)},
                {DNNL_ARG_DIFF_BIAS, memory(p.bias, engine(), kernel + kernel_floats)}});
  });
  if (!alike) {
    float* spare = partial + pieces.count() * stride;
    reorder(rest.kernel, partial + last * stride, most.kernel, spare);
    std::copy(spare, spare + most.kernel.get_size() / sizeof(float), partial + last * stride);
  }
  add_up(pool, partial, stride, pieces.count());
  reorder(most.kernel, partial, kernel_desc(g, type::f32, false), dkernel);
  std::copy(partial + kernel_floats, partial + kernel_floats + g.out, dbias);
}

using Dims = ffi::Span<const int64_t>;

Geometry geometry(Kind kind, Dims x, Dims kernel, Dims y, int64_t stride, Dims padding,
                  int64_t groups) {
  return {kind, x[0], x[1], x[2], x[3], y[1], y[2], y[3], kernel[0], kernel[1], stride,
          padding[0], padding[1], padding[2], padding[3], groups, 0};
}

ffi::Error convolution_forward(ffi::ThreadPool pool, ffi::AnyBuffer x,
                               ffi::Buffer<ffi::F32> kernel, ffi::Buffer<ffi::F32> bias,
                               ffi::Result<ffi::AnyBuffer> y, int64_t stride, Dims padding,
                               int64_t groups) {
  const Geometry g = geometry(kForward, x.dimensions(), kernel.dimensions(), y->dimensions(),
                              stride, padding, groups);
  return by_type(x, [&](auto t) {
    using T = decltype(t);
    to_images<T>(pool, g, data<T>(x), kernel.typed_data(), bias.typed_data(), data<T>(*y));
  });
}

ffi::Error convolution_input_gradient(ffi::ThreadPool pool, ffi::AnyBuffer dy,
                                      ffi::Buffer<ffi::F32> kernel,
                                      ffi::Result<ffi::AnyBuffer> dx, int64_t stride, Dims padding,
                                      int64_t groups) {
  const Geometry g = geometry(kInputGradient, dx->dimensions(), kernel.dimensions(),
                              dy.dimensions(), stride, padding, groups);
  return by_type(dy, [&](auto t) {
    using T = decltype(t);
    to_images<T>(pool, g, data<T>(dy), kernel.typed_data(), nullptr, data<T>(*dx));
  });
}

ffi::Error convolution_kernel_gradient(ffi::ThreadPool pool, ffi::AnyBuffer x, ffi::AnyBuffer dy,
                                       ffi::ResultBuffer<ffi::F32> dkernel,
                                       ffi::ResultBuffer<ffi::F32> dbias, int64_t stride,
                                       Dims padding, int64_t groups) {
  const Geometry g = geometry(kKernelGradient, x.dimensions(), dkernel->dimensions(),
                              dy.dimensions(), stride, padding, groups);
  return by_type(x, [&](auto t) {
    using T = decltype(t);
    to_kernel<T>(pool, g, data<T>(x), data<T>(dy), dkernel->typed_data(), dbias->typed_data());
  });
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(diffjax_convolution_forward, convolution_forward,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::AnyBuffer>()
                                  .Attr<int64_t>("stride")
                                  .Attr<Dims>("padding")
                                  .Attr<int64_t>("groups"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(diffjax_convolution_input_gradient, convolution_input_gradient,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::AnyBuffer>()
                                  .Attr<int64_t>("stride")
                                  .Attr<Dims>("padding")
                                  .Attr<int64_t>("groups"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(diffjax_convolution_kernel_gradient, convolution_kernel_gradient,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Ret<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::Buffer<ffi::F32>>()
                                  .Attr<int64_t>("stride")
                                  .Attr<Dims>("padding")
                                  .Attr<int64_t>("groups"));

// oneDNN's own version, such as 302 for 3.2.
extern "C" int diffjax_onednn_version() {
  const auto* version = dnnl_version();
  return 100 * version->major + version->minor;
}

// The newest instruction set that oneDNN uses here; empty where it has less than AVX2.
extern "C" const char* diffjax_instruction_set() {
  using dnnl::cpu_isa;
  if (has_amx()) return "AMX";
  if (has(cpu_isa::avx512_core)) return "AVX-512";
  return has(cpu_isa::avx2) ? "AVX2" : "";
}

}  // namespace diffjax
