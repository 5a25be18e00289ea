// Emulates on a CPU what csrc/cuda/ uses of CUDA, so that its kernels run without a GPU: one thread block after the
// other, one thread at a time. Each thread of a block is a fiber that runs until a barrier. At every barrier the order
// of the fibers is shuffled, so that a missing barrier shows as a wrong result. A barrier that not all threads reach is
// an error. Shared memory is NaN when a block begins.
//
// Differences from a GPU: exponentials, logarithms and divisions round otherwise, here correctly or nearly so. Warps do
// not run in lockstep, and races between blocks are not detected.
#pragma once

#include <torch/headeronly/util/Exception.h>
#include <ucontext.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <exception>
#include <functional>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

// --------------------------------------------------------------------------------------------------- the language

#define __global__
#define __device__
#define __host__
#define __shared__
#define __align__(bytes)
#define __launch_bounds__(...)
#define __grid_constant__
#define __noinline__ __attribute__((noinline))

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};

using cudaStream_t = void*;

namespace cawa_fast::cuda {

// ------------------------------------------------------------------------------------------------------- fibers

constexpr int kEmulatedWarp = 32;
constexpr size_t kSharedBytes = 227 * 1024;  // limit per thread block on sm_90
constexpr unsigned char kFresh = 0xff;       // initial bytes of shared memory: NaN
constexpr size_t kCanary = 1024;             // bytes after a block's shared memory, which must not change
constexpr size_t kFiberStack = 64 * 1024;

inline dim3 blockIdx, blockDim, threadIdx;                               // of the running fiber
alignas(16) inline unsigned char shared_memory[kSharedBytes + kCanary];  // of the running block

// One thread block.
class Block {
 public:
  static Block*& current() {
    static Block* block = nullptr;
    return block;
  }

  Block(dim3 threads, std::function<void()> body, uint64_t seed)
      : threads_(threads), body_(std::move(body)), random_(seed), fibers_(threads.x * threads.y * threads.z) {}

  void run() {
    for (size_t i = 0; i < fibers_.size(); ++i) start(i);
    current() = this;
    std::vector<int> order(fibers_.size());
    for (size_t i = 0; i < order.size(); ++i) order[i] = static_cast<int>(i);
    for (size_t running = fibers_.size(); running > 0;) {
      std::shuffle(order.begin(), order.end(), random_);
      bool any = false;
      for (const int i : order) {
        if (fibers_[i].state != State::kReady) continue;
        any = true;
        resume(i);
        if (error_) std::rethrow_exception(error_);
        if (fibers_[i].state == State::kDone) --running;
      }
      any |= release();
      STD_TORCH_CHECK(any, "cuda_emulation: a barrier that not all threads of the block or warp reach");
    }
  }

  void wait_for_block() { wait(State::kAtBlock); }
  void wait_for_warp() { wait(State::kAtWarp); }

  // Returns the `value` that lane `other_lane` of the warp passes to its call.
  template <class T>
  T exchange(T value, int other_lane) {
    const int self = running_;
    std::memcpy(&fibers_[self].slot, &value, sizeof(T));
    wait_for_warp();
    T result;
    std::memcpy(&result, &fibers_[self / kEmulatedWarp * kEmulatedWarp + other_lane].slot, sizeof(T));
    wait_for_warp();
    return result;
  }

  bool any(bool value) {
    fibers_[running_].slot = value;
    wait_for_block();
    const bool result = std::any_of(fibers_.begin(), fibers_.end(), [](const Fiber& fiber) { return fiber.slot != 0; });
    wait_for_block();
    return result;
  }

  // Calls combine(lane, value) with the value of each lane of the warp that has not ended, in the order of lanes.
  template <class T, class Combine>
  void gather(T value, const Combine& combine) {
    const int self = running_, first = self / kEmulatedWarp * kEmulatedWarp;
    std::memcpy(&fibers_[self].slot, &value, sizeof(T));
    wait_for_warp();
    const int count = std::min<int>(kEmulatedWarp, static_cast<int>(fibers_.size()) - first);
    for (int lane = 0; lane < count; ++lane) {
      if (fibers_[first + lane].state == State::kDone) continue;
      T given;
      std::memcpy(&given, &fibers_[first + lane].slot, sizeof(T));
      combine(lane, given);
    }
    wait_for_warp();
  }

  int lane() const { return running_ % kEmulatedWarp; }

 private:
  enum class State { kReady, kAtBlock, kAtWarp, kDone };
  struct Fiber {
    State state = State::kReady;
    uint64_t slot = 0;
    ucontext_t context;
  };

