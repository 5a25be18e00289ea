// Conversion of torch tensors to the structures of the operators that count.
#pragma once

#include <algorithm>
#include <limits>
#include <optional>

#include "../tensors.h"
#include "count_cells.h"
#include "count_labels.h"

namespace cawa_fast::cuda {

constexpr int64_t kMaxCountedClasses = 32767;

inline Axis axis_of(int64_t in_size, int64_t out_size, bool align_corners) {
  STD_TORCH_CHECK(out_size == 0 || in_size > 0, "maps without samples cannot be resized");
  const double step = align_corners
                          ? static_cast<double>(in_size - 1) / static_cast<double>(std::max<int64_t>(out_size - 1, 1))
                          : static_cast<double>(in_size) / static_cast<double>(std::max<int64_t>(out_size, 1));
  return {static_cast<int>(in_size), static_cast<int>(out_size), static_cast<float>(step), align_corners ? 0 : 0.5f};
}

// `maps`: (N, C, h, w) float32, bfloat16 or float16, any strides. `target`: (N, H, W).
inline ResizedMaps resized_maps(const Tensor& maps, const char* name, const Tensor& target, bool align_corners) {
  STD_TORCH_CHECK(maps.dim() == 4 && target.dim() == 3 && target.size(0) == maps.size(0), name,
                  " must be (N, C, h, w) and target (N, H, W)");
  STD_TORCH_CHECK(target.device() == maps.device(), "target must be on the same device as ", name);
  constexpr int64_t kMost = std::numeric_limits<int>::max();
  const int64_t classes = maps.size(1);
  STD_TORCH_CHECK(1 <= classes && classes <= kMaxCountedClasses, "the number of classes must be in [1, ",
                  kMaxCountedClasses, "], not ", classes);
  int64_t extent = 0;
  for (const int64_t d : {2, 3}) {
    STD_TORCH_CHECK(maps.size(d) < kMost && target.size(d - 1) < kMost, name, " and target must have sides below 2^31");
    extent += std::max<int64_t>(maps.size(d) - 1, 0) * maps.stride(d);
  }
  STD_TORCH_CHECK(extent <= kMost, "the samples of a plane of ", name, " must lie less than 2^31 elements apart");
  const auto tiles = [](int64_t cells, int64_t of_tile) {
    return static_cast<uint32_t>((cells + of_tile - 1) / of_tile);
  };
  return {maps.const_data_ptr(),
          maps.stride(0),
          maps.stride(1),
          static_cast<int>(maps.stride(2)),
          static_cast<int>(maps.stride(3)),
          static_cast<int>(classes),
          axis_of(maps.size(2), target.size(1), align_corners),
          axis_of(maps.size(3), target.size(2), align_corners),
          tiles(maps.size(3), kCellsX),
          tiles(maps.size(2), kCellsY)};
}

// The number of thread blocks for all cells of all images.
inline uint32_t cell_blocks(const ResizedMaps& maps, int64_t images) {
  const int64_t blocks = images * maps.tiles_x * maps.tiles_y;
  STD_TORCH_CHECK(blocks < (int64_t{1} << 31), "input has too many samples for one call; split it");
  return static_cast<uint32_t>(blocks);
}

// `target`: contiguous uint8, int16, int32 or int64. `report`: (3,) contiguous int64, or none. Both must outlive the
// result.
inline LabelMap label_map(const Tensor& target, int64_t classes, int64_t ignore_index,
                          const std::optional<Tensor>& report) {
  const Labels labels = labels_of(target, classes, ignore_index);
  LabelMap map{labels.data, labels.type, static_cast<int>(classes), ignore_index, nullptr};
  if (report) {
    STD_TORCH_CHECK(report->scalar_type() == ScalarType::Long && report->numel() == 3 && report->is_contiguous() &&
                        report->device() == target.device(),
                    "report must be contiguous int64 of 3 elements on the same device as target");
    map.report = report->mutable_data_ptr<int64_t>();
  }
  return map;
}

}  // namespace cawa_fast::cuda
