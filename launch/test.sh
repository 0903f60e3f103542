#!/usr/bin/env bash
# Set-up, then lint, types, documentation and every test of the default tier.
#   --parity   install torch, the peers and the TPU compiler as well, so that the tests that need them run
#   --slow     run the slow tests too (and install what checks the cluster starters and paths at gs://)
# Other arguments go to pytest: bash launch/test.sh tests/data -k webdataset
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/setup.sh

parity=false
slow=false
tier=(-m "not slow")
arguments=()
for argument in "$@"; do
  case "$argument" in
    --parity) parity=true ;;
    --slow)
      slow=true
      tier=(-m "")
      ;;
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
check "lint" "$PYTHON" -m ruff check .
check "format" "$PYTHON" -m ruff format --check .
check "types" "$PYTHON" -m pyrefly check
check "documentation" env NO_MKDOCS_2_WARNING=1 "$PYTHON" -m mkdocs build --strict --quiet --site-dir "$VENV/site"
check "tests" "$PYTHON" -m pytest "${tier[@]}" ${arguments[@]+"${arguments[@]}"}

if ((${#failed[@]})); then
  echo "failed: ${failed[*]}" >&2
  exit 1
fi
