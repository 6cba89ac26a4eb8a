// The entry: chooses the variant, shares the work among threads, joins their partial results.
#include <atomic>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <vector>

#include "call.h"

namespace thrifty {
namespace {

const Variant* find(const char* name) {
#if defined(__x86_64__)
  bool has_avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                    __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                    __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512vnni");
  bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const Variant* usable[] = {has_avx512 ? &kAvx512 : nullptr, has_avx2 ? &kAvx2 : nullptr, &kPortable};
#else
  const Variant* usable[] = {&kPortable};
#endif
  for (const Variant* one : usable)
    if (one && (!*name || !std::strcmp(one->name, name))) return one;
  return nullptr;
}

// Blocks of a span. It depends on the problem alone, so that the result does not depend on the number of threads.
int64_t span_of(const Call& call) {
  int64_t all = call.rows * call.kv_heads * call.blocks;
  int64_t most = 8192 / call.tokens, least = 1024 / call.tokens, even = all / 64;
  return even < least ? least : even > most ? most : even;
}

struct Job {
  const Call& call;
  const Variant& variant;
  int64_t span, spans, stride;  // spans of a head (its last one is sinks and open block), floats of a partial result
  std::vector<float> partial;
  std::atomic<int64_t> next{0};

  void work() {
    int64_t units = call.rows * call.kv_heads * spans;
    for (int64_t unit; (unit = next.fetch_add(1, std::memory_order_relaxed)) < units;) {
      int64_t part = unit % spans, head = unit / spans % call.kv_heads, row = unit / spans / call.kv_heads;
      float* to = partial.data() + unit * stride;
      if (part == spans - 1) {
        variant.dense(call, row, head, to);
      } else {
        int64_t first = part * span, last = first + span < call.blocks ? first + span : call.blocks;
        variant.codes(call, row, head, first, last, to);
      }
    }
  }

  void join() {
    int64_t size = kHeader + call.dim;
    for (int64_t pair = 0; pair < call.rows * call.kv_heads; ++pair)
      for (int64_t h = 0; h < call.shared; ++h) {
        const float* from = partial.data() + pair * spans * stride + h * size;
        float* out = call.out + (pair * call.shared + h) * call.dim;
        float top = from[0], total[kMaxGroups] = {}, sum[kMaxDim] = {};
        for (int64_t s = 1; s < spans; ++s) top = from[s * stride] > top ? from[s * stride] : top;
        for (int64_t s = 0; s < spans; ++s) {
          const float* one = from + s * stride;
          float factor = std::exp2(one[0] - top);
          for (int64_t g = 0; g < call.dim / call.group; ++g) total[g] += factor * one[16 + g];
          for (int64_t c = 0; c < call.dim; ++c) sum[c] += factor * one[kHeader + c];
        }
        for (int64_t c = 0; c < call.dim; ++c) out[c] = sum[c];
        for (int64_t g = 0; g < call.dim / call.group; ++g)
          for (int64_t c = g * call.group; c < (g + 1) * call.group; ++c) out[c] /= total[g];
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

// 0 when done, 1 for a variant that this machine cannot run, 2 for a shape that the kernel does not know.
EXPORT int32_t thrifty_attend(const Call* call, const char* name, Parallel parallel) {
  const Variant* variant = find(name);
  if (!variant) return 1;
  if (call->dim > kMaxDim || call->dim % 16 || call->group % 16 || call->dim % call->group ||
      call->dim / call->group > kMaxGroups || 
      call->queries < 1 || call->shared % call->queries || (call->queries > 1 && call->open < call->queries) ||
      (call->tokens != 32 && call->tokens != 64 && call->tokens != 128))
    return 2;
  int64_t span = span_of(*call), spans = (call->blocks + span - 1) / span + 1;
  int64_t stride = call->shared * (kHeader + call->dim), units = call->rows * call->kv_heads * spans;
  Job job{*call, *variant, span, spans, stride, std::vector<float>(units * stride)};
  int64_t threads = call->threads < units ? call->threads : units;
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
