// The native kernels behind a plain C ABI: run-time choice of the instruction set, split over threads.
//
// Compiled for the oldest CPU of the architecture; wider instructions are confined to functions that carry a target
// attribute and run only where fano_best_isa() says so. No state, no globals, no locks.

#include <pthread.h>
#include <stdint.h>
#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#endif

#include "arguments.h"
#include "fit.h"

#define FANO_ABI_VERSION 8

#if defined(__clang__) || __GNUC__ >= 12
#define FANO_SHUFFLE(a, b, i, j, k, l) __builtin_shufflevector(a, b, i, j, k, l)
#else
typedef int32_t lanes __attribute__((vector_size(16)));
#define FANO_SHUFFLE(a, b, i, j, k, l) __builtin_shuffle(a, b, lanes{i, j, k, l})
#endif

#define FANO_INLINE FANO_TARGET __attribute__((always_inline)) static inline

#define FANO_SET portable
#define FANO_TARGET
#define FANO_WIDTH 4
#include "vector.h"
#include "recurrence.h"
#include "product.h"
#include "select.h"
#include "attend.h"
#include "step.h"
#undef FANO_SET
#undef FANO_TARGET
#undef FANO_WIDTH

#if defined(__x86_64__)
#define FANO_SET avx2
#define FANO_TARGET __attribute__((target("avx2,fma")))
#define FANO_WIDTH 8
#define FANO_AVX2
#include "vector.h"
#include "recurrence.h"
#include "product.h"
#include "select.h"
#include "attend.h"
#include "step.h"
#undef FANO_SET
#undef FANO_TARGET
#undef FANO_WIDTH
#undef FANO_AVX2

#define FANO_SET avx512
#define FANO_TARGET __attribute__((target("avx2,fma,avx512f")))
#define FANO_WIDTH 16
#define FANO_AVX512
#include "vector.h"
#include "recurrence.h"
#include "product.h"
#include "select.h"
#include "attend.h"
#include "step.h"
#undef FANO_SET
#undef FANO_TARGET

#define FANO_SET avx512vnni
#define FANO_TARGET __attribute__((target("avx2,fma,avx512f,avx512vnni")))
#define FANO_VNNI
#include "vector.h"
#include "recurrence.h"
#include "product.h"
#include "select.h"
#include "attend.h"
#include "step.h"
#undef FANO_SET
#undef FANO_TARGET

#define FANO_SET avx512bf16
#define FANO_TARGET __attribute__((target("avx2,fma,avx512f,avx512vnni,avx512bf16")))
#define FANO_DOTS
#include "vector.h"
#include "recurrence.h"
#include "product.h"
#include "select.h"
#include "attend.h"
#include "step.h"
#undef FANO_DOTS
#undef FANO_VNNI
#undef FANO_AVX512
#undef FANO_SET
#undef FANO_TARGET
#undef FANO_WIDTH

#define FANO_DISPATCH(isa, call)     \
  switch (isa) {                     \
    case 4: avx512bf16::call; break; \
    case 3: avx512vnni::call; break; \
    case 2: avx512::call; break;     \
    case 1: avx2::call; break;       \
    default: portable::call;         \
  }
#else
#define FANO_DISPATCH(isa, call) portable::call
#endif

// Work that one thread does in about 0.3 ms; less is not worth starting another (20 to 60 us).
constexpr int64_t THREAD_WORK = 1 << 20;
constexpr int64_t THREAD_WEIGHTS = 4 << 20;
constexpr int64_t ATTEND_WORK = 4 << 10;    // elements of queries
constexpr int64_t CHOOSE_WORK = 4 << 10;    // query heads by places
constexpr int64_t PRODUCT_WORK = 32 << 20;  // multiplications
constexpr int MAX_THREADS = 64;

template <class Args>
struct Part {
  void (*kernel)(const Args&, int64_t, int64_t, int);
  const Args* args;
  int64_t first, last;
  int isa;
};

template <class Args>
static void* run_part(void* pointer) {
  const auto* part = static_cast<const Part<Args>*>(pointer);
  part->kernel(*part->args, part->first, part->last, part->isa);
  return nullptr;
}

