// The runner: reads launches from standard input, answers on what was standard output (emulator.py is at the other end).
//
// In once: n, then n times the offset of a static __shared__ variable from the start of the program, and its size.
// Out once: for each kernel a line of its name and its parameters (`*` pointer, `c` to constants, NumPy's type); "."
// Then for each launch, in: struct Request; each array: its size, and whether it comes back; its bytes; each argument:
// the number of its array (-1: null, -2: a scalar) and the scalar's bits. Out: 0, then the arrays that come back.
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <map>
#include <string>

#include "runtime.hpp"

extern "C" const char __executable_start[];

namespace {

struct Request {
    uint32_t kernel, grid, block, shared, thread_order, block_order, arrays, arguments, seconds;
};
struct Array {
    uint64_t size, returns;
};
struct Argument {
    int64_t array;
    uint64_t bits;
};

template <class T>
T* read_into(T* target, size_t count) {
    if (count && fread(target, sizeof(T), count, stdin) != count) _exit(0);  // the other end has closed
    return target;
}
template <class T>
T read_one() {
    T value;
    return *read_into(&value, 1);
}

}  // namespace

int main() {
    FILE* answers = fdopen(dup(1), "wb");
    dup2(2, 1);  // what a kernel prints is no answer
    std::vector<emulator::Memory> variables(read_one<uint64_t>());
    for (emulator::Memory& variable : variables) {
        variable.begin = const_cast<char*>(__executable_start) + read_one<uint64_t>();
        variable.size = read_one<uint64_t>();
    }

    std::vector<const emulator::Kernel*> kernels;
    for (const emulator::Kernel* kernel = emulator::Kernel::all; kernel; kernel = kernel->next) {
        kernels.push_back(kernel);
        fprintf(answers, "%s", kernel->name);
        for (unsigned i = 0; i < kernel->count; ++i) {
            const emulator::Parameter& type = kernel->parameters[i];
            fprintf(answers, " %s%s%c%u", type.pointer ? "*" : "", type.constant ? "c" : "", type.kind, type.size);
        }
        fprintf(answers, "\n");
    }
    fprintf(answers, ".\n");
    fflush(answers);

    for (;;) {
        const Request request = read_one<Request>();
        emulator::Launch launch{kernels[request.kernel], nullptr, request.grid, request.block,
                                request.thread_order, request.block_order, {}, variables};
        // Each array has an allocation of its own and of its very size: sanitizers see what lies beside it.
        std::vector<bool> returns;
        for (uint32_t i = 0; i < request.arrays; ++i) {
            const Array array = read_one<Array>();
            launch.arrays.push_back({static_cast<char*>(malloc(array.size)), array.size});
            read_into(launch.arrays.back().begin, array.size);
            returns.push_back(array.returns);
        }
        std::vector<Argument> arguments(request.arguments);
        read_into(arguments.data(), arguments.size());
        std::vector<void*> pointers;
        for (Argument& argument : arguments) {
            if (argument.array != -2) {
                char* array = argument.array < 0 ? nullptr : launch.arrays[argument.array].begin;
                memcpy(&argument.bits, &array, sizeof(array));
            }
            pointers.push_back(&argument.bits);
        }
        launch.arguments = pointers.data();
        char* shared = request.shared ? static_cast<char*>(malloc(request.shared)) : nullptr;
        emulator::dynamic_shared = shared;
        launch.shared.push_back({shared, request.shared});

        alarm(request.seconds);  // a thread that spins for another one spins for ever
        emulator::run(launch);
        alarm(0);

        const uint32_t done = 0;
        fwrite(&done, sizeof(done), 1, answers);
        for (uint32_t i = 0; i < request.arrays; ++i) {
            if (returns[i]) fwrite(launch.arrays[i].begin, 1, launch.arrays[i].size, answers);
            free(launch.arrays[i].begin);
        }
        free(shared);
        fflush(answers);
    }
}
