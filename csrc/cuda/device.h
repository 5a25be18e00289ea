// Everything that csrc/cuda/ uses of CUDA beyond the language. tests/native/cuda_emulation.h implements the same for a
// CPU, so that tests can run these kernels without a GPU.
#pragma once

#ifdef CAWA_FAST_CUDA_EMULATION
#include "cuda_emulation.h"
#else

#include <cuda_runtime.h>
#include <dlfcn.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>
#include <type_traits>

namespace cawa_fast::cuda {

// ----------------------------------------------------------------------------------------------------- on the device

// 2^x with an error of at most two units in the last place; results below 2^-126 become 0.
__device__ inline float exp2_fast(float x) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}

// x / y with an error of at most two units in the last place, for |y| < 2^126. The slow path of the exact division
// costs registers even where it is never taken.
__device__ inline float divide_fast(float x, float y) { return __fdividef(x, y); }

// The smaller of x and y, or a NaN of positive sign if either is NaN.
__device__ inline float min_nan(float x, float y) {
  float result;
  asm("min.NaN.f32 %0, %1, %2;" : "=f"(result) : "f"(x), "f"(y));
  return result;
}

// The larger of x and y, or a NaN of positive sign if either is NaN.
__device__ inline float max_nan(float x, float y) {
  float result;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(result) : "f"(x), "f"(y));
  return result;
}

// The address of pointer[offset]. For a pointer that a loop advances, the compiler would keep each sum as another
// pointer, at a cost of two more instructions and registers each.
template <class T>
__device__ const T* address_of(const T* pointer, uint32_t offset) {
  const T* result;
  asm("mad.wide.u32 %0, %1, %2, %3;" : "=l"(result) : "r"(offset), "n"(sizeof(T)), "l"(pointer));
  return result;
}

// Loads from global memory that is not written while the kernel runs.
template <class T>
__device__ T load_constant(const T* address) {
  if constexpr (sizeof(T) == sizeof(float))
    return __ldg(address);
  else
    return T(__ldg(reinterpret_cast<const unsigned short*>(address)), T::from_bits());
}

// Prevents the compiler from moving loads and stores across it, where too many at a time would spill registers.
__device__ inline void keep_order() { asm volatile("" ::: "memory"); }

// Prefetches an address of global memory into the L2 cache.
__device__ inline void prefetch(const void* address) { asm volatile("prefetch.global.L2 [%0];" ::"l"(address)); }

// Starts an asynchronous copy of 16 bytes to shared memory, which needs no registers. Both addresses are multiples of
// 16.
__device__ inline void start_copy(void* shared, const void* global) {
  const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(address), "l"(global) : "memory");
}

// Warp votes and exchanges; all lanes of the warp must call them.
__device__ inline uint32_t or_of_warp(uint32_t bits) { return __reduce_or_sync(0xffffffff, bits); }
__device__ inline bool any_of_warp(bool value) { return __any_sync(0xffffffff, value); }
// Over all threads of the block, which it synchronises.
__device__ inline bool any_of_block(bool value) { return __syncthreads_or(value); }
__device__ inline bool all_of_warp(bool value) { return __all_sync(0xffffffff, value); }
__device__ inline int64_t from_first_lane(int64_t value) {
  return __shfl_sync(0xffffffff, static_cast<long long>(value), 0);
}
__device__ inline float from_previous_lane(float value) { return __shfl_up_sync(0xffffffff, value, 1); }

// Waits for the asynchronous copies that this thread has started.
__device__ inline void wait_for_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }

// ------------------------------------------------------------------------------------------------------- on the host

// Throws if a CUDA call has failed. It also clears the error in the runtime, since PyTorch would otherwise attribute it
// to one of its own operators.
inline void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  cudaGetLastError();
  STD_TORCH_CHECK(false, "cawa_fast: ", what, " failed: ", cudaGetErrorName(error), ", ", cudaGetErrorString(error),
                  error == cudaErrorNoKernelImageForDevice
                      ? "; the extension was built for other GPUs, rebuild it with CAWA_FAST_CUDA_ARCHITECTURES"
                      : "");
}

// Makes a device current for torch and for this library's own CUDA runtime, until the guard goes out of scope.
class DeviceGuard {
 public:
  explicit DeviceGuard(int32_t device) : guard_(device) { check(cudaSetDevice(device), "cudaSetDevice"); }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
};

// torch's current stream on a device. The function is looked up in libtorch_cuda at run time, because linking that
// library would require it at build time.
inline cudaStream_t current_stream(int32_t device) {
  using Function = AOTITorchError (*)(int32_t, void**);
  static const Function function = [] {
    void* library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
    return library ? reinterpret_cast<Function>(dlsym(library, "aoti_torch_get_current_cuda_stream")) : nullptr;
  }();
  STD_TORCH_CHECK(function, "cawa_fast: this torch has no CUDA, but was given a CUDA tensor");
  void* stream = nullptr;
  STD_TORCH_CHECK(function(device, &stream) == 0, "cawa_fast: torch does not tell its current CUDA stream");
  return static_cast<cudaStream_t>(stream);
}

// The most bytes of shared memory that a thread block can have.
inline int64_t shared_memory_limit(int32_t device) {
  int bytes = 0;
  check(cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device), "cudaDeviceGetAttribute");
  return bytes;
}

// Sets device memory to zero, in stream order.
inline void set_to_zero(void* memory, int64_t bytes, cudaStream_t stream) {
  check(cudaMemsetAsync(memory, 0, static_cast<size_t>(bytes), stream), "cudaMemsetAsync");
}

// Launches kernel(arguments...) with `shared` bytes of dynamic shared memory per thread block; `name` is for the error
// message.
template <class... Arguments>
void launch(const char* name, void (*kernel)(Arguments...), dim3 blocks, dim3 threads, int64_t shared,
            cudaStream_t stream, std::type_identity_t<Arguments>... arguments) {
  constexpr int64_t kWithoutAsking = 48 * 1024;  // bytes that a kernel may use without this attribute
  if (shared > kWithoutAsking) {
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared)), name);
  }
  void* pointers[] = {&arguments...};
  check(cudaLaunchKernel(reinterpret_cast<const void*>(kernel), blocks, threads, pointers, shared, stream), name);
}

}  // namespace cawa_fast::cuda

#endif
