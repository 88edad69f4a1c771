// CUDA C++ as far as the kernels use it, for g++: included before the unchanged text of a .cu file.
//
// A CUDA thread is a fiber (runtime.cpp). Whatever waits for other threads takes its caller's file and line, so that a
// fault names them. __shared__ variables are statics: one block runs at a time, and the runner poisons them before each.
// What is missing here does not compile: __activemask (its value is nobody's promise), textures, cooperative groups.
#pragma once
// The standard library must come first: it uses names such as __noinline__ itself.
#include <assert.h>
#include <float.h>
#include <limits.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "emulator.hpp"

#define __global__
#define __device__
#define __host__
#define __constant__ static
#define __shared__ static __attribute__((used))  // used: the runner writes it too
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __launch_bounds__(...)
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define ICAN_DYNAMIC_SHARED(type, name) type* const name = static_cast<type*>(emulator::dynamic_shared)

#define threadIdx (emulator::thread_index)
#define blockIdx (emulator::block_index)
#define blockDim (emulator::block_size)
#define gridDim (emulator::grid_size)
constexpr int warpSize = 32;

// ---- Vector types ----

struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

#define EMULATOR_VECTORS(type, name, align2, align4)                                                    \
    struct __align__(align2) name##2 { type x, y; };                                                    \
    struct __align__(align4) name##4 { type x, y, z, w; };                                              \
    inline name##2 make_##name##2(type x, type y) { return {x, y}; }                                    \
    inline name##4 make_##name##4(type x, type y, type z, type w) { return {x, y, z, w}; }
EMULATOR_VECTORS(signed char, char, 2, 4)
EMULATOR_VECTORS(unsigned char, uchar, 2, 4)
EMULATOR_VECTORS(short, short, 4, 8)
EMULATOR_VECTORS(unsigned short, ushort, 4, 8)
EMULATOR_VECTORS(int, int, 8, 16)
EMULATOR_VECTORS(unsigned, uint, 8, 16)
EMULATOR_VECTORS(long long, longlong, 16, 16)
EMULATOR_VECTORS(unsigned long long, ulonglong, 16, 16)
EMULATOR_VECTORS(float, float, 8, 16)
EMULATOR_VECTORS(double, double, 16, 16)
#undef EMULATOR_VECTORS

// ---- Barriers of the block ----

// Appended to the parameters of what waits.
#define EMULATOR_PLACE const char *file = __builtin_FILE(), int line = __builtin_LINE()

inline void __syncthreads(EMULATOR_PLACE) { emulator::block_barrier({file, line}, "__syncthreads", false); }
inline int __syncthreads_count(int predicate, EMULATOR_PLACE) {
    return static_cast<int>(emulator::block_barrier({file, line}, "__syncthreads_count", predicate != 0));
}
inline int __syncthreads_or(int predicate, EMULATOR_PLACE) {
    return emulator::block_barrier({file, line}, "__syncthreads_or", predicate != 0) != 0;
}
inline int __syncthreads_and(int predicate, EMULATOR_PLACE) {
    return emulator::block_barrier({file, line}, "__syncthreads_and", predicate != 0) == blockDim.x;
}

[[noreturn]] inline void __trap(EMULATOR_PLACE) { emulator::fault({file, line}, "the kernel stopped itself: __trap"); }

// ---- Operations of a warp ----

namespace emulator {

inline int lane() { return static_cast<int>(thread_index.x % 32); }

template <class T>
inline uint64_t to_word(T value) {
    static_assert(sizeof(T) <= 8 && std::is_trivially_copyable_v<T>);
    uint64_t word = 0;
    __builtin_memcpy(&word, &value, sizeof(T));
    return word;
}
template <class T>
inline T from_word(uint64_t word) {
    T value;
    __builtin_memcpy(&value, &word, sizeof(T));
    return value;
}

// `source` may lie outside the segment of `width` lanes that is [first, last]: then a lane reads itself.
template <class T>
inline T shuffle(Place place, const char* operation, unsigned mask, T value, int source, int first, int last) {
    if (source < first || source > last) source = lane();
    const uint64_t* values = warp_exchange(place, operation, mask, to_word(value), false);
    if (!(mask >> source & 1)) fault(place, "%s reads lane %d, which mask %#x leaves out", operation, source, mask);
    return from_word<T>(values[source]);
}

// Folds the values of the lanes in `mask`, ascending.
template <class T, class Fold>
inline T reduce(Place place, const char* operation, unsigned mask, T value, Fold fold) {
    const uint64_t* values = warp_exchange(place, operation, mask, to_word(value), false);
    T result = from_word<T>(values[__builtin_ctz(mask)]);
    for (unsigned rest = mask & (mask - 1); rest; rest &= rest - 1)
        result = fold(result, from_word<T>(values[__builtin_ctz(rest)]));
    return result;
}

// The lanes of `mask` whose value satisfies `holds`.
template <class T, class Holds>
inline unsigned lanes_where(Place place, const char* operation, unsigned mask, T value, Holds holds) {
    const uint64_t* values = warp_exchange(place, operation, mask, to_word(value), false);
    unsigned result = 0;
    for (unsigned rest = mask; rest; rest &= rest - 1)
        if (holds(from_word<T>(values[__builtin_ctz(rest)]))) result |= rest & -rest;
    return result;
}

}  // namespace emulator

