// The two recurrent kernels of a Mamba mixer, for one instruction set. No include guard: see vector.h.
// Specification, layouts and units: model/kernels/reference.py. One register holds neighbouring channels; a tile of
// channels runs through all tokens of a sequence with its state in registers. Channels never meet, so neither tiles
// nor threads nor chunk borders change a bit of the result.

namespace FANO_SET {

// One sequence, one tile of channels. NUM_STATES of 0: as many as `s` says, with the state in memory.
template <int NUM_STATES, bool TAIL>
FANO_INLINE void scan_tile(const Scan& s, int64_t start, int64_t end, float* state, int64_t channel, int64_t count) {
  const int64_t num_states = NUM_STATES ? NUM_STATES : s.num_states;
  constexpr int HELD = NUM_STATES ? NUM_STATES : 1;
  vec h[HELD], a[HELD];
  if (NUM_STATES) {
    _Pragma("GCC unroll 16") for (int n = 0; n < NUM_STATES; n++) {
      h[n] = load<TAIL>(state + n * s.num_channels + channel, count);
      a[n] = load<TAIL>(s.a + n * s.num_channels + channel, count) * LOG2_E;
    }
  }
  const vec d = load<TAIL>(s.d + channel, count), dt_bias = load<TAIL>(s.dt_bias + channel, count);
  for (int64_t t = start; t < end; t++) {
    const vec u = load<TAIL>(s.u + t * s.u_stride + channel, count);
    const vec delta = softplus(load<TAIL>(s.dt + t * s.dt_stride + channel, count) + dt_bias);
    const vec driven = delta * u;
    const float *b = s.b + t * s.b_stride, *c = s.c + t * s.c_stride;
    vec y[2] = {d * u, vec{}};  // two sums halve the chain of dependent additions
    if (NUM_STATES) {
      _Pragma("GCC unroll 16") for (int n = 0; n < NUM_STATES; n++) {
        h[n] = exp2_below_127(delta * a[n]) * h[n] + driven * b[n];
        y[n & 1] = h[n] * c[n] + y[n & 1];
      }
    } else {
      for (int64_t n = 0; n < num_states; n++) {
        float* place = state + n * s.num_channels + channel;
        const vec rate = load<TAIL>(s.a + n * s.num_channels + channel, count) * LOG2_E;
        const vec held = exp2_below_127(delta * rate) * load<TAIL>(place, count) + driven * b[n];
        store<TAIL>(place, held, count);
        y[0] = held * c[n] + y[0];
      }
    }
    vec out = y[0] + y[1];
    if (s.z) out *= silu(load<TAIL>(s.z + t * s.z_stride + channel, count));
    store<TAIL>(s.y + t * s.num_channels + channel, out, count);
  }
  if (NUM_STATES) {
    _Pragma("GCC unroll 16") for (int n = 0; n < NUM_STATES; n++) {
      store<TAIL>(state + n * s.num_channels + channel, h[n], count);
    }
  }
}

template <bool TAIL>
FANO_TARGET static void scan_sequences(const Scan& s, int64_t channel, int64_t count) {
  for (int64_t i = 0; i < s.num_sequences; i++) {
    const int64_t start = s.query_start[i], end = s.query_start[i + 1];
    float* state = s.state + s.state_slots[i] * s.num_states * s.num_channels;
    if (start == end) continue;
    if (s.num_states == 16) {
      scan_tile<16, TAIL>(s, start, end, state, channel, count);
    } else {
      scan_tile<0, TAIL>(s, start, end, state, channel, count);
    }
  }
}

FANO_TARGET static void scan(const Scan& s, int64_t first, int64_t last) {
  int64_t channel = first;
  for (; channel + WIDTH <= last; channel += WIDTH) scan_sequences<false>(s, channel, WIDTH);
  if (channel < last) scan_sequences<true>(s, channel, last - channel);
}

// One sequence, one tile of channels, with the last inputs in registers.
template <int NUM_TAPS, bool TAIL>
FANO_INLINE void conv_tile(const Conv& s, int64_t start, int64_t end, float* state, int64_t channel, int64_t count) {
  vec weight[NUM_TAPS], input[NUM_TAPS];
  for (int k = 0; k < NUM_TAPS; k++) weight[k] = load<TAIL>(s.weight + k * s.num_channels + channel, count);
  for (int k = 0; k < NUM_TAPS - 1; k++) input[k] = load<TAIL>(state + k * s.num_channels + channel, count);
  const vec bias = s.bias ? load<TAIL>(s.bias + channel, count) : vec{};
  for (int64_t t = start; t < end; t++) {
    input[NUM_TAPS - 1] = load<TAIL>(s.x + t * s.x_stride + channel, count);
    vec sum = bias;
    for (int k = 0; k < NUM_TAPS; k++) sum = weight[k] * input[k] + sum;
    store<TAIL>(s.y + t * s.num_channels + channel, silu(sum), count);
    for (int k = 0; k < NUM_TAPS - 1; k++) input[k] = input[k + 1];
  }
  for (int k = 0; k < NUM_TAPS - 1; k++) store<TAIL>(state + k * s.num_channels + channel, input[k], count);
}

// The same for any number of taps: inputs before the chunk are rows of the state.
template <bool TAIL>
FANO_INLINE void conv_any(const Conv& s, int64_t start, int64_t end, float* state, int64_t channel, int64_t count) {
  const int64_t held = s.num_taps - 1;
  const vec bias = s.bias ? load<TAIL>(s.bias + channel, count) : vec{};
  for (int64_t t = start; t < end; t++) {
    vec sum = bias;
    for (int64_t k = 0; k < s.num_taps; k++) {
      const int64_t from = t - held + k;
      const float* row = from >= start ? s.x + from * s.x_stride : state + (from - start + held) * s.num_channels;
      sum = load<TAIL>(s.weight + k * s.num_channels + channel, count) * load<TAIL>(row + channel, count) + sum;
    }
    store<TAIL>(s.y + t * s.num_channels + channel, silu(sum), count);
  }
  for (int64_t k = 0; k < held; k++) {
    const int64_t from = end - held + k;  // ascending, so that a row of the state is read before it is written
    const float* row = from >= start ? s.x + from * s.x_stride : state + (from - start + held) * s.num_channels;
    store<TAIL>(state + k * s.num_channels + channel, load<TAIL>(row + channel, count), count);
  }
}

template <bool TAIL>
FANO_TARGET static void conv_sequences(const Conv& s, int64_t channel, int64_t count) {
  for (int64_t i = 0; i < s.num_sequences; i++) {
    const int64_t start = s.query_start[i], end = s.query_start[i + 1];
    float* state = s.state + s.state_slots[i] * (s.num_taps - 1) * s.num_channels;
    if (start == end) continue;
    if (s.num_taps == 4) {
      conv_tile<4, TAIL>(s, start, end, state, channel, count);
    } else {
      conv_any<TAIL>(s, start, end, state, channel, count);
    }
  }
}

FANO_TARGET static void conv(const Conv& s, int64_t first, int64_t last) {
  int64_t channel = first;
  for (; channel + WIDTH <= last; channel += WIDTH) conv_sequences<false>(s, channel, WIDTH);
  if (channel < last) conv_sequences<true>(s, channel, last - channel);
}

}  // namespace FANO_SET
