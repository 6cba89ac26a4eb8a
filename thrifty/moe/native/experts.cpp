// The entry: routes the tokens, lists the channels that some token needs, shares them among threads, joins the results.
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <vector>

#include "call.h"

namespace thrifty {
namespace {

constexpr int64_t kSpans = 16, kLeastSpan = 32;

const Variant* find(const char* name) {
#if defined(__x86_64__)
  bool has_avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                    __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                    __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512vnni");
  bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  const Variant* usable[] = {has_avx512 ? &kAvx512 : nullptr, has_avx2 ? &kAvx2 : nullptr, &kPortable};
#else
  const Variant* usable[] = {&kPortable};
#endif
  for (const Variant* one : usable)
    if (one && (!*name || !std::strcmp(one->name, name))) return one;
  return nullptr;
}

// Of equal experts the first.
void route(const Call& call) {
  for (int64_t token = 0; token < call.tokens; ++token) {
    const float* x = call.x + token * call.width;
    float best = 0;
    for (int64_t expert = 0; expert < call.experts; ++expert) {
      const float* row = call.router + expert * call.width;
      float sum = 0;
#pragma omp simd reduction(+ : sum)
      for (int64_t i = 0; i < call.width; ++i) sum += row[i] * x[i];
      if (!expert || sum > best) best = sum, call.choice[token] = expert;
    }
  }
}

void list(const Call& call, std::vector<int32_t>& active) {
  active.clear();
  for (int64_t channel = 0; channel < call.stored; ++channel)
    for (int64_t token = 0; token < call.tokens; ++token)
      if (call.members[call.choice[token] * call.stored + channel]) {
        active.push_back(static_cast<int32_t>(channel));
        break;
      }
}

// Spans depend on the problem alone, so that the result does not depend on the number of threads.
struct Job {
  const Call& call;
  const Variant& variant;
  const std::vector<int32_t>& active;
  int64_t span, spans, size;
  float* partial;
  std::atomic<int64_t> next{0};

  void work() {
    for (int64_t unit; (unit = next.fetch_add(1, std::memory_order_relaxed)) < spans;) {
      int64_t first = unit * span, all = static_cast<int64_t>(active.size());
      float* to = partial + unit * size;
      std::memset(to, 0, size * sizeof(float));
      variant.unit(call, active.data(), first, first + span < all ? first + span : all, to);
    }
  }

  void join() {
    for (int64_t i = 0; i < size; ++i) call.out[i] = 0;
    for (int64_t s = 0; s < spans; ++s)
      for (int64_t i = 0; i < size; ++i) call.out[i] += partial[s * size + i];
    if (!call.out_bias) return;
    for (int64_t i = 0; i < size; ++i) {
      float bias;
      if (call.type == kFloat32) {
        bias = static_cast<const float*>(call.out_bias)[i % call.width];
      } else {
        uint32_t bits = static_cast<uint32_t>(static_cast<const uint16_t*>(call.out_bias)[i % call.width]) << 16;
        std::memcpy(&bias, &bits, sizeof bias);
      }
      call.out[i] += bias;
    }
  }
};

}  // namespace
}  // namespace thrifty

using namespace thrifty;

// OpenMP's `GOMP_parallel`, that of torch where torch has one: then both share one team of threads.
using Parallel = void (*)(void (*)(void*), void*, unsigned, unsigned);

#if defined(__GNUC__)
#define EXPORT __attribute__((visibility("default")))
#else
#define EXPORT
#endif

extern "C" {

EXPORT int32_t thrifty_version() { return kVersion; }

// The variant that would run: `name` itself, the best one where it is empty; null where this machine cannot.
EXPORT const char* thrifty_variant(const char* name) {
  const Variant* found = find(name);
  return found ? found->name : nullptr;
}

// 0 when done, 1 for a variant that this machine cannot run, 2 for too many tokens.
EXPORT int32_t thrifty_experts(const Call* call, const char* name, Parallel parallel) {
  const Variant* variant = find(name);
  if (!variant) return 1;
  if (call->tokens > kMostTokens) return 2;
  thread_local std::vector<int32_t> active;
  thread_local std::vector<float> partial;
  if (call->router) route(*call);
  list(*call, active);
  int64_t all = static_cast<int64_t>(active.size()), even = (all + kSpans - 1) / kSpans;
  int64_t span = even < kLeastSpan ? kLeastSpan : even, spans = (all + span - 1) / span;
  int64_t size = call->tokens * call->width;
  partial.resize(spans * size);
  Job job{*call, *variant, active, span, spans, size, partial.data()};
  int64_t threads = call->threads < spans ? call->threads : spans;
  auto run = [](void* it) { static_cast<Job*>(it)->work(); };
  if (threads <= 1) {
    job.work();
  } else if (parallel) {
    parallel(run, &job, static_cast<unsigned>(threads), 0);
  } else {
    std::vector<std::thread> others;
    for (int64_t i = 1; i < threads; ++i) others.emplace_back(run, &job);
    job.work();
    for (auto& other : others) other.join();
  }
  job.join();
  return 0;
}

}  // extern "C"
