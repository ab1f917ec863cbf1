/* A libnvidia-ml.so.1 that tells what a script says: the far end of the real bindings in tests and benches.

   The file named by $NVML_STUB is read when the library is initialized (the first of nested times), so that
   which GPUs there are stays as it is until the last shutdown, as with the driver's library:
       driver TEXT            the driver's version
       gpu UUID | mig UUID    begins a GPU, or a MIG instance of the GPU before it
       name|serial|vbios TEXT
       KEY VALUE...           what a call tells: the n-th call the n-th value, then the last one again
       compute|graphics PID:BYTES...   processes
   A value is a number, !CODE for an error of NVML, ~MS for 0 after that long (a file named as the script, with
   .waits, says that it began), or @START:RATE:PERIOD_MS for START + RATE * seconds, which stands still for
   PERIOD_MS each. A key that is not there is NVML_ERROR_NOT_SUPPORTED.

   Functions and structs: NVML API reference, https://docs.nvidia.com/deploy/nvml-api */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { OK = 0, UNINITIALIZED = 1, INVALID = 2, UNSUPPORTED = 3, NOT_FOUND = 6, INSUFFICIENT_SIZE = 7, NOT_LOADED = 9 };
enum { OBJECTS = 32, ENTRIES = 80, VALUES = 64 };
typedef unsigned long long u64;

struct entry { char key[24]; char *text; char *values[VALUES]; int count, next; };
struct object { char uuid[96]; int parent; struct entry entries[ENTRIES]; int count; };

static struct object objects[OBJECTS]; /* 0 is the system; parent 0: a GPU, -1: the system */
static int object_count, users;
static double begun;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER, user_lock = PTHREAD_MUTEX_INITIALIZER;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec * 1e-9;
}

static void add(struct object *object, const char *key, const char *text) {
    struct entry *entry = &object->entries[object->count++];
    snprintf(entry->key, sizeof entry->key, "%s", key);
    entry->text = strdup(text);
    char *rest = strdup(text), *value;
    while (entry->count < VALUES && (value = strsep(&rest, " ")))
        if (*value) entry->values[entry->count++] = value;
}

static int parse(void) {
    const char *path = getenv("NVML_STUB");
    FILE *file = path ? fopen(path, "r") : NULL;
    if (!file) return NOT_LOADED;
    memset(objects, 0, sizeof objects); /* scripts are small: what they held is not freed */
    objects[0].parent = -1;
    object_count = 1;
    int card = 0;
    char line[4096];
    while (fgets(line, sizeof line, file)) {
        line[strcspn(line, "#\n")] = 0;
        char *text = line, *key = strsep(&text, " ");
        if (!*key || !text) continue;
        int is_gpu = !strcmp(key, "gpu"), is_mig = !strcmp(key, "mig");
        if (!is_gpu && !is_mig) {
            add(&objects[object_count - 1], key, text);
            continue;
        }
        struct object *object = &objects[object_count];
        snprintf(object->uuid, sizeof object->uuid, "%s", text);
        if (is_gpu) card = object_count;
        object->parent = is_mig ? card : 0;
        object_count++;
    }
    fclose(file);
    begun = now();
    return OK;
}

static struct entry *find(struct object *object, const char *key) {
    for (int i = 0; i < object->count; i++)
        if (!strcmp(object->entries[i].key, key)) return &object->entries[i];
    return NULL;
}

static int evaluate(const char *value, u64 *out) {
    double start, rate, period;
    if (*value == '!') return atoi(value + 1);
    if (*value == '~') {
        char path[4096];
        snprintf(path, sizeof path, "%s.waits", getenv("NVML_STUB"));
        FILE *file = fopen(path, "w");
        if (file) fclose(file);
        usleep(atoi(value + 1) * 1000);
        *out = 0;
    } else if (sscanf(value, "@%lf:%lf:%lf", &start, &rate, &period) == 3) {
        u64 steps = (now() - begun) * 1e3 / period;
        *out = start + rate * steps * period * 1e-3;
    } else
        *out = strtoull(value, NULL, 0);
    return OK;
}

static int told(struct object *object, const char *key, u64 *out) {
    struct entry *entry = find(object, key);
    if (!entry || !entry->count) return UNSUPPORTED;
    pthread_mutex_lock(&lock);
    const char *value = entry->values[entry->next];
    if (entry->next < entry->count - 1) entry->next++;
    pthread_mutex_unlock(&lock);
    return evaluate(value, out);
}

static int told_uint(struct object *object, const char *key, unsigned *out) {
    u64 value = 0;
    int code = told(object, key, &value);
    if (code == OK) *out = value;
    return code;
}

static int numbered(struct object *object, const char *key, int number, unsigned *out) {
    char name[24];
    snprintf(name, sizeof name, "%s_%d", key, number);
    return told_uint(object, name, out);
}

