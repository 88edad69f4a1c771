// pad_ragged: the first `width` entries of every row as a rectangle, and a mask that says which cells hold one.
//
// A warp writes a row: every cell once, in order, so that both sides are coalesced. Columns are copied by the size of
// their items, whatever these mean; `fill` holds an item's bits.
//
// Launch: THREADS threads; any number of blocks.
#include "common.cuh"

template <class Cell, class Source>
__device__ __forceinline__ void for_cells(const i64* __restrict__ offsets, i64 n_rows, i64 width, Cell* out, Source source) {
    for (i64 row = static_cast<i64>(blockIdx.x) * WARPS + warp_of_thread(); row < n_rows;
         row += static_cast<i64>(gridDim.x) * WARPS) {
        const i64 start = offsets[row], size = offsets[row + 1] - start, first = start - offsets[0];
        for (i64 slot = lane_of_thread(); slot < width; slot += WARP) {
            out[row * width + slot] = source(first + slot, slot < size);
        }
    }
}

template <class Item>
__device__ void pad(
    const i64* __restrict__ offsets, const Item* __restrict__ column, i64 n_rows, i64 width, u64 fill, Item* out
) {
    const Item empty = static_cast<Item>(fill);
    for_cells(offsets, n_rows, width, out, [=](i64 entry, bool held) { return held ? column[entry] : empty; });
}

#define ICAN_KERNEL(suffix, Item)                                                                            \
    extern "C" __global__ void __launch_bounds__(THREADS, 4) pad_ragged_##suffix(                               \
        const i64* offsets, const Item* column, i64 n_rows, i64 width, u64 fill, Item* out                   \
    ) {                                                                                                      \
        pad(offsets, column, n_rows, width, fill, out);                                                      \
    }

ICAN_KERNEL(8, u8)
ICAN_KERNEL(16, u16)
ICAN_KERNEL(32, u32)
ICAN_KERNEL(64, u64)

extern "C" __global__ void __launch_bounds__(THREADS, 4) pad_ragged_mask(
    const i64* offsets, i64 n_rows, i64 width, u8* mask
) {
    for_cells(offsets, n_rows, width, mask, [](i64, bool held) { return static_cast<u8>(held); });
}