inline void __syncwarp(unsigned mask = 0xffffffffu, EMULATOR_PLACE) {
    emulator::warp_exchange({file, line}, "__syncwarp", mask, 0, true);
}
template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, EMULATOR_PLACE) {
    const int first = emulator::lane() & -width;
    source = first | (source & (width - 1));
    return emulator::shuffle({file, line}, "__shfl_sync", mask, value, source, first, first + width - 1);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, EMULATOR_PLACE) {
    const int lane = emulator::lane(), first = lane & -width;
    return emulator::shuffle({file, line}, "__shfl_up_sync", mask, value, lane - static_cast<int>(delta), first, lane);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, EMULATOR_PLACE) {
    const int lane = emulator::lane(), last = (lane & -width) + width - 1;
    return emulator::shuffle({file, line}, "__shfl_down_sync", mask, value, lane + static_cast<int>(delta), lane, last);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32, EMULATOR_PLACE) {
    const int lane = emulator::lane(), last = (lane & -width) + width - 1;  // earlier segments may be read
    return emulator::shuffle({file, line}, "__shfl_xor_sync", mask, value, lane ^ lanes, 0, last);
}
inline unsigned __ballot_sync(unsigned mask, int predicate, EMULATOR_PLACE) {
    return emulator::lanes_where({file, line}, "__ballot_sync", mask, predicate, [](int other) { return other != 0; });
}
inline int __any_sync(unsigned mask, int predicate, EMULATOR_PLACE) {
    return emulator::lanes_where({file, line}, "__any_sync", mask, predicate, [](int other) { return other != 0; }) != 0;
}
inline int __all_sync(unsigned mask, int predicate, EMULATOR_PLACE) {
    return emulator::lanes_where({file, line}, "__all_sync", mask, predicate, [](int other) { return other == 0; }) == 0;
}
template <class T>
unsigned __match_any_sync(unsigned mask, T value, EMULATOR_PLACE) {
    const auto same = [word = emulator::to_word(value)](T other) { return emulator::to_word(other) == word; };
    return emulator::lanes_where({file, line}, "__match_any_sync", mask, value, same);
}
template <class T>
unsigned __match_all_sync(unsigned mask, T value, int* all, EMULATOR_PLACE) {
    const auto same = [word = emulator::to_word(value)](T other) { return emulator::to_word(other) == word; };
    *all = emulator::lanes_where({file, line}, "__match_all_sync", mask, value, same) == mask;
    return *all ? mask : 0;
}
#define EMULATOR_REDUCE(name, type, expression)                                                         \
    inline type __reduce_##name##_sync(unsigned mask, type value, EMULATOR_PLACE) {                     \
        const auto fold = [](type a, type b) -> type { return expression; };                            \
        return emulator::reduce({file, line}, "__reduce_" #name "_sync", mask, value, fold);            \
    }
EMULATOR_REDUCE(add, int, static_cast<int>(static_cast<unsigned>(a) + static_cast<unsigned>(b)))
EMULATOR_REDUCE(add, unsigned, a + b)
EMULATOR_REDUCE(min, int, a < b ? a : b)
EMULATOR_REDUCE(min, unsigned, a < b ? a : b)
EMULATOR_REDUCE(max, int, a > b ? a : b)
EMULATOR_REDUCE(max, unsigned, a > b ? a : b)
EMULATOR_REDUCE(and, unsigned, a & b)
EMULATOR_REDUCE(or, unsigned, a | b)
EMULATOR_REDUCE(xor, unsigned, a ^ b)
#undef EMULATOR_REDUCE
unsigned __activemask() = delete;

// ---- Atomics: plain arithmetic, for nothing else runs meanwhile ----

// Not inlined, and not seen by the race detector but through atomic_access: a plain access would count as a race.
#define EMULATOR_ATOMIC(name, type, expression)                                                         \
    __attribute__((noinline, no_sanitize("thread"), unused)) static type name(type* address, type value) { \
        emulator::atomic_access(address, sizeof(type), __builtin_return_address(0));                    \
        const type old = *address;                                                                      \
        *address = static_cast<type>(expression);                                                       \
        return old;                                                                                     \
    }
