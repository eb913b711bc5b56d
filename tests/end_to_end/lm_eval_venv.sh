#!/usr/bin/env bash
# Makes, once, a virtual environment with lm-evaluation-harness over the one of transformers_venv.sh (or over that of the program
# PESC_TRANSFORMERS_PYTHON), outside of the tree, and prints its Python.
#
#   tests/end_to_end/lm_eval_venv.sh
set -euo pipefail
version=0.4.13
python=${PESC_TRANSFORMERS_PYTHON:-$("$(dirname "$0")/transformers_venv.sh")}
below=$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
folder=${PESC_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/pesc}/lm-eval-$version-$(sha256sum <<< "$below" | cut -c1-8)
if [[ ! -e $folder/complete ]]; then
  rm -rf "$folder"
  "$python" -m venv "$folder"
  # torch and transformers are those of the environment below.
  echo "$below" > "$("$folder/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/below.pth"
  pip() { "$folder/bin/pip" --quiet --disable-pip-version-check install "$@" >&2; }
  pip "lm_eval==$version"
  "$folder/bin/python" -c 'import accelerate' 2> /dev/null || pip --no-deps accelerate
  "$folder/bin/python" -c 'import peft' 2> /dev/null || pip --no-deps peft==0.21.2
  "$folder/bin/python" -c 'import lm_eval, lm_eval.models.huggingface' >&2
  touch "$folder/complete"
fi
echo "$folder/bin/python"
