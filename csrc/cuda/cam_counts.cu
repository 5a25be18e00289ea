// True and false positives of thresholded maps. Full-resolution maps are never stored. A thread handles a cell
// (count_cells.h).
//
// Launches:
//   cam_maxima   the largest value of each wanted map at label resolution
//   cam_masks    the counts; a cell whose corners are all in the mask, or all outside, needs no interpolation
// "Wanted" are the classes of an image's ground truth, or all classes.
#include "cam_counts.h"

#include <cstdlib>

#include "cam_maxima.h"
#include "count_tensors.h"

namespace cawa_fast::cuda {

// The limit: the largest float v >= 0 for which v / top <= tau with float rounding, so that v / top > tau is the same
// as v > limit. Usually it is a few units in the last place away from tau * top. It can be anywhere if quotients are so
// small that many are equal.
__device__ inline float limit_of(float top, float tau) {
  const auto is_out = [&](int bits) { return __fdiv_rn(value_of(bits), top) <= tau; };
  const int guess = min(order_of(tau * top), kInfinityBits);
  int out = max(guess - 4, 0), in = min(guess + 4, kInfinityBits);
  if (!is_out(out)) out = 0;
  if (is_out(in)) in = kInfinityBits;
  while (in - out > 1) {
    const int middle = out + (in - out) / 2;
    if (is_out(middle)) {
      out = middle;
    } else {
      in = middle;
    }
  }
  return value_of(out);
}

struct MasksShared {
  TilePixels pixels;
  int wanted, rows;
  int list[kTogether];                      // wanted classes whose mask is not empty
  float limit[kTogether];                   // per listed class: the largest value outside its mask
  int members[kTogether], hits[kTogether];  // per listed class: valid pixels in the mask, and those with its label
  uint16_t row[kTogether * kCellsY];        // list of rows of cells with open cells: list index * kCellsY + row
  uint32_t open[kTogether * kCellsY];       // by the same number: a bit mask of the open cells
  uint8_t owner[kCellsY][kCellsX];          // per warp: list of open cells
};

// What the corners decide: all pixels of the cell are in the mask, or all are out of it. Neither: the cell is open.
struct Side {
  bool in, out;
};

template <bool kSame>
__device__ Side side_of(const Samples& s, float limit) {
  if constexpr (kSame) return {s.a > limit, !(s.a > limit)};
  const float largest = max_nan(max_nan(s.a, s.b), max_nan(s.c, s.d));
  // an infinity with weight 0 gives NaN, which is not in the mask
  return {somewhat_less(least_of(s)) > limit && largest < INFINITY, somewhat_more(largest) <= limit};
}

// Adds the sums over a warp to the counts of the thread block.
__device__ inline void add_to_mask(MasksShared& shared, int index, int members, int hits) {
  members = __reduce_add_sync(kAllLanes, members);
  hits = __reduce_add_sync(kAllLanes, hits);
  if (threadIdx.x == 0) {
    atomicAdd(shared.members + index, members);
    atomicAdd(shared.hits + index, hits);
  }
}

// One warp counts the pixels of the `open` cells in one row of the tile's cells, for one class.
template <class T, bool kSame>
__device__ void count_open(const CamProblem& p, MasksShared& shared, const CellTile& tile, int index, int y_in_tile,
                           uint32_t open) {
  const ResizedMaps& maps = p.maps;
  const int lane = threadIdx.x, c = shared.list[index];
  uint8_t* const owners = shared.owner[threadIdx.y];
  __syncwarp();
  if (open >> lane & 1) owners[__popc(open & ((1u << lane) - 1))] = static_cast<uint8_t>(lane);
  __syncwarp();
  // one item per pixel, as if each cell had as many as the tile's largest
  const uint32_t row_pixels = shared.pixels.most_x, cell_pixels = row_pixels * shared.pixels.most_y;
  const uint32_t items = __popc(open) * cell_pixels;
  int members = 0, hits = 0;
  for (uint32_t item = lane; item < items; item += kWarp) {
    const uint32_t owner = item / cell_pixels, pixel = item - owner * cell_pixels;
    const int row = pixel / row_pixels, column = pixel - row * row_pixels;
    const CamCell<T, kSame> cell(maps, tile, shared.pixels, owners[owner], y_in_tile);
    if (row >= cell.rows || column >= cell.columns) continue;
    const int64_t at = (tile.image * maps.y.out_size + cell.first_y + row) * maps.x.out_size + cell.first_x + column;
    const int64_t label = label_at(p.labels, at);
    const Samples samples = cell.samples(maps, c);
    if (cell.value(maps, samples, column, row) > shared.limit[index]) {
      const int own = class_of(p.labels, label);
      members += own != kIgnored;
      hits += own == c;
    }
  }
  add_to_mask(shared, index, members, hits);
}

// Stages:
//   1. one sweep over the wanted classes: cells entirely in the mask are counted as a whole, cells entirely outside
//      are skipped, and the others are recorded as open
//   2. open cells are counted pixel by pixel, one warp per row of cells
template <class T, bool kSame>
__global__ void __launch_bounds__(kCells, 4) cam_masks(const __grid_constant__ CamProblem p) {
  extern __shared__ __align__(16) unsigned char shared_memory[];
  MasksShared& shared = *reinterpret_cast<MasksShared*>(shared_memory);
  const ResizedMaps& maps = p.maps;
  const int thread = threadIdx.y * kCellsX + threadIdx.x;
  const CellTile tile = cell_tile(maps, blockIdx.x);
  const int64_t first_map = tile.image * maps.classes;
  find_pixels(maps, tile, shared.pixels);
  __syncthreads();
  const CamCell<T, kSame> cell(maps, tile, shared.pixels, threadIdx.x, threadIdx.y);

  int label = kIgnored;
  if (!cell.empty()) {
    const int64_t pitch = maps.x.out_size;
    const int64_t first = (tile.image * maps.y.out_size + cell.first_y) * pitch + cell.first_x;
    const LabelsOfCell labels = labels_of_cell(p.labels, first, cell.columns, cell.rows, pitch);
    label = labels.alike ? class_of(p.labels, labels.label) : kMixed;
  }
  const int pixels = label == kIgnored ? 0 : cell.columns * cell.rows;
  const bool any_pixels = __ballot_sync(kAllLanes, pixels > 0) != 0;

  for (int begin = 0; begin < maps.classes; begin += kTogether) {
    if (thread == 0) shared.wanted = shared.rows = 0;
    shared.members[thread] = shared.hits[thread] = 0;
    __syncthreads();
    if (begin + thread < maps.classes) {
      const int c = begin + thread;
      const int64_t truth = p.truth[first_map + c];
      if (tile.x == 0 && tile.y == 0 && truth > 0) {  // initially every pixel of the class is a false negative
        atomicAdd(reinterpret_cast<unsigned long long*>(p.fn) + c, static_cast<unsigned long long>(truth));
      }
      const float top = p.maxima ? value_of(p.maxima[first_map + c]) : 1.0f;
      if ((p.every_class || truth > 0) && top > 0 && top < INFINITY) {
        const int index = atomicAdd(&shared.wanted, 1);
        shared.list[index] = c;
        shared.limit[index] = p.maxima ? limit_of(top, p.tau) : p.tau;
      }
    }
    __syncthreads();

    // 1. Cells decided by their corners.
    const int wanted = any_pixels ? shared.wanted : 0;
    for (int start = 0; start < wanted; start += kAtOnce) {
      Samples samples[kAtOnce] = {};
      if (pixels > 0) load_samples(maps, cell, shared.list, start, wanted, samples);
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        const int index = start + i;
        if (index >= wanted) break;
        const Side side = side_of<kSame>(samples[i], shared.limit[index]);
        const bool all = side.in && pixels > 0 && label != kMixed;
        const uint32_t open = __ballot_sync(kAllLanes, !side.out && !all && pixels > 0);
        if (__ballot_sync(kAllLanes, all) != 0) {
          add_to_mask(shared, index, all ? pixels : 0, all && label == shared.list[index] ? pixels : 0);
        }
        if (open != 0 && threadIdx.x == 0) {
          const int number = index * kCellsY + threadIdx.y;
          shared.open[number] = open;
          shared.row[atomicAdd(&shared.rows, 1)] = static_cast<uint16_t>(number);
        }
      }
    }
    __syncthreads();

    // 2. Open cells.
    for (int i = threadIdx.y; i < shared.rows; i += kCellsY) {
      const int number = shared.row[i];
      count_open<T, kSame>(p, shared, tile, number / kCellsY, number % kCellsY, shared.open[number]);
    }
    __syncthreads();

    if (thread < shared.wanted && shared.members[thread] > 0) {
      const int c = shared.list[thread], hits = shared.hits[thread], misses = shared.members[thread] - hits;
      const auto add = [c](int64_t* counts, int64_t value) {
        if (value == 0) return;
        atomicAdd(reinterpret_cast<unsigned long long*>(counts) + c, static_cast<unsigned long long>(value));
      };
      add(p.tp, hits);
      add(p.fp, misses);
      add(p.fn, -hits);
    }
    __syncthreads();
  }
}

