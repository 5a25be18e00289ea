#include "resized_cross_entropy.h"

#include <algorithm>

#include "../tensors.h"
#include "resized_backward.h"
#include "resized_forward.h"
#include "sum_losses.h"

namespace cawa_fast::cuda {
namespace {

constexpr int64_t kMaxSide = 8;

CellAxis cell_axis_of(int64_t in, int64_t out, bool align_corners) {
  STD_TORCH_CHECK(2 <= in && in <= out && (in + 1) * out < (int64_t{1} << 29),
                  "resized_cross_entropy enlarges from 2 samples on, not from ", in, " to ", out);
  CellAxis axis{};
  axis.in = static_cast<int>(in);
  axis.out = static_cast<int>(out);
  axis.scale = static_cast<int>(align_corners ? in - 1 : 2 * in);
  axis.shift = static_cast<int>(align_corners ? 0 : in - out);
  axis.unit = static_cast<int>(align_corners ? out - 1 : 2 * out);
  axis.inverse_unit = 1.0f / static_cast<float>(axis.unit);
  axis.step = static_cast<float>(axis.scale) / static_cast<float>(axis.unit);
  return axis;
}

// Upper bound of the number of outputs of a cell along the axis.
int64_t most_outputs(const CellAxis& axis) { return (axis.unit + axis.scale - 1) / axis.scale; }

// Checks the arguments that forward and backward share, and fills the problem. `weight_sum` owns the memory of
// ResizedProblem::weight_sum.
ResizedProblem problem_of(const Tensor& input, const Tensor& target, const std::optional<Tensor>& weight,
                          const std::optional<Tensor>& offset, const Tensor& scale, int64_t ignore_index,
                          double label_smoothing, double gamma, bool align_corners, std::optional<Tensor>& weight_sum) {
  STD_TORCH_CHECK(input.dim() == 4 && target.dim() == 3 && target.size(0) == input.size(0),
                  "input must be (N, C, h, w) and target (N, H, W)");
  const int64_t classes = input.size(1);
  STD_TORCH_CHECK(1 <= classes && classes <= kMaxResizedClasses, "the number of classes must be in [1, ",
                  kMaxResizedClasses, "], not ", classes);
  for (const Tensor* tensor : {&target, &scale, weight ? &*weight : &scale, offset ? &*offset : &scale}) {
    STD_TORCH_CHECK(tensor->device() == input.device(), "all tensors must be on the same device as input");
  }
  const Labels labels = labels_of(target, classes, ignore_index);
  ResizedProblem p{};
  p.rows = cell_axis_of(input.size(2), target.size(1), align_corners);
  p.columns = cell_axis_of(input.size(3), target.size(2), align_corners);
  p.images = static_cast<int>(input.size(0));
  p.classes = static_cast<int>(classes);
  p.cells = input.size(0) * (input.size(2) + 1) * (input.size(3) + 1);
  STD_TORCH_CHECK(p.cells < (int64_t{1} << 30), "input has too many samples for one call; split it");
  p.input = input.const_data_ptr();
  p.stride_n = input.stride(0);
  p.stride_c = input.stride(1);
  p.stride_y = input.stride(2);
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

// `input` (N, C, h, w) itself if its stride along w is 1, else a contiguous copy.
Tensor with_rows(const Tensor& input) { return input.stride(3) == 1 ? input : torch::stable::contiguous(input); }

// kSide: the smallest cell size, of those that the kernels are compiled for, that holds the largest cell.
int side_of(const ResizedProblem& p) {
  const int64_t most = std::max(most_outputs(p.rows), most_outputs(p.columns));
  STD_TORCH_CHECK(most <= kMaxSide, "resized_cross_entropy enlarges ", kMaxSide, " times at most");
  return most <= 2 ? 2 : most <= 4 ? 4 : 8;
}

int64_t statistics_rows(const ResizedProblem& p) {
  const int side = side_of(p);
  return 1 + side * side * (p.gamma > 0 ? 2 : 1);
}

// Calls body.operator()<T, kSide>().
template <class Body>
void for_type_and_side(const Tensor& input, ResizedProblem& p, const Body& body) {
  const int side = side_of(p);
  // Exponentials are computed for all kSide steps, also for pixels that a smaller cell does not have.
  p.span = kSpan / std::max(1.0f, static_cast<float>(side) * std::max(p.rows.step, p.columns.step));
  const auto for_side = [&]<class T>() {
    if (side == 2) return body.template operator()<T, 2>();
    if (side == 4) return body.template operator()<T, 4>();
    return body.template operator()<T, 8>();
  };
  switch (float_type(input, "input")) {
    case Float::kFloat32:
      return for_side.template operator()<float>();
    case Float::kBFloat16:
      return for_side.template operator()<BFloat16>();
    case Float::kFloat16:
      return for_side.template operator()<Half>();
  }
}

uint32_t blocks_for(int64_t items, int64_t per_block) {
  const int64_t blocks = (items + per_block - 1) / per_block;
  STD_TORCH_CHECK(blocks < (int64_t{1} << 31), "input has too many pixels for one call; split it");
  return static_cast<uint32_t>(blocks);
}

}  // namespace

std::tuple<Tensor, Tensor> resized_cross_entropy(const Tensor& input, const Tensor& target,
                                                 const std::optional<Tensor>& weight,
                                                 const std::optional<Tensor>& offset, const Tensor& scale,
                                                 int64_t ignore_index, bool per_pixel, double label_smoothing,
                                                 double gamma, bool align_corners, bool save) {
  const DeviceGuard guard(input.get_device_index());
  const cudaStream_t stream = current_stream(input.get_device_index());
  const Tensor rows = with_rows(input), flat_target = torch::stable::contiguous(target);
  std::optional<Tensor> weight_sum, partial, scratch;
  ResizedProblem p = problem_of(rows, flat_target, weight, offset, scale, ignore_index, label_smoothing, gamma,
                                align_corners, weight_sum);
  const int side = side_of(p);
  const Tensor loss = per_pixel ? torch::stable::new_empty(target, target.sizes(), ScalarType::Float)
                                : torch::stable::new_empty(target, {}, ScalarType::Float);
  const Tensor statistics =
      torch::stable::new_empty(target, {save ? statistics_rows(p) * p.cells : 0}, ScalarType::Float);
  const uint32_t blocks = blocks_for(p.cells, kForwardThreads), steep_blocks = std::min(blocks, kSteepBlocks);
  if (save) {
    p.statistics = p.references = statistics.mutable_data_ptr<float>();
  } else {  // the forward pass itself reads the references and, with smoothing, all statistics
    scratch = torch::stable::new_empty(target, {(p.smooth > 0 ? 1 + side * side : 1) * p.cells}, ScalarType::Float);
    p.references = scratch->mutable_data_ptr<float>();
    p.statistics = p.smooth > 0 ? p.references : nullptr;
  }
  if (per_pixel) {
    p.pixel_loss = loss.mutable_data_ptr<float>();
  } else {
    partial = torch::stable::new_empty(target, {blocks + steep_blocks}, ScalarType::Double);
    p.partial_loss = partial->mutable_data_ptr<double>();
  }
  if (blocks > 0) {
    for_type_and_side(rows, p, [&]<class T, int kSide>() {
      const auto forward = p.offset ? resized_forward<T, kSide, true> : resized_forward<T, kSide, false>;
      launch("resized_cross_entropy", forward, dim3(blocks), dim3(kForwardThreads), ForwardShared<kSide>::kBytes,
             stream, p);
      launch("resized_cross_entropy, steep cells", resized_forward_steep<T, kSide>, dim3(steep_blocks),
             dim3(kForwardThreads), kWarp * sizeof(double), stream, p, steep_blocks, blocks);
    });
  }
  if (!per_pixel) {
    launch("resized_cross_entropy, sum", sum_partial_losses, dim3(1), dim3(kSumThreads), kWarp * sizeof(double), stream,
           p.partial_loss, static_cast<int>(blocks + steep_blocks), p.scale, loss.mutable_data_ptr<float>());
  }
  return {loss, statistics};
}

Tensor resized_cross_entropy_backward(const Tensor& grad, const Tensor& input, const Tensor& target,
                                      const std::optional<Tensor>& weight, const std::optional<Tensor>& offset,
                                      const Tensor& scale, const Tensor& statistics, int64_t ignore_index,
                                      double label_smoothing, double gamma, bool align_corners) {
  const DeviceGuard guard(input.get_device_index());
  const cudaStream_t stream = current_stream(input.get_device_index());
  const Tensor rows = with_rows(input), flat_target = torch::stable::contiguous(target),
               flat_grad = torch::stable::contiguous(grad);
  std::optional<Tensor> weight_sum;
  ResizedProblem p = problem_of(rows, flat_target, weight, offset, scale, ignore_index, label_smoothing, gamma,
                                align_corners, weight_sum);
  STD_TORCH_CHECK(grad.device() == input.device(), "grad must be on the same device as input");
  p.statistics = const_cast<float*>(floats_of(statistics, statistics_rows(p) * p.cells, "statistics"));
  p.grad_per_pixel = grad.dim() > 0;
  p.grad = floats_of(flat_grad, p.grad_per_pixel ? target.numel() : 1, "grad");
  Tensor result = torch::stable::empty_like(input);
  Tensor grad_input = result.stride(3) == 1 ? result : torch::stable::new_empty(rows, rows.sizes());
  p.grad_input = grad_input.mutable_data_ptr();
  p.grad_n = grad_input.stride(0);
  p.grad_c = grad_input.stride(1);
  p.grad_y = grad_input.stride(2);
  if (p.images > 0) {
    for_type_and_side(rows, p, [&]<class T, int kSide>() {
      using Block = Backward<kSide>;
      const int64_t strips = (p.rows.in + Block::kRows - 1) / Block::kRows;
      const uint32_t blocks = blocks_for(p.images * strips * (p.columns.in + 1) - 1, kBackwardColumns);
      const Tensor is_left = torch::stable::new_empty(target, {blocks}, ScalarType::Byte);
      uint8_t* left = is_left.mutable_data_ptr<uint8_t>();
      const auto backward = p.offset ? resized_backward<T, kSide, true> : resized_backward<T, kSide, false>;
      launch("resized_cross_entropy, backward", backward, dim3(blocks), dim3(Block::kThreads),
             BackwardShared<kSide>::kBytes, stream, p, left);
      launch("resized_cross_entropy, backward of steep cells", resized_backward_steep<T, kSide>,
             dim3(std::min(blocks, kSteepBlocks)), dim3(Block::kThreads), BackwardShared<kSide>::kSteepBytes, stream, p,
             left, blocks);
    });
  }
  if (grad_input.stride(3) != result.stride(3)) torch::stable::copy_(result, grad_input);
  return result;
}

}  // namespace cawa_fast::cuda
