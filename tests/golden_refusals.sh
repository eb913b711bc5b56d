#!/bin/sh
# golden_refusals.sh GOLDEN_CHECK CASES MPIRUN...: golden_check notices one wrong value in any tensor of each quantity
# (only that quantity is called wrong, exit 1), and refuses layouts and folders that cannot be, with one message.
set -u
program=$1 cases=$2
shift 2
mpirun=$*
out=$(mktemp) && trap 'rm -f "$out"' EXIT
status=0
fail() {
  echo "FAILED: $*"
  cat "$out"
  status=1
}

quantities="dense.logits dense.loss pesc.logits top_experts top_weights grad curve.ce curve.aux_loss curve.grad_norm
final"
# Of every tensor of every quantity, and of every step of the curve, one value.
for case in "$cases"/*/; do
  "$program" "$case" --threads 1 --corrupt each >"$out" 2>&1 || fail "$case --corrupt each: exit code $?, not 0"
  for quantity in $quantities; do
    # What was spoilt is what was compared, and there are several of what has several.
    awk -v q="$quantity" '
      $1 == q && $2 == "spoilt" { spoilt = $4; noticed = $NF }
      $1 == q && $2 != "spoilt" { compared = $2 }
      END { exit !(compared > (q ~ /grad$|final|curve/ ? 10 : 0) && spoilt == compared && noticed == compared) }' "$out" ||
      fail "$case --corrupt each: $quantity"
  done
done
# The program itself ends with 1. A quantity each with the next case.
set --
for quantity in $quantities; do
  [ $# -gt 0 ] || set -- "$cases"/*/
  case=$1
  shift
  "$program" "$case" --threads 1 --corrupt "$quantity" >"$out" 2>&1
  code=$?
  [ $code -eq 1 ] || fail "$case --corrupt $quantity: exit code $code, not 1"
  wrong=$(awk '$0 ~ / WRONG / { print $1 }' "$out")
  [ "$wrong" = "$quantity" ] || fail "$case --corrupt $quantity: called wrong: '$wrong'"
  awk -v q="$quantity" '$1 != q && $3 + 0 < 1 && $5 ~ /e-/ { bad = 1 } END { exit bad }' "$out" ||
    fail "$case --corrupt $quantity: a quantity without values"
done
# The wide bounds of quantised weights (golden_bounds.h) notice one wrong value of a quantity too, and a tensor whose gradient, or whose
# update, is not there. Choices of experts are left out: a share of them may differ.
for frozen in fp8 nf4; do
  for quantity in $quantities; do
    [ $quantity != top_experts ] || continue
    "$program" "$cases/llama-gqa" --threads 1 --frozen $frozen --corrupt "$quantity" >"$out" 2>&1
    code=$?
    [ $code -eq 1 ] || fail "--frozen $frozen --corrupt $quantity: exit code $code, not 1"
    wrong=$(awk '$0 ~ / WRONG / { print $1 }' "$out")
    [ "$wrong" = "$quantity" ] || fail "--frozen $frozen --corrupt $quantity: called wrong: '$wrong'"
  done
done

# refused CODE WORDS RANKS ARGUMENTS...: that exit code, and exactly one message, which has WORDS in it.
refused() {
  want=$1 words=$2 ranks=$3
  shift 3
  $mpirun -np "$ranks" "$program" "$@" >"$out" 2>&1
  code=$?
  [ $code -eq "$want" ] || fail "$*: exit code $code, not $want"
  messages=$(grep -c '^golden_check: ' "$out")
  [ "$messages" -eq 1 ] || fail "$*: $messages messages"
  grep -q "^golden_check: .*$words" "$out" || fail "$*: does not say '$words'"
}
refused 64 'does not divide the 2 ranks' 2 "$cases/llama-gqa" --tp 3
refused 64 'parallel.ep is 4' 2 "$cases/llama-gqa" --ep 4
refused 64 'attention heads' 8 "$cases/llama-gqa" --tp 8
refused 64 'moe.num_experts = 4' 8 "$cases/llama-gqa" --ep 8
refused 64 'usage' 2 "$cases/llama-gqa" --no-such-flag 1
refused 64 'positive number' 2 "$cases/llama-gqa" --tp two
refused 65 'no-such-case' 2 "$cases/no-such-case"
exit $status
