// What the doctor concludes from the facts of a machine, and how it says so.
#include "launcher/doctor/report.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <string>

namespace pesc {
namespace {

BuildFacts full_build() {
  BuildFacts b{"0.1.0", "12.2.0", "native", "OpenBLAS"};
  b.cuda = b.nccl = b.cudnn = true;
  return b;
}

// One on which everything can run.
MachineFacts good_machine() {
  MachineFacts m;
  m.host = "node1";
  m.cores_online = m.cores_usable = 8;
  m.memory = m.memory_available = int64_t{64} << 30;
  m.shared_memory = m.shared_memory_free = int64_t{32} << 30;
  m.open_files = 65536;
  m.clock = "2026-11-30 21:52:03 UTC";
  m.clock_synchronised = true;
  m.interfaces = {{"eth0", {"10.0.0.1"}}};
  m.ssh = true;
  m.mpi = "Open MPI 4.1.4";
  m.mpirun = "Open MPI 4.1.4";
  m.driver = "580.65.06, CUDA 13.0";
  m.gpus = {{"NVIDIA H200", int64_t{139} << 30, 9, 0, ""}, {"NVIDIA H200", int64_t{139} << 30, 9, 0, ""}};
  m.cuda_runtime = "13.0";
  m.nccl = "2.28.9";
  m.cudnn = "9.14.0";
  m.slurm = "main* 4 nodes idle, 1-00:00:00";
  m.folder.path = "/runs";
  m.folder.filesystem = "ext4";
  m.folder.flock = m.folder.fcntl = true;
  return m;
}

// {key: what is missing, joined}; empty where it can be done.
std::map<std::string, std::string> lacks(const BuildFacts& b, const MachineFacts& m) {
  std::map<std::string, std::string> all;
  for (const Ability& a : abilities(b, m)) {
    std::string& text = all[a.key];
    for (const Lack& lack : a.lacks) {
      EXPECT_FALSE(lack.what.empty()) << a.key;
      EXPECT_FALSE(lack.way_out.empty()) << a.key << ": " << lack.what;
      text += lack.what + " -> " + lack.way_out + "\n";
    }
  }
  return all;
}

void expect_only(const std::map<std::string, std::string>& found, const std::string& keys,
                 const std::string& word) {
  for (const auto& [key, text] : found) {
    const bool expected = (" " + keys + " ").find(" " + key + " ") != std::string::npos;
    EXPECT_EQ(!text.empty(), expected) << key << ": " << text;
    EXPECT_TRUE(!expected || text.find(word) != std::string::npos) << key << ": " << text;
  }
}

TEST(DoctorAbilities, NothingIsMissingOnAGoodMachine) {
  expect_only(lacks(full_build(), good_machine()), "", "");
}

TEST(DoctorAbilities, EachLackStopsWhatNeedsItAndNothingElse) {
  const std::string all = "cpu_training cpu_ranks gpu_training gpu_attention gpu_ranks hosts slurm";
  const std::string several = "cpu_ranks gpu_ranks hosts slurm", gpu = "gpu_training gpu_attention gpu_ranks";
  MachineFacts m = good_machine();
  m.mpi_trouble = "MPI does not start: no answer within 20 s";
  expect_only(lacks(full_build(), m), all, "no answer within 20 s -> cluster/install-deps.sh\n");

  m = good_machine();
  m.memory = 100 << 20;
  expect_only(lacks(full_build(), m), all, "100 MiB of memory");

  m = good_machine();
  m.temporary_trouble = "the folder for session files /tmp cannot be written";
  expect_only(lacks(full_build(), m), all, "TMPDIR");

  m = good_machine();
  m.mpirun_trouble = "mpirun is not in PATH";
  expect_only(lacks(full_build(), m), several, "cluster/install-deps.sh");

  m = good_machine();
  m.shared_memory_trouble = "shared memory /dev/shm has 1 MiB of room";
  expect_only(lacks(full_build(), m), several, "--shm-size");

  m = good_machine();
  m.open_files = 64;
  expect_only(lacks(full_build(), m), several, "64 open files -> ulimit -n");
  m.open_files = -1;
  expect_only(lacks(full_build(), m), "", "");

  m = good_machine();
  m.driver_trouble = "libcuda.so.1: cannot open shared object file";
  m.gpus.clear();
  expect_only(lacks(full_build(), m), gpu, "no driver of NVIDIA answers: libcuda.so.1");

  m = good_machine();
  m.gpus.clear();
  expect_only(lacks(full_build(), m), gpu, "the driver shows no GPU");

  m = good_machine();
  m.gpus.pop_back();
  expect_only(lacks(full_build(), m), "gpu_ranks", "one GPU");

  m = good_machine();
  for (GpuFacts& g : m.gpus) g.trouble = "this build has no kernels for compute capability 8.6";
  expect_only(lacks(full_build(), m), gpu, "no kernels for compute capability 8.6");

  m = good_machine();
  m.interfaces.clear();
  expect_only(lacks(full_build(), m), "hosts", "loopback");
  m = good_machine();
  m.ssh = false;
  expect_only(lacks(full_build(), m), "", "");  // Slurm is there
  m.slurm.clear();
  m.slurm_trouble = "sinfo is not in PATH";
  EXPECT_NE(lacks(full_build(), m)["hosts"].find("neither ssh nor Slurm"), std::string::npos);
  EXPECT_NE(lacks(full_build(), m)["slurm"].find("sinfo is not in PATH"), std::string::npos);
}

TEST(DoctorAbilities, WhatTheBuildLacksIsSaidWithTheCommands) {
  const std::string gpu = "gpu_training gpu_attention gpu_ranks";
  BuildFacts b = full_build();
  b.cuda = b.nccl = b.cudnn = false;
  expect_only(lacks(b, good_machine()), gpu,
              "built without CUDA -> cluster/install-deps.sh --gpu says what to install, then cmake");
  b = full_build();
  b.cudnn = false;
  expect_only(lacks(b, good_machine()), "gpu_attention",
              "built without cuDNN -> cluster/install-deps.sh --gpu");
  b = full_build();
  b.nccl = false;
  expect_only(lacks(b, good_machine()), "gpu_ranks", "built without NCCL -> cluster/install-deps.sh --gpu");
}

TEST(DoctorReport, TextAndJsonSayTheSame) {
  MachineFacts m = good_machine();
  m.driver_trouble = "libcuda.so.1: cannot open shared object file";
  m.gpus.clear();
  m.quota = 2.5;
  m.locked_memory = 8 << 20;
  m.infiniband = {"mlx5_0"};
  const auto found = facts(full_build(), m);
  const auto can = abilities(full_build(), m);
  const std::string text = doctor_text(found, can, DoctorColours::kNone);
  EXPECT_EQ(text.find('\033'), std::string::npos);
  for (const char* part :
       {"cores          8 of 8; the control group allows 2.5", "too little for InfiniBand",
        "eth0 10.0.0.1; InfiniBand mlx5_0", "  - driver", "  yes  training on the CPU, one rank\n",
        "  no   training on one GPU\n", "nvidia-smi has to work first",
        "flock and fcntl keep a second owner out", "64.0 GiB free of 64.0 GiB"})
    EXPECT_NE(text.find(part), std::string::npos) << part << "\n" << text;
  EXPECT_NE(doctor_text(found, can, DoctorColours::kTerminal).find("\033[31mno \033[0m"), std::string::npos);

  const auto json = doctor_json(found, can);
  EXPECT_EQ(json["machine"]["cores"]["quota"], 2.5);
  EXPECT_EQ(json["machine"]["open_files"], 65536);
  EXPECT_EQ(json["gpu"]["driver"]["trouble"], m.driver_trouble);
  EXPECT_EQ(json["pesc"]["built_with"]["cudnn"], true);
  EXPECT_EQ(json["abilities"]["cpu_training"]["can"], true);
  EXPECT_EQ(json["abilities"]["gpu_training"]["can"], false);
  EXPECT_EQ(json["abilities"]["gpu_training"]["missing"].size(), 1U);
  EXPECT_EQ(json["abilities"].size(), can.size());
}

TEST(DoctorReport, TroublesOfAFolder) {
  MachineFacts m = good_machine();
  m.folder.flock = m.folder.fcntl = false;
  m.folder.clock_ahead = -7.25;
  std::string text = doctor_text(facts(full_build(), m), {}, DoctorColours::kNone);
  EXPECT_NE(text.find("! locks          neither flock nor fcntl works"), std::string::npos) << text;
  EXPECT_NE(text.find("! clock          its files' clock is 7.2 s behind ours"), std::string::npos) << text;
  m.folder.trouble = "it cannot be written: Permission denied";
  text = doctor_text(facts(full_build(), m), {}, DoctorColours::kNone);
  EXPECT_NE(text.find("- path           /runs: it cannot be written: Permission denied"), std::string::npos)
      << text;
}

}  // namespace
}  // namespace pesc
