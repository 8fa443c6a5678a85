// The stand-in for the CUDA runtime, and the extern "C" functions by which tests steer the shim and read its counters.
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <stdexcept>

#include "device.h"
#include "threads.h"

#define MDLM_FAST_SHIM_API extern "C" __attribute__((visibility("default")))

namespace mdlm_fast::shim {

namespace {

cudaError_t last_error = cudaSuccess;
std::string last_message;
int multiprocessor_count = 4;

// "forward", "reverse" or "random:SEED".
bool set_schedule(const std::string& text) {
  const std::string random = "random:";
  if (text == "forward") {
    schedule.order = Schedule::Order::kForward;
  } else if (text == "reverse") {
    schedule.order = Schedule::Order::kReverse;
  } else if (text.starts_with(random) && text.size() > random.size() &&
             text.find_first_not_of("0123456789", random.size()) == std::string::npos) {
    schedule.order = Schedule::Order::kRandom;
    schedule.seed(std::strtoull(text.c_str() + random.size(), nullptr, 10));
  } else {
    return false;
  }
  return true;
}

[[maybe_unused]] const bool environment_read = [] {
  if (const char* text = std::getenv("MDLM_FAST_SHIM_SCHEDULE"); text != nullptr && !set_schedule(text))
    throw std::invalid_argument(std::string("MDLM_FAST_SHIM_SCHEDULE=") + text +
                                " is not forward, reverse or random:SEED");
  if (const char* text = std::getenv("MDLM_FAST_SHIM_MULTIPROCESSORS"))
    multiprocessor_count = std::max(1, std::atoi(text));
  return true;
}();

}  // namespace

int multiprocessors() { return multiprocessor_count; }

int blocks_per_multiprocessor(int threads, std::size_t shared_bytes) {
  if (threads < 1 || threads > kMaxThreads || shared_bytes > kMaxSharedBytes) return 0;
  const int by_threads = kMaxThreadsPerMultiprocessor / ((threads + 31) / 32 * 32);
  const int by_memory = static_cast<int>(kSharedBytesPerMultiprocessor / (shared_bytes + kReservedSharedBytes));
  return std::min({by_threads, by_memory, kMaxBlocksPerMultiprocessor});
}

cudaError_t record_error(cudaError_t error, const std::string& message) {
  if (error != cudaSuccess) {
    last_error = error;
    last_message = message;
  }
  return error;
}

}  // namespace mdlm_fast::shim

namespace shim = mdlm_fast::shim;

const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess: return "no error";
    case cudaErrorInvalidValue: return "invalid argument";
    case cudaErrorInvalidConfiguration: return "invalid configuration argument";
    case cudaErrorLaunchOutOfResources: return "too many resources requested for launch";
    case cudaErrorLaunchFailure: return shim::last_message.c_str();
    case cudaErrorCooperativeLaunchTooLarge: return "too many blocks in cooperative launch";
  }
  return "unrecognized error code";
}

cudaError_t cudaPeekAtLastError() { return shim::last_error; }

cudaError_t cudaGetLastError() {
  const cudaError_t error = shim::last_error;
  shim::last_error = cudaSuccess;
  return error;
}

cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  switch (attribute) {
    case cudaDevAttrMaxThreadsPerBlock: *value = shim::kMaxThreads; break;
    case cudaDevAttrMaxSharedMemoryPerBlock: *value = 48 * 1024; break;
    case cudaDevAttrMultiProcessorCount: *value = shim::multiprocessors(); break;
    case cudaDevAttrL2CacheSize: *value = 50 * 1024 * 1024; break;
    case cudaDevAttrMaxThreadsPerMultiProcessor: *value = shim::kMaxThreadsPerMultiprocessor; break;
    case cudaDevAttrComputeCapabilityMajor: *value = 9; break;
    case cudaDevAttrComputeCapabilityMinor: *value = 0; break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor: *value = shim::kSharedBytesPerMultiprocessor; break;
    case cudaDevAttrCooperativeLaunch: *value = 1; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = shim::kMaxSharedBytes; break;
    default: return cudaErrorInvalidValue;
  }
  return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void* address, int byte, std::size_t count, cudaStream_t) {
  std::memset(address, byte, count);
  shim::counters.bytes_stored += count;
  shim::counters.sector_bytes_stored += count;
  ++shim::counters.launches;
  return cudaSuccess;
}

// Returns 0, or -1 for a name that is none.
MDLM_FAST_SHIM_API int mdlm_fast_shim_set_schedule(const char* name) { return shim::set_schedule(name) ? 0 : -1; }

MDLM_FAST_SHIM_API void mdlm_fast_shim_set_multiprocessors(int count) { shim::multiprocessor_count = count; }

// The fields of Counters since the last call, which it sets to zero.
MDLM_FAST_SHIM_API void mdlm_fast_shim_take_counters(std::uint64_t* counters) {
  std::memcpy(counters, &shim::counters, sizeof shim::counters);
  shim::counters = {};
}
