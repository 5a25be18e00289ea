// Memory for large gradients, kept from one training step to the next.
//
// The C library returns a large block to the operating system when it is freed, and whoever writes to the next one pays
// a page fault per 4 KiB: 18 ms for the gradient of 2x19x512x1024 (two threads of a virtual Zen 4), three times as long
// as computing it. Large pages (madvise) make that 5 ms; a block that was written to before costs nothing. So one freed
// block is kept, process-wide, the most recent; a training step frees its gradient long before it needs the next.
#include <atomic>
#include <cstdlib>
#include <memory>
#include <new>

#include "ops.h"
#include "tensors.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

// In libtorch_cpu from torch 2.11 on, with this signature in torch/csrc/stable/c/shim.h; null in 2.10.
extern "C" __attribute__((weak)) AOTITorchError torch_from_blob(
    void* data, int64_t ndim, const int64_t* sizes, const int64_t* strides, int64_t storage_offset, int32_t dtype,
    int32_t device_type, int32_t device_index, AtenTensorHandle* ret, int32_t layout, const uint8_t* opaque_metadata,
    int64_t opaque_metadata_size, void (*deleter)(void* data, void* context), void* deleter_context);

namespace cawa_fast {
namespace {

constexpr size_t kLargePage = size_t{2} << 20;

// Smaller ones come from the C library's own store of freed memory.
constexpr size_t kWorthKeeping = size_t{4} << 20;

struct Block {
  explicit Block(size_t bytes) : size((bytes + kLargePage - 1) / kLargePage * kLargePage) {
    data = std::aligned_alloc(kLargePage, size);
    if (!data) throw std::bad_alloc();
#if defined(__linux__)
    madvise(data, size, MADV_HUGEPAGE);  // advice: where it is not followed, nothing is lost
#endif
  }
  Block(const Block&) = delete;
  ~Block() { std::free(data); }

  size_t size;
  void* data;
};

std::atomic<Block*> kept{nullptr};

void keep(void*, void* block) { delete kept.exchange(static_cast<Block*>(block)); }

// The kept block if it fits, without much to spare; else a new one.
std::unique_ptr<Block> take(size_t bytes) {
  std::unique_ptr<Block> block(kept.exchange(nullptr));
  if (block && block->size >= bytes && block->size <= bytes + bytes / 4 + kLargePage) return block;
  block.reset();  // before the next, so that both are never there together
  return std::make_unique<Block>(bytes);
}

}  // namespace

Tensor new_gradient(const Tensor& like) {
  const Tensor plain = torch::stable::empty_like(like);  // for its strides: nobody touches its memory
  const size_t bytes = plain.numel() * plain.element_size();
  if (bytes < kWorthKeeping || torch_from_blob == nullptr) return plain;
  std::unique_ptr<Block> block = take(bytes);
  const auto number = [](auto value) { return torch::stable::detail::to<int32_t>(torch::stable::detail::from(value)); };
  AtenTensorHandle handle;
  TORCH_ERROR_CODE_CHECK(torch_from_blob(block->data, plain.dim(), plain.sizes().data(), plain.strides().data(), 0,
                                         number(plain.scalar_type()), number(plain.device().type()),
                                         plain.device().index(), &handle, number(torch::headeronly::Layout::Strided),
                                         nullptr, 0, &keep, block.get()));
  block.release();
  return Tensor(handle);
}

void release_gradient_memory() { delete kept.exchange(nullptr); }

}  // namespace cawa_fast
