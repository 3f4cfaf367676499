#!/usr/bin/env bash
# Builds for the card found here, tests, checks with compute-sanitizer, measures and profiles.
#
#   scripts/reference_run.sh OUTDIR [PART...]
#
#   build     builds in place           differential  thousands of random configurations on the GPU
#   test      the test suite            bench         attention, linear and block
#   ptx       what small cards run      models        generation and memory of whole models
#   sanitize  compute-sanitizer         profile       a trace, counters of Nsight Compute
#
# All parts but differential by default. Uses the Python in hand (PYTHON, default python3) with the
# torch it has, installs nothing, builds in place. A part that fails does not stop the others; the
# exit status is the number of parts that failed. OUTDIR gets the result files, logs.txt and
# summary.txt.
#
# Environment: PYTHON, TORCH_CUDA_ARCH_LIST (default: the card's), MAX_JOBS, TEST_FLAGS,
# FLASHINT8_REVISION ("<commit>" or "<commit>-dirty", where the tree has no .git),
# SANITIZER_FLAGS, SANITIZER_TESTS (an expression as pytest's -k), SANITIZER_SECONDS (400, of the
# whole part), SANITIZER_JOBS (3/4 of the cores), DIFFERENTIAL (2000), TEST_SECONDS (240).
set -u

if [ $# -lt 1 ]; then
  sed -n '2,/^set -u/s/^# \{0,1\}//p' "$0"
  exit 2
fi
mkdir -p "$1"
out=$(cd "$1" && pwd)
shift
[ $# -gt 0 ] || set -- build test ptx sanitize bench models profile
for part in "$@"; do
  case $part in
    build | test | ptx | sanitize | differential | bench | models | profile) ;;
    *) echo "reference_run: unknown part '$part'" && exit 2 ;;
  esac
done
wanted=" $* "

cd "$(dirname "$0")/.." || exit 2
root=$PWD
python=${PYTHON:-python3}
export FLASHINT8_CUDA=1
export TORCH_CUDA_ARCH_LIST=${TORCH_CUDA_ARCH_LIST:-native}
export MAX_JOBS=${MAX_JOBS:-$(nproc)}
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
export PYTHONDONTWRITEBYTECODE=1
work=$(mktemp -d)
started=$SECONDS

finish() {
  for log in "$work"/*.log; do
    [ -f "$log" ] || continue
    printf '\n======== %s ========\n' "$(basename "$log" .log)"
    cat "$log"
  done > "$out/logs.txt"
  rm -rf "$work"
}
trap finish EXIT
trap 'exit 143' TERM INT

# run NAME SECONDS COMMAND...: output to a log of its own; status, seconds and a note to a file.
run() {
  local name=$1 limit=$2 begin=$SECONDS status
  shift 2
  timeout --kill-after=10 "$limit" "$@" > "$work/$name.log" 2>&1
  status=$?
  [ $status -ne 124 ] && [ $status -ne 137 ] || echo "stopped after $limit s" >> "$work/$name.log"
  result "$name" $status $((SECONDS - begin)) "$(note "$name")"
  return $status
}

# The last line of a log that says something: pytest's summary, an error, what was built; or the
# last that matches a pattern.
note() {
  sed 's/\x1b\[[0-9;]*m//g' "$work/$1.log" |
    grep -E "${2:-passed|failed|rror|built|stopped after|written:|FAILS}" | tail -n 1 |
    sed -e 's/^=* *//' -e 's/ *=*$//' -e "s|$work|.|g" -e "s|$root|.|g" | cut -c1-90
}

result() {
  local word=ok
  [ "$2" -eq 0 ] || word="FAILED ($2)"
  [ "$2" != 0 ] || [ "${4#not run}" = "$4" ] || word="not run"
  printf '%s\t%s\t%s\t%s\n' "$1" "$word" "$3" "$4" >> "$work/results"
  printf '%-22s %-12s %4s s  %s\n' "$1" "$word" "$3" "$4"
}

