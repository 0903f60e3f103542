#!/usr/bin/env bash
# Set-up, then lint, types, documentation and every test of the default tier.
#   --parity   install torch, the peers and the TPU compiler as well, so that the tests that need them run
#   --slow     run the slow tests too, one after the other (and install what checks the cluster starters and gs://)
# Other arguments go to pytest: bash launch/test.sh tests/data -k webdataset
# Two processes share the work; TEST_WORKERS=N names another number, each of which takes up to 2.5 GB.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/setup.sh

parity=false
slow=false
arguments=()
for argument in "$@"; do
  case "$argument" in
    --parity) parity=true ;;
    --slow) slow=true ;;
    *) arguments+=("$argument") ;;
  esac
done

make_environment
install_once dev -e ".[dev]"
if $slow; then
  install_once clusters -e ".[dev,clusters]"
  install_once gcs -e ".[dev,gcs]"
fi
if $parity; then
  # In this order, or torchvision and the peers would bring the CUDA build of torch with them.
  install_once torch torch
  install_once torchvision --no-deps torchvision
  install_once tpu -e ".[dev,tpu]"
  install_once parity -e ".[dev,parity]"
  export DALLE_JAX_PARITY=1
  install_once peers --no-deps DALL-E clip-anytorch dalle-pytorch axial_positional_embedding rotary-embedding-torch g-mlp-pytorch
fi

failed=()
check() {
  local name="$1" code=0
  shift
  echo "== $name"
  "$@" || code=$?
  ((code < 128)) || exit "$code" # ended by a signal: whoever sent it wants no more of this
  ((code == 0)) || failed+=("$name")
}
slow_tests() {
  "$PYTHON" -m pytest -m slow "$@" || (($? == 5))  # 5: none of those asked for is slow
}
check "lint" "$PYTHON" -m ruff check .
check "format" "$PYTHON" -m ruff format --check .
check "types" "$PYTHON" -m pyrefly check
check "documentation" env NO_MKDOCS_2_WARNING=1 "$PYTHON" -m mkdocs build --strict --quiet --site-dir "$VENV/site"
# A file's tests stay together, because they share what is compiled.
check "tests" "$PYTHON" -m pytest -n "${TEST_WORKERS:-2}" --dist loadfile ${arguments[@]+"${arguments[@]}"}
if $slow; then
  # Several of these start processes that wait for each other, and time what they do.
  check "slow tests" slow_tests ${arguments[@]+"${arguments[@]}"}
fi

if ((${#failed[@]})); then
  echo "failed: ${failed[*]}" >&2
  exit 1
fi
