#include <mutex>
#include <vector>

#include "ops.h"
#include "tensors.h"

namespace cawa_fast {
namespace {

// Minimum number of map values, or labels, per task: 0.01 to 0.03 ms of work (AVX-512, Zen 4).
constexpr int64_t kGrain = 1 << 15;

int64_t grain_of(int64_t values_per_item) {
  return std::max<int64_t>(1, kGrain / std::max<int64_t>(values_per_item, 1));
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor> cam_counts(const Tensor& cam, const Tensor& target, const Tensor& truth, double tau,
                                              int64_t normalize, bool all_classes, int64_t ignore_index,
                                              bool align_corners) {
  STD_TORCH_CHECK(cam.dim() == 4 && target.dim() == 3 && cam.size(0) == target.size(0),
                  "cam must be (N, C, h, w) and target (N, H, W)");
  const int64_t images = cam.size(0), classes = cam.size(1);
  STD_TORCH_CHECK(truth.scalar_type() == ScalarType::Long && truth.is_contiguous() && truth.numel() == images * classes,
                  "truth must be contiguous int64 (N, C)");
  STD_TORCH_CHECK(0 <= normalize && normalize <= 3, "normalize must be in [0, 3], not ", normalize);
  const Tensor labels = torch::stable::contiguous(target);
  const Tensor tp = torch::stable::new_zeros(target, {classes}, ScalarType::Long);
  const Tensor fp = torch::stable::new_zeros(target, {classes}, ScalarType::Long);
  const Tensor fn = torch::stable::new_zeros(target, {classes}, ScalarType::Long);
  int64_t *tp_data = tp.mutable_data_ptr<int64_t>(), *fp_data = fp.mutable_data_ptr<int64_t>();
  int64_t* fn_data = fn.mutable_data_ptr<int64_t>();
  const int64_t* truth_data = truth.const_data_ptr<int64_t>();
  if (cam.numel() == 0 || target.numel() == 0) return {tp, fp, fn};

  std::vector<int64_t> wanted;
  for (int64_t map = 0; map < images * classes; ++map) {
    if (all_classes || truth_data[map] > 0) wanted.push_back(map);
  }
  const auto maps = static_cast<int64_t>(wanted.size());
  const ResizeTables tables(cam, "cam", target, align_corners);
  const Kernels& kernel = kernels();
  CamCounts p{};
  p.resize = tables.resize;
  p.labels = labels_of(labels, classes, ignore_index);
  p.normalize = static_cast<Normalize>(normalize);
  p.tau = static_cast<float>(tau);
  p.wanted = wanted.data();
  const int64_t groups = p.resize.rows.count, padded = p.resize.columns.padded;
  // 2 bytes per label, and 8 bytes per patch of `lanes` columns of a group of rows
  const std::unique_ptr<uint16_t[]> decoded(new uint16_t[images * target.size(1) * padded]);
  const std::unique_ptr<LabelPatch[]> patches(new LabelPatch[images * groups * (padded / kernel.lanes)]);
  std::vector<MapScale> scales(maps);
  p.decoded = decoded.get();
  p.patches = patches.get();
  p.scales = scales.data();

  const int64_t values_per_map = cam.size(2) * cam.size(3);
  torch::stable::parallel_for(0, images * groups, grain_of(target.numel() / (images * groups)),
                              [&](int64_t begin, int64_t end) { kernel.cam_labels(p, begin, end); });
  torch::stable::parallel_for(0, maps, grain_of(values_per_map), [&](int64_t begin, int64_t end) {
    const ScratchMemory scratch(kernel.cam_scratch(p));
    kernel.cam_scales(p, begin, end, scratch.get());
  });
  std::mutex merging;
  torch::stable::parallel_for(0, maps * groups, grain_of(values_per_map / groups), [&](int64_t begin, int64_t end) {
    const ScratchMemory scratch(kernel.cam_scratch(p));
    std::vector<int64_t> task_tp(classes), task_predicted(classes);
    kernel.cam_counts(p, begin, end, scratch.get(), task_tp.data(), task_predicted.data());
    const std::lock_guard<std::mutex> lock(merging);  // integer sums are exact in any order
    for (int64_t c = 0; c < classes; ++c) {
      tp_data[c] += task_tp[c];
      fp_data[c] += task_predicted[c] - task_tp[c];
    }
  });
  for (int64_t map = 0; map < images * classes; ++map) fn_data[map % classes] += truth_data[map];
  for (int64_t c = 0; c < classes; ++c) fn_data[c] -= tp_data[c];
  return {tp, fp, fn};
}

}  // namespace cawa_fast
