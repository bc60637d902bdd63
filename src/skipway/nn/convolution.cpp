// 3x3 convolutions of stride 1 in bf16 on the processor's matrix unit (AMX), forward and both gradients.
//
// Images lie in one row of pixels, each with a row and a column of zeros behind it, so that a pixel's neighbours are at
// fixed distances and the convolution is nine matrix products of shifted views. A few images at a time are laid out in
// the cache and stay there for all products, while the next ones are fetched. Sums are fp32, in the unit's registers,
// and rounded once; numbers below the normal range count as zero. A 2x2 max-pool can follow while the output is in the
// cache: what it is taken from never goes to memory. Compiled once for the machine by kernels.py; plain C interface.

#include <cstdint>

typedef int64_t i64;

#if defined(__AMX_BF16__) && defined(__AVX512BF16__) && defined(__linux__)

#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>

namespace {

typedef uint16_t half;

const i64 TILE = 16, BLOCK = 32, TAPS = 9;  // a tile: 16 rows of 64 bytes; a block: two tiles
const i64 CELL = TILE * BLOCK;              // halves in a tile, whose fp32 sums are TILE * TILE
const i64 FORWARD = 512, BACKWARD = 256;    // about as many pixels are laid out at a time
const i64 CACHED = 1 << 20;                 // bytes that a layout, and the sums of one job, may about take
const int REQUEST_PERMISSION = 0x1023, TILE_DATA = 18;

// Images as one row of pixels, `group` of them at a time.
struct Shape {
  i64 images, H, W, in, out, threads, row, image, lead, group, groups, length;

