#include "cross_entropy.h"

#include <algorithm>
#include <bit>
#include <cstdlib>
#include <numeric>

#include "../pixel_rows.h"
#include "../tensors.h"
#include "interleaved.h"
#include "many_classes.h"
#include "planar.h"
#include "sum_losses.h"

namespace cawa_fast::cuda {

namespace {

constexpr int64_t kMaxClassesCuda = 32767;

// The launch shape of a kernel; 0 threads if the problem does not fit into a thread block.
struct Shape {
  dim3 threads{0};
  int64_t shared = 0;  // bytes of dynamic shared memory
  int tile_pixels = 0;
};

// Whether rows of logits and of gradients can be read and written as 16 bytes: the offset of every row is a multiple of
// 16 bytes. The caller checks the strides of pixels and classes.
bool aligned(const Problem& p, int64_t element_size) {
  const int64_t vector = 16 / element_size;
  bool all = reinterpret_cast<uintptr_t>(p.input) % 16 == 0 && reinterpret_cast<uintptr_t>(p.grad_input) % 16 == 0;
  for (int d = 0; d < p.pixels.outer; ++d) {
    all &= p.pixels.stride[d] % vector == 0 && p.pixels.grad_stride[d] % vector == 0;
  }
  return all;
}

// The shape of planar.h. A thread block has about 300 threads: three blocks share a multiprocessor, so that one loads
// while another computes. There are 8 columns or more where possible: 128 contiguous bytes of each class.
template <class Thread>
Shape planar_shape(const Problem& p, int64_t shared_limit) {
  constexpr int kThreads = 320;
  const int groups = (p.classes + Thread::kClasses - 1) / Thread::kClasses;
  int columns = 64;
  while (columns > 8 && columns * groups > kThreads) columns /= 2;
  while (columns > 2 && columns * groups > Thread::kMost) columns /= 2;
  const int per_warp = std::max(1, kWarp / columns);
  const int rounded = (groups + per_warp - 1) / per_warp * per_warp;  // whole warps
  const int64_t shared = PlanarShared::bytes(columns * Thread::kPixels, rounded, p.smooth > 0);
  if (columns * rounded > Thread::kMost || shared > shared_limit) return {};
  return {dim3(columns, rounded), shared, columns * Thread::kPixels};
}

// The shape of interleaved.h. There are enough lanes per pixel that their registers hold its classes and that at most
// two pixels of a warp begin in the same bank of shared memory. A tile has about 24 KiB: four or more fit into the
// shared memory of a multiprocessor.
template <class T>
Shape interleaved_shape(const Problem& p, int* lanes_log2) {
  constexpr int64_t kTileBytes = 24 * 1024, kMaxTilePixels = 512;
  const unsigned needed = (p.classes + kInterleavedClasses - 1) / kInterleavedClasses;
  const unsigned lanes = std::max(std::bit_ceil(needed), std::gcd(static_cast<unsigned>(p.classes), 32u) / 2);
  *lanes_log2 = std::bit_width(lanes) - 1;
  const int64_t step = std::max<int64_t>(8, kInterleavedThreads / lanes);
  const int64_t bytes = p.classes * static_cast<int64_t>(sizeof(T));
  const int64_t fitting = std::min(kTileBytes / bytes, kMaxTilePixels);
  const int pixels = static_cast<int>(std::max<int64_t>(fitting / step, 1) * step);
  return {dim3(kInterleavedThreads), InterleavedShared<T>::bytes(pixels, p.classes), pixels};
}

// Splits the pixels into tiles; returns the number of thread blocks.
uint32_t split(Problem& p, int tile_pixels) {
  p.tile_pixels = tile_pixels;
  const int64_t per_row = (p.pixels.length + tile_pixels - 1) / tile_pixels, tiles = per_row * p.pixels.rows;
  STD_TORCH_CHECK(tiles < (int64_t{1} << 31), "input has too many pixels for one call; split it");
  p.tiles_per_row = static_cast<uint32_t>(per_row);
  return static_cast<uint32_t>(tiles);
}

// Launches the kernel that suits the layout. allocate_partial(number of thread blocks) returns the memory for their
// losses, or null.
template <class T, class Allocate>
void run(Problem& p, int32_t device, const Allocate& allocate_partial) {
  const cudaStream_t stream = current_stream(device);
  const PixelRows& rows = p.pixels;
  const int64_t vector = Vector<T>::kSize, limit = shared_memory_limit(device);
  const bool is_aligned = aligned(p, sizeof(T));
  const bool planes = rows.stride_x == 1 && rows.grad_stride_x == 1 && rows.length % vector == 0 &&
                      (p.classes == 1 || (rows.stride_c % vector == 0 && rows.grad_stride_c % vector == 0));
  const bool interleaves = rows.stride_c == 1 && rows.grad_stride_c == 1 && rows.stride_x == p.classes &&
                           rows.grad_stride_x == p.classes && p.classes <= kInterleavedMaxClasses;
  const auto start = [&](const char* name, auto kernel, const Shape& shape, auto... arguments) {
    const uint32_t blocks = split(p, shape.tile_pixels);
    p.partial_loss = allocate_partial(blocks);
    launch(name, kernel, dim3(blocks), shape.threads, shape.shared, stream, p, arguments...);
  };
  // Returns whether the problem fits into a thread block.
  const auto start_planar = [&]<bool kVector, bool kSmoothed, bool kFocal>(const char* name) {
    const Shape shape = planar_shape<PlanarThread<T, kVector, kSmoothed, kFocal>>(p, limit);
    if (shape.tile_pixels == 0) return false;
    constexpr unsigned kMostLanes = 8;
    const unsigned spare = shape.threads.x * shape.threads.y / static_cast<unsigned>(shape.tile_pixels);
    p.lanes_log2 = std::bit_width(std::clamp(spare, 1u, kMostLanes)) - 1;
    start(name, planar<T, kVector, kSmoothed, kFocal>, shape);
    return true;
  };
  const auto fits_planar = [&]<bool kVector>(const char* name) {
    if (p.smooth > 0) return start_planar.template operator()<kVector, true, false>(name);
    if (p.gamma > 0) return start_planar.template operator()<kVector, false, true>(name);
    return start_planar.template operator()<kVector, false, false>(name);
  };
  if (planes && is_aligned && fits_planar.template operator()<true>("cross_entropy, planar")) return;
  if (interleaves && is_aligned) {
    int lanes_log2;
    const Shape shape = interleaved_shape<T>(p, &lanes_log2);
    return start("cross_entropy, interleaved", interleaved<T>, shape, lanes_log2);
  }
  const bool classes_together = rows.stride_c == 1 && rows.stride_x != 1 && p.classes >= 2 * kWarp;
  if (!classes_together && fits_planar.template operator()<false>("cross_entropy, strided")) return;
  const int lanes = classes_together ? kWarp : 1;
  start("cross_entropy, many classes", many_classes<T>,
        Shape{dim3(kManyThreads), kWarp * sizeof(double), kManyThreads / lanes}, lanes);
}

// Checks the arguments that forward and backward share, and fills the problem. `weight_sum` owns the memory of
// Problem::weight_sum.
Problem problem_of(const Tensor& input, const Tensor& target, const std::optional<Tensor>& weight,
                   const std::optional<Tensor>& offset, const Tensor& scale, int64_t ignore_index,
                   double label_smoothing, double gamma, std::optional<Tensor>& weight_sum) {
  STD_TORCH_CHECK(input.dim() >= 2 && target.dim() == input.dim() - 1 && target.size(0) == input.size(0),
                  "input must be (N, C, ...) and target (N, ...)");
  for (int64_t d = 1; d < target.dim(); ++d) {
    STD_TORCH_CHECK(target.size(d) == input.size(d + 1), "input and target must have the same sizes but for C");
  }
  const int64_t classes = input.size(1);
  STD_TORCH_CHECK(1 <= classes && classes <= kMaxClassesCuda, "the number of classes must be in [1, ", kMaxClassesCuda,
                  "], not ", classes);
  for (const Tensor* tensor : {&target, &scale, weight ? &*weight : &scale, offset ? &*offset : &scale}) {
    STD_TORCH_CHECK(tensor->device() == input.device(), "all tensors must be on the same device as input");
  }
  const Labels labels = labels_of(target, classes, ignore_index);
  Problem p{};
  p.classes = static_cast<int>(classes);
  p.input = input.const_data_ptr();
  p.labels = labels.data;
  p.label_type = labels.type;
  p.ignore_index = ignore_index;
  p.scale = floats_of(scale, classes, "scale");
  p.keep = static_cast<float>(1 - label_smoothing);
  p.smooth = static_cast<float>(label_smoothing / static_cast<double>(classes));
  p.gamma = static_cast<float>(gamma);
  if (offset) p.offset = floats_of(*offset, classes, "offset");
  if (weight) {
    p.weight = floats_of(*weight, classes, "weight");
    if (label_smoothing > 0) {
      weight_sum = torch::stable::sum(*weight);
      p.weight_sum = weight_sum->const_data_ptr<float>();
    }
  }
  return p;
}

template <class Allocate>
void run(Problem& p, const Tensor& input, const Tensor* grad_input, const Allocate& allocate_partial) {
  p.grad_input = grad_input ? grad_input->mutable_data_ptr() : nullptr;
  p.pixels = pixel_rows(input, grad_input ? *grad_input : input);
  const int32_t device = input.get_device_index();
  switch (float_type(input, "input")) {
    case Float::kFloat32:
      return run<float>(p, device, allocate_partial);
    case Float::kBFloat16:
      return run<BFloat16>(p, device, allocate_partial);
    case Float::kFloat16:
      return run<Half>(p, device, allocate_partial);
  }
}

}  // namespace

std::tuple<Tensor, Tensor> cross_entropy(const Tensor& input, const Tensor& target, const std::optional<Tensor>& weight,
                                         const std::optional<Tensor>& offset, const Tensor& scale, int64_t ignore_index,
                                         bool per_pixel, double label_smoothing, double gamma, bool with_grad) {
  const DeviceGuard guard(input.get_device_index());
  const Tensor flat_target = torch::stable::contiguous(target);
  std::optional<Tensor> weight_sum, partial;
  Problem p = problem_of(input, flat_target, weight, offset, scale, ignore_index, label_smoothing, gamma, weight_sum);
  const Tensor loss = per_pixel ? torch::stable::new_empty(target, target.sizes(), ScalarType::Float)
                                : torch::stable::new_empty(target, {}, ScalarType::Float);
  const Tensor grad = with_grad ? torch::stable::empty_like(input) : torch::stable::new_empty(input, {0});
  if (per_pixel) p.pixel_loss = loss.mutable_data_ptr<float>();
  int count = 0;
  if (target.numel() > 0) {
    run(p, input, with_grad ? &grad : nullptr, [&](uint32_t blocks) -> double* {
      if (per_pixel) return nullptr;
      count = static_cast<int>(blocks);
      partial = torch::stable::new_empty(target, {blocks}, ScalarType::Double);
      return partial->mutable_data_ptr<double>();
    });
  }
  if (!per_pixel) {
    launch("cross_entropy, sum", sum_partial_losses, dim3(1), dim3(kSumThreads), kWarp * sizeof(double),
           current_stream(input.get_device_index()), p.partial_loss, count, p.scale, loss.mutable_data_ptr<float>());
  }
  return {loss, grad};
}

namespace {

void run_backward(const Tensor& grad, const Tensor& input, const Tensor& target, const std::optional<Tensor>& weight,
                  const std::optional<Tensor>& offset, const Tensor& scale, int64_t ignore_index,
                  double label_smoothing, double gamma, const Tensor& grad_input, bool unless_one) {
  const DeviceGuard guard(input.get_device_index());
  const Tensor flat_target = torch::stable::contiguous(target), flat_grad = torch::stable::contiguous(grad);
  std::optional<Tensor> weight_sum;
  Problem p = problem_of(input, flat_target, weight, offset, scale, ignore_index, label_smoothing, gamma, weight_sum);
  STD_TORCH_CHECK(grad.device() == input.device(), "grad must be on the same device as input");
  p.grad_per_pixel = grad.dim() > 0 && !unless_one;
  p.grad = floats_of(flat_grad, p.grad_per_pixel ? target.numel() : 1, "grad");
  p.unless_one = unless_one;
  if (target.numel() > 0) run(p, input, &grad_input, [](uint32_t) -> double* { return nullptr; });
}

}  // namespace

Tensor cross_entropy_backward(const Tensor& grad, const Tensor& input, const Tensor& target,
                              const std::optional<Tensor>& weight, const std::optional<Tensor>& offset,
                              const Tensor& scale, int64_t ignore_index, double label_smoothing, double gamma) {
  const Tensor grad_input = torch::stable::empty_like(input);
  run_backward(grad, input, target, weight, offset, scale, ignore_index, label_smoothing, gamma, grad_input, false);
  return grad_input;
}

void cross_entropy_rescale(const Tensor& grad_input, const Tensor& grad, const Tensor& input, const Tensor& target,
                           const std::optional<Tensor>& weight, const std::optional<Tensor>& offset,
                           const Tensor& scale, int64_t ignore_index, double label_smoothing, double gamma) {
  run_backward(grad, input, target, weight, offset, scale, ignore_index, label_smoothing, gamma, grad_input, true);
}

}  // namespace cawa_fast::cuda
