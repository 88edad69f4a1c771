// The scheduler: one fiber for each CUDA thread, and one thread of the machine for all of them.
//
// A fiber runs until it waits or returns; then the next one runs, in the launch's order. Only when all have had their
// turn are waits looked at, and those that are complete end. So what lanes exchange is a copy that stays valid through
// the whole next turn, and a wait that never completes is a deadlock, found at once.
//
// This file is compiled without sanitizers: it moves stack pointers, which they would take for an error. AddressSanitizer
// is told of each change of stacks (EMULATOR_ASAN). x86-64 alone, for the sake of the switch below.
#include "runtime.hpp"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <numeric>
#include <string>

#ifdef EMULATOR_ASAN
extern "C" void __sanitizer_start_switch_fiber(void** save, const void* bottom, size_t size);
extern "C" void __sanitizer_finish_switch_fiber(void* saved, const void** old_bottom, size_t* old_size);
#else
static void __sanitizer_start_switch_fiber(void**, const void*, size_t) {}
static void __sanitizer_finish_switch_fiber(void*, const void**, size_t*) {}
#endif

// Saves what a called function must preserve, and the stack pointer in *save; goes on where `load` was saved.
extern "C" void emulator_switch(void** save, void* load);
asm(R"(.text
.globl emulator_switch
.type emulator_switch, @function
emulator_switch:
    pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp
    ret
.size emulator_switch, . - emulator_switch
)");