#define EMULATOR_INTEGER_ATOMICS(type)                                                                  \
    EMULATOR_ATOMIC(atomicMin, type, old < value ? old : value)                                         \
    EMULATOR_ATOMIC(atomicMax, type, old > value ? old : value)                                         \
    EMULATOR_ATOMIC(atomicAnd, type, old & value)                                                       \
    EMULATOR_ATOMIC(atomicOr, type, old | value)                                                        \
    EMULATOR_ATOMIC(atomicXor, type, old ^ value)                                                       \
    EMULATOR_ATOMIC(atomicExch, type, value)                                                            \
    __attribute__((noinline, no_sanitize("thread"), unused)) static type atomicCAS(                     \
        type* address, type compare, type value) {                                                      \
        emulator::atomic_access(address, sizeof(type), __builtin_return_address(0));                    \
        const type old = *address;                                                                      \
        if (old == compare) *address = value;                                                           \
        return old;                                                                                     \
    }
EMULATOR_INTEGER_ATOMICS(int)
EMULATOR_INTEGER_ATOMICS(unsigned)
EMULATOR_INTEGER_ATOMICS(unsigned long long)
EMULATOR_ATOMIC(atomicAdd, int, static_cast<unsigned>(old) + static_cast<unsigned>(value))
EMULATOR_ATOMIC(atomicAdd, unsigned, old + value)
EMULATOR_ATOMIC(atomicAdd, unsigned long long, old + value)
EMULATOR_ATOMIC(atomicAdd, float, old + value)
EMULATOR_ATOMIC(atomicAdd, double, old + value)
EMULATOR_ATOMIC(atomicSub, int, static_cast<unsigned>(old) - static_cast<unsigned>(value))
EMULATOR_ATOMIC(atomicSub, unsigned, old - value)
EMULATOR_ATOMIC(atomicExch, float, value)
#undef EMULATOR_INTEGER_ATOMICS
#undef EMULATOR_ATOMIC
inline void __threadfence() {}
inline void __threadfence_block() {}

// ---- Loads, bits, arithmetic ----

template <class T>
__forceinline__ T __ldg(const T* address) { return *address; }
template <class T>
__forceinline__ T __ldcs(const T* address) { return *address; }
template <class T>
__forceinline__ void __stcs(T* address, T value) { *address = value; }

inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
inline int __popcll(unsigned long long bits) { return __builtin_popcountll(bits); }
inline int __clz(int bits) { return bits ? __builtin_clz(static_cast<unsigned>(bits)) : 32; }
inline int __clzll(long long bits) { return bits ? __builtin_clzll(static_cast<unsigned long long>(bits)) : 64; }
inline int __ffs(int bits) { return __builtin_ffs(bits); }
inline int __ffsll(long long bits) { return __builtin_ffsll(bits); }
inline unsigned __brev(unsigned bits) {
    unsigned reversed = 0;
    for (int i = 0; i < 32; ++i) reversed |= (bits >> i & 1u) << (31 - i);
    return reversed;
}

template <class To, class From>
inline To emulator_bits(From value) {
    static_assert(sizeof(To) == sizeof(From));
    return emulator::from_word<To>(emulator::to_word(value));
}
inline unsigned __float_as_uint(float value) { return emulator_bits<unsigned>(value); }
inline int __float_as_int(float value) { return emulator_bits<int>(value); }
inline float __uint_as_float(unsigned value) { return emulator_bits<float>(value); }
inline float __int_as_float(int value) { return emulator_bits<float>(value); }
inline long long __double_as_longlong(double value) { return emulator_bits<long long>(value); }
inline double __longlong_as_double(long long value) { return emulator_bits<double>(value); }

// Compiled with -ffp-contract=off, so that these and the plain operators round each result once.
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline float __fsqrt_rn(float a) { return sqrtf(a); }
inline float __frcp_rn(float a) { return 1.0f / a; }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dsub_rn(double a, double b) { return a - b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __ddiv_rn(double a, double b) { return a / b; }
inline double __fma_rn(double a, double b, double c) { return fma(a, b, c); }
inline float __double2float_rn(double a) { return static_cast<float>(a); }
inline float __int2float_rn(int a) { return static_cast<float>(a); }
inline float __uint2float_rn(unsigned a) { return static_cast<float>(a); }
inline float rsqrtf(float a) { return static_cast<float>(1.0 / sqrt(static_cast<double>(a))); }

// Of two types: the one that C++ arithmetic makes of them, as in CUDA (int with unsigned is unsigned). Integers with
// floating-point numbers are ambiguous there.
#define EMULATOR_EXTREME(name, better)                                                              \
    template <class A, class B>                                                                         \
    constexpr std::common_type_t<A, B> name(A a, B b) {                                                 \
        static_assert(std::is_integral_v<A> == std::is_integral_v<B>);                                  \
        const std::common_type_t<A, B> first = a, second = b;                                           \
        return second better first ? second : first;                                                    \
    }
EMULATOR_EXTREME(min, <)
EMULATOR_EXTREME(max, >)
#undef EMULATOR_EXTREME
