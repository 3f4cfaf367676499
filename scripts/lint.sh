#!/bin/sh
# Style and structure of every file git would know. --fix repairs what a tool can.
set -u
PY=${PY:-python}
bin=$(dirname "$("$PY" -c 'import sys; print(sys.executable)')")
PATH=$bin:$PATH
failed=0
check() {
  name=$1
  shift
  if output=$("$@" 2>&1); then
    printf 'lint: %-14s ok\n' "$name"
  else
    failed=1
    printf 'lint: %-14s FAILED\n%s\n' "$name" "$output"
  fi
}
native=$(find csrc benchmarks -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh' | sort)

if [ "${1:-}" = --fix ]; then
  ruff check --quiet --fix .
  ruff format --quiet .
  # shellcheck disable=SC2086
  clang-format -i $native
fi
# The files that clang-format would change, one a line.
formatted() {
  # shellcheck disable=SC2086
  clang-format --dry-run -Werror $native 2>&1 | sed -n 's/^\([^: ]*\):[0-9].*error:.*/\1/p' |
    sort | uniq -c | awk '{ print $2 ": " $1 " places to format"; bad = 1 } END { exit bad }'
}

check "ruff check" ruff check --output-format concise .
check "ruff format" ruff format --check --quiet .
check mypy "$PY" -m mypy
check clang-format formatted
check walls "$PY" scripts/check_walls.py
exit $failed
