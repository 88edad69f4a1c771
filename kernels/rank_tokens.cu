// rank_tokens: rows by index -> the k first features by value * scale, padded, and their values, normalised or raw.
//
// One launch reads a row of the resident matrix and writes its tokens; nothing in between reaches memory. A block per
// row: (1) count candidates, see whether features ascend, sum the row; (2) where more than k are candidates, find the
// k-th by a radix select over key and feature, from the top digit down, as far as it takes; (3) collect the chosen
// entries; (4) sort them by key, feature and position. The keys of a row's first TILE entries lie in shared memory; what
// else later passes need is in the cache: 8 bytes an entry from memory (4 in 16 bits), 4 to 8 written a token.
//
// What decides order is exact: one product rounded once, then whole numbers. Ties go to the lower feature, then to the
// entry stored first.
//
// Launch: THREADS threads; any number of blocks; dynamic shared memory for the items that block_sort needs for k,
// `room`, or `scratch`, as many for every block. `rows` may hold -1. target_sum: below zero no values are written, at
// zero raw ones, above zero normalised.
#include "common.cuh"

template <class Value, class Id>
struct Entries {
    const Value* values;
    const Id* ids;
    const float* scale;
    int size;
    bool by_magnitude;
    u32* keys;  // of the first TILE entries

    // Ascending in the order of tokens; LAST_KEY for what is none.
    __device__ __forceinline__ u32 new_key(int i) const {
        float product = __fmul_rn(static_cast<float>(values[i]), scale[ids[i]]);
        if (by_magnitude) product = fabsf(product);
        return product != 0 && product == product ? descending_key(product) : LAST_KEY;
    }
    // Of this thread's entries alone, once new_key has been asked for all of them.
    __device__ __forceinline__ u32 key(int i) const { return i < TILE ? keys[i] : new_key(i); }
};

constexpr int ALL = -1;

// Which entries are tokens: those whose key and feature, cut to `mask`, lie below `bound`, and the first
// `of_bound` of those that equal it.
struct Cut {
    u64 mask, bound;
    int of_bound;  // ALL: all of them

    // The key and, where that decides, the feature, cut to the mask.
    template <class Id>
    __device__ __forceinline__ u64 part(u32 key, const Id* id) const {
        return (static_cast<u64>(key) << 32 | (static_cast<u32>(mask) ? *id : 0)) & mask;
    }
};

// The k first of more than k candidates. `bins` [DIGITS] in shared memory.
template <class Value, class Id>
__device__ Cut block_select(const Entries<Value, Id>& row, bool ascending, int k, int* bins) {
    __shared__ int chosen_digit, chosen_before, chosen_count;
    Cut cut = {0, 0, k};
    for (int shift = 56; shift >= (ascending ? 32 : 0); shift -= 8) {
        __syncthreads();
        bins[threadIdx.x] = 0;
        __syncthreads();
        for (int i = threadIdx.x; i < row.size; i += THREADS) {
            const u32 key = row.key(i);
            if (key == LAST_KEY || cut.part(key, row.ids + i) != cut.bound) continue;
            const u32 by = shift < 32 ? row.ids[i] : key;
            atomicAdd(&bins[by >> shift % 32 & 0xff], 1);
        }
        __syncthreads();
        int sum;
        const int count = bins[threadIdx.x], before = block_scan(count, sum);
        if (before < cut.of_bound && cut.of_bound <= before + count) {
            chosen_digit = threadIdx.x;
            chosen_before = before;
            chosen_count = count;
        }
        __syncthreads();
        cut.mask |= 0xffull << shift;
        cut.bound |= static_cast<u64>(chosen_digit) << shift;
        cut.of_bound -= chosen_before;
        if (chosen_count == cut.of_bound) {
            cut.of_bound = ALL;
            break;
        }
    }
    return cut;
}

// The entries that a cut keeps, as (key, position), in any order. Where it keeps some of the equal ones, the block
// counts these in the order stored.
template <class Value, class Id>
__device__ void block_collect(const Entries<Value, Id>& row, const Cut& cut, u64* items) {
    __shared__ int n_kept;
    if (threadIdx.x == 0) n_kept = 0;
    __syncthreads();
    int equal_before = 0;
    for (int first = 0; first < row.size; first += THREADS) {
        const int i = first + threadIdx.x;
        const u32 key = i < row.size ? row.key(i) : LAST_KEY;
        const bool token = key != LAST_KEY;
        const u64 part = token ? cut.part(key, row.ids + i) : 0;
        const bool below = token && part < cut.bound, equal = token && part == cut.bound;
        bool kept = below || equal;
        if (cut.of_bound != ALL) {
            int equals;
            const int place = equal_before + block_scan(equal, equals);
            kept = below || (equal && place < cut.of_bound);
            equal_before += equals;
        }
        const u32 votes = __ballot_sync(ALL_LANES, kept);
        int start = 0;
        if (lane_of_thread() == 0) start = atomicAdd(&n_kept, __popc(votes));
        start = __shfl_sync(ALL_LANES, start, 0);
        if (kept) items[start + __popc(votes & lanes_below())] = static_cast<u64>(key) << 32 | static_cast<u32>(i);
    }
    __syncthreads();
}