  Shape(i64 images, i64 H, i64 W, i64 in, i64 out, i64 threads, i64 pixels)
      : images(images), H(H), W(W), in(in), out(out), threads(threads) {
    row = W + 1;
    image = (H + 1) * row;
    lead = (row + 2) / 2 * 2;  // zeros before the first image: enough for the tap up and left, and an even number
    i64 most = pixels / image < 1 ? 1 : pixels / image;
    i64 rounds = (images + most * threads - 1) / (most * threads);  // as many groups for each thread
    group = (images + rounds * threads - 1) / (rounds * threads);
    groups = (images + group - 1) / group;
    length = lead + blocks(group) * BLOCK + lead + BLOCK;  // of a layout, with margins
  }
  i64 count(i64 g) const { return g >= groups ? 0 : g + 1 < groups ? group : images - g * group; }
  i64 blocks(i64 count) const { return (count * image - row - 1 + BLOCK - 1) / BLOCK; }  // to the last pixel
  i64 shift(i64 tap) const { return (tap / 3 - 1) * row + tap % 3 - 1; }
  i64 first(i64 g) const { return g * group; }  // image of a group
  i64 whole() const { return H * W; }           // pixels of an image in memory, and of a pooled one
  i64 halved() const { return (H / 2) * (W / 2); }
};

struct Tiles {  // the unit's registers, set up while this lives
  Tiles() {
    struct { uint8_t palette, start, reserved[14]; uint16_t columns[16]; uint8_t rows[16]; } config = {};
    config.palette = 1;
    for (int i = 0; i < 8; i++) config.columns[i] = 64, config.rows[i] = TILE;
    _tile_loadconfig(&config);
  }
  ~Tiles() { _tile_release(); }
};

template <typename T> struct Buffer {  // aligned, zeroed
  T* data;
  explicit Buffer(i64 count) {
    i64 bytes = (count * i64(sizeof(T)) + 63) / 64 * 64;
    data = (T*)aligned_alloc(64, bytes);
    if (!data) abort();
    memset(data, 0, bytes);
  }
  Buffer(const Buffer&) = delete;
  ~Buffer() { free(data); }
  operator T*() const { return data; }
};

// Memory that is needed next, fetched a few lines at a turn while other work goes on.
struct Ahead {
  const char *at, *end;
  i64 share;
  Ahead(const half* from, i64 numbers, i64 turns)
      : at((const char*)from), end(at + numbers * 2), share((numbers * 2 / 64 + turns) / turns * 64) {}
  void turn() {
    for (const char* stop = end - at < share ? end : at + share; at < stop; at += 64) _mm_prefetch(at, _MM_HINT_T1);
  }
};

// Sums of two by two tiles, registers 0 to 3: rows of `a` and `a1` by columns of `b` and `b1`, over `steps` tiles of
// each, which lie `a_next` and `b_next` halves apart.
inline void multiply(const half* a, const half* a1, i64 a_next, const half* b, const half* b1, i64 b_next, i64 steps) {
  for (i64 k = 0; k < steps; k++, a += a_next, a1 += a_next, b += b_next, b1 += b_next) {
    _tile_loadd(4, a, 64);
    _tile_loadd(6, b, 64);
    _tile_loadd(5, a1, 64);
    _tile_loadd(7, b1, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(3, 5, 7);
  }
}

// A number that orders halves as they are ordered, NaN above all.
inline __m512i key(__m512i x) {
  const __m512i rest = _mm512_set1_epi16(0x7fff);
  __m512i made = _mm512_xor_si512(x, _mm512_and_si512(_mm512_srai_epi16(x, 15), rest));
  return _mm512_mask_mov_epi16(
      made, _mm512_cmpgt_epi16_mask(_mm512_and_si512(x, rest), _mm512_set1_epi16(0x7f80)), rest);
}

// The largest of each 2x2 pixels of `count` images, and which it was; C channels, a multiple of 32.
void pool(const half* x, half* y, uint8_t* which, i64 count, i64 H, i64 W, i64 C) {
  for (i64 n = 0; n < count; n++)
    for (i64 h = 0; h + 1 < H; h += 2)
      for (i64 w = 0; w + 1 < W; w += 2)
        for (i64 c = 0; c < C; c += BLOCK, y += BLOCK, which += BLOCK) {
          const half* p = x + ((n * H + h) * W + w) * C + c;
          __m512i best = _mm512_loadu_si512(p), most = key(best), at = _mm512_setzero_si512();
          for (int i = 1; i < 4; i++) {
            __m512i v = _mm512_loadu_si512(p + (i / 2 * W + i % 2) * C), k = key(v);
            __mmask32 larger = _mm512_cmpgt_epi16_mask(k, most);
            best = _mm512_mask_mov_epi16(best, larger, v), most = _mm512_mask_mov_epi16(most, larger, k);
            at = _mm512_mask_mov_epi16(at, larger, _mm512_set1_epi16(i));
          }
          _mm512_storeu_si512(y, best);
          _mm256_storeu_si256((__m256i*)which, _mm512_cvtepi16_epi8(at));
        }
}

// Its gradient: each number to the place that it came from, zeros elsewhere; of odd images the last row and column are
// left as they are.
void unpool(const half* dy, const uint8_t* which, half* dx, i64 count, i64 H, i64 W, i64 C) {
  for (i64 n = 0; n < count; n++)
    for (i64 h = 0; h + 1 < H; h += 2)
      for (i64 w = 0; w + 1 < W; w += 2)
        for (i64 c = 0; c < C; c += BLOCK, dy += BLOCK, which += BLOCK) {
          half* p = dx + ((n * H + h) * W + w) * C + c;
          __m512i v = _mm512_loadu_si512(dy), at = _mm512_cvtepu8_epi16(_mm256_loadu_si256((const __m256i*)which));
          for (int i = 0; i < 4; i++)
            _mm512_storeu_si512(p + (i / 2 * W + i % 2) * C,
                                _mm512_maskz_mov_epi16(_mm512_cmpeq_epi16_mask(at, _mm512_set1_epi16(i)), v));
        }
}

// `count` images of x (pixels x channels) as [channels / 32][length][32], zeros around each.
void lay_out(const half* x, const Shape& s, i64 count, half* to) {
  for (i64 n = 0; n < count; n++)
    for (i64 h = 0; h < s.H; h++) {
      half* out = to + (s.lead + n * s.image + h * s.row) * BLOCK;
      for (i64 w = 0; w < s.W; w++, x += s.in, out += BLOCK)
        for (i64 c = 0; c < s.in; c += BLOCK) _mm512_store_si512(out + c * s.length, _mm512_loadu_si512(x + c));
    }
}

// Where the pixels of `count` laid out images stand among those that there are, -1 for the zeros between.
void places(const Shape& s, i64 count, i64* to) {
  for (i64 p = 0; p < s.blocks(count) * BLOCK; p++) {
    i64 n = p / s.image, h = p % s.image / s.row, w = p % s.row;
    to[p] = n < count && h < s.H && w < s.W ? (n * s.H + h) * s.W + w : -1;
  }
}

// y = x * filters [+ added]; filters: [out / 16][tap][in / 32] tiles of 16 pairs of channels by 16 filters.
// taken: x is the gradient of a pool's output, and this what the pool took; given: y is to be pooled, and this told.
void forward(const half* x, const half* filters, const half* added, half* y, const uint8_t* taken, uint8_t* given,
             const Shape& s) {
  i64 depth = s.in / BLOCK, panel = TAPS * depth * CELL;  // the halves of 16 filters
  i64 from = (taken ? s.halved() : s.whole()) * s.in, to = (given ? s.halved() : s.whole()) * s.out;  // of an image
#pragma omp parallel num_threads(s.threads)
  {
    Tiles tiles;
    Buffer<half> laid(s.in * s.length);
    Buffer<i64> place(s.blocks(s.group) * BLOCK);
    Buffer<float> sums(BLOCK * BLOCK);
    Buffer<half> spread(taken ? s.group * s.whole() * s.in : 0), kept(given ? s.group * s.whole() * s.out : 0);
    places(s, s.group, place);
#pragma omp for schedule(static)
    for (i64 g = 0; g < s.groups; g++) {
      i64 blocks = s.blocks(s.count(g)), last = s.count(g) * s.image;
      const half* here = x + s.first(g) * from;
      if (taken) unpool(here, taken + s.first(g) * from, spread, s.count(g), s.H, s.W, s.in);
      lay_out(taken ? spread : here, s, s.count(g), laid);
      Ahead ahead(x + s.first(g + 1) * from, s.count(g + 1) * from, s.out / BLOCK * blocks);
      half* there = given ? kept : y + s.first(g) * to;
      const half* more = added ? added + s.first(g) * to : nullptr;
      for (i64 o = 0; o < s.out; o += BLOCK)
        for (i64 p = 0; p < blocks * BLOCK; p += BLOCK) {
          ahead.turn();
          _tile_zero(0);
          _tile_zero(1);
          _tile_zero(2);
          _tile_zero(3);
          for (i64 tap = 0; tap < TAPS; tap++) {
            const half* a = laid + (s.lead + p + s.shift(tap)) * BLOCK;
            const half* b = filters + o / TILE * panel + tap * depth * CELL;
            multiply(a, a + CELL, s.length * BLOCK, b, b + panel, CELL, depth);
          }
          _tile_stored(0, sums, BLOCK * 4);
          _tile_stored(1, sums + TILE, BLOCK * 4);
          _tile_stored(2, sums + TILE * BLOCK, BLOCK * 4);
          _tile_stored(3, sums + TILE * BLOCK + TILE, BLOCK * 4);
          for (i64 i = 0; i < BLOCK && p + i < last; i++) {
            if (place[p + i] < 0) continue;
            i64 at = place[p + i] * s.out + o;
            __m512 low = _mm512_load_ps(sums + i * BLOCK), high = _mm512_load_ps(sums + i * BLOCK + TILE);
            if (more) {
              low = _mm512_add_ps(low, _mm512_castsi512_ps(_mm512_slli_epi32(
                  _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)(more + at))), 16)));
              high = _mm512_add_ps(high, _mm512_castsi512_ps(_mm512_slli_epi32(
                  _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)(more + at + TILE))), 16)));
            }
            __m512i rounded = (__m512i)_mm512_cvtne2ps_pbh(high, low);
            if (given)
              _mm512_store_si512(there + at, rounded);
            else
              _mm512_stream_si512((__m512i*)(there + at), rounded);
          }
        }
      if (given) pool(kept, y + s.first(g) * to, given + s.first(g) * to, s.count(g), s.H, s.W, s.out);
    }
    _mm_sfence();
  }
}