static int text(struct object *object, const char *key, char *out, unsigned size) {
    struct entry *entry = find(object, key);
    if (!entry) return UNSUPPORTED;
    if (*entry->text == '!') return atoi(entry->text + 1);
    snprintf(out, size, "%s", entry->text);
    return OK;
}

/* -- the library and its devices ---------------------------------------------------------- */

int nvmlInitWithFlags(unsigned flags) {
    (void)flags;
    u64 none;
    pthread_mutex_lock(&user_lock);
    int code = users ? OK : parse();
    if (code == OK && find(&objects[0], "init")) code = told(&objects[0], "init", &none);
    if (code == OK) users++;
    pthread_mutex_unlock(&user_lock);
    return code;
}

int nvmlShutdown(void) {
    pthread_mutex_lock(&user_lock);
    int code = users ? OK : UNINITIALIZED;
    if (users) users--;
    pthread_mutex_unlock(&user_lock);
    return code;
}

const char *nvmlErrorString(int code) { (void)code; return "an error"; }

int nvmlSystemGetDriverVersion(char *out, unsigned size) { return text(&objects[0], "driver", out, size); }

static struct object *child(int parent, unsigned index) {
    for (int i = 1; i < object_count; i++)
        if (objects[i].parent == parent && index-- == 0) return &objects[i];
    return NULL;
}

static int index_of(struct object *object) {
    int index = 0;
    for (struct object *other = objects + 1; other < object; other++) index += other->parent == object->parent;
    return index;
}

static int handle(struct object *object, struct object **out) {
    u64 none;
    if (!users) return UNINITIALIZED;
    if (!object) return NOT_FOUND;
    *out = object;
    return find(object, "handle") ? told(object, "handle", &none) : OK;
}

int nvmlDeviceGetCount_v2(unsigned *out) {
    if (!users) return UNINITIALIZED;
    for (*out = 0; child(0, *out);) ++*out;
    return OK;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, struct object **out) { return handle(child(0, index), out); }

int nvmlDeviceGetIndex(struct object *gpu, unsigned *out) { *out = index_of(gpu); return OK; }

int nvmlDeviceGetUUID(struct object *gpu, char *out, unsigned size) {
    snprintf(out, size, "%s", gpu->uuid);
    return OK;
}

int nvmlDeviceGetMigMode(struct object *gpu, unsigned *current, unsigned *pending) {
    int code = told_uint(gpu, "mig_mode", current);
    *pending = *current;
    return code;
}

int nvmlDeviceGetMaxMigDeviceCount(struct object *gpu, unsigned *out) { (void)gpu; *out = 7; return OK; }

int nvmlDeviceGetMigDeviceHandleByIndex(struct object *gpu, unsigned index, struct object **out) {
    return handle(child(gpu - objects, index), out);
}

/* -- values ------------------------------------------------------------------------------- */

#define TEXT(function, key) \
    int function(struct object *gpu, char *out, unsigned size) { return text(gpu, key, out, size); }
#define UINT(function, key) \
    int function(struct object *gpu, unsigned *out) { return told_uint(gpu, key, out); }
#define ULONG(function, key) \
    int function(struct object *gpu, u64 *out) { return told(gpu, key, out); }
#define NUMBERED(function, key) \
    int function(struct object *gpu, unsigned n, unsigned *out) { return numbered(gpu, key, n, out); }
#define ENGINE(function, key) \
    int function(struct object *gpu, unsigned *out, unsigned *period_us) { \
        *period_us = 166000; \
        return told_uint(gpu, key, out); \
    }

TEXT(nvmlDeviceGetName, "name")
TEXT(nvmlDeviceGetSerial, "serial")
TEXT(nvmlDeviceGetVbiosVersion, "vbios")
ULONG(nvmlDeviceGetTotalEnergyConsumption, "energy_mj")
ULONG(nvmlDeviceGetCurrentClocksEventReasons, "event_reasons")
ULONG(nvmlDeviceGetCurrentClocksThrottleReasons, "throttle_reasons")
ULONG(nvmlDeviceGetSupportedClocksEventReasons, "supported_reasons")
ULONG(nvmlDeviceGetSupportedClocksThrottleReasons, "supported_reasons")
UINT(nvmlDeviceGetPowerUsage, "power_mw")
UINT(nvmlDeviceGetEnforcedPowerLimit, "limit_enforced_mw")
UINT(nvmlDeviceGetPowerManagementDefaultLimit, "limit_default_mw")
UINT(nvmlDeviceGetCurrPcieLinkGeneration, "pcie_generation")
UINT(nvmlDeviceGetCurrPcieLinkWidth, "pcie_width")
UINT(nvmlDeviceGetNumFans, "fans")
NUMBERED(nvmlDeviceGetFanSpeed_v2, "fan")
NUMBERED(nvmlDeviceGetTemperature, "temperature")
NUMBERED(nvmlDeviceGetTemperatureThreshold, "threshold")
NUMBERED(nvmlDeviceGetClockInfo, "clock")
NUMBERED(nvmlDeviceGetMaxClockInfo, "max_clock")
NUMBERED(nvmlDeviceGetPcieThroughput, "pcie")
ENGINE(nvmlDeviceGetEncoderUtilization, "encoder")
ENGINE(nvmlDeviceGetDecoderUtilization, "decoder")
ENGINE(nvmlDeviceGetJpgUtilization, "jpeg")
ENGINE(nvmlDeviceGetOfaUtilization, "ofa")

