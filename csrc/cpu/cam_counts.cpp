// Counts of pseudo masks against labels. The masks are never stored.
//
// Kernels, in the order of their calls:
//   cam_labels  decodes labels once for all classes, and finds for each patch (a vector of columns of the output rows
//               between two input rows) whether its labels are all the same
//   cam_scales  per map the threshold: the largest value that is not in the mask. The maximum at label resolution is
//               searched only where the corners of a patch allow more than the largest value found so far
//   cam_counts  per map and patch: the corners decide whether all pixels are in the mask, or none; only patches that
//               cross the threshold are interpolated
// Lower bound of the memory traffic: the low-resolution maps three times, from the cache, and the labels once.
#include "../kernels.h"
#include "decode.h"
#include "resample.h"

namespace cawa_fast {
namespace CAWA_FAST_ISA {
namespace {

// The memory of a task, carved from `memory`; with null only `size`, in floats, is of use.
struct Scratch {
  Scratch(const CamCounts& p, float* memory)
      : stride(row_stride(p.resize.maps.width)), words(BitSet::words_for(stride)) {
    float* next = memory;
    const auto take = [&next](int64_t n) {
      float* start = next;
      next += (n + kBlock - 1) / kBlock * kBlock;
      return start;
    };
    row[0] = take(stride);
    row[1] = take(stride);
    for (uint64_t*& set : sets) set = reinterpret_cast<uint64_t*>(take(words * 2));
    size = next - memory;
  }

  int64_t stride, words, size;
  float* row[2];
  uint64_t* sets[2];
};

// Reads row y of a map to `out` (row_stride) and normalises it. Returns whether all values read are moderate (rows.h).
bool read_scaled(const CamCounts& p, int64_t map, int64_t y, const MapScale& scale, float* out) {
  const Maps& maps = p.resize.maps;
  const bool moderate = read_row(maps, map / maps.classes, map % maps.classes, y, out);
  if (scale.scaled) {
    for (int64_t x = 0; x < maps.width; x += kLanes) {
      Floats v = load(out + x);
      if (scale.relu) v = maximum(v, Floats{});
      store(out + x, (v - scale.low) / scale.span);
    }
  }
  extend_row(out, maps.width);
  return moderate;
}

// Calls visit(group, above, below, moderate) for groups [begin, end) of a map, with the two input rows of each. A row
// that consecutive groups share is read once.
template <class Visit>
void each_group(const CamCounts& p, const Scratch& s, int64_t map, const MapScale& scale, int64_t begin, int64_t end,
                const Visit& visit) {
  float *above = s.row[0], *below = s.row[1];
  bool above_moderate = true, below_moderate = true;
  int64_t held = -1;
  for (int64_t i = begin; i < end; ++i) {
    const RowGroup& group = p.resize.rows.groups[i];
    if (held == group.low) {
      float* kept = above;
      above = below;
      below = kept;
      above_moderate = below_moderate;
    } else {
      above_moderate = read_scaled(p, map, group.low, scale, above);
    }
    if (p.resize.same_size) {
      visit(i, above, above, above_moderate);
      continue;
    }
    below_moderate = read_scaled(p, map, group.high, scale, below);
    held = group.high;
    visit(i, above, below, above_moderate && below_moderate);
  }
}

// ------------------------------------------------------------------------------------------------------- scales

// Smallest and largest of many values, per lane. NaN values are only recorded in `nan`.
struct Range {
  Floats least = broadcast(kInfinity), largest = broadcast(-kInfinity);
  Ints nan = {};