template <class Value, class Id>
__device__ void rank(
    const i64* __restrict__ indptr, const Id* __restrict__ indices, const Value* __restrict__ values,
    const i64* __restrict__ rows, i64 n, const float* __restrict__ scale, int k, int room, bool by_magnitude,
    double target_sum, int* tokens, float* token_values, int* lengths, int* refused, u64* scratch
) {
    ICAN_DYNAMIC_SHARED(u64, shared);
    __shared__ int bins[DIGITS];
    __shared__ u32 keys[TILE];
    u64* const items = scratch ? scratch + static_cast<i64>(blockIdx.x) * room : shared;
    for (i64 place = blockIdx.x; place < n; place += gridDim.x) {
        const Row at = rows[place] < 0 ? Row{0, 0} : row_at(indptr, rows[place]);
        const Entries<Value, Id> row = {values + at.start, indices + at.start, scale, at.size, by_magnitude, keys};

        int candidates = 0;
        bool in_order = true;
        double sum = 0;
        int bad = 0;
        for (int i = threadIdx.x; i < row.size; i += THREADS) {
            const u32 key = row.new_key(i);
            if (i < TILE) keys[i] = key;
            candidates += key != LAST_KEY;
            in_order &= i == 0 || row.ids[i - 1] <= row.ids[i];
            const float value = row.values[i];
            if (target_sum > 0) {
                sum += value;
                bad += !(value >= 0);
            }
        }
        if (bad) atomicAdd(refused, bad);
        candidates = block_sum(candidates);
        if (target_sum > 0) sum = block_sum(sum);
        const double factor = target_sum > 0 && sum != 0 ? target_sum / sum : 0;
        const bool ascending = __syncthreads_and(in_order);
        const int length = min(candidates, k);

        Cut cut = {0, 0, ALL};
        if (length < candidates && length > 0) cut = block_select(row, ascending, k, bins);
        if (length > 0) {
            block_collect(row, cut, items);
            const auto stored = [](u64 a, u64 b) { return a < b; };
            const auto by_feature = [ids = row.ids](u64 a, u64 b) {
                if (a >> 32 != b >> 32 || a >> 32 == LAST_KEY) return a < b;
                const Id of_a = ids[static_cast<u32>(a)], of_b = ids[static_cast<u32>(b)];
                return of_a != of_b ? of_a < of_b : a < b;
            };
            if (scratch) {
                block_sort_global(items, length, room, ~u64{0}, by_feature);
            } else if (ascending) {
                block_sort(shared, length, ~u64{0}, stored);
            } else {
                block_sort(shared, length, ~u64{0}, by_feature);
            }
        }

        for (int slot = threadIdx.x; slot < k; slot += THREADS) {
            const int i = slot < length ? static_cast<int>(static_cast<u32>(items[sorted_at(slot)])) : 0;
            tokens[place * k + slot] = slot < length ? static_cast<int>(row.ids[i]) : -1;
            if (target_sum < 0) continue;
            float value = slot < length ? static_cast<float>(row.values[i]) : 0;
            if (target_sum > 0) value = scaled_log1p(value, factor);
            token_values[place * k + slot] = value;
        }
        if (threadIdx.x == 0) lengths[place] = length;
    }
}

#define ICAN_KERNEL(suffix, Value, Id)                                                                       \
    extern "C" __global__ void __launch_bounds__(THREADS, 4) rank_tokens_##suffix(                              \
        const i64* indptr, const Id* indices, const Value* values, const i64* rows, i64 n,                   \
        const float* scale, int k, int room, bool by_magnitude, double target_sum, int* tokens,              \
        float* token_values, int* lengths, int* refused, u64* scratch                                        \
    ) {                                                                                                      \
        rank(indptr, indices, values, rows, n, scale, k, room, by_magnitude, target_sum, tokens,             \
             token_values, lengths, refused, scratch);                                                       \
    }

ICAN_FOR_LAYOUTS(ICAN_KERNEL)