struct field {
    unsigned id, scope;
    long long timestamp_us, latency_us;
    int type, code;
    union { double d; unsigned ui; u64 ull; } value;
};

int nvmlDeviceGetFieldValues(struct object *gpu, int count, struct field *fields) {
    char key[24];
    for (int i = 0; i < count; i++) {
        snprintf(key, sizeof key, "field_%u", fields[i].id);
        fields[i].type = 1; /* unsigned int, as power and temperature are */
        fields[i].value.ull = 0;
        fields[i].code = told_uint(gpu, key, &fields[i].value.ui);
    }
    return OK;
}

int nvmlDeviceGetCudaComputeCapability(struct object *gpu, int *major, int *minor) {
    unsigned both;
    int code = told_uint(gpu, "capability", &both); /* 80 is 8.0 */
    if (code == OK) *major = both / 10, *minor = both % 10;
    return code;
}

struct utilization { unsigned gpu, memory; };

int nvmlDeviceGetUtilizationRates(struct object *gpu, struct utilization *out) {
    int code = told_uint(gpu, "utilization", &out->gpu);
    return code == OK ? told_uint(gpu, "memory_utilization", &out->memory) : code;
}

struct memory { u64 total, free, used; };

int nvmlDeviceGetMemoryInfo(struct object *gpu, struct memory *out) {
    int code = told(gpu, "memory_total", &out->total);
    return code == OK ? told(gpu, "memory_used", &out->used) : code;
}

struct memory_v2 { unsigned version; u64 total, reserved, free, used; };

int nvmlDeviceGetMemoryInfo_v2(struct object *gpu, struct memory_v2 *out) {
    if (!find(gpu, "memory_reserved")) return UNSUPPORTED; /* an old driver */
    told(gpu, "memory_reserved", &out->reserved);
    told(gpu, "memory_total", &out->total);
    return told(gpu, "memory_used", &out->used);
}

struct temperature { unsigned version, sensor; int degrees; };

int nvmlDeviceGetTemperatureV(struct object *gpu, struct temperature *out) {
    return told_uint(gpu, "temperature_new", (unsigned *)&out->degrees);
}

struct fan_speed { unsigned version, fan, rpm; };

int nvmlDeviceGetFanSpeedRPM(struct object *gpu, struct fan_speed *out) {
    return told_uint(gpu, "rpm", &out->rpm);
}

int nvmlDeviceGetPowerManagementLimitConstraints(struct object *gpu, unsigned *least, unsigned *most) {
    *least = 0;
    return told_uint(gpu, "limit_max_mw", most);
}

int nvmlDeviceGetTotalEccErrors(struct object *gpu, unsigned type, unsigned counter, u64 *out) {
    if (counter != 0) return INVALID; /* since the driver was loaded */
    return told(gpu, type ? "ecc_uncorrected" : "ecc_corrected", out);
}

struct process { unsigned pid; u64 bytes; unsigned gpu_instance, compute_instance; };

static int processes(struct object *gpu, const char *key, unsigned *count, struct process *out) {
    struct entry *entry = find(gpu, key);
    u64 none;
    if (!entry) return UNSUPPORTED;
    if (entry->count && *entry->values[0] == '!') return evaluate(entry->values[0], &none);
    unsigned room = *count;
    *count = entry->count;
    if (room < *count) return INSUFFICIENT_SIZE;
    for (int i = 0; i < entry->count; i++) {
        char *bytes;
        out[i].pid = strtoul(entry->values[i], &bytes, 10);
        out[i].bytes = strtoull(bytes + 1, NULL, 0); /* -1: not known */
        out[i].gpu_instance = out[i].compute_instance = -1;
    }
    return OK;
}

int nvmlDeviceGetComputeRunningProcesses_v3(struct object *gpu, unsigned *count, struct process *out) {
    return processes(gpu, "compute", count, out);
}

int nvmlDeviceGetGraphicsRunningProcesses_v3(struct object *gpu, unsigned *count, struct process *out) {
    return processes(gpu, "graphics", count, out);
}
