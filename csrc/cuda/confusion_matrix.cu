// Confusion matrix of resized logits. Labels and low-resolution logits are read once; full-resolution logits are never
// stored.
//
// A thread handles a cell. Its resized values of a class lie between the smallest and the largest corner of that class.
// Where one class's smallest corner exceeds every other's largest, it wins at all pixels. Stages:
//   1. one sweep over the classes: the largest of their smallest corners, and the two largest of their largest corners
//   2. cells that this decides, and whose labels are all the same, are counted as a whole
//   3. the other cells of the thread block are "open"; one thread per open cell and 32 classes marks, in another sweep,
//      the classes that can win
//   4. one thread per column of pixels of an open cell: the argmax of the marked classes, mostly two
// Pairs of label and prediction are counted in shared memory (key_counts.h).
#include "confusion_matrix.h"

#include <cfloat>
#include <cstdlib>

#include "count_tensors.h"
#include "key_counts.h"

namespace cawa_fast::cuda {

constexpr int kMaxMarked = 1024;  // with more classes, stage 4 compares all classes
constexpr int kArgmaxThreads = 256;
constexpr int kArgmaxPixels = 8;  // per thread

struct ConfusionProblem {
  ResizedMaps maps;
  LabelMap labels;
  int64_t* counts;  // (C, C), output
  int words;        // words of 32 bits that mark the classes; 0: too many classes to mark
};

// Cells that stage 2 does not count.
struct OpenCells {
  int count;
  uint8_t cell[kCells];    // index in the tile, row by row
  int16_t winner[kCells];  // the class that wins at all pixels, or kOpen if not decided
  float bound[kCells];     // a class whose largest corner does not reach it cannot win
};
constexpr int16_t kOpen = -1;

// In shared memory. Followed by the marks, `words` words per open cell with a bit for each class, and by KeyCounts.
struct ConfusionShared {
  TilePixels pixels;
  BadLabelsOfBlock bad;
  OpenCells open;
  __device__ uint32_t* marked() { return reinterpret_cast<uint32_t*>(this + 1); }
};

// Result of stage 1 for a cell.
struct Verdict {
  int winner;    // the class with the largest corner
  float bound;   // as in OpenCells
  bool decided;  // `winner` wins at all pixels
};

template <class T>
__device__ Verdict verdict_of(const ResizedMaps& maps, const T* image, const Corners& corners) {
  const T* sample = image + corners.first;
  float first = -INFINITY, second = -FLT_MAX;  // the two largest of the classes' largest corners
  float bound = -INFINITY;
  float zero = 0;  // becomes NaN if any smallest corner is not finite
  int winner = 0;
#pragma unroll 4
  for (int c = 0; c < maps.classes; ++c, sample += maps.stride_c) {
    const Samples samples = samples_at(sample, corners);
    const float largest = largest_of(samples), least = least_of(samples);
    zero = fmaf(least, 0.0f, zero);
    bound = fmaxf(bound, least);
    winner = largest > first ? c : winner;
    second = fmaxf(second, fminf(first, largest));
    first = fmaxf(first, largest);
  }
  // interpolation with an infinity or NaN can give any value
  if (!(zero == 0 && first < INFINITY)) return {0, -INFINITY, false};
  bound = somewhat_less(bound);
  return {winner, bound, somewhat_more(second) < bound};
}

// Running argmax. Of equal logits the first wins; NaN is the largest.
struct Argmax {
  float best = -INFINITY;
  int winner = 0;
  __device__ void add(float z, int c) {
    const bool better = !(z <= best) && best == best;
    best = better ? z : best;
    winner = better ? c : winner;
  }
};

// The classes that can win in a cell: their number and the first two, equal if there is only one.
struct MarkedClasses {
  int first, second, count;
};

// One column of pixels of an open cell.
template <class T>
struct OpenColumn {
  const T* image;
  Corners corners;
  float weight_x;          // weight in [0, 1] of the right samples
  const uint32_t* marked;  // (words)
  int words;

  __device__ Samples samples(const ResizedMaps& maps, int c) const {
    return samples_at(image + corners.first + c * maps.stride_c, corners);
  }

  // With words == 0, for which no classes are marked, `count` is more than two.
  __device__ MarkedClasses marked_classes() const {
    MarkedClasses classes{0, 0, words == 0 ? kMaxMarked : 0};
    for (int word = 0; word < words; ++word) {
      for (uint32_t bits = marked[word]; bits != 0; bits &= bits - 1, ++classes.count) {
        const int c = word * 32 + __ffs(bits) - 1;
        if (classes.count == 0) classes.first = c;
        if (classes.count <= 1) classes.second = c;
      }
    }
    return classes;
  }

