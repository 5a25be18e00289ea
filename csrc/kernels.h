// The interface of csrc/cpu/: one table of kernels per instruction set. Kernels take raw pointers, use no torch, and
// neither allocate nor start threads. The operators (cross_entropy.cpp, ...) check arguments, allocate, and distribute
// the work over torch's threads.
#pragma once

#include <cstdint>

#include "bilinear.h"

namespace cawa_fast {

enum class Float : uint8_t { kFloat32, kBFloat16, kFloat16 };
enum class Label : uint8_t { kUInt8, kInt16, kInt32, kInt64 };

// A contiguous label map (N, H, W). Labels equal to ignore_index or outside [0, num_classes) are invalid.
struct Labels {
  const void* data;
  Label type;
  int32_t num_classes;  // in [1, kMaxClasses]
  int64_t ignore_index;
};

constexpr int64_t kMaxClasses = 65534;
constexpr uint16_t kInvalid = 0xffff;  // decoded value of an invalid label

// Logits or maps (N, C, h, w), any values: element (n, c, y, x) at data + n * stride_n + ..., strides in elements.
struct Maps {
  const void* data;
  Float type;
  int64_t images, classes, height, width;
  int64_t stride_n, stride_c, stride_y, stride_x;
};

// ------------------------------------------------------------------------------------------------- cross-entropy

// The loss of a pixel with logits z and label y is, with s the label smoothing,
//   f * (at_label[y] * (1 - p)^gamma * (lse - z_y) + smooth * (weight_sum * lse - sum_c weight[c] z_c)),
//   z_c = input_c + offset[c],  lse = log sum_c exp(z_c),  p = exp(z_y - lse),  f = scale[y] * grad
// At most one of gamma and smooth is positive. All arrays are float32 unless declared otherwise.
struct Loss {
  const float* at_label;  // (C): (1 - s) * weight, >= 0
  bool few_classes;       // C <= 32; at_label and scale then have room for 32 values
  bool uniform_scale;     // scale is the same for all classes
  const float* weight;    // (C), >= 0; read only if smooth > 0
  const float* offset;    // (C), finite
  const float* scale;     // (C): the reduction as a factor per class
  float smooth;           // s / C
  float gamma;            // >= 0, the exponent of the focal loss
  float weight_sum;       // sum of weight
  const float* grad;      // upstream gradient: null for 1, else (1), or (N, H, W) if grad_per_pixel
  bool grad_per_pixel;
  float* pixel_loss;     // output (N, H, W), without scale and grad; may be null
  double* partial_loss;  // output per tile or group of rows, with scale, without grad; may be null
};

// What a kernel computes.
enum class Pass : uint8_t {
  kLoss,
  kGradient,        // the loss and its gradient
  kRegionSums,      // the loss, and soft sums of each class, see cpu/region.h
  kRegionGradient,  // the gradient of both
};

struct Region {
  int64_t classes;
  bool squared;            // sum the squares of the probabilities
  double* partial;         // output per item, (2, C), if the pass is kRegionSums: intersections, then predictions
  const float* grad_sums;  // (N, 2, stride), read if the pass is kRegionGradient: upstream gradient of the sums
  int64_t stride;          // C, or 32 if that is more, so that a table of few classes has room for 32 values
};

// Logits of the labels' size as rows of pixels: pixel (row, x) of class c lies at row_offset(row) + x * stride_x
// + c * stride_c, and its label at row * length + x. Rows are counted over the outer dimensions, those that could not
// be merged. All strides are in elements.
constexpr int kMaxOuter = 6;
struct PixelRows {
  int64_t rows, length;
  int outer;                       // number of outer dimensions
  int64_t size[kMaxOuter];         // of the outer dimensions, slowest first
  int64_t stride[kMaxOuter];       // of the input along them
  int64_t grad_stride[kMaxOuter];  // of the gradient along them
  int64_t stride_x, stride_c, grad_stride_x, grad_stride_c;
};

struct CrossEntropy {
  PixelRows pixels;
  int64_t classes;
  Float type;
  const void* input;  // logits, any values
  void* grad_input;   // output, in the input's type; null for none
  bool stream;        // write grad_input with non-temporal stores, since it is larger than the caches
  Labels labels;
  Loss loss;
  Pass pass;
  Region region;  // only if the pass needs it; of one image then
  int64_t tiles_per_item;
};

struct ResizedCrossEntropy {
  Maps input;
  void* grad_input;                        // output, in the input's shape and type; null for none
  int64_t grad_n, grad_c, grad_y, grad_x;  // strides of grad_input, in elements
  const Cells* columns;
  const RowGroups* rows;
  int64_t label_height, label_width;
  Labels labels;
  Loss loss;
  Pass pass;
  Region region;  // only if the pass needs it
};

// ------------------------------------------------------------------------------------------------------ counting

// How maps are resized to the labels' size. Output row y reads the two input rows of its group, and output column x the
// two input columns that `columns` gives. If same_size, nothing is interpolated, and every row is a group.
struct Resize {
  Maps maps;
  bool same_size;
  Columns columns;
  RowGroups rows;
};

struct ConfusionMatrix {
  Resize resize;
  Labels labels;
  int64_t* counts;  // output (tables, C * C + 1): [target][prediction], the last element for invalid labels
  int64_t tables;   // 1, or 4, which neighbouring pixels use in turn
};

enum class Normalize : uint8_t { kMax, kMinMax, kGradCam, kNone };

// Summary of a patch of labels: `lanes` output columns of one group of rows.
struct LabelPatch {
  uint16_t label;  // the label of all its pixels, or kMixed if they differ
  uint32_t valid;  // number of valid pixels
};
constexpr uint16_t kMixed = 0xfffe;

// Normalisation of one map. Before the resize, each value v becomes (v - low) / span if `scaled`, with max(v, 0) in
// place of v if `relu`. A resized value is in the mask if it exceeds threshold.
struct MapScale {
  float low, span, threshold;
  bool scaled, relu;
};

struct CamCounts {
  Resize resize;
  Labels labels;
  Normalize normalize;
  float tau;
  const int64_t* wanted;  // the maps to score, as image * C + class
  uint16_t* decoded;      // scratch (N, H, columns.padded): labels, kInvalid in the padding
  LabelPatch* patches;    // scratch (N, groups of rows, columns.padded / lanes)
  MapScale* scales;       // scratch, one per wanted map
};

// --------------------------------------------------------------------------------------------------- the table

// Each kernel computes items [begin, end). `scratch` has as many floats as the matching *_scratch function returns,
// aligned for any vector, and belongs to one thread.
struct Kernels {
  const char* name;
  int64_t lanes;  // floats in a vector