has() { [[ $wanted == *" $1 "* ]]; }

pytest_jobs() { # as many workers as the plugin allows, if it is there
  "$python" -c 'import xdist' 2> /dev/null && echo "-n $1"
}

# Builds in place and says what the result holds.
compile='"$0" setup.py -q build_ext --inplace && "$0" -m flashint8 info'

build() { run build 300 bash -c "$compile" "$python"; }

tests() {
  # shellcheck disable=SC2046,SC2086
  run test "${TEST_SECONDS:-240}" "$python" -m pytest -q -p no:cacheprovider --require-cuda \
    $(pytest_jobs 6) ${TEST_FLAGS:-}
}

differential() {
  # shellcheck disable=SC2046
  run differential "${TEST_SECONDS:-240}" "$python" -m pytest -q -p no:cacheprovider \
    --require-cuda $(pytest_jobs 8) --differential "${DIFFERENTIAL:-2000}" -k cuda \
    tests/test_linear_differential.py tests/test_attention_differential.py \
    tests/test_kvcache_differential.py
}

# ptx VERSION CARD...: the code and the plans of small cards: a library that holds one PTX version
# only, compiled by the driver here, on plans made for each card.
ptx() {
  local copy=$work/ptx$1
  mkdir -p "$copy"
  tar -C "$root" --exclude=./build --exclude=./.git --exclude=./.venv --exclude='*.so' \
    --exclude=./results -cf - . | tar -C "$copy" -xf -
  (
    cd "$copy" || exit 1
    export TORCH_CUDA_ARCH_LIST="$1-virtual" PYTHONPATH=$copy CUDA_CACHE_PATH=$copy/cache
    export MAX_JOBS=$(((MAX_JOBS + 1) / 2))
    run "ptx_$1_build" 300 bash -c "$compile" "$python" || exit
    shift
    for card in "$@"; do
      export FLASHINT8_PLAN_CARD=$card
      # shellcheck disable=SC2046
      run "ptx_${TORCH_CUDA_ARCH_LIST%-*}_card_${card%%,*}" "${TEST_SECONDS:-240}" \
        "$python" -m pytest -q -p no:cacheprovider --require-cuda -k cuda $(pytest_jobs 3) \
        tests/test_attention.py tests/test_attention_layouts.py tests/test_int8_linear.py \
        tests/test_attention_with_kvcache.py \
        tests/test_fp16_accumulate.py
    done
  )
  rm -rf "$copy"
}

# Whether this compute-sanitizer has an option.
sanitizer_knows() { grep -q -E -- "^ *(-[a-z] \[ )?$1( |$)" "$work/sanitizer_help"; }

# Whether it can be told to check our kernels only, which leaves most of its work out: tried on a
# kernel that writes out of bounds, since a filter that finds nothing reports no errors either.
sanitizer_filters() {
  local nvcc
  nvcc=$(command -v nvcc || command -v "${CUDA_HOME:-/usr/local/cuda}/bin/nvcc") || return
  sanitizer_knows --kernel-name || return
  cat > "$work/canary.cu" << 'CANARY'
namespace flashint8 {
__global__ void out_of_bounds(int* p) { p[1 << 20] = 1; }
}  // namespace flashint8
int main() {
  int* p = nullptr;
  cudaMalloc(&p, sizeof(int));
  flashint8::out_of_bounds<<<1, 1>>>(p);
  return cudaDeviceSynchronize() != cudaSuccess;
}
CANARY
  "$nvcc" -arch=native -o "$work/canary" "$work/canary.cu" || return
  timeout 60 compute-sanitizer --error-exitcode 9 "$@" "$work/canary"
  [ $? -eq 9 ]
}

# initcheck must see what torch's kernels write.
sanitizer_filter_of() { [ "$1" = initcheck ] || echo "$sanitizer_filter"; }

