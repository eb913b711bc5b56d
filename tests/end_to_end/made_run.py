"""Run directories that no training has made: metrics.jsonl of any number of steps, as runtime/metrics.cc writes it.

    tests/end_to_end/made_run.py FOLDER [STEPS [LAYERS [EXPERTS [SEED]]]]
"""

import json
import math
import os
import random
import sys

TAGS = ("arithmetic", "code", "words")
CONFIG = 'name: "made"\nrun_dir: "made"\ntrain { mode: PESC max_steps: %d }\nmoe { num_experts: %d num_experts_per_tok: 2 }\n'


def shares(draw, experts, peak):
    values = [draw.uniform(0.5, 1.5) for _ in range(experts)]
    values[peak % experts] += 2
    return [v / sum(values) for v in values]


def make(folder, steps=1000, layers=8, experts=8, seed=1, restart=None, spike=None):
    """restart: a step at which a second launch goes on from one tenth before. spike: a step whose gradient norm is a thousand."""
    draw = random.Random(seed)
    os.makedirs(folder)
    # Of the experts there are few different texts: making them is what takes time.
    routed = []
    for i in range(64):
        layer_shares = [shares(draw, experts, i // 8 + layer) for layer in range(layers)]
        tag_shares = {tag: shares(draw, experts, k + i // 16) for k, tag in enumerate(TAGS)}
        routed.append((json.dumps(layer_shares, separators=(",", ":")), json.dumps(tag_shares, separators=(",", ":"))))
    tokens = '{"arithmetic":4096.0,"code":2048.0,"words":2048.0}'
    now = 1.7e9
    with open(os.path.join(folder, "metrics.jsonl"), "w", encoding="utf-8") as file:
        def launch(number, step):
            file.write('{"kind":"launch","launch":%d,"ranks":4,"step":%d,"time":%.3f}\n' % (number, step, now))

        def write(number, first, last):
            nonlocal now
            for step in range(first, last + 1):
                part = step / steps
                seconds = 0.25 + 0.02 * draw.random()
                now += seconds
                loss = 1 + 1.5 * math.exp(-6 * part) + 0.1 * draw.gauss(0, 1)
                norm = 1000.0 if step == spike else 0.4 + 0.1 * draw.random()
                in_layers, of_tags = routed[min(int(part * 56), 56) + step % 8 if step % 3 else int(part * 56)]
                file.write('{"aux_loss":%.17g,"bytes_sent_rank0":1048576,"dispatch_rounds":1,"expert_share":%s,"fill_rate":0.75,'
                           '"flops":1.25e12,"grad_norm":%.17g,"kind":"step","launch":%d,"loss":%.17g,"lr":%.17g,"memory_bytes":%d,'
                           '"seconds":%.17g,"sol_fraction":0.5%d,"step":%d,"supervised_tokens":2048.0,"tag_expert_share":%s,'
                           '"tag_token_share":{"arithmetic":0.5,"code":0.25,"words":0.25},"tag_tokens":%s,"time":%.3f,'
                           '"tokens":8192.0,"tokens_per_second":%.17g}\n'
                           % (1 + draw.random() * 0.1, in_layers, norm, number, loss, 2e-4 * (1 - part), 1 << 30, seconds,
                              step % 10, step, of_tags, tokens, now, 8192 / seconds))
                if step % max(steps // 20, 1) == 0:
                    now += 2
                    file.write('{"eval_loss":{"arithmetic":%.6g,"code":%.6g},"eval_loss_total":%.6g,"kind":"eval","launch":%d,'
                               '"seconds":2.0,"step":%d,"time":%.3f}\n' % (loss + 0.1, loss + 0.3, loss + 0.2, number, step, now))
                    file.write('{"launch":%d,"save_stall_seconds":0.5,"step":%d,"time":%.3f}\n{"launch":%d,"saved_step":%d,"step":%d,'
                               '"time":%.3f}\n' % (number, step, now, number, step, step, now))
        launch(1, 0)
        if restart:
            write(1, 1, restart)
            now += 30
            goes_on = restart - steps // 10
            launch(2, goes_on)
            write(2, goes_on + 1, steps)
        else:
            write(1, 1, steps)
    with open(os.path.join(folder, "experiment.textproto"), "w", encoding="utf-8") as file:
        file.write(CONFIG % (steps, experts))
    if restart:
        with open(os.path.join(folder, "launches.jsonl"), "w", encoding="utf-8") as file:
            for number, code, status in ((1, 137, "killed by signal 9"), (2, 0, "done")):
                deaths = [{"rank": 3, "error": "killed", "host": "h", "section": "step"}] if code else []
                file.write(json.dumps({"launch": number, "ranks": 4, "seconds": 100.0, "exit_code": code, "status": status, "hang": "",
                                       "last_step": restart, "deaths": deaths}) + "\n")
    with open(os.path.join(folder, "evaluations.jsonl"), "w", encoding="utf-8") as file:
        for step, right in ((0, False), (steps, True)):
            score = lambda k: {"eval_loss": 2.5 - right - 0.1 * k, "rows": 40, "exact_match": 0.1 + 0.6 * right + 0.05 * k,
                               "expert_share": shares(draw, experts, k)}
            record = {"step": step, "base": not right, "time": now, "total": score(0),
                      "datasets": {tag: score(k) for k, tag in enumerate(TAGS)},
                      "samples": [{"dataset": TAGS[i % 3], "question": "What is %d + %d?" % (i, i + 1), "expected": str(2 * i + 1),
                                   "answer": str(2 * i + 1) if right and i % 5 else "I do not know. </script><b>%d</b>" % i} for i in range(12)]}
            if not right:
                del record["total"]["expert_share"]
            file.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    make(sys.argv[1], *map(int, sys.argv[2:6]))
