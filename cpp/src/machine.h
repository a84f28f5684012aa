// What the system says of the processor and of the process's share of it; as ztdeploy/core/processor.py reads it.
#pragma once

namespace ztdeploy {

struct Processor {
    bool dot_products = false; // it sums products of 8-bit integers in 32 bits
    bool bf16 = false;         // it sums products of bf16 in fp32
    bool loses_sums = false;   // sums of products with 8-bit weights overflow
};

Processor processor();
Processor onednn_processor(); // no more than ONEDNN_MAX_CPU_ISA allows

// How many threads the process may really use, at most `limit` (0: no limit): cores that it may run on, and its quota.
int usable_threads(int limit);

} // namespace ztdeploy
