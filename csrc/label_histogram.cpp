#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <limits>
#include <mutex>
#include <type_traits>
#include <vector>

#include "labels.h"
#include "ops.h"

namespace cawa_fast {
namespace {

// Minimum number of labels per task: about 0.02 ms of work (uint8, Zen 4), above the cost of waking a thread.
constexpr int64_t kGrain = 1 << 16;

// Number of counter tables. Neighbouring labels are mostly equal, and an increment must wait for the store of the
// previous increment of the same counter. Using the tables in turn avoids that; confusion_matrix.cpp has measurements.
constexpr int kTables = 4;

// Labels counted at a time: few enough for 32-bit counters.
constexpr int64_t kMostLabels = int64_t{1} << 30;

// Adds to counts (num_classes + 1) how often each label occurs; the last element collects labels that are no classes.
void count(const uint8_t* labels, int64_t n, int64_t num_classes, std::vector<uint32_t>& counts) {
  std::array<std::array<uint32_t, 256>, kTables> tables{};  // a counter for every value, so no range check
  int64_t i = 0;
  for (; i + kTables <= n; i += kTables) {
    for (int lane = 0; lane < kTables; ++lane) ++tables[lane][labels[i + lane]];
  }
  for (; i < n; ++i) ++tables[0][labels[i]];
  for (int64_t value = 0; value < 256; ++value) {
    for (const auto& table : tables) counts[std::min(value, num_classes)] += table[value];
  }
}

template <class T>
void count(const T* labels, int64_t n, int64_t num_classes, std::vector<uint32_t>& counts) {
  using Wide = std::conditional_t<sizeof(T) == 8, uint64_t, uint32_t>;  // a negative label becomes a large one
  const int64_t size = num_classes + 1;
  std::vector<uint32_t> tables(kTables * size);
  const auto bin = [&](T label) { return std::min<Wide>(static_cast<Wide>(label), static_cast<Wide>(num_classes)); };
  int64_t i = 0;
  for (; i + kTables <= n; i += kTables) {
    for (int lane = 0; lane < kTables; ++lane) ++tables[lane * size + bin(labels[i + lane])];
  }
  for (; i < n; ++i) ++tables[bin(labels[i])];
  for (int64_t b = 0; b < size; ++b) {
    for (int lane = 0; lane < kTables; ++lane) counts[b] += tables[lane * size + b];
  }
}

// Adds labels that are neither classes nor ignore_index to `bad`. Chunks are searched without branches; only those that
// have such labels are read again.
template <class T>
void note_bad(const T* labels, int64_t n, int64_t num_classes, int64_t ignore_index, BadLabels& bad) {
  using Wide = std::conditional_t<sizeof(T) == 8, uint64_t, uint32_t>;
  const auto ignore = static_cast<T>(ignore_index);
  const bool can_ignore = ignore == ignore_index;  // false for -100 and uint8, where it would mean 156
  const auto count = static_cast<Wide>(std::min<uint64_t>(num_classes, std::numeric_limits<Wide>::max()));
  constexpr int64_t kChunk = 4096;
  for (int64_t start = 0; start < n; start += kChunk) {
    const int64_t end = std::min(n, start + kChunk);
    std::conditional_t<sizeof(T) == 1, uint8_t, Wide> any = 0;  // as wide as the comparison, to vectorise
    if constexpr (sizeof(T) == 1) {
      const auto last = static_cast<uint8_t>(std::min<int64_t>(num_classes, 256) - 1);
      for (int64_t i = start; i < end; ++i) any |= (labels[i] > last) & !(can_ignore & (labels[i] == ignore));
    } else {
      for (int64_t i = start; i < end; ++i) {
        any |= (static_cast<Wide>(labels[i]) >= count) & !(can_ignore & (labels[i] == ignore));
      }
    }
    if (!any) continue;
    for (int64_t i = start; i < end; ++i) {
      const int64_t label = labels[i];
      if ((label < 0 || label >= num_classes) && label != ignore_index) bad.note(label);
    }
  }
}

void write(const BadLabels& bad, const Tensor& to) {
  int64_t* out = to.mutable_data_ptr<int64_t>();
  out[0] = bad.count;
  out[1] = bad.min;
  out[2] = bad.max;
}

}  // namespace

std::tuple<Tensor, Tensor> label_histogram(const Tensor& target, int64_t num_classes, int64_t ignore_index) {
  STD_TORCH_CHECK(target.dim() >= 1, "target must have a batch dimension");
  STD_TORCH_CHECK(num_classes >= 1, "num_classes must be at least 1, not ", num_classes);
  const Tensor labels = torch::stable::contiguous(target);
  const int64_t images = labels.size(0), pixels = images ? labels.numel() / images : 0;
  const Tensor counts = torch::stable::new_zeros(target, {images, num_classes}, torch::headeronly::ScalarType::Long);
  const Tensor bad = torch::stable::new_empty(target, {3}, torch::headeronly::ScalarType::Long);
  int64_t* totals = counts.mutable_data_ptr<int64_t>();
  BadLabels all_bad;
  with_label_data(labels, "target", [&](const auto* data) {
    std::mutex merging;
    torch::stable::parallel_for(0, images * pixels, std::max(kGrain, num_classes), [&](int64_t begin, int64_t end) {
      std::vector<uint32_t> found(num_classes + 1);
      BadLabels found_bad;
      while (begin < end) {
        const int64_t image = begin / pixels;
        const int64_t n = std::min({(image + 1) * pixels, end, begin + kMostLabels}) - begin;
        std::fill(found.begin(), found.end(), 0);
        count(data + begin, n, num_classes, found);
        if (found[num_classes]) note_bad(data + begin, n, num_classes, ignore_index, found_bad);
        {
          const std::lock_guard<std::mutex> lock(merging);
          for (int64_t c = 0; c < num_classes; ++c) {
            if (c != ignore_index) totals[image * num_classes + c] += found[c];
          }
        }
        begin += n;
      }
      const std::lock_guard<std::mutex> lock(merging);
      all_bad.merge(found_bad);
    });
  });
  write(all_bad, bad);
  return {counts, bad};
}

Tensor bad_labels(const Tensor& target, int64_t num_classes, int64_t ignore_index) {
  const Tensor labels = torch::stable::contiguous(target);
  const Tensor bad = torch::stable::new_empty(target, {3}, torch::headeronly::ScalarType::Long);
  BadLabels all_bad;
  with_label_data(labels, "target", [&](const auto* data) {
    std::mutex merging;
    torch::stable::parallel_for(0, labels.numel(), 4 * kGrain, [&](int64_t begin, int64_t end) {
      BadLabels found;
      note_bad(data + begin, end - begin, num_classes, ignore_index, found);
      const std::lock_guard<std::mutex> lock(merging);
      all_bad.merge(found);
    });
  });
  write(all_bad, bad);
  return bad;
}

}  // namespace cawa_fast
