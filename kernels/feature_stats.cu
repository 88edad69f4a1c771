// feature_stats: sum, sum of squares (double) and number of non-zero entries of every feature, in one pass.
//
// A block owns a tile of features, whose sums lie in its shared memory, and a run of rows. While values are whole
// numbers of 16 bits their sums are whole too, and atomics add them in any order.
//
// Where another value comes, the block starts anew and walks its rows in order, at most a thread an entry at a time, all
// of one row. Where their features ascend strictly no two are one, and every thread adds to sums of its own: no atomics,
// and one order of additions. The barrier that joins what the threads saw also parts a step from the next. Other steps
// (features out of order, or twice) take warp by warp and, of equal features, lane by lane: slow, and as repeatable.
// Entries are loaded STEPS_AHEAD steps ahead: a step is much shorter than memory's delay.
//
// Blocks of one part run side by side and read the same entries: 8 bytes each from memory (4 in 16 bits), and as many
// again a tile from the second-level cache. Parts are added in the order of rows by a second kernel.
//
// Launch: feature_stats: STATS_THREADS threads; blocks of parts x tiles, tiles first; dynamic shared memory of
// 20 bytes a feature of a tile. feature_stats_total: THREADS threads, any number of blocks.
#include "common.cuh"

constexpr int STATS_THREADS = 1024, STEPS_AHEAD = 4, WHOLE_STEP = 8;
constexpr u32 MOST_WHOLE = 0xffffffffu / 0xffff;  // numbers of 16 bits whose sum is sure to fit 32

struct Sums {  // of a tile
    double *sum, *squares;
    int* count;

    __device__ __forceinline__ void add(int feature, float value) const {
        sum[feature] += value;
        squares[feature] += static_cast<double>(value) * value;
        count[feature] += value != 0;
    }
};

struct Entry {
    int feature;  // within the tile; -1: none
    float value;
};

// What a thread has loaded of a step. Nothing is computed of it before the step's turn: until then it may be on its way.
template <class Value, class Id>
struct Loaded {
    bool step, held;  // whether there is such a step, and an entry of it for this thread
    Id id, id_before;
    Value value;

    // Whether the entry's feature lies above that of the entry before.
    __device__ __forceinline__ bool ascends() const { return !held || threadIdx.x == 0 || id_before < id; }

    __device__ __forceinline__ Entry entry(int first_feature, int n_features) const {
        const int feature = held ? static_cast<int>(id) - first_feature : -1;
        return feature < 0 || feature >= n_features ? Entry{-1, 0} : Entry{feature, static_cast<float>(value)};
    }
};

// Walks the entries of rows row..last - 1, at most STATS_THREADS of one row at a time.
template <class Value, class Id>
struct Steps {
    const i64* indptr;
    const Id* ids;
    const Value* values;
    i64 row, last, next, end;  // next entry of the row, and the row's end

    // This thread's part of the next step.
    __device__ __forceinline__ Loaded<Value, Id> load() {
        Loaded<Value, Id> loaded = {};
        while (next >= end && row < last) {
            const Row at = row_at(indptr, row++);
            next = at.start;
            end = at.start + at.size;
        }
        loaded.step = next < end;
        const i64 i = next + threadIdx.x;
        loaded.held = i < end;
        if (loaded.held) {
            loaded.id = ids[i];
            loaded.id_before = ids[threadIdx.x == 0 ? i : i - 1];
            loaded.value = values[i];
        }
        next += STATS_THREADS;
        return loaded;
    }
};

// Adds a step's entries in their order, whatever their features.
__device__ inline void add_in_turn(const Sums& sums, const Entry& entry) {
    for (int warp = 0; warp < STATS_THREADS / WARP; ++warp) {
        if (warp == warp_of_thread()) {
            const u32 peers = __match_any_sync(ALL_LANES, entry.feature);
            const int turn = __popc(peers & lanes_below());
            for (int i = 0; __any_sync(ALL_LANES, turn >= i && entry.feature >= 0); ++i) {
                if (i == turn && entry.feature >= 0) sums.add(entry.feature, entry.value);
                __syncwarp();
            }
        }
        __syncthreads();
    }
}

// Sums of a tile in whole numbers; squares in two parts, since shared memory adds 32 bits at a time.
struct WholeSums {
    u32 *sum, *squares, *carries, *count;

    __device__ __forceinline__ void add(int feature, u32 value) const {
        const u32 square = value * value;
        atomicAdd(&sum[feature], value);
        atomicAdd(&count[feature], 1u);
        if (atomicAdd(&squares[feature], square) > ~square) atomicAdd(&carries[feature], 1u);
    }
};

