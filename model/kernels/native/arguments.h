// What the kernels are given. Strides are in floats between rows; everything without a stride is contiguous.
// model/kernels/native.py and model/kernels/decoder.py hold the other side of these layouts.

#pragma once

#include <stdint.h>

typedef uint16_t bf16;

constexpr int64_t BLOCK_TOKENS = 64;

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

// Parts of a step's workspace; each has one row per sequence, but for `scores`
// [longest visible context]. `apart` is for product().
struct Workspace {
  float *x, *normed, *wide, *inner, *selected, *delta, *mixed, *apart, *scores;
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