inline __m512i wide(const half* p) { return _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)); }
inline __m512i pair(__m512i first, __m512i second) { return _mm512_or_si512(first, _mm512_slli_epi32(second, 16)); }

// Rows and columns of 16 x 16 numbers of 32 bits change places.
inline void transpose(__m512i* r) {
  __m512i t[16];
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
  for (int i = 0; i < 4; i++) {
    t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
    t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
    t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
    t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
  }
  for (int i = 0; i < 4; i++) {
    r[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
    r[i + 4] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0x88);
    r[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
    r[i + 12] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0xdd);
  }
}

// Pairs of neighbouring pixels that begin at even and at odd places of a layout: each [in / 16][length / 2][16][2].
void lay_out_pairs(const half* x, const Shape& s, i64 count, const half* zeros, const half** from, half* even,
                   half* odd) {
  i64 end = s.lead + s.blocks(count) * BLOCK + s.lead;
  for (i64 f = 0; f < s.length; f++) from[f] = zeros;
  for (i64 n = 0; n < count; n++)
    for (i64 h = 0; h < s.H; h++)
      for (i64 w = 0; w < s.W; w++, x += s.in) from[s.lead + n * s.image + h * s.row + w] = x;
  for (i64 f = 0; f < end; f += 2)
    for (i64 c = 0; c < s.in; c += TILE) {
      __m512i first = wide(from[f] + c), second = wide(from[f + 1] + c), third = wide(from[f + 2] + c);
      _mm512_store_si512(even + c * s.length + f * TILE, pair(first, second));
      _mm512_store_si512(odd + c * s.length + f * TILE, pair(second, third));
    }
}