// Run kernel(args, first, last, isa) over all channels on at most `num_threads` threads. Threads live for one call and
// the caller sleeps until they end: nobody spins while a neighbour holds the core. POSIX threads and no C++ library,
// so that the same file links with any compiler.
template <class Args>
static void split(void (*kernel)(const Args&, int64_t, int64_t, int), const Args& args, int64_t work, int num_threads,
                  int isa) {
  const int64_t grains = (args.num_channels + CHANNEL_GRAIN - 1) / CHANNEL_GRAIN;
  int64_t num_parts = work / THREAD_WORK;
  if (num_parts > num_threads) num_parts = num_threads;
  if (num_parts > grains) num_parts = grains;
  if (num_parts > MAX_THREADS) num_parts = MAX_THREADS;
  pthread_t threads[MAX_THREADS];
  Part<Args> parts[MAX_THREADS];
  int64_t first = 0;
  int num_started = 0;
  for (; num_started < num_parts - 1; num_started++) {
    const int64_t last = grains * (num_started + 1) / num_parts * CHANNEL_GRAIN;
    parts[num_started] = {kernel, &args, first, last, isa};
    // No thread to be had: the remaining channels run here.
    if (pthread_create(&threads[num_started], nullptr, run_part<Args>, &parts[num_started])) break;
    first = last;
  }
  kernel(args, first, args.num_channels, isa);
  for (int i = 0; i < num_started; i++) pthread_join(threads[i], nullptr);
}

static void run_scan(const Scan& args, int64_t first, int64_t last, int isa) {
  FANO_DISPATCH(isa, scan(args, first, last));
  (void)isa;
}

static void run_conv(const Conv& args, int64_t first, int64_t last, int isa) {
  FANO_DISPATCH(isa, conv(args, first, last));
  (void)isa;
}

struct AttendWork {
  const Attend* args;
  float* workspace;
  int64_t next, num_parts;
  int isa;
};

static void* run_attend(void* pointer) {
  auto* work = static_cast<AttendWork*>(pointer);
  AttendSpace w;
  const int64_t part = __atomic_fetch_add(&work->num_parts, 1, __ATOMIC_RELAXED);
  lay_out(*work->args, work->workspace + part * lay_out(*work->args, nullptr, &w), &w);
  FANO_DISPATCH(work->isa, attend(*work->args, &work->next, w));
  return nullptr;
}

struct ChooseWork {
  const Attend* args;
  int32_t* places;
  float* workspace;
  int64_t most, next, num_parts;
  int isa;
};

static void* run_choose(void* pointer) {
  auto* work = static_cast<ChooseWork*>(pointer);
  AttendSpace w;
  const int64_t part = __atomic_fetch_add(&work->num_parts, 1, __ATOMIC_RELAXED);
  lay_out(*work->args, work->workspace + part * lay_out(*work->args, nullptr, &w), &w);
  FANO_DISPATCH(work->isa, choose(*work->args, &work->next, work->most, work->places, w));
  return nullptr;
}

struct Member {
  const Model* model;
  const Step* step;
  Crew* crew;
  Workspace workspace;
  int64_t part;
  int isa;
};

static void* run_member(void* pointer) {
  const auto* member = static_cast<const Member*>(pointer);
  for (int looks = 0; !__atomic_load_n(&member->crew->size, __ATOMIC_ACQUIRE); looks++) look_again(looks);
  FANO_DISPATCH(member->isa, run(*member->model, *member->step, member->workspace, *member->crew, member->part));
  return nullptr;
}

// Threads for a step: one for each THREAD_WEIGHTS of the weights it reads.
static int64_t crew_size(const Model& m, int64_t num_tokens, int64_t num_threads) {
  const int64_t per_layer = m.width * 3 * (m.inner + m.ffn);
  const int64_t work = (m.num_layers * per_layer + m.vocabulary * m.width) * (1 + num_tokens / 4);
  const int64_t most = num_threads < MAX_THREADS ? num_threads : MAX_THREADS;
  const int64_t worth = 1 + work / THREAD_WEIGHTS;
  return worth < most ? worth : most;
}

struct MultiplyPart {
  const Product* product;
  const float* arranged;
  int64_t part, num_parts;
  int isa;
};

static void* run_multiply(void* pointer) {
  const auto* p = static_cast<const MultiplyPart*>(pointer);
  FANO_DISPATCH(p->isa, multiply_part(*p->product, p->arranged, p->part, p->num_parts));
  return nullptr;
}

