// What the kernels are given. Strides are in floats between rows; everything without a stride is contiguous.
// model/kernels/native.py and model/kernels/decoder.py hold the other side of these layouts.

#pragma once

#include <sched.h>
#include <stdint.h>

typedef uint16_t bf16;
struct int8 {
  uint8_t bits;
};

// As what a matrix is held.
enum WeightKind : int64_t { FLOAT32, BFLOAT16, INT8 };

constexpr int64_t BLOCK_TOKENS = 64;
constexpr int64_t CHANNEL_GRAIN = 16;  // one cache line, so that threads never write to the same one
constexpr int64_t STRIP = 16;          // outputs of a matrix that lie together: see product.h
constexpr int64_t MANY_TOKENS = 16;    // of so many in a step, threads share also what is narrow
constexpr int64_t RUNS = 16;           // means that sum a block of keys up: as SUMMARY_ROWS in model/tiles.py
constexpr int64_t GROUP = 32;          // int8 weights of an output that share a scale: see groups.h
constexpr int64_t PAIR_BYTES = 2 * (GROUP + sizeof(bf16));  // two groups of an output with their scales

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

// One sequence of a step: the policy's numbers, the first position of its tokens, and its block table. From the position
// `select_from` on a token sees also the `select` best of its blocks between sinks and window, unless that is 0;
// `archived` are the numbers in the archive of the first `num_archived` of them, by place; `indexes` the addresses of the
// `num_indexes` that its tokens choose by, from its first block on.
struct Span {
  const int64_t* blocks;
  int64_t num_blocks, first_position, is_full, sinks, window;
  const int64_t* archived;
  int64_t num_archived, select, select_from;
  const int64_t* indexes;
  int64_t num_indexes;
};

// Means of neighbouring blocks in lists of like ones, [layers, key heads, ...] in the dtype of the pool: `centres` of the
// lists in strips, the strip that each list `starts` with and where the last ends, `means` [num_strips] strips, and
// `places` [num_strips, STRIP] of the blocks they are of.
struct Index {
  const void* centres;
  const int32_t* starts;
  const void* means;
  const int32_t* places;
  int64_t num_strips;
};

// Blocks that left the windows, [blocks, layers, 2, BLOCK_TOKENS, key heads, width] keys and values: the first
// `num_in_memory` in `memory`, the others in `file`; their summaries [layers, key heads, num_blocks], each the means
// of RUNS runs of neighbouring keys as one strip (see product.h); all in the dtype of the pool. `leaving` are pairs of a
// block of the pool and the number it is copied to in this step. `index_blocks` of a text, counted from its sinks on, share
// an index of `num_lists` lists, of which a token looks through `num_probed`, once they all stand `num_late` blocks before
// its window; 0 where there are none.
struct Archive {
  void *memory, *file, *summaries;
  int64_t num_in_memory, num_blocks, num_layers, num_leaving;
  const int64_t* leaving;
  int64_t index_blocks, num_lists, num_probed, num_late;
};

// `queries` [T, heads, width] float32 with `query_stride` elements between tokens, `out` [T, heads, width] float32, keys
// and values [num_blocks, BLOCK_TOKENS, key heads, width] in the weight dtype. `padded_width` is the head width rounded
// up to the widest register.
struct Attend {
  const float* queries;
  const void *keys, *values;
  float* out;
  const int64_t* query_start;
  const Span* spans;
  int64_t is_bf16, query_stride, num_sequences, num_blocks, num_heads, num_kv_heads, head_width, padded_width;
  const Archive* archive;
  int64_t layer, num_places, most_selected;
};

// The best blocks of a token so far: `scores` falling, and where they stand.
struct Best {
  float* scores;
  int32_t* places;
  int64_t size;
};

// A thread's workspace: `queries` and `mixed` [rows, padded width], `scores` [rows, BLOCK_TOKENS], `keys` and `values`
// [padded width * BLOCK_TOKENS] in strips, `peaks` and `totals` [rows]. Where blocks are selected, for each token of a tile
// its best ones, `marks` [places] with a bit for each token that sees the block, and a second set of what is by row; where
// there are indexes, what a `search` works in.
struct AttendSpace {
  float *queries, *mixed, *scores, *keys, *values, *peaks, *totals;
  float *best_scores, *few_queries, *few_mixed, *few_peaks, *few_totals, *search;
  int32_t* best_places;
  uint32_t* marks;
};

