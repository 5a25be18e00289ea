// Counting by key. A thread block meets a few keys again and again, so it counts in a table in shared memory. Up to
// kMaxSlots keys, the table has a slot for each. Otherwise keys are hashed: the first key that comes to a slot owns it,
// and other keys of that slot are added to global memory directly.
#pragma once

#include "pixel.h"

namespace cawa_fast::cuda {

constexpr int kMaxSlots = 1024, kNoKey = -1;

class KeyCounts {
 public:
  static int64_t bytes(int64_t keys) {
    return (is_hashed(keys) ? 2 * kMaxSlots : keys) * static_cast<int64_t>(sizeof(int));
  }

  // `memory`: bytes(keys) of shared memory. `totals`: (keys) in global memory, to which flush adds.
  __device__ KeyCounts(unsigned char* memory, int keys, int64_t* totals)
      : counts_(reinterpret_cast<int*>(memory)),
        owners_(is_hashed(keys) ? counts_ + kMaxSlots : nullptr),
        slots_(is_hashed(keys) ? kMaxSlots : keys),
        totals_(totals) {}

  // Called by the whole thread block, which must synchronise afterwards.
  __device__ void clear(int thread, int threads) const {
    for (int slot = thread; slot < slots_; slot += threads) {
      counts_[slot] = 0;
      if (owners_) owners_[slot] = kNoKey;
    }
  }

  // Called by the whole thread block, after it has synchronised.
  __device__ void flush(int thread, int threads) const {
    for (int slot = thread; slot < slots_; slot += threads) {
      if (counts_[slot] > 0) add_to_total(owners_ ? owners_[slot] : slot, counts_[slot]);
    }
  }

  __device__ void add(int key, int count) const {
    int slot = key;
    if (owners_) {
      slot = (key ^ key >> 10) & (kMaxSlots - 1);
      const int owner = atomicCAS(owners_ + slot, kNoKey, key);
      if (owner != kNoKey && owner != key) return add_to_total(key, count);
    }
    atomicAdd(counts_ + slot, count);
  }

  // Called by a whole warp; lanes with kNoKey add nothing. Most lanes have the same key, and their atomic additions
  // would serialise. So the counts of the first two keys are summed over the warp before they are added.
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

  __host__ __device__ static bool is_hashed(int64_t keys) { return keys > kMaxSlots; }

  int *counts_, *owners_;  // owners_: the key of each slot, or null if each key has its own slot
  int slots_;
  int64_t* totals_;
};

}  // namespace cawa_fast::cuda
