// What the kernels share: rows of a CSR matrix, sums and scans over a block, a sort in registers.
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
constexpr int EACH = 8, TILE = THREADS * EACH;  // entries of a row or items of a sort that a thread keeps in registers
constexpr u32 ALL_LANES = 0xffffffffu, SIGN_BIT = 0x80000000u;
constexpr u32 LAST_KEY = 0xffffffffu;  // no number's key: the bits of a NaN

static_assert(THREADS == DIGITS, "a thread owns a digit");

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
__device__ __forceinline__ bool fits_float(double factor) { return factor == 0 || (factor > 1e-30 && factor < 1e30); }
__device__ __forceinline__ float scaled_log1p(float x, double factor) {
    return fits_float(factor) ? log1pf(x * static_cast<float>(factor)) : static_cast<float>(log1p(x * factor));
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

// Where the item of this rank lies after block_sort: neighbours that a thread writes one after another are spread, so
// that threads side by side meet different banks.
__device__ __forceinline__ int sorted_at(int rank) { return rank ^ (rank / EACH % EACH); }

template <class Item, class Before>
__device__ __forceinline__ void put_in_order(Item& first, Item& second, Before before) {
    if (before(second, first)) {
        const Item later = first;
        first = second;
        second = later;
    }
}

// Merges two ordered halves of a thread's items whose comparisons further apart than `stride` are done.
template <class Item, class Before>
__device__ __forceinline__ void merge_within(Item (&own)[EACH], int stride, Before before) {
#pragma unroll
    for (; stride > 0; stride /= 2) {
#pragma unroll
        for (int j = 0; j < EACH; ++j) {
            if (!(j & stride)) put_in_order(own[j], own[j | stride], before);
        }
    }
}

// Compares a thread's items with those of the thread `mask` away, or with their mirror image there; of two, the first
// goes to the lower thread. Lanes of one warp shuffle, others meet in `room`.
template <bool MIRRORED, class Item, class Before>
__device__ __forceinline__ void block_exchange(
    Item (&own)[EACH], Item* room, int n_threads, int mask, Before before
) {
    const int me = threadIdx.x, other = me ^ mask;
    const auto keep = [&](Item& mine, Item theirs) {
        if (before(theirs, mine) == (me < other)) mine = theirs;
    };
    if (mask < WARP) {
        if (warp_of_thread() * WARP >= n_threads) return;
#pragma unroll
        for (int j = 0; j < (MIRRORED ? EACH / 2 : EACH); ++j) {
            const int image = MIRRORED ? EACH - 1 - j : j;
            const Item theirs = __shfl_xor_sync(ALL_LANES, own[image], mask);
            if (MIRRORED) keep(own[image], __shfl_xor_sync(ALL_LANES, own[j], mask));
            keep(own[j], theirs);
        }
        return;
    }
    __syncthreads();
    if (me < n_threads) {
#pragma unroll
        for (int j = 0; j < EACH; ++j) room[j * n_threads + me] = own[j];
    }
    __syncthreads();
    if (me < n_threads) {
#pragma unroll
        for (int j = 0; j < EACH; ++j) keep(own[j], room[(MIRRORED ? EACH - 1 - j : j) * n_threads + other]);
    }
}

// Merges two ordered halves whose first comparison is done: threads from `distance` apart on, then within a thread.
template <class Item, class Before>
__device__ void block_merge(Item (&own)[EACH], Item* room, int n_threads, int distance, Before before) {
#pragma unroll 1
    for (; distance > 0; distance /= 2) block_exchange<false>(own, room, n_threads, distance, before);
    merge_within(own, EACH / 2, before);
}

// Merges ordered runs, of this length to begin with, where they lie; ranks are at sorted_at.
template <class Item, class Before>
__device__ void block_merge_runs(Item* items, int room, int run, Before before) {
#pragma unroll 1
    for (; run < room; run *= 2) {
        for (int stride = run, mask = 2 * run - 1; stride > 0; stride /= 2, mask = stride) {
            __syncthreads();
            for (int pair = threadIdx.x, i; (i = 2 * pair - (pair & (stride - 1))) < room; pair += THREADS) {
                const int other = i ^ mask;  // beyond the room is what is last
                if (other < room) put_in_order(items[sorted_at(i)], items[sorted_at(other)], before);
            }
        }
    }
    __syncthreads();
}

// Sorts n items, none of which stays where it was: the item of rank r is at sorted_at(r). Equal items are
// interchangeable; `last` is after all of them. Batcher's bitonic merges, all in one direction (Knuth, The Art of
// Computer Programming 3, 5.3.4): up to TILE items lie in registers, EACH a thread; more are sorted tile by tile and
// merged where they lie. Room at `items`: EACH times a power of two up to TILE, or whole tiles. `items` should be known
// to be in shared memory: generic pointers take registers that are needed here.
template <class Item, class Before>
__device__ void block_sort(Item* items, int n, Item last, Before before) {
    const int me = threadIdx.x;
    int n_threads = 1;
    while (n_threads < THREADS && n_threads * EACH < n) n_threads *= 2;
    const int tile = n_threads * EACH, room = (n + tile - 1) / tile * tile;
    Item own[EACH];
#pragma unroll 1
    for (int first = 0; first < room; first += tile) {
        __syncthreads();
#pragma unroll
        for (int j = 0; j < EACH; ++j) {
            const int i = first + j * n_threads + me;
            own[j] = me < n_threads && i < n ? items[i] : last;
        }
#pragma unroll
        for (int size = 2; size <= EACH; size *= 2) {
#pragma unroll
            for (int j = 0; j < EACH; ++j) {
                if (!(j & size / 2)) put_in_order(own[j], own[j ^ (size - 1)], before);
            }
            merge_within(own, size / 4, before);
        }
#pragma unroll 1
        for (int run = 1; run < n_threads; run *= 2) {
            block_exchange<true>(own, items + first, n_threads, 2 * run - 1, before);
            block_merge(own, items + first, n_threads, run / 2, before);
        }
        __syncthreads();
        if (me < n_threads) {
#pragma unroll
            for (int j = 0; j < EACH; ++j) items[first + ((me * EACH + me % EACH) ^ j)] = own[j];  // sorted_at
        }
    }
    block_merge_runs(items, room, TILE, before);
}

// The same in global memory, all of it where the items lie.
template <class Item, class Before>
__device__ void block_sort_global(Item* items, int n, int room, Item last, Before before) {
    for (int i = n + threadIdx.x; i < room; i += THREADS) items[i] = last;
    block_merge_runs(items, room, 1, before);
}
