#!/usr/bin/env bash
# Makes, once, a virtual environment with transformers, PEFT and torch, outside of the tree, and prints its Python. PyPI has no torch
# for the CPU alone: this is the one for CUDA 13, without most of the libraries that it would bring; it finds those of the machine.
#
#   tests/end_to_end/transformers_venv.sh [VERSION]      of transformers: 5.24.0 unless given, or 4.57.6
#
# They are in ~/.cache/pesc/transformers-VERSION. 4.57.6 takes torch and PEFT from the environment of 5.24.0, or from that of the
# program PESC_TRANSFORMERS_PYTHON. Exit codes: 0 printed; 64 there is no such version here; else pip's.
set -euo pipefail
newest=5.24.0 version=${1:-5.24.0}
case $version in
  "$newest" | 4.57.6) ;;
  *) echo "transformers_venv.sh: VERSION is $newest or 4.57.6, not '$version'" >&2; exit 64 ;;
esac
folder=${XDG_CACHE_HOME:-$HOME/.cache}/pesc/transformers-$version
if [[ $version != "$newest" ]]; then
  python=${PESC_TRANSFORMERS_PYTHON:-$("$0")}
  below=$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
  folder+=-$(sha256sum <<< "$below" | cut -c1-8)
fi
# Tests that run side by side make it once.
mkdir -p "$(dirname "$folder")"
exec 9> "$folder.lock"
flock 9
if [[ ! -e $folder/complete ]]; then
  rm -rf "$folder"
  "${python:-python3}" -m venv "$folder"
  pip() { "$folder/bin/pip" --quiet --disable-pip-version-check install "$@" >&2; }
  if [[ $version == "$newest" ]]; then
    pip --no-deps torch==2.15.0 nvidia-nccl-cu13 nvidia-cufile nvidia-nvshmem-cu13 nvidia-cusparselt-cu13
    pip transformers==$newest sympy networkx jinja2 fsspec psutil
    pip --no-deps peft==0.21.2 accelerate
  else
    echo "$below" > "$("$folder/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/below.pth"
    pip "transformers==$version"
  fi
  "$folder/bin/python" -c 'import peft, torch, transformers, sys; assert transformers.__version__ == sys.argv[1]' "$version" >&2
  touch "$folder/complete"
fi
echo "$folder/bin/python"
