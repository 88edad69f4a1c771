// What the CUDA language of cuda.hpp asks of the scheduler in runtime.cpp. Kernels see this header, and nothing heavier.
#pragma once
#include <stdint.h>

#include <type_traits>
#include <utility>

struct uint3 {
    unsigned x, y, z;
};

namespace emulator {

// A program point of a kernel, as __builtin_FILE() and __builtin_LINE() give it at the caller.
struct Place {
    const char* file;
    int line;
};

// Of the thread that runs now. One thread runs at a time; the scheduler sets these whenever it hands over.
extern uint3 thread_index, block_index, block_size, grid_size;
extern void* dynamic_shared;

[[noreturn]] __attribute__((format(printf, 2, 3))) void fault(Place place, const char* format, ...);

// Waits until all threads of the block are here; returns for how many of them `predicate` held.
unsigned block_barrier(Place place, const char* operation, bool predicate);

// Waits until the lanes of `mask` are here; returns the values of the warp's lanes, valid until the next wait.
// As in CUDA, only __syncwarp (`orders_memory`) makes what the lanes wrote visible to each other.
const uint64_t* warp_exchange(Place place, const char* operation, unsigned mask, uint64_t value, bool orders_memory);

// Says that an atomic operation is about to touch memory; `caller` is its return address.
void atomic_access(const void* address, unsigned size, const void* caller);

// ---- Registration: a kernel's name, its parameters' types, and how to call it as cuLaunchKernel does. ----

struct Parameter {
    char kind;  // NumPy's letter: i, u, f, b, or V for anything else; of what it points to, where it is a pointer
    unsigned char size;
    bool pointer, constant;
};

template <class T>
constexpr Parameter parameter() {
    if constexpr (std::is_pointer_v<T>) {
        using Target = std::remove_pointer_t<T>;
        Parameter target = parameter<std::remove_cv_t<Target>>();
        return {target.kind, target.size, true, std::is_const_v<Target>};
    } else if constexpr (std::is_void_v<T>) {
        return {'V', 1, false, false};
    } else {
        char kind = std::is_same_v<T, bool>         ? 'b'
                    : std::is_floating_point_v<T> ? 'f'
                    : !std::is_integral_v<T>      ? 'V'
                    : std::is_signed_v<T>         ? 'i'
                                                  : 'u';
        return {kind, sizeof(T), false, false};
    }
}

template <class... Types>
inline constexpr Parameter parameters[sizeof...(Types) + 1] = {parameter<Types>()..., {}};

template <class... Types>
struct Caller {
    template <size_t... I>
    __attribute__((no_sanitize("thread"))) static void spread(void (*kernel)(Types...), void** arguments, std::integer_sequence<size_t, I...>) {
        kernel(*static_cast<std::remove_reference_t<Types>*>(arguments[I])...);
    }
    static void call(void (*kernel)(), void** arguments) {
        spread(reinterpret_cast<void (*)(Types...)>(kernel), arguments, std::index_sequence_for<Types...>());
    }
};

struct Kernel {
    const char* name;
    void (*function)();
    void (*call)(void (*)(), void**);
    const Parameter* parameters;
    unsigned count;
    const Kernel* next;

    static const Kernel* all;

    template <class... Types>
    Kernel(const char* name, void (*kernel)(Types...))
        : name(name), function(reinterpret_cast<void (*)()>(kernel)), call(Caller<Types...>::call),
          parameters(emulator::parameters<Types...>), count(sizeof...(Types)), next(all) {
        all = this;
    }
};

}  // namespace emulator
