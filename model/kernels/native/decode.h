// One token of each of several sequences through the whole model, for one instruction set. No include guard: see
// vector.h. The specification is HybridLM.__call__ in torch; here activations stay float32 between the products, also
// where the weights are bfloat16.
//
// All threads of a step (its crew) walk through the layers side by side. Each computes its share of what is wide, and
// all of what is narrow, into workspace of its own; they meet where one reads what another wrote. Who computes what
// changes no sum, so the number of threads changes no bit.

namespace FANO_SET {

// Keys that are scored together, and how far ahead of them the next are asked for.
constexpr int KEY_TILE = 4;
constexpr int64_t AHEAD = 16;

// The scores of HEADS query heads that share a key head with KEYS keys, `row` elements apart; `scores` of one head
// lie `count` apart.
template <int HEADS, int KEYS, class Weight>
FANO_INLINE void score_keys(const Weight* key, int64_t row, const float* query, int64_t width, float* scores,
                            int64_t count) {
  vec sums[HEADS][KEYS] = {};
  int64_t e = 0;
  for (; e + WIDTH <= width; e += WIDTH) {
    vec held[KEYS];
    for (int k = 0; k < KEYS; k++) {
      __builtin_prefetch(key + (k + AHEAD) * row + e);
      held[k] = widen(key + k * row + e);
    }
    for (int h = 0; h < HEADS; h++) {
      const vec present = load<false>(query + h * width + e, WIDTH);
      for (int k = 0; k < KEYS; k++) sums[h][k] = held[k] * present + sums[h][k];
    }
  }
  for (int h = 0; h < HEADS; h++) {
    for (int k = 0; k < KEYS; k++) {
      float rest = 0;
      for (int64_t i = e; i < width; i++) rest += widen_one(key[k * row + i]) * query[h * width + i];
      scores[h * count + k] = rest;
    }
    if (KEYS == 4) {
      const quad found = sums_of(sums[h]);
      for (int k = 0; k < KEYS; k++) scores[h * count + k] += found[k];
    } else {
      for (int k = 0; k < KEYS; k++) scores[h * count + k] += sum_of(sums[h][k]);
    }
  }
}

// All scores over the visible ranges: `scores` [HEADS, count].
template <int HEADS, class Weight>
FANO_INLINE void score_heads(const Model& m, const Sequence& q, const Weight* keys, const float* query, float* scores,
                             int64_t count) {
  const int64_t width = m.head_width, row = m.num_kv_heads * width;
  for (int range = 0; range < 2; range++) {
    for (int64_t p = q.range_start[range]; p < q.range_end[range];) {
      const Weight* key = keys + (q.blocks[p / BLOCK_TOKENS] * BLOCK_TOKENS + p % BLOCK_TOKENS) * row;
      const int64_t border = (p / BLOCK_TOKENS + 1) * BLOCK_TOKENS;
      const int64_t end = border < q.range_end[range] ? border : q.range_end[range];
      for (; p + KEY_TILE <= end; p += KEY_TILE, key += KEY_TILE * row, scores += KEY_TILE) {
        score_keys<HEADS, KEY_TILE>(key, row, query, width, scores, count);
      }
      for (; p < end; p++, key += row, scores++) score_keys<HEADS, 1>(key, row, query, width, scores, count);
    }
  }
}

// Registers of a head's output that are summed up at once.
constexpr int MIXED = WIDTH >= 16 ? 4 : 2;

// The weighted sums of PIECES registers of the values from `values` on for HEADS heads: `weights` [HEADS, count].
template <int HEADS, int PIECES, class Weight>
FANO_INLINE void mix_pieces(const Model& m, const Sequence& q, const Weight* values, const float* weights,
                            int64_t count, float* out) {
  const int64_t width = m.head_width, row = m.num_kv_heads * width;
  vec sums[HEADS][PIECES] = {};
  int64_t index = 0;
  for (int range = 0; range < 2; range++) {
    for (int64_t p = q.range_start[range]; p < q.range_end[range];) {
      const Weight* value = values + (q.blocks[p / BLOCK_TOKENS] * BLOCK_TOKENS + p % BLOCK_TOKENS) * row;
      const int64_t border = (p / BLOCK_TOKENS + 1) * BLOCK_TOKENS;
      const int64_t end = border < q.range_end[range] ? border : q.range_end[range];
      for (; p < end; p++, value += row, index++) {
        for (int i = 0; i < PIECES; i++) {
          __builtin_prefetch(value + AHEAD * row + i * WIDTH);
          const vec held = widen(value + i * WIDTH);
          for (int h = 0; h < HEADS; h++) sums[h][i] = held * weights[h * count + index] + sums[h][i];
        }
      }
    }
  }
  for (int h = 0; h < HEADS; h++) {
    for (int i = 0; i < PIECES; i++) store<false>(out + h * width + i * WIDTH, sums[h][i], WIDTH);
  }
}

// The whole weighted sums: `out` [HEADS, head width].
template <int HEADS, class Weight>
FANO_INLINE void mix_heads(const Model& m, const Sequence& q, const Weight* values, const float* weights, int64_t count,
                           float* out) {
  const int64_t width = m.head_width, row = m.num_kv_heads * width;
  int64_t e = 0;
  for (; e + MIXED * WIDTH <= width; e += MIXED * WIDTH) {
    mix_pieces<HEADS, MIXED>(m, q, values + e, weights, count, out + e);
  }
  for (; e + WIDTH <= width; e += WIDTH) mix_pieces<HEADS, 1>(m, q, values + e, weights, count, out + e);
  for (; e < width; e++) {
    for (int h = 0; h < HEADS; h++) {
      float sum = 0;
      int64_t index = 0;
      for (int range = 0; range < 2; range++) {
        for (int64_t p = q.range_start[range]; p < q.range_end[range]; p++, index++) {
          const int64_t place = q.blocks[p / BLOCK_TOKENS] * BLOCK_TOKENS + p % BLOCK_TOKENS;
          sum += widen_one(values[place * row + e]) * weights[h * count + index];
        }
      }
      out[h * width + e] = sum;
    }
  }
}

template <int HEADS, class Weight>
FANO_INLINE void attend_heads(const Model& m, const Sequence& q, const Weight* keys, const Weight* values,
                              const float* query, float* scores, float* out) {
  const int64_t count = q.range_end[0] - q.range_start[0] + q.range_end[1] - q.range_start[1];
  const float scale = 1.0f / __builtin_sqrtf((float)m.head_width);
  score_heads<HEADS>(m, q, keys, query, scores, count);
  float totals[HEADS];
  for (int h = 0; h < HEADS; h++) {
    float* mine = scores + h * count;
    const float peak = peak_of(mine, count);
    for (int64_t i = 0; i < count; i++) mine[i] = (mine[i] - peak) * scale;
    exp_all(mine, mine, count);
    totals[h] = total_of(mine, count);
  }
  mix_heads<HEADS>(m, q, values, scores, count, out);
  for (int h = 0; h < HEADS; h++) {
    for (int64_t e = 0; e < m.head_width; e++) out[h * m.head_width + e] /= totals[h];
  }
}

// One key head of one sequence with all the query heads that share it, as many as registers hold at once.
template <class Weight>
FANO_TARGET static void attend_group(const Model& m, const Sequence& q, const Weight* keys, const Weight* values,
                                     const float* query, float* scores, float* out) {
  const int64_t num_heads = m.num_heads / m.num_kv_heads;
  int64_t h = 0;
  for (; h + HEAD_TILE <= num_heads; h += HEAD_TILE) {
    attend_heads<HEAD_TILE>(m, q, keys, values, query + h * m.head_width, scores, out + h * m.head_width);
  }
  for (; h < num_heads; h++) {
    attend_heads<1>(m, q, keys, values, query + h * m.head_width, scores, out + h * m.head_width);
  }
}

template <class Weight>
FANO_TARGET static void attention(const Model& m, const Layer& layer, const Step& s, int64_t index, const Workspace& w,
                                  Crew& crew, int64_t part) {
  const int64_t queries = m.num_heads * m.head_width, row = m.num_kv_heads * m.head_width, all = queries + 2 * row;
  const int64_t per_group = queries / m.num_kv_heads;
  Weight* keys = (Weight*)s.keys + index * s.num_blocks * BLOCK_TOKENS * row;
  Weight* values = (Weight*)s.values + index * s.num_blocks * BLOCK_TOKENS * row;
  product<false>((const Weight*)layer.in_proj, w.normed, w.wide, s.num_sequences, all, m.width, w.apart, part,
                 crew.size);
  meet(crew);
  for (int64_t unit = part; unit < s.num_sequences * m.num_kv_heads; unit += crew.size) {
    const int64_t i = unit / m.num_kv_heads, group = unit % m.num_kv_heads, at = group * m.head_width;
    const float* mine = w.wide + i * all;
    for (int64_t e = at; e < at + m.head_width; e++) {
      narrow(mine[queries + e], keys + s.kv_rows[i] * row + e);
      narrow(mine[queries + row + e], values + s.kv_rows[i] * row + e);
    }
    attend_group(m, s.sequences[i], keys + at, values + at, mine + group * per_group, w.scores,
                 w.mixed + i * queries + group * per_group);
  }
  meet(crew);
  product<true>((const Weight*)layer.out_proj, w.mixed, w.x, s.num_sequences, m.width, queries, w.apart, part,
                crew.size);
}

template <class Weight>
FANO_TARGET static void mamba(const Model& m, const Layer& layer, const Step& s, int64_t index, const Workspace& w,
                              Crew& crew, int64_t part) {
  const int64_t inner = m.inner, states = m.num_states, rank = m.dt_rank, selected = rank + 2 * states;
  const int64_t grains = (inner + CHANNEL_GRAIN - 1) / CHANNEL_GRAIN;
  const int64_t first = share(grains, part, crew.size) * CHANNEL_GRAIN;
  const int64_t beyond = share(grains, part + 1, crew.size) * CHANNEL_GRAIN, last = beyond < inner ? beyond : inner;
  product<false>((const Weight*)layer.in_proj, w.normed, w.wide, s.num_sequences, 2 * inner, m.width, w.apart, part,
                 crew.size);
  meet(crew);
  conv({w.wide, layer.conv_weight, layer.conv_bias, s.conv + index * s.num_slots * (m.num_taps - 1) * inner, w.inner,
        s.query_start, s.state_slots, 2 * inner, s.num_sequences, inner, m.num_taps},
       first, last);
  meet(crew);
  // Narrow: everyone needs all of it, and computes it.
  product<false>((const Weight*)layer.x_proj, w.inner, w.selected, s.num_sequences, selected, inner, w.apart, 0, 1);
  for (int64_t i = 0; i < s.num_sequences; i++) {
    float *dt = w.selected + i * selected, *b = dt + rank, *c = b + states;
    rms_norm(dt, layer.dt_norm, m.eps, dt, rank);
    rms_norm(b, layer.b_norm, m.eps, b, states);
    rms_norm(c, layer.c_norm, m.eps, c, states);
    float* delta = w.delta + i * inner;
    int64_t channel = first;
    for (; channel + 4 <= last; channel += 4) {
      vec sums[1][4] = {};
      float rest[1][4] = {};
      rows_of<4, 1>(layer.dt_weight + channel * rank, dt, rank, rank, sums, rest);
      const quad found = sums_of(sums[0]);
      for (int n = 0; n < 4; n++) delta[channel + n] = found[n] + rest[0][n];
    }
    for (; channel < last; channel++) delta[channel] = dot(layer.dt_weight + channel * rank, dt, rank);
  }
  scan({w.inner, w.delta, layer.dt_bias, layer.a, w.selected + rank, w.selected + rank + states, layer.d,
        w.wide + inner, s.ssm + index * s.num_slots * states * inner, w.mixed, s.query_start, s.state_slots, inner,
        inner, selected, selected, 2 * inner, s.num_sequences, inner, states},
       first, last);
  meet(crew);
  product<true>((const Weight*)layer.out_proj, w.mixed, w.x, s.num_sequences, m.width, inner, w.apart, part, crew.size);
}

FANO_TARGET static void norm_all(const float* gain, const Model& m, const Step& s, const Workspace& w) {
  for (int64_t i = 0; i < s.num_sequences; i++) {
    rms_norm(w.x + i * m.width, gain, m.eps, w.normed + i * m.width, m.width);
  }
}

template <class Weight>
FANO_TARGET static void decode_as(const Model& m, const Step& s, const Workspace& w, Crew& crew, int64_t part) {
  for (int64_t i = part; i < s.num_sequences; i += crew.size) {
    const Weight* row = (const Weight*)m.embedding + s.input_ids[i] * m.width;
    for (int64_t e = 0; e < m.width; e++) w.x[i * m.width + e] = widen_one(row[e]);
  }
  int64_t num_mamba = 0, num_attention = 0;
  for (int64_t index = 0; index < m.num_layers; index++) {
    const Layer& layer = m.layers[index];
    meet(crew);
    norm_all(layer.mixer_norm, m, s, w);
    if (layer.is_attention) {
      attention<Weight>(m, layer, s, num_attention++, w, crew, part);
    } else {
      mamba<Weight>(m, layer, s, num_mamba++, w, crew, part);
    }
    meet(crew);
    norm_all(layer.ffn_norm, m, s, w);
    product<false>((const Weight*)layer.gate_up, w.normed, w.wide, s.num_sequences, 2 * m.ffn, m.width, w.apart, part,
                   crew.size);
    meet(crew);
    for (int64_t i = 0; i < s.num_sequences; i++) {
      gate(w.wide + i * 2 * m.ffn, w.wide + i * 2 * m.ffn + m.ffn, w.gated + i * m.ffn, m.ffn);
    }
    product<true>((const Weight*)layer.down, w.gated, w.x, s.num_sequences, m.width, m.ffn, w.apart, part, crew.size);
  }
  meet(crew);
  for (int64_t i = 0; i < s.num_logits; i++) {
    rms_norm(w.x + s.logits_rows[i] * m.width, m.final_norm, m.eps, w.normed + i * m.width, m.width);
  }
  product<false>((const Weight*)m.head, w.normed, s.logits, s.num_logits, m.vocabulary, m.width, w.apart, part,
                 crew.size);
}

FANO_TARGET static void decode(const Model& m, const Step& s, const Workspace& w, Crew& crew, int64_t part) {
  if (m.is_bf16) {
    decode_as<bf16>(m, s, w, crew, part);
  } else {
    decode_as<float>(m, s, w, crew, part);
  }
}

}  // namespace FANO_SET
