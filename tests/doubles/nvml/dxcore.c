/* A libdxcore with the functions that are asked for the directories of drivers.
 *
 * The file that has its name with ".script" behind it has a line for each adapter: its WDDM version
 * and the directory of its driver. With -DOLD there is no D3DKMTEnumAdapters3. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <wchar.h>

enum { MOST = 16, PATH = 260, VERSION = 13, REGISTRY = 48 };

struct adapter { unsigned handle, luid[2], sources, present; };
struct adapters2 { unsigned count; struct adapter *adapters; };
struct adapters3 { unsigned long long filter; unsigned count; struct adapter *adapters; };
struct query { unsigned adapter, type; void *data; unsigned size; };
struct registry {
    unsigned type, flags;
    wchar_t name[PATH];
    unsigned value_type, adapter, size, status;
    union { unsigned long long word; wchar_t text; };
};

static unsigned versions[MOST];
static char stores[MOST][PATH];

static unsigned load(void) {
    Dl_info info;
    char real[4096], path[4200];
    unsigned count = 0;
    dladdr((void *)load, &info);
    if (!realpath(info.dli_fname, real)) return 0; /* it is loaded by a descriptor */
    snprintf(path, sizeof path, "%s.script", real);
    FILE *file = fopen(path, "r");
    printf("noise on stdout\n");
    while (file && count < MOST && fscanf(file, "%u %259s", &versions[count], stores[count]) == 2)
        count++;
    if (file) fclose(file);
    return count;
}

static int list(unsigned *count, struct adapter *adapters) {
    *count = load();
    for (unsigned i = 0; adapters && i < *count; i++) adapters[i].handle = 100 + i;
    return 0;
}

#ifndef OLD
int D3DKMTEnumAdapters3(struct adapters3 *asked) { return list(&asked->count, asked->adapters); }
#endif

int D3DKMTEnumAdapters2(struct adapters2 *asked) { return list(&asked->count, asked->adapters); }

int D3DKMTQueryAdapterInfo(struct query *asked) {
    unsigned number = asked->adapter - 100;
    if (number >= MOST) return 1;
    if (asked->type == VERSION) {
        *(unsigned *)asked->data = versions[number];
        return 0;
    }
    struct registry *found = asked->data;
    if (asked->type != REGISTRY || found->type != 2) return 1;
    size_t length = strlen(stores[number]);
    if (found->size == 0) {
        found->size = length * sizeof(wchar_t);
        return 0;
    }
    for (size_t i = 0; i < length; i++) (&found->text)[i] = stores[number][i];
    return 0;
}