namespace emulator {

uint3 thread_index, block_index, block_size, grid_size;
void* dynamic_shared;
const Kernel* Kernel::all = nullptr;

namespace {

constexpr size_t stack_size = 256 * 1024;  // address space alone, until it is touched
constexpr size_t guard_size = 4096;

enum class State { ready, at_block_barrier, at_warp_operation, returned };

struct Fiber {
    char* stack;
    void* stack_pointer;
    void* sanitizer;  // AddressSanitizer's own record of the stack while the fiber waits
    State state;
    // What it waits for:
    Place place;
    const char* operation;
    unsigned mask;
    uint64_t value;
    bool orders_memory;
};

std::vector<Fiber> fibers;  // never fewer than the largest block so far had
uint64_t warp_values[32][32];
const Launch* launch;
unsigned running;  // the current fiber's number
unsigned block_count;

void* scheduler_stack_pointer;
void* scheduler_sanitizer;
const void* scheduler_bottom;
size_t scheduler_size;

void to_scheduler() {
    Fiber& self = fibers[running];
    __sanitizer_start_switch_fiber(&self.sanitizer, scheduler_bottom, scheduler_size);
    emulator_switch(&self.stack_pointer, scheduler_stack_pointer);
    __sanitizer_finish_switch_fiber(self.sanitizer, &scheduler_bottom, &scheduler_size);
}

// A fiber lives as long as the process: when its thread has returned, it waits for the next one.
void fiber_main() {
    __sanitizer_finish_switch_fiber(nullptr, &scheduler_bottom, &scheduler_size);
    for (;;) {
        launch->kernel->call(launch->kernel->function, launch->arguments);
        fibers[running].state = State::returned;
        to_scheduler();
    }
}

void resume(unsigned number) {
    Fiber& fiber = fibers[number];
    running = number;
    thread_index.x = number;
    __sanitizer_start_switch_fiber(&scheduler_sanitizer, fiber.stack, stack_size);
    emulator_switch(&scheduler_stack_pointer, fiber.stack_pointer);
    __sanitizer_finish_switch_fiber(scheduler_sanitizer, nullptr, nullptr);
}

Fiber new_fiber() {
    void* memory = mmap(nullptr, guard_size + stack_size, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED || mprotect(memory, guard_size, PROT_NONE) != 0) {
        perror("emulator: no memory for stacks");
        _exit(71);
    }
    Fiber fiber{};
    fiber.stack = static_cast<char*>(memory) + guard_size;
    // As if fiber_main had been called: a return address above it that is never used, six saved registers below.
    void** top = reinterpret_cast<void**>(fiber.stack + stack_size);
    *--top = nullptr;
    *--top = reinterpret_cast<void*>(fiber_main);
    fiber.stack_pointer = top - 6;
    return fiber;
}

// 0: ascending, 1: descending, otherwise a permutation that this number and `salt` choose.
std::vector<unsigned> permutation(unsigned count, unsigned order, unsigned salt) {
    std::vector<unsigned> result(count);
    std::iota(result.begin(), result.end(), 0u);
    if (order == 1) std::reverse(result.begin(), result.end());
    uint64_t state = (uint64_t{order} << 32) + salt;
    for (unsigned i = count; order > 1 && i > 1; --i) {
        uint64_t z = state += 0x9e3779b97f4a7c15u;  // splitmix64
        z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
        z = (z ^ z >> 27) * 0x94d049bb133111ebu;
        std::swap(result[i - 1], result[(z ^ z >> 31) % i]);
    }
    return result;
}

// Not memset: AddressSanitizer replaces that, and would object to the red zones between the variables.
void poison(Memory memory) {
    asm volatile("rep stosb" : "+D"(memory.begin), "+c"(memory.size) : "a"(0xff) : "memory");
}

unsigned wait(State state, Place place, const char* operation) {
    Fiber& self = fibers[running];
    self.state = state;
    self.place = place;
    self.operation = operation;
    to_scheduler();
    return running;
}

// Ends the warp's operations whose lanes are all there; returns whether there were any.
bool end_warp_operations(unsigned warp) {
    const unsigned first = warp * 32, count = std::min(32u, launch->block - first);
    Fiber* lanes = &fibers[first];
    unsigned waiting = 0, returned = count < 32 ? ~0u << count : 0;
    for (unsigned i = 0; i < count; ++i) {
        if (lanes[i].state == State::at_warp_operation) waiting |= 1u << i;
        if (lanes[i].state == State::returned) returned |= 1u << i;
    }
    bool ended = false;
    for (unsigned i = 0; i < count; ++i) {
        if (!(waiting >> i & 1)) continue;
        const Fiber& lane = lanes[i];
        running = first + i;
        if (const unsigned gone = lane.mask & returned)
            fault_at({lane.place}, "%s names in mask %#x lanes that have returned or never were: %#x", lane.operation,
                     lane.mask, gone);
        for (unsigned rest = lane.mask & waiting; rest; rest &= rest - 1) {
            const unsigned j = static_cast<unsigned>(__builtin_ctz(rest));
            const Fiber& other = lanes[j];
            if (!(other.mask >> i & 1)) continue;  // it waits for others first, and may come here later
            if (other.mask != lane.mask || strcmp(other.operation, lane.operation) != 0)
                fault_at({lane.place, other.place},
                         "lanes name each other, but lane %u is at %s with mask %#x, lane %u at %s with mask %#x", i,
                         lane.operation, lane.mask, j, other.operation, other.mask);
        }
        if ((lane.mask & waiting) != lane.mask) continue;
        const unsigned mask = lane.mask;
        // A lane of the mask may still name only others: those are then not its partners.
        bool complete = true;
        for (unsigned rest = mask; rest; rest &= rest - 1) complete &= lanes[__builtin_ctz(rest)].mask == mask;
        if (!complete) continue;
        if (lane.orders_memory) races_warp_barrier(warp, mask);
        for (unsigned rest = mask; rest; rest &= rest - 1) {
            const int j = __builtin_ctz(rest);
            warp_values[warp][j] = lanes[j].value;
            lanes[j].state = State::ready;
        }
        waiting &= ~mask;
        ended = true;
    }
    return ended;
}

// "96 threads wait at __syncthreads, 32 at __shfl_sync" and the places, those of fewest threads first.
[[noreturn]] void fault_of_waiting(const char* what) {
    struct Group {
        const Fiber* fiber;
        unsigned count, first;
    };
    std::vector<Group> groups;
    unsigned returned = 0;
    for (unsigned i = 0; i < launch->block; ++i) {
        const Fiber& fiber = fibers[i];
        if (fiber.state == State::returned) {
            ++returned;
            continue;
        }
        auto same = [&](const Group& group) {
            return group.fiber->place.line == fiber.place.line && strcmp(group.fiber->place.file, fiber.place.file) == 0 &&
                   strcmp(group.fiber->operation, fiber.operation) == 0;
        };
        auto group = std::find_if(groups.begin(), groups.end(), same);
        if (group == groups.end()) groups.push_back({&fiber, 1, i});
        else ++group->count;
    }
    std::stable_sort(groups.begin(), groups.end(), [](const Group& a, const Group& b) { return a.count < b.count; });
    std::string text;
    std::vector<Place> places;
    for (const Group& group : groups) {
        text += std::to_string(group.count) + " wait at " + group.fiber->operation + " line " +
                std::to_string(group.fiber->place.line) + ", ";
        places.push_back(group.fiber->place);
    }
    running = groups.front().first;
    fault_at(places, "%s: of %u threads %s%u have returned", what, launch->block, text.c_str(), returned);
}

void end_block_barrier() {
    const Fiber* first = nullptr;
    bool all = true, same = true;
    block_count = 0;
    for (unsigned i = 0; i < launch->block; ++i) {
        const Fiber& fiber = fibers[i];
        if (fiber.state == State::at_warp_operation) fault_of_waiting("deadlock");
        if (fiber.state == State::returned) {
            all = false;
            continue;
        }
        if (!first) first = &fiber;
        same &= fiber.place.line == first->place.line && strcmp(fiber.place.file, first->place.file) == 0;
        block_count += fiber.value != 0;
    }
    if (!all || !same) fault_of_waiting("barrier that not all threads of the block reach");
    races_block_barrier();
    for (unsigned i = 0; i < launch->block; ++i) fibers[i].state = State::ready;
}

void run_block(unsigned block) {
    block_index = {block, 0, 0};
    for (const Memory& memory : launch->shared) poison(memory);
    for (unsigned i = 0; i < launch->block; ++i) fibers[i].state = State::ready;
    races_begin_block();
    const std::vector<unsigned> order = permutation(launch->block, launch->thread_order, block);
    for (;;) {
        for (unsigned i : order)
            if (fibers[i].state == State::ready) resume(i);
        bool ended = false;
        for (unsigned warp = 0; warp * 32 < launch->block; ++warp) ended |= end_warp_operations(warp);
        if (ended) continue;
        const auto returned = [](const Fiber& fiber) { return fiber.state == State::returned; };
        if (std::all_of(fibers.begin(), fibers.begin() + launch->block, returned)) return;
        end_block_barrier();
    }
}

[[noreturn]] void report(const std::vector<Place>& places, const char* format, va_list values) {
    fprintf(stderr, "emulator: %s, block %u, thread %u: ", launch->kernel->name, block_index.x, running);
    vfprintf(stderr, format, values);
    for (const Place& place : places) fprintf(stderr, "\n    at %s:%d", place.file, place.line);
    fprintf(stderr, "\n");
    fflush(stderr);
    _exit(70);
}

}  // namespace

void fault_at(const std::vector<Place>& places, const char* format, ...) {
    va_list values;
    va_start(values, format);
    report(places, format, values);
}

void fault(Place place, const char* format, ...) {
    va_list values;
    va_start(values, format);
    report({place}, format, values);
}

unsigned current_thread() { return running; }

bool on_current_stack(const void* address) {
    return static_cast<size_t>(static_cast<const char*>(address) - fibers[running].stack) < stack_size;
}

unsigned block_barrier(Place place, const char* operation, bool predicate) {
    fibers[running].value = predicate;
    wait(State::at_block_barrier, place, operation);
    return block_count;
}

const uint64_t* warp_exchange(Place place, const char* operation, unsigned mask, uint64_t value, bool orders_memory) {
    Fiber& self = fibers[running];
    if (!(mask >> running % 32 & 1)) fault(place, "%s: lane %u is not in its own mask %#x", operation, running % 32, mask);
    self.mask = mask;
    self.value = value;
    self.orders_memory = orders_memory;
    return warp_values[wait(State::at_warp_operation, place, operation) / 32];
}

void run(const Launch& requested) {
    launch = &requested;
    block_size = {launch->block, 1, 1};
    grid_size = {launch->grid, 1, 1};
    thread_index = {};
    while (fibers.size() < launch->block) fibers.push_back(new_fiber());
    races_begin_launch(requested);
    for (unsigned block : permutation(launch->grid, launch->block_order, launch->grid)) run_block(block);
}

#ifndef EMULATOR_RACES
void atomic_access(const void*, unsigned, const void*) {}
#endif

}  // namespace emulator
