// rank_tokens: rows by index -> the k first features by value * scale, padded, and their values, normalised or raw.
//
// One launch reads a row of the resident matrix and writes its tokens; nothing in between reaches memory. A block per
// row: (1) count candidates, see whether features ascend, sum the row; (2) where more than k are candidates, find the
// k-th by a radix select over key and feature, from the top digit down, as far as it takes; (3) collect the chosen
// entries in the order stored; (4) sort them, stably, by feature (where features do not ascend) and by key. Every pass
// after the first finds the row in the cache: 8 bytes an entry from memory (4 in 16 bits), 4 to 8 written a token.
//
// What decides order is exact: one product rounded once, then whole numbers. Ties go to the lower feature, then to the
// entry stored first.
//
// Launch: THREADS threads; any number of blocks; dynamic shared memory for 2 k items, or `scratch`, as many for every
// block. `rows` may hold -1. target_sum: below zero no values are written, at zero raw ones, above zero normalised.
#include "common.cuh"

template <class Value, class Id>
struct Entries {
    const Value* values;
    const Id* ids;
    const float* scale;
    int size;
    bool by_magnitude;

    // Ascending in the order of tokens; LAST_KEY for what is none.
    __device__ __forceinline__ u32 key(int i) const {
        float product = __fmul_rn(static_cast<float>(values[i]), scale[ids[i]]);
        if (by_magnitude) product = fabsf(product);
        return product != 0 && product == product ? descending_key(product) : LAST_KEY;
    }
    __device__ __forceinline__ u64 key_and_feature(int i) const { return static_cast<u64>(key(i)) << 32 | ids[i]; }
};

// Which entries are tokens: those whose key and feature, cut to `mask`, lie below `bound`, and the first
// `of_bound` of those that equal it.
struct Cut {
    u64 mask, bound;
    int of_bound;
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
            const u64 item = row.key_and_feature(i);
            if (item >> 32 != LAST_KEY && (item & cut.mask) == cut.bound) atomicAdd(&bins[item >> shift & 0xff], 1);
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
        if (chosen_count == cut.of_bound) break;
    }
    return cut;
}

// The entries that a cut keeps, as (key, position), in the order stored.
template <class Value, class Id>
__device__ void block_collect(const Entries<Value, Id>& row, const Cut& cut, u64* items) {
    int kept = 0, equal_before = 0;
    for (int first = 0; first < row.size; first += THREADS) {
        const int i = first + threadIdx.x;
        u64 item = static_cast<u64>(LAST_KEY) << 32;
        if (i < row.size) item = row.key_and_feature(i);
        const bool token = item >> 32 != LAST_KEY;
        const bool below = token && (item & cut.mask) < cut.bound, equal = token && (item & cut.mask) == cut.bound;
        int sums;
        const int before = block_scan(below | equal << 16, sums);  // two counts of at most THREADS in one scan
        const int wanted = max(cut.of_bound - equal_before, 0), equals = before >> 16;
        if (below || (equal && equals < wanted)) {
            items[kept + (before & 0xffff) + min(equals, wanted)] = item >> 32 << 32 | static_cast<u32>(i);
        }
        kept += (sums & 0xffff) + min(sums >> 16, wanted);
        equal_before += sums >> 16;
    }
    __syncthreads();
}

template <class Value, class Id>
__device__ void rank(
    const i64* __restrict__ indptr, const Id* __restrict__ indices, const Value* __restrict__ values,
    const i64* __restrict__ rows, i64 n, const float* __restrict__ scale, int k, bool by_magnitude, double target_sum,
    int* tokens, float* token_values, int* lengths, int* refused, u64* scratch
) {
    ICAN_DYNAMIC_SHARED(u64, room);
    __shared__ int counts[WARPS * DIGITS];
    u64* const buffer = scratch ? scratch + static_cast<i64>(blockIdx.x) * 2 * k : room;
    int bad = 0;
    for (i64 place = blockIdx.x; place < n; place += gridDim.x) {
        const Row at = rows[place] < 0 ? Row{0, 0} : row_at(indptr, rows[place]);
        const Entries<Value, Id> row = {values + at.start, indices + at.start, scale, at.size, by_magnitude};

        int candidates = 0;
        bool in_order = true;
        double sum = 0;
        for (int i = threadIdx.x; i < row.size; i += THREADS) {
            candidates += row.key(i) != LAST_KEY;
            in_order &= i == 0 || row.ids[i - 1] <= row.ids[i];
            const float value = row.values[i];
            sum += value;
            bad += target_sum > 0 && !(value >= 0);
        }
        candidates = block_sum(candidates);
        const bool ascending = __syncthreads_and(in_order);
        const int length = min(candidates, k);

        Cut cut = {0, 0, length};
        if (length < candidates && length > 0) cut = block_select(row, ascending, k, counts);
        u64 *items = buffer, *spare = buffer + k;
        if (length > 0) block_collect(row, cut, items);
        for (int shift = ascending ? 32 : 0; shift < 64 && length > 1; shift += 8) {
            const bool moved = block_sort_pass(items, spare, length, counts, [&](u64 item) {
                const u32 by = shift < 32 ? row.ids[static_cast<u32>(item)] : item >> 32;
                return static_cast<int>(by >> shift % 32 & 0xff);
            });
            if (moved) {
                u64* const sorted = spare;
                spare = items;
                items = sorted;
            }
        }

        double factor = 0;
        if (target_sum > 0) {
            sum = block_sum(sum);
            factor = sum != 0 ? target_sum / sum : 0;
        }
        for (int slot = threadIdx.x; slot < k; slot += THREADS) {
            const int i = slot < length ? static_cast<int>(static_cast<u32>(items[slot])) : 0;
            tokens[place * k + slot] = slot < length ? static_cast<int>(row.ids[i]) : -1;
            if (target_sum < 0) continue;
            float value = slot < length ? static_cast<float>(row.values[i]) : 0;
            if (target_sum > 0) value = scaled_log1p(value, factor);
            token_values[place * k + slot] = value;
        }
        if (threadIdx.x == 0) lengths[place] = length;
    }
    if (bad) atomicAdd(refused, bad);
}

#define ICAN_KERNEL(suffix, Value, Id)                                                                       \
    extern "C" __global__ void __launch_bounds__(THREADS, 4) rank_tokens_##suffix(                              \
        const i64* indptr, const Id* indices, const Value* values, const i64* rows, i64 n,                   \
        const float* scale, int k, bool by_magnitude, double target_sum, int* tokens, float* token_values,   \
        int* lengths, int* refused, u64* scratch                                                             \
    ) {                                                                                                      \
        rank(indptr, indices, values, rows, n, scale, k, by_magnitude, target_sum, tokens, token_values,     \
             lengths, refused, scratch);                                                                     \
    }

ICAN_FOR_LAYOUTS(ICAN_KERNEL)
