#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <limits>
#include <mutex>
#include <type_traits>
#include <vector>

#include "labels.h"
#include "ops.h"
#include "tensors.h"

namespace cawa_fast {
namespace {

// Pixels per block. Their keys (4 KiB) stay in the L1 cache between stages 1 and 2.
constexpr int64_t kBlock = 1024;

// Minimum number of pixels per task: about 0.1 ms of work, well above the cost of waking a thread.
constexpr int64_t kGrain = 1 << 16;

// Number of counter tables. Neighbouring pixels mostly share a bin, and an increment must wait for the store of the
// previous increment of the same counter. Using four tables in turn avoids that. Measured on 8x512x1024 uint8, 19
// classes, one thread of a Zen 4: with 90 % of the pixels in one bin 5.2 ms, against 9.6 ms with one table; on uniform
// noise 4.4 ms with either. Tables that exceed the L2 cache lose more than that: with 700 classes and noise, four
// tables take 22 ms and one takes 11 ms. Above kMaxBytesOfTables there is therefore only one table.
constexpr int kTables = 4;
constexpr int64_t kMaxBytesOfTables = 1 << 20;

struct Classes {
  uint32_t count;
  int64_t ignore_index;

  uint32_t bins() const { return count * count; }
};

// Unsigned and at least 32 bits wide: a negative label becomes a large one, so that one comparison checks the range.
template <class Label>
using Wide = std::conditional_t<sizeof(Label) == 8, uint64_t, uint32_t>;

// Stage 1: keys[i] = target * C + prediction, or bins() for a pixel that is ignored or bad. Returns whether any is bad.
// There are no branches, and the flag is as wide as a key, so that the compiler vectorises the loop. GCC 12 does not
// with a bool: 6.5 ms instead of the 4.4 ms above. SSE2 has no 64-bit comparisons, so that int64 labels stay scalar in
// a baseline build.
template <class Prediction, class Target>
bool make_keys(const Prediction* prediction, const Target* target, int64_t n, Classes classes, uint32_t* keys) {
  const uint32_t count = classes.count;
  const uint32_t rejected = classes.bins();
  const auto ignore = static_cast<Target>(classes.ignore_index);
  const bool can_ignore = ignore == classes.ignore_index;  // false for -100 and uint8, where it would mean 156
  uint32_t any_bad = 0;
  for (int64_t i = 0; i < n; ++i) {
    const auto t = static_cast<Wide<Target>>(target[i]);
    const auto p = static_cast<Wide<Prediction>>(prediction[i]);
    const bool in_range = (t < count) & (p < count);
    const bool kept = !(can_ignore & (target[i] == ignore));
    any_bad |= kept & !in_range;
    keys[i] = kept & in_range ? static_cast<uint32_t>(t) * count + static_cast<uint32_t>(p) : rejected;
  }
  return any_bad != 0;
}

// Adds the bad labels and predictions of a block to the tallies. Slow; only for blocks that have any.
template <class Prediction, class Target>
void note_bad(const Prediction* prediction, const Target* target, int64_t n, Classes classes, BadLabels& bad_target,
              BadLabels& bad_prediction) {
  for (int64_t i = 0; i < n; ++i) {
    if (target[i] == classes.ignore_index) continue;
    if (static_cast<Wide<Target>>(target[i]) >= classes.count) {
      bad_target.note(target[i]);
    } else if (static_cast<Wide<Prediction>>(prediction[i]) >= classes.count) {
      bad_prediction.note(prediction[i]);
    }
  }
}

// The counters of one task: kTables tables, or one table that all lanes share. Each has bins() counters and one more
// for rejected pixels. They are int64, so that no number of pixels overflows them.
class PartialCounts {
 public:
  explicit PartialCounts(Classes classes)
      : bins_(classes.bins()), size_(int64_t{bins_} + 1), tables_(table_count(size_)), counters_(tables_ * size_) {
    for (int lane = 0; lane < kTables; ++lane) lane_[lane] = counters_.data() + lane % tables_ * size_;
  }

  // Stage 2: counts the keys.
  void add(const uint32_t* keys, int64_t n) {
    int64_t i = 0;
    for (; i + kTables <= n; i += kTables) {
      for (int lane = 0; lane < kTables; ++lane) ++lane_[lane][keys[i + lane]];
    }
    for (; i < n; ++i) ++lane_[0][keys[i]];
  }

  // Stage 3: adds the tables to `totals`.
  void add_to(int64_t* totals) const {
    for (int64_t table = 0; table < tables_; ++table) {
      for (int64_t bin = 0; bin < bins_; ++bin) totals[bin] += counters_[table * size_ + bin];
    }
  }

  // How many tables of `size` counters.
  static int64_t table_count(int64_t size) {
    return kTables * size * int64_t{sizeof(int64_t)} <= kMaxBytesOfTables ? kTables : 1;
  }