// Channels [begin, end) of dy turned, [channels / 16][blocks][16 channels][32 pixels], zeros between images.
void lay_out_turned(const half* dy, const Shape& s, i64 count, const half* zeros, const i64* place, i64 begin, i64 end,
                    half* to) {
  i64 blocks = s.blocks(count);
  for (i64 k = 0; k < blocks; k++) {
    const half* from[BLOCK];
    for (i64 i = 0; i < BLOCK; i++) {
      i64 p = k * BLOCK + i;
      from[i] = place[p] < 0 || p >= count * s.image ? zeros : dy + place[p] * s.out;
    }
    for (i64 c = begin; c < end; c += TILE) {
      __m512i r[16];
      for (i64 j = 0; j < 16; j++) r[j] = pair(wide(from[2 * j] + c), wide(from[2 * j + 1] + c));
      transpose(r);
      half* out = to + ((c - begin) / TILE * blocks + k) * CELL;
      for (i64 j = 0; j < 16; j++) _mm512_store_si512(out + j * BLOCK, r[j]);
    }
  }
}

// The gradient of the filters, dw (out, tap, in): sums over pixels of dy times x at the tap's neighbour.
// Threads share `pieces` of the batch by `parts` of the filters; both fix the order in which is summed.
void weight_gradient(const half* x, const half* dy, half* dw, const uint8_t* taken, const Shape& s, i64 pieces,
                     i64 parts) {
  i64 image = (taken ? s.halved() : s.whole()) * s.out;  // halves of dy in memory
  i64 depth = s.in / TILE, cell = TILE * TILE, widest = (s.out / BLOCK + parts - 1) / parts * BLOCK;
  Buffer<float> sums(pieces * s.out * TAPS * s.in);  // [piece][out / 16][tap][in / 16][16][16]
#pragma omp parallel num_threads(s.threads)
  {
    Tiles tiles;
    Buffer<half> even(s.in * s.length), odd(s.in * s.length), turned(widest * s.blocks(s.group) * BLOCK);
    Buffer<half> spread(taken ? s.group * s.whole() * s.out : 0);
    Buffer<half> zeros(s.in > s.out ? s.in : s.out);
    Buffer<const half*> from(s.length);
    Buffer<i64> place(s.blocks(s.group) * BLOCK);
    places(s, s.group, place);
#pragma omp for schedule(static)
    for (i64 job = 0; job < pieces * parts; job++) {
      i64 piece = job / parts, part = job % parts;
      i64 begin = s.out / BLOCK * part / parts * BLOCK, end = s.out / BLOCK * (part + 1) / parts * BLOCK;
      float* total = sums + piece * s.out * TAPS * s.in;
      for (i64 g = s.groups * piece / pieces; g < s.groups * (piece + 1) / pieces; g++) {
        i64 blocks = s.blocks(s.count(g)), size = s.whole() * s.in;
        const half* here = dy + s.first(g) * image;
        if (taken) unpool(here, taken + s.first(g) * image, spread, s.count(g), s.H, s.W, s.out);
        lay_out_pairs(x + s.first(g) * size, s, s.count(g), zeros, from, even, odd);
        lay_out_turned(taken ? spread : here, s, s.count(g), zeros, place, begin, end, turned);
        i64 turns = (end - begin) / BLOCK * (s.in / BLOCK) * TAPS;
        Ahead xs(x + s.first(g + 1) * size, s.count(g + 1) * size, turns);
        Ahead dys(dy + s.first(g + 1) * image, s.count(g + 1) * image, turns);
        for (i64 o = begin; o < end; o += BLOCK)
          for (i64 c = 0; c < s.in; c += BLOCK)
            for (i64 tap = 0; tap < TAPS; tap++) {
              xs.turn(), dys.turn();
              i64 start = s.lead + s.shift(tap);
              const half* a = turned + (o - begin) / TILE * blocks * CELL;
              const half* b = (start % 2 ? odd : even) + c * s.length + start / 2 * BLOCK;
              float *t = total + ((o / TILE * TAPS + tap) * depth + c / TILE) * cell, *t1 = t + TAPS * depth * cell;
              _tile_loadd(0, t, 64);
              _tile_loadd(1, t + cell, 64);
              _tile_loadd(2, t1, 64);
              _tile_loadd(3, t1 + cell, 64);
              multiply(a, a + blocks * CELL, CELL, b, b + TILE * s.length, CELL, blocks);
              _tile_stored(0, t, 64);
              _tile_stored(1, t + cell, 64);
              _tile_stored(2, t1, 64);
              _tile_stored(3, t1 + cell, 64);
            }
      }
    }
#pragma omp for schedule(static)
    for (i64 o = 0; o < s.out; o++)
      for (i64 tap = 0; tap < TAPS; tap++)
        for (i64 c = 0; c < s.in; c += BLOCK) {
          const float* t = sums + ((o / TILE * TAPS + tap) * depth + c / TILE) * cell + o % TILE * TILE;
          __m512 low = _mm512_load_ps(t), high = _mm512_load_ps(t + cell);
          for (i64 piece = 1; piece < pieces; piece++) {
            t += s.out * TAPS * s.in;
            low = _mm512_add_ps(low, _mm512_load_ps(t)), high = _mm512_add_ps(high, _mm512_load_ps(t + cell));
          }
          _mm512_storeu_si512(dw + (o * TAPS + tap) * s.in + c, (__m512i)_mm512_cvtne2ps_pbh(high, low));
        }
  }
}

