// Confusion matrix of low-resolution logits: the argmax of the resized logits, counted against the labels.
//
// A cell lies between four inputs, its corners. A class can win in it only if its largest corner reaches the bound: the
// largest, over all classes, of their smallest corners. In the output of a trained network, one class is left in most
// cells, and two or three for a patch (one vector of output columns, which spans neighbouring cells). Only these are
// interpolated. Lower bound: reading the labels, and one counter increment per run of equal pixels.
#include "../kernels.h"
#include "decode.h"
#include "resample.h"

namespace cawa_fast {
namespace CAWA_FAST_ISA {
namespace {

// A class, and a bit mask of the cells of a vector in which it can win.
struct Possible {
  int32_t label;
  uint32_t cells;
};

// The memory of a task, carved from `memory`; with null only `size`, in floats, is of use.
struct Scratch {
  Scratch(const ConfusionMatrix& p, float* memory)
      : classes(p.resize.maps.classes), stride(row_stride(p.resize.maps.width)) {
    float* next = memory;
    const auto take = [&next](int64_t n) {
      float* start = next;
      next += (n + kBlock - 1) / kBlock * kBlock;
      return start;
    };
    row[0] = take(classes * stride);
    row[1] = take(classes * stride);
    largest = take(classes * kLanes);
    candidate_rows = take(classes * 2 * kLanes);
    const int64_t vectors = (p.resize.maps.width + kLanes - 1) / kLanes;
    possible = reinterpret_cast<Possible*>(take(vectors * classes * 2));
    possible_count = reinterpret_cast<int32_t*>(take(vectors));
    candidates = reinterpret_cast<int32_t*>(take(classes + 1));
    merged = reinterpret_cast<int32_t*>(take(classes + 1));
    int64_t most_rows = 0;
    for (int64_t i = 0; i < p.resize.rows.count; ++i) {
      most_rows = larger(most_rows, p.resize.rows.groups[i].end - p.resize.rows.groups[i].begin);
    }
    labels = reinterpret_cast<uint16_t*>(take(most_rows * p.resize.columns.padded / 2 + 1));
    size = next - memory;
  }

