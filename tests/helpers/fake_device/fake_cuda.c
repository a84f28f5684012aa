// A stand-in for NVIDIA's driver library: as much of it as ztdeploy calls, on host memory.
//
// It is pickier than the real one. Copies happen only once their stream is waited for, or work is queued behind them;
// fresh memory holds garbage; freed memory is never handed out again. Whatever would be undefined with the real driver
// (a double free, a copy out of bounds, memory or a stream that has gone) ends the process with a message.
//
// FAKE_CUDA_NAME, FAKE_CUDA_CAPABILITY ("8.7"), FAKE_CUDA_DRIVER ("12060") describe the device;
// FAKE_CUDA_MEMORY limits its memory, in bytes; FAKE_CUDA_FAIL names a function that fails, FAKE_CUDA_CODE says how.

#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { OUT_OF_MEMORY = 2, NOT_INITIALISED = 3, NO_CONTEXT = 201, UNKNOWN = 999, MANY = 100000 };

typedef struct { char *start; size_t size; int live; } Allocation;
typedef struct { void *stream; char *to; const char *from; size_t size; } Copy;

static Allocation allocations[MANY];
static Copy copies[MANY];
static int allocated, queued, streams_made, initialised, context, stream_live[MANY];
static size_t in_use;
static __thread int has_context;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static void misuse(const char *what, const void *where) {
    fprintf(stderr, "fake_cuda: %s at %p\n", what, where);
    abort();
}

static const char *setting(const char *name, const char *otherwise) {
    const char *value = getenv(name);
    return value && *value ? value : otherwise;
}

static int code_of(const char *function) {
    if (strcmp(setting("FAKE_CUDA_FAIL", ""), function) == 0) return atoi(setting("FAKE_CUDA_CODE", "999"));
    return initialised || strcmp(function, "cuInit") == 0 ? 0 : NOT_INITIALISED;
}

static int code_in_context(const char *function) {
    int code = code_of(function);
    return code ? code : has_context ? 0 : NO_CONTEXT;
}

static size_t capacity(void) { return strtoull(setting("FAKE_CUDA_MEMORY", "8589934592"), NULL, 10); }

static Allocation *holding(uint64_t address) {
    for (int i = 0; i < allocated; i++) {
        char *start = allocations[i].start;
        if ((char *)address >= start && (char *)address < start + allocations[i].size) return &allocations[i];
    }
    return NULL;
}

static void check_room(uint64_t address, size_t size) {
    Allocation *found = holding(address);
    if (!found) misuse("access to memory that was never allocated", (void *)address);
    if (!found->live) misuse("use after free", (void *)address);
    if ((char *)address + size > found->start + found->size) misuse("access out of bounds", (void *)address);
}

static void check_stream(void *stream) {
    intptr_t number = (intptr_t)stream;
    if (number < 1 || number > streams_made) misuse("use of a stream that was never made", stream);
    if (!stream_live[number]) misuse("use of a destroyed stream", stream);
}

// NULL: all streams.
static void finish(void *stream) {
    int kept = 0;
    for (int i = 0; i < queued; i++) {
        if (stream && copies[i].stream != stream) {
            copies[kept++] = copies[i];
            continue;
        }
        memcpy(copies[i].to, copies[i].from, copies[i].size);
    }
    queued = kept;
}

static void queue(void *stream, char *to, const char *from, size_t size) {
    if (queued == MANY) misuse("too many copies in flight", stream);
    copies[queued++] = (Copy){stream, to, from, size};
}

int cuInit(unsigned flags) {
    int code = flags ? 1 : code_of("cuInit");
    initialised = code == 0;
    return code;
}

int cuDeviceGet(int *device, int ordinal) {
    *device = 40 + ordinal;
    return code_of("cuDeviceGet");
}

int cuDevicePrimaryCtxRetain(void **result, int device) {
    if (device != 40) return 101;
    *result = &context;
    return code_of("cuDevicePrimaryCtxRetain");
}

int cuCtxSetCurrent(void *wanted) {
    int code = code_of("cuCtxSetCurrent");
    if (!code) has_context = wanted == &context;
    return code;
}

int cuDeviceGetName(char *name, int length, int device) {
    if (device != 40) return 101;
    snprintf(name, length, "%s", setting("FAKE_CUDA_NAME", "Orin"));
    return code_of("cuDeviceGetName");
}

int cuDriverGetVersion(int *version) {
    *version = atoi(setting("FAKE_CUDA_DRIVER", "12060"));
    return code_of("cuDriverGetVersion");
}

