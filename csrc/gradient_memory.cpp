// Memory for large gradients, reused from one training step to the next.
//
// When a large block is freed, the C library returns it to the operating system, and writing to the next block costs a
// page fault per 4 KiB. For the gradient of 2x19x512x1024 that is 18 ms (two threads of a virtual Zen 4), three times
// as long as computing it. Huge pages (madvise) reduce it to 5 ms; a block that was written to before costs nothing.
// One freed block is therefore kept per process, the most recent one. A training step frees its gradient long before
// the next step needs one.
#include <atomic>
#include <cstdlib>
#include <memory>
#include <new>

#include "ops.h"
#include "tensors.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

// Exported by libtorch_cpu from torch 2.11 on, with this signature in torch/csrc/stable/c/shim.h; null in 2.10.
extern "C" __attribute__((weak)) AOTITorchError torch_from_blob(
    void* data, int64_t ndim, const int64_t* sizes, const int64_t* strides, int64_t storage_offset, int32_t dtype,
    int32_t device_type, int32_t device_index, AtenTensorHandle* ret, int32_t layout, const uint8_t* opaque_metadata,
    int64_t opaque_metadata_size, void (*deleter)(void* data, void* context), void* deleter_context);

namespace cawa_fast {
namespace {

constexpr size_t kLargePage = size_t{2} << 20;

// The C library itself keeps smaller blocks for reuse.
constexpr size_t kWorthKeeping = size_t{4} << 20;

struct Block {
  explicit Block(size_t bytes) : size((bytes + kLargePage - 1) / kLargePage * kLargePage) {
    data = std::aligned_alloc(kLargePage, size);
    if (!data) throw std::bad_alloc();
#if defined(__linux__)
    madvise(data, size, MADV_HUGEPAGE);  // only advice; its failure is harmless
#endif
  }
  Block(const Block&) = delete;
  ~Block() { std::free(data); }

  size_t size;
  void* data;
};

std::atomic<Block*> kept{nullptr};

// The deleter of the tensors: keeps the block and frees the one kept before.
void keep(void*, void* block) { delete kept.exchange(static_cast<Block*>(block)); }

// The kept block if it is large enough without wasting much; otherwise a new one.
std::unique_ptr<Block> take(size_t bytes) {
  std::unique_ptr<Block> block(kept.exchange(nullptr));
  if (block && block->size >= bytes && block->size <= bytes + bytes / 4 + kLargePage) return block;
  block.reset();  // free it before allocating, so that both never exist together
  return std::make_unique<Block>(bytes);
}

}  // namespace

Tensor new_gradient(const Tensor& like) {
  const Tensor plain = torch::stable::empty_like(like);  // read for its strides; its memory stays untouched
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
