#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <mutex>
#include <type_traits>
#include <vector>

#include "labels.h"
#include "ops.h"

namespace cawa_fast {
namespace {

// Labels per task at least: about 0.05 ms of work, well above the cost of waking a thread.
constexpr int64_t kGrain = 1 << 16;

// Neighbouring labels are mostly equal, and an increment that reads the counter that the last one has just written waits
// for that store: tables in turn keep such increments apart (confusion_matrix.cpp has the measurement).
constexpr int kTables = 4;

// Labels are below 2^32 per call, so that 32-bit counters do; the caller splits.
constexpr int64_t kMostLabels = int64_t{1} << 30;

// How often each label occurs; counts[num_classes] collects whatever is not a class.
void count(const uint8_t* labels, int64_t n, int64_t num_classes, std::vector<uint32_t>& counts) {
  std::array<std::array<uint32_t, 256>, kTables> tables{};  // every value has its counter: nothing to check
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

// The slow way through labels among which some are no classes: they may all be ignore_index.
template <class T>
void note_bad(const T* labels, int64_t n, int64_t num_classes, int64_t ignore_index, BadLabels& bad) {
  for (int64_t i = 0; i < n; ++i) {
    const int64_t label = labels[i];
    if ((label < 0 || label >= num_classes) && label != ignore_index) bad.note(label);
  }
}

}  // namespace

std::tuple<Tensor, Tensor> label_histogram(const Tensor& target, int64_t num_classes, int64_t ignore_index) {
  STD_TORCH_CHECK(target.dim() >= 1, "target must have a batch dimension");
  STD_TORCH_CHECK(num_classes >= 1, "num_classes must be at least 1, not ", num_classes);
  const Tensor labels = torch::stable::contiguous(target);
  const int64_t images = labels.size(0), pixels = images ? labels.numel() / images : 0;
  const Tensor counts =
      torch::stable::new_zeros(target, {images, num_classes}, torch::headeronly::ScalarType::Long);
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
  int64_t* out = bad.mutable_data_ptr<int64_t>();
  out[0] = all_bad.count;
  out[1] = all_bad.min;
  out[2] = all_bad.max;
  return {counts, bad};
}

}  // namespace cawa_fast