  // Stacks are reused by later blocks, which saves page faults.
  static unsigned char* stack(size_t i) {
    static std::vector<std::unique_ptr<unsigned char[]>> stacks;
    while (stacks.size() <= i) stacks.push_back(std::unique_ptr<unsigned char[]>(new unsigned char[kFiberStack]));
    return stacks[i].get();
  }

  void start(size_t i) {
    Fiber& fiber = fibers_[i];
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = stack(i);
    fiber.context.uc_stack.ss_size = kFiberStack;
    fiber.context.uc_link = &scheduler_;
    makecontext(&fiber.context, &Block::enter, 0);
  }

  static void enter() {
    Block& block = *current();
    try {
      block.body_();
    } catch (...) {  // an exception must not leave the fiber
      block.error_ = std::current_exception();
    }
    block.fibers_[block.running_].state = State::kDone;
  }

  void resume(int i) {
    running_ = i;
    const unsigned index = static_cast<unsigned>(i);
    threadIdx = dim3(index % threads_.x, index / threads_.x % threads_.y, index / (threads_.x * threads_.y));
    swapcontext(&scheduler_, &fibers_[i].context);
  }

  void wait(State state) {
    const int self = running_;
    fibers_[self].state = state;
    swapcontext(&fibers_[self].context, &scheduler_);
  }

  // Resumes the threads of each warp, and of the block, of which all wait at the same kind of barrier. Threads that
  // have ended are not waited for. Returns whether any thread was resumed.
  bool release() {
    bool any = false;
    const auto all = [&](size_t begin, size_t end, State state) {
      bool waiting = false;
      for (size_t i = begin; i < end; ++i) {
        if (fibers_[i].state == State::kDone) continue;
        if (fibers_[i].state != state) return;
        waiting = true;
      }
      for (size_t i = begin; waiting && i < end; ++i) {
        if (fibers_[i].state == state) fibers_[i].state = State::kReady;
      }
      any |= waiting;
    };
    for (size_t warp = 0; warp < fibers_.size(); warp += kEmulatedWarp) {
      all(warp, std::min(warp + kEmulatedWarp, fibers_.size()), State::kAtWarp);
    }
    all(0, fibers_.size(), State::kAtBlock);
    return any;
  }

