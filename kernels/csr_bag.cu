// csr_bag: rows as weighted sums of a table's rows; its gradients for the table and for the values.
//
// Forward. A block owns a row and a stretch of columns. Its threads form teams of `team` threads, one to four columns
// a thread; team t takes the entries t, t + teams, ... of the row, so that many rows of the table are on their way at
// once, and the teams' sums are added in order. The table is read through the caches: `4 width` bytes an entry.
//
// Gradient for the table. Entries come sorted by feature, in the order of rows (`order`, a stable sort); a team owns a
// feature and adds its entries one after another. No atomics: always the same bits.
//
// Gradient for the values. A warp per entry: the dot product of its row's gradient with its feature's row.
//
// Launch: THREADS threads; any number of blocks, a multiple of the stretches of `team * columns` columns that make up
// the width; `team` a power of two, 1 to THREADS. columns is 4 where width is a multiple of 4 and tables are aligned to
// 16 bytes, else 1. A pointer or id that leads outside its array stops the kernel.
#include "common.cuh"

// Rows (or features) are shared among groups of blocks, of which each block has a stretch of columns.
struct Share {
    int first, step, column;

    __device__ __forceinline__ Share(int width, int team, int columns) {
        const int per_stretch = team * columns, stretches = (width + per_stretch - 1) / per_stretch;
        first = blockIdx.x / stretches;
        step = gridDim.x / stretches;
        column = static_cast<int>(blockIdx.x) % stretches * per_stretch + static_cast<int>(threadIdx.x) % team * columns;
    }
};

template <int COLUMNS>
struct Columns {  // of one thread, side by side
    float of[COLUMNS];
};

template <int COLUMNS>
__device__ __forceinline__ Columns<COLUMNS> load(const float* from) {
    if constexpr (COLUMNS == 4) {
        const float4 four = *reinterpret_cast<const float4*>(from);
        return {four.x, four.y, four.z, four.w};
    } else {
        return {*from};
    }
}

template <int COLUMNS>
__device__ __forceinline__ void store(float* to, const Columns<COLUMNS>& columns) {
    if constexpr (COLUMNS == 4) {
        *reinterpret_cast<float4*>(to) = make_float4(columns.of[0], columns.of[1], columns.of[2], columns.of[3]);
    } else {
        *to = columns.of[0];
    }
}

template <int COLUMNS>
__device__ __forceinline__ void add(Columns<COLUMNS>& sum, float weight, const Columns<COLUMNS>& columns) {
    for (int c = 0; c < COLUMNS; ++c) sum.of[c] = fmaf(weight, columns.of[c], sum.of[c]);
}

template <int COLUMNS, class Value, class Id>
__device__ void bag(
    const i64* __restrict__ indptr, const Id* __restrict__ indices, const Value* __restrict__ values, i64 n_rows,
    i64 n_entries, const float* __restrict__ table, i64 n_features, int width, int team, float* __restrict__ out
) {
    __shared__ Columns<COLUMNS> sums[THREADS];
    const int teams = THREADS / team, mine = threadIdx.x / team;
    const Share share(width, team, COLUMNS);
    const int column = share.column;
    for (i64 row = share.first; row < n_rows; row += share.step) {
        const Row at = row_at(indptr, row);
        if (at.start < 0 || at.size < 0 || at.start + at.size > n_entries) __trap();
        const Id* const ids = indices + at.start;
        const Value* const weights = values + at.start;
        Columns<COLUMNS> sum = {};
        if (column < width) {
#pragma unroll 4
            for (int i = mine; i < at.size; i += teams) {
                const i64 id = ids[i];
                if (id < 0 || id >= n_features) __trap();
                add(sum, weights[i], load<COLUMNS>(table + id * width + column));
            }
        }
        __syncthreads();
        sums[threadIdx.x] = sum;
        __syncthreads();
        if (mine == 0 && column < width) {
            for (int other = 1; other < teams; ++other) add(sum, 1, sums[other * team + threadIdx.x]);
            store(out + row * width + column, sum);
        }
    }
}

