// Bilinear resize and cross-entropy in one pass. Full-resolution logits exist only in registers and the nearest caches.
//
// A vector holds one output column of each of kLanes neighbouring cells (bilinear.h). A group is all output rows
// between two input rows. Each vector of cells in each group is computed in patches of up to 16 pixels with four
// exponentials per class (resized_patch.h), and pixel by pixel where that is impossible or gains nothing
// (resized_cells.h).
//
// A gradient row gathers the sums of the groups above and below it, always in the same order. A task that computes a
// range of rows also computes the group above the first row, for that row's gradient. No two threads write to the same
// place, and the result does not depend on how rows are distributed over threads.
#include "../kernels.h"
#include "decode.h"
#include "resized_cells.h"
#include "resized_passes.h"
#include "rows.h"

namespace cawa_fast {
namespace CAWA_FAST_ISA {
namespace {

// Reads input row y, with the offsets added, to `out`, (classes, row_stride), by slots, and the largest over the
// classes to `top`, (row_stride). Returns whether all values are moderate (rows.h).
bool read_slots(const ResizedCrossEntropy& p, int64_t n, int64_t y, const CellScratch& s, float* out, float* top) {
  const Cells& columns = *p.columns;
  const int64_t stride = s.row_stride();
  bool moderate = true;
  for (int64_t i = 0; i < stride; i += kLanes) store(top + i, broadcast(-kInfinity));
  for (int64_t c = 0; c < s.classes; ++c) {
    float* row = out + c * stride;
    if (columns.gathered) {
      moderate &= read_row(p.input, n, c, y, s.line, p.loss.offset[c]);
      for (int64_t slot = 0; slot < s.width; ++slot) {
        row[slot] = s.line[columns.low[slot]];
        row[slot + s.right] = s.line[columns.high[slot]];
      }
      continue;
    }
    float* inputs = row - columns.first;
    moderate &= read_row(p.input, n, c, y, inputs, p.loss.offset[c]);
    row[0] = inputs[0];
    for (float* border = inputs + p.input.width; border < row + stride; ++border) *border = border[-1];
    for (int64_t i = 0; i < stride; i += kLanes) store(top + i, maximum(load(row + i), load(top + i)));
  }
  return moderate;
}

// Row y of image n from column x on, to be prefetched; `nothing`, any address, if there is no such row.
Ahead ahead_of(const void* data, Float type, int64_t row, int64_t stride_c, int64_t stride_x, int64_t x,
               const void* nothing) {
  const int64_t bytes = type == Float::kFloat32 ? 4 : 2;
  if (row < 0 || stride_x != 1) return {static_cast<const char*>(nothing), 0};
  return {static_cast<const char*>(data) + (row + x) * bytes, stride_c * bytes};
}

// Copies the inputs of the first vector of cells to s.sequences, which is free outside of patches. There the right
// input of cell -1 is input 1, as in PyTorch; its weight is 0, but 0 * inf is NaN. In rows of moderate values it is
// input 0, where all cells' right inputs follow the left ones.
Place first_cells(const ResizedCrossEntropy& p, const CellScratch& s, Place place) {
  const float* const rows[2] = {place.low, place.high};
  float* to = s.sequences;
  for (int64_t c = 0; c < s.classes; ++c) {
    for (const float* row : rows) {
      const float* from = row + c * place.class_stride;
      store(to, load(from));
      store(to + kLanes, load(from + 1));
      if (p.input.width > 1) to[kLanes] = from[2];
      to += 2 * kLanes;
    }
  }
  place.low = s.sequences;
  place.high = s.sequences + 2 * kLanes;
  place.class_stride = 4 * kLanes;
  place.right = kLanes;
  return place;
}

// Whether patches are faster than one exponential per pixel.
bool has_patches(const ResizedCrossEntropy& p) {
  return !p.columns->gathered && p.label_width * p.label_height >= kLeastRatio * p.input.width * p.input.height;
}

// All stages for one vector of cells in one group, as run_cells, patch by patch.
template <bool kSmoothed, Pass kPass>
Doubles run_patches(const ResizedCrossEntropy& p, const CellScratch& s, int64_t n, const RowGroup& group,
                    const Place& cells, Floats reference, int64_t slot, float* const* low, float* const* high) {
  const int64_t label_stride = p.label_width + 1;
  Floats step = broadcast(p.columns->step);
  if (slot + p.columns->first < 0) step[0] = 0;  // all columns left of input column 0 have its values
  Doubles total = {};
  int32_t part_end = group.begin;
  for (int32_t y = group.begin; y < group.end; y = part_end) {
    // The rows above input row 0 are not spaced like the others: all have the values of input row 0.
    const bool before = y < p.rows->before;
    const int32_t end = before ? p.rows->before : group.end;
    const int32_t left = (end - y + kSide - 1) / kSide;  // patches
    part_end = y + (end - y + left - 1) / left;
    const uint16_t* labels = s.labels + (y - group.begin) * label_stride;
    const int64_t label_start = (n * p.label_height + y) * p.label_width;
    Place place = cells;
    for (int64_t phase = 0; phase < cells.phases; phase += place.phases) {
      const int64_t parts = (cells.phases - phase + kSide - 1) / kSide, at = phase * cells.phase_stride;
      place.phases = (cells.phases - phase + parts - 1) / parts;
      place.column = cells.column + at;
      place.high_weight = cells.high_weight + at;
      place.offset = cells.offset + at;
      const Patch patch{part_end - y, static_cast<int>(place.phases),    load(place.offset),
                        step,         before ? 0.0f : p.rows->offset[y], before ? 0.0f : p.rows->step};
      if (!run_patch<kSmoothed, kPass>(p, s, n, label_start, labels, place, patch, reference, slot, low, high,
                                       &total)) {
        total += run_cells<true, kSmoothed, kPass>(p, s, n, y, part_end, labels, place, slot, low, high);
      }
    }
  }
  return total;
}

// Computes one group of rows of image n and returns its scaled loss. rows[0], rows[1]: the input rows above and below,
// and top[0], top[1]: the largest of all classes there, from read_slots. low, high: the gradient sums of these rows, to
// which it adds.
template <bool kSmoothed, Pass kPass>
double run_group(const ResizedCrossEntropy& p, const CellScratch& s, int64_t n, const RowGroup& group, bool finite,
                 float* const* rows, float* const* top, float* const* low, float* const* high) {
  const int64_t label_stride = p.label_width + 1;
  const bool patches = finite && has_patches(p) && !(kIsRegion<kPass> && p.region.squared);
  if (kPass == Pass::kRegionSums) clear_sums(p.region, s.region);
  for (int32_t y = group.begin; y < group.end; ++y) {
    uint16_t* labels = s.labels + (y - group.begin) * label_stride;
    decode(p.labels, (n * p.label_height + y) * p.label_width, p.label_width, labels);
    labels[p.label_width] = kInvalid;
  }
  const bool is_last = group.high + 1 >= p.input.height;
  const int64_t next_input = is_last ? -1 : n * p.input.stride_n + (group.high + 1) * p.input.stride_y;
  const int64_t gradient = p.grad_input ? n * p.grad_n + group.low * p.grad_y : -1;
  Doubles total = {};
  for (int64_t slot = 0; slot < p.columns->slots; slot += kLanes) {
    const int64_t block = slot / kBlock, first = p.columns->first_phase[block];
    const int64_t at = first * kBlock + slot % kBlock;
    const Place place{rows[0] + slot,
                      rows[1] + slot,
                      s.row_stride(),
                      s.right,
                      p.columns->column + at,
                      p.columns->high_weight + at,
                      p.columns->offset + at,
                      kBlock,
                      p.columns->first_phase[block + 1] - first,
                      ahead_of(p.input.data, p.input.type, next_input, p.input.stride_c, p.input.stride_x, slot, &p),
                      ahead_of(p.grad_input, p.input.type, gradient, p.grad_c, p.grad_x, slot, &p)};
    if (patches) {
      const Floats reference = maximum(maximum(load(top[0] + slot), load(top[0] + slot + s.right)),
                                       maximum(load(top[1] + slot), load(top[1] + slot + s.right)));
      total += run_patches<kSmoothed, kPass>(p, s, n, group, place, reference, slot, low, high);
    } else if (finite) {
      total += run_cells<true, kSmoothed, kPass>(p, s, n, group.begin, group.end, s.labels, place, slot, low, high);
    } else {
      const Place cells = slot + p.columns->first < 0 ? first_cells(p, s, place) : place;
      total += run_cells<false, kSmoothed, kPass>(p, s, n, group.begin, group.end, s.labels, cells, slot, low, high);
    }
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
    if (sums && !columns.gathered) {  // cell s lies between inputs s and s + 1; those at the borders have one input
      const int64_t last = p.input.width - 1, first = -columns.first;  // slots of cells -1 and 0
      line[0] = first ? left[0] + left[1] : left[0];
      for (int64_t x = 1; x <= last; ++x) line[x] = left[x + first] + right[x + first - 1];
      line[last] += right[last + first];
      if (first) line[smaller(1, last)] += right[0];
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
template <bool kSmoothed, Pass kPass>
void run_rows(const ResizedCrossEntropy& p, const CellScratch& s, int64_t n, int64_t begin, int64_t end) {
  constexpr bool kGrad = kPass == Pass::kGradient || kPass == Pass::kRegionGradient;
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
  float* top[2] = {s.top[0], s.top[1]};
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
      float* kept_top = top[1];
      top[1] = top[0];
      top[0] = kept_top;
    } else {
      finite = read_slots(p, n, group.low, s, rows[0], top[0]);
    }
    held_finite = read_slots(p, n, group.high, s, rows[1], top[1]);
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
    const double loss = run_group<kSmoothed, kPass>(p, s, n, group, finite, rows, top, sums, next_sums);
    if (p.loss.partial_loss && group.low >= begin) p.loss.partial_loss[n * count + index] = loss;
    if (kPass == Pass::kRegionSums && group.low >= begin) {
      write_sums(p.region, s.region, p.region.partial + (n * count + index) * 2 * s.classes);
    }
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
    with_pass(p.pass, p.loss.smooth > 0,
              [&]<bool kSmoothed, Pass kPass>() { run_rows<kSmoothed, kPass>(p, s, n, first, last); });
  }
}

}  // namespace CAWA_FAST_ISA
}  // namespace cawa_fast
