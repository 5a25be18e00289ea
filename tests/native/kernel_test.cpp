// Runs the kernels of csrc/cpu/ without Python and torch, for the sanitizers. Each random problem is computed in one
// piece, and by several threads that share it unevenly; both results must have the same bits. Arrays are exactly as
// long as the operators make them, so that AddressSanitizer detects accesses beyond the end. The Python tests check
// that results are right. A few sums are checked here, so that a kernel that does nothing fails.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <mutex>
#include <random>
#include <thread>
#include <vector>

#include "bilinear_tables.h"
#include "dispatch.h"

namespace {

using namespace cawa_fast;

std::mt19937 generator(1);

int64_t random_integer(int64_t low, int64_t high) {
  return std::uniform_int_distribution<int64_t>(low, high)(generator);
}

[[noreturn]] void fail(const char* instruction_set, const char* what) {
  std::fprintf(stderr, "%s: %s\n", instruction_set, what);
  std::exit(1);
}

class Floats {  // aligned like the operators' scratch memory
 public:
  explicit Floats(int64_t n) : data_(static_cast<float*>(std::aligned_alloc(64, (n * 4 + 63) / 64 * 64))) {}
  Floats(const Floats&) = delete;
  ~Floats() { std::free(data_); }
  float* get() { return data_; }

 private:
  float* data_;
};

// Calls work(begin, end) for parts of [0, n): one, or `pieces` uneven ones, each in its own thread.
using Work = std::function<void(int64_t begin, int64_t end)>;

void run(int64_t n, int pieces, const Work& work) {
  std::vector<int64_t> cuts = {0, n};
  for (int i = 1; i < pieces; ++i) cuts.push_back(random_integer(0, n));
  std::sort(cuts.begin(), cuts.end());
  std::vector<std::thread> threads;
  for (size_t i = 0; i + 1 < cuts.size(); ++i) {
    if (cuts[i] < cuts[i + 1]) threads.emplace_back(work, cuts[i], cuts[i + 1]);
  }
  for (std::thread& thread : threads) thread.join();
}

struct Problem {
  int64_t images, classes, low_height, low_width, height, width;
  bool align_corners, channels_last;
  Float type;
  std::vector<uint8_t> logits;  // bytes
  std::vector<uint8_t> labels;
  std::vector<float> weight, scale;

  int64_t element_size() const { return type == Float::kFloat32 ? 4 : 2; }

  Maps maps() const {
    const int64_t c = classes, h = low_height, w = low_width;
    if (channels_last) return {logits.data(), type, images, c, h, w, c * h * w, 1, w * c, c};
    return {logits.data(), type, images, c, h, w, c * h * w, h * w, w, 1};
  }

  Labels label_map() const { return {labels.data(), Label::kUInt8, static_cast<int32_t>(classes), 255}; }
};

Problem random_problem(bool same_size) {
  Problem p{};
  p.images = random_integer(1, 3);
  p.classes = random_integer(1, 24);
  p.low_height = random_integer(1, 12);
  p.low_width = random_integer(1, 50);
  p.height = same_size ? p.low_height : random_integer(1, 40);
  p.width = same_size ? p.low_width : random_integer(1, 150);
  p.align_corners = random_integer(0, 1);
  p.channels_last = random_integer(0, 1);
  p.type = static_cast<Float>(random_integer(0, 2));
  std::normal_distribution<float> normal;
  const int64_t n = p.images * p.classes * p.low_height * p.low_width;
  for (int64_t i = 0; i < n; ++i) {
    float value = 3 * normal(generator);
    if (random_integer(0, 999) == 0) value = -INFINITY;
    uint8_t bytes[4];
    std::memcpy(bytes, &value, 4);
    // The upper half of a float is a bfloat16. Read as float16, it is an arbitrary value, which will do.
    const int64_t first = 4 - p.element_size();
    p.logits.insert(p.logits.end(), bytes + first, bytes + 4);
  }
  for (int64_t i = 0; i < p.images * p.height * p.width; ++i) {
    p.labels.push_back(static_cast<uint8_t>(random_integer(0, 9) ? random_integer(0, p.classes) : 255));
  }
  for (int64_t c = 0; c < p.classes; ++c) {
    p.weight.push_back(std::abs(normal(generator)));
    p.scale.push_back(0.5f + 0.01f * static_cast<float>(c));
  }
  return p;
}

Loss loss_of(const Problem& p, float smooth) {
  Loss loss{};
  loss.at_label = p.weight.data();
  loss.weight = p.weight.data();
  loss.scale = p.scale.data();
  loss.smooth = smooth;
  for (const float weight : p.weight) loss.weight_sum += weight;
  return loss;
}

struct LossResult {
  std::vector<double> partial;
  std::vector<uint8_t> grad;

