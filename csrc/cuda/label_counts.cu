#include "label_counts.h"

#include <algorithm>
#include <cfloat>

#include "../tensors.h"
#include "count_labels.h"

namespace cawa_fast::cuda {

constexpr int kCountThreads = 256, kCountWarps = kCountThreads / kWarp;
constexpr int64_t kMaxCountClasses = 8192;              // 32 KiB of counters in shared memory
constexpr int kClassesForCopies = 512;                  // up to here each warp has its own counters
constexpr int64_t kBytesPerBlock = 16 * kCountThreads;  // many small thread blocks hide each other's latency

// In the order of REDUCTIONS in cawa_fast/_ops/backends.py.
enum class Reduction { kSum, kPixelMean, kMean, kValidMean, kClassMean, kNone };

struct LabelCounts {
  LabelMap map;
  int64_t image_pixels;        // pixels to read per image; 0 if the result does not depend on the labels
  uint32_t parts;              // thread blocks per image
  uint32_t blocks;             // thread blocks
  bool aligned;                // images begin and end at multiples of 16 bytes
  unsigned long long* counts;  // (images, classes), initially 0
  int copies;                  // copies of the counters of a thread block
  // For the last thread block to finish, which writes the scale.
  unsigned* ended;      // number of thread blocks that have finished, initially 0
  float* scale;         // (classes), output; may be null
  const float* weight;  // (classes), or null for 1
  int images;
  float pixels;  // in all images
  Reduction reduction;
};

// Calls add(label, pixels) for each run of equal labels in 16 bytes.
template <class L, class Add>
__device__ void for_runs(const uint4& word, const Add& add) {
  constexpr int kLabels = 16 / sizeof(L);
  L labels[kLabels];
  memcpy(labels, &word, 16);
  int run = 1;
#pragma unroll
  for (int i = 1; i < kLabels; ++i) {
    if (labels[i] != labels[i - 1]) {
      add(static_cast<int64_t>(labels[i - 1]), run);
      run = 0;
    }
    ++run;
  }
  add(static_cast<int64_t>(labels[kLabels - 1]), run);
}

// Whether all labels in 16 bytes equal `label`.
template <class L>
__device__ bool is_repeated(const uint4& word, L label) {
  L labels[16 / sizeof(L)];
  for (L& value : labels) value = label;
  uint4 wanted;
  memcpy(&wanted, labels, 16);
  return word.x == wanted.x && word.y == wanted.y && word.z == wanted.z && word.w == wanted.w;
}

// One thread block computes reference.reduction_scale from the counts of all images. `shared`: a double per warp.
__device__ inline void write_scale(const LabelCounts& p, double* shared) {
  const int classes = p.map.classes;
  const auto pixels_of = [&](int c) {
    unsigned long long sum = 0;
    for (int image = 0; image < p.images; ++image) sum += p.counts[static_cast<int64_t>(image) * classes + c];
    return sum;
  };
  double total = 0;
  if (p.reduction == Reduction::kMean || p.reduction == Reduction::kValidMean) {
    for (int c = threadIdx.x; c < classes; c += kCountThreads) {
      const double pixels = static_cast<double>(pixels_of(c));
      // kSome changes no other sum, and tells pixels whose weights are all 0 from no pixels.
      constexpr double kSome = 1e-300;
      total += p.reduction == Reduction::kMean && p.weight ? pixels * (p.weight[c] + kSome) : pixels;
    }
    total = sum_of_block(total, shared);
    __syncthreads();
    if (threadIdx.x == 0) shared[0] = total;
    __syncthreads();
    total = shared[0];
  }
  const float divisor = static_cast<float>(total);
  for (int c = threadIdx.x; c < classes; c += kCountThreads) {
    float value = 1;
    if (p.reduction == Reduction::kPixelMean) value = 1 / fmaxf(p.pixels, 1);
    // As in PyTorch, NaN without pixels. Weights of 0 give 0, and so do those too small to divide by.
    if (p.reduction == Reduction::kMean) value = divisor >= FLT_MIN ? 1 / divisor : total > 0 ? 0 : NAN;
    if (p.reduction == Reduction::kValidMean) value = divisor > 0 ? 1 / divisor : 0;
    if (p.reduction == Reduction::kClassMean) {
      const unsigned long long pixels = pixels_of(c);
      value = pixels > 0 ? 1 / static_cast<float>(pixels) : 0;
    }
    p.scale[c] = value;
  }
}

// Counts labels in shared memory, a run of equal labels at a time: millions of atomic additions to the global counter
// of a frequent class would serialise. Stages:
//   1. clear the counters
//   2. count this thread block's part of an image
//   3. add the counters to the global counts
//   4. the last thread block to finish writes the scale
__global__ void __launch_bounds__(kCountThreads) count_labels(const __grid_constant__ LabelCounts p) {
  extern __shared__ __align__(16) unsigned char shared_memory[];
  double* const partial = reinterpret_cast<double*>(shared_memory);  // per warp
  auto* const bad = reinterpret_cast<BadLabelsOfBlock*>(partial + kWarp);
  auto* const is_last = reinterpret_cast<int*>(bad + 1);
  int* const counters = is_last + 4;

  // 1.
  const int thread = threadIdx.x, classes = p.map.classes;
  for (int i = thread; i < classes * p.copies; i += kCountThreads) counters[i] = 0;
  if (thread == 0) clear_bad_labels(*bad);
  __syncthreads();

  // 2.
  const uint32_t image = blockIdx.x / p.parts, part = blockIdx.x % p.parts;
  int* const own = counters + (p.copies > 1 ? thread / kWarp * classes : 0);
  const auto add = [&](int64_t label, int pixels) {
    const int c = checked_class_of(p.map, label, pixels, *bad);
    if (c != kIgnored) atomicAdd(own + c, pixels);
  };
  with_labels(p.map, [&](const auto* labels) {
    using L = std::remove_cvref_t<decltype(*labels)>;
    constexpr int kLabels = 16 / sizeof(L);
    const int64_t first = static_cast<int64_t>(part) * (kBytesPerBlock / static_cast<int64_t>(sizeof(L)));
    const int64_t left = p.image_pixels - first;
    const int count = static_cast<int>(left < kBytesPerBlock / static_cast<int64_t>(sizeof(L))
                                           ? left
                                           : kBytesPerBlock / static_cast<int64_t>(sizeof(L)));
    const L* const begin = labels + static_cast<int64_t>(image) * p.image_pixels + first;
    if (p.aligned) {
      const bool inside = thread * kLabels < count;
      const uint4 word = inside ? *reinterpret_cast<const uint4*>(begin + thread * kLabels) : uint4{};
      L label;
      memcpy(&label, &word, sizeof(L));
      const bool alike = inside && is_repeated(word, label);
      // Usually a whole warp has one label: one addition instead of 32, which would serialise.
      const L first_label = static_cast<L>(from_first_lane(static_cast<int64_t>(label)));
      if (all_of_warp(alike && label == first_label)) {
        if (thread % kWarp == 0) add(static_cast<int64_t>(label), kWarp * kLabels);
      } else if (alike) {
        add(static_cast<int64_t>(label), kLabels);
      } else if (inside) {
        for_runs<L>(word, add);
      }
    } else {
      for (int i = thread; i < count; i += kCountThreads) add(static_cast<int64_t>(begin[i]), 1);
    }
  });
  __syncthreads();

  // 3.
  for (int c = thread; c < classes; c += kCountThreads) {
    unsigned long long pixels = 0;
    for (int copy = 0; copy < p.copies; ++copy) pixels += counters[copy * classes + c];
    if (pixels > 0) atomicAdd(p.counts + static_cast<int64_t>(image) * classes + c, pixels);
  }
  if (thread == 0 && p.map.report) report_bad_labels(p.map, *bad);

  // 4.
  if (!p.scale) return;
  __syncthreads();
  if (thread == 0) {
    __threadfence();  // the counts must be visible before `ended` is
    *is_last = atomicAdd(p.ended, 1u) == p.blocks - 1;
  }
  __syncthreads();
  if (*is_last) {
    __threadfence();
    write_scale(p, partial);
  }
}

namespace {

// Launches count_labels. Returns the counts, followed by `ended`; the scale is written to `scale` unless that is null.
Tensor count(const Tensor& labels, int64_t num_classes, int64_t ignore_index, const std::optional<Tensor>& report,
             const Tensor* scale, const float* weight, Reduction reduction) {
  const DeviceGuard guard(labels.get_device_index());
  const cudaStream_t stream = current_stream(labels.get_device_index());
  STD_TORCH_CHECK(1 <= num_classes && num_classes <= kMaxCountClasses, "the number of classes must be in [1, ",
                  kMaxCountClasses, "], not ", num_classes);
  const Tensor target = torch::stable::contiguous(labels);
  const Labels described = labels_of(target, num_classes, ignore_index);
  LabelCounts p{};
  p.map = {described.data, described.type, static_cast<int>(num_classes), ignore_index, nullptr};
  if (report) {
    STD_TORCH_CHECK(report->scalar_type() == ScalarType::Long && report->numel() == 3 && report->is_contiguous() &&
                        report->device() == labels.device(),
                    "report must be contiguous int64 of 3 elements on the same device as target");
    p.map.report = report->mutable_data_ptr<int64_t>();
  }
  p.images = scale ? 1 : static_cast<int>(labels.size(0));  // a reduction is over all images
  p.pixels = static_cast<float>(labels.numel());
  const bool counts_matter =
      reduction != Reduction::kSum && reduction != Reduction::kPixelMean && (reduction != Reduction::kNone || !scale);
  if (p.images > 0 && (report || counts_matter)) p.image_pixels = labels.numel() / p.images;
  const int64_t image_bytes = p.image_pixels * labels.element_size();
  const int64_t parts = (image_bytes + kBytesPerBlock - 1) / kBytesPerBlock;
  STD_TORCH_CHECK(p.images * parts < (int64_t{1} << 31), "target has too many pixels for one call; split it");
  p.parts = static_cast<uint32_t>(std::max<int64_t>(parts, 1));
  p.blocks = static_cast<uint32_t>(p.images * parts);
  p.aligned = reinterpret_cast<uintptr_t>(described.data) % 16 == 0 && image_bytes % 16 == 0;
  p.copies = num_classes <= kClassesForCopies ? kCountWarps : 1;
  p.weight = weight;
  p.reduction = reduction;
  // the counts, followed by `ended`
  const int64_t counted = p.images * num_classes;
  const Tensor memory = torch::stable::new_empty(labels, {counted + 1}, ScalarType::Long);
  int64_t* const counts = memory.mutable_data_ptr<int64_t>();
  set_to_zero(counts, (counted + 1) * static_cast<int64_t>(sizeof(int64_t)), stream);
  p.counts = reinterpret_cast<unsigned long long*>(counts);
  p.ended = reinterpret_cast<unsigned*>(counts + counted);
  if (scale) {
    p.scale = scale->mutable_data_ptr<float>();
    p.blocks = std::max(p.blocks, 1u);  // without pixels, one block writes the scale
  }
  if (p.blocks > 0) {
    const int64_t shared = kWarp * sizeof(double) + sizeof(BadLabelsOfBlock) + 16 +
                           static_cast<int64_t>(p.copies) * num_classes * static_cast<int64_t>(sizeof(int));
    launch("label_counts", count_labels, dim3(p.blocks), dim3(kCountThreads), shared, stream, p);
  }
  return memory;
}

}  // namespace

Tensor label_counts(const Tensor& target, int64_t num_classes, int64_t ignore_index,
                    const std::optional<Tensor>& report) {
  const Tensor memory = count(target, num_classes, ignore_index, report, nullptr, nullptr, Reduction::kNone);
  Tensor counts = torch::stable::narrow(const_cast<Tensor&>(memory), 0, 0, target.size(0) * num_classes);
  return torch::stable::view(counts, {target.size(0), num_classes});
}

Tensor label_scale(const Tensor& target, int64_t num_classes, int64_t ignore_index, const std::optional<Tensor>& weight,
                   int64_t reduction, const std::optional<Tensor>& report) {
  STD_TORCH_CHECK(0 <= reduction && reduction <= static_cast<int64_t>(Reduction::kNone), "no reduction ", reduction);
  const Tensor scale = torch::stable::new_empty(target, {num_classes}, ScalarType::Float);
  const float* weights = weight ? floats_of(*weight, num_classes, "weight") : nullptr;
  count(target, num_classes, ignore_index, report, &scale, weights, static_cast<Reduction>(reduction));
  return scale;
}

}  // namespace cawa_fast::cuda