  int64_t classes, stride, size;
  float* row[2];                 // (classes, stride): two input rows of all classes
  float* largest;                // (classes, kLanes): the largest corner of each cell of a vector
  float* candidate_rows;         // (candidates, 2, kLanes): both rows at the columns of a patch
  Possible* possible;            // (vectors, classes): the classes that can win in a vector of cells, ascending
  int32_t* possible_count;       // (vectors): how many
  int32_t *candidates, *merged;  // (classes + 1): the classes that can win in a patch, ascending; and a spare list
  uint16_t* labels;              // (rows, padded): decoded labels of a group's rows
};

// Reads input row y of all classes to `rows` (classes, stride). Returns whether all values are moderate (rows.h).
bool read_rows(const Maps& maps, int64_t n, int64_t y, const Scratch& s, float* rows) {
  bool moderate = true;
  for (int64_t c = 0; c < s.classes; ++c) {
    moderate &= read_row(maps, n, c, y, rows + c * s.stride);
    extend_row(rows + c * s.stride, maps.width);
  }
  return moderate;
}

// Stage 1: finds the classes that can win in each cell between two rows. All values are moderate.
void find_possible(const Scratch& s, int64_t width, const float* above, const float* below) {
  for (int64_t x = 0; x < width; x += kLanes) {
    Floats bound = broadcast(-kInfinity);  // the largest of the classes' smallest corners
    for (int64_t c = 0; c < s.classes; ++c) {
      const float* a = above + c * s.stride + x;
      const float* b = below + c * s.stride + x;
      const Floats a0 = load(a), a1 = load(a + 1), b0 = load(b), b1 = load(b + 1);
      bound = maximum(bound, minimum(minimum(a0, a1), minimum(b0, b1)));
      store(s.largest + c * kLanes, maximum(maximum(a0, a1), maximum(b0, b1)));
    }
    bound = somewhat_less(bound);
    Possible* possible = s.possible + x / kLanes * s.classes;
    int32_t count = 0;
    for (int64_t c = 0; c < s.classes; ++c) {
      const uint32_t cells = greater_equal(load(s.largest + c * kLanes), bound);
      possible[count] = {static_cast<int32_t>(c), cells};
      count += cells != 0;
    }
    s.possible_count[x / kLanes] = count;
  }
}

// Writes the classes that can win in any of the cells first .. last to s.candidates, ascending; returns how many.
int64_t find_candidates(Scratch& s, int64_t first, int64_t last) {
  int64_t count = 0;
  if (first / kLanes == last / kLanes) {  // the usual case, without a merge
    const int64_t v = first / kLanes;
    const uint32_t cells = kAllLanes << (first % kLanes) & kAllLanes >> (kLanes - 1 - last % kLanes);
    const Possible* next = s.possible + v * s.classes;
    for (const Possible* const end = next + s.possible_count[v]; next < end; ++next) {
      s.candidates[count] = next->label;
      count += (next->cells & cells) != 0;
    }
    return count;
  }
  for (int64_t v = first / kLanes; v <= last / kLanes; ++v) {
    uint32_t cells = kAllLanes;
    if (v == first / kLanes) cells &= kAllLanes << (first % kLanes);
    if (v == last / kLanes) cells &= kAllLanes >> (kLanes - 1 - last % kLanes);
    // Merge the candidates so far with those of this vector; both lists are ascending.
    const Possible* next = s.possible + v * s.classes;
    const Possible* const end = next + s.possible_count[v];
    int64_t old = 0, merged = 0;
    for (; next < end; ++next) {
      if (!(next->cells & cells)) continue;
      while (old < count && s.candidates[old] < next->label) s.merged[merged++] = s.candidates[old++];
      old += old < count && s.candidates[old] == next->label;
      s.merged[merged++] = next->label;
    }
    while (old < count) s.merged[merged++] = s.candidates[old++];
    int32_t* const kept = s.candidates;
    s.candidates = s.merged;
    s.merged = kept;
    count = merged;
  }
  return count;
}

// Stage 3: counts one vector of pixels. Usually all have the same label and prediction, which takes one increment.
CAWA_FAST_INLINE void count(const ConfusionMatrix& p, int64_t classes, const uint16_t* labels, Ints prediction) {
  const Ints label = __builtin_convertvector(load_as<Shorts>(labels), Ints);
  const auto width = static_cast<int32_t>(classes);
  const Ints key = label == int32_t{kInvalid} ? broadcast(width * width) : label * width + prediction;
  int32_t keys[kLanes];
  store(keys, key);
  if (bits(key == keys[0]) == kAllLanes) {
    p.counts[keys[0]] += kLanes;
    return;
  }
  const int64_t table = p.tables == 1 ? 0 : classes * classes + 1;
  for (int lane = 0; lane < kLanes; ++lane) ++p.counts[lane % 4 * table + keys[lane]];
}

// Stage 3 for a patch with one candidate: counts all of its rows at once if they have the same label, and returns
// whether they do. In areas of one class, that is most of an image. labels: (rows, stride).
CAWA_FAST_INLINE bool count_uniform(const ConfusionMatrix& p, int64_t classes, const uint16_t* labels, int64_t stride,
                                    int64_t rows, int32_t prediction) {
  const uint16_t label = labels[0];
  Shorts different = {};
  for (int64_t y = 0; y < rows; ++y) different |= load_as<Shorts>(labels + y * stride) ^ label;
  if (bits(__builtin_convertvector(different, Ints) != 0)) return false;
  p.counts[label == kInvalid ? classes * classes : label * classes + prediction] += rows * kLanes;
  return true;
}

// Stage 2: the argmax of `count` candidates in one output row of a patch. Of equal values the first wins. With kNan,
// NaN is the largest value; without it, there must be none.
template <bool kNan>
CAWA_FAST_INLINE Ints winner(const Scratch& s, const Patch& patch, int64_t count, float high_weight) {
  const auto value_of = [&](int64_t i) __attribute__((always_inline)) {
    const float* rows = s.candidate_rows + i * 2 * kLanes;
    return between(patch, load(rows), load(rows + kLanes), high_weight);
  };
  Floats best = value_of(0);
  Ints index = broadcast(s.candidates[0]);
  for (int64_t i = 1; i < count; ++i) {
    const Floats value = value_of(i);
    Ints better = value > best;
    if (kNan) better = better | ((value != value) & (best == best));
    best = better ? value : best;
    index = better ? broadcast(s.candidates[i]) : index;
  }
  return index;
}

// Counts one group of rows of image n. `above`, `below`: its input rows, (classes, stride).
void run_group(const ConfusionMatrix& p, Scratch& s, int64_t n, const RowGroup& group, const float* above,
               const float* below, bool moderate) {
  const Resize& resize = p.resize;
  const bool prune = moderate && !resize.same_size;
  if (prune) find_possible(s, resize.maps.width, above, below);
  const int64_t width = resize.columns.width;
  const int64_t height = resize.rows.groups[resize.rows.count - 1].end;
  for (int32_t y = group.begin; y < group.end; ++y) {
    uint16_t* labels = s.labels + (y - group.begin) * resize.columns.padded;
    decode(p.labels, (n * height + y) * width, width, labels);
    for (int64_t x = width; x < resize.columns.padded; ++x) labels[x] = kInvalid;
  }
  for (int64_t x = 0; x < width; x += kLanes) {
    const Patch patch = patch_at(resize, x);
    int64_t count_of_candidates = s.classes;
    if (prune) {
      count_of_candidates = find_candidates(s, patch.base, patch.last);
    } else {
      for (int32_t c = 0; c < s.classes; ++c) s.candidates[c] = c;
    }
    const int64_t rows = group.end - group.begin;
    if (count_of_candidates == 1 &&
        count_uniform(p, s.classes, s.labels + x, resize.columns.padded, rows, s.candidates[0])) {
      continue;
    }
    if (count_of_candidates > 1) {
      for (int64_t i = 0; i < count_of_candidates; ++i) {
        const int64_t row = s.candidates[i] * s.stride;
        store(s.candidate_rows + i * 2 * kLanes, columns_of(patch, above + row));
        store(s.candidate_rows + (i * 2 + 1) * kLanes, columns_of(patch, below + row));
      }
    }
    for (int32_t y = group.begin; y < group.end; ++y) {
      const uint16_t* labels = s.labels + (y - group.begin) * resize.columns.padded + x;
      Ints prediction = broadcast(s.candidates[0]);
      if (count_of_candidates > 1) {
        const float high_weight = resize.rows.high_weight[y];
        prediction = moderate ? winner<false>(s, patch, count_of_candidates, high_weight)
                              : winner<true>(s, patch, count_of_candidates, high_weight);
      }
      count(p, s.classes, labels, prediction);
    }
  }
}

}  // namespace

int64_t confusion_matrix_scratch(const ConfusionMatrix& p) { return Scratch(p, nullptr).size; }

void confusion_matrix(const ConfusionMatrix& p, int64_t begin, int64_t end, float* scratch) {
  Scratch s(p, scratch);
  const RowGroups& rows = p.resize.rows;
  float *above = s.row[0], *below = s.row[1];
  bool above_moderate = true, below_moderate = true;
  int64_t held = -1;  // the input row in `below`, counted over all images
  for (int64_t item = begin; item < end; ++item) {
    const int64_t n = item / rows.count;
    const RowGroup& group = rows.groups[item % rows.count];
    const int64_t first = n * p.resize.maps.height;
    if (held == first + group.low) {
      float* kept = above;
      above = below;
      below = kept;
      above_moderate = below_moderate;
    } else {
      above_moderate = read_rows(p.resize.maps, n, group.low, s, above);
    }
    if (p.resize.same_size) {
      run_group(p, s, n, group, above, above, above_moderate);
      continue;
    }
    below_moderate = read_rows(p.resize.maps, n, group.high, s, below);
    held = first + group.high;
    run_group(p, s, n, group, above, below, above_moderate && below_moderate);
  }
}

}  // namespace CAWA_FAST_ISA
}  // namespace cawa_fast