  bool operator==(const LossResult& other) const {
    return std::memcmp(partial.data(), other.partial.data(), partial.size() * sizeof(double)) == 0 &&
           grad == other.grad;
  }
};

LossResult equal_sizes(const Kernels& kernel, const Problem& p, float smooth, int pieces) {
  CrossEntropy q{};
  const int64_t pixels = p.height * p.width;
  q.pixels.rows = p.images;
  q.pixels.length = pixels;
  q.pixels.outer = 1;
  q.pixels.size[0] = p.images;
  q.pixels.stride[0] = q.pixels.grad_stride[0] = p.classes * pixels;
  q.pixels.stride_x = q.pixels.grad_stride_x = p.channels_last ? p.classes : 1;
  q.pixels.stride_c = q.pixels.grad_stride_c = p.channels_last ? 1 : pixels;
  q.classes = p.classes;
  q.type = p.type;
  q.input = p.logits.data();
  q.labels = p.label_map();
  q.loss = loss_of(p, smooth);
  q.stream = pieces > 1;
  const int64_t tile = kernel.cross_entropy_tile(), tiles = p.images * ((pixels + tile - 1) / tile);
  LossResult result{std::vector<double>(tiles), std::vector<uint8_t>(p.logits.size())};
  q.loss.partial_loss = result.partial.data();
  q.grad_input = result.grad.data();
  run(tiles, pieces, [&](int64_t begin, int64_t end) {
    Floats scratch(kernel.cross_entropy_scratch(p.classes));
    kernel.cross_entropy(q, begin, end, scratch.get());
  });
  return result;
}

struct Tables {
  explicit Tables(const Problem& p)
      : across(bilinear_taps(p.low_width, p.width, p.align_corners)),
        down(bilinear_taps(p.low_height, p.height, p.align_corners)),
        cells(across),
        columns(across),
        rows(down) {}