// Filters (out, tap, in) as `forward` takes them; turned: those of the input gradient, inputs for outputs and taps from
// the last to the first.
void pack(const half* w, half* to, i64 in, i64 out, bool turned, i64 threads) {
  i64 rows = turned ? in : out, depth = turned ? out : in;
#pragma omp parallel for num_threads(threads) schedule(static)
  for (i64 r = 0; r < rows; r += TILE)
    for (i64 tap = 0; tap < TAPS; tap++)
      for (i64 d = 0; d < depth; d += 2)
        for (i64 j = 0; j < TILE; j++) {
          half* cell = to + r * TAPS * depth + (tap * depth + d) * TILE + j * 2;
          const half* p = turned ? w + (d * TAPS + TAPS - 1 - tap) * in + r + j : w + ((r + j) * TAPS + tap) * in + d;
          cell[0] = p[0], cell[1] = p[turned ? TAPS * in : 1];
        }
}

}  // namespace

extern "C" {

// Whether the system lets this process use the unit.
i64 conv_ready() {
  static bool granted = syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0;
  return granted;
}

// Whether images of this shape can be taken: whole blocks of channels, and few enough numbers for the cache.
i64 conv_fits(i64 H, i64 W, i64 in, i64 out) {
  Shape s(1, H, W, in, out, 1, 1);
  return in % BLOCK == 0 && out % BLOCK == 0 && s.length * (in > out ? in : out) * 2 <= CACHED;
}

// x (images, H, W, in), w (out, tap, in), y and added (images, H, W, out), packed: as many numbers as w has.
// turned: w is (in, tap, out), and y its gradient of the input where x is that of the output.
// which, where it is not null, one for each number of the pool's output: y is pooled; turned: x is a pool's gradient.
void conv_forward(const void* x, const void* w, const void* added, void* y, void* which, void* packed, i64 images,
                  i64 H, i64 W, i64 in, i64 out, i64 turned, i64 threads) {
  Shape s(images, H, W, in, out, threads, FORWARD);
  pack((const half*)w, (half*)packed, turned ? out : in, turned ? in : out, turned, threads);
  uint8_t* pooled = (uint8_t*)which;
  forward((const half*)x, (const half*)packed, (const half*)added, (half*)y, turned ? pooled : nullptr,
          turned ? nullptr : pooled, s);
}

void conv_weight(const void* x, const void* dy, void* dw, const void* which, i64 images, i64 H, i64 W, i64 in, i64 out,
                 i64 threads) {
  Shape s(images, H, W, in, out, threads, BACKWARD);
  i64 parts = TAPS * in * out * 4 / CACHED + 1, most = out / BLOCK < threads ? out / BLOCK : threads;
  if (parts > most) parts = most;
  i64 pieces = (threads + parts - 1) / parts;
  weight_gradient((const half*)x, (const half*)dy, (half*)dw, (const uint8_t*)which, s, pieces, parts);
}
}

#else

extern "C" {  // a processor without the unit: nothing is ready, nothing fits, nothing else is called
i64 conv_ready() { return 0; }
i64 conv_fits(i64, i64, i64, i64) { return 0; }
}

#endif
