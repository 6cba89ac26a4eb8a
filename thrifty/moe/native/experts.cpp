// The entry: routes the tokens, lists the channels that some token needs, shares them among threads, joins the results.
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <memory>
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

// Tokens in the order of their experts, and of each expert its channels.
struct Sorted {
  std::vector<int64_t> order, starts, widths;
  std::vector<int32_t> channels;  // [experts, stored]

  explicit Sorted(const Call& call)
      : order(call.tokens), starts(call.experts + 1), widths(call.experts), channels(call.experts * call.stored) {
    for (int64_t token = 0; token < call.tokens; ++token) ++starts[call.choice[token] + 1];
    for (int64_t expert = 0; expert < call.experts; ++expert) starts[expert + 1] += starts[expert];
    std::vector<int64_t> next(starts.begin(), starts.end() - 1);
    for (int64_t token = 0; token < call.tokens; ++token) order[next[call.choice[token]]++] = token;
    for (int64_t expert = 0; expert < call.experts; ++expert)
      for (int64_t channel = 0; channel < call.stored; ++channel)
        if (call.members[expert * call.stored + channel])
          channels[expert * call.stored + widths[expert]++] = static_cast<int32_t>(channel);
  }
};

// One of the two products for all experts: units of `step` channels or columns of one expert.
struct Products {
  const Call& call;
  const Sorted& sorted;
  Product product;
  bool is_first;
  int64_t step;
  float* hidden;
  std::atomic<int64_t> next{0};

  int64_t units_of(int64_t expert) const {
    if (sorted.starts[expert] == sorted.starts[expert + 1]) return 0;
    int64_t size = is_first ? sorted.widths[expert] : call.width;
    return (size + step - 1) / step;
  }

  void work() {
    for (int64_t unit; (unit = next.fetch_add(1, std::memory_order_relaxed)) >= 0;) {
      int64_t expert = 0;
      while (expert < call.experts && unit >= units_of(expert)) unit -= units_of(expert++);
      if (expert == call.experts) return;
      int64_t size = is_first ? sorted.widths[expert] : call.width, begin = unit * step;
      Group group{sorted.order.data(),          sorted.starts[expert], sorted.starts[expert + 1],
                  sorted.channels.data() + expert * call.stored, sorted.widths[expert], hidden, call.stored};
      product(call, group, begin, begin + step < size ? begin + step : size);
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

namespace {

template <class Work>
void share(Work& work, int64_t threads, Parallel parallel) {
  auto run = [](void* it) { static_cast<Work*>(it)->work(); };
  if (threads <= 1) {
    work.work();
  } else if (parallel) {
    parallel(run, &work, static_cast<unsigned>(threads), 0);
  } else {
    std::vector<std::thread> others;
    for (int64_t i = 1; i < threads; ++i) others.emplace_back(run, &work);
    work.work();
    for (auto& other : others) other.join();
  }
}

}  // namespace

extern "C" {

EXPORT int32_t thrifty_version() { return kVersion; }

// The variant that would run: `name` itself, the best one where it is empty; null where this machine cannot.
EXPORT const char* thrifty_variant(const char* name) {
  const Variant* found = find(name);
  return found ? found->name : nullptr;
}

// A few tokens. 0 when done, 1 for a variant that this machine cannot run, 2 for too many tokens.
EXPORT int32_t thrifty_experts_few(const Call* call, const char* name, Parallel parallel) {
  const Variant* variant = find(name);
  if (!variant) return 1;
  if (call->tokens > kMostTokens) return 2;
  thread_local std::vector<int32_t> active;
  thread_local std::vector<float> partial;
  if (call->router) variant->route(*call, 0, call->tokens);
  list(*call, active);
  int64_t all = static_cast<int64_t>(active.size()), even = (all + kSpans - 1) / kSpans;
  int64_t span = even < kLeastSpan ? kLeastSpan : even, spans = (all + span - 1) / span;
  int64_t size = call->tokens * call->width;
  partial.resize(spans * size);
  Job job{*call, *variant, active, span, spans, size, partial.data()};
  share(job, call->threads < spans ? call->threads : spans, parallel);
  job.join();
  return 0;
}

// Many tokens, float32 only. 0 when done, 1 for a variant that this machine cannot run, 2 for another type.
EXPORT int32_t thrifty_experts_many(const Call* call, const char* name, Parallel parallel) {
  const Variant* variant = find(name);
  if (!variant) return 1;
  if (call->type != kFloat32) return 2;
  if (call->router) variant->route(*call, 0, call->tokens);
  Sorted sorted(*call);
  std::unique_ptr<float[]> hidden(new float[call->tokens * call->stored]);
  Products first{*call, sorted, variant->hidden, true, kChannels, hidden.get()};
  share(first, call->threads, parallel);
  Products second{*call, sorted, variant->output, false, kColumns, hidden.get()};
  share(second, call->threads, parallel);
  return 0;
}

}  // extern "C"
