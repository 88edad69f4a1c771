// Between the three parts that kernels do not see: the runner (protocol), the scheduler and the race detector.
#pragma once
#include <stddef.h>
#include <stdint.h>

#include <vector>

#include "emulator.hpp"

namespace emulator {

struct Memory {
    char* begin;
    size_t size;
};

struct Launch {
    const Kernel* kernel;
    void** arguments;
    unsigned grid, block, thread_order, block_order;
    std::vector<Memory> arrays;  // in device memory
    std::vector<Memory> shared;  // static variables, then dynamic shared memory
};

// Runs all threads of all blocks; a fault ends the process.
void run(const Launch& launch);

// Writes "emulator: <kernel>, block <b>, thread <t>: <text>", then the places, one a line, and ends the process.
[[noreturn]] void fault_at(const std::vector<Place>& places, const char* format, ...);

unsigned current_thread();
bool on_current_stack(const void* address);

// ---- The race detector: only in the build whose kernels are compiled with -fsanitize=thread. ----
#ifdef EMULATOR_RACES
void races_begin_launch(const Launch& launch);
void races_begin_block();
void races_block_barrier();
void races_warp_barrier(unsigned warp, unsigned mask);
#else
inline void races_begin_launch(const Launch&) {}
inline void races_begin_block() {}
inline void races_block_barrier() {}
inline void races_warp_barrier(unsigned, unsigned) {}
#endif

}  // namespace emulator
