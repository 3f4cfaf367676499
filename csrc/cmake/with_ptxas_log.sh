#!/bin/sh
# Runs a compiler command, keeps what it says in <object>.ptxas, and shows all of that but ptxas'
# statistics. CMake uses it as nvcc's launcher.
object=
previous=
for argument in "$@"; do
  [ "$previous" = "-o" ] && object=$argument
  previous=$argument
done
[ -n "$object" ] || exec "$@"

"$@" >"$object.ptxas" 2>&1
status=$?
grep -v -e '^ptxas info' -e '^ *[0-9]* bytes stack frame' "$object.ptxas" >&2
exit $status
