// NVIDIA's driver, GPUs and libraries. They are asked through dlopen, so that a pesc without CUDA sees what there
// is, and in children, since a driver may hang.
#include <dlfcn.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "launcher/doctor/machine.h"
#include "launcher/doctor/probe.h"
#include "ops/core/check.h"
#include "ops/core/cuda.h"
#include "runtime/text/printable.h"

namespace pesc {
namespace {

using nlohmann::json;

constexpr auto kGpuWithin = std::chrono::seconds(20);

// A function of a library. Throws IoError.
template <class Function>
Function symbol(void* library, const char* name) {
  void* found = ::dlsym(library, name);
  if (found == nullptr) throw IoError(str_cat("the library has no ", name));
  return reinterpret_cast<Function>(found);
}

// The first of these that is found. Throws IoError.
void* library(std::initializer_list<const char*> names) {
  std::string why;
  for (const char* name : names) {
    if (void* found = ::dlopen(name, RTLD_NOW | RTLD_LOCAL)) return found;
    if (const char* error = ::dlerror(); why.empty() && error != nullptr) why = error;
  }
  throw IoError(why);
}

// The driver's interface (cuda.h), which is stable: CUresult 0 is success, CUdevice an int.
constexpr int kMajor = 75, kMinor = 76;  // CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*

std::string ask_driver() {
  void* cuda = library({"libcuda.so.1"});
  const auto check = [&](int code, const char* what) {
    if (code == 0) return;
    const char* text = nullptr;
    symbol<int (*)(int, const char**)>(cuda, "cuGetErrorString")(code, &text);
    throw IoError(str_cat(what, ": ", text != nullptr ? text : "unknown error", " (", code, ")"));
  };
  json answer;
  int version = 0;
  check(symbol<int (*)(int*)>(cuda, "cuDriverGetVersion")(&version), "the driver's version");
  answer["cuda"] = str_cat(version / 1000, ".", version % 1000 / 10);
  check(symbol<int (*)(unsigned)>(cuda, "cuInit")(0), "the driver does not start");
  int count = 0;
  check(symbol<int (*)(int*)>(cuda, "cuDeviceGetCount")(&count), "counting the GPUs");
  answer["gpus"] = json::array();
  for (int i = 0; i < count; ++i) {
    int device = 0, major = 0, minor = 0;
    char name[256] = {};
    size_t bytes = 0;
    check(symbol<int (*)(int*, int)>(cuda, "cuDeviceGet")(&device, i), "a GPU");
    check(symbol<int (*)(char*, int, int)>(cuda, "cuDeviceGetName")(name, sizeof(name) - 1, device),
          "its name");
    check(symbol<int (*)(size_t*, int)>(cuda, "cuDeviceTotalMem_v2")(&bytes, device), "its memory");
    const auto attribute = symbol<int (*)(int*, int, int)>(cuda, "cuDeviceGetAttribute");
    check(attribute(&major, kMajor, device), "its compute capability");
    check(attribute(&minor, kMinor, device), "its compute capability");
    answer["gpus"].push_back(
        {{"name", printable(name)}, {"bytes", bytes}, {"major", major}, {"minor", minor}});
  }
  return answer.dump();
}

// Why this pesc cannot use each GPU; empty texts where it can.
std::string ask_pesc(size_t gpus) {
  json answer = json::array();
  for (size_t i = 0; i < gpus; ++i) {
    std::string trouble;
    try {
      (void)cuda::device_info(static_cast<int>(i));
    } catch (const Error& e) {
      trouble = e.what();
    }
    answer.push_back(trouble);
  }
  return answer.dump();
}

// "13.0" of a runtime, "2.28.9" of NCCL, "9.14.0" of cuDNN.
std::string cuda_runtime_version() {
  int version = 0;
  void* found = library({"libcudart.so.13", "libcudart.so.12", "libcudart.so"});
  if (symbol<int (*)(int*)>(found, "cudaRuntimeGetVersion")(&version) != 0)
    throw IoError("it does not answer");
  return str_cat(version / 1000, ".", version % 1000 / 10);
}

std::string nccl_library_version() {
  int version = 0;
  void* found = library({"libnccl.so.2", "libnccl.so"});
  if (symbol<int (*)(int*)>(found, "ncclGetVersion")(&version) != 0) throw IoError("it does not answer");
  return str_cat(version / 10000, ".", version / 100 % 100, ".", version % 100);
}

std::string cudnn_version() {
  const size_t version = symbol<size_t (*)()>(library({"libcudnn.so.9", "libcudnn.so"}), "cudnnGetVersion")();
  return str_cat(version / 10000, ".", version / 100 % 100, ".", version % 100);
}

// The kernel module: "580.65.06".
std::string module_version() {
  std::ifstream in("/proc/driver/nvidia/version");
  std::string line;
  std::getline(in, line);
  constexpr std::string_view kBefore = "Kernel Module";
  size_t at = line.find(kBefore);
  if (at == std::string::npos) return "";
  at = line.find_first_of("0123456789", at + kBefore.size());
  if (at == std::string::npos) return "";
  return line.substr(at, line.find_first_not_of("0123456789.", at) - at);
}

}  // namespace

void look_at_gpus(MachineFacts& m) {
  m.cuda_runtime = probe(cuda_runtime_version, kGpuWithin).text;
  m.nccl = probe(nccl_library_version, kGpuWithin).text;
  m.cudnn = probe(cudnn_version, kGpuWithin).text;
  m.driver = module_version();
  const ProbeResult driver = probe(ask_driver, kGpuWithin);
  if (!driver.trouble.empty()) {
    m.driver_trouble = driver.trouble;
    return;
  }
  const json answer = json::parse(driver.text);
  m.driver = str_cat(m.driver.empty() ? "" : m.driver + ", ", "CUDA ", answer.at("cuda").get<std::string>());
  for (const json& gpu : answer.at("gpus")) {
    m.gpus.push_back({gpu.at("name"), gpu.at("bytes"), gpu.at("major"), gpu.at("minor"), ""});
  }
  if (!cuda::built() || m.gpus.empty()) return;
  const ProbeResult ours = probe([&] { return ask_pesc(m.gpus.size()); }, 3 * kGpuWithin);
  if (!ours.trouble.empty()) {
    m.gpus_trouble = ours.trouble;
    return;
  }
  const json troubles = json::parse(ours.text);
  for (size_t i = 0; i < m.gpus.size(); ++i) m.gpus[i].trouble = troubles.at(i).get<std::string>();
}

}  // namespace pesc