  dim3 threads_;
  std::function<void()> body_;
  std::mt19937_64 random_;
  std::vector<Fiber> fibers_;
  ucontext_t scheduler_;
  int running_ = 0;
  std::exception_ptr error_;
};

// ----------------------------------------------------------------------------------------------------- on the device

inline void __syncthreads() { Block::current()->wait_for_block(); }
inline void __syncwarp() { Block::current()->wait_for_warp(); }

template <class T>
T __shfl_xor_sync(unsigned, T value, int mask) {
  return Block::current()->exchange(value, Block::current()->lane() ^ mask);
}

inline uint32_t or_of_warp(uint32_t bits) {
  for (int d = 1; d < kEmulatedWarp; d *= 2) bits |= __shfl_xor_sync(0xffffffff, bits, d);
  return bits;
}
inline bool any_of_warp(bool value) { return or_of_warp(value) != 0; }
inline bool all_of_warp(bool value) { return or_of_warp(!value) == 0; }
inline int64_t from_first_lane(int64_t value) { return Block::current()->exchange(value, 0); }
inline bool any_of_block(bool value) { return Block::current()->any(value); }
inline float from_previous_lane(float value) {
  return Block::current()->exchange(value, std::max(Block::current()->lane() - 1, 0));
}

// The mask has a bit for each lane that takes part. Only whole warps are emulated.
inline void check_mask(unsigned mask) {
  STD_TORCH_CHECK(mask == 0xffffffff, "cuda_emulation: an exchange among some lanes of a warp");
}

template <class T>
T __shfl_sync(unsigned mask, T value, int lane) {
  check_mask(mask);
  STD_TORCH_CHECK(0 <= lane && lane < kEmulatedWarp, "cuda_emulation: there is no lane ", lane);
  return Block::current()->exchange(value, lane);
}

inline unsigned __ballot_sync(unsigned mask, int predicate) {
  check_mask(mask);
  unsigned lanes = 0;
  Block::current()->gather(predicate, [&](int lane, int given) { lanes |= given ? 1u << lane : 0u; });
  return lanes;
}

inline int __reduce_add_sync(unsigned mask, int value) {
  check_mask(mask);
  int sum = 0;
  Block::current()->gather(value, [&](int, int given) { sum += given; });
  return sum;
}

inline int __reduce_max_sync(unsigned mask, int value) {
  check_mask(mask);
  int largest = value;
  Block::current()->gather(value, [&](int, int given) { largest = std::max(largest, given); });
  return largest;
}

inline int __popc(unsigned bits) { return std::popcount(bits); }
inline int __ffs(unsigned bits) { return bits == 0 ? 0 : std::countr_zero(bits) + 1; }

// Fibers do not interrupt each other, so that plain accesses are atomic.
template <class T>
T atomicAdd(T* address, T value) {
  return std::exchange(*address, *address + value);
}
template <class T>
T atomicMin(T* address, T value) {
  return std::exchange(*address, std::min(*address, value));
}
template <class T>
T atomicMax(T* address, T value) {
  return std::exchange(*address, std::max(*address, value));
}
inline void __threadfence() {}
template <class T>
T atomicCAS(T* address, T expected, T value) {
  return std::exchange(*address, *address == expected ? value : *address);
}

inline float __fadd_rn(float x, float y) { return x + y; }
inline float __fdiv_rn(float x, float y) { return x / y; }
inline float __fmul_rn(float x, float y) { return x * y; }

inline float __uint_as_float(uint32_t bits) { return std::bit_cast<float>(bits); }
inline uint32_t __float_as_uint(float value) { return std::bit_cast<uint32_t>(value); }

template <class T>
T __ldcs(const T* address) {
  STD_TORCH_CHECK(reinterpret_cast<uintptr_t>(address) % alignof(T) == 0, "cuda_emulation: misaligned load");
  return *address;
}

using std::max;
using std::min;

inline float exp2_fast(float x) {
  const float result = std::exp2(x);
  return result < 1.17549435e-38f ? 0.0f : result;
}

inline float divide_fast(float x, float y) { return x / y; }

inline float min_nan(float x, float y) {
  return x != x || y != y ? std::numeric_limits<float>::quiet_NaN() : std::min(x, y);
}

inline float max_nan(float x, float y) {
  return x != x || y != y ? std::numeric_limits<float>::quiet_NaN() : std::max(x, y);
}

template <class T>
T load_constant(const T* address) {
  return *address;
}

template <class T>
const T* address_of(const T* pointer, uint32_t offset) {
  return pointer + offset;
}

inline void prefetch(const void*) {}
inline void keep_order() {}

inline void start_copy(void* shared, const void* global) {
  const bool misaligned = (reinterpret_cast<uintptr_t>(shared) | reinterpret_cast<uintptr_t>(global)) % 16 != 0;
  STD_TORCH_CHECK(!misaligned, "cuda_emulation: misaligned copy");
  std::memcpy(shared, global, 16);
}

inline void wait_for_copies() {}

// ------------------------------------------------------------------------------------------------------- on the host

class DeviceGuard {
 public:
  explicit DeviceGuard(int32_t) {}
};

inline cudaStream_t current_stream(int32_t) { return nullptr; }

inline int64_t shared_memory_limit(int32_t) { return kSharedBytes; }

inline void set_to_zero(void* memory, int64_t bytes, cudaStream_t) {
  std::memset(memory, 0, static_cast<size_t>(bytes));
}

// The names of the launched kernels, and the seed of the order of fibers. The tests access both through ctypes.
struct Launches {
  std::string names;
  uint64_t seed = 0;
};

inline Launches& launches() {
  static Launches all;
  return all;
}

template <class... Arguments>
void launch(const char* name, void (*kernel)(Arguments...), dim3 blocks, dim3 threads, int64_t shared, cudaStream_t,
            std::type_identity_t<Arguments>... arguments) {
  const unsigned count = threads.x * threads.y * threads.z;
  STD_TORCH_CHECK(count > 0 && count <= 1024 && count % kEmulatedWarp == 0, "cuda_emulation: ", count, " threads");
  STD_TORCH_CHECK(blocks.x > 0 && shared <= static_cast<int64_t>(kSharedBytes), "cuda_emulation: bad launch of ", name);
  launches().names += std::string(name) + ";";
  blockDim = threads;
  for (unsigned block = 0; block < blocks.x; ++block) {
    blockIdx = dim3(block);
    std::fill_n(shared_memory, shared + kCanary, kFresh);
    Block(threads, [&] { kernel(arguments...); }, launches().seed * 1'000'003 + block).run();
    const unsigned char* end = shared_memory + shared;
    STD_TORCH_CHECK(std::all_of(end, end + kCanary, [](unsigned char byte) { return byte == kFresh; }),
                    "cuda_emulation: ", name, " writes beyond its shared memory");
  }
}

}  // namespace cawa_fast::cuda

// The names of the kernels launched since the last call, each followed by a semicolon.
extern "C" __attribute__((visibility("default"))) const char* cawa_fast_emulated_launches() {
  static std::string names;
  names = std::exchange(cawa_fast::cuda::launches().names, "");
  return names.c_str();
}

extern "C" __attribute__((visibility("default"))) void cawa_fast_emulated_seed(uint64_t seed) {
  cawa_fast::cuda::launches().seed = seed;
}
