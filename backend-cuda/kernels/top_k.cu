// The k best items of each row, exactly: one block a user.
//
// A score becomes an unsigned key that ascends with it; an item's place is its key and, among equal keys, the
// smaller item. The k-th best key is found byte by byte from histograms; what lies above it, and the first items of
// those that are equal to it, are gathered and sorted. More than ROUND items are ranked in rounds, each of
// which leaves out what the rounds before have taken. Keys come in vectors of 16 bytes, as scores do.
#include "common.cuh"

static const u32 THREADS = 512;
static const u32 ROUND = 2048;

// Keys: 0 is an item that may not be ranked, 1 is NaN; -0 is 0.
INLINE u32 key_of(float score) {
    if (score != score) return 1;
    u32 bits = as_bits(score + 0.0f);
    return bits >> 31 ? ~bits : bits | 0x80000000u;
}
INLINE float score_of(u32 key, float) {
    if (key == 1) return as_float(0x7fc00000u);
    return as_float(key >> 31 ? key & 0x7fffffffu : ~key);
}
// Sixteen bits are enough for the order of numbers of sixteen bits.
INLINE u16 key_of_bits(u16 bits, u32 infinity) {
    if ((bits & 0x7fffu) > infinity) return 1;
    if (bits == 0x8000u) bits = 0;
    return bits >> 15 ? u16(~bits) : u16(bits | 0x8000u);
}
INLINE u16 key_of(f16 score) { return key_of_bits(score.bits, 0x7c00u); }
INLINE u16 key_of(bf16 score) { return key_of_bits(score.bits, 0x7f80u); }
template <class T> INLINE float score_of(u32 key, T) {
    if (key == 1) return as_float(0x7fc00000u);
    T score;
    score.bits = u16(key >> 15 ? key & 0x7fffu : ~key);
    return widen(score);
}

template <class T> struct Key {
    typedef u16 Type;
};
template <> struct Key<float> {
    typedef u32 Type;
};

struct Shared {
    u32 histogram[256];
    u32 scratch[THREADS / 32];
    // The prefix of the k-th best key found so far, and how many more keys are wanted that have it.
    u32 prefix;
    u32 wanted;
    u32 taken;
    // The keys behind this begin at a multiple of 16 bytes.
    u32 unused;
};

// Keys of a row, from shared memory where it fits there. Beyond the last item they are 0.
template <class T> struct Keys {
    typedef typename Key<T>::Type Type;
    static const u32 SIZE = Vector<T>::SIZE;
    const T *scores;
    u32 cols;
    const Type *cached;
    const Rows &seen;
    Row row;

    // Those of vector v, whatever the history.
    INLINE Vector<Type> open(u32 v) const {
        Vector<T> score = load_vector(scores + v * SIZE);
        Vector<Type> keys;
#pragma unroll
        for (u32 i = 0; i < SIZE; ++i) keys.at[i] = v * SIZE + i < cols ? key_of(score.at[i]) : Type(0);
        return keys;
    }

    INLINE Vector<Type> at(u32 v) const {
        if (cached) return load_vector(cached + v * SIZE);
        Vector<Type> keys = open(v);
        u32 event = lower_bound(seen, row, v * SIZE);
#pragma unroll
        for (u32 i = 0; i < SIZE; ++i) {
            if (event < row.end && seen.indices[event] == v * SIZE + i) {
                keys.at[i] = 0;
                ++event;
            }
        }
        return keys;
    }
};

// A key and its item as one number that is the larger, the better.
INLINE u64 rank_of(u32 key, u32 item) { return u64(key) << 32 | u32(~item); }

