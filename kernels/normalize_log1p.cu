// normalize_log1p: every row scaled to one total, then log(1 + x); row_sums: the totals alone.
//
// A row belongs to a warp where rows are short, which reads it twice, the second time from the first-level cache; to a
// block where they are long, whose threads keep its first TILE entries: 4 bytes an entry from memory (2 in 16 bits), 4
// written. Sums are in double, in an order that depends on the row's length alone.
//
// Launch: THREADS threads; any number of blocks. `refused` counts entries that are negative or NaN.
#include "common.cuh"

// Sums of 16-bit numbers are exact as whole numbers too.
template <class Value>
struct SumOf {
    using Type = double;
};
template <>
struct SumOf<u16> {
    using Type = u32;
};

__device__ __forceinline__ float as_float(float x) { return x; }
// Exact, and quicker than the conversion: the number is the mantissa's end, 2^23 comes off again.
__device__ __forceinline__ float as_float(u16 x) { return __uint_as_float(0x4b000000u | x) - 8388608.0f; }

// The sum of a row in a warp, in every lane, in the order of a block, so that a row's sum does not depend on how long
// its neighbours are; this lane's entries that are no counts are added to `refused`.
template <class Value>
__device__ __forceinline__ double warp_total(const Value* row, int size, int& refused) {
    double total = 0;
    for (int first = 0; first < min(size, THREADS); first += WARP) {
        double sum = 0;
        for (int i = first + lane_of_thread(); i < size; i += THREADS) {
            const float value = row[i];
            refused += !(value >= 0);
            sum += value;
        }
        total += warp_sum(sum);
    }
    return total;
}

// A row in a block, of which every thread keeps EACH entries in registers.
template <class Value>
struct KeptRow {
    const Value* row;
    int size;
    Value kept[EACH];

    __device__ __forceinline__ KeptRow(const Value* values, int n) : row(values), size(n) {
#pragma unroll
        for (int j = 0; j < EACH; ++j) {
            const int i = threadIdx.x + j * THREADS;
            kept[j] = i < size ? row[i] : Value{0};
        }
    }

    // As warp_total.
    __device__ __forceinline__ double total(int& refused) const {
        typename SumOf<Value>::Type sum = 0;
        const auto add = [&](Value value) {
            if constexpr (sizeof(Value) == sizeof(float)) refused += !(value >= 0);
            sum += value;
        };
#pragma unroll
        for (int j = 0; j < EACH; ++j) add(kept[j]);
        for (int i = threadIdx.x + TILE; i < size; i += THREADS) add(row[i]);
        return block_sum(static_cast<double>(sum));
    }

    __device__ __forceinline__ void write(double factor, float* out) const {
        if (!fits_float(factor)) {
            for (int i = threadIdx.x; i < size; i += THREADS) out[i] = scaled_log1p(as_float(row[i]), factor);
            return;
        }
        const float by = static_cast<float>(factor);
#pragma unroll
        for (int j = 0; j < EACH; ++j) {
            const int i = threadIdx.x + j * THREADS;
            if (i < size) out[i] = log1pf(as_float(kept[j]) * by);
        }
        for (int i = threadIdx.x + TILE; i < size; i += THREADS) out[i] = log1pf(as_float(row[i]) * by);
    }
};

template <int GROUP, class Value>
__device__ void normalize(
    const i64* __restrict__ indptr, const Value* values, i64 n_rows, double target_sum, float* out, int* refused
) {
    constexpr int GROUPS = THREADS / GROUP;
    const auto factor = [=](double sum) { return sum != 0 ? target_sum / sum : 0; };
    int bad = 0;
    for (i64 row = static_cast<i64>(blockIdx.x) * GROUPS + threadIdx.x / GROUP; row < n_rows;
         row += static_cast<i64>(gridDim.x) * GROUPS) {
        const Row at = row_at(indptr, row);
        const Value* const own = values + at.start;
        float* const written = out + at.start;
        if constexpr (GROUP == WARP) {
            const double by = factor(warp_total(own, at.size, bad));
            for (int i = lane_of_thread(); i < at.size; i += WARP) written[i] = scaled_log1p(as_float(own[i]), by);
        } else {
            const KeptRow<Value> kept(own, at.size);
            kept.write(factor(kept.total(bad)), written);
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
        double sum;
        if constexpr (GROUP == WARP) {
            sum = warp_total(values + at.start, at.size, ignored);
        } else {
            sum = KeptRow<Value>(values + at.start, at.size).total(ignored);
        }
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
