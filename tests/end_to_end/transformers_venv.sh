#!/usr/bin/env bash
# Makes, once, a virtual environment with transformers, PEFT and torch, outside of the tree, and prints its Python. PyPI has no torch
# for the CPU alone: this is the one for CUDA 13, without most of the libraries that it would bring; it finds those of the machine.
#
#   tests/end_to_end/transformers_venv.sh [FOLDER]       by default ~/.cache/pesc/transformers-5.24.0
set -euo pipefail
folder=${1:-${XDG_CACHE_HOME:-$HOME/.cache}/pesc/transformers-5.24.0}
if [[ ! -e $folder/complete ]]; then
  rm -rf "$folder"
  python3 -m venv "$folder"
  pip() { "$folder/bin/pip" --quiet --disable-pip-version-check install "$@" >&2; }
  pip --no-deps torch==2.15.0 nvidia-nccl-cu13 nvidia-cufile nvidia-nvshmem-cu13 nvidia-cusparselt-cu13
  pip transformers==5.24.0 sympy networkx jinja2 fsspec psutil
  pip --no-deps peft==0.21.2 accelerate
  "$folder/bin/python" -c 'import peft, torch, transformers' >&2
  touch "$folder/complete"
fi
echo "$folder/bin/python"