template <int COLUMNS, class Value>
__device__ void bag_transposed(
    const i64* __restrict__ starts, const i64* __restrict__ order, const i64* __restrict__ row_of,
    const Value* __restrict__ values, int n_features, const float* __restrict__ rows_table, int width, int team,
    float* __restrict__ out
) {
    const int teams = THREADS / team;
    const Share share(width, team, COLUMNS);
    const int column = share.column;
    if (column >= width) return;
    for (i64 feature = static_cast<i64>(share.first) * teams + threadIdx.x / team; feature < n_features;
         feature += static_cast<i64>(share.step) * teams) {
        const i64 stop = starts[feature + 1];
        Columns<COLUMNS> sum = {};
#pragma unroll 2
        for (i64 i = starts[feature]; i < stop; ++i) {
            const i64 entry = order[i];
            add(sum, values[entry], load<COLUMNS>(rows_table + row_of[entry] * width + column));
        }
        store(out + feature * width + column, sum);
    }
}

template <class Id>
__device__ void grad_values(
    const i64* __restrict__ indptr, const Id* __restrict__ indices, i64 n_rows, const float* __restrict__ table,
    const float* __restrict__ grad, int width, float* __restrict__ out
) {
    for (i64 row = blockIdx.x; row < n_rows; row += gridDim.x) {
        const Row at = row_at(indptr, row);
        for (int i = warp_of_thread(); i < at.size; i += WARPS) {
            const float* const embedding = table + static_cast<i64>(indices[at.start + i]) * width;
            float dot = 0;
            for (int c = lane_of_thread(); c < width; c += WARP) dot = fmaf(grad[row * width + c], embedding[c], dot);
            dot = warp_sum(dot);
            if (lane_of_thread() == 0) out[at.start + i] = dot;
        }
    }
}

// The row of every entry.
extern "C" __global__ void __launch_bounds__(THREADS, 4) row_ids(const i64* indptr, i64 n_rows, i64* out) {
    for (i64 row = blockIdx.x; row < n_rows; row += gridDim.x) {
        const Row at = row_at(indptr, row);
        for (int i = threadIdx.x; i < at.size; i += THREADS) out[at.start + i] = row;
    }
}

#define ICAN_BAG(suffix, COLUMNS, Value, Id)                                                                 \
    extern "C" __global__ void __launch_bounds__(THREADS, 4) bag_##suffix(                                      \
        const i64* indptr, const Id* indices, const Value* values, i64 n_rows, i64 n_entries,                \
        const float* table, i64 n_features, int width, int team, float* out                                  \
    ) {                                                                                                      \
        bag<COLUMNS>(indptr, indices, values, n_rows, n_entries, table, n_features, width, team, out);       \
    }
#define ICAN_BAGS(suffix, Value, Id) ICAN_BAG(1_##suffix, 1, Value, Id) ICAN_BAG(4_##suffix, 4, Value, Id)

ICAN_FOR_LAYOUTS(ICAN_BAGS)

#define ICAN_BAG_TRANSPOSED(suffix, COLUMNS, Value)                                                          \
    extern "C" __global__ void __launch_bounds__(THREADS, 4) bag_transposed_##suffix(                           \
        const i64* starts, const i64* order, const i64* row_of, const Value* values, int n_features,         \
        const float* rows_table, int width, int team, float* out                                             \
    ) {                                                                                                      \
        bag_transposed<COLUMNS>(starts, order, row_of, values, n_features, rows_table, width, team, out);    \
    }

ICAN_BAG_TRANSPOSED(1_f32, 1, float)
ICAN_BAG_TRANSPOSED(1_u16, 1, u16)
ICAN_BAG_TRANSPOSED(4_f32, 4, float)
ICAN_BAG_TRANSPOSED(4_u16, 4, u16)

#define ICAN_GRAD_VALUES(suffix, Id)                                                                         \
    extern "C" __global__ void __launch_bounds__(THREADS, 4) bag_grad_values_##suffix(                          \
        const i64* indptr, const Id* indices, i64 n_rows, const float* table, const float* grad, int width,  \
        float* out                                                                                           \
    ) {                                                                                                      \
        grad_values(indptr, indices, n_rows, table, grad, width, out);                                       \
    }

ICAN_GRAD_VALUES(i32, int)
ICAN_GRAD_VALUES(u16, u16)