namespace {

template <class T, bool kSame>
void launch_cam_counts(const CamProblem& p, uint32_t blocks, cudaStream_t stream) {
  const dim3 threads(kCellsX, kCellsY);
  if (p.maxima) {
    launch("cam_counts, maxima", cam_maxima<T, kSame>, dim3(blocks), threads, sizeof(MaximaShared), stream, p);
  }
  launch("cam_counts, masks", cam_masks<T, kSame>, dim3(blocks), threads, sizeof(MasksShared), stream, p);
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor> cam_counts(const Tensor& cam, const Tensor& target, const Tensor& truth, double tau,
                                              bool by_maximum, bool every_class, int64_t ignore_index,
                                              bool align_corners) {
  const DeviceGuard guard(cam.get_device_index());
  const cudaStream_t stream = current_stream(cam.get_device_index());
  const Tensor labels = torch::stable::contiguous(target);
  CamProblem p{};
  p.maps = resized_maps(cam, "cam", labels, align_corners);
  const int64_t images = cam.size(0), classes = cam.size(1);
  p.labels = label_map(labels, classes, ignore_index, std::nullopt);
  STD_TORCH_CHECK(truth.scalar_type() == ScalarType::Long && truth.is_contiguous() &&
                      truth.numel() == images * classes && truth.device() == cam.device(),
                  "truth must be contiguous int64 of ", images, " x ", classes, " elements on the same device as cam");
  STD_TORCH_CHECK(tau >= 0, "tau must not be negative");
  p.truth = truth.const_data_ptr<int64_t>();
  p.tau = static_cast<float>(tau);
  p.every_class = every_class;
  const auto new_counts = [&] { return torch::stable::new_empty(cam, {classes}, ScalarType::Long); };
  const Tensor tp = new_counts(), fp = new_counts(), fn = new_counts();
  p.tp = tp.mutable_data_ptr<int64_t>(), p.fp = fp.mutable_data_ptr<int64_t>(), p.fn = fn.mutable_data_ptr<int64_t>();
  const bool any = labels.numel() > 0;
  std::optional<Tensor> maxima;
  if (by_maximum && any) {
    maxima = torch::stable::new_empty(cam, {images, classes}, ScalarType::Int);
    p.maxima = maxima->mutable_data_ptr<int>();
    set_to_zero(p.maxima, images * classes * static_cast<int64_t>(sizeof(int)), stream);
  } else {
    for (int64_t* counts : {p.tp, p.fp, p.fn}) {
      set_to_zero(counts, classes * static_cast<int64_t>(sizeof(int64_t)), stream);
    }
  }
  if (!any) return {tp, fp, fn};
  const uint32_t blocks = cell_blocks(p.maps, images);
  const bool same_size = cam.size(2) == labels.size(1) && cam.size(3) == labels.size(2);
  const auto run = [&]<class T>() {
    same_size ? launch_cam_counts<T, true>(p, blocks, stream) : launch_cam_counts<T, false>(p, blocks, stream);
  };
  switch (float_type(cam, "cam")) {
    case Float::kFloat32:
      run.template operator()<float>();
      break;
    case Float::kBFloat16:
      run.template operator()<BFloat16>();
      break;
    case Float::kFloat16:
      run.template operator()<Half>();
      break;
  }
  return {tp, fp, fn};
}

}  // namespace cawa_fast::cuda
