// bin_values: ceil(n_bins * F(value)) of every entry, F the distribution of its row's non-zero entries.
//
// A block per row. Whole numbers below 256 are counted, one bin a thread, and looked up. Anything else is sorted, keys
// alone, in shared memory (or in `scratch` where the longest row does not fit), and every entry finds how many keys
// are at most its own by bisection. 4 bytes an entry from memory (2 in 16 bits), 4 written.
//
// Launch: THREADS threads; any number of blocks; dynamic shared memory for the keys that block_sort needs for the
// longest row, `room`, or `scratch`, as many for every block.
#include "common.cuh"

__device__ __forceinline__ int bin_of(i64 upto, i64 n_bins, i64 n) {
    return static_cast<int>((upto * n_bins + n - 1) / n);
}

template <class Value>
__device__ __forceinline__ u32 key_of(Value value) {
    const float x = value;
    return x != 0 && x == x ? ascending_key(x) : LAST_KEY;
}

// Whether all of a row's values are whole numbers below DIGITS.
template <class Value>
__device__ bool block_small_counts(const Value* row, int size) {
    bool small = true;
    for (int i = threadIdx.x; i < size; i += THREADS) {
        const float value = row[i];
        small &= value >= 0 && value < DIGITS && value == static_cast<float>(static_cast<int>(value));
    }
    return __syncthreads_and(small);
}

template <class Value>
__device__ void block_bin_counts(const Value* row, int size, int n_bins, int* bins, int* out) {
    bins[threadIdx.x] = 0;
    __syncthreads();
    for (int i = threadIdx.x; i < size; i += THREADS) {
        if (row[i] != 0) atomicAdd(&bins[static_cast<int>(row[i])], 1);
    }
    __syncthreads();
    int n;
    const int count = bins[threadIdx.x], upto = block_scan(count, n) + count;
    bins[threadIdx.x] = count ? bin_of(upto, n_bins, n) : 0;
    __syncthreads();
    for (int i = threadIdx.x; i < size; i += THREADS) out[i] = bins[static_cast<int>(row[i])];
    __syncthreads();
}

template <class Value>
__device__ void block_bin_sorted(const Value* row, int size, int n_bins, u32* shared, u32* scratch, int room, int* out) {
    u32* const keys = scratch ? scratch + static_cast<i64>(blockIdx.x) * room : shared;
    int n = 0;
    for (int i = threadIdx.x; i < size; i += THREADS) {
        keys[i] = key_of(row[i]);
        n += keys[i] != LAST_KEY;
    }
    n = block_sum(n);
    const auto before = [](u32 a, u32 b) { return a < b; };
    if (scratch) {
        block_sort_global(keys, size, room, LAST_KEY, before);
    } else {
        block_sort(shared, size, LAST_KEY, before);
    }
    for (int i = threadIdx.x; i < size; i += THREADS) {
        const u32 key = key_of(row[i]);
        int low = 0, high = n;  // of rank low - 1 <= key < of rank high
        while (low < high) {
            const int middle = low + (high - low) / 2;
            if (keys[sorted_at(middle)] <= key) {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        out[i] = key == LAST_KEY ? 0 : bin_of(low, n_bins, n);
    }
    __syncthreads();
}

template <class Value>
__device__ void bin_rows(
    const i64* __restrict__ indptr, const Value* __restrict__ values, i64 n_rows, int n_bins, int room, int* out,
    u32* scratch
) {
    ICAN_DYNAMIC_SHARED(u32, shared);
    __shared__ int bins[DIGITS];
    for (i64 r = blockIdx.x; r < n_rows; r += gridDim.x) {
        const Row at = row_at(indptr, r);
        const Value* const row = values + at.start;
        if (block_small_counts(row, at.size)) {
            block_bin_counts(row, at.size, n_bins, bins, out + at.start);
        } else {
            block_bin_sorted(row, at.size, n_bins, shared, scratch, room, out + at.start);
        }
    }
}

#define ICAN_KERNEL(suffix, Value)                                                                           \
    extern "C" __global__ void __launch_bounds__(THREADS, 4) bin_values_##suffix(                               \
        const i64* indptr, const Value* values, i64 n_rows, int n_bins, int room, int* out, u32* scratch     \
    ) {                                                                                                      \
        bin_rows(indptr, values, n_rows, n_bins, room, out, scratch);                                        \
    }

ICAN_KERNEL(f32, float)
ICAN_KERNEL(u16, u16)
