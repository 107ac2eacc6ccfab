/* A libnvidia-ml with the few functions that are asked, and what it says is in a file beside it.
 *
 * The file has its name with ".script" behind it. Each line is a word and its arguments:
 *
 *     fail FUNCTION CODE             whenever it is called
 *     abort FUNCTION / hang FUNCTION
 *     gpu INDEX CODE MINOR BUS UUID MIG NAME...    CODE is that of getting the handle
 *     part GPU INDEX CODE GI CI PROFILE UUID       a MIG device
 *     cuda NUMBER                    the newest CUDA, 13010 for 13.1
 *     profile NUMBER ID              the id that profiles of that number have
 *
 * With -DOLD there are no MIG functions, with -DBARE none that counts. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, MOST = 64 };

struct gpu { int there, code, minor, mig; char bus[32], uuid[96], name[96]; };
struct part { int gpu, index, code, gi, ci, profile; char uuid[96]; };

static struct gpu gpus[MOST];
static struct part parts[MOST];
static int count, part_count, cuda, profiles[MOST];

static FILE *script(void) {
    Dl_info info;
    char path[4096], name[4000];
    dladdr((void *)script, &info);
    ssize_t size = readlink(info.dli_fname, name, sizeof name - 1); /* it is loaded by descriptor */
    if (size > 0) name[size] = 0;
    snprintf(path, sizeof path, "%s.script", size > 0 ? name : info.dli_fname);
    return fopen(path, "r");
}

/* What every function does first. */
static int begin(const char *function) {
    FILE *file = script();
    char line[512], word[64], name[96];
    int code = 0, value;
    printf("noise on stdout\n");
    fprintf(stderr, "noise on stderr\n");
    while (file && fgets(line, sizeof line, file)) {
        int fields = sscanf(line, "%63s %95s %d", word, name, &value);
        if (fields < 2 || strcmp(name, function) != 0) continue;
        if (strcmp(word, "abort") == 0) abort();
        while (strcmp(word, "hang") == 0) pause();
        if (strcmp(word, "fail") == 0) code = value;
    }
    if (file) fclose(file);
    return code;
}

#define BEGIN do { int code = begin(__func__); if (code) return code; } while (0)

int nvmlShutdown(void) { BEGIN; return 0; }

static int load(void) {
    FILE *file = script();
    char line[512];
    int number, id;
    struct gpu gpu;
    struct part part;
    for (int i = 0; i < MOST; i++) profiles[i] = -1;
    while (file && fgets(line, sizeof line, file)) {
        memset(&gpu, 0, sizeof gpu);
        memset(&part, 0, sizeof part);
        if (sscanf(line, "gpu %d %d %d %31s %95s %d %95[^\n]", &number, &gpu.code, &gpu.minor,
                   gpu.bus, gpu.uuid, &gpu.mig, gpu.name) == 7) {
            gpus[number] = gpu;
            if (number >= count) count = number + 1;
        } else if (sscanf(line, "part %d %d %d %d %d %d %95s", &part.gpu, &part.index, &part.code,
                          &part.gi, &part.ci, &part.profile, part.uuid) == 7) {
            parts[part_count++] = part;
        } else if (sscanf(line, "cuda %d", &number) == 1) {
            cuda = number;
        } else if (sscanf(line, "profile %d %d", &number, &id) == 2) {
            profiles[number] = id;
        }
    }
    if (file) fclose(file);
    return 0;
}

int nvmlInitWithFlags(unsigned flags) { (void)flags; BEGIN; return load(); }
#ifndef BARE
int nvmlDeviceGetCount_v2(unsigned *found) { BEGIN; *found = count; return 0; }
#endif

int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device) {
    BEGIN;
    *device = &gpus[index];
    return gpus[index].code;
}

int nvmlDeviceGetName(struct gpu *device, char *name, unsigned size) {
    BEGIN;
    snprintf(name, size, "%s", device->name);
    return 0;
}

int nvmlDeviceGetMinorNumber(struct gpu *device, unsigned *minor) {
    BEGIN;
    *minor = device->minor;
    return 0;
}

struct pci { char legacy[16]; unsigned numbers[5]; char bus[32]; };

int nvmlDeviceGetPciInfo_v3(struct gpu *device, struct pci *pci) {
    BEGIN;
    snprintf(pci->bus, sizeof pci->bus, "%s", device->bus);
    sscanf(device->bus, "%x:%x:%x", &pci->numbers[0], &pci->numbers[1], &pci->numbers[2]);
    return 0;
}

int nvmlSystemGetCudaDriverVersion(int *found) {
    BEGIN;
    *found = cuda;
    return 0;
}

static int is_part(void *device) {
    return (char *)device >= (char *)parts && (char *)device < (char *)(parts + MOST);
}

int nvmlDeviceGetUUID(void *device, char *uuid, unsigned size) {
    BEGIN;
    snprintf(uuid, size, "%s",
             is_part(device) ? ((struct part *)device)->uuid : ((struct gpu *)device)->uuid);
    return 0;
}

#ifndef OLD
int nvmlDeviceGetMigMode(struct gpu *device, unsigned *current, unsigned *pending) {
    BEGIN;
    if (device->mig < 0) return NOT_SUPPORTED;
    *current = *pending = device->mig;
    return 0;
}

int nvmlDeviceGetMaxMigDeviceCount(struct gpu *device, unsigned *found) {
    (void)device;
    BEGIN;
    *found = 7;
    return 0;
}

int nvmlDeviceGetMigDeviceHandleByIndex(struct gpu *device, unsigned index, void **part) {
    BEGIN;
    for (int i = 0; i < part_count; i++)
        if (&gpus[parts[i].gpu] == device && parts[i].index == (int)index) {
            *part = &parts[i];
            return parts[i].code;
        }
    return NOT_FOUND;
}

int nvmlDeviceGetGpuInstanceId(struct part *part, unsigned *id) { BEGIN; *id = part->gi; return 0; }

int nvmlDeviceGetComputeInstanceId(struct part *part, unsigned *id) {
    BEGIN;
    *id = part->ci;
    return 0;
}

int nvmlDeviceGetGpuInstanceById(struct gpu *device, unsigned id, void **instance) {
    BEGIN;
    for (int i = 0; i < part_count; i++)
        if (&gpus[parts[i].gpu] == device && parts[i].gi == (int)id) {
            *instance = &parts[i];
            return 0;
        }
    return NOT_FOUND;
}

struct instance { void *device; unsigned id, profile, start, size; };

int nvmlGpuInstanceGetInfo(struct part *part, struct instance *info) {
    BEGIN;
    info->id = part->gi;
    info->profile = part->profile;
    return 0;
}

struct profile { unsigned version, id; };

int nvmlDeviceGetGpuInstanceProfileInfoV(struct gpu *device, unsigned number, struct profile *info) {
    (void)device;
    BEGIN;
    if (number >= MOST || profiles[number] < 0) return INVALID_ARGUMENT;
    info->id = profiles[number];
    return 0;
}
#endif
