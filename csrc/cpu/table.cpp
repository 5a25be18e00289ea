// The kernel table of one instruction set.
#include "../kernels.h"
#include "simd.h"

#define CAWA_FAST_TEXT_OF(x) #x
#define CAWA_FAST_TEXT(x) CAWA_FAST_TEXT_OF(x)

namespace cawa_fast {
namespace CAWA_FAST_ISA {

int64_t cross_entropy_tile();
int64_t cross_entropy_scratch(int64_t classes);
void cross_entropy(const CrossEntropy&, int64_t begin, int64_t end, float* scratch);
int64_t resized_cross_entropy_scratch(const ResizedCrossEntropy&);
void resized_cross_entropy(const ResizedCrossEntropy&, int64_t begin, int64_t end, float* scratch);
int64_t confusion_matrix_scratch(const ConfusionMatrix&);
void confusion_matrix(const ConfusionMatrix&, int64_t begin, int64_t end, float* scratch);
int64_t cam_scratch(const CamCounts&);
void cam_labels(const CamCounts&, int64_t begin, int64_t end);
void cam_scales(const CamCounts&, int64_t begin, int64_t end, float* scratch);
void cam_counts(const CamCounts&, int64_t begin, int64_t end, float* scratch, int64_t* tp, int64_t* predicted);

extern const Kernels kernels;
const Kernels kernels = {
    CAWA_FAST_TEXT(CAWA_FAST_ISA),
    kLanes,
    cross_entropy_tile,
    cross_entropy_scratch,
    cross_entropy,
    resized_cross_entropy_scratch,
    resized_cross_entropy,
    confusion_matrix_scratch,
    confusion_matrix,
    cam_scratch,
    cam_labels,
    cam_scales,
    cam_counts,
};

}  // namespace CAWA_FAST_ISA
}  // namespace cawa_fast
