// The race detector: what the compiler's -fsanitize=thread makes kernels call, answered here instead of by libtsan.
//
// Knowing what a GPU's threads are is worth more than that library: there are no locks, and only barriers order accesses.
// So this is exact where the library guesses from a short history, treats the blocks of a launch as unordered, and knows
// what shared memory was never written. Found are, at the first access that shows it,
//   - two accesses to a byte, one of them a write, by threads that no barrier (__syncthreads*, or __syncwarp for lanes
//     of its mask) orders; atomics do not race with each other, but do with plain accesses;
//   - a read of shared memory that the block has not written before;
//   - an access outside of arrays and shared memory, unless it hits others (AddressSanitizer does not miss those).
// Not modelled: __threadfence (a block that reads what another one of its launch wrote is a race).
//
// Happens-before: `now` counts the barriers of a block. An access of the past is ordered before the current thread if it
// is its own, or if it was made before the last barrier of the block, or before one of the warp that both lanes passed
// (directly or through others: the vector clocks `seen`). Each byte remembers its last write, and since then up to two
// reads and two atomics: of different warps if there are, for then no thread is ordered after both but through the block.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <algorithm>
#include <string>

#include "runtime.hpp"

extern "C" const char __executable_start[], _end[];  // the program's own memory

namespace emulator {
namespace {

enum class Kind : uint16_t { read, write, atomic };
const char* const kind_names[] = {"read", "write", "atomic operation"};

struct Access {
    uint32_t site;   // from the start of the program
    uint32_t block;  // a number that no other block of this process has; 0 for no access
    uint32_t time;
    uint16_t thread;
    Kind kind;
};

struct Cell {
    Access write, reads[2], atomics[2];
};

struct Region {
    const char* begin;
    size_t size;
    Cell* cells;  // one for each byte
    bool shared;
    std::string name;
};

std::vector<Region> regions;  // ascending
uint32_t block, now, last_block_barrier;
std::vector<uint32_t> seen;  // [thread * 32 + lane]: of that lane of its warp, the thread knows all until then

Region* find(const void* address) {
    const char* byte = static_cast<const char*>(address);
    auto after = std::upper_bound(regions.begin(), regions.end(), byte,
                                  [](const char* value, const Region& region) { return value < region.begin; });
    if (after == regions.begin()) return nullptr;
    Region& region = *--after;
    return static_cast<size_t>(byte - region.begin) < region.size ? &region : nullptr;
}

bool ordered(const Access& past, unsigned thread) {
    if (past.block != block) return false;
    if (past.thread == thread || past.time <= last_block_barrier) return true;
    return past.thread / 32 == thread / 32 && past.time <= seen[thread * 32 + past.thread % 32];
}

[[noreturn]] void end_with(const Region& region, size_t offset, const Access& access, const char* problem,
                           const Access* past) {
    std::string text = std::string(kind_names[static_cast<int>(access.kind)]) + " of byte " + std::to_string(offset) +
                       " of " + region.name + " " + problem;
    if (past)
        text += std::string(" ") + kind_names[static_cast<int>(past->kind)] + " by thread " +
                std::to_string(past->thread) + (past->block == block ? " of this block" : " of another block");
    // The places are program addresses: who knows the lines reads them (emulator.py).
    text += "\n    at site " + std::to_string(access.site);
    if (past) text += "\n    at site " + std::to_string(past->site);
    fault_at({}, "%s", text.c_str());
}

// Keeps what later accesses must be compared with: one that `access` is ordered after tells nothing new.
void remember(Access (&kept)[2], const Access& access) {
    for (Access& slot : kept)
        if (!slot.block || ordered(slot, access.thread)) {
            slot = access;
            return;
        }
    const auto warp = [](const Access& a) { return std::make_pair(a.block, a.thread / 32); };
    if (warp(kept[0]) == warp(kept[1]) && warp(kept[1]) != warp(access)) kept[1] = access;
}

void note(const void* address, size_t size, Kind kind, const void* caller) {
    if (!block || on_current_stack(address)) return;  // no block yet: the kernels' registration
    const char* byte = static_cast<const char*>(address);
    Region* region = find(address);
    if (!region && byte >= __executable_start && byte < _end) return;  // constants, threadIdx
    const unsigned thread = current_thread();
    // One before the return address lies inside the call: a line's last instruction must not count as the next line.
    const auto site = static_cast<uint32_t>(static_cast<const char*>(caller) - 1 - __executable_start);
    const Access access{site, block, now, static_cast<uint16_t>(thread), kind};
    if (!region || region->size - static_cast<size_t>(byte - region->begin) < size)
        fault_at({}, "%s of %zu bytes outside all arrays and shared memory\n    at site %u",
                 kind_names[static_cast<int>(kind)], size, site);
    const size_t offset = static_cast<size_t>(byte - region->begin);
    for (size_t i = offset; i < offset + size; ++i) {
        Cell& cell = region->cells[i];
        if (region->shared && cell.write.block != block) {
            if (kind != Kind::write)
                end_with(*region, i, access, "that no thread of the block has written before", nullptr);
            cell = Cell{};  // of an earlier block
        }
        const auto compare = [&](const Access& past) {
            if (past.block && !ordered(past, thread))
                end_with(*region, i, access, "races with the", &past);
        };
        compare(cell.write);
        if (kind != Kind::read)
            for (const Access& past : cell.reads) compare(past);
        if (kind != Kind::atomic)
            for (const Access& past : cell.atomics) compare(past);
        if (kind == Kind::read) remember(cell.reads, access);
        else if (kind == Kind::atomic) remember(cell.atomics, access);
        else cell = Cell{access, {}, {}};
    }
}

}  // namespace

void races_begin_launch(const Launch& launch) {
    for (Region& region : regions) free(region.cells);
    regions.clear();
    auto add = [](const Memory& memory, bool shared, std::string name) {
        if (!memory.size) return;
        auto* cells = static_cast<Cell*>(calloc(memory.size, sizeof(Cell)));
        if (!cells) {
            fprintf(stderr, "emulator: no memory to watch %zu bytes for races\n", memory.size);
            _exit(71);
        }
        regions.push_back({memory.begin, memory.size, cells, shared, std::move(name)});
    };
    for (size_t i = 0; i < launch.arrays.size(); ++i) add(launch.arrays[i], false, "array #" + std::to_string(i));
    for (size_t i = 0; i < launch.shared.size(); ++i)
        add(launch.shared[i], true,
            i + 1 < launch.shared.size() ? "shared variable " + std::to_string(i) : "dynamic shared memory");
    std::sort(regions.begin(), regions.end(), [](const Region& a, const Region& b) { return a.begin < b.begin; });
}

void races_begin_block() {
    ++block;
    now = 1;
    last_block_barrier = 0;
    seen.assign(size_t{block_size.x} * 32, 0);
}

void races_block_barrier() { last_block_barrier = now++; }

void races_warp_barrier(unsigned warp, unsigned mask) {
    uint32_t joined[32] = {};
    for (unsigned rest = mask; rest; rest &= rest - 1) {
        const uint32_t* lane = &seen[(warp * 32 + static_cast<unsigned>(__builtin_ctz(rest))) * 32];
        for (int i = 0; i < 32; ++i) joined[i] = std::max(joined[i], lane[i]);
    }
    for (unsigned rest = mask; rest; rest &= rest - 1) joined[__builtin_ctz(rest)] = now;
    for (unsigned rest = mask; rest; rest &= rest - 1)
        std::copy(joined, joined + 32, &seen[(warp * 32 + static_cast<unsigned>(__builtin_ctz(rest))) * 32]);
    ++now;
}

void atomic_access(const void* address, unsigned size, const void* caller) { note(address, size, Kind::atomic, caller); }

}  // namespace emulator

// What the compiler calls. Sizes that are powers of two have functions of their own.
#define EMULATOR_ACCESS(name, size, kind) \
    void __tsan_##name(void* address) { emulator::note(address, size, emulator::Kind::kind, __builtin_return_address(0)); }
#define EMULATOR_ACCESSES(size)                       \
    EMULATOR_ACCESS(read##size, size, read)           \
    EMULATOR_ACCESS(write##size, size, write)         \
    EMULATOR_ACCESS(unaligned_read##size, size, read) \
    EMULATOR_ACCESS(unaligned_write##size, size, write)
extern "C" {
EMULATOR_ACCESSES(1)
EMULATOR_ACCESSES(2)
EMULATOR_ACCESSES(4)
EMULATOR_ACCESSES(8)
EMULATOR_ACCESSES(16)
void __tsan_read_range(void* address, unsigned long size) {
    emulator::note(address, size, emulator::Kind::read, __builtin_return_address(0));
}
void __tsan_write_range(void* address, unsigned long size) {
    emulator::note(address, size, emulator::Kind::write, __builtin_return_address(0));
}
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
}
