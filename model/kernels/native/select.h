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
  return (Weight*)a.summaries + ((layer * num_groups + group) * a.num_blocks + number) * RUNS * width;
}

// The scores of four blocks: the largest product of one of the query heads from `query` on, `width` floats each, with the
// mean of one of the block's runs of keys.
template <class Weight>
FANO_INLINE quad score_blocks(const Weight* const* means, const float* query, int64_t num_heads, int64_t width) {
  const float lowest = -__builtin_inff();
  quad best = {lowest, lowest, lowest, lowest};
  for (int64_t r = 0; r < RUNS; r++) {
    for (int64_t h = 0; h < num_heads; h++) {
      const float* mine = query + h * width;
      vec sums[4] = {};
      int64_t e = 0;
      for (; e + WIDTH <= width; e += WIDTH) {
        const vec present = load<false>(mine + e, WIDTH);
        for (int k = 0; k < 4; k++) sums[k] = widen(means[k] + r * width + e) * present + sums[k];
      }
      quad found = sums_of(sums);
      for (; e < width; e++) {
        for (int k = 0; k < 4; k++) found[k] += widen_one(means[k][r * width + e]) * mine[e];
      }
      for (int k = 0; k < 4; k++) best[k] = found[k] > best[k] ? found[k] : best[k];
    }
  }
  return best;
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
// stay empty that see all there are. Queries of a token lie `stride` floats after those of the one before.
template <class Weight>
FANO_TARGET static void select_blocks(const Archive& a, const Span& s, int64_t layer, int64_t group, int64_t num_groups,
                                      int64_t position, int64_t num_tokens, const float* queries, int64_t stride,
                                      int64_t num_heads, int64_t width, Best* best) {
  const int64_t first = first_place(s), beyond = beyond_places(s, position + num_tokens - 1);
  if (beyond - first <= s.select) return;
  for (int64_t p = first; p < beyond; p += 4) {
    const Weight* rows[4];
    for (int k = 0; k < 4; k++) {
      const int64_t place = p + k < beyond ? p + k : beyond - 1;
      rows[k] = summary_of<Weight>(a, s.archived[place], layer, group, num_groups, width);
    }
    for (int64_t t = 0; t < num_tokens; t++) {
      const int64_t last = beyond_places(s, position + t);
      if (last - first <= s.select || p >= last) continue;
      const quad scores = score_blocks(rows, queries + t * stride, num_heads, width);
      for (int k = 0; k < 4 && p + k < last; k++) take_in(best[t], s.select, scores[k], p + k);
    }
  }
}

// Copy one block that leaves the windows into the archive, with the means of its runs of keys.
template <class Weight>
FANO_TARGET static void archive_block(const Archive& a, const int64_t* leaving, int64_t layer, const Weight* keys,
                                      const Weight* values, int64_t num_groups, int64_t width) {
  const int64_t row = num_groups * width, size = BLOCK_TOKENS * row, together = BLOCK_TOKENS / RUNS;
  Weight* to = archived_block<Weight>(a, leaving[1], layer, row);
  keys += leaving[0] * size;
  __builtin_memcpy(to, keys, size * sizeof(Weight));
  __builtin_memcpy(to + size, values + leaving[0] * size, size * sizeof(Weight));
  for (int64_t group = 0; group < num_groups; group++) {
    Weight* summary = summary_of<Weight>(a, leaving[1], layer, group, num_groups, width);
    // Added up one by one, so that every implementation comes to the same bits.
    for (int64_t r = 0; r < RUNS; r++) {
      const Weight* key = keys + r * together * row + group * width;
      for (int64_t e = 0; e < width; e++) {
        float sum = widen_one(key[e]);
        for (int64_t j = 1; j < together; j++) sum += widen_one(key[j * row + e]);
        narrow(sum / (float)together, summary + r * width + e);
      }
    }
  }
}

}  // namespace FANO_SET