# sanitize TOOL SLOT SECONDS: the tool's tests that no other slot has begun, one after the other.
sanitize() {
  local tool=$1 slot=$2 name=$1_$2 begin=$SECONDS status log=$work/$1_$2.log total ours
  local flags=(--tool "$tool" --error-exitcode 9)
  # Slots beside each other must not look for their programs on the same ports.
  ! sanitizer_knows --port || flags+=(--port $((49152 + 64 * slot)))
  ! sanitizer_knows --max-connections || flags+=(--max-connections 64)
  ! sanitizer_knows --launch-timeout || flags+=(--launch-timeout 120)
  # Nor is it an error if the others were quicker and no test is left.
  ! sanitizer_knows --require-cuda-init || flags+=(--require-cuda-init no)
  # shellcheck disable=SC2207
  flags+=($(sanitizer_filter_of "$tool"))
  ! sanitizer_knows --print-limit || flags+=(--print-limit 1000)
  if [ "$tool" = racecheck ] && sanitizer_knows --racecheck-num-workers; then
    flags+=(--racecheck-num-workers 2)
  fi
  (
    export OMP_NUM_THREADS=1
    [ "$tool" != memcheck ] || export PYTORCH_NO_CUDA_MEMORY_CACHING=1
    [ "$tool" != initcheck ] || export FLASHINT8_CLEAR_FLAGS=1
    # After an error of the device no later test of that process means anything: the others get them.
    # shellcheck disable=SC2086
    timeout --kill-after=10 "$3" compute-sanitizer "${flags[@]}" ${SANITIZER_FLAGS:-} \
      "$python" -m pytest "${sanitizer_tests[@]}" --exitfirst --share "$work/$tool.tests" \
      --reference-on-cpu
  ) > "$log" 2>&1
  status=$?
  if grep -qE 'Device not supported|not supported on this' "$log"; then
    touch "$work/$tool.refused"
    return
  fi
  total=$(sed -nE 's/.*(ERROR|RACECHECK) SUMMARY: ([0-9]+) .*/\2/p' "$log" | tail -n 1)
  ours=$(grep -cE '=========.*flashint8' "$log")
  # initcheck also sees torch's own kernels read what nothing wrote: only ours count there.
  if [ "$tool" = initcheck ] && [ "$status" = 9 ] && [ "$ours" = 0 ] &&
    ! grep -qE '[0-9]+ (failed|error)' <(grep passed "$log"); then
    status=0
  fi
  [ $status -ne 124 ] || echo "stopped after $3 s" >> "$log"
  result "$name" $status $((SECONDS - begin)) \
    "${total:-no} errors, $ours lines name our kernels; $(note "$name" 'passed|stopped')"
}

# One process at a time: a tool, then the others that still have tests.
sanitizer_slot() {
  local i tool left
  for i in 0 1 2 3; do
    tool=${sanitizer_tools[($1 + i) % 4]}
    left=$((sanitizer_end - SECONDS))
    [ "$(find "$work/$tool.tests" -type f | wc -l)" -lt "$sanitizer_cases" ] || continue
    [ $left -gt 20 ] && [ ! -f "$work/$tool.refused" ] && sanitize "$tool" "$1" "$left"
  done
}

