// Selection of the instruction set at run time.
#pragma once

#include <string>
#include <vector>

#include "kernels.h"

namespace cawa_fast {

// The instruction sets that both this build and this processor support, the best one last.
std::vector<const Kernels*> supported_kernels();

// The kernels in use: those of the best instruction set, or of CAWA_FAST_CPU in the environment. Throws
// std::invalid_argument if that names no supported one. Thread-safe.
const Kernels& kernels();

// Switches to the instruction set `name`, for tests and benchmarks. Throws std::invalid_argument if it is not
// supported.
void use_instruction_set(const std::string& name);

}  // namespace cawa_fast
