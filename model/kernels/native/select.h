// Which of the blocks that left the windows a token sees, for one instruction set. No include guard: see vector.h.
// Specification: model/kernels/selection.py.
//
// A block's score is the same sum, in the same order, beside whatever is asked, and wherever in the archive it stands.

namespace FANO_SET {

// Keys and values of a block of the archive: values follow the keys.
template <class Weight>
FANO_INLINE Weight* archived_block(const Archive& a, int64_t number, int64_t layer, int64_t row) {
  const bool is_near = number < a.num_in_memory;
  auto* base = (Weight*)(is_near ? a.memory : a.file);
  return base + ((is_near ? number : number - a.num_in_memory) * a.num_layers + layer) * 2 * BLOCK_TOKENS * row;
}

template <class Weight>
FANO_INLINE Weight* summary_of(const Archive& a, int64_t number, int64_t layer, int64_t group, int64_t num_groups,
                               int64_t width) {
  return (Weight*)a.summaries + ((layer * num_groups + group) * a.num_blocks + number) * 2 * width;
}

// What the query heads of a key head ask of a summary: the sum of the heads, and half the sum of their squares.
FANO_INLINE void ask(const float* queries, int64_t num_heads, int64_t width, float* asked) {
  const float scale = 1.0f / __builtin_sqrtf((float)width);
  for (int64_t e = 0; e < width; e++) {
    float sum = 0, squares = 0;
    for (int64_t h = 0; h < num_heads; h++) {
      const float query = queries[h * width + e] * scale;
      sum += query;
      squares += query * query;
    }
    asked[e] = sum;
    asked[width + e] = 0.5f * squares;
  }
}

// The scores of four blocks: products of `asked` with their summaries, both of `size` numbers.
template <class Weight>
FANO_INLINE quad score_blocks(const Weight* const* summaries, const float* asked, int64_t size) {
  vec sums[4] = {};
  int64_t e = 0;
  for (; e + WIDTH <= size; e += WIDTH) {
    const vec present = load<false>(asked + e, WIDTH);
    for (int k = 0; k < 4; k++) sums[k] = widen(summaries[k] + e) * present + sums[k];
  }
  quad found = sums_of(sums);
  for (; e < size; e++) {
    for (int k = 0; k < 4; k++) found[k] += widen_one(summaries[k][e]) * asked[e];
  }
  return found;
}

// Places come in rising order, so that of equal scores the earlier stays ahead.
FANO_INLINE void take_in(Best& best, int64_t most, float score, int64_t place) {
  if (best.size == most && !(score > best.scores[most - 1])) return;
  int64_t at = best.size < most ? best.size++ : most - 1;
  for (; at > 0 && score > best.scores[at - 1]; at--) {
    best.scores[at] = best.scores[at - 1];
    best.places[at] = best.places[at - 1];
  }
  best.scores[at] = score;
  best.places[at] = (int32_t)place;
}

// Places of the first block that can be selected, and beyond the last, for the token at `position`.
FANO_INLINE int64_t first_place(const Span& s) { return s.sinks / BLOCK_TOKENS; }

FANO_INLINE int64_t beyond_places(const Span& s, int64_t position) {
  const int64_t first = first_place(s), beyond = (position - s.window + 1) / BLOCK_TOKENS;
  return !s.select || position < s.select_from || position < s.window || beyond < first ? first : beyond;
}

// The best blocks of `num_tokens` tokens at `position` and after, of one key head: `best` [num_tokens], of which those
// stay empty that see all there are. Queries of a token lie `stride` floats after those of the one before; `asked` has
// room for what the tokens ask.
template <class Weight>
FANO_TARGET static void select_blocks(const Archive& a, const Span& s, int64_t layer, int64_t group, int64_t num_groups,
                                      int64_t position, int64_t num_tokens, const float* queries, int64_t stride,
                                      int64_t num_heads, int64_t width, float* asked, Best* best) {
  const int64_t first = first_place(s), beyond = beyond_places(s, position + num_tokens - 1);
  if (beyond - first <= s.select) return;
  const int64_t size = 2 * width;
  for (int64_t t = 0; t < num_tokens; t++) ask(queries + t * stride, num_heads, width, asked + t * size);
  for (int64_t p = first; p < beyond; p += 4) {
    const Weight* rows[4];
    for (int k = 0; k < 4; k++) {
      const int64_t place = p + k < beyond ? p + k : beyond - 1;
      rows[k] = summary_of<Weight>(a, s.archived[place], layer, group, num_groups, width);
    }
    for (int64_t t = 0; t < num_tokens; t++) {
      const int64_t last = beyond_places(s, position + t);
      if (last - first <= s.select || p >= last) continue;
      const quad scores = score_blocks(rows, asked + t * size, size);
      for (int k = 0; k < 4 && p + k < last; k++) take_in(best[t], s.select, scores[k], p + k);
    }
  }
}

// To bfloat16 and back, as narrow() rounds.
FANO_INLINE vec rounded(vec x) {
  const uvec bits = (uvec)x;
  return (vec)((bits + 0x7fff + ((bits >> 16) & 1)) & 0xffff0000u);
}

// Means and variances of the keys of one block and key head, by number of their width: `keys` lie `row` apart. Deviations
// are rounded so that their squares are exact, and added up one by one: every implementation comes to the same bits.
template <class Weight>
FANO_INLINE void sum_up(const Weight* keys, int64_t row, int64_t count, Weight* means, Weight* variances) {
  float held[BLOCK_TOKENS][WIDTH] = {};
  for (int64_t j = 0; j < BLOCK_TOKENS; j++) {
    for (int64_t e = 0; e < count; e++) held[j][e] = widen_one(keys[j * row + e]);
  }
  vec mean = load<false>(held[0], WIDTH), squares{};
  for (int64_t j = 1; j < BLOCK_TOKENS; j++) mean += load<false>(held[j], WIDTH);
  mean /= (float)BLOCK_TOKENS;
  for (int64_t j = 0; j < BLOCK_TOKENS; j++) {
    const vec deviation = rounded(load<false>(held[j], WIDTH) - mean);
    squares += deviation * deviation;
  }
  squares /= (float)BLOCK_TOKENS;
  for (int64_t e = 0; e < count; e++) {
    narrow(mean[e], means + e);
    narrow(squares[e], variances + e);
  }
}

// Copy one block that leaves the windows into the archive, and sum it up.
template <class Weight>
FANO_TARGET static void archive_block(const Archive& a, const int64_t* leaving, int64_t layer, const Weight* keys,
                                      const Weight* values, int64_t num_groups, int64_t width) {
  const int64_t row = num_groups * width, size = BLOCK_TOKENS * row;
  Weight* to = archived_block<Weight>(a, leaving[1], layer, row);
  keys += leaving[0] * size;
  __builtin_memcpy(to, keys, size * sizeof(Weight));
  __builtin_memcpy(to + size, values + leaving[0] * size, size * sizeof(Weight));
  for (int64_t group = 0; group < num_groups; group++) {
    Weight* summary = summary_of<Weight>(a, leaving[1], layer, group, num_groups, width);
    for (int64_t e = 0; e < width; e += WIDTH) {
      const int64_t count = width - e < WIDTH ? width - e : WIDTH;
      sum_up(keys + group * width + e, row, count, summary + e, summary + width + e);
    }
  }
}

}  // namespace FANO_SET