extern "C" {

int fano_abi_version() { return FANO_ABI_VERSION; }

// 4: AVX-512 with dot products of bytes and of bfloat16; 3: of bytes only; 2: AVX-512; 1: AVX2 and FMA; 0: whatever the
// architecture guarantees. Asked of the CPU and, for the registers it has to save, of the operating system;
// __builtin_cpu_supports() is always false in what zig builds.
int fano_best_isa() {
#if defined(__x86_64__)
  uint32_t a, b, c, d, saved;
  if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_OSXSAVE) || !(c & bit_FMA)) return 0;
  __asm__("xgetbv" : "=a"(saved), "=d"(d) : "c"(0));
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return 0;
  if ((b & bit_AVX2) && (b & bit_AVX512F) && (saved & 0xe6) == 0xe6) {
    if (!(c & bit_AVX512VNNI)) return 2;
    return __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & bit_AVX512BF16) ? 4 : 3;
  }
  if ((b & bit_AVX2) && (saved & 0x6) == 0x6) return 1;
#endif
  return 0;
}

void fano_exp(const float* x, float* y, int64_t count, int isa) {
  FANO_DISPATCH(isa, exp_all(x, y, count));
  (void)isa;
}

// Both kernels return 0, or 1 where the sequences do not fit the tensors; nothing was touched then.
int fano_scan(const float* u, int64_t u_stride, const float* dt, int64_t dt_stride, const float* dt_bias,
              const float* a, const float* b, int64_t b_stride, const float* c, int64_t c_stride, const float* d,
              const float* z, int64_t z_stride, float* state, float* y, const int64_t* query_start,
              const int64_t* state_slots, int64_t num_tokens, int64_t num_sequences, int64_t num_slots, int64_t num_channels, int64_t num_states,
              int num_threads, int isa) {
  if (!are_valid(query_start, state_slots, num_sequences, num_tokens, num_slots)) return 1;
  const Scan args{u, dt, dt_bias, a, b, c, d, z, state, y, query_start, state_slots,
                  u_stride, dt_stride, b_stride, c_stride, z_stride, num_sequences, num_channels, num_states};
  split(run_scan, args, num_tokens * num_channels * num_states, num_threads, isa);
  return 0;
}

int fano_conv(const float* x, int64_t x_stride, const float* weight, const float* bias, float* state, float* y,
              const int64_t* query_start, const int64_t* state_slots, int64_t num_tokens, int64_t num_sequences,
              int64_t num_slots, int64_t num_channels, int64_t num_taps, int num_threads, int isa) {
  if (!are_valid(query_start, state_slots, num_sequences, num_tokens, num_slots)) return 1;
  const Conv args{x, weight, bias, state, y, query_start, state_slots, x_stride, num_sequences, num_channels, num_taps};
  split(run_conv, args, num_tokens * num_channels * num_taps, num_threads, isa);
  return 0;
}

int64_t fano_attend_workspace(const Attend* args, int num_threads) {
  Attend a = *args;
  AttendSpace w;
  a.padded_width = (a.head_width + PADDING - 1) / PADDING * PADDING;
  measure(a.spans, a.num_sequences, &a);
  return lay_out(a, nullptr, &w) * (num_threads < MAX_THREADS ? num_threads : MAX_THREADS);
}

// Returns 0, or 1 where the sequences do not fit the tensors; nothing was touched then.
int fano_attend(const Attend* args, float* workspace, int num_threads, int isa) {
  Attend a = *args;
  a.padded_width = (a.head_width + PADDING - 1) / PADDING * PADDING;
  measure(a.spans, a.num_sequences, &a);
  if (!are_valid(a)) return 1;
  AttendWork work{&a, workspace, 0, 0, isa};
  const int64_t num_tokens = a.query_start[a.num_sequences];
  int64_t num_parts = num_tokens * a.num_heads * a.head_width / ATTEND_WORK;
  if (num_parts > num_threads) num_parts = num_threads;
  if (num_parts > MAX_THREADS) num_parts = MAX_THREADS;
  pthread_t threads[MAX_THREADS];
  int64_t num_started = 1;
  for (; num_started < num_parts; num_started++) {
    if (pthread_create(&threads[num_started], nullptr, run_attend, &work)) break;
  }
  run_attend(&work);
  for (int64_t part = 1; part < num_started; part++) pthread_join(threads[part], nullptr);
  return 0;
}