// Adds entries first..last - 1 where all values are whole numbers of 16 bits and no feature has so many that its sum
// needs more than 32; else false.
template <class Value, class Id>
__device__ bool add_whole(
    const WholeSums& sums, const Id* ids, const Value* values, i64 first, i64 last, int first_feature, int n_features
) {
    bool whole = true;
    for (i64 i = first + threadIdx.x; i - threadIdx.x < last && whole; i += WHOLE_STEP * STATS_THREADS) {
        Value value[WHOLE_STEP];
        int feature[WHOLE_STEP];
#pragma unroll
        for (int j = 0; j < WHOLE_STEP; ++j) {
            const i64 at = i + j * STATS_THREADS;
            feature[j] = at < last ? static_cast<int>(ids[at]) - first_feature : -1;
            value[j] = at < last ? values[at] : Value{0};
        }
#pragma unroll
        for (int j = 0; j < WHOLE_STEP; ++j) {
            const bool fits = value[j] >= 0 && value[j] <= 0xffff;
            const u32 number = fits ? static_cast<u32>(value[j]) : 0;
            whole &= fits && static_cast<Value>(number) == value[j];
            if (number != 0 && feature[j] >= 0 && feature[j] < n_features) sums.add(feature[j], number);
        }
        whole = __syncthreads_and(whole);
    }
    for (int i = threadIdx.x; i < n_features; i += STATS_THREADS) whole &= sums.count[i] <= MOST_WHOLE;
    return __syncthreads_and(whole);
}

template <class Value, class Id>
__device__ void sum_features(
    const i64* __restrict__ indptr, const Id* __restrict__ indices, const Value* __restrict__ values, i64 n_rows,
    int n_features, int tile, int n_parts, double* part_sums, double* part_squares, int* part_counts
) {
    ICAN_DYNAMIC_SHARED(double, room);
    const int n_tiles = (n_features + tile - 1) / tile;
    const int part = blockIdx.x / n_tiles, first_feature = blockIdx.x % n_tiles * tile;
    const int width = min(tile, n_features - first_feature);
    const i64 from = n_rows * part / n_parts, to = n_rows * (part + 1) / n_parts;
    const i64 out = static_cast<i64>(part) * n_features + first_feature;

    u32* const whole = reinterpret_cast<u32*>(room);
    const WholeSums whole_sums = {whole, whole + tile, whole + 2 * tile, whole + 3 * tile};
    for (int i = threadIdx.x; i < 4 * tile; i += STATS_THREADS) whole[i] = 0;
    __syncthreads();
    if (add_whole(whole_sums, indices, values, indptr[from] - indptr[0], indptr[to] - indptr[0], first_feature,
                  width)) {
        for (int i = threadIdx.x; i < width; i += STATS_THREADS) {
            const u64 squares = static_cast<u64>(whole_sums.carries[i]) << 32 | whole_sums.squares[i];
            part_sums[out + i] = whole_sums.sum[i];
            part_squares[out + i] = static_cast<double>(squares);
            part_counts[out + i] = static_cast<int>(whole_sums.count[i]);
        }
        return;
    }

    const Sums sums = {room, room + tile, reinterpret_cast<int*>(room + 2 * tile)};
    for (int i = threadIdx.x; i < width; i += STATS_THREADS) {
        sums.sum[i] = 0;
        sums.squares[i] = 0;
        sums.count[i] = 0;
    }
    Steps<Value, Id> steps = {indptr, indices, values, from, to, 0, 0};
    Loaded<Value, Id> ahead[STEPS_AHEAD];
#pragma unroll
    for (int i = 0; i < STEPS_AHEAD; ++i) ahead[i] = steps.load();
    while (ahead[0].step) {
#pragma unroll
        for (int i = 0; i < STEPS_AHEAD; ++i) {  // behind the last step are steps without entries
            const Loaded<Value, Id> loaded = ahead[i];
            ahead[i] = steps.load();
            const Entry entry = loaded.entry(first_feature, width);
            if (!__syncthreads_and(loaded.ascends())) {
                add_in_turn(sums, entry);
            } else if (entry.feature >= 0) {
                sums.add(entry.feature, entry.value);
            }
        }
    }
    __syncthreads();
    for (int i = threadIdx.x; i < width; i += STATS_THREADS) {
        part_sums[out + i] = sums.sum[i];
        part_squares[out + i] = sums.squares[i];
        part_counts[out + i] = sums.count[i];
    }
}

#define ICAN_KERNEL(suffix, Value, Id)                                                                       \
    extern "C" __global__ void __launch_bounds__(STATS_THREADS) feature_stats_##suffix(                      \
        const i64* indptr, const Id* indices, const Value* values, i64 n_rows, int n_features, int tile,     \
        int n_parts, double* part_sums, double* part_squares, int* part_counts                               \
    ) {                                                                                                      \
        sum_features(indptr, indices, values, n_rows, n_features, tile, n_parts, part_sums, part_squares,    \
                     part_counts);                                                                           \
    }

ICAN_FOR_LAYOUTS(ICAN_KERNEL)

extern "C" __global__ void __launch_bounds__(THREADS, 4) feature_stats_total(
    const double* part_sums, const double* part_squares, const int* part_counts, int n_features, int n_parts,
    double* sums, double* squares, i64* counts
) {
    for (int i = blockIdx.x * THREADS + threadIdx.x; i < n_features; i += gridDim.x * THREADS) {
        double sum = 0, square = 0;
        i64 count = 0;
        for (int part = 0; part < n_parts; ++part) {
            const i64 at = static_cast<i64>(part) * n_features + i;
            sum += part_sums[at];
            square += part_squares[at];
            count += part_counts[at];
        }
        sums[i] = sum;
        squares[i] = square;
        counts[i] = count;
    }
}
