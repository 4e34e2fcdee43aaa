/* A Vulkan driver that fails when it is told to, in front of one that works: the library's errors cannot be had from a
 * driver in software, which has all the memory it asks for and is never lost.
 *
 * VAECF_DRIVER is the driver behind it. From the submission VAECF_LOST_AT on the device is lost; allocations
 * beyond VAECF_MEMORY bytes fail. */
#include <dlfcn.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { OUT_OF_DEVICE_MEMORY = -2, DEVICE_LOST = -4 };

typedef void (*function)(void);
typedef function (*get_function)(void *, const char *);

static get_function instance_functions, physical_functions, device_functions;
static int32_t (*negotiate)(uint32_t *);
static int32_t (*submit)(void *, uint32_t, const void *, uint64_t);
static int32_t (*allocate)(void *, const void *, const void *, uint64_t *);

/* A function of the driver behind. Object pointers and function pointers are the same size wherever there is dlsym. */
static void set(void *to, function value) { memcpy(to, &value, sizeof value); }

static uint64_t number(const char *name) {
    const char *text = getenv(name);
    return text ? strtoull(text, 0, 10) : UINT64_MAX;
}

static int32_t failing_submit(void *queue, uint32_t count, const void *submits, uint64_t fence) {
    static uint64_t calls;
    return ++calls >= number("VAECF_LOST_AT") ? DEVICE_LOST : submit(queue, count, submits, fence);
}

/* VkMemoryAllocateInfo begins with a type, a pointer, and the size. */
struct allocation {
    int32_t type;
    const void *next;
    uint64_t size;
};

static int32_t failing_allocate(void *device, const void *info, const void *with, uint64_t *memory) {
    static uint64_t taken;
    uint64_t size = ((const struct allocation *)info)->size;
    if (size > number("VAECF_MEMORY") - taken) return OUT_OF_DEVICE_MEMORY;
    taken += size;
    return allocate(device, info, with, memory);
}

static function instead(const char *name, function found) {
    if (found && !strcmp(name, "vkQueueSubmit")) {
        set(&submit, found);
        return (function)failing_submit;
    }
    if (found && !strcmp(name, "vkAllocateMemory")) {
        set(&allocate, found);
        return (function)failing_allocate;
    }
    return found;
}

static function device_function(void *device, const char *name) {
    return instead(name, device_functions(device, name));
}

static int behind(void) {
    if (instance_functions) return 1;
    const char *path = getenv("VAECF_DRIVER");
    void *library = path ? dlopen(path, RTLD_NOW | RTLD_LOCAL) : 0;
    if (!library) return 0;
    void *symbol = dlsym(library, "vk_icdNegotiateLoaderICDInterfaceVersion");
    memcpy(&negotiate, &symbol, sizeof symbol);
    symbol = dlsym(library, "vk_icdGetPhysicalDeviceProcAddr");
    memcpy(&physical_functions, &symbol, sizeof symbol);
    symbol = dlsym(library, "vk_icdGetInstanceProcAddr");
    memcpy(&instance_functions, &symbol, sizeof symbol);
    return instance_functions != 0;
}

/* What the loader asks for. */

int32_t vk_icdNegotiateLoaderICDInterfaceVersion(uint32_t *version) {
    return behind() && negotiate ? negotiate(version) : -9;
}

function vk_icdGetInstanceProcAddr(void *instance, const char *name) {
    if (!behind()) return 0;
    function found = instance_functions(instance, name);
    if (found && !strcmp(name, "vkGetDeviceProcAddr")) {
        set(&device_functions, found);
        return (function)device_function;
    }
    return instead(name, found);
}

function vk_icdGetPhysicalDeviceProcAddr(void *instance, const char *name) {
    return behind() && physical_functions ? physical_functions(instance, name) : 0;
}