  // The argmax of all marked classes at the pixel with weight_y, in [0, 1], of the lower samples.
  __device__ int winner(const ResizedMaps& maps, float weight_y) const {
    Argmax argmax;
    if (words == 0) {
      for (int c = 0; c < maps.classes; ++c) argmax.add(mix(samples(maps, c), weight_x, weight_y), c);
    }
    for (int word = 0; word < words; ++word) {
      for (uint32_t bits = marked[word]; bits != 0;) {
        // Two classes at a time, so that their samples are loaded together. A single last class is taken twice, which
        // does not change the result.
        const int c = word * 32 + __ffs(bits) - 1;
        bits &= bits - 1;
        const int d = bits == 0 ? c : word * 32 + __ffs(bits) - 1;
        bits &= bits - 1;
        const Samples of_c = samples(maps, c), of_d = samples(maps, d);
        argmax.add(mix(of_c, weight_x, weight_y), c);
        argmax.add(mix(of_d, weight_x, weight_y), d);
      }
    }
    return argmax.winner;
  }
};

// A class's values at a column of pixels, interpolated in the upper and the lower row of samples.
struct TwoRows {
  float upper, lower;
};

// Counts one column of pixels of open cell `index`. `column` may exceed the cell's columns, since all cells have as
// many threads as the tile's widest cell has columns. Adds runs of equal pairs of label and prediction to `counts`,
// except the last, of which it returns the key and in `run` the length.
template <class T>
__device__ int count_column(const ConfusionProblem& p, ConfusionShared& shared, const KeyCounts& counts,
                            const CellTile& tile, int index, int column, int* run) {
  const ResizedMaps& maps = p.maps;
  const TilePixels& pixels = shared.pixels;
  const int cell_x = shared.open.cell[index] % kCellsX, cell_y = shared.open.cell[index] / kCellsX;
  const int x = pixels.first_x[cell_x] + column;
  if (x >= pixels.first_x[cell_x + 1]) return kNoKey;
  const OpenColumn<T> open{static_cast<const T*>(maps.data) + tile.image * maps.stride_n,
                           corners_of(maps, tile.x + cell_x, tile.y + cell_y), high_weight(maps.x, x, tile.x + cell_x),
                           shared.marked() + index * p.words, p.words};
  const int decided = shared.open.winner[index];
  const MarkedClasses classes = decided == kOpen ? open.marked_classes() : MarkedClasses{};
  TwoRows of_first{}, of_second{};
  if (decided == kOpen && classes.count <= 2) {
    const Samples s = open.samples(maps, classes.first), t = open.samples(maps, classes.second);
    of_first = {blend(s.a, s.b, open.weight_x), blend(s.c, s.d, open.weight_x)};
    of_second = {blend(t.a, t.b, open.weight_x), blend(t.c, t.d, open.weight_x)};
  }
  int key = kNoKey;
  const int end_y = pixels.first_y[cell_y + 1];
  for (int y = pixels.first_y[cell_y]; y < end_y; ++y) {
    const int64_t at = (tile.image * maps.y.out_size + y) * maps.x.out_size + x;
    const int label = checked_class_of(p.labels, label_at(p.labels, at), 1, shared.bad);
    int next = kNoKey;
    if (label != kIgnored) {
      int winner = decided;
      if (decided == kOpen) {
        const float weight_y = high_weight(maps.y, y, tile.y + cell_y);
        if (classes.count > 2) {
          winner = open.winner(maps, weight_y);
        } else {
          Argmax argmax;
          argmax.add(blend(of_first.upper, of_first.lower, weight_y), classes.first);
          argmax.add(blend(of_second.upper, of_second.lower, weight_y), classes.second);
          winner = argmax.winner;
        }
      }
      next = label * maps.classes + winner;
    }
    if (next != key) {
      if (key != kNoKey) counts.add(key, *run);
      key = next;
      *run = 0;
    }
    ++*run;
  }
  return key;
}

// Logits of another size than the labels. Launched with kCellsX x kCellsY threads, a thread block per tile of cells.
template <class T>
__global__ void __launch_bounds__(kCells, 4) confusion_matrix_cells(const __grid_constant__ ConfusionProblem p) {
  extern __shared__ __align__(16) unsigned char shared_memory[];
  ConfusionShared& shared = *reinterpret_cast<ConfusionShared*>(shared_memory);
  OpenCells& open = shared.open;
  const ResizedMaps& maps = p.maps;
  const KeyCounts counts(reinterpret_cast<unsigned char*>(shared.marked() + kCells * p.words),
                         maps.classes * maps.classes, p.counts);
  const int thread = threadIdx.y * kCellsX + threadIdx.x;
  const CellTile tile = cell_tile(maps, blockIdx.x);
  const T* const image = static_cast<const T*>(maps.data) + tile.image * maps.stride_n;
  const int64_t pitch = maps.x.out_size, first_label = tile.image * maps.y.out_size * pitch;

  find_pixels(maps, tile, shared.pixels);
  counts.clear(thread, kCells);
  if (thread == 0) {
    open.count = 0;
    clear_bad_labels(shared.bad);
  }
  __syncthreads();

  // 1. One sweep over the classes.
  const int x = shared.pixels.first_x[threadIdx.x], y = shared.pixels.first_y[threadIdx.y];
  const int columns = shared.pixels.first_x[threadIdx.x + 1] - x, rows = shared.pixels.first_y[threadIdx.y + 1] - y;
  int key = kNoKey;
  if (columns > 0 && rows > 0) {
    const int64_t first = first_label + y * pitch + x;
    prefetch_labels(p.labels, first, rows, pitch);
    const Verdict verdict = verdict_of(maps, image, corners_of(maps, tile.x + threadIdx.x, tile.y + threadIdx.y));

    // 2. Cells that are decided and have one label.
    const LabelsOfCell labels = labels_of_cell(p.labels, first, columns, rows, pitch);
    if (verdict.decided && labels.alike) {
      const int label = checked_class_of(p.labels, labels.label, columns * rows, shared.bad);
      if (label != kIgnored) key = label * maps.classes + verdict.winner;
    } else {
      const int rank = atomicAdd(&open.count, 1);
      open.cell[rank] = static_cast<uint8_t>(thread);
      open.bound[rank] = verdict.bound;
      open.winner[rank] = verdict.decided ? static_cast<int16_t>(verdict.winner) : kOpen;
    }
  }
  counts.add_together(key, columns * rows);
  __syncthreads();

  // 3. The classes that can win in each open cell.
  const int tasks = open.count * p.words;
  for (int task = thread; task < tasks; task += kCells) {
    const int word = task / open.count, index = task - word * open.count;
    if (open.winner[index] != kOpen) continue;
    const int cell = open.cell[index], classes = min(maps.classes - word * 32, 32);
    const Corners corners = corners_of(maps, tile.x + cell % kCellsX, tile.y + cell / kCellsX);
    const T* sample = image + corners.first + word * 32 * maps.stride_c;
    uint32_t bits = 0;
#pragma unroll 4
    for (int bit = 0; bit < classes; ++bit, sample += maps.stride_c) {
      // NaN compares false, so that its class can win
      const bool loses = somewhat_more(largest_of(samples_at(sample, corners))) < open.bound[index];
      bits |= loses ? 0 : 1u << bit;
    }
    shared.marked()[index * p.words + word] = bits;
  }
  __syncthreads();

  // 4. The columns of pixels of open cells, as if each cell had as many as the tile's widest.
  const uint32_t columns_of_cell = shared.pixels.most_x, items = open.count * columns_of_cell;
  for (uint32_t start = 0; start < items; start += kCells) {
    const uint32_t item = start + thread, index = item / columns_of_cell;
    int run = 0;
    key = item < items ? count_column<T>(p, shared, counts, tile, index, item - index * columns_of_cell, &run) : kNoKey;
    counts.add_together(key, run);
  }
  __syncthreads();

  counts.flush(thread, kCells);
  if (thread == 0) report_bad_labels(p.labels, shared.bad);
}

// Logits of the labels' size. Launched with kArgmaxThreads threads, each of which has kArgmaxPixels pixels.
template <class T>
__global__ void __launch_bounds__(kArgmaxThreads)
    confusion_matrix_pixels(const __grid_constant__ ConfusionProblem p, uint32_t blocks_per_image) {
  extern __shared__ __align__(16) unsigned char shared_memory[];
  BadLabelsOfBlock& bad = *reinterpret_cast<BadLabelsOfBlock*>(shared_memory);
  const ResizedMaps& maps = p.maps;
  const KeyCounts counts(shared_memory + sizeof(BadLabelsOfBlock), maps.classes * maps.classes, p.counts);
  const int thread = threadIdx.x;
  const int64_t image = blockIdx.x / blocks_per_image;
  const T* const plane = static_cast<const T*>(maps.data) + image * maps.stride_n;
  const int64_t pixels = static_cast<int64_t>(maps.y.out_size) * maps.x.out_size;

  counts.clear(thread, kArgmaxThreads);
  if (thread == 0) clear_bad_labels(bad);
  __syncthreads();

  int64_t pixel = static_cast<int64_t>(blockIdx.x % blocks_per_image) * (kArgmaxThreads * kArgmaxPixels) + thread;
  for (int i = 0; i < kArgmaxPixels; ++i, pixel += kArgmaxThreads) {
    const int label =
        pixel < pixels ? checked_class_of(p.labels, label_at(p.labels, image * pixels + pixel), 1, bad) : kIgnored;
    Argmax argmax;
    if (label != kIgnored) {
      const int y = maps.y.out_size > 1 ? static_cast<int>(pixel / maps.x.out_size) : 0;
      const int x = static_cast<int>(pixel - static_cast<int64_t>(y) * maps.x.out_size);
      const T* logit = plane + (y * maps.stride_y + x * maps.stride_x);
#pragma unroll 8
      for (int c = 0; c < maps.classes; ++c, logit += maps.stride_c)
        argmax.add(static_cast<float>(load_constant(logit)), c);
    }
    counts.add_together(label == kIgnored ? kNoKey : label * maps.classes + argmax.winner, 1);
  }
  __syncthreads();

  counts.flush(thread, kArgmaxThreads);
  if (thread == 0) report_bad_labels(p.labels, bad);
}

namespace {

template <class T>
void launch_confusion_matrix(ConfusionProblem& p, int64_t images, bool same_size, cudaStream_t stream) {
  const int64_t table = KeyCounts::bytes(p.maps.classes * p.maps.classes);
  if (!same_size) {
    const int64_t marked = kCells * p.words * static_cast<int64_t>(sizeof(uint32_t));
    const int64_t shared = sizeof(ConfusionShared) + marked + table;
    const uint32_t blocks = cell_blocks(p.maps, images);
    return launch("confusion_matrix, cells", confusion_matrix_cells<T>, dim3(blocks), dim3(kCellsX, kCellsY), shared,
                  stream, p);
  }
  const int64_t pixels = static_cast<int64_t>(p.maps.y.out_size) * p.maps.x.out_size;
  const int64_t per_image = (pixels + kArgmaxThreads * kArgmaxPixels - 1) / (kArgmaxThreads * kArgmaxPixels);
  STD_TORCH_CHECK(images * per_image < (int64_t{1} << 31), "input has too many pixels for one call; split it");
  launch("confusion_matrix, pixels", confusion_matrix_pixels<T>, dim3(static_cast<uint32_t>(images * per_image)),
         dim3(kArgmaxThreads), sizeof(BadLabelsOfBlock) + table, stream, p, static_cast<uint32_t>(per_image));
}

}  // namespace

Tensor confusion_matrix(const Tensor& input, const Tensor& target, int64_t ignore_index, bool align_corners,
                        const std::optional<Tensor>& report) {
  const DeviceGuard guard(input.get_device_index());
  const cudaStream_t stream = current_stream(input.get_device_index());
  const Tensor labels = torch::stable::contiguous(target);
  ConfusionProblem p{};
  p.maps = resized_maps(input, "input", labels, align_corners);
  p.labels = label_map(labels, input.size(1), ignore_index, report);
  const int64_t keys = input.size(1) * input.size(1);
  const Tensor counts = torch::stable::new_empty(input, {input.size(1), input.size(1)}, ScalarType::Long);
  p.counts = counts.mutable_data_ptr<int64_t>();
  p.words = p.maps.classes > kMaxMarked ? 0 : (p.maps.classes + 31) / 32;
  set_to_zero(p.counts, keys * static_cast<int64_t>(sizeof(int64_t)), stream);
  if (labels.numel() == 0) return counts;
  const bool same_size = input.size(2) == labels.size(1) && input.size(3) == labels.size(2);
  if (same_size && p.maps.stride_y == p.maps.x.in_size * p.maps.stride_x) {  // one long row, to save a division
    const int64_t pixels = labels.size(1) * labels.size(2);
    if (pixels < std::numeric_limits<int>::max()) p.maps.y.out_size = 1, p.maps.x.out_size = static_cast<int>(pixels);
  }
  switch (float_type(input, "input")) {
    case Float::kFloat32:
      launch_confusion_matrix<float>(p, labels.size(0), same_size, stream);
      break;
    case Float::kBFloat16:
      launch_confusion_matrix<BFloat16>(p, labels.size(0), same_size, stream);
      break;
    case Float::kFloat16:
      launch_confusion_matrix<Half>(p, labels.size(0), same_size, stream);
      break;
  }
  return counts;
}

}  // namespace cawa_fast::cuda
