#!/usr/bin/env bash
# The one step of an image, for Dockerfile and pesc.def: in the copy of the repository that this script lies in, installs what pesc
# is built with, builds it there, and puts it into the PATH. The folder must stay: pesc looks for configs/models in it. Root, network.
#
#   cluster/container/build.sh cpu [-D...]     without CUDA; from Debian 12 or Ubuntu 24.04
#   cluster/container/build.sh cuda [-D...]    from an image of NVIDIA's with the CUDA toolkit, NCCL and cuDNN
#
# -D... goes to cmake, as -DPESC_MARCH=x86-64-v3 for an image that other processors run too. No GPU is needed here.
# Exit codes: 0 pesc is there; 64 wrong use; else that of the step that failed.
set -euo pipefail
cd "$(dirname "$0")/../.."
device=${1:-}
case $device in
  cpu)
    cluster/install-deps.sh
    options=(-DPESC_CUDA=OFF)
    ;;
  cuda)
    cluster/install-deps.sh --gpu
    if ! command -v pip3 > /dev/null; then
      apt-get -qq update
      DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends python3-pip > /dev/null
    fi
    cluster/offline-deps.sh --frontend /opt/cudnn-frontend
    options=(-DPESC_CUDA=ON -DCUDNN_FRONTEND_INCLUDE_DIR=/opt/cudnn-frontend/include)
    ;;
  *) sed -n '2,/^set/p' "$0" | sed '$d;s/^# \{0,1\}//' >&2; exit 64 ;;
esac
shift
cmake --preset release "${options[@]}" "$@"
cmake --build --preset release --target pesc
ln -sfn "$PWD/build/release/pesc" /usr/local/bin/pesc
# What only the build needed. The packages stay: pesc is linked to their libraries.
rm -rf /var/lib/apt/lists/* /root/.cache/ccache /root/.ccache
OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 pesc doctor  # ends with an error where MPI does not start
