// What csrc/cpu/ computes, behind one table of functions per instruction set: raw pointers, no torch, no allocation,
// no threads. The operators (cross_entropy.cpp, ...) check, allocate, and share the work among torch's threads.
#pragma once

#include <cstdint>

#include "bilinear.h"

namespace cawa_fast {

enum class Float : uint8_t { kFloat32, kBFloat16, kFloat16 };
enum class Label : uint8_t { kUInt8, kInt16, kInt32, kInt64 };

// A contiguous label map. Labels outside [0, num_classes) and ignore_index are invalid.
struct Labels {
  const void* data;
  Label type;
  int32_t num_classes;  // at most kMaxClasses
  int64_t ignore_index;
};

constexpr int64_t kMaxClasses = 65534;
constexpr uint16_t kInvalid = 0xffff;  // what an invalid label is decoded to

// Logits or maps (N, C, h, w): element (n, c, y, x) at data + n * stride_n + ..., strides in elements.
struct Maps {
  const void* data;
  Float type;
  int64_t images, classes, height, width;
  int64_t stride_n, stride_c, stride_y, stride_x;
};

// ------------------------------------------------------------------------------------------------- cross-entropy

// The loss of a pixel with label y, factor f = scale[y] * grad:
//   f * (at_label[y] * nll + smooth * (weight_sum * log sum exp - sum_c weight[c] z_c)),  at_label = (1 - s) weight
struct Loss {
  const float* at_label;  // (C), (1 - s) * weight
  bool few_classes;       // C <= 32, and at_label and scale have room for 32
  bool uniform_scale;     // scale is the same for all classes
  const float* weight;    // (C), read only if smooth > 0
  const float* scale;     // (C), the reduction as a factor per class
  float smooth;           // s / C
  float weight_sum;       // sum of weight
  const float* grad;      // upstream gradient: null for 1, else one value or, per pixel, as many as labels
  bool grad_per_pixel;
  float* pixel_loss;     // per pixel, without scale and grad; may be null
  double* partial_loss;  // per tile or group of rows, with scale, without grad; may be null
};

// Logits of the labels' size, seen as rows of pixels: pixel (row, x) of class c lies at row_offset(row) + x * stride_x
// + c * stride_c, and the label at row * length + x. The rows are the outer dimensions that could not be merged.
constexpr int kMaxOuter = 6;
struct PixelRows {
  int64_t rows, length;
  int outer;                       // number of outer dimensions
  int64_t size[kMaxOuter];         // of the outer dimensions, slowest first
  int64_t stride[kMaxOuter];       // of the input along them
  int64_t grad_stride[kMaxOuter];  // of the gradient
  int64_t stride_x, stride_c, grad_stride_x, grad_stride_c;
};

struct CrossEntropy {
  PixelRows pixels;
  int64_t classes;
  Float type;
  const void* input;
  void* grad_input;  // in the input's type; null for none
  bool stream;       // grad_input is larger than the caches: write past them
  Labels labels;
  Loss loss;
};

struct ResizedCrossEntropy {
  Maps input;
  void* grad_input;                        // in the input's type, strides below; null for none
  int64_t grad_n, grad_c, grad_y, grad_x;  // strides of grad_input
  const Cells* columns;
  const RowGroups* rows;
  int64_t label_height, label_width;
  Labels labels;
  Loss loss;
};

// ------------------------------------------------------------------------------------------------------ counting

// Maps against labels of another size: output row y reads the input rows of its group, column x those of columns. With
// equal sizes (same_size) positions are not interpolated, and every row is a group.
struct Resize {
  Maps maps;
  bool same_size;
  Columns columns;
  RowGroups rows;
};

struct ConfusionMatrix {
  Resize resize;
  Labels labels;
  int64_t* counts;  // `tables` tables of classes * classes + 1: [target][prediction], the last for invalid labels
  int64_t tables;   // 1, or 4 that neighbouring pixels take in turn
};

enum class Normalize : uint8_t { kMax, kMinMax, kGradCam, kNone };

// What of a patch of labels (`lanes` columns of one group of rows) is alike.
struct LabelPatch {
  uint16_t label;  // of all its pixels; kMixed if they differ
  uint32_t valid;  // how many pixels are valid
};
constexpr uint16_t kMixed = 0xfffe;

// A value v of a map is first replaced by (max(v, 0) if relu, then) (v - low) / span; a resized value is in the mask if
// it exceeds threshold.
struct MapScale {
  float low, span, threshold;
  bool scaled, relu;
};

struct CamCounts {
  Resize resize;
  Labels labels;
  Normalize normalize;
  float tau;
  const int64_t* wanted;  // the maps to score, as image * classes + class
  uint16_t* decoded;      // labels (N, H, columns.padded), kInvalid in the padding
  LabelPatch* patches;    // (N, groups, columns.padded / lanes)
  MapScale* scales;       // per wanted map
};

// --------------------------------------------------------------------------------------------------- the table

struct Kernels {
  const char* name;
  int64_t lanes;  // floats in a vector

  // Tiles [begin, end) of tile_pixels pixels, counted row by row (tiles_per_row each); scratch of scratch_floats
  // floats.
  int64_t (*cross_entropy_tile)();
  int64_t (*cross_entropy_scratch)(int64_t classes);
  void (*cross_entropy)(const CrossEntropy&, int64_t begin, int64_t end, float* scratch);

  // Rows [begin, end) of the low-resolution logits, counted over all images.
  int64_t (*resized_cross_entropy_scratch)(const ResizedCrossEntropy&);
  void (*resized_cross_entropy)(const ResizedCrossEntropy&, int64_t begin, int64_t end, float* scratch);

  // Groups of rows [begin, end), counted over all images.
  int64_t (*confusion_matrix_scratch)(const ConfusionMatrix&);
  void (*confusion_matrix)(const ConfusionMatrix&, int64_t begin, int64_t end, float* scratch);

  // In this order: labels, by groups of rows over all images; scales, by wanted map; counts, by group of rows over all
  // wanted maps, added to tp and predicted, one per class.
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
