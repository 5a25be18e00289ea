#include <cstring>
#include <optional>
#include <vector>

#include "ops.h"
#include "pixel_rows.h"
#include "tensors.h"

namespace cawa_fast {
namespace {

// Minimum number of logits per task: 0.02 to 0.05 ms of work (AVX-512 to baseline, Zen 4), above the cost of waking a
// thread.
constexpr int64_t kGrain = 1 << 16;

// A gradient of more bytes than this is written with non-temporal stores. The caches would hold little of it when it is
// read next, and an ordinary store first reads the cache line that it overwrites. At 2x150x512x512 on two threads of a
// Zen 4: 42 ms with non-temporal stores, 96 ms without.
constexpr int64_t kStreamedBytes = int64_t{8} << 20;

// Tiles whose sums of each class are added as float32, before those of further tiles as float64.
constexpr int64_t kTilesPerSum = 16;

// The lookup tables that Loss points to.
struct LossTables {
  LossTables(const std::optional<Tensor>& weight_tensor, const std::optional<Tensor>& offset_tensor,
             const Tensor& scale_tensor, int64_t classes, double smoothing, double gamma)
      : weight(classes, 1.0f), offset(classes, 0.0f), at_label(std::max<int64_t>(classes, 32)), scale(at_label.size()) {
    if (weight_tensor) {
      const float* data = floats_of(*weight_tensor, classes, "weight");
      weight.assign(data, data + classes);
    }
    if (offset_tensor) {
      const float* data = floats_of(*offset_tensor, classes, "offset");
      offset.assign(data, data + classes);
    }
    double sum = 0;
    for (int64_t c = 0; c < classes; ++c) {
      at_label[c] = static_cast<float>(weight[c] * (1 - smoothing));
      sum += weight[c];
    }
    loss = {};
    loss.at_label = at_label.data();
    loss.weight = weight.data();
    loss.offset = offset.data();
    const float* scale_data = floats_of(scale_tensor, classes, "scale");
    std::copy(scale_data, scale_data + classes, scale.begin());
    loss.scale = scale.data();
    loss.few_classes = classes <= 32;
    // With no valid pixel the scale is NaN and the comparison false, which is harmless.
    loss.uniform_scale = std::all_of(scale_data, scale_data + classes, [&](float s) { return s == scale_data[0]; });
    loss.smooth = static_cast<float>(smoothing / static_cast<double>(classes));
    loss.weight_sum = static_cast<float>(sum);
    loss.gamma = static_cast<float>(gamma);
  }

