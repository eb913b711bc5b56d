#!/usr/bin/env bash
# Installs what pesc is built with from the distribution's packages (Debian 12, Ubuntu 24.04).
#
#   cluster/install-deps.sh            to build and to run the quick start
#   cluster/install-deps.sh --tests    also what the tests need
#   cluster/install-deps.sh --real-model   also what launcher/real-model.sh needs
#   cluster/install-deps.sh --gpu      also says what the CUDA backend lacks
#
# Does nothing, and needs no root, when everything is there. Otherwise runs apt-get, as root or through sudo.
# Exit codes: 0 everything is there; 64 wrong use, or neither Debian nor Ubuntu; 74 apt-get could not install.
set -euo pipefail

with_tests=no
with_gpu=no
with_real_model=no
for argument in "$@"; do
  case $argument in
    --tests) with_tests=yes ;;
    --gpu) with_gpu=yes ;;
    --real-model) with_real_model=yes ;;
    *) echo "usage: cluster/install-deps.sh [--tests] [--gpu] [--real-model]" >&2; exit 64 ;;
  esac
done

# One need per line; where there are alternatives, separated by |, the first that the distribution has. The formatter
# and the fuzzers' compiler are those of version 14 where possible, so that the same code passes on both distributions.
needs='g++
cmake
ninja-build
ccache
pkg-config
python3
libopenmpi-dev
openmpi-bin
libopenblas-dev
libprotobuf-dev
protobuf-compiler
libgflags-dev
libgoogle-glog-dev
nlohmann-json3-dev
libsimdjson-dev
libsentencepiece-dev
sentencepiece
libpcre2-dev
libxxhash-dev
zlib1g-dev
libzstd-dev'
if [[ $with_real_model == yes ]]; then
  needs+='
python3-numpy
python3-pip'
fi
if [[ $with_tests == yes ]]; then
  needs+='
libgtest-dev
libgmock-dev
strace
iproute2
debootstrap
slurmctld
slurmd
slurm-client
munge
clang-format-14|clang-format
clang-14 libclang-rt-14-dev|clang libclang-rt-18-dev'
  # The browser that looks at the page of `pesc report`. On Ubuntu it is a snap, which cannot read files of /tmp.
  if grep -qs '^ID=debian' /etc/os-release; then needs+=$'\nchromium-headless-shell'; fi
fi

# CUDA's own packages are in NVIDIA's archive, not in the distribution's, and their versions go with the driver: what
# is missing is named, with the commands for it, and not installed.
find_file() {
  local name=$1 place
  for place in /usr/local/cuda /usr /opt/*/.venv/lib/python3*/site-packages/nvidia/*; do
    if compgen -G "$place/include/$name" > /dev/null || compgen -G "$place/bin/$name" > /dev/null; then return 0; fi
  done
  command -v "$name" > /dev/null
}
if [[ $with_gpu == yes ]]; then
  find_file nvcc || { echo "missing: nvcc and cuBLAS, 13.0 or newer: NVIDIA's cuda-toolkit package for the driver here
  (https://developer.nvidia.com/cuda-downloads); without them pesc has the CPU alone"; }
  find_file nccl.h || echo "missing: NCCL, for several ranks: apt-get install libnccl-dev (NVIDIA's archive)"
  find_file cudnn.h || echo "missing: cuDNN 9, for attention in bf16: apt-get install libcudnn9-dev-cuda-13"
  find_file cudnn_frontend.h || echo "missing: the cuDNN frontend's headers: pip download --no-deps nvidia-cudnn-frontend,
  unzip the wheel's include/ and configure with -DCUDNN_FRONTEND_INCLUDE_DIR=.../include"
fi

# dpkg-query lists what it knows of the names, one "name status" a line, and fails when it does not know one.
installed() {
  local names=("$@") count
  count=$(dpkg-query -W -f='${Package} ${db:Status-Status}\n' "${names[@]}" 2> /dev/null |
    sort -u | grep -c ' installed$' || true)
  [[ $count -ge ${#names[@]} ]]
}

# One by one: apt-cache is content when it knows one of several.
available() {
  local name
  for name in "$@"; do apt-cache show "$name" > /dev/null 2>&1 || return 1; done
}

# The needs that no alternative meets.
unmet() {
  local need alternative names alternatives met
  while IFS= read -r need; do
    met=no
    IFS='|' read -r -a alternatives <<< "$need"
    for alternative in "${alternatives[@]}"; do
      read -r -a names <<< "$alternative"
      if installed "${names[@]}"; then met=yes; fi
    done
    [[ $met == yes ]] || printf '%s\n' "$need"
  done <<< "$needs"
}

if ! command -v dpkg-query > /dev/null || ! command -v apt-get > /dev/null; then
  echo "install-deps.sh: this is neither Debian nor Ubuntu. Install these by hand (Debian's names; cmake 3.25 or" >&2
  echo "newer, g++ 12 or newer, libprotobuf with its static library), then build with cmake --preset release:" >&2
  echo "$needs" | tr '|' '\n' | sed 's/^/  /' >&2
  exit 64
fi

missing=$(unmet)
[[ -n $missing ]] || exit 0

as_root=()
if [[ $(id -u) != 0 ]]; then
  if ! command -v sudo > /dev/null; then
    echo "install-deps.sh: packages are missing, and this is neither root nor is there sudo. As root, run" >&2
    echo "  apt-get install --no-install-recommends $(sed "s/|.*//" <<< "$missing" | tr "\n" " ")" >&2
    exit 74
  fi
  as_root=(sudo)
fi

log=$(mktemp)
trap 'rm -f "$log"' EXIT
apt() {
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
    apt-get -qq -o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0 "$@" > "$log" 2>&1
}

updated=no
update() {
  updated=yes
  echo "apt-get update"
  apt update || { cat "$log" >&2; echo "install-deps.sh: apt-get update failed; going on with the lists there are" >&2; }
}

# Of each missing need, the first alternative that the lists have; the first one, for apt-get to complain about, if none.
choose() {
  local need alternative names alternatives chosen
  packages=()
  complete=yes
  while IFS= read -r need; do
    chosen=''
    IFS='|' read -r -a alternatives <<< "$need"
    for alternative in "${alternatives[@]}"; do
      read -r -a names <<< "$alternative"
      if [[ -z $chosen ]] && available "${names[@]}"; then chosen=$alternative; fi
    done
    if [[ -z $chosen ]]; then
      complete=no
      chosen=${alternatives[0]}
    fi
    read -r -a names <<< "$chosen"
    packages+=("${names[@]}")
  done <<< "$missing"
}

choose
if [[ $complete == no ]]; then
  update
  choose
fi
echo "apt-get install ${packages[*]}"
if ! apt install -y --no-install-recommends "${packages[@]}"; then
  # Lists that are older than the archive name files that are gone.
  if [[ $updated == no ]]; then
    update
    choose
    apt install -y --no-install-recommends "${packages[@]}" || true
  fi
fi
missing=$(unmet)
if [[ -n $missing ]]; then
  cat "$log" >&2
  echo "install-deps.sh: apt-get could not install:" >&2
  sed 's/^/  /' <<< "$missing" >&2
  exit 74
fi