int cuDeviceGetAttribute(int *value, int attribute, int device) {
    if (device != 40) return 101;
    int major = 8, minor = 7;
    sscanf(setting("FAKE_CUDA_CAPABILITY", "8.7"), "%d.%d", &major, &minor);
    *value = attribute == 75 ? major : attribute == 76 ? minor : attribute == 18 ? 1 : -1;
    return *value < 0 ? 1 : code_of("cuDeviceGetAttribute");
}

int cuGetErrorString(int code, const char **text) {
    *text = code == OUT_OF_MEMORY     ? "out of memory"
            : code == NOT_INITIALISED ? "initialization error"
            : code == NO_CONTEXT      ? "invalid device context"
            : code == 100             ? "no CUDA-capable device is detected"
            : code == UNKNOWN         ? "unknown error"
                                      : NULL;
    return *text ? 0 : 1;
}

int cuMemGetInfo_v2(size_t *free_bytes, size_t *total) {
    *free_bytes = capacity() - in_use;
    *total = capacity();
    return code_in_context("cuMemGetInfo_v2");
}

int cuStreamCreate(void **stream, unsigned flags) {
    int code = code_in_context("cuStreamCreate");
    if (code) return code;
    pthread_mutex_lock(&lock);
    stream_live[++streams_made] = 1;
    *stream = (void *)(intptr_t)streams_made;
    pthread_mutex_unlock(&lock);
    return 0;
}

static int finish_as(const char *name, void *stream, int lives_on) {
    int code = code_in_context(name);
    if (code) return code;
    pthread_mutex_lock(&lock);
    check_stream(stream);
    finish(stream);
    stream_live[(intptr_t)stream] = lives_on;
    pthread_mutex_unlock(&lock);
    return 0;
}

int cuStreamSynchronize(void *stream) {
    return finish_as("cuStreamSynchronize", stream, 1);
}

int cuStreamDestroy_v2(void *stream) {
    return finish_as("cuStreamDestroy_v2", stream, 0);
}

int cuMemAlloc_v2(uint64_t *address, size_t size) {
    int code = code_in_context("cuMemAlloc_v2");
    if (code) return code;
    if (size == 0) return 1;
    if (in_use + size > capacity()) return OUT_OF_MEMORY;
    pthread_mutex_lock(&lock);
    if (allocated == MANY) misuse("too many allocations", NULL);
    char *start = malloc(size);
    memset(start, 0xA5, size);
    allocations[allocated++] = (Allocation){start, size, 1};
    in_use += size;
    *address = (uint64_t)start;
    pthread_mutex_unlock(&lock);
    return 0;
}

int cuMemFree_v2(uint64_t address) {
    int code = code_in_context("cuMemFree_v2");
    if (code) return code;
    pthread_mutex_lock(&lock);
    Allocation *found = holding(address);
    if (!found || found->start != (char *)address) misuse("free of what was never allocated", (void *)address);
    if (!found->live) misuse("double free", (void *)address);
    finish(NULL);  // the real one waits for the device as well
    found->live = 0;
    in_use -= found->size;
    pthread_mutex_unlock(&lock);
    return 0;
}

int cuMemcpyHtoDAsync_v2(uint64_t to, const void *from, size_t size, void *stream) {
    int code = code_in_context("cuMemcpyHtoDAsync_v2");
    if (code) return code;
    pthread_mutex_lock(&lock);
    check_stream(stream);
    check_room(to, size);
    queue(stream, (char *)to, from, size);
    pthread_mutex_unlock(&lock);
    return 0;
}

int cuMemcpyDtoHAsync_v2(void *to, uint64_t from, size_t size, void *stream) {
    int code = code_in_context("cuMemcpyDtoHAsync_v2");
    if (code) return code;
    pthread_mutex_lock(&lock);
    check_stream(stream);
    check_room(from, size);
    queue(stream, to, (const char *)from, size);
    pthread_mutex_unlock(&lock);
    return 0;
}

// For the fake TensorRT and for tests; the real driver has none of these.

// What a kernel does ahead of running: everything queued before it on its stream is over.
void fake_cuda_reach(void *stream) {
    pthread_mutex_lock(&lock);
    check_stream(stream);
    finish(stream);
    pthread_mutex_unlock(&lock);
}

void fake_cuda_check(uint64_t address, size_t size) {
    pthread_mutex_lock(&lock);
    check_room(address, size);
    pthread_mutex_unlock(&lock);
}

size_t fake_cuda_bytes_in_use(void) { return in_use; }

int fake_cuda_has_context(void) { return has_context; }

int fake_cuda_streams_in_use(void) {
    int count = 0;
    for (int i = 1; i <= streams_made; i++) count += stream_live[i];
    return count;
}
