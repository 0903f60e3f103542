#!/usr/bin/env bash
# Set-up, then the whole road on the embedded data set: train codec, CLIP and decoder, draw, rank, report.
# Arguments go to the training: bash launch/quickstart.sh --config.seed=1
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/setup.sh

make_environment
install_once core -e .

WORKDIR="${WORKDIR:-runs/quickstart}"
"$PYTHON" -m launch.train --config=configs/quickstart.py --workdir="$WORKDIR" "$@"
"$PYTHON" -m launch.evaluate --model="$WORKDIR"
