// What the stand-ins for cuBLASLt and NCCL ask of the one for the driver.
#pragma once

#include <functional>

#include "scheduler.h"

extern "C" {

// The device work of another library, into a stream's queue (or the graph it is captured to). A fault that it
// returns costs the context. The result is the driver's.
__attribute__((visibility("default"))) int vaecf_emulator_enqueue(void *stream, std::function<emulator::Fault()> work);

// The same for work that must wait for more than what is before it in its queue: it is asked, as long as it is the next,
// whether it may be done.
__attribute__((visibility("default"))) int vaecf_emulator_enqueue_when(void *stream, std::function<bool()> so,
                                                                       std::function<emulator::Fault()> work);

// Does a little of what is queued anywhere.
__attribute__((visibility("default"))) void vaecf_emulator_progress();

// Whether what is put into a stream's queue is recorded.
__attribute__((visibility("default"))) bool vaecf_emulator_records(void *stream);

// Whether all of it lies in one device allocation. `sentence`, of at least 256 bytes, gets where it starts.
__attribute__((visibility("default"))) bool vaecf_emulator_holds(const void *start, unsigned long long bytes,
                                                                 char *sentence);

// One of so many, by the seed. Only for what is asked by the driver itself: see `vaecf_emulator_enqueue_when`.
__attribute__((visibility("default"))) unsigned vaecf_emulator_random(unsigned n);

// Zero where the thread has a context that works, otherwise what a call of the driver would return.
__attribute__((visibility("default"))) int vaecf_emulator_context();
}