  void add(Floats v, Ints counted) {
    nan |= counted & (v != v);
    least = minimum(counted ? v : broadcast(kInfinity), least);
    largest = maximum(counted ? v : broadcast(-kInfinity), largest);
  }
  bool any_nan() const { return bits(nan) != 0; }
  float least_of_all() const {
    float result = kInfinity;
    for (int lane = 0; lane < kLanes; ++lane) result = least[lane] < result ? least[lane] : result;
    return result;
  }
  float largest_of_all() const {
    float result = -kInfinity;
    for (int lane = 0; lane < kLanes; ++lane) result = largest[lane] > result ? largest[lane] : result;
    return result;
  }
};

// A mask of the first n lanes.
Ints lanes_before(int64_t n) {
  Ints lane;
  for (int i = 0; i < kLanes; ++i) lane[i] = i;
  return lane < static_cast<int32_t>(smaller(n, kLanes));
}

// The range of a map at its own resolution, and the row of its largest value.
Range range_of_map(const CamCounts& p, const Scratch& s, int64_t map, bool relu, int64_t* row_of_largest) {
  const Maps& maps = p.resize.maps;
  Range range;
  float largest = -kInfinity;
  for (int64_t y = 0; y < maps.height; ++y) {
    read_row(maps, map / maps.classes, map % maps.classes, y, s.row[0]);
    int64_t x = 0;
    const auto add = [&](Ints inside) {
      Floats v = load(s.row[0] + x);
      if (relu) v = v < 0.0f ? Floats{} : v;  // NaN stays
      range.add(v, inside);
    };
    for (; x + kLanes <= maps.width; x += kLanes) add(broadcast(int32_t{-1}));
    if (x < maps.width) add(lanes_before(maps.width - x));
    if (bits(range.largest > largest)) {
      largest = range.largest_of_all();
      *row_of_largest = y;
    }
  }
  return range;
}

// The range of the normalised and resized map; its smallest value only if want_least. The group at the row of the map's
// largest value comes first: its maximum rules out almost all other groups by their corners.
Range range_of_resized(const CamCounts& p, const Scratch& s, int64_t map, const MapScale& scale, bool want_least,
                       int64_t row_of_largest) {
  const Resize& resize = p.resize;
  Range range;
  const auto visit = [&](int64_t i, const float* above, const float* below, bool moderate) {
    const float largest = range.largest_of_all();
    const float over = somewhat_less(largest), under = somewhat_more(range.least_of_all());
    const BitSet hopeful{s.sets[0]};
    const bool prune = moderate && largest > -kInfinity;
    if (prune) {
      Ints any = {};
      for (int64_t x = 0; x < resize.maps.width; x += kLanes) {
        const Floats a = load(above + x), b = load(below + x);
        Ints hope = maximum(a, b) >= over;
        if (want_least) hope |= minimum(a, b) <= under;
        hopeful.put(x, bits(hope));
        any |= hope;
      }
      if (!bits(any)) return;
    }
    const RowGroup& group = resize.rows.groups[i];
    for (int64_t x = 0; x < resize.columns.width; x += kLanes) {
      const Inputs inputs = inputs_of(resize, x);
      if (prune && !hopeful.any(inputs.first, inputs.last)) continue;
      const Patch patch = patch_at(resize, x);
      const Floats upper = columns_of(patch, above), lower = columns_of(patch, below);
      const Ints inside = lanes_before(resize.columns.width - x);
      for (int32_t y = group.begin; y < group.end; ++y) {
        range.add(between(patch, upper, lower, resize.rows.high_weight[y]), inside);
      }
    }
  };
  int64_t first = 0;
  while (first + 1 < resize.rows.count && resize.rows.groups[first].high < row_of_largest) ++first;
  each_group(p, s, map, scale, first, first + 1, visit);
  each_group(p, s, map, scale, 0, first, visit);
  each_group(p, s, map, scale, first + 1, resize.rows.count, visit);
  return range;
}

// The largest float v for which (v - low) / span <= tau with float rounding, so that (v - low) / span > tau is the same
// as v > threshold. Found by bisection over the floats in their order. span > 0.
float threshold_of(float low, float span, float tau) {
  const auto value_of = [](int64_t rank) {  // rank: the bits of a positive float, negated for a negative one
    const auto magnitude = static_cast<uint32_t>(rank < 0 ? -rank : rank);
    const float value = bit_cast<float>(magnitude);
    return rank < 0 ? -value : value;
  };
  int64_t in = 0x7f800000, out = -0x7f800000;  // infinity is in the mask, -infinity is not
  while (in - out > 1) {
    const int64_t middle = (in + out) >> 1;
    const float value = value_of(middle);
    ((value - low) / span <= tau ? out : in) = middle;
  }
  return value_of(out);
}

MapScale scale_of(const CamCounts& p, const Scratch& s, int64_t map) {
  const MapScale none{0, 1, kInfinity, false, false};  // nothing is in the mask
  MapScale scale{0, 1, p.tau, false, false};
  if (p.normalize == Normalize::kNone) return scale;
  int64_t row_of_largest = 0;
  const bool relu = p.normalize == Normalize::kGradCam;
  const Range at_map = range_of_map(p, s, map, relu, &row_of_largest);

  if (p.normalize == Normalize::kMax) {
    if (!(at_map.largest_of_all() > 0)) return none;  // without a positive sample no resized value is positive
    const Range range = range_of_resized(p, s, map, scale, false, row_of_largest);
    const float largest = range.largest_of_all();
    if (range.any_nan() || !(largest > 0) || !(largest < kInfinity)) return none;
    scale.threshold = threshold_of(0, largest, p.tau);
    return scale;
  }
  const float span = at_map.largest_of_all() - at_map.least_of_all();
  if (at_map.any_nan() || !(span > 0) || !(span < kInfinity)) return none;
  scale.scaled = true;
  scale.relu = relu;
  scale.low = at_map.least_of_all();
  scale.span = span;
  if (p.normalize == Normalize::kMinMax) return scale;
  const Range range = range_of_resized(p, s, map, scale, true, row_of_largest);
  const float least = range.least_of_all(), resized_span = range.largest_of_all() - least;
  if (!(resized_span > 0)) return none;
  scale.threshold = threshold_of(least, resized_span, p.tau);
  return scale;
}

// ------------------------------------------------------------------------------------------------------- counts

// Bit i of the result: whether labels[i] == label, for one vector of labels.
CAWA_FAST_INLINE uint32_t lanes_with(const uint16_t* labels, uint16_t label) {
#if defined(__AVX512BW__) && defined(__AVX512VL__)  // widening to 32 bits would add two instructions to about ten
  return _mm256_cmpeq_epi16_mask(bit_cast<__m256i>(load_as<Shorts>(labels)),
                                 _mm256_set1_epi16(static_cast<int16_t>(label)));
#else
  return bits(__builtin_convertvector(load_as<Shorts>(labels), Ints) == int32_t{label});
#endif
}

CAWA_FAST_INLINE int64_t population(uint32_t lanes) { return __builtin_popcount(lanes); }

// Counts group i of a map. `above`, `below`: its input rows. Adds valid pixels in the mask to `predicted`, and those of
// them with the map's label to `tp`.
void count_group(const CamCounts& p, const Scratch& s, int64_t map, const MapScale& scale, int64_t i,
                 const float* above, const float* below, bool moderate, int64_t* tp, int64_t* predicted) {
  const Resize& resize = p.resize;
  const RowGroup& group = resize.rows.groups[i];
  const int64_t n = map / resize.maps.classes;
  const auto c = static_cast<uint16_t>(map % resize.maps.classes);
  const BitSet inside{s.sets[0]}, not_outside{s.sets[1]};
  // Stage 1: the input columns of which both samples are in the mask beyond the rounding margin (`inside`), and those
  // of which one may be in it (`not_outside`).
  if (moderate) {
    const float over = somewhat_more(scale.threshold), under = somewhat_less(scale.threshold);
    for (int64_t x = 0; x < resize.maps.width; x += kLanes) {
      const Floats a = load(above + x), b = load(below + x);
      inside.put(x, greater(minimum(a, b), broadcast(over)));
      not_outside.put(x, greater(maximum(a, b), broadcast(under)));
    }
  }
  const int64_t height = resize.rows.groups[resize.rows.count - 1].end, padded = resize.columns.padded;
  const LabelPatch* label_patches = p.patches + (n * resize.rows.count + i) * (padded / kLanes);
  int64_t hits = 0, members = 0;
  for (int64_t x = 0; x < resize.columns.width; x += kLanes) {
    const LabelPatch& label_patch = label_patches[x / kLanes];
    if (label_patch.valid == 0) continue;
    const Inputs inputs = inputs_of(resize, x);
    if (moderate && !not_outside.any(inputs.first, inputs.last)) continue;
    const bool all = moderate && inside.all(inputs.first, inputs.last);
    // Stage 2: patches entirely in the mask and with one label.
    if (all && label_patch.label != kMixed) {
      members += label_patch.valid;
      hits += label_patch.label == c ? label_patch.valid : 0;
      continue;
    }
    // Stage 3: the other patches, pixel by pixel.
    const Patch patch = patch_at(resize, x);
    const uint16_t* labels = p.decoded + (n * height + group.begin) * padded + x;
    const Floats upper = columns_of(patch, above), lower = columns_of(patch, below);
    for (int32_t y = group.begin; y < group.end; ++y, labels += padded) {
      const Floats value = between(patch, upper, lower, resize.rows.high_weight[y]);
      const uint32_t in = all ? kAllLanes : greater(value, broadcast(scale.threshold));
      members += population(in & ~lanes_with(labels, kInvalid));
      hits += population(in & lanes_with(labels, c));
    }
  }
  *tp += hits;
  *predicted += members;
}

}  // namespace

int64_t cam_scratch(const CamCounts& p) { return Scratch(p, nullptr).size; }

void cam_labels(const CamCounts& p, int64_t begin, int64_t end) {
  const RowGroups& rows = p.resize.rows;
  const Columns& columns = p.resize.columns;
  const int64_t height = rows.groups[rows.count - 1].end;
  for (int64_t item = begin; item < end; ++item) {
    const int64_t n = item / rows.count;
    const RowGroup& group = rows.groups[item % rows.count];
    uint16_t* first = p.decoded + (n * height + group.begin) * columns.padded;
    for (int32_t y = group.begin; y < group.end; ++y) {
      uint16_t* labels = first + (y - group.begin) * columns.padded;
      decode(p.labels, (n * height + y) * columns.width, columns.width, labels);
      for (int64_t x = columns.width; x < columns.padded; ++x) labels[x] = kInvalid;
    }
    for (int64_t x = 0; x < columns.padded; x += kLanes) {
      const uint16_t label = first[x];
      uint32_t valid = 0, alike = 0;
      for (int32_t row = 0; row < group.end - group.begin; ++row) {
        valid += population(kAllLanes & ~lanes_with(first + row * columns.padded + x, kInvalid));
        alike += population(lanes_with(first + row * columns.padded + x, label));
      }
      const bool uniform = alike == static_cast<uint32_t>(group.end - group.begin) * kLanes;
      p.patches[(item * columns.padded + x) / kLanes] = {uniform ? label : kMixed, valid};
    }
  }
}

void cam_scales(const CamCounts& p, int64_t begin, int64_t end, float* scratch) {
  const Scratch s(p, scratch);
  for (int64_t i = begin; i < end; ++i) p.scales[i] = scale_of(p, s, p.wanted[i]);
}

void cam_counts(const CamCounts& p, int64_t begin, int64_t end, float* scratch, int64_t* tp, int64_t* predicted) {
  const Scratch s(p, scratch);
  const int64_t groups = p.resize.rows.count;
  for (int64_t item = begin; item < end;) {
    const int64_t i = item / groups, map = p.wanted[i], c = map % p.resize.maps.classes;
    const int64_t last = smaller((i + 1) * groups, end);
    const MapScale& scale = p.scales[i];
    if (scale.threshold < kInfinity) {
      each_group(p, s, map, scale, item - i * groups, last - i * groups,
                 [&](int64_t group, const float* above, const float* below, bool moderate) {
                   count_group(p, s, map, scale, group, above, below, moderate, tp + c, predicted + c);
                 });
    }
    item = last;
  }
}

}  // namespace CAWA_FAST_ISA
}  // namespace cawa_fast
