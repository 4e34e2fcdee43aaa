/* A layer between a program and its Vulkan driver that lets things go wrong which no driver in software does by itself.
 *
 * VAECF_VULKAN_LOST_AFTER   submissions of work until the device is lost
 * VAECF_VULKAN_MEMORY       bytes of the device's memory, of which more is refused
 * VAECF_VULKAN_PIPELINES    compute pipelines until the driver refuses one
 * VAECF_VULKAN_NO_DEVICE    the driver gives no device
 *
 * Each is without end unless it is given. The loader takes the layer in by VK_INSTANCE_LAYERS=VK_LAYER_VAECF_faults and
 * VK_LAYER_PATH. What is needed of Vulkan's headers is written out below, so that none need be installed. */

#include <pthread.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))

typedef void *Handle; /* Its first word is the loader's table, one for each device, which its queues share. */
typedef int Result;
typedef void (*Function)(void);
typedef Function (*GetProc)(Handle, const char *);

enum { SUCCESS = 0, OUT_OF_DEVICE_MEMORY = -2, INITIALIZATION_FAILED = -3, LOST = -4, UNKNOWN = -13 };
enum { LOADER_INSTANCE = 47, LOADER_DEVICE = 48, LINK = 0 };

typedef struct Chained {
    uint32_t type;
    const struct Chained *next;
} Chained;

typedef struct Link {
    struct Link *next;
    GetProc instance_proc;
    GetProc proc; /* Of an instance's link: functions of physical devices. Of a device's: functions of the device. */
} Link;

typedef struct {
    uint32_t type;
    const void *next;
    uint32_t function;
    Link *link;
} LayerInfo;

typedef struct {
    uint32_t type;
    const void *next;
    uint64_t size;
    uint32_t memory_type;
} MemoryInfo;

typedef struct {
    uint32_t type;
    void *next;
    uint32_t version;
    GetProc instance_proc, device_proc, physical_device_proc;
} Negotiation;

typedef Result (*CreateInstance)(const Chained *, const void *, Handle *);
typedef Result (*CreateDevice)(Handle, const Chained *, const void *, Handle *);
typedef Result (*Submit)(Handle, uint32_t, const void *, uint64_t);
typedef Result (*Allocate)(Handle, const MemoryInfo *, const void *, uint64_t *);
typedef void (*Free)(Handle, uint64_t, const void *);
typedef Result (*CreatePipelines)(Handle, uint64_t, uint32_t, const void *, const void *, uint64_t *);

/* What lies below a device, found by the loader's table. None is ever taken out: tests are short. */
typedef struct {
    void *table;
    GetProc proc;
    Submit submit;
    Allocate allocate;
    Free free;
    CreatePipelines create_pipelines;
} Below;

enum { DEVICES = 256, ALLOCATIONS = 65536 };
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static Below below[DEVICES];
static size_t devices;
static GetProc next_instance_proc;
static struct {
    uint64_t memory, size;
} allocations[ALLOCATIONS];
static uint64_t submitted, allocated, pipelines;

static uint64_t limit(const char *name) {
    const char *text = getenv(name);
    return text ? strtoull(text, NULL, 10) : UINT64_MAX;
}

/* Adds to a sum that must not grow beyond a limit, and says whether it has stayed below. */
static int counts(uint64_t *sum, uint64_t more, const char *name) {
    pthread_mutex_lock(&lock);
    int fits = *sum + more <= limit(name);
    if (fits) *sum += more;
    pthread_mutex_unlock(&lock);
    return fits;
}

static Below *below_of(Handle handle) {
    void *table = *(void **)handle;
    pthread_mutex_lock(&lock);
    Below *found = NULL;
    /* The latest first: a table may come again after its device is gone. */
    for (size_t i = devices; i-- > 0 && !found;)
        if (below[i].table == table) found = &below[i];
    pthread_mutex_unlock(&lock);
    return found;
}

static LayerInfo *link_of(const Chained *info, uint32_t type) {
    for (const Chained *at = info->next; at; at = at->next) {
        LayerInfo *found = (LayerInfo *)at;
        if (at->type == type && found->function == LINK) return found;
    }
    return NULL;
}

static Result create_instance(const Chained *info, const void *allocator, Handle *instance) {
    LayerInfo *layer = link_of(info, LOADER_INSTANCE);
    if (!layer) return INITIALIZATION_FAILED;
    next_instance_proc = layer->link->instance_proc;
    layer->link = layer->link->next;
    CreateInstance create = (CreateInstance)next_instance_proc(NULL, "vkCreateInstance");
    return create ? create(info, allocator, instance) : INITIALIZATION_FAILED;
}

