// Bilinear resize and cross-entropy in one: the full-resolution logits exist only in registers and the nearest caches.
//
// Floor: one exponential per full-resolution logit; the bytes (low-resolution logits, labels, low-resolution gradient)
// are ten times cheaper. Per exponential there are about ten instructions of interpolation, maximum and gradient.
//
// A vector holds one output column of each of kLanes neighbouring cells (bilinear.h), a group is all output rows
// between two input rows. For each vector of cells:
//   1. per output row and phase: interpolate all classes, maximum
//   2. exponentials and their sum; from the sum the loss, and the coefficients of the gradient
//   3. per class: gradients of the rows and phases, summed with their four bilinear weights, to four accumulators
// A low-resolution row gathers its gradient from the groups below and above it, always in that order; whoever computes
// a range of rows computes the group above the first once more. So no two threads write to one place, and the result
// does not depend on how rows are shared among threads.
#include "../kernels.h"
#include "decode.h"
#include "pixel_loss.h"
#include "rows.h"

namespace cawa_fast {
namespace CAWA_FAST_ISA {
namespace {

// Exponentials of so many output rows are kept for stage 3 as fit into a quarter of a usual L2 cache.
constexpr int64_t kKept = 256 * 1024 / sizeof(float);

struct Scratch {
  explicit Scratch(const ResizedCrossEntropy& p, float* memory)
      : width(p.columns->blocks * kBlock), classes(p.input.classes) {
    most_phases = 1;
    for (int64_t block = 0; block < p.columns->blocks; ++block) {
      most_phases = larger(most_phases, p.columns->first_phase[block + 1] - p.columns->first_phase[block]);
    }
    most_rows = 1;
    for (int64_t i = 0; i < p.rows->count; ++i) {
      most_rows = larger(most_rows, p.rows->groups[i].end - p.rows->groups[i].begin);
    }
    const int64_t row_of_exponentials = classes * most_phases * kLanes;
    kept_rows = larger(1, smaller(most_rows, kKept / row_of_exponentials));

    float* next = memory;
    const auto take = [&next](int64_t n) {
      float* start = next;
      next += (n + kBlock - 1) / kBlock * kBlock;
      return start;
    };
    for (int i = 0; i < 2; ++i) {
      row[i] = take(classes * row_stride());
      for (int side = 0; side < 2; ++side) sums[i][side] = take(classes * width);
    }
    line = take(larger(row_stride(), p.input.width) + kBlock);
    exponentials = take(kept_rows * row_of_exponentials);
    coefficient = take(kept_rows * most_phases * kLanes);
    coefficient_high = take(kept_rows * most_phases * kLanes);
    labels = reinterpret_cast<uint16_t*>(take((most_rows * (p.label_width + 1) + 1) / 2));
    size = next - memory;
  }

  // Per class: the inputs of the slots, and behind them those to their right.
  int64_t row_stride() const { return 2 * width; }