 private:
  int64_t bins_;
  int64_t size_;
  int64_t tables_;
  std::vector<int64_t> counters_;
  std::array<int64_t*, kTables> lane_;
};

template <class Prediction, class Target>
void count_labels(const Prediction* prediction, const Target* target, int64_t n, Classes classes, int64_t* totals,
                  BadLabels& bad_target, BadLabels& bad_prediction) {
  std::mutex merging;
  // A task pays for clearing and summing its tables, so it gets at least as many pixels as there are bins.
  const int64_t grain = std::max(kGrain, int64_t{classes.bins()});
  torch::stable::parallel_for(0, n, grain, [&](int64_t begin, int64_t end) {
    PartialCounts counts(classes);
    BadLabels task_bad_target, task_bad_prediction;
    std::array<uint32_t, kBlock> keys;
    for (int64_t start = begin; start < end; start += kBlock) {
      const int64_t size = std::min(kBlock, end - start);
      if (make_keys(prediction + start, target + start, size, classes, keys.data())) {
        note_bad(prediction + start, target + start, size, classes, task_bad_target, task_bad_prediction);
      }
      counts.add(keys.data(), size);
    }
    // Tasks end in any order: sums, minima and maxima of integers do not depend on it.
    const std::lock_guard<std::mutex> lock(merging);
    counts.add_to(totals);
    bad_target.merge(task_bad_target);
    bad_prediction.merge(task_bad_prediction);
  });
}

}  // namespace

std::tuple<Tensor, Tensor> confusion_matrix_labels(const Tensor& prediction, const Tensor& target, int64_t num_classes,
                                                   int64_t ignore_index) {
  const auto prediction_shape = prediction.sizes(), target_shape = target.sizes();
  STD_TORCH_CHECK(
      std::equal(prediction_shape.begin(), prediction_shape.end(), target_shape.begin(), target_shape.end()),
      "prediction and target must have the same shape; resize the prediction to the target's");
  STD_TORCH_CHECK(1 <= num_classes && num_classes <= std::numeric_limits<uint16_t>::max(),
                  "num_classes must be in [1, 65535], not ", num_classes);
  const Classes classes{static_cast<uint32_t>(num_classes), ignore_index};

  const Tensor flat_prediction = torch::stable::contiguous(prediction), flat_target = torch::stable::contiguous(target);
  const Tensor counts =
      torch::stable::new_zeros(target, {num_classes, num_classes}, torch::headeronly::ScalarType::Long);
  const Tensor bad = torch::stable::new_zeros(target, {6}, torch::headeronly::ScalarType::Long);

  BadLabels bad_target, bad_prediction;
  with_label_data(flat_prediction, "prediction", [&](const auto* prediction_data) {
    with_label_data(flat_target, "target", [&](const auto* target_data) {
      count_labels(prediction_data, target_data, target.numel(), classes, counts.mutable_data_ptr<int64_t>(),
                   bad_target, bad_prediction);
    });
  });
  int64_t* out = bad.mutable_data_ptr<int64_t>();
  for (const BadLabels& labels : {bad_target, bad_prediction}) {
    *out++ = labels.count;
    *out++ = labels.min;
    *out++ = labels.max;
  }
  return {counts, bad};
}

Tensor confusion_matrix(const Tensor& input, const Tensor& target, int64_t ignore_index, bool align_corners) {
  STD_TORCH_CHECK(input.dim() == 4 && target.dim() == 3 && input.size(0) == target.size(0),
                  "input must be (N, C, h, w) and target (N, H, W)");
  const int64_t images = input.size(0), classes = input.size(1), bins = classes * classes;
  STD_TORCH_CHECK(1 <= classes && classes <= std::numeric_limits<int16_t>::max(),
                  "the number of classes must be in [1, 32767], not ", classes);
  const Tensor counts = torch::stable::new_zeros(target, {classes, classes}, ScalarType::Long);
  int64_t* totals = counts.mutable_data_ptr<int64_t>();
  if (input.numel() == 0 || target.numel() == 0) return counts;

  const Tensor labels = torch::stable::contiguous(target);
  const ResizeTables tables(input, "input", target, align_corners);
  const Kernels& kernel = kernels();
  ConfusionMatrix shared{};
  shared.resize = tables.resize;
  shared.labels = labels_of(labels, classes, ignore_index);
  shared.tables = PartialCounts::table_count(bins + 1);
  const int64_t groups = images * shared.resize.rows.count;
  const int64_t pixels_per_group = std::max<int64_t>(target.numel() / groups, 1);
  const int64_t grain = std::max({int64_t{1}, kGrain / (2 * pixels_per_group), bins / pixels_per_group});
  std::mutex merging;
  torch::stable::parallel_for(0, groups, grain, [&](int64_t begin, int64_t end) {
    ConfusionMatrix p = shared;
    std::vector<int64_t> task_counts(p.tables * (bins + 1));
    p.counts = task_counts.data();
    const ScratchMemory scratch(kernel.confusion_matrix_scratch(p));
    kernel.confusion_matrix(p, begin, end, scratch.get());
    const std::lock_guard<std::mutex> lock(merging);
    for (int64_t table = 0; table < p.tables; ++table) {
      for (int64_t bin = 0; bin < bins; ++bin) totals[bin] += task_counts[table * (bins + 1) + bin];
    }
  });
  return counts;
}

}  // namespace cawa_fast
