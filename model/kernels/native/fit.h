// What fits: the workspaces of the kernels, and whether what they are given is within the tensors. The last line of
// defence before memory is written: nothing is touched when a check fails.

#pragma once

#include "arguments.h"

// Whether the sequences are where they say: the last line of defence before memory is written.
static bool are_valid(const int64_t* query_start, const int64_t* state_slots, int64_t num_sequences, int64_t num_tokens,
                      int64_t num_slots) {
  if (query_start[0] != 0 || query_start[num_sequences] != num_tokens) return false;
  for (int64_t i = 0; i < num_sequences; i++) {
    if (query_start[i] > query_start[i + 1] || state_slots[i] < 0 || state_slots[i] >= num_slots) return false;
  }
  return true;
}

constexpr int64_t MOST_HEADS = 3;  // of any instruction set's HEAD_TILE

static int64_t largest(int64_t a, int64_t b) { return a > b ? a : b; }

// Lay the workspace of `part` out from `start`, where there is one; returns the size in floats of that of all.
static int64_t lay_out(const Model& m, int64_t num_sequences, int64_t num_visible, int64_t num_parts, int64_t part,
                       float* start, Workspace* w) {
  const int64_t queries = m.num_heads * m.head_width, keys = m.num_kv_heads * m.head_width;
  int64_t taken = 0;
  const auto take = [&taken, start](int64_t size) {
    float* part = start ? start + taken : nullptr;
    taken += size;
    return part;
  };
  w->x = take(num_sequences * m.width);
  w->wide = take(num_sequences * largest(queries + 2 * keys, 2 * largest(m.inner, m.ffn)));
  w->inner = take(num_sequences * m.inner);
  w->delta = take(num_sequences * m.inner);
  w->mixed = take(num_sequences * largest(queries, m.inner));
  const int64_t shared = taken;
  // A cache line between the parts.
  const auto take_own = [&] {
    w->normed = take(num_sequences * m.width);
    w->selected = take(num_sequences * (m.dt_rank + 2 * m.num_states));
    w->gated = take(num_sequences * m.ffn);
    w->apart = take(num_sequences * largest(largest(queries, m.width), largest(m.inner, m.ffn)));
    w->scores = take(num_visible * MOST_HEADS);
    taken += CHANNEL_GRAIN;
  };
  take_own();
  const int64_t own = taken - shared;
  taken = shared + part * own;
  take_own();
  return shared + num_parts * own;
}

static int64_t most_visible(const Step& s) {
  int64_t most = 0;
  for (int64_t i = 0; i < s.num_sequences; i++) {
    const Sequence& q = s.sequences[i];
    most = largest(most, q.range_end[0] - q.range_start[0] + q.range_end[1] - q.range_start[1]);
  }
  return most;
}

static bool are_valid(const Model& m, const Step& s) {
  if (!are_valid(s.query_start, s.state_slots, s.num_sequences, s.num_sequences, s.num_slots)) return false;
  for (int64_t i = 0; i < s.num_sequences; i++) {
    const Sequence& q = s.sequences[i];
    if (s.query_start[i] != i || s.input_ids[i] < 0 || s.input_ids[i] >= m.vocabulary) return false;
    if (s.kv_rows[i] < 0 || s.kv_rows[i] >= s.num_blocks * BLOCK_TOKENS) return false;
    for (int range = 0; range < 2; range++) {
      if (q.range_start[range] < 0 || q.range_end[range] > q.num_blocks * BLOCK_TOKENS) return false;
      for (int64_t p = q.range_start[range]; p < q.range_end[range]; p = (p / BLOCK_TOKENS + 1) * BLOCK_TOKENS) {
        const int64_t block = q.blocks[p / BLOCK_TOKENS];
        if (block < 0 || block >= s.num_blocks) return false;
      }
    }
  }
  for (int64_t i = 0; i < s.num_logits; i++) {
    if (s.logits_rows[i] < 0 || s.logits_rows[i] >= s.num_sequences) return false;
  }
  return true;
}

// Tokens of a query tile, and floats to which a head's width is rounded up.
constexpr int64_t TILE_TOKENS = 32;
constexpr int64_t PADDING = 16;

// Floats of the workspace that one thread of fano_attend takes.
static int64_t lay_out(const Attend& a, float* start, AttendSpace* w) {
  const int64_t rows = TILE_TOKENS * (a.num_heads / a.num_kv_heads);
  int64_t taken = 0;
  const auto take = [&taken, start](int64_t size) {
    float* part = start ? start + taken : nullptr;
    taken += (size + CHANNEL_GRAIN - 1) / CHANNEL_GRAIN * CHANNEL_GRAIN;
    return part;
  };
  w->queries = take(rows * a.padded_width);
  w->mixed = take(rows * a.padded_width);
  w->scores = take(rows * BLOCK_TOKENS);
  w->keys = take(a.padded_width * BLOCK_TOKENS);
  w->values = take(BLOCK_TOKENS * a.padded_width);
  w->peaks = take(rows);
  w->totals = take(rows);
  return taken;
}

static bool are_valid(const Attend& a) {
  if (a.query_start[0] != 0 || a.num_heads % a.num_kv_heads) return false;
  for (int64_t i = 0; i < a.num_sequences; i++) {
    const Span& s = a.spans[i];
    const int64_t end = s.first_position + a.query_start[i + 1] - a.query_start[i];
    if (a.query_start[i] > a.query_start[i + 1] || s.first_position < 0 || end > s.num_blocks * BLOCK_TOKENS) return false;
    if (!s.is_full && (s.sinks % BLOCK_TOKENS || s.window % BLOCK_TOKENS || s.sinks < 0 || s.window < 1)) return false;
    if (a.query_start[i] == a.query_start[i + 1]) continue;
    const int64_t start = s.first_position - s.window + 1, window = s.is_full || start < 0 ? 0 : start / BLOCK_TOKENS;
    for (int64_t place = 0; place * BLOCK_TOKENS < end; place++) {
      if (place * BLOCK_TOKENS >= s.sinks && place < window) place = window;
      if (s.blocks[place] < 0 || s.blocks[place] >= a.num_blocks) return false;
    }
  }
  return true;
}