  std::vector<float> weight, offset, at_label, scale;
  Loss loss;
};

// What a call computes, and for region losses their sums (N, 2, C), as output or as upstream gradient.
struct Work {
  Pass pass;
  bool squared;
  float* sums;
  const float* grad_sums;  // (N, 2, stride) of Region
  int64_t stride;
};

// Adds the partial sums (items, 2, C) to `out`, (2, C), in a fixed order, whichever threads computed the items.
void add_partial_sums(const std::vector<double>& partial, int64_t size, float* out) {
  std::vector<double> total(size);
  for (size_t i = 0; i < partial.size(); ++i) total[i % size] += partial[i];
  std::copy(total.begin(), total.end(), out);
}

// Logits of the labels' size: runs the kernel over all tiles and returns the sum of the scaled losses.
double run_equal(const Tensor& input, const Tensor* grad_input, const Labels& labels, Loss loss, const Work& work) {
  const Kernels& kernel = kernels();
  const int64_t classes = input.size(1);
  CrossEntropy p{};
  p.pixels = pixel_rows(input, grad_input ? *grad_input : input);
  p.classes = classes;
  p.type = float_type(input, "input");
  p.input = input.const_data_ptr();
  p.grad_input = grad_input ? grad_input->mutable_data_ptr() : nullptr;
  p.stream = grad_input && grad_input->numel() * static_cast<int64_t>(grad_input->element_size()) > kStreamedBytes;
  p.labels = labels;
  const int64_t tile = kernel.cross_entropy_tile();
  const int64_t tiles = p.pixels.rows * ((p.pixels.length + tile - 1) / tile);
  std::vector<double> partial(tiles);
  loss.partial_loss = partial.data();
  p.loss = loss;
  p.pass = work.pass;
  p.tiles_per_item = work.pass == Pass::kRegionSums ? kTilesPerSum : 1;
  const int64_t items = (tiles + p.tiles_per_item - 1) / p.tiles_per_item;
  std::vector<double> sums(work.pass == Pass::kRegionSums ? items * 2 * classes : 0);
  p.region = {classes, work.squared, sums.data(), work.grad_sums, work.stride};
  const int64_t grain = std::max<int64_t>(1, kGrain / (tile * p.tiles_per_item * classes));
  torch::stable::parallel_for(0, items, grain, [&](int64_t begin, int64_t end) {
    const ScratchMemory scratch(kernel.cross_entropy_scratch(classes));
    kernel.cross_entropy(p, begin, end, scratch.get());
  });
  if (work.pass == Pass::kRegionSums) add_partial_sums(sums, 2 * classes, work.sums);
  double sum = 0;  // in a fixed order, whichever threads computed the tiles
  for (const double value : partial) sum += value;
  return sum;
}

// The same for region losses, whose sums are those of an image.
double run_equal_by_image(const Tensor& input, const Tensor& target, const Tensor* grad_input, int64_t ignore_index,
                          const Loss& loss, const Work& work) {
  double sum = 0;
  for (int64_t n = 0; n < input.size(0); ++n) {
    const Tensor image = torch::stable::narrow(const_cast<Tensor&>(input), 0, n, 1);
    Tensor gradient = image;
    if (grad_input) gradient = torch::stable::narrow(const_cast<Tensor&>(*grad_input), 0, n, 1);
    const Tensor labels = torch::stable::narrow(const_cast<Tensor&>(target), 0, n, 1);
    Work of_image = work;
    if (work.sums) of_image.sums += n * 2 * input.size(1);
    if (work.grad_sums) of_image.grad_sums += n * 2 * work.stride;
    sum += run_equal(image, grad_input ? &gradient : nullptr, labels_of(labels, input.size(1), ignore_index), loss,
                     of_image);
  }
  return sum;
}

// Logits of another size than the labels: runs the kernel over all rows and returns the sum of the scaled losses.
double run_resized(const Tensor& input, const Tensor& target, const Tensor* grad_input, const Labels& labels, Loss loss,
                   bool align_corners, const Work& work) {
  const Kernels& kernel = kernels();
  ResizedCrossEntropy p{};
  p.input = maps_of(input, "input");
  p.label_height = target.size(1);
  p.label_width = target.size(2);
  if (grad_input) {
    p.grad_input = grad_input->mutable_data_ptr();
    p.grad_n = grad_input->stride(0);
    p.grad_c = grad_input->stride(1);
    p.grad_y = grad_input->stride(2);
    p.grad_x = grad_input->stride(3);
  }
  const CellTables columns(bilinear_taps(p.input.width, p.label_width, align_corners));
  const RowGroupTables rows(bilinear_taps(p.input.height, p.label_height, align_corners));
  p.columns = &columns.cells;
  p.rows = &rows.groups;
  p.labels = labels;
  const int64_t groups = rows.groups.count, sums = 2 * p.input.classes;
  std::vector<double> partial(p.input.images * groups);
  loss.partial_loss = partial.data();
  p.loss = loss;
  p.pass = work.pass;
  std::vector<double> partial_sums(work.pass == Pass::kRegionSums ? p.input.images * groups * sums : 0);
  p.region = {p.input.classes, work.squared, partial_sums.data(), work.grad_sums, work.stride};
  const int64_t row = p.input.classes * p.label_width * p.label_height / p.input.height;
  const int64_t grain = std::max<int64_t>(1, kGrain / std::max<int64_t>(row, 1));
  const int64_t floats = kernel.resized_cross_entropy_scratch(p);
  torch::stable::parallel_for(0, p.input.images * p.input.height, grain, [&](int64_t begin, int64_t end) {
    const ScratchMemory scratch(floats);
    kernel.resized_cross_entropy(p, begin, end, scratch.get());
  });
  for (int64_t n = 0; work.pass == Pass::kRegionSums && n < p.input.images; ++n) {
    const auto first = partial_sums.begin() + n * groups * sums;
    add_partial_sums({first, first + groups * sums}, sums, work.sums + n * sums);
  }
  double sum = 0;
  for (const double value : partial) sum += value;
  return sum;
}

double run(const Tensor& input, const Tensor& target, const Tensor* grad_input, int64_t ignore_index, const Loss& loss,
           bool align_corners, const Work& work) {
  STD_TORCH_CHECK(input.dim() >= 2 && target.dim() == input.dim() - 1 && target.size(0) == input.size(0),
                  "input must be (N, C, ...) and target (N, ...)");
  bool equal = true;
  for (int64_t d = 1; d < target.dim(); ++d) equal &= target.size(d) == input.size(d + 1);
  STD_TORCH_CHECK(equal || target.dim() == 3, "sizes may differ for input (N, C, h, w) and target (N, H, W) only");
  const Labels labels = labels_of(target, input.size(1), ignore_index);
  if (input.numel() == 0 || target.numel() == 0) {
    const int64_t bytes = grad_input ? grad_input->numel() * static_cast<int64_t>(grad_input->element_size()) : 0;
    if (bytes > 0) std::memset(grad_input->mutable_data_ptr(), 0, bytes);  // the address of an empty tensor may be null
    return 0;
  }
  if (!equal) return run_resized(input, target, grad_input, labels, loss, align_corners, work);
  const bool by_image = work.pass == Pass::kRegionSums || work.pass == Pass::kRegionGradient;
  return by_image ? run_equal_by_image(input, target, grad_input, ignore_index, loss, work)
                  : run_equal(input, grad_input, labels, loss, work);
}

}  // namespace

std::tuple<Tensor, Tensor> cross_entropy(const Tensor& input, const Tensor& target, const std::optional<Tensor>& weight,
                                         const std::optional<Tensor>& offset, const Tensor& scale, int64_t ignore_index,
                                         bool per_pixel, double label_smoothing, double gamma, bool align_corners,
                                         bool with_grad) {
  const Tensor flat_target = torch::stable::contiguous(target);
  LossTables tables(weight, offset, scale, input.size(1), label_smoothing, gamma);
  const Tensor loss = per_pixel ? torch::stable::new_empty(target, target.sizes(), ScalarType::Float)
                                : torch::stable::new_empty(target, {}, ScalarType::Float);
  Tensor grad = with_grad ? new_gradient(input) : torch::stable::new_empty(input, {0});
  float* out = loss.mutable_data_ptr<float>();
  if (per_pixel) tables.loss.pixel_loss = out;
  const Work work{with_grad ? Pass::kGradient : Pass::kLoss, false, nullptr, nullptr, 0};
  const double sum =
      run(input, flat_target, with_grad ? &grad : nullptr, ignore_index, tables.loss, align_corners, work);
  // 0 * NaN: the mean over no valid pixel is NaN, as in PyTorch
  if (!per_pixel) *out = static_cast<float>(sum + 0.0f * tables.loss.scale[0]);
  return {loss, grad};
}

Tensor cross_entropy_backward(const Tensor& grad, const Tensor& input, const Tensor& target,
                              const std::optional<Tensor>& weight, const std::optional<Tensor>& offset,
                              const Tensor& scale, int64_t ignore_index, double label_smoothing, double gamma,
                              bool align_corners) {
  const Tensor flat_target = torch::stable::contiguous(target), flat_grad = torch::stable::contiguous(grad);
  LossTables tables(weight, offset, scale, input.size(1), label_smoothing, gamma);
  tables.loss.grad_per_pixel = grad.dim() > 0;
  tables.loss.grad = floats_of(flat_grad, grad.dim() > 0 ? target.numel() : 1, "grad");
  const Tensor grad_input = new_gradient(input);
  run(input, flat_target, &grad_input, ignore_index, tables.loss, align_corners,
      {Pass::kGradient, false, nullptr, nullptr, 0});
  return grad_input;
}

std::tuple<Tensor, Tensor> region_sums(const Tensor& input, const Tensor& target, const std::optional<Tensor>& weight,
                                       const std::optional<Tensor>& offset, const Tensor& scale, int64_t ignore_index,
                                       double label_smoothing, double gamma, bool squared, bool align_corners) {
  const Tensor flat_target = torch::stable::contiguous(target);
  const LossTables tables(weight, offset, scale, input.size(1), label_smoothing, gamma);
  const Tensor loss = torch::stable::new_empty(target, {}, ScalarType::Float);
  const Tensor sums = torch::stable::new_zeros(target, {input.size(0), 2, input.size(1)}, ScalarType::Float);
  const Work work{Pass::kRegionSums, squared, sums.mutable_data_ptr<float>(), nullptr, 0};
  const double sum = run(input, flat_target, nullptr, ignore_index, tables.loss, align_corners, work);
  *loss.mutable_data_ptr<float>() = static_cast<float>(sum + 0.0f * tables.loss.scale[0]);
  return {loss, sums};
}

Tensor region_sums_backward(const Tensor& grad, const Tensor& grad_sums, const Tensor& input, const Tensor& target,
                            const std::optional<Tensor>& weight, const std::optional<Tensor>& offset,
                            const Tensor& scale, int64_t ignore_index, double label_smoothing, double gamma,
                            bool squared, bool align_corners) {
  const Tensor flat_target = torch::stable::contiguous(target);
  LossTables tables(weight, offset, scale, input.size(1), label_smoothing, gamma);
  tables.loss.grad = floats_of(grad, 1, "grad");
  const int64_t classes = input.size(1), rows = input.size(0) * 2, stride = std::max<int64_t>(classes, 32);
  const float* sums = floats_of(grad_sums, rows * classes, "grad_sums");
  std::vector<float> padded(rows * stride);
  for (int64_t i = 0; i < rows; ++i) std::copy_n(sums + i * classes, classes, padded.begin() + i * stride);
  const Tensor grad_input = new_gradient(input);
  const Work work{Pass::kRegionGradient, squared, nullptr, padded.data(), stride};
  run(input, flat_target, &grad_input, ignore_index, tables.loss, align_corners, work);
  return grad_input;
}

}  // namespace cawa_fast
