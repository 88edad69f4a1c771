"""The Numba kernels of the cpu backend, one module an operator: work on a range of rows, and drivers that share it.

A kernel `name(first, last, ...)` handles rows first..last - 1; a driver `name_all(n, ...)` cuts the whole into n
ranges. No number is written by two threads and no order of addition depends on their number, so every bit is the same
however many share the work. Row pointers may start anywhere (`CSRBatch`); `out` is written in place. Arguments are
trusted.
"""
