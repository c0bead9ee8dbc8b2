// A step of tokens through the whole model, for one instruction set. No include guard: see vector.h. The specification
// is HybridLM in torch; here activations stay float32 between the products, also where the weights are bfloat16.
//
// All threads of a step (its crew) walk through the layers side by side. Each computes its share of what is wide. Of few
// tokens it computes all of what is narrow, into workspace of its own; of many, its share of the rows. They meet where
// one reads what another wrote. Who computes what changes no sum, so the number of threads changes no bit.

namespace FANO_SET {

// Keys that are scored together.
constexpr int KEY_TILE = 4;

// The scores of HEADS query heads that share a key head with KEYS keys, `row` elements apart; `scores` of one head lie a
// block apart. What lies `ahead` elements further is asked for.
template <int HEADS, int KEYS, class Weight>
FANO_INLINE void score_keys(const Weight* key, int64_t row, int64_t ahead, const float* query, int64_t width,
                            float* scores) {
  vec sums[HEADS][KEYS] = {};
  int64_t e = 0;
  for (; e + WIDTH <= width; e += WIDTH) {
    vec held[KEYS];
    for (int k = 0; k < KEYS; k++) {
      __builtin_prefetch(key + k * row + ahead + e);
      held[k] = widen(key + k * row + e);
    }
    for (int h = 0; h < HEADS; h++) {
      const vec present = load<false>(query + h * width + e, WIDTH);
      for (int k = 0; k < KEYS; k++) sums[h][k] = held[k] * present + sums[h][k];
    }
  }
  for (int h = 0; h < HEADS; h++) {
    float* mine = scores + h * BLOCK_TOKENS;
    for (int k = 0; k < KEYS; k++) {
      float rest = 0;
      for (int64_t i = e; i < width; i++) rest += widen_one(key[k * row + i]) * query[h * width + i];
      mine[k] = rest;
    }
    if (KEYS == 4) {
      const quad found = sums_of(sums[h]);
      for (int k = 0; k < KEYS; k++) mine[k] += found[k];
    } else {
      for (int k = 0; k < KEYS; k++) mine[k] += sum_of(sums[h][k]);
    }
  }
}

// Registers of a head's output that are summed up at once.
constexpr int MIXED = WIDTH >= 16 ? 4 : 2;

// out[h] = out[h] * kept[h] + the weighted sum of `count` values, of PIECES registers each, for HEADS heads.
template <int HEADS, int PIECES, class Weight>
FANO_INLINE void mix_pieces(const Weight* value, int64_t row, int64_t ahead, int64_t count, const float* weights,
                            const float* kept, float* out, int64_t width) {
  vec sums[HEADS][PIECES];
  for (int h = 0; h < HEADS; h++) {
    for (int i = 0; i < PIECES; i++) sums[h][i] = load<false>(out + h * width + i * WIDTH, WIDTH) * kept[h];
  }
  for (int64_t k = 0; k < count; k++, value += row) {
    for (int i = 0; i < PIECES; i++) {
      __builtin_prefetch(value + ahead + i * WIDTH);
      const vec held = widen(value + i * WIDTH);
      for (int h = 0; h < HEADS; h++) sums[h][i] = held * weights[h * BLOCK_TOKENS + k] + sums[h][i];
    }
  }
  for (int h = 0; h < HEADS; h++) {
    for (int i = 0; i < PIECES; i++) store<false>(out + h * width + i * WIDTH, sums[h][i], WIDTH);
  }
}

// What one key head of a block is to HEADS heads: the keys and values at `key` and `value`, `row` elements from one to
// the next, as many of them as are seen; and how far away those of the block that is next lie.
template <class Weight>
struct Seen {
  const Weight *key, *value;
  int64_t row, count, ahead;
};

// Attention of HEADS heads goes on over one block (arXiv 2205.14135): `out` [HEADS, head width] is the sum so far,
// weighted as if `peaks` were the highest score there is, `totals` the sum of its weights.
template <int HEADS, class Weight>
FANO_INLINE void attend_block(const Seen<Weight>& seen, const float* query, int64_t width, float scale, float* peaks,
                              float* totals, float* out) {
  float scores[HEADS * BLOCK_TOKENS], kept[HEADS];
  int64_t k = 0;
  for (; k + KEY_TILE <= seen.count; k += KEY_TILE) {
    score_keys<HEADS, KEY_TILE>(seen.key + k * seen.row, seen.row, seen.ahead, query, width, scores + k);
  }
  for (; k < seen.count; k++) {
    score_keys<HEADS, 1>(seen.key + k * seen.row, seen.row, seen.ahead, query, width, scores + k);
  }
  for (int h = 0; h < HEADS; h++) {
    float* mine = scores + h * BLOCK_TOKENS;
    const float found = peak_of(mine, seen.count), peak = found > peaks[h] ? found : peaks[h];
    for (int64_t i = 0; i < seen.count; i++) mine[i] = (mine[i] - peak) * scale;
    exp_all(mine, mine, seen.count);
    kept[h] = exp_of(splat((peaks[h] - peak) * scale))[0];
    totals[h] = totals[h] * kept[h] + total_of(mine, seen.count);
    peaks[h] = peak;
  }
  int64_t e = 0;
  for (; e + MIXED * WIDTH <= width; e += MIXED * WIDTH) {
    mix_pieces<HEADS, MIXED>(seen.value + e, seen.row, seen.ahead, seen.count, scores, kept, out + e, width);
  }
  for (; e + WIDTH <= width; e += WIDTH) {
    mix_pieces<HEADS, 1>(seen.value + e, seen.row, seen.ahead, seen.count, scores, kept, out + e, width);
  }
  for (; e < width; e++) {
    for (int h = 0; h < HEADS; h++) {
      float sum = out[h * width + e] * kept[h];
      for (int64_t i = 0; i < seen.count; i++) {
        sum += widen_one(seen.value[i * seen.row + e]) * scores[h * BLOCK_TOKENS + i];
      }
      out[h * width + e] = sum;
    }
  }
}

// What a token that was drawn chose of the archive, of one key head, in its order: all there is, or `best`.
struct Chosen {
  Best best;
  int64_t first, count;
  bool is_all;
};

template <class Weight>
FANO_TARGET static Chosen choose(const Model& m, const Span& s, const Archive& a, int64_t layer, int64_t group,
                                 const float* query, const AttendSpace& w) {
  const int64_t width = m.head_width, sharing = m.num_heads / m.num_kv_heads;
  const int64_t first = first_place(s), beyond = beyond_places(s, s.first_position);
  Chosen chosen{{w.best_scores, w.best_places, 0}, first, beyond - first, beyond - first <= s.select};
  if (chosen.is_all) return chosen;
  Best& best = chosen.best;
  select_blocks<Weight>(a, s, layer, group, m.num_kv_heads, s.first_position, 1, query + group * sharing * width, 0,
                        sharing, width, w.few_queries, (width + PADDING - 1) / PADDING * PADDING, &best, w.search);
  for (int64_t i = 1; i < best.size; i++) {
    const int32_t place = best.places[i];
    int64_t at = i;
    for (; at > 0 && best.places[at - 1] > place; at--) best.places[at] = best.places[at - 1];
    best.places[at] = place;
  }
  chosen.count = best.size;
  return chosen;
}

// Keys of the i-th block that was chosen; its values follow them.
template <class Weight>
FANO_INLINE const Weight* chosen_keys(const Chosen& chosen, int64_t i, const Span& s, const Archive& a, int64_t layer,
                                      int64_t row) {
  const int64_t place = chosen.is_all ? chosen.first + i : chosen.best.places[i];
  return archived_block<Weight>(a, s.archived[place], layer, row);
}

// Key heads `first` to `last` of one sequence with the query heads that share them. Block by block, so that memory is
// passed once and in its order, all key heads together unless each chose its own; all `query`, `out` [heads, head width],
// `peaks` and `totals` [heads] begin with the first head. The sinks come first, then what was chosen, then the window.
template <class Weight>
FANO_TARGET static void attend_sequence(const Model& m, const Sequence& q, const Span& s, const Archive* archive,
                                        int64_t layer, const Weight* keys, const Weight* values, int64_t first,
                                        int64_t last, const float* query, float* peaks, float* totals, float* out,
                                        const AttendSpace& w) {
  const int64_t width = m.head_width, row = m.num_kv_heads * width, sharing = m.num_heads / m.num_kv_heads;
  const float scale = 1.0f / __builtin_sqrtf((float)width);
  for (int64_t h = first * sharing; h < last * sharing; h++) {
    peaks[h] = -__builtin_inff();
    totals[h] = 0;
    for (int64_t e = 0; e < width; e++) out[h * width + e] = 0;
  }
  const bool selects = s.select && beyond_places(s, s.first_position) > first_place(s);
  const int64_t together = selects ? 1 : last - first;
  for (int64_t begin = first; begin < last; begin += together) {
    Chosen chosen{};
    if (selects) chosen = choose<Weight>(m, s, *archive, layer, begin, query, w);
    for (int part = 0; part < 3; part++) {
      const bool is_chosen = part == 1;
      const int64_t beyond = is_chosen ? chosen.count : q.range_end[part / 2];
      // One loop for all three: what is seen comes to the same bits wherever it lies.
      for (int64_t p = is_chosen ? 0 : q.range_start[part / 2], end; p < beyond; p = end) {
        const Weight *key, *value, *next;
        int64_t count;
        if (is_chosen) {
          end = p + 1;
          count = BLOCK_TOKENS;
          key = chosen_keys<Weight>(chosen, p, s, *archive, layer, row);
          value = key + BLOCK_TOKENS * row;
          next = chosen_keys<Weight>(chosen, end < beyond ? end : p, s, *archive, layer, row);
        } else {
          end = (p / BLOCK_TOKENS + 1) * BLOCK_TOKENS;
          const int64_t block = q.blocks[p / BLOCK_TOKENS];
          next = keys + (end < beyond ? q.blocks[end / BLOCK_TOKENS] : block) * BLOCK_TOKENS * row;
          end = end < beyond ? end : beyond;
          count = end - p;
          key = keys + (block * BLOCK_TOKENS + p % BLOCK_TOKENS) * row;
          value = values + (key - keys);
        }
        for (int64_t group = begin; group < begin + together; group++) {
          const int64_t at = group * width;
          const Seen<Weight> seen{key + at, value + at, row, count, next - key};
          int64_t h = group * sharing;
          for (; h + HEAD_TILE <= (group + 1) * sharing; h += HEAD_TILE) {
            attend_block<HEAD_TILE>(seen, query + h * width, width, scale, peaks + h, totals + h, out + h * width);
          }
          for (; h < (group + 1) * sharing; h++) {
            attend_block<1>(seen, query + h * width, width, scale, peaks + h, totals + h, out + h * width);
          }
        }
      }
    }
  }
  for (int64_t h = first * sharing; h < last * sharing; h++) {
    for (int64_t e = 0; e < width; e++) out[h * width + e] /= totals[h];
  }
}

// Which rows of work that is narrow are a thread's.
struct Rows {
  int64_t first, last;
};

// Fewer tokens than this: all rows are everyone's, and nobody waits for another.
FANO_INLINE bool are_few(const Step& s) { return s.num_tokens < MANY_TOKENS; }

FANO_INLINE Rows rows_of(const Step& s, int64_t num_rows, const Crew& crew, int64_t part) {
  if (are_few(s)) return {0, num_rows};
  return {share(num_rows, part, crew.size), share(num_rows, part + 1, crew.size)};
}

FANO_INLINE void meet_of_many(const Step& s, Crew& crew) {
  if (!are_few(s)) meet(crew);
}

// Rows `from`, `size` floats each and `stride` apart, as product() reads them.
template <class Weight>
FANO_TARGET static typename Met<Weight>::type* arrange_rows(const Step& s, const float* from, int64_t stride,
                                                            int64_t size, float* to, Crew& crew, int64_t part) {
  const int64_t depth = depth_of<Weight>(size), row = row_of<Weight>(size);
  auto* arranged = (typename Met<Weight>::type*)to;
  const Rows mine = rows_of(s, s.num_tokens, crew, part);
  for (int64_t t = mine.first; t < mine.last; t++) arrange(from + t * stride, size, depth, arranged + t * row);
  meet_of_many(s, crew);
  return arranged;
}

template <class Weight>
FANO_TARGET static typename Met<Weight>::type* norm_rows(const Model& m, const Step& s, const float* gain,
                                                         const Workspace& w, Crew& crew, int64_t part) {
  const int64_t depth = depth_of<Weight>(m.width), row = row_of<Weight>(m.width);
  auto* normed = (typename Met<Weight>::type*)w.normed;
  const Rows mine = rows_of(s, s.num_tokens, crew, part);
  for (int64_t t = mine.first; t < mine.last; t++) {
    rms_norm(s.x + t * m.width, gain, m.eps, w.row, m.width);
    arrange(w.row, m.width, depth, normed + t * row);
  }
  meet_of_many(s, crew);
  return normed;
}

// The keys and values of token `t`: elements `first` to `last` of a row of each.
template <class Weight>
FANO_INLINE void write_keys(const Step& s, const float* mine, int64_t queries, int64_t row, int64_t t, int64_t first,
                            int64_t last, Weight* keys, Weight* values) {
  for (int64_t e = first; e < last; e++) {
    narrow(mine[queries + e], keys + s.kv_rows[t] * row + e);
    narrow(mine[queries + row + e], values + s.kv_rows[t] * row + e);
  }
}

// A thread's share of what leaves the windows in this step.
template <class Weight>
FANO_TARGET static void archive_blocks(const Model& m, const Step& s, int64_t layer, const Weight* keys,
                                       const Weight* values, const Crew& crew, int64_t part) {
  if (!s.archive) return;
  for (int64_t i = part; i < s.archive->num_leaving; i += crew.size) {
    archive_block(*s.archive, s.archive->leaving + 2 * i, layer, keys, values, m.num_kv_heads, m.head_width);
  }
}

template <class Weight>
FANO_TARGET static void attention(const Model& m, const Layer& layer, const Step& s, int64_t index, const Workspace& w,
                                  Crew& crew, int64_t part) {
  const int64_t queries = m.num_heads * m.head_width, row = m.num_kv_heads * m.head_width, all = queries + 2 * row;
  typedef typename Kept<Weight>::type Held;
  Held* keys = (Held*)s.keys + index * s.num_blocks * BLOCK_TOKENS * row;
  Held* values = (Held*)s.values + index * s.num_blocks * BLOCK_TOKENS * row;
  const auto* normed = norm_rows<Weight>(m, s, layer.mixer_norm, w, crew, part);
  if (part == 0) crew.next = 0;
  product<false>((const Weight*)layer.in_proj, normed, row_of<Weight>(m.width), s.num_tokens, all, m.width, w.wide,
                 all, part, crew.size);
  meet(crew);
  // A sequence that decodes reads what it wrote itself; a prompt's tokens read each other's. Key heads go together where
  // that leaves nobody without work.
  const int64_t together = s.num_decodes < crew.size ? 1 : m.num_kv_heads;
  for (int64_t unit = part; unit < s.num_decodes * m.num_kv_heads / together; unit += crew.size) {
    const int64_t i = unit * together / m.num_kv_heads, first = unit * together % m.num_kv_heads;
    const float* mine = w.wide + i * all;
    write_keys(s, mine, queries, row, i, first * m.head_width, (first + together) * m.head_width, keys, values);
    attend_sequence(m, s.sequences[i], s.spans[i], s.archive, index, keys, values, first, first + together, mine, w.peaks,
                    w.totals, w.mixed + i * queries, w.attend);
  }
  // What leaves with a token that was drawn lies a window before it, and no token of this step that was drawn sees it.
  if (s.num_tokens == s.num_decodes) archive_blocks(m, s, index, keys, values, crew, part);
  if (s.num_tokens > s.num_decodes) {
    const int64_t count = s.num_tokens - s.num_decodes;
    const int64_t last = s.num_decodes + share(count, part + 1, crew.size);
    for (int64_t t = s.num_decodes + share(count, part, crew.size); t < last; t++) {
      write_keys(s, w.wide + t * all, queries, row, t, 0, row, keys, values);
    }
    meet(crew);
    if (s.archive && s.archive->num_leaving) {
      // A prompt's later tokens may choose what its earlier ones left behind.
      archive_blocks(m, s, index, keys, values, crew, part);
      meet(crew);
    }
    const int64_t padded = (m.head_width + PADDING - 1) / PADDING * PADDING;
    Attend a{w.wide, keys, values, w.mixed, s.query_start, s.spans, m.weight_kind != FLOAT32, all, s.num_sequences,
             s.num_blocks, m.num_heads, m.num_kv_heads, m.head_width, padded, s.archive, index, 0, 0};
    measure(s.spans, s.num_sequences, &a);
    attend_from<Held>(a, s.num_decodes, &crew.next, w.attend);
  }
  meet(crew);
  const auto* mixed = arrange_rows<Weight>(s, w.mixed, queries, queries, w.arranged, crew, part);
  product<true>((const Weight*)layer.out_proj, mixed, row_of<Weight>(queries), s.num_tokens, m.width, queries, s.x,
                m.width, part, crew.size);
}

template <class Weight>
FANO_TARGET static void mamba(const Model& m, const Layer& layer, const Step& s, int64_t index, const Workspace& w,
                              Crew& crew, int64_t part) {
  const int64_t inner = m.inner, states = m.num_states, rank = m.dt_rank, selected = rank + 2 * states;
  const int64_t grains = (inner + CHANNEL_GRAIN - 1) / CHANNEL_GRAIN;
  const int64_t first = share(grains, part, crew.size) * CHANNEL_GRAIN;
  const int64_t beyond = share(grains, part + 1, crew.size) * CHANNEL_GRAIN, last = beyond < inner ? beyond : inner;
  const auto* normed = norm_rows<Weight>(m, s, layer.mixer_norm, w, crew, part);
  product<false>((const Weight*)layer.in_proj, normed, row_of<Weight>(m.width), s.num_tokens, 2 * inner, m.width,
                 w.wide, 2 * inner, part, crew.size);
  meet(crew);
  conv({w.wide, layer.conv_weight, layer.conv_bias, s.conv + index * s.num_slots * (m.num_taps - 1) * inner, w.inner,
        s.query_start, s.state_slots, 2 * inner, s.num_sequences, inner, m.num_taps},
       first, last);
  meet(crew);
  const auto* arranged = arrange_rows<Weight>(s, w.inner, inner, inner, w.arranged, crew, part);
  const bool few = are_few(s);
  product<false>((const Weight*)layer.x_proj, arranged, row_of<Weight>(inner), s.num_tokens, selected, inner,
                 w.selected, selected, few ? 0 : part, few ? 1 : crew.size);
  meet_of_many(s, crew);
  const Rows mine = rows_of(s, s.num_tokens, crew, part);
  for (int64_t t = mine.first; t < mine.last; t++) {
    float *dt = w.selected + t * selected, *b = dt + rank, *c = b + states;
    rms_norm(dt, layer.dt_norm, m.eps, dt, rank);
    rms_norm(b, layer.b_norm, m.eps, b, states);
    rms_norm(c, layer.c_norm, m.eps, c, states);
  }
  meet_of_many(s, crew);
  // A thread's channels are whole strips, so it needs nobody's time steps but its own.
  if (first < last) {
    product<false>(layer.dt_proj + first * rank, w.selected, selected, s.num_tokens, last - first, rank,
                   w.delta + first, inner, 0, 1);
  }
  scan({w.inner, w.delta, layer.dt_bias, layer.a, w.selected + rank, w.selected + rank + states, layer.d,
        w.wide + inner, s.ssm + index * s.num_slots * states * inner, w.mixed, s.query_start, s.state_slots, inner,
        inner, selected, selected, 2 * inner, s.num_sequences, inner, states},
       first, last);
  meet(crew);
  const auto* mixed = arrange_rows<Weight>(s, w.mixed, inner, inner, w.arranged, crew, part);
  product<true>((const Weight*)layer.out_proj, mixed, row_of<Weight>(inner), s.num_tokens, m.width, inner, s.x,
                m.width, part, crew.size);
}

template <class Weight>
FANO_TARGET static void feed_forward(const Model& m, const Layer& layer, const Step& s, const Workspace& w, Crew& crew,
                                     int64_t part) {
  const auto* normed = norm_rows<Weight>(m, s, layer.ffn_norm, w, crew, part);
  product<false>((const Weight*)layer.gate_up, normed, row_of<Weight>(m.width), s.num_tokens, 2 * m.ffn, m.width,
                 w.wide, 2 * m.ffn, part, crew.size);
  meet(crew);
  const int64_t depth = depth_of<Weight>(m.ffn), row = row_of<Weight>(m.ffn);
  auto* gated = (typename Met<Weight>::type*)w.gated;
  const Rows mine = rows_of(s, s.num_tokens, crew, part);
  for (int64_t t = mine.first; t < mine.last; t++) {
    gate(w.wide + t * 2 * m.ffn, w.wide + t * 2 * m.ffn + m.ffn, w.row, m.ffn);
    arrange(w.row, m.ffn, depth, gated + t * row);
  }
  meet_of_many(s, crew);
  product<true>((const Weight*)layer.down, gated, row, s.num_tokens, m.width, m.ffn, s.x, m.width, part, crew.size);
}

// One weight of a matrix in strips.
template <class Weight>
FANO_INLINE float weight_at(const Weight* matrix, int64_t size, int64_t output, int64_t input) {
  const int64_t group = sizeof(float) / sizeof(Weight);
  const Weight* strip = matrix + output / STRIP * strip_of<Weight>(depth_of<Weight>(size));
  return widen_one(strip[(input / group * STRIP + output % STRIP) * group + input % group]);
}

FANO_INLINE float weight_at(const int8* matrix, int64_t size, int64_t output, int64_t input) {
  const int64_t g = input / GROUP % 2, k = input % GROUP, lane = output % STRIP;
  const int8* pair = matrix + output / STRIP * strip_of<int8>(depth_of<int8>(size)) +
                     input / (2 * GROUP) * STRIP * PAIR_BYTES;
  const int8* weights = pair + STRIP * (2 * sizeof(bf16) + g * GROUP);
  return (weights[(k / 4 * STRIP + lane) * 4 + k % 4].bits - 128) * widen_one(((const bf16*)pair)[g * STRIP + lane]);
}

template <class Weight>
FANO_INLINE void embed(const Model& m, const Step& s, int64_t t) {
  for (int64_t e = 0; e < m.width; e++) {
    s.x[t * m.width + e] = weight_at((const Weight*)m.embedding, m.width, s.input_ids[t], e);
  }
}

template <class Weight>
FANO_TARGET static void run_as(const Model& m, const Step& s, const Workspace& w, Crew& crew, int64_t part) {
  const int64_t last = share(s.num_tokens, part + 1, crew.size);
  for (int64_t t = share(s.num_tokens, part, crew.size); t < last; t++) embed<Weight>(m, s, t);
  int64_t num_mamba = 0, num_attention = 0;
  for (int64_t index = 0; index < m.num_layers; index++) {
    const Layer& layer = m.layers[index];
    meet(crew);
    if (layer.is_attention) {
      attention<Weight>(m, layer, s, num_attention++, w, crew, part);
    } else {
      mamba<Weight>(m, layer, s, num_mamba++, w, crew, part);
    }
    meet(crew);
    feed_forward<Weight>(m, layer, s, w, crew, part);
  }
  meet(crew);
  const int64_t depth = depth_of<Weight>(m.width), row = row_of<Weight>(m.width);
  auto* normed = (typename Met<Weight>::type*)w.normed;
  const Rows mine = rows_of(s, s.num_logits, crew, part);
  for (int64_t i = mine.first; i < mine.last; i++) {
    rms_norm(s.x + s.logits_rows[i] * m.width, m.final_norm, m.eps, w.row, m.width);
    arrange(w.row, m.width, depth, normed + i * row);
    if (part == 0 || !are_few(s)) __builtin_memcpy(s.hidden + i * m.width, w.row, m.width * sizeof(float));
  }
  meet_of_many(s, crew);
  product<false>((const Weight*)m.head, normed, row, s.num_logits, m.vocabulary, m.width, s.logits, m.vocabulary, part,
                 crew.size);
}

FANO_TARGET static void run(const Model& m, const Step& s, const Workspace& w, Crew& crew, int64_t part) {
  switch (m.weight_kind) {
    case INT8: run_as<int8>(m, s, w, crew, part); break;
    case BFLOAT16: run_as<bf16>(m, s, w, crew, part); break;
    default: run_as<float>(m, s, w, crew, part);
  }
}

template <class Weight>
FANO_TARGET static void arrange_all(const Product& p, float* to) {
  const int64_t depth = depth_of<Weight>(p.size), row = row_of<Weight>(p.size);
  auto* arranged = (typename Met<Weight>::type*)to;
  for (int64_t t = 0; t < p.num_tokens; t++) arrange(p.x + t * p.x_stride, p.size, depth, arranged + t * row);
}

FANO_TARGET static void arrange_for(const Product& p, float* to) {
  switch (p.weight_kind) {
    case INT8: arrange_all<int8>(p, to); break;
    case BFLOAT16: arrange_all<bf16>(p, to); break;
    default: arrange_all<float>(p, to);
  }
}

template <class Weight>
FANO_TARGET static void multiply_as(const Product& p, const float* arranged, int64_t part, int64_t num_parts) {
  product<false>((const Weight*)p.matrix, (const typename Met<Weight>::type*)arranged, row_of<Weight>(p.size),
                 p.num_tokens, p.num_rows, p.size, p.out, p.num_rows, part, num_parts);
}

FANO_TARGET static void multiply_part(const Product& p, const float* arranged, int64_t part, int64_t num_parts) {
  switch (p.weight_kind) {
    case INT8: multiply_as<int8>(p, arranged, part, num_parts); break;
    case BFLOAT16: multiply_as<bf16>(p, arranged, part, num_parts); break;
    default: multiply_as<float>(p, arranged, part, num_parts);
  }
}

}  // namespace FANO_SET
