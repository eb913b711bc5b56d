#!/bin/sh
# golden_gpu_refusals.sh GOLDEN_CHECK CASES [FROZEN]: the wide bounds of BF16 and of FP8 GEMMs on a GPU (golden_bounds.h) notice one
# wrong value too: a case passes as it is, and with a value of a quantity spoilt exactly that quantity is called wrong, exit code 1.
# The choice of experts is left out: 5 % of the tokens may choose otherwise, more with FP8. With FROZEN, fp8 or nf4, the weights are held
# so; of gradients and final parameters a tensor is spoilt whole: its gradient, or its update, is not there.
set -u
program=$1 case=$2/llama-gqa frozen=${3:-}
case $frozen in
  fp8) numbers='--compute fp8 --frozen fp8' ;;
  nf4) numbers='--compute bf16 --frozen nf4' ;;
  *) numbers='--compute bf16' ;;
esac
out=$(mktemp) && trap 'rm -f "$out"' EXIT
status=0
fail() {
  echo "FAILED: $*"
  cat "$out"
  status=1
}
# run CODE WRONG FLAGS...: that exit code, and of the ten quantities exactly WRONG is called wrong, the others ok.
run() {
  want=$1 wrong=$2
  shift 2
  "$program" "$case" --device cuda $numbers "$@" >"$out" 2>&1
  code=$?
  [ $code -eq "$want" ] || fail "$case $*: exit code $code, not $want"
  found=$(awk '$0 ~ / WRONG / { print $1 }' "$out")
  [ "$found" = "$wrong" ] || fail "$case $*: called wrong: '$found', not '$wrong'"
  judged=$(grep -cE ' (ok|WRONG) ' "$out")
  [ "$judged" -eq 10 ] || fail "$case $*: $judged quantities compared"
  grep -E ' WRONG ' "$out"
}
run 0 ''
for quantity in dense.logits dense.loss pesc.logits top_weights grad curve.ce curve.aux_loss curve.grad_norm final; do
  run 1 $quantity --corrupt $quantity
done
exit $status