static Result create_device(Handle physical, const Chained *info, const void *allocator, Handle *device) {
    LayerInfo *layer = link_of(info, LOADER_DEVICE);
    if (!layer || devices == DEVICES || getenv("VAECF_VULKAN_NO_DEVICE")) return INITIALIZATION_FAILED;
    GetProc instance_proc = layer->link->instance_proc, proc = layer->link->proc;
    layer->link = layer->link->next;
    CreateDevice create = (CreateDevice)instance_proc(NULL, "vkCreateDevice");
    Result result = create ? create(physical, info, allocator, device) : INITIALIZATION_FAILED;
    if (result != SUCCESS) return result;
    Below made = {
        .table = *(void **)*device,
        .proc = proc,
        .submit = (Submit)proc(*device, "vkQueueSubmit"),
        .allocate = (Allocate)proc(*device, "vkAllocateMemory"),
        .free = (Free)proc(*device, "vkFreeMemory"),
        .create_pipelines = (CreatePipelines)proc(*device, "vkCreateComputePipelines"),
    };
    pthread_mutex_lock(&lock);
    below[devices++] = made;
    pthread_mutex_unlock(&lock);
    return SUCCESS;
}

static Result submit(Handle queue, uint32_t count, const void *work, uint64_t fence) {
    if (!counts(&submitted, 1, "VAECF_VULKAN_LOST_AFTER")) return LOST;
    return below_of(queue)->submit(queue, count, work, fence);
}

static Result allocate(Handle device, const MemoryInfo *info, const void *allocator, uint64_t *memory) {
    if (!counts(&allocated, info->size, "VAECF_VULKAN_MEMORY")) return OUT_OF_DEVICE_MEMORY;
    Result result = below_of(device)->allocate(device, info, allocator, memory);
    pthread_mutex_lock(&lock);
    if (result != SUCCESS) allocated -= info->size;
    for (size_t i = 0; result == SUCCESS && i < ALLOCATIONS; i++) {
        if (allocations[i].memory == 0) {
            allocations[i].memory = *memory;
            allocations[i].size = info->size;
            break;
        }
    }
    pthread_mutex_unlock(&lock);
    return result;
}

static void free_memory(Handle device, uint64_t memory, const void *allocator) {
    pthread_mutex_lock(&lock);
    for (size_t i = 0; memory != 0 && i < ALLOCATIONS; i++) {
        if (allocations[i].memory == memory) {
            allocated -= allocations[i].size;
            allocations[i].memory = 0;
            break;
        }
    }
    pthread_mutex_unlock(&lock);
    below_of(device)->free(device, memory, allocator);
}

static Result create_pipelines(Handle device, uint64_t cache, uint32_t count, const void *info, const void *allocator,
                               uint64_t *made) {
    if (!counts(&pipelines, count, "VAECF_VULKAN_PIPELINES")) {
        memset(made, 0, count * sizeof *made);
        return UNKNOWN;
    }
    return below_of(device)->create_pipelines(device, cache, count, info, allocator, made);
}

static Function instance_proc(Handle instance, const char *name);

static Function device_proc(Handle device, const char *name) {
    static const struct {
        const char *name;
        Function is;
    } own[] = {
        {"vkGetDeviceProcAddr", (Function)device_proc},
        {"vkQueueSubmit", (Function)submit},
        {"vkAllocateMemory", (Function)allocate},
        {"vkFreeMemory", (Function)free_memory},
        {"vkCreateComputePipelines", (Function)create_pipelines},
        {"vkGetInstanceProcAddr", (Function)instance_proc},
        {"vkCreateInstance", (Function)create_instance},
        {"vkCreateDevice", (Function)create_device},
    };
    for (size_t i = 0; i < sizeof own / sizeof *own; i++)
        if (strcmp(own[i].name, name) == 0) return own[i].is;
    Below *found = device ? below_of(device) : NULL;
    return found ? found->proc(device, name) : NULL;
}

static Function instance_proc(Handle instance, const char *name) {
    Function own = device_proc(NULL, name);
    if (own) return own;
    return next_instance_proc ? next_instance_proc(instance, name) : NULL;
}

EXPORT Result vkNegotiateLoaderLayerInterfaceVersion(Negotiation *with) {
    if (with->version > 2) with->version = 2;
    with->instance_proc = instance_proc;
    with->device_proc = device_proc;
    with->physical_device_proc = NULL;
    return SUCCESS;
}
