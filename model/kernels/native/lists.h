// What a token finds in the lists of an index over blocks of the archive, for one instruction set. No include guard: see
// vector.h. Specification: model/kernels/selection.py, `scores_by_index`.
//
// A product of a query with a mean is the same sum as where all means are scanned: an index leaves blocks out, and
// changes no score that it comes to.

namespace FANO_SET {

// By how many indexes the token at `position` chooses, as IndexPlan.num_indexed says it.
FANO_INLINE int64_t num_indexed(const Archive& a, const Span& s, int64_t position) {
  if (!a.index_blocks) return 0;
  const int64_t left = beyond_places(s, position) - first_place(s) - a.num_late;
  return left < 0 ? 0 : left / a.index_blocks;
}

// The largest product of each of the STRIP means of a strip with one of the queries, HEADS of these at a time, then half
// as many and so on.
template <int HEADS, class Weight>
FANO_INLINE void score_each(const Weight* means, const typename Met<Weight>::type* queries, int64_t stride,
                            int64_t num_heads, int64_t depth, vec* best) {
  for (; num_heads >= HEADS; num_heads -= HEADS, queries += HEADS * stride) {
    vec sums[HEADS][LANES];
    for (int h = 0; h < HEADS; h++) {
      for (int n = 0; n < LANES; n++) sums[h][n] = vec{};
    }
    sum_strips<HEADS, 1>(means, strip_of<Weight>(depth), queries, stride, depth, sums);
    for (int h = 0; h < HEADS; h++) {
      for (int n = 0; n < LANES; n++) best[n] = sums[h][n] > best[n] ? sums[h][n] : best[n];
    }
  }
  if constexpr (HEADS > 1) score_each<HEADS / 2>(means, queries, stride, num_heads, depth, best);
}

template <class Weight>
FANO_INLINE void score_strip(const Weight* means, const typename Met<Weight>::type* queries, int64_t stride,
                             int64_t num_heads, int64_t depth, float* scores) {
  vec best[LANES];
  for (int n = 0; n < LANES; n++) best[n] = splat(-__builtin_inff());
  score_each<ASKING>(means, queries, stride, num_heads, depth, best);
  for (int n = 0; n < LANES; n++) store<false>(scores + n * WIDTH, best[n], WIDTH);
}

// As whole numbers in the order of the floats.
FANO_INLINE int32_t ordered(float x) {
  int32_t bits;
  __builtin_memcpy(&bits, &x, sizeof bits);
  return bits ^ (bits >> 31 & 0x7fffffff);
}

// The `rank`-th largest of `count` whole numbers, rank from 1, bit by bit: passes that a compiler makes vectors of, where
// a selection by pivots would guess at each number.
FANO_TARGET static int32_t ranked(const int32_t* x, int64_t count, int64_t rank) {
  int64_t found = INT32_MIN;
  for (int bit = 31; bit >= 0; bit--) {
    const int64_t tried = found + ((int64_t)1 << bit);
    int32_t at_least = 0;
    if (tried <= INT32_MAX) {
      for (int64_t i = 0; i < count; i++) at_least += x[i] >= (int32_t)tried;
    }
    if (at_least >= rank) found = tried;
  }
  return (int32_t)found;
}

// Strips that are asked of memory before they are needed.
constexpr int64_t AHEAD = 2;

// Take into `best` the blocks of one index, the first of which stands at `place`.
template <class Weight>
FANO_TARGET static void search_lists(const Archive& a, const Index& x, int64_t layer, int64_t group, int64_t num_groups,
                                     const typename Met<Weight>::type* queries, int64_t stride, int64_t num_heads,
                                     int64_t width, int64_t select, int64_t place, float* space, Best& best) {
  const int64_t depth = depth_of<Weight>(width), strip = strip_of<Weight>(depth), which = layer * num_groups + group;
  const int64_t num_strips = (a.num_lists + STRIP - 1) / STRIP, padded = num_strips * STRIP;
  auto* likeness = (int32_t*)space;
  float* scores = space + padded;
  auto* strips = (int32_t*)(scores + a.index_blocks);
  const auto* centres = (const Weight*)x.centres + which * num_strips * strip;
  for (int64_t n = 0; n < num_strips; n++) {
    float found[STRIP];
    score_strip(centres + n * strip, queries, stride, num_heads, depth, found);
    for (int64_t i = 0; i < STRIP; i++) likeness[n * STRIP + i] = ordered(found[i]);
  }
  const int32_t least = ranked(likeness, a.num_lists, a.num_probed);
  // Of equal lists the earlier; these are as many as there is room for.
  int64_t left = a.num_probed, count = 0;
  for (int64_t n = 0; n < a.num_lists; n++) left -= likeness[n] > least;
  const int32_t* starts = x.starts + which * (a.num_lists + 1);
  for (int64_t n = 0; n < a.num_lists; n++) {
    if (!(likeness[n] > least) && !(likeness[n] == least && left-- > 0)) continue;
    for (int32_t at = starts[n]; at < starts[n + 1]; at++) strips[count++] = at;
  }
  for (int64_t p = 0; p < a.index_blocks; p++) scores[p] = -__builtin_inff();
  const auto* means = (const Weight*)x.means + which * x.num_strips * strip;
  const int32_t* places = x.places + which * x.num_strips * STRIP;
  for (int64_t k = 0; k < count; k++) {
    // Lists are short and lie apart, so that the processor does not see by itself what comes next.
    const auto* ahead = (const char*)(means + strips[k + AHEAD < count ? k + AHEAD : k] * strip);
    for (int64_t at = 0; at < (int64_t)(strip * sizeof(Weight)); at += 64) __builtin_prefetch(ahead + at);
    float found[STRIP];
    score_strip(means + strips[k] * strip, queries, stride, num_heads, depth, found);
    for (int64_t i = 0; i < STRIP; i++) {
      float& score = scores[places[strips[k] * STRIP + i]];
      score = found[i] > score ? found[i] : score;
    }
  }
  // Most are below what was found before; nothing is above itself.
  for (int64_t p = 0; p < a.index_blocks; p++) {
    if (scores[p] > (best.size == select ? best.scores[select - 1] : -__builtin_inff())) {
      take_in(best, select, scores[p], place + p);
    }
  }
}

}  // namespace FANO_SET
