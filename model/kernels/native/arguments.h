// What the kernels are given. Strides are in floats between rows; everything without a stride is contiguous.
// model/kernels/native.py and model/kernels/decoder.py hold the other side of these layouts.

#pragma once

#include <sched.h>
#include <stdint.h>

typedef uint16_t bf16;

constexpr int64_t BLOCK_TOKENS = 64;
constexpr int64_t CHANNEL_GRAIN = 16;  // one cache line, so that threads never write to the same one

struct Scan {
  const float *u, *dt, *dt_bias, *a, *b, *c, *d, *z;
  float *state, *y;
  const int64_t *query_start, *state_slots;
  int64_t u_stride, dt_stride, b_stride, c_stride, z_stride, num_sequences, num_channels, num_states;
};

struct Conv {
  const float *x, *weight, *bias;
  float *state, *y;
  const int64_t *query_start, *state_slots;
  int64_t x_stride, num_sequences, num_channels, num_taps;
};

// One sequence of a step: the policy's numbers, the first position of its tokens, and its block table.
struct Span {
  const int64_t* blocks;
  int64_t num_blocks, first_position, is_full, sinks, window;
};

// `queries` [T, heads, width] with `query_stride` elements between tokens, `out` [T, heads, width], keys and values
// [num_blocks, BLOCK_TOKENS, key heads, width], all in the weight dtype. `padded_width` is the head width rounded up
// to the widest register.
struct Attend {
  const void *queries, *keys, *values;
  void* out;
  const int64_t* query_start;
  const Span* spans;
  int64_t is_bf16, query_stride, num_sequences, num_blocks, num_heads, num_kv_heads, head_width, padded_width;
};

// A thread's workspace: `queries` and `mixed` [rows, padded width], `scores` [rows, BLOCK_TOKENS], `keys`
// [padded width, BLOCK_TOKENS], `values` [BLOCK_TOKENS, padded width], `peaks` and `totals` [rows].
struct AttendSpace {
  float *queries, *mixed, *scores, *keys, *values, *peaks, *totals;
};

// Matrices are [out, in] in the weight dtype, everything else is float32. `in_proj` of an attention layer holds the
// queries, keys and values one under the other.
struct Layer {
  int64_t is_attention;
  const float *mixer_norm, *ffn_norm;
  const void *in_proj, *out_proj, *gate_up, *down, *x_proj;
  const float *conv_weight, *conv_bias, *dt_norm, *b_norm, *c_norm, *dt_weight, *dt_bias, *a, *d;
};

struct Model {
  int64_t is_bf16, num_layers, vocabulary, width, inner, num_states, num_taps, dt_rank, ffn, num_heads, num_kv_heads,
      head_width;
  double eps;
  const void *embedding, *head;
  const float* final_norm;
  const Layer* layers;
};

// Where one sequence stands: it sees the positions of both half-open ranges.
struct Sequence {
  const int64_t* blocks;
  int64_t num_blocks, range_start[2], range_end[2];
};

// One token of each sequence. States and keys/values are whole pools, of all layers of their kind.
struct Step {
  int64_t num_sequences, num_logits, num_slots, num_blocks;
  const int64_t *input_ids, *query_start, *state_slots, *kv_rows, *logits_rows;
  const Sequence* sequences;
  float *ssm, *conv;
  void *keys, *values;
  float *logits, *workspace;
};

// Parts of a step's workspace, with one row per sequence. All threads share the first line. Each has the second to
// itself; `scores` are those of one head tile over the longest visible context, `apart` is for product().
struct Workspace {
  float *x, *wide, *inner, *delta, *mixed;
  float *normed, *selected, *gated, *apart, *scores;
};

// The threads of one step. They meet at a barrier: `num_arrived` of them stand at the `num_meetings`-th. `size` is 0
// until it is known how many there are.
struct Crew {
  int64_t size;
  int num_arrived, num_meetings;
};

// One more look at what another thread is to change: some 20 us of looking, since the others are mostly as far; then
// the core is offered to whoever wants it, for on a busy machine the one that is waited for may need it.
inline void look_again(int looks) {
  if (looks >= 2000) {
    sched_yield();
    return;
  }
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

// Wait until all of the crew are here.
inline void meet(Crew& crew) {
  if (crew.size == 1) return;
  const int meeting = __atomic_load_n(&crew.num_meetings, __ATOMIC_RELAXED);
  if (__atomic_add_fetch(&crew.num_arrived, 1, __ATOMIC_ACQ_REL) == crew.size) {
    __atomic_store_n(&crew.num_arrived, 0, __ATOMIC_RELAXED);
    __atomic_store_n(&crew.num_meetings, meeting + 1, __ATOMIC_RELEASE);
    return;
  }
  for (int looks = 0; __atomic_load_n(&crew.num_meetings, __ATOMIC_ACQUIRE) == meeting; looks++) look_again(looks);
}

inline float widen_one(float x) { return x; }

inline float widen_one(bf16 x) {
  const uint32_t bits = (uint32_t)x << 16;
  float wide;
  __builtin_memcpy(&wide, &bits, sizeof wide);
  return wide;
}

inline void narrow(float x, float* to) { *to = x; }

// To nearest, ties to even; NaN stays NaN.
inline void narrow(float x, bf16* to) {
  uint32_t bits;
  __builtin_memcpy(&bits, &x, sizeof bits);
  *to = x == x ? (bf16)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16) : (bf16)0x7fc0;
}
