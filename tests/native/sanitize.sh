#!/usr/bin/env bash
# Builds the extension with each sanitizer and runs tests under it (GCC, Linux): make sanitize
#   AddressSanitizer, UndefinedBehaviorSanitizer: kernel_test and the tests of the operators
#   ThreadSanitizer: only kernel_test, which uses std::thread; it does not understand torch's OpenMP threads
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${PYTHON:-.venv/bin/python}
export PATH="$(dirname "$(realpath -s "$python")"):$PATH"
tests="tests/ops/test_cross_entropy.py tests/ops/test_confusion_matrix.py tests/ops/test_cam_counts.py tests/ops/test_cpu_kernels.py tests/ops/test_cpu_patches.py tests/ops/test_native.py"

for sanitizer in ASAN UBSAN TSAN; do
  build=build/$sanitizer
  echo "== $sanitizer"
  cmake --fresh -S . -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=RelWithDebInfo -DPython_EXECUTABLE="$(realpath -s "$python")" \
    -DCAWA_FAST_$sanitizer=ON -DCAWA_FAST_KERNEL_TEST=ON -DCAWA_FAST_PORTABLE=ON > /dev/null
  cmake --build "$build" > /dev/null
  "$build/kernel_test" 60
  if [ $sanitizer = TSAN ]; then continue; fi

  # A copy of the package with the instrumented extension, which the tests import instead of the source tree.
  site=$build/site
  rm -rf "$site"
  mkdir -p "$site"
  cp -r cawa_fast "$site"
  rm -f "$site"/cawa_fast/*.so
  cmake --install "$build" --prefix "$site/cawa_fast" > /dev/null
  preload=
  if [ $sanitizer = ASAN ]; then
    # The sanitizer must be loaded first, together with the C++ library; otherwise it does not see exceptions.
    preload="$(gcc -print-file-name=libasan.so) $(gcc -print-file-name=libstdc++.so)"
  fi
  # detect_leaks=0: Python does not free everything at exit. --capture=sys: with pytest's default capture, the report
  # that a sanitizer prints before it ends the process would be lost.
  # --import-mode=append: by default pytest would put the repository, with the ordinary extension, in front of $site.
  # CAWA_FAST_TEST_EXTENSION: tests/conftest.py refuses to test any other extension.
  env CAWA_FAST_TEST_EXTENSION="$(realpath "$site")" LD_PRELOAD="$preload" ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 OMP_NUM_THREADS=2 \
    "$python" -m pytest -q -x --capture=sys -p no:cacheprovider --import-mode=append -o pythonpath="$site" -k "not reference" $tests
done
