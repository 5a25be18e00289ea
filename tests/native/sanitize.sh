#!/usr/bin/env bash
# Builds the extension with each sanitizer and runs what it can watch (GCC, Linux): make sanitize
#   AddressSanitizer, UndefinedBehaviorSanitizer: the tests of the operators, and the kernels alone
#   ThreadSanitizer: the kernels alone, shared by std::threads; it does not know torch's OpenMP threads
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${PYTHON:-.venv/bin/python}
export PATH="$(dirname "$(realpath -s "$python")"):$PATH"
tests="tests/ops/test_cross_entropy.py tests/ops/test_confusion_matrix.py tests/ops/test_cam_counts.py tests/ops/test_cpu_kernels.py tests/ops/test_native.py"

for sanitizer in ASAN UBSAN TSAN; do
  build=build/$sanitizer
  echo "== $sanitizer"
  cmake --fresh -S . -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=RelWithDebInfo -DPython_EXECUTABLE="$(realpath -s "$python")" \
    -DCAWA_FAST_$sanitizer=ON -DCAWA_FAST_KERNEL_TEST=ON -DCAWA_FAST_PORTABLE=ON > /dev/null
  cmake --build "$build" > /dev/null
  "$build/kernel_test" 60
  if [ $sanitizer = TSAN ]; then continue; fi

  # the package beside the instrumented extension, in place of the one in the source tree
  site=$build/site
  rm -rf "$site"
  mkdir -p "$site"
  cp -r cawa_fast "$site"
  rm -f "$site"/cawa_fast/*.so
  cmake --install "$build" --prefix "$site/cawa_fast" > /dev/null
  preload=
  if [ $sanitizer = ASAN ]; then
    # first in the process, and the C++ library with it, or exceptions are not seen
    preload="$(gcc -print-file-name=libasan.so) $(gcc -print-file-name=libstdc++.so)"
  fi
  # Python does not free everything at its end. --capture=sys: or what a sanitizer says before it ends the process is
  # lost with pytest's own capture.
  env LD_PRELOAD="$preload" ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 OMP_NUM_THREADS=2 \
    "$python" -m pytest -q -x --capture=sys -p no:cacheprovider -o pythonpath="$site" -k "not reference" $tests
done
