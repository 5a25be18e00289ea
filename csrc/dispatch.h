// Which instruction set runs.
#pragma once

#include <string>
#include <vector>

#include "kernels.h"

namespace cawa_fast {

// Those that both this build and this processor have, the best one last.
std::vector<const Kernels*> supported_kernels();

// The one that runs: the best, or CAWA_FAST_CPU from the environment. std::invalid_argument if that names no supported
// one. Any thread may call it.
const Kernels& kernels();

// From now on another one, for tests and benchmarks.
void use_instruction_set(const std::string& name);

}  // namespace cawa_fast
