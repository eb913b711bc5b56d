// Settings that the length of a run leaves without effect are named, with their place.
#include "runtime/config/unreached_settings.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace pesc {
namespace {

constexpr const char* kText =
    "run_dir: \"runs/t\"\n"                                        // 1
    "model { path: \"base\" }\n"                                   // 2
    "train { max_steps: 10 global_batch_size: 8\n"                 // 3
    "  eval_steps: 5 }\n"                                          // 4
    "data { train { path: \"a.jsonl\" } eval { path: \"b\" } }\n"  // 5
    "moe { num_experts: 4 }\n";                                    // 6

using Lines = std::vector<std::string>;

// Of 10 steps on 2 ranks, where an epoch has 20 rows.
Lines unreached(const std::vector<std::string>& overrides) {
  return unreached_settings(parse_experiment(kText, "e.textproto", overrides), {10, 20, 2});
}

TEST(UnreachedSettings, AreNamedWithTheirPlace) {
  struct Case {
    std::vector<std::string> overrides;
    std::string said;
  };
  const std::vector<Case> cases{
      {{"train.eval_steps=11"},
       "--set train.eval_steps=11: train.eval_steps is 11, but the run has 10 steps: nothing is evaluated"},
      {{"train.early_stopping_patience=3"},
       "--set train.early_stopping_patience=3: train.early_stopping_patience is 3, but the run has 2 "
       "evaluations: it never ends early"},
      {{"recovery.eval_limit_s=9", "train.eval_steps=0"},
       "--set recovery.eval_limit_s=9: recovery.eval_limit_s has no effect in a run without evaluations"},
      {{"checkpoint.save_steps=11"},
       "--set checkpoint.save_steps=11: checkpoint.save_steps is 11, but the run has 10 steps: it saves at "
       "the end alone"},
      {{"checkpoint.save_steps=5", "checkpoint.keep_every_steps=15"},
       "--set checkpoint.keep_every_steps=15: checkpoint.keep_every_steps is 15, but the run has 10 steps: "
       "none is kept for good"},
      {{"debug.fault[0]=step=11,rank=1,section=step,action=kill"},
       "--set debug.fault[0]=step=11,rank=1,section=step,action=kill: debug.fault[0] never occurs: it is of "
       "step 11, and the run has 10 steps"},
      {{"debug.fault[0]=step=1,rank=2,section=step,action=kill"},
       "--set debug.fault[0]=step=1,rank=2,section=step,action=kill: debug.fault[0] never occurs: it is of "
       "rank 2, and the ranks are 0 to 1"},
      {{"train.eval_steps=0", "debug.fault[0]=step=5,rank=0,section=eval,action=kill"},
       "--set debug.fault[0]=step=5,rank=0,section=eval,action=kill: debug.fault[0] never occurs: it is of "
       "the section eval, and the run has no evaluations"},
      {{"moe.num_experts=1", "moe.num_experts_per_tok=1"},
       "--set moe.num_experts=1: moe.num_experts is 1: the router has no choice, every token goes to the "
       "only expert"},
      {{"train.global_batch_size=100"},
       "--set train.global_batch_size=100: train.global_batch_size is 100, more than the 20 rows of an "
       "epoch: a full step has rows of more than one epoch"},
  };
  for (const Case& c : cases) EXPECT_EQ(unreached(c.overrides), Lines{c.said});
}

TEST(UnreachedSettings, WhatTheRunReachesIsNotNamed) {
  for (const Lines& reached : std::vector<Lines>{
           {},
           {"train.eval_steps=10"},
           {"train.eval_steps=0"},
           {"train.early_stopping_patience=2"},
           {"recovery.eval_limit_s=9"},
           {"checkpoint.save_steps=10", "checkpoint.keep_every_steps=10"},
           {"debug.fault[0]=step=10,rank=1,section=step,action=kill"},
           {"debug.fault[0]=step=10,rank=0,section=eval,action=kill"},
           {"train.mode=LORA", "moe.num_experts=1", "moe.num_experts_per_tok=1"},
           {"train.global_batch_size=20"},
       })
    EXPECT_EQ(unreached(reached), Lines{});
  // All of them say it at once.
  EXPECT_EQ(unreached({"train.eval_steps=11", "checkpoint.save_steps=11"}).size(), 2U);
}

}  // namespace
}  // namespace pesc
