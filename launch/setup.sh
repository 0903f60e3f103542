# Sourced by the scripts beside it: finds Python, makes .venv and installs into it what is not there yet.
# Afterwards $PYTHON is the environment's interpreter. DALLE_JAX_VENV names another folder than .venv.
# shellcheck shell=bash

VENV="${DALLE_JAX_VENV:-.venv}"

is_new_enough() {
  "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

# find_python [MODULES]: the first interpreter that is 3.11 or newer and has these modules, in Python's words; the versions
# that the tests run with first.
find_python() {
  local candidate incapable=""
  for candidate in ${PYTHON:-} python3.13 python3.12 python3.11 python3 python "$VENV/bin/python"; do
    is_new_enough "$candidate" || continue
    if "$candidate" -c "import ${1:-sys}" 2>/dev/null; then
      echo "$candidate"
      return
    fi
    incapable="${incapable:-$candidate}"
  done
  if [[ -z "$incapable" ]]; then
    echo "error: Python 3.11 or newer is needed; install one (3.13, say) or name one: PYTHON=/path/to/python bash $0" >&2
  else
    candidate="$("$incapable" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')"
    echo "error: $incapable cannot make environments: install its venv package (Debian: apt-get install $candidate)" >&2
  fi
  return 2
}

# install_once NAME REQUIREMENTS...: skipped where the same was installed with the same pyproject and constraints.
install_once() {
  local name="$1" stamp wanted
  shift
  stamp="$VENV/.installed-$name"
  wanted="$(cat pyproject.toml constraints.txt <(echo "$*") | cksum)"
  if [[ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]]; then
    echo "installing $* into $VENV" >&2
    "$PYTHON" -m pip install --quiet --disable-pip-version-check -c constraints.txt "$@"
    echo "$wanted" >"$stamp"
  fi
}

make_environment() {
  if ! is_new_enough "$VENV/bin/python"; then
    local base
    base="$(find_python "ensurepip, venv")" || exit
    echo "making $VENV with $("$base" --version)" >&2
    "$base" -m venv --clear "$VENV"
  fi
  PYTHON="$VENV/bin/python"
}
