// Which of the blocks that left the windows a token sees, for one instruction set. No include guard: see vector.h.
// Specification: model/kernels/selection.py.
//
// A block's score is the same sum, in the order of the inputs, beside whatever is asked, and wherever in the archive it
// stands: a token of a prompt chooses what it would choose if it were drawn.

namespace FANO_SET {

// Keys and values of a block of the archive: values follow the keys.
template <class Weight>
FANO_INLINE Weight* archived_block(const Archive& a, int64_t number, int64_t layer, int64_t row) {
  const bool is_near = number < a.num_in_memory;
  auto* base = (Weight*)(is_near ? a.memory : a.file);
  return base + ((is_near ? number : number - a.num_in_memory) * a.num_layers + layer) * 2 * BLOCK_TOKENS * row;
}

// Elements of a summary: the means of a block are the outputs of one strip (see product.h).
static_assert(RUNS == STRIP, "the means of a block are one strip");

template <class Weight>
FANO_INLINE int64_t summary_size(int64_t width) { return strip_of<Weight>(depth_of<Weight>(width)); }

template <class Weight>
FANO_INLINE Weight* summary_of(const Archive& a, int64_t number, int64_t layer, int64_t group, int64_t num_groups,
                               int64_t width) {
  return (Weight*)a.summaries + ((layer * num_groups + group) * a.num_blocks + number) * summary_size<Weight>(width);
}

// A query as it meets the means: rounded to their type, whether or not the instruction set multiplies in it, so that
// all of them ask the same.
template <class Weight>
FANO_INLINE void arrange_query(const float* query, int64_t width, float* to) {
  for (int64_t e = 0; e < depth_of<Weight>(width); e++) {
    Weight rounded{};
    if (e < width) narrow(query[e], &rounded);
    to[e] = widen_one(rounded);
  }
}

template <class Weight>
FANO_INLINE void arrange_query(const float* query, int64_t width, bf16* to) {
  arrange(query, width, depth_of<Weight>(width), to);
}

// Blocks that are scored together for many tokens, and query heads: as many sums as the registers hold, so that none
// waits for another.
constexpr int SCORED = WIDTH >= 16 ? 4 : WIDTH >= 8 ? 2 : 1;
constexpr int ASKING = WIDTH >= 16 ? 4 : 2;

// Raises `best`, of PLACES neighbours in the archive, to the largest product of each mean with one of the queries,
// HEADS of these at a time, then half as many and so on.
template <int HEADS, int PLACES, class Weight>
FANO_INLINE void score_means(const Weight* means, const typename Met<Weight>::type* queries, int64_t stride,
                             int64_t num_heads, int64_t depth, vec* best) {
  for (; num_heads >= HEADS; num_heads -= HEADS, queries += HEADS * stride) {
    vec sums[HEADS][PLACES * LANES];
    for (int h = 0; h < HEADS; h++) {
      for (int n = 0; n < PLACES * LANES; n++) sums[h][n] = vec{};
    }
    sum_strips<HEADS, PLACES>(means, strip_of<Weight>(depth), queries, stride, depth, sums);
    for (int h = 0; h < HEADS; h++) {
      for (int n = 0; n < PLACES; n++) {
        for (int i = 0; i < LANES; i++) {
          const vec found = sums[h][n * LANES + i];
          best[n] = found > best[n] ? found : best[n];
        }
      }
    }
  }
  if constexpr (HEADS > 1) score_means<HEADS / 2, PLACES>(means, queries, stride, num_heads, depth, best);
}

FANO_INLINE float highest_of(vec x) {
  quad parts[WIDTH / 4];
  __builtin_memcpy(parts, &x, sizeof x);
  quad most = parts[0];
  for (int64_t i = 1; i < WIDTH / 4; i++) most = parts[i] > most ? parts[i] : most;
  const quad other = FANO_SHUFFLE(most, most, 2, 3, 6, 7);
  most = other > most ? other : most;
  return most[1] > most[0] ? most[1] : most[0];
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

}  // namespace FANO_SET

#include "lists.h"

namespace FANO_SET {

// The best blocks of `num_tokens` tokens at `position` and after, of one key head: `best` [num_tokens], of which those
// stay empty that see all there are. Queries of a token lie `stride` floats after those of the one before. `space` has
// `padded` floats for each query, at least their width rounded up to whole pairs; `search` is as search_floats() says.
template <class Weight>
FANO_TARGET static void select_blocks(const Archive& a, const Span& s, int64_t layer, int64_t group, int64_t num_groups,
                                      int64_t position, int64_t num_tokens, const float* queries, int64_t stride,
                                      int64_t num_heads, int64_t width, float* space, int64_t padded, Best* best,
                                      float* search = nullptr) {
  typedef typename Met<Weight>::type Factor;
  const int64_t first = first_place(s), beyond = beyond_places(s, position + num_tokens - 1);
  if (beyond - first <= s.select) return;
  const int64_t depth = depth_of<Weight>(width), between = padded * (sizeof(float) / sizeof(Factor));
  auto* asked = (Factor*)space;
  for (int64_t t = 0; t < num_tokens; t++) {
    for (int64_t h = 0; h < num_heads; h++) {
      arrange_query<Weight>(queries + t * stride + h * width, width, asked + (t * num_heads + h) * between);
    }
  }
  for (int64_t t = 0; t < num_tokens; t++) {
    if (beyond_places(s, position + t) - first <= s.select) continue;
    for (int64_t n = 0; n < num_indexed(a, s, position + t); n++) {
      search_lists<Weight>(a, *(const Index*)s.indexes[n], layer, group, num_groups, asked + t * num_heads * between,
                           between, num_heads, width, s.select, first + n * a.index_blocks, search, best[t]);
    }
  }
  // One token is bound by fetching the means: memory is fastest as a single stream, and without being asked for ahead.
  const int64_t together = num_tokens > 1 ? SCORED : 1;
  for (int64_t p = first + num_indexed(a, s, position) * a.index_blocks, count; p < beyond; p += count) {
    const int64_t number = s.archived[p];
    const Weight* means = summary_of<Weight>(a, number, layer, group, num_groups, width);
    // Blocks mostly lie in the order in which they came.
    for (count = 1; count < together && p + count < beyond && s.archived[p + count] == number + count;) count++;
    if (count < together) count = 1;
    for (int64_t t = 0; t < num_tokens; t++) {
      const int64_t last = beyond_places(s, position + t);
      if (last - first <= s.select || p >= last) continue;
      // What stands in an index of the token's was looked for there.
      const int64_t searched = first + num_indexed(a, s, position + t) * a.index_blocks;
      if (p + count <= searched) continue;
      const Factor* mine = asked + t * num_heads * between;
      vec scores[SCORED];
      for (int k = 0; k < SCORED; k++) scores[k] = splat(-__builtin_inff());
      if (count == SCORED) {
        score_means<ASKING, SCORED>(means, mine, between, num_heads, depth, scores);
      } else {
        score_means<ASKING, 1>(means, mine, between, num_heads, depth, scores);
      }
      for (int k = 0; k < count && p + k < last; k++) {
        if (p + k >= searched) take_in(best[t], s.select, highest_of(scores[k]), p + k);
      }
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
    constexpr int64_t G = sizeof(float) / sizeof(Weight);
    // Added up one by one, so that every implementation comes to the same bits.
    for (int64_t r = 0; r < RUNS; r++) {
      const Weight* key = keys + r * together * row + group * width;
      for (int64_t e = 0; e < depth_of<Weight>(width); e++) {
        float sum = 0;
        if (e < width) {
          sum = widen_one(key[e]);
          for (int64_t j = 1; j < together; j++) sum += widen_one(key[j * row + e]);
        }
        narrow(sum / (float)together, summary + (e / G * RUNS + r) * G + e % G);
      }
    }
  }
}

}  // namespace FANO_SET