template <class T>
INLINE void top_k(const T *scores, u64 stride, u32 cols, const Rows &seen, u32 k, u32 cached, u32 *items,
                  float *values) {
    typedef typename Key<T>::Type Type;
    const u32 BITS = 8 * sizeof(Type), SIZE = Keys<T>::SIZE;
    u64 *ranks = (u64 *)shared_memory();
    Row row = row_at(seen, seen.first + blockIdx.x);
    scores += blockIdx.x * stride;
    items += u64(blockIdx.x) * k;
    values += u64(blockIdx.x) * k;

    // The sort wants a power of two, and what lies behind it whole vectors.
    u32 room = 2;
    while (room < smaller(k, ROUND)) room *= 2;
    Shared &state = *(Shared *)(ranks + room);
    Type *cache = (Type *)(&state + 1);
    Keys<T> keys{scores, cols, cached ? cache : nullptr, seen, row};
    u32 vectors = (cols + SIZE - 1) / SIZE;
    if (cached) {
#pragma unroll 2
        for (u32 v = threadIdx.x; v < vectors; v += THREADS) {
            *(Vector<Type> *)(cache + v * SIZE) = keys.open(v);
        }
        sync_block();
        for (u32 e = row.start + threadIdx.x; e < row.end; e += THREADS) cache[seen.indices[e]] = 0;
    }
    sync_block();

    // The vectors of a thread where it has neighbouring ones, an odd number: then no two of eight neighbouring
    // threads want the same bank.
    u32 each = (vectors + THREADS - 1) / THREADS | 1;
    u32 start = smaller(threadIdx.x * each, vectors), end = smaller(start + each, vectors);

    // Ranks from `bound` on have been taken.
    u64 bound = ~u64(0);
#pragma unroll 1
    for (u32 done = 0; done < k; done += ROUND) {
        u32 want = smaller(k - done, ROUND);
        auto is_open = [&](u32 key, u32 item) { return key != 0 && (done == 0 || rank_of(key, item) < bound); };
        if (threadIdx.x == 0) {
            state.prefix = 0;
            state.wanted = want;
            state.taken = 0;
        }
        // The want-th best key, a byte at a time.
#pragma unroll 1
        for (u32 shift = BITS - 8; shift < BITS; shift -= 8) {
            for (u32 i = threadIdx.x; i < 256; i += THREADS) state.histogram[i] = 0;
            sync_block();
            u32 prefix = state.prefix;
#pragma unroll 1
            for (u32 v = threadIdx.x; v < vectors; v += THREADS) {
                Vector<Type> some = keys.at(v);
#pragma unroll
                for (u32 i = 0; i < SIZE; ++i) {
                    u32 key = some.at[i];
                    bool fits = shift == BITS - 8 || key >> (shift + 8) == prefix;
                    if (fits && is_open(key, v * SIZE + i)) atomic_add(&state.histogram[key >> shift & 255], 1);
                }
            }
            sync_block();
            // From the top, the byte in which the count of better ones reaches what is wanted.
            u32 mine = threadIdx.x < 256 ? state.histogram[255 - threadIdx.x] : 0;
            u32 wanted = state.wanted;
            Place place = block_scan(mine, state.scratch);
            bool here = place.before < wanted && wanted <= place.before + mine;
            // Where there are fewer in all, the smallest key takes whatever there is.
            bool short_of = place.all < wanted && threadIdx.x == 255;
            if (here || short_of) {
                state.prefix = prefix << 8 | (255 - threadIdx.x);
                state.wanted = here ? wanted - place.before : mine;
                if (short_of) state.taken = 1;
            }
            sync_block();
            if (state.taken) break;
        }
        bool all = state.taken;
        u32 threshold = all ? 0 : state.prefix, ties = all ? 0 : state.wanted;
        sync_block();
        if (threadIdx.x == 0) state.taken = 0;
        for (u32 i = threadIdx.x; i < room; i += THREADS) ranks[i] = 0;
        sync_block();
        // What is better than the threshold, in any order; and the first of what equals it, which are counted
        // beforehand in the order of the items.
        u32 equal = 0;
        bool any = false;
#pragma unroll 1
        for (u32 v = start; v < end; ++v) {
            Vector<Type> some = keys.at(v);
#pragma unroll
            for (u32 i = 0; i < SIZE; ++i) {
                u32 key = some.at[i];
                if (key >= threshold && is_open(key, v * SIZE + i)) {
                    any = true;
                    equal += key == threshold;
                }
            }
        }
        u32 before = block_scan(equal, state.scratch).before;
#pragma unroll 1
        for (u32 v = start; any && v < end; ++v) {
            Vector<Type> some = keys.at(v);
#pragma unroll
            for (u32 i = 0; i < SIZE; ++i) {
                u32 key = some.at[i], item = v * SIZE + i;
                if (key < threshold || !is_open(key, item)) continue;
                if (key > threshold || before++ < ties) ranks[atomic_add(&state.taken, 1)] = rank_of(key, item);
            }
        }
        sync_block();
        // Bitonic, the best first.
#pragma unroll 1
        for (u32 size = 2; size <= room; size *= 2) {
#pragma unroll 1
            for (u32 step = size / 2; step > 0; step /= 2) {
                for (u32 i = threadIdx.x; i < room / 2; i += THREADS) {
                    u32 low = 2 * i - (i & (step - 1)), high = low + step;
                    u64 a = ranks[low], b = ranks[high];
                    if ((a < b) == ((low & size) == 0)) {
                        ranks[low] = b;
                        ranks[high] = a;
                    }
                }
                sync_block();
            }
        }
        for (u32 i = threadIdx.x; i < want; i += THREADS) {
            u64 rank = ranks[i];
            items[done + i] = rank == 0 ? 0xffffffffu : ~u32(rank);
            values[done + i] = rank == 0 ? -INFINITY_F : score_of(u32(rank >> 32), T());
        }
        bound = ranks[want - 1];
        sync_block();
    }
}

#define TOP_K(TYPE)                                                                                                   \
    KERNEL(top_k_##TYPE, THREADS,                                                                                     \
           (const TYPE *scores, u64 stride, u32 cols, Rows seen, u32 k, u32 cached, u32 *items, float *values)) {     \
        top_k<TYPE>(scores, stride, cols, seen, k, cached, items, values);                                            \
    }

TOP_K(f32)
TOP_K(f16)
#if __CUDA_ARCH__ >= 800
TOP_K(bf16)
#endif