# The four tools at once, in as many processes as the machine has room for; whichever is free takes
# the next test.
sanitizers() {
  local slot tool file ended only begin=$SECONDS
  sanitizer_end=$((SECONDS + ${SANITIZER_SECONDS:-400}))
  sanitizer_tools=(racecheck initcheck memcheck synccheck)
  if ! command -v compute-sanitizer > /dev/null; then
    echo "not run: compute-sanitizer is not installed" > "$work/sanitizers.log"
    result sanitizers 0 0 "not run: compute-sanitizer is not installed"
    return
  fi
  compute-sanitizer --help > "$work/sanitizer_help" 2>&1
  sanitizer_filter="--kernel-name kns=flashint8"
  # shellcheck disable=SC2086
  if ! sanitizer_filters $sanitizer_filter > "$work/sanitizer_filter.log" 2>&1; then
    sanitizer_filter=
  fi
  # Attention's tests take the longest.
  sanitizer_tests=(-q -p no:cacheprovider -p no:xdist --require-cuda -m sanitizer
    -k "cuda${SANITIZER_TESTS:+ and ($SANITIZER_TESTS)}" tests/test_attention.py)
  for file in $(grep -l 'mark\.sanitizer' tests/test_*.py); do
    [ "$file" = tests/test_attention.py ] || sanitizer_tests+=("$file")
  done
  run sanitizer_tests 60 "$python" -m pytest "${sanitizer_tests[@]}" --collect-only || return
  sanitizer_cases=$(grep -c '::' "$work/sanitizer_tests.log")
  for tool in "${sanitizer_tools[@]}"; do mkdir "$work/$tool.tests"; done
  for ((slot = 0; slot < ${SANITIZER_JOBS:-(cores * 3 + 3) / 4}; slot++)); do
    sanitizer_slot "$slot" &
  done
  wait
  for tool in "${sanitizer_tools[@]}"; do
    cat "$work/$tool.tests"/* > "$work/$tool.log" 2> /dev/null # no seconds: begun, not ended
    ended=$(grep -c ' s$' "$work/$tool.log")
    only=$(sanitizer_filter_of "$tool")
    if [ -f "$work/$tool.refused" ]; then
      result "$tool" 0 $((SECONDS - begin)) "not run: this host refuses the tool"
    else
      result "$tool" $((ended < sanitizer_cases)) $((SECONDS - begin)) \
        "$ended of $sanitizer_cases tests ended; filter of kernels: ${only:-none}"
    fi
  done
}

bench() { # NAME SECONDS SCRIPT FLAGS...
  local name=$1 limit=$2 script=$3
  shift 3
  run "bench_$name" "$limit" "$python" "benchmarks/$script.py" --device cuda \
    --out "$out/$name.json" "$@"
}

echo "reference run:$wanted"
if has build; then build; fi
# These may share the machine: nothing here is timed. Few threads each: idle ones spin.
cores=$(nproc)
export OMP_NUM_THREADS=$((cores > 16 ? cores / 8 : 2))
if has test; then tests & fi
if has ptx; then
  ptx 80 80,108,166912 86,30,101376 &
  ptx 89 89,24,101376 120,36,101376 &
fi
if has sanitize; then sanitizers & fi
if has differential; then differential & fi
wait
unset OMP_NUM_THREADS
# These may not.
if has bench; then
  bench attention 60 attention_bench --suite seed --time-budget 25
  bench attention_prefill 60 attention_bench --suite prefill --time-budget 25
  bench attention_decode 45 attention_bench --suite decode --time-budget 12
  bench linear 240 linear_bench --time-budget 50 --compile --compile-m 1 --compile-seconds 90 \
    --compile-shapes 4096x4096,11008x4096,4096x11008,14336x4096
  bench block 45 block_bench --time-budget 8
fi
if has models; then
  bench generate 320 generate_bench --suite reference --new-tokens 128 --iters 5 \
    --time-budget 45 --stop-after 200
  bench memory 150 memory_bench
fi
if has profile; then
  run profile 60 "$python" profiler/profile_block.py --device cuda \
    --summary-out "$out/trace_summary.json"
  run counters 90 "$python" profiler/profile_kernels.py --out "$out/counters.json"
fi

failed=$(grep -cE $'\tFAILED' "$work/results")
{
  echo "part                   status       seconds  note"
  while IFS=$'\t' read -r name word seconds text; do
    printf '%-22s %-12s %5s    %s\n' "$name" "$word" "$seconds" "$text"
  done < "$work/results"
  echo "total $((SECONDS - started)) s, $failed failed"
  for file in attention attention_prefill attention_decode linear block; do
    [ ! -f "$out/$file.json" ] || "$python" benchmarks/tables.py "$out/$file.json"
  done
} > "$out/summary.txt" 2>&1
echo
cat "$out/summary.txt"
exit "$failed"
