#!/usr/bin/env bash
# Pretrains the small Llama of the quick start and writes it to configs/quickstart/base, an ordinary Hugging Face folder.
#
#   configs/quickstart/pretrain.sh        (PESC=path names a binary other than build/release/pesc)
#
# The result is committed, so the quick start does not need this. It takes half an hour or so on two idle cores:
# 4000 steps of 48 rows, 12.4 million tokens of generated plain text, about 7e13 floating-point operations. A run
# that was stopped goes on from its last checkpoint when the same command is given again.
set -euo pipefail
cd "$(dirname "$0")/../.."

here=configs/quickstart
work=runs/quickstart-base
pesc=${PESC:-build/release/pesc}

mkdir -p "$work/tokenizer"
python3 "$here/generate.py" --out "$work/data" --pretrain
if [[ ! -f "$work/tokenizer/tokenizer.model" ]]; then
  # As Llama's tokenizers are: BPE, no normalisation, every space kept, bytes for what has no piece of its own.
  spm_train --input="$work/data/tokenizer.txt" --model_prefix="$work/tokenizer/tokenizer" --model_type=bpe \
    --vocab_size=1024 --byte_fallback=true --normalization_rule_name=identity --remove_extra_whitespaces=false \
    --character_coverage=1.0 --unk_id=0 --bos_id=1 --eos_id=2 --pad_id=-1 --minloglevel=1
fi

# Open MPI refuses to run as root, as one does in a container, unless told that this is meant.
[[ $(id -u) != 0 ]] || export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
mpirun -np 2 "$pesc" train --config "$here/pretrain.textproto"
rm -rf "$here/base.new"
"$pesc" export --config "$here/pretrain.textproto" --out "$here/base.new"
rm -rf "$here/base"
mv "$here/base.new" "$here/base"
du -sh "$here/base"