  int64_t width, classes, most_phases, most_rows, kept_rows, size;
  float* row[2];            // of two input rows: inputs low and high of each slot
  float* sums[2][2];        // of two rows of the gradient: what belongs to inputs low and high of each slot
  float* line;              // a row of the input
  float* exponentials;      // [row][class][phase]
  float* coefficient;       // [row][phase]
  float* coefficient_high;  // times the weight of the input to the right
  uint16_t* labels;         // of the group's output rows, one more at the end of each that is invalid
};

// Input row y as slots; returns whether all values are of moderate size.
bool read_slots(const ResizedCrossEntropy& p, int64_t n, int64_t y, const Scratch& s, float* out) {
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

// Where one vector of cells lies in one group.
struct Place {
  const float *low, *high;  // inputs above and below, of class 0
  int64_t class_stride;     // of those
  const int32_t* column;    // of phase 0
  const float* high_weight;
  int64_t phase_stride, phases;
};

// Stages 1 and 2 for kPhases phases of one output row. kFinite: all inputs are of moderate size. `e`: exponentials of
// class 0, `step` floats per class. Returns the loss of the pixels.
template <int kPhases, bool kFinite, bool kSmoothed, bool kGrad>
Doubles softmax(const ResizedCrossEntropy& p, const Place& place, int64_t phase, float row_weight, int64_t label_start,
                const uint16_t* labels, float* e, int64_t step, float* coefficient, float* coefficient_high,
                Floats* smooth, Floats* smooth_high) {
  const Loss& loss = p.loss;
  const int64_t classes = p.input.classes;
  Pixels pixels[kPhases];
  Floats weight[kPhases];
  bool any = false;
  for (int k = 0; k < kPhases; ++k) {
    weight[k] = load(place.high_weight + (phase + k) * place.phase_stride);
    uint16_t label[kLanes];
    for (int lane = 0; lane < kLanes; ++lane)
      label[lane] = labels[place.column[(phase + k) * place.phase_stride + lane]];
    any |= look_up(loss, label, pixels[k]);
  }
  if (!any && !loss.pixel_loss) {  // not worth an exponential
    if (kGrad) {
      for (int k = 0; k < kPhases; ++k) {
        store(coefficient + k * kLanes, Floats{});
        store(coefficient_high + k * kLanes, Floats{});
        for (int64_t c = 0; c < classes; ++c) store(e + c * step + k * kLanes, Floats{});
      }
    }
    return Doubles{};
  }

  // Stage 1. Where all inputs are numbers the difference of neighbours saves a multiplication; with infinite logits
  // (classes that a user masks out) it would make NaN of -inf - -inf.
  Floats top[kPhases];
  for (int k = 0; k < kPhases; ++k) top[k] = broadcast(-kInfinity);
  const float above = 1 - row_weight;
  for (int64_t c = 0; c < classes; ++c) {
    const float* low = place.low + c * place.class_stride;
    const float* high = place.high + c * place.class_stride;
    const int64_t right = place.class_stride / 2;
    const Floats left_value = load(low) * above + load(high) * row_weight;
    const Floats right_value = load(low + right) * above + load(high + right) * row_weight;
    const Floats difference = right_value - left_value;
    for (int k = 0; k < kPhases; ++k) {
      const Floats z =
          kFinite ? difference * weight[k] + left_value : left_value * (1 - weight[k]) + right_value * weight[k];
      top[k] = maximum(z, top[k]);
      store(e + c * step + k * kLanes, z);
    }
  }

  // Stage 2.
  float at_label[kPhases * kLanes];
  for (int i = 0; i < kPhases * kLanes; ++i) at_label[i] = e[pixels[i / kLanes].label[i % kLanes] * step + i];
  Floats sum[kPhases] = {}, weighted[kPhases] = {};
  for (int64_t c = 0; c < classes; ++c) {
    for (int k = 0; k < kPhases; ++k) {
      float* at = e + c * step + k * kLanes;
      const Floats shifted = load(at) - top[k];
      Floats value = exp2_of_nonpositive<!kFinite>(shifted * kLog2E);
      sum[k] += value;
      if (kSmoothed) weighted[k] += loss.weight[c] * shifted;
      if (!kFinite) value = bit_cast<Floats>(bit_cast<Ints>(value) & pixels[k].valid);  // else 0 * NaN in stage 3
      if (kGrad) store(at, value);
    }
  }
  Doubles total = {};
  for (int k = 0; k < kPhases; ++k) {
    const int32_t* column = place.column + (phase + k) * place.phase_stride;
    Floats upstream = common_grad(loss);
    if (loss.grad_per_pixel) {
      float grads[kLanes];
      for (int lane = 0; lane < kLanes; ++lane) {
        grads[lane] = loss.grad[label_start + smaller(column[lane], p.label_width - 1)];
      }
      upstream = load(grads);
    }
    float label_term[kLanes];
    const Terms terms =
        pixel_terms(loss, pixels[k], top[k], sum[k], load(at_label + k * kLanes), weighted[k], upstream);
    total += __builtin_convertvector(terms.loss * pixels[k].factor, Doubles);
    if (loss.pixel_loss) {
      for (int lane = 0; lane < kLanes; ++lane) {
        if (column[lane] < p.label_width) loss.pixel_loss[label_start + column[lane]] = terms.loss[lane];
      }
    }
    if (kGrad) {
      store(coefficient + k * kLanes, terms.coefficient);
      store(coefficient_high + k * kLanes, terms.coefficient * weight[k]);
      if (kSmoothed) {
        *smooth += terms.smooth;
        *smooth_high += terms.smooth * weight[k];
      }
      store(label_term, bit_cast<Floats>(bit_cast<Ints>(terms.label_term) & pixels[k].valid));
      for (int lane = 0; lane < kLanes; ++lane) e[pixels[k].label[lane] * step + k * kLanes + lane] -= label_term[lane];
    }
  }
  return total;
}

// Classes whose gradients stage 3 sums at once, so that they share the loads of the coefficients; as many as there are
// registers for their sums.
#if defined(__AVX512F__)
constexpr int kClasses = 4;
#else
constexpr int kClasses = 2;
#endif

// Exponentials and coefficients of output rows [first, last), as stage 2 leaves them.
struct Rows {
  int32_t first, last;
  int64_t phases, classes;
  const float *exponentials, *coefficient, *coefficient_high;
  const float* high_weight;  // by output row
};

// Stage 3 for kCount classes from c on. With g the gradient of an output pixel, u and v its weights of the inputs to
// the right and below: sums of g, v g, u g and u v g give those of (1-u)(1-v) g, u (1-v) g, (1-u) v g and u v g.
template <int kCount, bool kSmoothed>
CAWA_FAST_INLINE void add_gradient(const Loss& loss, const Rows& rows, const Floats* smooth, int64_t c, int64_t width,
                                   int64_t slot, float* const* low, float* const* high) {
  const int64_t step = rows.phases * kLanes;
  Floats g[kCount] = {}, vg[kCount] = {}, ug[kCount] = {}, uvg[kCount] = {};
  for (int32_t y = rows.first; y < rows.last; ++y) {
    const int64_t row = y - rows.first;
    const float* e = rows.exponentials + (row * rows.classes + c) * step;
    const float* coefficient = rows.coefficient + row * step;
    const float* coefficient_high = rows.coefficient_high + row * step;
    Floats row_g[kCount] = {}, row_ug[kCount] = {};
    for (int64_t at = 0; at < step; at += kLanes) {
      const Floats k = load(coefficient + at), k_high = load(coefficient_high + at);
      for (int i = 0; i < kCount; ++i) {
        const Floats value = load(e + i * step + at);
        row_g[i] += value * k;
        row_ug[i] += value * k_high;
      }
    }
    const float v = rows.high_weight[y];
    for (int i = 0; i < kCount; ++i) {
      g[i] += row_g[i];
      vg[i] += v * row_g[i];
      ug[i] += row_ug[i];
      uvg[i] += v * row_ug[i];
    }
  }
  for (int i = 0; i < kCount; ++i) {
    if (kSmoothed) {
      g[i] -= loss.weight[c + i] * smooth[0];
      vg[i] -= loss.weight[c + i] * smooth[1];
      ug[i] -= loss.weight[c + i] * smooth[2];
      uvg[i] -= loss.weight[c + i] * smooth[3];
    }
    const int64_t at = (c + i) * width + slot;
    store(low[0] + at, load(low[0] + at) + ((g[i] - vg[i]) - (ug[i] - uvg[i])));
    store(low[1] + at, load(low[1] + at) + (ug[i] - uvg[i]));
    store(high[0] + at, load(high[0] + at) + (vg[i] - uvg[i]));
    store(high[1] + at, load(high[1] + at) + uvg[i]);
  }
}

// All stages for one vector of cells in one group. The gradient's four sums are added to `low` and `high` (left,
// right).
template <bool kFinite, bool kSmoothed, bool kGrad>
Doubles run_cells(const ResizedCrossEntropy& p, const Scratch& s, int64_t n, const RowGroup& group, const Place& place,
                  int64_t slot, float* const* low, float* const* high) {
  Doubles total = {};
  for (int32_t first = group.begin; first < group.end; first += static_cast<int32_t>(s.kept_rows)) {
    const int32_t last = static_cast<int32_t>(smaller(first + s.kept_rows, group.end));
    const int64_t row_size = s.classes * place.phases * kLanes;
    Floats smooth[4] = {};  // as the four sums below
    for (int32_t y = first; y < last; ++y) {
      const float row_weight = p.rows->high_weight[y];
      const int64_t label_start = (n * p.label_height + y) * p.label_width;
      const uint16_t* labels = s.labels + (y - group.begin) * (p.label_width + 1);
      float* e = s.exponentials + (y - first) * row_size;
      float* coefficient = s.coefficient + (y - first) * place.phases * kLanes;
      float* coefficient_high = s.coefficient_high + (y - first) * place.phases * kLanes;
      Floats row_smooth = {}, row_smooth_high = {};
      const auto run = [&]<int kPhases>(int64_t phase) __attribute__((always_inline)) {
        const int64_t at = phase * kLanes;
        total += softmax<kPhases, kFinite, kSmoothed, kGrad>(p, place, phase, row_weight, label_start, labels, e + at,
                                                             place.phases * kLanes, coefficient + at,
                                                             coefficient_high + at, &row_smooth, &row_smooth_high);
      };
      int64_t phase = 0;
      for (; phase + 4 <= place.phases; phase += 4) run.template operator()<4>(phase);
      if (phase + 2 <= place.phases) {
        run.template operator()<2>(phase);
        phase += 2;
      }
      if (phase < place.phases) run.template operator()<1>(phase);
      if (kSmoothed) {
        smooth[0] += row_smooth;
        smooth[1] += row_weight * row_smooth;
        smooth[2] += row_smooth_high;
        smooth[3] += row_weight * row_smooth_high;
      }
    }
    if (!kGrad) continue;

    // Stage 3.
    const Rows rows{first,          last,          place.phases,       s.classes,
                    s.exponentials, s.coefficient, s.coefficient_high, p.rows->high_weight};
    int64_t c = 0;
    for (; c + kClasses <= s.classes; c += kClasses) {
      add_gradient<kClasses, kSmoothed>(p.loss, rows, smooth, c, s.width, slot, low, high);
    }
    for (; c < s.classes; ++c) add_gradient<1, kSmoothed>(p.loss, rows, smooth, c, s.width, slot, low, high);
  }
  return total;
}

template <bool kSmoothed, bool kGrad>
double run_group(const ResizedCrossEntropy& p, const Scratch& s, int64_t n, const RowGroup& group, bool finite,
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

// Row y of the gradient from its sums by slot; null for zeros.
template <class T>
void write_row(const ResizedCrossEntropy& p, const Scratch& s, int64_t n, int64_t y, float* const* sums) {
  const Cells& columns = *p.columns;
  T* row = static_cast<T*>(p.grad_input) + n * p.grad_n + y * p.grad_y;
  for (int64_t c = 0; c < s.classes; ++c) {
    float* __restrict line = s.line;
    const float* __restrict left = sums ? sums[0] + c * s.width : nullptr;
    const float* __restrict right = sums ? sums[1] + c * s.width : nullptr;
    if (sums && !columns.gathered) {  // slot s lies between inputs s and s + 1; the last stands for both
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

void write_row(const ResizedCrossEntropy& p, const Scratch& s, int64_t n, int64_t y, float* const* sums) {
  switch (p.input.type) {
    case Float::kFloat32:
      return write_row<float>(p, s, n, y, sums);
    case Float::kBFloat16:
      return write_row<BFloat16>(p, s, n, y, sums);
    case Float::kFloat16:
      return write_row<Half>(p, s, n, y, sums);
  }
}

// Rows [begin, end) of image n.
template <bool kSmoothed, bool kGrad>
void run_rows(const ResizedCrossEntropy& p, const Scratch& s, int64_t n, int64_t begin, int64_t end) {
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
      if (group.high == group.low) {  // the last row stands for both
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

int64_t resized_cross_entropy_scratch(const ResizedCrossEntropy& p) { return Scratch(p, nullptr).size; }

void resized_cross_entropy(const ResizedCrossEntropy& p, int64_t begin, int64_t end, float* scratch) {
  const Scratch s(p, scratch);
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
