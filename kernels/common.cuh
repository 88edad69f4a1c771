// What the kernels share: rows of a CSR matrix, sums and scans over a block, a stable sort by one digit at a time.
//
// Every block has THREADS threads in one dimension unless its kernel says otherwise, and every function named block_*
// is called by all of them. No function leaves shared memory in use: each starts with a barrier.
#pragma once

using u8 = unsigned char;
using u16 = unsigned short;
using u32 = unsigned int;
using u64 = unsigned long long;
using i64 = long long;

#ifndef ICAN_DYNAMIC_SHARED  // a host that emulates the device brings its own
#define ICAN_DYNAMIC_SHARED(type, name) extern __shared__ __align__(16) type name[]
#endif

// Kernels `name_<values>_<ids>` for all layouts of a batch: KERNEL(suffix, Value, Id).
#define ICAN_FOR_LAYOUTS(KERNEL) \
    KERNEL(f32_i32, float, int) KERNEL(f32_u16, float, u16) KERNEL(u16_i32, u16, int) KERNEL(u16_u16, u16, u16)

constexpr int WARP = 32, THREADS = 256, WARPS = THREADS / WARP, DIGITS = 256;
constexpr u32 ALL_LANES = 0xffffffffu, SIGN_BIT = 0x80000000u;
constexpr u32 LAST_KEY = 0xffffffffu;  // no number's key: the bits of a NaN

static_assert(THREADS == DIGITS, "a thread owns a digit in the sort");

struct Row {
    i64 start;  // its first entry
    int size;
};

// Row pointers may start anywhere: those of a part of a matrix are those of the whole.
__device__ __forceinline__ Row row_at(const i64* __restrict__ indptr, i64 row) {
    const i64 start = indptr[row];
    return {start - indptr[0], static_cast<int>(indptr[row + 1] - start)};
}

__device__ __forceinline__ int lane_of_thread() { return static_cast<int>(threadIdx.x) % WARP; }
__device__ __forceinline__ int warp_of_thread() { return static_cast<int>(threadIdx.x) / WARP; }
__device__ __forceinline__ u32 lanes_below() { return (1u << lane_of_thread()) - 1; }

// Unsigned keys in the order of floats; NaN and zeros are sorted out before.
__device__ __forceinline__ u32 ascending_key(float x) {
    const u32 bits = __float_as_uint(x);
    return bits & SIGN_BIT ? ~bits : bits | SIGN_BIT;
}
__device__ __forceinline__ u32 descending_key(float x) { return ~ascending_key(x); }

// log(1 + factor * x); a factor that float cannot hold well takes the slow way.
__device__ __forceinline__ float scaled_log1p(float x, double factor) {
    const bool plain = factor == 0 || (factor > 1e-30 && factor < 1e30);
    return plain ? log1pf(x * static_cast<float>(factor)) : static_cast<float>(log1p(x * factor));
}

// Sum over a warp, the same bits in every lane.
template <class Number>
__device__ __forceinline__ Number warp_sum(Number x) {
    for (int distance = WARP / 2; distance > 0; distance /= 2) x += __shfl_xor_sync(ALL_LANES, x, distance);
    return x;
}

// Sum over a block, always in the same order; every thread gets it.
template <class Number>
__device__ Number block_sum(Number x) {
    __shared__ Number parts[WARPS];
    x = warp_sum(x);
    __syncthreads();
    if (lane_of_thread() == 0) parts[warp_of_thread()] = x;
    __syncthreads();
    Number sum = 0;
    for (int warp = 0; warp < WARPS; ++warp) sum += parts[warp];
    return sum;
}

// Sum of x over the threads before this one; `sum` is that over all.
__device__ inline int block_scan(int x, int& sum) {
    __shared__ int parts[WARPS];
    int upto = x;
    for (int distance = 1; distance < WARP; distance *= 2) {
        const int before = __shfl_up_sync(ALL_LANES, upto, distance);
        if (lane_of_thread() >= distance) upto += before;
    }
    __syncthreads();
    if (lane_of_thread() == WARP - 1) parts[warp_of_thread()] = upto;
    __syncthreads();
    int before = 0;
    sum = 0;
    for (int warp = 0; warp < WARPS; ++warp) {
        if (warp < warp_of_thread()) before += parts[warp];
        sum += parts[warp];
    }
    return before + upto - x;
}

// One pass of a stable radix sort: n items of `from` into `to`, in the order of digit(item), 0 to 255.
//
// Warps count the digits of a stretch of items each; the counts, scanned digit by digit and warp by warp, say where a
// stretch's items go. Lanes with one digit find each other by __match_any_sync. Returns false, and copies nothing,
// where all items have one digit. Shared memory: `counts` [WARPS * DIGITS].
template <class Item, class Digit>
__device__ bool block_sort_pass(const Item* from, Item* to, int n, int* counts, Digit digit) {
    const int lane = lane_of_thread(), stretch = (n + THREADS - 1) / THREADS * WARP;
    const int first = min(warp_of_thread() * stretch, n), last = min(first + stretch, n);
    int* own = counts + warp_of_thread() * DIGITS;

    __syncthreads();
    for (int i = threadIdx.x; i < WARPS * DIGITS; i += THREADS) counts[i] = 0;
    __syncthreads();
    for (int i = first + lane; i - lane < last; i += WARP) {
        const u32 present = __ballot_sync(ALL_LANES, i < last);
        if (i < last) {
            const int mine = digit(from[i]);
            const u32 peers = __match_any_sync(present, mine);
            if ((peers & lanes_below()) == 0) own[mine] += __popc(peers);
        }
        __syncwarp();
    }
    __syncthreads();

    int with_digit = 0, sum;
    for (int warp = 0; warp < WARPS; ++warp) {
        const int count = counts[warp * DIGITS + threadIdx.x];
        counts[warp * DIGITS + threadIdx.x] = with_digit;
        with_digit += count;
    }
    if (__syncthreads_or(with_digit == n)) return false;
    const int before = block_scan(with_digit, sum);
    for (int warp = 0; warp < WARPS; ++warp) counts[warp * DIGITS + threadIdx.x] += before;
    __syncthreads();

    for (int i = first + lane; i - lane < last; i += WARP) {
        const u32 present = __ballot_sync(ALL_LANES, i < last);
        if (i < last) {
            const Item item = from[i];
            const int mine = digit(item);
            const u32 peers = __match_any_sync(present, mine);
            const int start = own[mine];
            to[start + __popc(peers & lanes_below())] = item;
            __syncwarp(present);
            if ((peers & lanes_below()) == 0) own[mine] = start + __popc(peers);
        }
        __syncwarp();
    }
    __syncthreads();
    return true;
}