  Taps across, down;
  CellTables cells;
  ColumnTables columns;
  RowGroupTables rows;
};

LossResult resized(const Kernels& kernel, const Problem& p, float smooth, int pieces) {
  const Tables tables(p);
  ResizedCrossEntropy q{};
  q.input = p.maps();
  q.grad_n = q.input.stride_n;
  q.grad_c = q.input.stride_c;
  q.grad_y = q.input.stride_y;
  q.grad_x = q.input.stride_x;
  q.columns = &tables.cells.cells;
  q.rows = &tables.rows.groups;
  q.label_height = p.height;
  q.label_width = p.width;
  q.labels = p.label_map();
  q.loss = loss_of(p, smooth);
  LossResult result{std::vector<double>(p.images * tables.rows.groups.count), std::vector<uint8_t>(p.logits.size())};
  q.loss.partial_loss = result.partial.data();
  q.grad_input = result.grad.data();
  run(p.images * p.low_height, pieces, [&](int64_t begin, int64_t end) {
    Floats scratch(kernel.resized_cross_entropy_scratch(q));
    kernel.resized_cross_entropy(q, begin, end, scratch.get());
  });
  return result;
}

Resize resize_of(const Problem& p, const Tables& tables, bool same_size) {
  return {p.maps(), same_size, tables.columns.columns, tables.rows.groups};
}

std::vector<int64_t> confusion(const Kernels& kernel, const Problem& p, bool same_size, int pieces) {
  const Tables tables(p);
  ConfusionMatrix shared{};
  shared.resize = resize_of(p, tables, same_size);
  shared.labels = p.label_map();
  shared.tables = random_integer(0, 1) ? 1 : 4;
  const int64_t bins = p.classes * p.classes;
  std::vector<int64_t> totals(bins);
  std::mutex merging;
  run(p.images * tables.rows.groups.count, pieces, [&](int64_t begin, int64_t end) {
    ConfusionMatrix q = shared;
    std::vector<int64_t> counts(q.tables * (bins + 1));
    q.counts = counts.data();
    Floats scratch(kernel.confusion_matrix_scratch(q));
    kernel.confusion_matrix(q, begin, end, scratch.get());
    const std::lock_guard<std::mutex> lock(merging);
    for (int64_t i = 0; i < q.tables * (bins + 1); ++i) {
      if (i % (bins + 1) < bins) totals[i % (bins + 1)] += counts[i];
    }
  });
  return totals;
}

std::vector<int64_t> cams(const Kernels& kernel, const Problem& p, Normalize normalize, bool same_size, int pieces) {
  const Tables tables(p);
  std::vector<int64_t> wanted;
  for (int64_t map = 0; map < p.images * p.classes; ++map) wanted.push_back(map);
  const auto maps = static_cast<int64_t>(wanted.size());
  const int64_t groups = tables.rows.groups.count, padded = tables.columns.columns.padded;
  std::vector<uint16_t> decoded(p.images * p.height * padded);
  std::vector<LabelPatch> patches(p.images * groups * (padded / kernel.lanes));
  std::vector<MapScale> scales(maps);
  CamCounts q{resize_of(p, tables, same_size),
              p.label_map(),
              normalize,
              0.5f,
              wanted.data(),
              decoded.data(),
              patches.data(),
              scales.data()};
  run(p.images * groups, pieces, [&](int64_t begin, int64_t end) { kernel.cam_labels(q, begin, end); });
  run(maps, pieces, [&](int64_t begin, int64_t end) {
    Floats scratch(kernel.cam_scratch(q));
    kernel.cam_scales(q, begin, end, scratch.get());
  });
  std::vector<int64_t> totals(2 * p.classes);
  std::mutex merging;
  run(maps * groups, pieces, [&](int64_t begin, int64_t end) {
    Floats scratch(kernel.cam_scratch(q));
    std::vector<int64_t> tp(p.classes), predicted(p.classes);
    kernel.cam_counts(q, begin, end, scratch.get(), tp.data(), predicted.data());
    const std::lock_guard<std::mutex> lock(merging);
    for (int64_t c = 0; c < p.classes; ++c) {
      totals[c] += tp[c];
      totals[p.classes + c] += predicted[c];
    }
  });
  return totals;
}

int64_t valid_labels(const Problem& p) {
  int64_t count = 0;
  for (const uint8_t label : p.labels) count += label < p.classes;
  return count;
}

void check(const Kernels& kernel, int trial) {
  const bool same_size = trial % 3 == 0;
  const Problem p = random_problem(same_size);
  const float smooth = trial % 2 ? 0.0f : 0.1f / static_cast<float>(p.classes);
  const auto loss = same_size ? equal_sizes : resized;
  if (!(loss(kernel, p, smooth, 1) == loss(kernel, p, smooth, 4)))
    fail(kernel.name, "cross-entropy differs by threads");

  const std::vector<int64_t> counts = confusion(kernel, p, same_size, 1);
  if (counts != confusion(kernel, p, same_size, 4)) fail(kernel.name, "confusion matrix differs by threads");
  int64_t sum = 0;
  for (const int64_t count : counts) sum += count;
  if (sum != valid_labels(p)) fail(kernel.name, "confusion matrix misses pixels");

  for (const Normalize normalize : {Normalize::kMax, Normalize::kMinMax, Normalize::kGradCam, Normalize::kNone}) {
    const std::vector<int64_t> totals = cams(kernel, p, normalize, same_size, 1);
    if (totals != cams(kernel, p, normalize, same_size, 4)) fail(kernel.name, "CAM counts differ by threads");
    for (int64_t c = 0; c < p.classes; ++c) {
      if (totals[c] > totals[p.classes + c]) fail(kernel.name, "more hits than pixels in the mask");
    }
  }
}

}  // namespace

int main(int count, char** arguments) {
  const int trials = count > 1 ? std::atoi(arguments[1]) : 60;
  for (const Kernels* kernel : supported_kernels()) {
    for (int trial = 0; trial < trials; ++trial) check(*kernel, trial);
    std::printf("%s: %d problems\n", kernel->name, trials);
  }
}
