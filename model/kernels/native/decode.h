// One token of each of several sequences through the whole model, for one instruction set. No include guard: see
// vector.h. The specification is HybridLM.forward in torch; here activations stay float32 between the products, also
// where the weights are bfloat16.

namespace FANO_SET {

// One query head group of one sequence: scores over the visible ranges, softmax, mix. `scores` holds one float per
// visible token.
template <class Weight>
FANO_INLINE void attend_head(const Model& m, const Step& s, int64_t sequence, const Weight* keys, const Weight* values,
                             const float* query, int64_t group, float* scores, float* out) {
  const Sequence& q = s.sequences[sequence];
  const int64_t width = m.head_width, row = m.num_kv_heads * width;
  const float scale = 1.0f / __builtin_sqrtf((float)width);
  int64_t count = 0;
  float peak = -__builtin_inff();
  for (int range = 0; range < 2; range++) {
    for (int64_t p = q.range_start[range]; p < q.range_end[range]; p++) {
      const int64_t place = q.blocks[p / BLOCK_TOKENS] * BLOCK_TOKENS + p % BLOCK_TOKENS;
      scores[count] = dot(keys + place * row + group * width, query, width) * scale;
      peak = scores[count] > peak ? scores[count] : peak;
      count++;
    }
  }
  for (int64_t i = 0; i < count; i++) scores[i] -= peak;
  exp_all(scores, scores, count);
  float total = 0;
  for (int64_t i = 0; i < count; i++) total += scores[i];
  for (int64_t e = 0; e < width; e++) out[e] = 0;
  count = 0;
  for (int range = 0; range < 2; range++) {
    for (int64_t p = q.range_start[range]; p < q.range_end[range]; p++) {
      const int64_t place = q.blocks[p / BLOCK_TOKENS] * BLOCK_TOKENS + p % BLOCK_TOKENS;
      const Weight* value = values + place * row + group * width;
      const float weight = scores[count++];
      int64_t e = 0;
      for (; e + WIDTH <= width; e += WIDTH) {
        store<false>(out + e, widen(value + e) * weight + load<false>(out + e, WIDTH), WIDTH);
      }
      for (; e < width; e++) out[e] += widen_one(value[e]) * weight;
    }
  }
  for (int64_t e = 0; e < width; e++) out[e] /= total;
}

template <class Weight>
FANO_TARGET static void attention(const Model& m, const Layer& layer, const Step& s, int64_t index,
                                  const Workspace& w) {
  const int64_t queries = m.num_heads * m.head_width, row = m.num_kv_heads * m.head_width, all = queries + 2 * row;
  Weight* keys = (Weight*)s.keys + index * s.num_blocks * BLOCK_TOKENS * row;
  Weight* values = (Weight*)s.values + index * s.num_blocks * BLOCK_TOKENS * row;
  product<false>((const Weight*)layer.in_proj, w.normed, w.wide, s.num_sequences, all, m.width, w.apart);
  for (int64_t i = 0; i < s.num_sequences; i++) {
    const float* mine = w.wide + i * all;
    for (int64_t e = 0; e < row; e++) narrow(mine[queries + e], keys + s.kv_rows[i] * row + e);
    for (int64_t e = 0; e < row; e++) narrow(mine[queries + row + e], values + s.kv_rows[i] * row + e);
    for (int64_t head = 0; head < m.num_heads; head++) {
      attend_head(m, s, i, keys, values, mine + head * m.head_width, head / (m.num_heads / m.num_kv_heads), w.scores,
                  w.mixed + i * queries + head * m.head_width);
    }
  }
  product<true>((const Weight*)layer.out_proj, w.mixed, w.x, s.num_sequences, m.width, queries, w.apart);
}

template <class Weight>
FANO_TARGET static void mamba(const Model& m, const Layer& layer, const Step& s, int64_t index, const Workspace& w) {
  const int64_t inner = m.inner, states = m.num_states, rank = m.dt_rank, selected = rank + 2 * states;
  product<false>((const Weight*)layer.in_proj, w.normed, w.wide, s.num_sequences, 2 * inner, m.width, w.apart);
  conv({w.wide, layer.conv_weight, layer.conv_bias, s.conv + index * s.num_slots * (m.num_taps - 1) * inner, w.inner,
        s.query_start, s.state_slots, 2 * inner, s.num_sequences, inner, m.num_taps},
       0, inner);
  product<false>((const Weight*)layer.x_proj, w.inner, w.selected, s.num_sequences, selected, inner, w.apart);
  for (int64_t i = 0; i < s.num_sequences; i++) {
    float *dt = w.selected + i * selected, *b = dt + rank, *c = b + states;
    rms_norm(dt, layer.dt_norm, m.eps, dt, rank);
    rms_norm(b, layer.b_norm, m.eps, b, states);
    rms_norm(c, layer.c_norm, m.eps, c, states);
    product<false>(layer.dt_weight, dt, w.delta + i * inner, 1, inner, rank, w.apart);
  }
  scan({w.inner, w.delta, layer.dt_bias, layer.a, w.selected + rank, w.selected + rank + states, layer.d,
        w.wide + inner, s.ssm + index * s.num_slots * states * inner, w.mixed, s.query_start, s.state_slots, inner,
        inner, selected, selected, 2 * inner, s.num_sequences, inner, states},
       0, inner);
  product<true>((const Weight*)layer.out_proj, w.mixed, w.x, s.num_sequences, m.width, inner, w.apart);
}

FANO_TARGET static void norm_all(const float* gain, const Model& m, const Step& s, const Workspace& w) {
  for (int64_t i = 0; i < s.num_sequences; i++) {
    rms_norm(w.x + i * m.width, gain, m.eps, w.normed + i * m.width, m.width);
  }
}

template <class Weight>
FANO_TARGET static void decode_as(const Model& m, const Step& s, const Workspace& w) {
  for (int64_t i = 0; i < s.num_sequences; i++) {
    const Weight* row = (const Weight*)m.embedding + s.input_ids[i] * m.width;
    for (int64_t e = 0; e < m.width; e++) w.x[i * m.width + e] = widen_one(row[e]);
  }
  int64_t num_mamba = 0, num_attention = 0;
  for (int64_t index = 0; index < m.num_layers; index++) {
    const Layer& layer = m.layers[index];
    norm_all(layer.mixer_norm, m, s, w);
    if (layer.is_attention) {
      attention<Weight>(m, layer, s, num_attention++, w);
    } else {
      mamba<Weight>(m, layer, s, num_mamba++, w);
    }
    norm_all(layer.ffn_norm, m, s, w);
    product<false>((const Weight*)layer.gate_up, w.normed, w.wide, s.num_sequences, 2 * m.ffn, m.width, w.apart);
    for (int64_t i = 0; i < s.num_sequences; i++) {
      gate(w.wide + i * 2 * m.ffn, w.wide + i * 2 * m.ffn + m.ffn, w.mixed + i * m.ffn, m.ffn);
    }
    product<true>((const Weight*)layer.down, w.mixed, w.x, s.num_sequences, m.width, m.ffn, w.apart);
  }
  for (int64_t i = 0; i < s.num_logits; i++) {
    rms_norm(w.x + s.logits_rows[i] * m.width, m.final_norm, m.eps, w.normed + i * m.width, m.width);
  }
  product<false>((const Weight*)m.head, w.normed, s.logits, s.num_logits, m.vocabulary, m.width, w.apart);
}

FANO_TARGET static void decode(const Model& m, const Step& s, const Workspace& w) {
  if (m.is_bf16) {
    decode_as<bf16>(m, s, w);
  } else {
    decode_as<float>(m, s, w);
  }
}

}  // namespace FANO_SET
