#!/bin/sh
# Builds the CPU part under AddressSanitizer and UndefinedBehaviorSanitizer, into a folder of its
# own, and runs the tests marked `sanitizer` on it, once for each instruction set that this machine
# has. Arguments go to pytest. GCC only.
set -eu
PY=${PY:-python}
CXX=${CXX:-c++}
lib=$PWD/build/sanitized

echo "flashint8: building the CPU part with -fsanitize=address,undefined"
FLASHINT8_CUDA=0 FLASHINT8_SANITIZE=address,undefined \
  "$PY" setup.py -q build --build-base build/sanitized-base --build-lib "$lib"

# torch's allocator keeps what it has: leaks are not looked for. libstdc++ comes early so that
# exceptions thrown in a library are seen by the sanitizer.
export LD_PRELOAD="$("$CXX" -print-file-name=libasan.so) $("$CXX" -print-file-name=libstdc++.so.6)"
export ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1
export UBSAN_OPTIONS=print_stacktrace=1
export PYTHONPATH=$lib
# -P: the working directory, with the ordinary build in it, stays out of sys.path.
for isa in $("$PY" -P -c 'import flashint8; print(*flashint8._C.cpu_isa_supported())'); do
  echo "flashint8: sanitized tests, $isa"
  FLASHINT8_CPU_ISA=$isa "$PY" -P -m pytest -m sanitizer -p no:cacheprovider --durations=0 \
    --durations-min=5 "$@"
done