// Matrices are in strips (see product.h) of the model's kind, `dt_proj` in float32; everything else is float32.
// `in_proj` of an attention layer holds the queries, keys and values one under the other.
struct Layer {
  int64_t is_attention;
  const float *mixer_norm, *ffn_norm;
  const void *in_proj, *out_proj, *gate_up, *down, *x_proj;
  const float *dt_proj, *conv_weight, *conv_bias, *dt_norm, *b_norm, *c_norm, *dt_bias, *a, *d;
};

struct Model {
  int64_t weight_kind, num_layers, vocabulary, width, inner, num_states, num_taps, dt_rank, ffn, num_heads, num_kv_heads,
      head_width;
  double eps;
  const void *embedding, *head;
  const float* final_norm;
  const Layer* layers;
};

// Where a sequence stands that decodes: it sees the positions of both half-open ranges.
struct Sequence {
  const int64_t* blocks;
  int64_t num_blocks, range_start[2], range_end[2];
};

// Tokens of several sequences: first one of each that decodes, then prompts. `sequences` are those that decode, `spans`
// are of all. States and keys/values are whole pools, of all layers of their kind. Written are `x` [num_tokens, width],
// the residual stream at the end; `hidden` [num_logits, width], its normed rows `logits_rows`; and their `logits`.
struct Step {
  int64_t num_tokens, num_sequences, num_decodes, num_logits, num_slots, num_blocks;
  const int64_t *input_ids, *query_start, *state_slots, *kv_rows, *logits_rows;
  const Sequence* sequences;
  const Span* spans;
  float *ssm, *conv;
  void *keys, *values;
  float *x, *hidden, *logits, *workspace;
  const Archive* archive;
};

// Parts of a step's workspace, with one row per token. All threads share the first line, and of many tokens the second
// too; of few, each has it to itself. The third is each one's own: `row` is one row; `peaks` and `totals` have a number
// for each head. `normed`, `gated` and `arranged` hold rows as product() reads them.
struct Workspace {
  float *wide, *inner, *delta, *mixed;
  float *normed, *selected, *gated, *arranged;
  float *row, *peaks, *totals;
  AttendSpace attend;
};

// One product on its own.
struct Product {
  const float* x;
  const void* matrix;
  float* out;
  int64_t weight_kind, x_stride, num_tokens, num_rows, size;
};

// The threads of one step. They meet at a barrier: `num_arrived` of them stand at the `num_meetings`-th. `size` is 0
// until it is known how many there are. `next` is the first unit that nobody has of work that is handed out.
struct Crew {
  int64_t size, next;
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

// Inputs of a row of a matrix in strips, with zeros beyond the last: bfloat16 lie in pairs, int8 in pairs of groups.
template <class Weight>
inline int64_t depth_of(int64_t size) { return size; }

template <>
inline int64_t depth_of<bf16>(int64_t size) { return (size + 1) / 2 * 2; }

template <>
inline int64_t depth_of<int8>(int64_t size) { return (size + 2 * GROUP - 1) / (2 * GROUP) * 2 * GROUP; }

// Elements of a strip.
template <class Weight>
inline int64_t strip_of(int64_t depth) { return depth * STRIP; }

template <>
inline int64_t strip_of<int8>(int64_t depth) { return depth / (2 * GROUP) * PAIR_BYTES * STRIP; }

// Elements of a row of activations as product() reads it: see arrange().
template <class Weight>
inline int64_t row_of(int64_t size) { return depth_of<Weight>(size); }

template <>
inline int64_t row_of<int8>(int64_t size) {
  return depth_of<int8>(size) / GROUP * (GROUP + sizeof(float) + sizeof(int32_t));
}

// Floats that such a row takes at most.
inline int64_t arranged_floats(int64_t size) {
  const int64_t wide = depth_of<bf16>(size), narrow = row_of<int8>(size) / sizeof(float);
  return wide > narrow ? wide : narrow;
}

// As what keys and values are held beside weights of a kind.
template <class Weight>
struct Kept {
  typedef Weight type;
};

template <>
struct Kept<int8> {
  typedef bf16 type;
};

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