  // Items: tiles_per_item tiles of cross_entropy_tile() pixels, counted row by row; a row's last tile may be shorter.
  int64_t (*cross_entropy_tile)();
  int64_t (*cross_entropy_scratch)(int64_t classes);
  void (*cross_entropy)(const CrossEntropy&, int64_t begin, int64_t end, float* scratch);

  // Items: rows of the low-resolution logits, counted over all images.
  int64_t (*resized_cross_entropy_scratch)(const ResizedCrossEntropy&);
  void (*resized_cross_entropy)(const ResizedCrossEntropy&, int64_t begin, int64_t end, float* scratch);

  // Items: groups of rows, counted over all images.
  int64_t (*confusion_matrix_scratch)(const ConfusionMatrix&);
  void (*confusion_matrix)(const ConfusionMatrix&, int64_t begin, int64_t end, float* scratch);

  // To be called in this order. Items of cam_labels: groups of rows, counted over all images; it fills `decoded` and
  // `patches`. Items of cam_scales: wanted maps; it fills `scales`. Items of cam_counts: groups of rows, counted over
  // all wanted maps; it adds to tp and predicted, (C) each: valid pixels in the mask with the right label, and all.
  int64_t (*cam_scratch)(const CamCounts&);
  void (*cam_labels)(const CamCounts&, int64_t begin, int64_t end);
  void (*cam_scales)(const CamCounts&, int64_t begin, int64_t end, float* scratch);
  void (*cam_counts)(const CamCounts&, int64_t begin, int64_t end, float* scratch, int64_t* tp, int64_t* predicted);
};

namespace portable {
extern const Kernels kernels;
}
namespace baseline {
extern const Kernels kernels;
}
namespace avx2 {
extern const Kernels kernels;
}
namespace avx512 {
extern const Kernels kernels;
}

}  // namespace cawa_fast
