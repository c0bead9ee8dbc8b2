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

static int64_t largest(int64_t a, int64_t b) { return a > b ? a : b; }

// Tokens of a query tile, and floats to which a head's width is rounded up.
constexpr int64_t TILE_TOKENS = 32;
constexpr int64_t PADDING = 16;

// Floats that the search of an index works in: how like the query each list is, a score of each block, and the strips of
// the lists that are looked through, whose last ones are not full.
static int64_t search_floats(const Archive* a) {
  return a && a->index_blocks ? 2 * (a->index_blocks + (a->num_lists + STRIP - 1) / STRIP * STRIP) : 0;
}

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
  if (a.num_places) {
    w->best_scores = take(TILE_TOKENS * a.most_selected);
    w->best_places = (int32_t*)take(TILE_TOKENS * a.most_selected);
    w->marks = (uint32_t*)take(a.num_places);
    w->few_queries = take(rows * a.padded_width);
    w->few_mixed = take(rows * a.padded_width);
    w->few_peaks = take(rows);
    w->few_totals = take(rows);
    w->search = take(search_floats(a.archive));
  }
  return taken;
}

// What selecting takes: places of the longest sequence that selects, and most blocks of which a list is made. Where all
// are seen no list is made.
static void measure(const Span* spans, int64_t num_sequences, Attend* a) {
  for (int64_t i = 0; i < num_sequences; i++) {
    if (!spans[i].select) continue;
    const int64_t places = spans[i].num_archived, listed = spans[i].select < places ? spans[i].select : 0;
    a->num_places = largest(a->num_places, largest(1, places));
    a->most_selected = largest(a->most_selected, listed);
  }
}

// Lay the workspace of `part` out from `start`, where there is one; returns the size in floats of that of all.
static int64_t lay_out(const Model& m, const Step& s, int64_t num_parts, int64_t part, float* start, Workspace* w) {
  const int64_t queries = m.num_heads * m.head_width, keys = m.num_kv_heads * m.head_width, rows = s.num_tokens;
  int64_t taken = 0;
  const auto take = [&taken, start](int64_t size) {
    float* place = start ? start + taken : nullptr;
    taken += (size + CHANNEL_GRAIN - 1) / CHANNEL_GRAIN * CHANNEL_GRAIN;
    return place;
  };
  w->wide = take(rows * largest(queries + 2 * keys, 2 * largest(m.inner, m.ffn)));
  w->inner = take(rows * m.inner);
  w->delta = take(rows * m.inner);
  w->mixed = take(rows * largest(queries, m.inner));
  const auto take_narrow = [&] {
    w->normed = take(rows * arranged_floats(m.width));
    w->selected = take(rows * (m.dt_rank + 2 * m.num_states));
    w->gated = take(rows * arranged_floats(m.ffn));
    w->arranged = take(rows * arranged_floats(largest(queries, m.inner)));
  };
  const bool few = rows < MANY_TOKENS;
  if (!few) take_narrow();
  Attend a{};
  a.num_heads = m.num_heads;
  a.num_kv_heads = m.num_kv_heads;
  a.head_width = m.head_width;
  a.padded_width = (m.head_width + PADDING - 1) / PADDING * PADDING;
  a.archive = s.archive;
  measure(s.spans, s.num_sequences, &a);
  const auto take_own = [&] {
    if (few) take_narrow();
    w->row = take(largest(m.width, m.ffn));
    w->peaks = take(m.num_heads);
    w->totals = take(m.num_heads);
    taken += lay_out(a, start ? start + taken : nullptr, &w->attend);
    taken += CHANNEL_GRAIN;  // a cache line between the parts
  };
  const int64_t shared = taken;
  take_own();
  const int64_t own = taken - shared;
  taken = shared + part * own;
  take_own();
  return shared + num_parts * own;
}

// Whether what a span may select is in the archive.
static bool is_archived(const Span& s, int64_t end, const Archive* archive) {
  if (!s.select || end <= s.select_from) return true;
  const int64_t start = end - s.window, beyond = start < 0 ? 0 : start / BLOCK_TOKENS;
  if (beyond <= s.sinks / BLOCK_TOKENS) return true;
  if (!archive || s.select < 0 || s.num_archived < beyond) return false;
  for (int64_t place = s.sinks / BLOCK_TOKENS; place < beyond; place++) {
    if (s.archived[place] < 0 || s.archived[place] >= archive->num_blocks) return false;
  }
  if (!archive->index_blocks) return true;
  const int64_t left = beyond - s.sinks / BLOCK_TOKENS - archive->num_late;
  return left < 0 || left / archive->index_blocks <= s.num_indexes;
}