// Which blocks of the archive the tokens choose: `places` [T, key heads, most], rising, -1 behind them. Of `args` neither
// keys and values nor the tables of blocks are read; the workspace is that of fano_attend. Returns 0, or 1 where what may
// be chosen is not in the archive; nothing was touched then.
int fano_choose(const Attend* args, int32_t* places, int64_t most, float* workspace, int num_threads, int isa) {
  Attend a = *args;
  a.padded_width = (a.head_width + PADDING - 1) / PADDING * PADDING;
  measure(a.spans, a.num_sequences, &a);
  if (!can_choose(a, most)) return 1;
  ChooseWork work{&a, places, workspace, most, 0, 0, isa};
  const int64_t num_tokens = a.query_start[a.num_sequences];
  int64_t num_parts = num_tokens * a.num_heads * a.num_places / CHOOSE_WORK;
  const int64_t num_units = (num_tokens / TILE_TOKENS + a.num_sequences) * a.num_kv_heads;
  if (num_parts > num_units) num_parts = num_units;
  if (num_parts > num_threads) num_parts = num_threads;
  if (num_parts > MAX_THREADS) num_parts = MAX_THREADS;
  pthread_t threads[MAX_THREADS];
  int64_t num_started = 1;
  for (; num_started < num_parts; num_started++) {
    if (pthread_create(&threads[num_started], nullptr, run_choose, &work)) break;
  }
  run_choose(&work);
  for (int64_t part = 1; part < num_started; part++) pthread_join(threads[part], nullptr);
  return 0;
}

int64_t fano_step_workspace(const Model* model, const Step* step, int num_threads) {
  Workspace w;
  return lay_out(*model, *step, num_threads, 0, nullptr, &w);
}

// Returns 0, or 1 where the step does not fit model and pools; nothing was touched then.
int fano_step(const Model* model, const Step* step, int num_threads, int isa) {
  if (!are_valid(*model, *step)) return 1;
  const int64_t size = crew_size(*model, step->num_tokens, num_threads);
  Crew crew{0, 0, 0, 0};
  Member members[MAX_THREADS];
  pthread_t threads[MAX_THREADS];
  for (int64_t part = 0; part < size; part++) {
    members[part] = {model, step, &crew, {}, part, isa};
    lay_out(*model, *step, num_threads, part, step->workspace, &members[part].workspace);
  }
  int64_t num_started = 1;
  for (; num_started < size; num_started++) {
    if (pthread_create(&threads[num_started], nullptr, run_member, &members[num_started])) break;
  }
  // Nobody works before it is known how many there are: a thread may not be had.
  __atomic_store_n(&crew.size, num_started, __ATOMIC_RELEASE);
  run_member(&members[0]);
  for (int64_t part = 1; part < num_started; part++) pthread_join(threads[part], nullptr);
  return 0;
}

// Floats that fano_product works in.
int64_t fano_product_workspace(int64_t num_tokens, int64_t size) { return num_tokens * arranged_floats(size); }

void fano_product(const Product* product, float* workspace, int num_threads, int isa) {
  FANO_DISPATCH(isa, arrange_for(*product, workspace));
  int64_t num_parts = product->num_tokens * product->num_rows * product->size / PRODUCT_WORK;
  if (num_parts > num_threads) num_parts = num_threads;
  if (num_parts > MAX_THREADS) num_parts = MAX_THREADS;
  if (num_parts < 1) num_parts = 1;
  MultiplyPart parts[MAX_THREADS];
  pthread_t threads[MAX_THREADS];
  for (int64_t part = 0; part < num_parts; part++) parts[part] = {product, workspace, part, num_parts, isa};
  int64_t num_started = 1;
  for (; num_started < num_parts; num_started++) {
    if (pthread_create(&threads[num_started], nullptr, run_multiply, &parts[num_started])) break;
  }
  run_multiply(&parts[0]);
  // No thread to be had: the remaining parts run here.
  for (int64_t part = num_started; part < num_parts; part++) run_multiply(&parts[part]);
  for (int64_t part = 1; part < num_started; part++) pthread_join(threads[part], nullptr);
}
}
