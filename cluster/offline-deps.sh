#!/usr/bin/env bash
# For a GPU machine that has CUDA, MPI and the rest but no network: collects in FOLDER what such machines lack (gflags,
# glog, libunwind, xxhash, simdjson, zlib and zstd, from Debian's packages, unpacked; the cuDNN frontend's headers, from PyPI). Run it where
# packages can be had, take the folder along, and give it to tests/gpu/device.sh --deps FOLDER, which also says what cmake
# wants to be told of it.
#
#   cluster/offline-deps.sh FOLDER
#   cluster/offline-deps.sh --frontend FOLDER    the cuDNN frontend's headers alone, where the rest is installed
#
# Exit codes: 0 everything is there; 64 wrong use; 74 a package could not be fetched.
set -euo pipefail
only=all
if [[ ${1:-} == --frontend ]]; then
  only=frontend
  shift
fi
[[ $# == 1 && $1 != -* ]] || { echo "usage: cluster/offline-deps.sh [--frontend] FOLDER" >&2; exit 64; }
mkdir -p "$1"
folder=$(cd "$1" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
if [[ $only == all ]]; then
  apt-get download -qq libgflags-dev libgflags2.2 libgoogle-glog-dev libgoogle-glog0v6 libunwind-dev libunwind8 \
    libxxhash-dev libxxhash0 libpcre2-dev libpcre2-8-0 libsimdjson-dev libsimdjson14 zlib1g-dev zlib1g libzstd-dev libzstd1 2> apt.log || { cat apt.log >&2; exit 74; }
  for package in ./*.deb; do dpkg -x "$package" "$folder"; done
  rm -rf "$folder/usr/share/doc" "$folder/usr/share/man"
fi
# A wheel is a zip; only its headers are wanted.
python3 -m pip download -q --no-deps --only-binary=:all: --python-version 3.12 --platform manylinux_2_28_x86_64 \
  --platform manylinux_2_27_x86_64 --platform manylinux2014_x86_64 -d . nvidia-cudnn-frontend > pip.log 2>&1 ||
  { cat pip.log >&2; exit 74; }
python3 - "$folder" <<'PY'
import glob, sys, zipfile
with zipfile.ZipFile(glob.glob("*.whl")[0]) as wheel:
    headers = [n for n in wheel.namelist() if n.startswith("include/")]
    if not any(n.endswith("/cudnn_frontend.h") for n in headers):
        sys.exit("offline-deps.sh: no cudnn_frontend.h in " + wheel.filename)
    wheel.extractall(sys.argv[1], headers)
PY
du -sh "$folder"