// Whether what leaves the pool is there and has a place.
static bool is_valid(const Archive* archive, int64_t num_blocks) {
  if (!archive) return true;
  for (int64_t i = 0; i < archive->num_leaving; i++) {
    const int64_t block = archive->leaving[2 * i], number = archive->leaving[2 * i + 1];
    if (block < 0 || block >= num_blocks || number < 0 || number >= archive->num_blocks) return false;
  }
  return true;
}

// Whether the spans see blocks of the pool and of the archive only.
static bool are_valid(const Span* spans, const int64_t* query_start, int64_t num_sequences, int64_t num_blocks,
                      const Archive* archive) {
  if (!is_valid(archive, num_blocks)) return false;
  for (int64_t i = 0; i < num_sequences; i++) {
    const Span& s = spans[i];
    const int64_t end = s.first_position + query_start[i + 1] - query_start[i];
    if (query_start[i] > query_start[i + 1] || s.first_position < 0 || end > s.num_blocks * BLOCK_TOKENS) return false;
    if (!s.is_full && (s.sinks % BLOCK_TOKENS || s.window % BLOCK_TOKENS || s.sinks < 0 || s.window < 1)) return false;
    if (query_start[i] == query_start[i + 1]) continue;
    if (!is_archived(s, end, archive)) return false;
    const int64_t start = s.first_position - s.window + 1, window = s.is_full || start < 0 ? 0 : start / BLOCK_TOKENS;
    for (int64_t place = 0; place * BLOCK_TOKENS < end; place++) {
      if (place * BLOCK_TOKENS >= s.sinks && place < window) place = window;
      if (s.blocks[place] < 0 || s.blocks[place] >= num_blocks) return false;
    }
  }
  return true;
}

static bool are_valid(const Attend& a) {
  if (a.query_start[0] != 0 || a.num_heads % a.num_kv_heads) return false;
  return are_valid(a.spans, a.query_start, a.num_sequences, a.num_blocks, a.archive);
}

// Whether what the spans may choose is in the archive, and lists of `most` hold it.
static bool can_choose(const Attend& a, int64_t most) {
  if (a.query_start[0] != 0 || a.num_heads % a.num_kv_heads || !a.archive) return false;
  for (int64_t i = 0; i < a.num_sequences; i++) {
    const Span& s = a.spans[i];
    const int64_t end = s.first_position + a.query_start[i + 1] - a.query_start[i];
    if (a.query_start[i] > a.query_start[i + 1] || s.first_position < 0 || s.select > most) return false;
    if (s.is_full || s.sinks % BLOCK_TOKENS || s.window % BLOCK_TOKENS || s.sinks < 0 || s.window < 1) return false;
    if (!is_archived(s, end, a.archive)) return false;
  }
  return true;
}

static bool are_valid(const Model& m, const Step& s) {
  if (!are_valid(s.query_start, s.state_slots, s.num_sequences, s.num_tokens, s.num_slots)) return false;
  if (s.num_decodes > s.num_sequences) return false;
  if (!are_valid(s.spans, s.query_start, s.num_sequences, s.num_blocks, s.archive)) return false;
  for (int64_t t = 0; t < s.num_tokens; t++) {
    if (s.input_ids[t] < 0 || s.input_ids[t] >= m.vocabulary) return false;
    if (s.kv_rows[t] < 0 || s.kv_rows[t] >= s.num_blocks * BLOCK_TOKENS) return false;
  }
  for (int64_t i = 0; i < s.num_decodes; i++) {
    const Sequence& q = s.sequences[i];
    if (s.query_start[i] != i || s.query_start[i + 1] != i + 1) return false;
    for (int range = 0; range < 2; range++) {
      if (q.range_start[range] < 0 || q.range_end[range] > q.num_blocks * BLOCK_TOKENS) return false;
      for (int64_t p = q.range_start[range]; p < q.range_end[range]; p = (p / BLOCK_TOKENS + 1) * BLOCK_TOKENS) {
        const int64_t block = q.blocks[p / BLOCK_TOKENS];
        if (block < 0 || block >= s.num_blocks) return false;
      }
    }
  }
  for (int64_t i = 0; i < s.num_logits; i++) {
    if (s.logits_rows[i] < 0 || s.logits_rows[i] >= s.num_tokens) return false;
  }
  return s.num_logits <= s.num_tokens;
}
