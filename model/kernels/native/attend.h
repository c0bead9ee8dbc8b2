// Attention of many tokens over paged keys and values, for one instruction set. No include guard: see vector.h.
// Specification: model/kernels/reference.py, `attend`.
//
// A tile of query rows (tokens times the heads that share a key head) walks through the blocks of keys from the first
// position on, with the softmax carried along (Milakov and Gimelshein 2018). Each row adds up what it sees in the same
// order, block by block at absolute positions: where a prompt is cut, which blocks hold it and who shares the step
// change no bit. A block that a row does not see leaves the row as it is.

namespace FANO_SET {

// Rows whose sums are held in registers at once, and registers of each.
constexpr int ROW_TILE = WIDTH >= 16 ? 4 : 2;
constexpr int PIECES = WIDTH >= 16 ? 4 : 2;

// out[r, n] (+)= sum_k left[r, k] * right[k, n], for ROWS rows of `left`, `left_stride` apart. Each sum is taken in the
// order of k.
template <bool ADD, int ROWS, int COUNT>
FANO_INLINE void multiply_tile(const float* left, int64_t left_stride, const float* right, int64_t right_stride,
                               int64_t size, float* out, int64_t out_stride) {
  vec sums[ROWS][COUNT] = {};
  if (ADD) {
    for (int r = 0; r < ROWS; r++) {
      for (int n = 0; n < COUNT; n++) sums[r][n] = load<false>(out + r * out_stride + n * WIDTH, WIDTH);
    }
  }
  for (int64_t k = 0; k < size; k++) {
    vec held[COUNT];
    for (int n = 0; n < COUNT; n++) held[n] = load<false>(right + k * right_stride + n * WIDTH, WIDTH);
    for (int r = 0; r < ROWS; r++) {
      const float factor = left[r * left_stride + k];
      for (int n = 0; n < COUNT; n++) sums[r][n] = held[n] * factor + sums[r][n];
    }
  }
  for (int r = 0; r < ROWS; r++) {
    for (int n = 0; n < COUNT; n++) store<false>(out + r * out_stride + n * WIDTH, sums[r][n], WIDTH);
  }
}

template <bool ADD, int COUNT>
FANO_INLINE void multiply_rows(const float* left, int64_t left_stride, const float* right, int64_t right_stride,
                               int64_t num_rows, int64_t size, float* out, int64_t out_stride) {
  int64_t r = 0;
  for (; r + ROW_TILE <= num_rows; r += ROW_TILE) {
    multiply_tile<ADD, ROW_TILE, COUNT>(left + r * left_stride, left_stride, right, right_stride, size,
                                        out + r * out_stride, out_stride);
  }
  for (; r < num_rows; r++) {
    multiply_tile<ADD, 1, COUNT>(left + r * left_stride, left_stride, right, right_stride, size, out + r * out_stride,
                                 out_stride);
  }
}

// `width` is a multiple of WIDTH.
template <bool ADD>
FANO_TARGET static void multiply(const float* left, int64_t left_stride, const float* right, int64_t right_stride,
                                 int64_t num_rows, int64_t size, int64_t width, float* out, int64_t out_stride) {
  int64_t n = 0;
  for (; n + PIECES * WIDTH <= width; n += PIECES * WIDTH) {
    multiply_rows<ADD, PIECES>(left, left_stride, right + n, right_stride, num_rows, size, out + n, out_stride);
  }
  for (; n < width; n += WIDTH) {
    multiply_rows<ADD, 1>(left, left_stride, right + n, right_stride, num_rows, size, out + n, out_stride);
  }
}

// First position of the window of `position`, as AttentionPolicy.window_start says it.
FANO_INLINE int64_t window_start(const Span& s, int64_t position) {
  const int64_t start = position - s.window + 1;
  return s.is_full || start <= 0 ? 0 : start / BLOCK_TOKENS * BLOCK_TOKENS;
}

// The positions of the block from `low` on that the token at `position` sees: [0, *end) of it, or nothing. Sinks and
// windows begin at borders of blocks.
FANO_INLINE int64_t seen_of(const Span& s, int64_t position, int64_t low) {
  if (low >= s.sinks && low < window_start(s, position)) return 0;
  const int64_t end = position + 1 - low;
  return end < 0 ? 0 : end < BLOCK_TOKENS ? end : BLOCK_TOKENS;
}

// One block: scores, softmax step, mix. `rows` query rows of `per_group` heads each lie token by token.
template <class Weight>
FANO_TARGET static void attend_block(const Attend& a, const Span& s, const Weight* keys, const Weight* values,
                                     int64_t low, int64_t first, int64_t num_tokens, const AttendSpace& w) {
  const int64_t per_group = a.num_heads / a.num_kv_heads, rows = num_tokens * per_group, padded = a.padded_width;
  const int64_t row = a.num_kv_heads * a.head_width;
  const int64_t last_seen = seen_of(s, first + num_tokens - 1, low);
  // The first token may see the end of a window that the last has left behind.
  const int64_t most = seen_of(s, first, low) > last_seen ? seen_of(s, first, low) : last_seen;
  // Only rows that some token sees are read: others may hold anything.
  for (int64_t j = 0; j < most; j++) {
    const Weight *key = keys + j * row, *value = values + j * row;
    for (int64_t e = 0; e < a.head_width; e++) w.keys[e * BLOCK_TOKENS + j] = widen_one(key[e]);
    for (int64_t e = 0; e < a.head_width; e++) w.values[j * padded + e] = widen_one(value[e]);
  }
  const int64_t scored = (most + WIDTH - 1) / WIDTH * WIDTH;
  for (int64_t e = 0; e < a.head_width; e++) {
    for (int64_t j = most; j < scored; j++) w.keys[e * BLOCK_TOKENS + j] = 0;
  }
  multiply<false>(w.queries, padded, w.keys, BLOCK_TOKENS, rows, a.head_width, scored, w.scores, BLOCK_TOKENS);
  for (int64_t t = 0; t < num_tokens; t++) {
    const int64_t seen = seen_of(s, first + t, low);
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
      for (int64_t j = seen; j < most; j++) mine[j] = 0;
    }
  }
  multiply<true>(w.scores, BLOCK_TOKENS, w.values, padded, rows, most, padded, w.mixed, padded);
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
    for (int64_t e = 0; e < padded; e++) {
      w.queries[r * padded + e] = e < width ? query[e] * scale : 0;
      w.mixed[r * padded + e] = 0;
    }
    w.peaks[r] = -1e30f;
    w.totals[r] = 0;
  }
  const int64_t end = first + num_tokens, window = window_start(s, first);
  for (int64_t low = 0; low < end; low += BLOCK_TOKENS) {
    if (low >= s.sinks && low < window) low = window;
    const int64_t place = s.blocks[low / BLOCK_TOKENS] * BLOCK_TOKENS * row + group * width;
    attend_block(a, s, (const Weight*)a.keys + place, (const Weight*)a.values + place, low, first, num_tokens, w);
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

FANO_TARGET static void attend(const Attend& a, int64_t* next, const AttendSpace& w) {
  if (a.is_bf16) {
    attend_from<bf16>(a, 0, next, w);
  } else {
    attend_from<float>(a, 0, next, w);
  }
}

}  // namespace FANO_SET
