// normalize_log1p: every row scaled to one total, then log(1 + x); row_sums: the totals alone.
//
// A row belongs to a warp where rows are short, to a block where they are long. It is read twice, the second time from
// the first-level cache: 4 bytes an entry from memory (2 in 16 bits), 4 written. Sums are in double, in an order that
// depends on the row's length alone.
//
// Launch: THREADS threads; any number of blocks. `refused` counts entries that are negative or NaN.
#include "common.cuh"

// Sum of a row in every thread of its group; this thread's entries that are no counts are added to `refused`. A warp
// adds in the order of a block, so that a row's sum does not depend on how long its neighbours are.
template <int GROUP, class Value>
__device__ __forceinline__ double row_total(const Value* row, int size, int& refused) {
    double total = 0;
    for (int first = 0; first < (GROUP == WARP ? min(size, THREADS) : 1); first += WARP) {
        double sum = 0;
        for (int i = first + threadIdx.x % GROUP; i < size; i += THREADS) {
            const float value = row[i];
            refused += !(value >= 0);
            sum += value;
        }
        if constexpr (GROUP == WARP) {
            total += warp_sum(sum);
        } else {
            total = block_sum(sum);
        }
    }
    return total;
}

template <int GROUP, class Value>
__device__ void normalize(
    const i64* __restrict__ indptr, const Value* values, i64 n_rows, double target_sum, float* out, int* refused
) {
    constexpr int GROUPS = THREADS / GROUP;
    int bad = 0;
    for (i64 row = static_cast<i64>(blockIdx.x) * GROUPS + threadIdx.x / GROUP; row < n_rows;
         row += static_cast<i64>(gridDim.x) * GROUPS) {
        const Row at = row_at(indptr, row);
        const double sum = row_total<GROUP>(values + at.start, at.size, bad);
        const double factor = sum != 0 ? target_sum / sum : 0;
        for (int i = threadIdx.x % GROUP; i < at.size; i += GROUP) {
            out[at.start + i] = scaled_log1p(values[at.start + i], factor);
        }
    }
    if (bad) atomicAdd(refused, bad);
}

template <int GROUP, class Value>
__device__ void sum_rows(const i64* __restrict__ indptr, const Value* __restrict__ values, i64 n_rows, float* out) {
    constexpr int GROUPS = THREADS / GROUP;
    int ignored = 0;
    for (i64 row = static_cast<i64>(blockIdx.x) * GROUPS + threadIdx.x / GROUP; row < n_rows;
         row += static_cast<i64>(gridDim.x) * GROUPS) {
        const Row at = row_at(indptr, row);
        const double sum = row_total<GROUP>(values + at.start, at.size, ignored);
        if (threadIdx.x % GROUP == 0) out[row] = static_cast<float>(sum);
    }
}

#define ICAN_KERNELS(suffix, GROUP, Value)                                                                   \
    extern "C" __global__ void __launch_bounds__(THREADS, 4) normalize_log1p_##suffix(                          \
        const i64* indptr, const Value* values, i64 n_rows, double target_sum, float* out, int* refused      \
    ) {                                                                                                      \
        normalize<GROUP>(indptr, values, n_rows, target_sum, out, refused);                                  \
    }                                                                                                        \
    extern "C" __global__ void __launch_bounds__(THREADS, 4) row_sums_##suffix(                                 \
        const i64* indptr, const Value* values, i64 n_rows, float* out                                       \
    ) {                                                                                                      \
        sum_rows<GROUP>(indptr, values, n_rows, out);                                                        \
    }

ICAN_KERNELS(warp_f32, WARP, float)
ICAN_KERNELS(warp_u16, WARP, u16)
ICAN_KERNELS(block_f32, THREADS, float)
ICAN_KERNELS(block_u16, THREADS, u16)
