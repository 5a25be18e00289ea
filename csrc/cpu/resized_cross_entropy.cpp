// Bilinear resize and cross-entropy in one pass. Full-resolution logits exist only in registers and the nearest caches.
//
// Lower bound: one exponential per full-resolution logit. The bytes (low-resolution logits and gradient, labels) are
// ten times cheaper. Interpolation, maximum and gradient take about ten instructions per exponential.
//
// A vector holds one output column of each of kLanes neighbouring cells (bilinear.h). A group is all output rows
// between two input rows. Stages, for each vector of cells in each group:
//   1. per output row and phase: interpolate all classes; maximum
//   2. exponentials and their sum, then the loss and the coefficients of the gradient
//   3. per class: sum the gradients of rows and phases, with their four bilinear weights, in four accumulators
// A gradient row gathers the sums of the groups above and below it, always in the same order. A task that computes a
// range of rows also computes the group above the first row, for that row's gradient. No two threads write to the same
// place, and the result does not depend on how rows are distributed over threads.
#include "../kernels.h"
#include "decode.h"
#include "resized_cells.h"
#include "rows.h"

namespace cawa_fast {
namespace CAWA_FAST_ISA {
namespace {

// Reads input row y to `out`, (classes, 2, width), by slots. Returns whether all values are moderate (rows.h).
bool read_slots(const ResizedCrossEntropy& p, int64_t n, int64_t y, const CellScratch& s, float* out) {
  const Cells& columns = *p.columns;
  bool moderate = true;
  for (int64_t c = 0; c < s.classes; ++c) {
    float* low = out + c * s.row_stride();
    float* high = low + s.width;
    if (columns.gathered) {
      moderate &= read_row(p.input, n, c, y, s.line);
      for (int64_t slot = 0; slot < s.width; ++slot) {
        low[slot] = s.line[columns.low[slot]];
        high[slot] = s.line[columns.high[slot]];
      }
    } else {
      moderate &= read_row(p.input, n, c, y, low);
      const float last = low[columns.slots - 1];
      for (int64_t slot = columns.slots; slot < s.width; ++slot) low[slot] = last;
      std::memcpy(high, low + 1, (s.width - 1) * sizeof(float));
      high[s.width - 1] = last;
    }
  }
  return moderate;
}

// Computes one group of rows of image n and returns its scaled loss. rows[0], rows[1]: the input rows above and below,
// from read_slots. low, high: the gradient sums of these rows, to which it adds.
template <bool kSmoothed, bool kGrad>
double run_group(const ResizedCrossEntropy& p, const CellScratch& s, int64_t n, const RowGroup& group, bool finite,
                 float* const* rows, float* const* low, float* const* high) {
  const int64_t label_stride = p.label_width + 1;
  for (int32_t y = group.begin; y < group.end; ++y) {
    uint16_t* labels = s.labels + (y - group.begin) * label_stride;
    decode(p.labels, (n * p.label_height + y) * p.label_width, p.label_width, labels);
    labels[p.label_width] = kInvalid;
  }
  Doubles total = {};
  for (int64_t slot = 0; slot < p.columns->slots; slot += kLanes) {
    const int64_t block = slot / kBlock, first = p.columns->first_phase[block];
    const int64_t at = first * kBlock + slot % kBlock;
    const Place place{rows[0] + slot,
                      rows[1] + slot,
                      s.row_stride(),
                      p.columns->column + at,
                      p.columns->high_weight + at,
                      kBlock,
                      p.columns->first_phase[block + 1] - first};
    total += finite ? run_cells<true, kSmoothed, kGrad>(p, s, n, group, place, slot, low, high)
                    : run_cells<false, kSmoothed, kGrad>(p, s, n, group, place, slot, low, high);
  }
  return sum_of_lanes(total);
}

// Writes row y of the gradient from its sums by slot, (classes, width) for left and right inputs; null for zeros.
template <class T>
void write_row(const ResizedCrossEntropy& p, const CellScratch& s, int64_t n, int64_t y, float* const* sums) {
  const Cells& columns = *p.columns;
  T* row = static_cast<T*>(p.grad_input) + n * p.grad_n + y * p.grad_y;
  for (int64_t c = 0; c < s.classes; ++c) {
    float* __restrict line = s.line;
    const float* __restrict left = sums ? sums[0] + c * s.width : nullptr;
    const float* __restrict right = sums ? sums[1] + c * s.width : nullptr;
    if (sums && !columns.gathered) {  // slot s lies between inputs s and s + 1; the last slot has one input
      line[0] = left[0];
      for (int64_t x = 1; x < columns.slots; ++x) line[x] = left[x] + right[x - 1];
      line[columns.slots - 1] += right[columns.slots - 1];
    } else {
      std::memset(line, 0, p.input.width * sizeof(float));
    }
    if (sums && columns.gathered) {
      for (int64_t slot = 0; slot < columns.slots; ++slot) line[columns.low[slot]] += left[slot];
      for (int64_t slot = 0; slot < columns.slots; ++slot) line[columns.high[slot]] += right[slot];
    }
    T* out = row + c * p.grad_c;
    int64_t x = 0;
    if (p.grad_x == 1) {
      for (; x + kLanes <= p.input.width; x += kLanes) store(out + x, load(line + x));
    }
    for (; x < p.input.width; x += kLanes) {
      T buffer[kLanes];
      store(buffer, load(line + x));
      for (int64_t i = x; i < smaller(x + kLanes, p.input.width); ++i) out[i * p.grad_x] = buffer[i - x];
    }
  }
}

void write_row(const ResizedCrossEntropy& p, const CellScratch& s, int64_t n, int64_t y, float* const* sums) {
  switch (p.input.type) {
    case Float::kFloat32:
      return write_row<float>(p, s, n, y, sums);
    case Float::kBFloat16:
      return write_row<BFloat16>(p, s, n, y, sums);
    case Float::kFloat16:
      return write_row<Half>(p, s, n, y, sums);
  }
}

// Computes rows [begin, end) of the gradient of image n, and the loss of the groups whose upper row is among them.
template <bool kSmoothed, bool kGrad>
void run_rows(const ResizedCrossEntropy& p, const CellScratch& s, int64_t n, int64_t begin, int64_t end) {
  const RowGroup* groups = p.rows->groups;
  const int64_t count = p.rows->count;
  int64_t index = 0;  // the first group that touches row `begin`
  for (int64_t size = count; size > 0;) {
    const int64_t half = size / 2;
    const RowGroup& middle = groups[index + half];
    const bool before = kGrad ? middle.high < begin : middle.low < begin;
    if (before) index += half + 1;
    size = before ? size - half - 1 : half;
  }

  float* rows[2] = {s.row[0], s.row[1]};
  float* const* sums = s.sums[0];       // of the group's upper row
  float* const* next_sums = s.sums[1];  // of its lower row
  const int64_t bytes = s.classes * s.width * static_cast<int64_t>(sizeof(float));
  const auto clear = [&](float* const* both) {
    std::memset(both[0], 0, bytes);
    std::memset(both[1], 0, bytes);
  };
  int64_t held = -1;  // the input row in rows[1]
  bool held_finite = true;
  int64_t written = begin;  // rows of the gradient before this are done
  int64_t pending = -1;     // the row that next_sums belongs to
  const auto write = [&](int64_t y, float* const* of_row) {
    if (y < begin || y >= end) return;
    for (; written < y; ++written) write_row(p, s, n, written, nullptr);
    write_row(p, s, n, y, of_row);
    written = y + 1;
  };

  for (; index < count && groups[index].low < end; ++index) {
    const RowGroup& group = groups[index];
    bool finite = held_finite;
    if (held == group.low) {
      float* kept = rows[1];
      rows[1] = rows[0];
      rows[0] = kept;
    } else {
      finite = read_slots(p, n, group.low, s, rows[0]);
    }
    held_finite = read_slots(p, n, group.high, s, rows[1]);
    held = group.high;
    finite &= held_finite;

    if (kGrad) {
      if (pending == group.low) {
        float* const* kept = sums;
        sums = next_sums;
        next_sums = kept;
      } else {
        if (pending >= 0) write(pending, next_sums);
        clear(sums);
      }
      clear(next_sums);
    }
    const double loss = run_group<kSmoothed, kGrad>(p, s, n, group, finite, rows, sums, next_sums);
    if (p.loss.partial_loss && group.low >= begin) p.loss.partial_loss[n * count + index] = loss;
    if (kGrad) {
      if (group.high == group.low) {  // the last group has one input row
        for (int side = 0; side < 2; ++side) {
          for (int64_t i = 0; i < s.classes * s.width; ++i) sums[side][i] += next_sums[side][i];
        }
      }
      write(group.low, sums);
      pending = group.high == group.low ? -1 : group.high;
    }
  }
  if (kGrad) {
    if (pending >= 0) write(pending, next_sums);
    for (; written < end; ++written) write_row(p, s, n, written, nullptr);
  }
}

}  // namespace

int64_t resized_cross_entropy_scratch(const ResizedCrossEntropy& p) { return CellScratch(p, nullptr).size; }

void resized_cross_entropy(const ResizedCrossEntropy& p, int64_t begin, int64_t end, float* scratch) {
  const CellScratch s(p, scratch);
  const int64_t height = p.input.height;
  for (int64_t n = begin / height; n * height < end; ++n) {
    const int64_t first = larger(begin - n * height, 0), last = smaller(end - n * height, height);
    const bool smoothed = p.loss.smooth > 0;
    if (p.grad_input && smoothed) {
      run_rows<true, true>(p, s, n, first, last);
    } else if (p.grad_input) {
      run_rows<false, true>(p, s, n, first, last);
    } else if (smoothed) {
      run_rows<true, false>(p, s, n, first, last);
    } else {
      run_rows<false, false>(p, s, n, first, last);
    }
  }
}

}  // namespace CAWA_FAST_ISA
}  // namespace cawa_fast
