// Attention of many tokens over paged keys and values, for one instruction set. No include guard: see vector.h.
// Specification: model/kernels/reference.py, `attend`.
//
// A tile of query rows (tokens times the heads that share a key head) walks through the blocks of keys from the first
// position on, with the softmax carried along (Milakov and Gimelshein 2018). Each row adds up what it sees in the same
// order, block by block at absolute positions: where a prompt is cut, which blocks hold it and who shares the step
// change no bit. A block that a row does not see leaves the row as it is. Beside bfloat16 keys and values, scaled queries and
// weights of the softmax are rounded to it where the instruction set multiplies pairs of them (see product.h).

namespace FANO_SET {

// Numbers of a type that lie together in a strip: see product.h.
template <class Weight>
constexpr int64_t TOGETHER = sizeof(float) / sizeof(Weight);

// Keys of a block as a matrix in strips, whose outputs are the keys; zeros up to whole strips and whole pairs.
template <class Weight>
FANO_INLINE void arrange_keys(const Weight* keys, int64_t row, int64_t count, int64_t width, Weight* strips) {
  constexpr int64_t G = TOGETHER<Weight>;
  const int64_t depth = depth_of<Weight>(width), whole = width / G * G, last = (count + STRIP - 1) / STRIP * STRIP;
  for (int64_t j = 0; j < last; j++) {
    Weight* lane = strips + j / STRIP * strip_of<Weight>(depth) + j % STRIP * G;
    if (j < count) {
      const Weight* key = keys + j * row;
      for (int64_t e = 0; e < whole; e += G) __builtin_memcpy(lane + e * STRIP, key + e, sizeof(float));
      for (int64_t e = whole; e < depth; e++) lane[whole * STRIP + e % G] = e < width ? key[e] : Weight{};
    } else {
      for (int64_t e = 0; e < depth; e += G) __builtin_memset(lane + e * STRIP, 0, sizeof(float));
    }
  }
}

// Sixteen floats, or sixteen pairs of the same place in two rows.
FANO_INLINE void interleave(const float* from, int64_t, float* to) {
  __builtin_memcpy(to, from, STRIP * sizeof(float));
}

FANO_INLINE void interleave(const bf16* from, int64_t row, bf16* to) {
  uint32_t pairs[STRIP];
  for (int64_t e = 0; e < STRIP; e++) pairs[e] = from[e] | (uint32_t)from[row + e] << 16;
  __builtin_memcpy(to, pairs, sizeof pairs);
}

// Values of a block as a matrix in strips, whose inputs are the keys; zeros likewise.
template <class Weight>
FANO_INLINE void arrange_values(const Weight* values, int64_t row, int64_t count, int64_t width, Weight* strips) {
  constexpr int64_t G = TOGETHER<Weight>;
  const int64_t depth = depth_of<Weight>(count);
  for (int64_t first = 0; first < width; first += STRIP, strips += strip_of<Weight>(depth)) {
    const int64_t lanes = width - first < STRIP ? width - first : STRIP;
    int64_t j = 0;
    if (lanes == STRIP) {
      for (; j + G <= count; j += G) interleave(values + j * row + first, row, strips + j * STRIP);
    }
    for (; j < depth; j++) {
      for (int64_t e = 0; e < STRIP; e++) {
        strips[(j / G * STRIP + e) * G + j % G] = j < count && e < lanes ? values[j * row + first + e] : Weight{};
      }
    }
  }
}

// out[r, n] (+)= sum over k of strips[n, k] * rows[r, k]; `rows` lie `stride` elements apart.
template <bool ADD, class Weight>
FANO_TARGET static void multiply_by(const Weight* strips, int64_t num_strips, int64_t depth,
                                    const typename Met<Weight>::type* rows, int64_t stride, int64_t num_rows,
                                    float* out, int64_t out_stride) {
  // A block's keys, and the heads of most models, are four strips.
  constexpr int ROWS = WIDTH >= 16 ? 4 : Tile<Weight>::ROWS, STRIPS = WIDTH >= 16 ? 4 : 1;
  const int64_t strip = strip_of<Weight>(depth);
  int64_t n = 0;
  for (; n + STRIPS <= num_strips; n += STRIPS) {
    multiply_rows<ADD, false, ROWS, STRIPS>(strips + n * strip, strip, rows, stride, depth, out + n * STRIP, out_stride,
                                            0, num_rows, 0);
  }
  for (; n < num_strips; n++) {
    multiply_rows<ADD, false, Tile<Weight>::ROWS, 1>(strips + n * strip, strip, rows, stride, depth, out + n * STRIP,
                                                     out_stride, 0, num_rows, 0);
  }
}

// First position of the window of `position`, as AttentionPolicy.window_start says it.
FANO_INLINE int64_t window_start(const Span& s, int64_t position) {
  const int64_t start = position - s.window + 1;
  return s.is_full || start <= 0 ? 0 : start / BLOCK_TOKENS * BLOCK_TOKENS;
}

// The positions of the block from `low` on that the token at `position` sees: [0, *end) of it, or nothing. Sinks and
// windows begin at borders of blocks; what lies between them is seen where it `is_chosen`.
FANO_INLINE int64_t seen_of(const Span& s, int64_t position, int64_t low, bool is_chosen) {
  if (low >= s.sinks && low < window_start(s, position) && !is_chosen) return 0;
  const int64_t end = position + 1 - low;
  return end < 0 ? 0 : end < BLOCK_TOKENS ? end : BLOCK_TOKENS;
}

// One block: scores, softmax step, mix. `rows` query rows of `per_group` heads each lie token by token. Bit t of `mark`
// says whether token t chose the block.
template <class Weight>
FANO_TARGET static void attend_block(const Attend& a, const Span& s, const Weight* keys, const Weight* values,
                                     int64_t low, int64_t first, int64_t num_tokens, uint32_t mark,
                                     const AttendSpace& w) {
  const int64_t per_group = a.num_heads / a.num_kv_heads, rows = num_tokens * per_group, padded = a.padded_width;
  const int64_t row = a.num_kv_heads * a.head_width;
  // The first token may see the end of a window that the last has left behind.
  const int64_t first_seen = seen_of(s, first, low, mark != 0), last_seen = seen_of(s, first + num_tokens - 1, low, mark != 0);
  const int64_t most = first_seen > last_seen ? first_seen : last_seen;
  typedef typename Met<Weight>::type Factor;
  constexpr int64_t LARGER = sizeof(float) / sizeof(Factor);
  Weight *key_strips = (Weight*)w.keys, *value_strips = (Weight*)w.values;
  // Only rows that some token sees are read: others may hold anything.
  arrange_keys(keys, row, most, a.head_width, key_strips);
  arrange_values(values, row, most, a.head_width, value_strips);
  const int64_t depth = depth_of<Weight>(most);
  multiply_by<false>(key_strips, (most + STRIP - 1) / STRIP, depth_of<Weight>(a.head_width), (const Factor*)w.queries,
                     padded * LARGER, rows, w.scores, BLOCK_TOKENS);
  for (int64_t t = 0; t < num_tokens; t++) {
    const int64_t seen = seen_of(s, first + t, low, mark >> t & 1);
    for (int64_t r = t * per_group; r < (t + 1) * per_group; r++) {
      float* mine = w.scores + r * BLOCK_TOKENS;
      if (seen) {
        const float found = peak_of(mine, seen), peak = found > w.peaks[r] ? found : w.peaks[r];
        float shrink = w.peaks[r] - peak;
        for (int64_t j = 0; j < seen; j++) mine[j] -= peak;
        exp_all(mine, mine, seen);
        exp_all(&shrink, &shrink, 1);
        w.peaks[r] = peak;
        w.totals[r] = w.totals[r] * shrink + total_of(mine, seen);
        if (shrink != 1.0f) {
          for (int64_t e = 0; e < padded; e += WIDTH) {
            store<false>(w.mixed + r * padded + e, load<false>(w.mixed + r * padded + e, WIDTH) * shrink, WIDTH);
          }
        }
      }
      for (int64_t j = seen; j < depth; j++) mine[j] = 0;
      // In its own place: what is written is never longer than what was read.
      if (LARGER > 1) arrange(mine, depth, depth, (Factor*)mine);
    }
  }
  multiply_by<true>(value_strips, padded / STRIP, depth, (const Factor*)w.scores, BLOCK_TOKENS * LARGER, rows, w.mixed,
                    padded);
}

// A block of the archive for those tokens of a tile alone that chose it: their rows are put together, and go back. What
// a row adds up is the same among few as among many.
template <class Weight>
FANO_TARGET static void attend_chosen(const Attend& a, const Weight* keys, const Weight* values, uint32_t mark,
                                      const AttendSpace& w) {
  const int64_t per_group = a.num_heads / a.num_kv_heads, padded = a.padded_width;
  AttendSpace few = w;
  few.queries = w.few_queries;
  few.mixed = w.few_mixed;
  few.peaks = w.few_peaks;
  few.totals = w.few_totals;
  int64_t count = 0;
  for (int64_t t = 0; t < TILE_TOKENS; t++) {
    if (!(mark >> t & 1)) continue;
    const int64_t from = t * per_group, to = count++ * per_group;
    __builtin_memcpy(few.queries + to * padded, w.queries + from * padded, per_group * padded * sizeof(float));
    __builtin_memcpy(few.mixed + to * padded, w.mixed + from * padded, per_group * padded * sizeof(float));
    __builtin_memcpy(few.peaks + to, w.peaks + from, per_group * sizeof(float));
    __builtin_memcpy(few.totals + to, w.totals + from, per_group * sizeof(float));
  }
  Span whole{};
  whole.is_full = 1;
  attend_block(a, whole, keys, values, 0, BLOCK_TOKENS - 1, count, 0, few);
  count = 0;
  for (int64_t t = 0; t < TILE_TOKENS; t++) {
    if (!(mark >> t & 1)) continue;
    const int64_t to = t * per_group, from = count++ * per_group;
    __builtin_memcpy(w.mixed + to * padded, few.mixed + from * padded, per_group * padded * sizeof(float));
    __builtin_memcpy(w.peaks + to, few.peaks + from, per_group * sizeof(float));
    __builtin_memcpy(w.totals + to, few.totals + from, per_group * sizeof(float));
  }
}

// Mark for the tokens of a tile what each chose of the places up to `beyond`, which is returned.
template <class Weight>
FANO_TARGET static int64_t mark_chosen(const Attend& a, const Span& s, int64_t group, int64_t start, int64_t num_tokens,
                                       int64_t position, const AttendSpace& w) {
  const int64_t per_group = a.num_heads / a.num_kv_heads, first = first_place(s);
  const int64_t beyond = beyond_places(s, position + num_tokens - 1);
  if (beyond == first) return beyond;
  Best best[TILE_TOKENS];
  for (int64_t t = 0; t < num_tokens; t++) {
    best[t] = {w.best_scores + t * a.most_selected, w.best_places + t * a.most_selected, 0};
  }
  select_blocks<Weight>(*a.archive, s, a.layer, group, a.num_kv_heads, position, num_tokens,
                        a.queries + start * a.query_stride + group * per_group * a.head_width, a.query_stride, per_group,
                        a.head_width, w.few_queries, a.padded_width, best, w.search);
  __builtin_memset(w.marks + first, 0, (beyond - first) * sizeof(uint32_t));
  for (int64_t t = 0; t < num_tokens; t++) {
    const int64_t last = beyond_places(s, position + t);
    if (last - first <= s.select) {
      for (int64_t place = first; place < last; place++) w.marks[place] |= (uint32_t)1 << t;
    } else {
      for (int64_t i = 0; i < best[t].size; i++) w.marks[best[t].places[i]] |= (uint32_t)1 << t;
    }
  }
  return beyond;
}

// One tile of tokens of one sequence with the query heads of one key head.
template <class Weight>
FANO_TARGET static void attend_tile(const Attend& a, const Span& s, int64_t group, int64_t start, int64_t num_tokens,
                                    int64_t first, const AttendSpace& w) {
  const int64_t per_group = a.num_heads / a.num_kv_heads, rows = num_tokens * per_group, padded = a.padded_width;
  const int64_t row = a.num_kv_heads * a.head_width, width = a.head_width;
  const float scale = 1.0f / __builtin_sqrtf((float)width);
  for (int64_t r = 0; r < rows; r++) {
    const int64_t t = start + r / per_group, head = group * per_group + r % per_group;
    const float* query = a.queries + t * a.query_stride + head * width;
    float *scaled = w.mixed + r * padded, *arranged = w.queries + r * padded;
    for (int64_t e = 0; e < width; e++) scaled[e] = query[e] * scale;
    arrange(scaled, width, depth_of<Weight>(width), (typename Met<Weight>::type*)arranged);
    for (int64_t e = 0; e < padded; e++) scaled[e] = 0;
    w.peaks[r] = -1e30f;
    w.totals[r] = 0;
  }
  const int64_t end = first + num_tokens, window = window_start(s, first);
  const int64_t beyond = s.select ? mark_chosen<Weight>(a, s, group, start, num_tokens, first, w) : 0;
  for (int64_t low = 0; low < end; low += BLOCK_TOKENS) {
    const int64_t at = low / BLOCK_TOKENS;
    const uint32_t mark = low >= s.sinks && at < beyond ? w.marks[at] : 0;
    if (low >= s.sinks && low < window) {
      if (at >= beyond) {
        low = window - BLOCK_TOKENS;
      } else if (mark) {
        const Weight* block = archived_block<Weight>(*a.archive, s.archived[at], a.layer, row) + group * width;
        attend_chosen(a, block, block + BLOCK_TOKENS * row, mark, w);
      }
      continue;
    }
    const int64_t place = s.blocks[at] * BLOCK_TOKENS * row + group * width;
    attend_block(a, s, (const Weight*)a.keys + place, (const Weight*)a.values + place, low, first, num_tokens, mark, w);
  }
  for (int64_t r = 0; r < rows; r++) {
    const int64_t t = start + r / per_group, head = group * per_group + r % per_group;
    float* out = a.out + (t * a.num_heads + head) * width;
    for (int64_t e = 0; e < width; e++) out[e] = w.mixed[r * padded + e] / w.totals[r];
  }
}

// The sequences from `first` on. Tiles are handed out one by one to whoever is free: `next` is the first that nobody has.
template <class Weight>
FANO_TARGET static void attend_from(const Attend& a, int64_t first, int64_t* next, const AttendSpace& w) {
  int64_t unit = __atomic_fetch_add(next, 1, __ATOMIC_RELAXED), before = 0;
  for (int64_t i = first; i < a.num_sequences; i++) {
    const int64_t count = a.query_start[i + 1] - a.query_start[i];
    const int64_t num_tiles = (count + TILE_TOKENS - 1) / TILE_TOKENS, num_units = num_tiles * a.num_kv_heads;
    for (; unit < before + num_units; unit = __atomic_fetch_add(next, 1, __ATOMIC_RELAXED)) {
      // The last tiles first: they see the most, and the end of the work is then in small pieces.
      const int64_t tile = num_tiles - 1 - (unit - before) / a.num_kv_heads, group = (unit - before) % a.num_kv_heads;
      const int64_t start = tile * TILE_TOKENS, left = count - start;
      attend_tile<Weight>(a, a.spans[i], group, a.query_start[i] + start, left < TILE_TOKENS ? left : TILE_TOKENS,
                          a.spans[i].first_position + start, w);
    }
    before += num_units;
  }
}

// Places of the blocks that the tokens of all sequences chose, [T, key heads, most], each token's in rising order with -1
// behind them. A unit is a tile of tokens with one key head, handed out as above.
template <class Weight>
FANO_TARGET static void list_chosen(const Attend& a, int64_t* next, int64_t most, int32_t* places, const AttendSpace& w) {
  int64_t unit = __atomic_fetch_add(next, 1, __ATOMIC_RELAXED), before = 0;
  for (int64_t i = 0; i < a.num_sequences; i++) {
    const Span& s = a.spans[i];
    const int64_t count = a.query_start[i + 1] - a.query_start[i];
    const int64_t num_units = (count + TILE_TOKENS - 1) / TILE_TOKENS * a.num_kv_heads;
    for (; unit < before + num_units; unit = __atomic_fetch_add(next, 1, __ATOMIC_RELAXED)) {
      const int64_t begin = (unit - before) / a.num_kv_heads * TILE_TOKENS, group = (unit - before) % a.num_kv_heads;
      const int64_t left = count - begin, num_tokens = left < TILE_TOKENS ? left : TILE_TOKENS;
      const int64_t start = a.query_start[i] + begin;
      const int64_t beyond = s.select ? mark_chosen<Weight>(a, s, group, start, num_tokens, s.first_position + begin, w) : 0;
      for (int64_t t = 0; t < num_tokens; t++) {
        int32_t* to = places + ((start + t) * a.num_kv_heads + group) * most;
        int64_t size = 0;
        for (int64_t place = first_place(s); place < beyond && size < most; place++) {
          if (w.marks[place] >> t & 1) to[size++] = (int32_t)place;
        }
        while (size < most) to[size++] = -1;
      }
    }
    before += num_units;
  }
}

FANO_TARGET static void choose(const Attend& a, int64_t* next, int64_t most, int32_t* places, const AttendSpace& w) {
  if (a.is_bf16) {
    list_chosen<bf16>(a, next, most, places, w);
  } else {
    list_chosen<float>(a, next, most, places, w);
  }
}

FANO_TARGET static void attend(const Attend& a, int64_t* next, const AttendSpace& w) {
  if (a.is_bf16) {
    attend_from<bf16>(a, 0, next, w);
  } else {
    attend_from<float>(a, 0, next, w);
  }
}

}  // namespace FANO_SET
