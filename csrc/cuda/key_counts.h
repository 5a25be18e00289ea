// Counting by keys. A block meets few of them again and again: it counts in shared memory, in a table with as many
// slots as there are keys or, if those are too many, one in which the first key that comes to a slot has it, while
// others go to global memory at once.
#pragma once

#include "pixel.h"

namespace cawa_fast::cuda {

constexpr int kMaxSlots = 1024, kNoKey = -1;

// `slots`: a power of two up to kMaxSlots, kMaxSlots or no fewer than there are keys; `memory`: bytes(slots).
class KeyCounts {
 public:
  static int64_t bytes(int64_t slots) { return slots * 2 * static_cast<int64_t>(sizeof(int)); }

  // `totals`: by key, in global memory, to be added to.
  __device__ KeyCounts(unsigned char* memory, int slots, int64_t* totals)
      : keys_(reinterpret_cast<int*>(memory)), counts_(keys_ + slots), slots_(slots), totals_(totals) {}

  // By the whole block; a barrier has to follow.
  __device__ void clear(int thread, int threads) const {
    for (int slot = thread; slot < slots_; slot += threads) keys_[slot] = kNoKey, counts_[slot] = 0;
  }

  // By the whole block, after a barrier.
  __device__ void flush(int thread, int threads) const {
    for (int slot = thread; slot < slots_; slot += threads) {
      if (counts_[slot] > 0) add_to_total(keys_[slot], counts_[slot]);
    }
  }

  __device__ void add(int key, int count) const {
    const int slot = (key ^ key >> 10) & (slots_ - 1);
    int owner = keys_[slot];
    if (owner == kNoKey) {
      owner = atomicCAS(keys_ + slot, kNoKey, key);
      if (owner == kNoKey) owner = key;
    }
    if (owner == key) {
      atomicAdd(counts_ + slot, count);
    } else {
      add_to_total(key, count);
    }
  }

  // For a whole warp; with kNoKey a lane adds nothing. Lanes mostly agree: those of the first two keys are added up, or
  // they would wait for each other.
  __device__ void add_together(int key, int count) const {
    const int lane = threadIdx.x % kWarp;
    unsigned left = __ballot_sync(kAllLanes, key != kNoKey);
    for (int round = 0; round < 2 && left; ++round) {
      const int leader = __ffs(left) - 1;
      const int leading = __shfl_sync(kAllLanes, key, leader);
      const bool same = key == leading;
      const int sum = __reduce_add_sync(kAllLanes, same ? count : 0);
      if (lane == leader) add(leading, sum);
      if (same) key = kNoKey;
      left &= ~__ballot_sync(kAllLanes, same);
    }
    if (key != kNoKey) add(key, count);
  }

 private:
  __device__ void add_to_total(int key, int count) const {
    atomicAdd(reinterpret_cast<unsigned long long*>(totals_) + key, static_cast<unsigned long long>(count));
  }

  int *keys_, *counts_;
  int slots_;
  int64_t* totals_;
};

}  // namespace cawa_fast::cuda
